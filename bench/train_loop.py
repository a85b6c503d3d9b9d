"""The Runner against a hand-written PyTorch loop, interleaved in one process.

    python bench/train_loop.py [--repeats 15]

Prints medians and paired ratios. `hand` is the plain loop; the other rows train through a Runner."""
import argparse
import statistics
import time

import torch
from torch import nn, optim
from torch.nn import functional as F

from minifast.callback import Callback
from minifast.core import set_seed
from minifast.data import DataBunch, Dataset, get_data, get_dls, normalize_to
from minifast.learner import Learner
from minifast.losses import accuracy
from minifast.runner import AvgStatsCallback, Runner
from minifast.sched import ParamScheduler, Recorder, combine_scheds, cos_1cycle_anneal


class Idle(Callback): pass


class Data:
    def __init__(self, train_dl): self.train_dl, self.valid_dl = train_dl, None


def tiny_data(n=1000, bs=8):
    set_seed(0)
    return Data([(torch.randn(bs, 4), torch.randint(0, 2, (bs,))) for _ in range(n)])


def tiny(data, **kw):
    set_seed(0)
    model = nn.Linear(4, 2)
    return Learner(model, optim.SGD(model.parameters(), lr=.01, **kw), F.cross_entropy, data)


def cnn(data, **kw):
    "The lessons' CNN: 8, 16, 32, 32 filters on 28x28 digits"
    set_seed(0)
    sizes = [(1, 8, 5), (8, 16, 3), (16, 32, 3), (32, 32, 3)]
    convs = [o for ni, nf, ks in sizes for o in (nn.Conv2d(ni, nf, ks, stride=2, padding=ks//2), nn.ReLU())]
    model = nn.Sequential(nn.Unflatten(1, (1, 28, 28)), *convs,
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    return Learner(model, optim.SGD(model.parameters(), lr=.1, **kw), F.cross_entropy, data)


def hand(learn, **kw):
    model, opt, loss_func = learn.model, learn.opt, learn.loss_func
    model.train()
    for xb, yb in learn.data.train_dl:
        loss = loss_func(model(xb), yb)
        loss.backward()
        opt.step()
        opt.zero_grad()


def runner(*cbs):
    def fit(learn):
        run = Runner([f() for f in cbs])
        run.logger = lambda cells: None
        run.fit(1, learn)
    return fit


def sched(): return ParamScheduler('lr', combine_scheds([.3, .7], cos_1cycle_anneal(.01, .1, .001)))


ways = {'hand': hand, 'hand again': hand, 'bare': runner(), '16 idle callbacks': runner(*[Idle]*16),
        'AvgStats, Recorder, scheduler': runner(AvgStatsCallback, Recorder, sched),
        'the same with accuracy': runner(lambda: AvgStatsCallback(accuracy), Recorder, sched)}


def measure(make, repeats, per):
    "Medians over `repeats` interleaved rounds: microseconds a batch, and the ratio to `hand`"
    times = {k: [] for k in [*ways, 'hand, foreach', 'hand, fused']}
    for _ in range(repeats):
        for k, f in [*ways.items(), ('hand, foreach', hand), ('hand, fused', hand)]:
            learn = make(**{k.split(', ')[1]: True} if k.startswith('hand, ') else {})
            start = time.perf_counter()
            f(learn)
            times[k].append(time.perf_counter()-start)
    for k, v in times.items():
        ratio = statistics.median(a/b for a, b in zip(v, times['hand']))
        print(f'{k:<32}{statistics.median(v)/per*1e6:10.1f} {ratio:8.3f}')


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--repeats', type=int, default=30)
    args = p.parse_args()
    torch.set_num_threads(1)
    print(f'n={args.repeats} interleaved, seed 0, cpu, 1 thread, torch {torch.__version__}')
    data = tiny_data()
    print(f"\n{'Linear(4,2), bs 8':<32}{'us/batch':>10} {'ratio':>8}")
    measure(lambda **kw: tiny(data, **kw), args.repeats, len(data.train_dl))
    x_train, y_train, x_valid, y_valid = get_data()
    x_train, x_valid = normalize_to(x_train, x_valid)
    few = Dataset(x_train[:5120], y_train[:5120])
    full = DataBunch(*get_dls(few, Dataset(x_valid, y_valid), 512), c=10)
    images = Data(full.train_dl)
    print(f"\n{'CNN 8-16-32-32, bs 512':<32}{'us/batch':>10} {'ratio':>8}")
    measure(lambda **kw: cnn(images, **kw), max(args.repeats//4, 3), len(images.train_dl))


if __name__ == '__main__': main()
