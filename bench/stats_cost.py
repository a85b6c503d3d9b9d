"""What `ActivationStats` costs on a vision transformer, a ConvNeXt and a ResNet-18, 16 pictures of 64 by 64.

    python bench/stats_cost.py [--rounds 5] [--nets vit,convnext,resnet18]

Fits of 40 batches take turns in one process, on one thread, each with a network of its own; a ratio is the
median over the rounds of a way's processor time over that of the Runner alone in the same round."""
import argparse
import platform
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn, optim

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root/'tests'))

import zoo  # noqa: E402
from minifast.cnn import get_runner  # noqa: E402
from minifast.data import DataBunch, DataLoader, Dataset  # noqa: E402
from minifast.hook_callbacks import ActivationStats  # noqa: E402


def vit():
    net = zoo.Vit(64, 6)
    net.patch, net.pos = nn.Conv2d(3, 64, 8, 8), nn.Parameter(.02*torch.randn(1, 65, 64))
    net.head = nn.Linear(64, 10)
    return net

def convnext():
    def stage(n, depth): return [zoo.NextBlock(n) for _ in range(depth)]
    return nn.Sequential(
        nn.Conv2d(3, 24, 4, 4), zoo.Norm2d(24), *stage(24, 2), zoo.Norm2d(24),
        nn.Conv2d(24, 48, 2, 2), *stage(48, 2), zoo.Norm2d(48),
        nn.Conv2d(48, 96, 2, 2), *stage(96, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.LayerNorm(96), nn.Linear(96, 10))

def resnet18():
    sizes = [(32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1),
             (128, 256, 2), (256, 256, 1)]
    blocks = [zoo.Residual(*o) for o in sizes]
    return nn.Sequential(zoo.conv(3, 32, 3, 2), nn.BatchNorm2d(32), nn.ReLU(inplace=True), *blocks,
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


NETS = {'vit': vit, 'convnext': convnext, 'resnet18': resnet18}
WAYS = {'a Runner': None, 'a Runner again': None, 'the default': {}, 'with gradients': dict(grads=True),
        'exact': dict(every=1, sample=None), 'every=1': dict(every=1)}


def measure(make, rounds, batches=40):
    "-> way -> seconds of each round"
    x, y = torch.randn(16*batches, 3, 64, 64), torch.randint(0, 10, (16*batches,))
    data, runs = DataBunch(DataLoader(Dataset(x, y), 16), None, 10), {}
    for k, kw in WAYS.items():
        cbs = [] if kw is None else [ActivationStats(**kw)]
        runs[k] = get_runner(make(), data, lr=1e-3, cbs=cbs, opt_func=optim.AdamW)
    times = {k: [] for k in WAYS}
    for _ in range(rounds + 1):
        for k in random.sample(list(WAYS), len(WAYS)):
            learn, run = runs[k]
            start = time.process_time()
            run.fit(1, learn)
            times[k].append(time.process_time() - start)
    return {k: v[1:] for k, v in times.items()}   # the first round warms up


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--nets', default=','.join(NETS))
    args = p.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    cpu = f'cpu ({platform.machine()}), 1 thread'
    print(f'torch {torch.__version__}, {cpu}, n = {args.rounds} rounds of 40 batches\n')
    print(f"{'':<10}" + ''.join(f'{k:>16}' for k in WAYS))
    for name in args.nets.split(','):
        times = measure(NETS[name], args.rounds)
        cells = [statistics.median(a/b for a, b in zip(v, times['a Runner'])) for v in times.values()]
        print(f'{name:<10}' + ''.join(f'{o:16.2f}' for o in cells), flush=True)


if __name__ == '__main__': main()
