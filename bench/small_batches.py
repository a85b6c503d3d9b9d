"""Norms at small batches: one epoch of the same images at batch sizes 512 to 1, each norm at each rate.

    python bench/small_batches.py [--n 4096] [--sizes 512 32 8 2 1] [--rates .4 .1] [--seeds 5]

The lesson's network, 8-16-32-64-64 filters, plain SGD at a constant rate. Each run prints a line; the table
at the end gives, for each size and norm, the validation accuracy of every run, in order: at the rate with the
best median, and at the first rate. A loss that isn't finite counts by what is left of the network."""
import argparse
import platform
import time
from functools import partial

import torch
from torch.nn import functional as F

from minifast.cnn import get_cnn_model
from minifast.core import set_seed
from minifast.data import DataBunch, Dataset, get_data, get_dls, mnist_view, normalize_to
from minifast.init import conv_layer, init_cnn
from minifast.losses import accuracy
from minifast.norm import BatchNorm, RunningBatchNorm
from minifast.norms import GroupNorm, LayerNorm

NORMS = {'no norm': None, 'BatchNorm': BatchNorm, 'BatchNorm, eps .1': partial(BatchNorm, eps=.1),
         'GroupNorm(4)': partial(GroupNorm, 4), 'LayerNorm': lambda nf: LayerNorm(),
         'RunningBatchNorm': RunningBatchNorm}


def load(n, n_valid, bs):
    x_train, y_train, x_valid, y_valid = get_data()
    x_train, x_valid = normalize_to(x_train, x_valid)
    train, valid = Dataset(x_train[:n], y_train[:n]), Dataset(x_valid[:n_valid], y_valid[:n_valid])
    return DataBunch(*get_dls(train, valid, bs=bs), c=10)


def score(model, ds):
    "Loss and accuracy in eval mode"
    model.eval()
    with torch.no_grad(): pred = torch.cat([model(mnist_view(x)) for x in ds.x.split(500)])
    return F.cross_entropy(pred, ds.y).item(), accuracy(pred, ds.y).item()


def run(norm, data, rate, seed):
    "One epoch; what `score` gives afterwards"
    set_seed(seed)
    model = init_cnn(get_cnn_model(data, [8, 16, 32, 64, 64], conv_layer, norm=norm))
    opt = torch.optim.SGD(model.parameters(), lr=rate)
    for xb, yb in data.train_dl:
        F.cross_entropy(model(mnist_view(xb)), yb).backward()
        opt.step()
        opt.zero_grad()
    return score(model, data.valid_ds)


def accs(norm, data, rate, seeds):
    return torch.tensor([run(norm, data, rate, s)[1] for s in range(seeds)])
def cell(o): return ' '.join(f'{v:.2f}'.lstrip('0') for v in o.sort()[0])


def best_of(name, data, args):
    "{rate: accuracies}, or the reason why there are none"
    found = {}
    for rate in args.rates:
        start = time.perf_counter()
        try: found[rate] = accs(NORMS[name], data, rate, args.seeds)
        except ValueError as e: return str(e)
        s = time.perf_counter() - start
        print(f'  bs {data.train_dl.bs:<4} {name:<18} rate {rate:<6g} {cell(found[rate])}  {s:5.1f} s',
              flush=True)
    return found


def show(table, args):
    w = 4*args.seeds
    print(f'\n{"bs":>4}  {"norm":<18} {"best rate":>9}  {"runs there":<{w}}  at rate {args.rates[0]:g}')
    for (bs, name), found in table.items():
        if isinstance(found, str): print(f'{bs:>4}  {name:<18} refused: {found[:72]}'); continue
        best = max(found, key=lambda r: found[r].median())
        print(f'{bs:>4}  {name:<18} {best:>9g}  {cell(found[best]):<{w}}  {cell(found[args.rates[0]])}')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=4096, help='training images')
    p.add_argument('--valid', type=int, default=5000, help='validation images')
    p.add_argument('--sizes', type=int, nargs='+', default=[512, 32, 8, 2, 1])
    p.add_argument('--rates', type=float, nargs='+', default=[.4, .1])
    p.add_argument('--seeds', type=int, default=5)
    p.add_argument('--norms', nargs='+', default=list(NORMS), choices=list(NORMS))
    args = p.parse_args()
    torch.set_num_threads(1)
    print(f'{args.seeds} seeds, {args.n} images once, {args.valid} validation images, cpu, 1 thread, '
          f'torch {torch.__version__}, {platform.processor() or platform.machine()}')
    table = {}
    for bs in args.sizes:
        data = load(args.n, args.valid, bs)
        for name in args.norms: table[bs, name] = best_of(name, data, args)
    show(table, args)


if __name__ == '__main__': main()
