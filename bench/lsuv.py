"""What `lsuv_init` costs, in forward passes of the model, and what it leaves, for 5, 20 and 50 convolutions.

    python bench/lsuv.py [--rounds 5] [--course]
    python bench/lsuv.py --train [--images 5000 --bs 128 --epochs 1 --seeds 30 --shifted]

The ways take turns in one process, on one thread, each on a fresh copy; given are medians of processor
time, which a busy machine disturbs less. max |mean| and max |std-1| are measured afterwards, by hooks on a
run of the whole model. With `--course` also the loop of 2019, repaired as far as it needs to end (shift until
|mean| < tol, then scale until |std-1| < tol, a run of the whole model for each try, 50 tries at most), and
with scale and shift exchanged; once each.

`--train` measures something else, and only that: does it train better with both mean and standard deviation
right, or after 2019's order, which leaves means of .1 to .3? The five blocks of lesson 07a with Kaiming's
weights, all 50,000 images, batches of 512, two epochs, ten seeds, three rates; about 9 minutes. The settings
in brackets are those of the lesson, with more seeds, and `--shifted` takes its GeneralRelu; 4 minutes."""
import argparse
import copy
import platform
import statistics
import time
from functools import partial

import torch
from torch import nn

from minifast.cnn import BatchTransformXCallback, get_cnn_model, get_runner
from minifast.core import set_seed
from minifast.data import DataBunch, Dataset, get_data, get_dls, mnist_view, normalize_to
from minifast.init import init_cnn
from minifast.losses import accuracy
from minifast.lsuv import ConvLayer, find_modules, get_batch, lsuv_init
from minifast.runner import AvgStatsCallback

# layers, width, batch, pixels
SHAPES = [(5, 32, 64, 28), (20, 32, 64, 14), (50, 32, 64, 14), (20, 8, 256, 14)]


def net(depth, nf): return nn.Sequential(*[ConvLayer(nf if i else 1, nf, 3, 1) for i in range(depth)])

def outputs(model, xb):
    "What each layer gives"
    res = []
    hooks = [m.register_forward_hook(lambda m, i, o: res.append(o.double())) for m in model]
    with torch.no_grad(): model(xb)
    for h in hooks: h.remove()
    return res

@torch.no_grad()
def course(model, xb, order='shift scale', tol=1e-3, tries=50):
    "One layer at a time, a run of the whole model for each try; how many runs that takes"
    n, seen = 0, []
    def note(m, i, o): seen[:] = o.mean().item(), o.std().item()
    def look(): model(xb); return 1
    for m in model:
        h = m.register_forward_hook(note)
        for step in order.split():
            for _ in range(tries):
                n += look()
                if step == 'shift':
                    if abs(seen[0]) <= tol: break
                    m.bias -= seen[0]
                else:
                    if abs(seen[1] - 1) <= tol: break
                    m.weight.div_(seen[1])
        h.remove()
    return n

def seconds(f):
    start = time.process_time()
    f()
    return time.process_time() - start

def forward(model, xb):
    with torch.no_grad(): model(xb)

def blocks(model): return find_modules(model, lambda m: isinstance(m, ConvLayer))

def as_drawn(model, xb): pass

def scale_then_shift(model, xb): lsuv_init(model, xb, layers=blocks(model))

def shift_then_scale(model, xb): course(nn.Sequential(*blocks(model)), xb)

def train(data, seed, lr, start, epochs, layer):
    "Validation accuracy, and the largest |mean| behind a block before the first step"
    set_seed(seed)
    cbs = [partial(AvgStatsCallback, accuracy), partial(BatchTransformXCallback, mnist_view)]
    model = init_cnn(get_cnn_model(data, [8, 16, 32, 64, 64], layer))
    learn, run = get_runner(model, data, lr=lr, cbs=cbs)
    run.logger = lambda cells: None
    xb = get_batch(data.train_dl, run)[0]
    start(model, xb)
    left = max(o.mean().abs().item() for o in outputs(model[:5], xb))
    run.fit(epochs, learn)
    return run.avg_stats.history[-1]['valid_accuracy'], left

def train_all(seeds, rates, images, bs, epochs, layer):
    xt, yt, xv, yv = get_data()
    xt, xv = normalize_to(xt, xv)
    n_valid = 2000 if images else len(xv)
    dss = Dataset(xt[:images], yt[:images]), Dataset(xv[:n_valid], yv[:n_valid])
    data = DataBunch(*get_dls(*dss, bs=bs), c=10)
    print('validation accuracy, mean ± sd; lost: below .3')
    for start in (as_drawn, shift_then_scale, scale_then_shift):
        for lr in rates:
            acc, left = torch.tensor([train(data, seed, lr, start, epochs, layer) for seed in seeds]).T
            print(f'{start.__name__:<18}max |mean| at first {left.mean():7.1e}   rate {lr}: '
                  f'{acc.mean():.3f} ± {acc.std():.3f}, {(acc < .3).sum()} of {len(acc)} lost', flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=5, help='rounds (default 5)')
    p.add_argument('--course', action='store_true', help='the loop of 2019 too; minutes')
    p.add_argument('--train', action='store_true', help='train after either order instead; minutes')
    p.add_argument('--images', type=int, help='training images (default all 50,000); then 2,000 to validate')
    p.add_argument('--bs', type=int, default=512, help='batch size (default 512)')
    p.add_argument('--epochs', type=int, default=2, help='epochs (default 2)')
    p.add_argument('--seeds', type=int, default=10, help='seeds (default 10)')
    p.add_argument('--rates', type=float, nargs='+', default=[.2, .4, .6], help='learning rates')
    p.add_argument('--shifted', action='store_true', help='GeneralRelu(.1, .4) in place of ReLU')
    args = p.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(42)
    ways = {'lsuv_init': lsuv_init, 'orthonormal': lambda m, x: lsuv_init(m, x, orthonormal=True)}
    once = {"2019's loop": course, 'scale first': lambda m, x: course(m, x, 'scale shift')}
    if not args.course: once = {}
    print(f'torch {torch.__version__}, Python {platform.python_version()}, CPU ({platform.machine()}), '
          f'{torch.get_num_threads()} thread, n = {f"{args.seeds} seeds" if args.train else args.rounds}\n')
    layer = partial(ConvLayer, leak=.1, sub=.4) if args.shifted else ConvLayer
    if args.train: return train_all(range(args.seeds), args.rates, args.images, args.bs, args.epochs, layer)
    print(f'{"layers":>6} {"batch":<16} {"way":<14}{"ms":>9} {"forwards":>9}',
          f'{"max |mean|":>12} {"max |std-1|":>12}')
    for depth, nf, bs, hw in SHAPES:
        made, xb, times, left = net(depth, nf), torch.randn(bs, 1, hw, hw), {}, {}
        batch = f'{bs}x{nf}x{hw}x{hw}'
        for i in range(args.rounds + 1):   # the first round warms up
            fresh = {k: copy.deepcopy(made) for k in [*ways, *once]}
            for k, f in {'forward': forward, **ways, **(once if i == args.rounds else {})}.items():
                times.setdefault(k, []).append(seconds(lambda: f(fresh.get(k, made), xb)))
                left[k] = fresh.get(k, made)
        base = statistics.median(times['forward'][1:])
        for k, secs in times.items():
            med, outs = statistics.median(secs[1:] or secs), outputs(left[k], xb)
            mean = max(o.mean().abs().item() for o in outs)
            std = max((o.std() - 1).abs().item() for o in outs)
            print(f'{depth:6} {batch:<16} {k:<14}{med*1e3:9.1f} {med/base:9.2f} {mean:12.1e} {std:12.1e}')
        print()


if __name__ == '__main__': main()
