"""What a loader costs: one shuffled epoch of 50,000 x 784 float32 that only fetches, against a bare loop of
one `index_select` a batch; and the first call of `get_data`.

    python bench/dataloader.py [--n 11] [--bs 512]

All loaders take turns in one process, on one thread. Given are medians and their ratios to the bare loop."""
import argparse
import platform
import statistics
import subprocess
import sys
import time

import torch
from torch.utils import data as torch_data

from minifast.data import DataLoader, Dataset, get_data, normalize_to


def bare(ds, bs):
    "One `index_select` a batch for x and one for y, nothing else"
    for i in torch.randperm(len(ds)).split(bs): yield ds.x.index_select(0, i), ds.y.index_select(0, i)


class Sampler2019:
    "As in the course of 2019: positions, shuffled, in lists of `bs`"
    def __init__(self, ds, bs, shuffle): self.n, self.bs, self.shuffle = len(ds), bs, shuffle
    def __iter__(self):
        idxs = torch.randperm(self.n) if self.shuffle else torch.arange(self.n)
        for i in range(0, self.n, self.bs): yield idxs[i:i+self.bs]


class DataLoader2019:
    "As in the course of 2019: one item at a time, then stacked"
    def __init__(self, ds, sampler): self.ds, self.sampler = ds, sampler
    def __iter__(self):
        for s in self.sampler:
            xs, ys = zip(*[self.ds[i] for i in s])
            yield torch.stack(xs), torch.stack(ys)


def epoch(dl):
    "Seconds of one epoch"
    start = time.perf_counter()
    for xb, yb in dl: pass
    return time.perf_counter() - start


def first_get_data():
    "Seconds of the first `get_data` in a new process, after the imports"
    code = ('import time, torch; torch.set_num_threads(1)\nfrom minifast.data import get_data\n'
            'start = time.perf_counter(); get_data(); print(time.perf_counter() - start)')
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    return float(run.stdout)


def row(name, secs, base=None):
    "A line of the table"
    med = statistics.median(secs)
    ratio = f'{med/base:6.2f}' if base else ' '*6
    print(f'{name:<36}{med*1e3:9.1f} ms {ratio}   {min(secs)*1e3:7.1f} to {max(secs)*1e3:7.1f}')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=11, help='rounds (default 11)')
    p.add_argument('--bs', type=int, default=512, help='batch size (default 512)')
    args = p.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(42)
    x, y, xv, yv = get_data()
    ds, bs = Dataset(normalize_to(x, xv)[0], y), args.bs
    loaders = {
        'bare index_select': lambda: bare(ds, bs),
        'minifast DataLoader': lambda: DataLoader(ds, bs, shuffle=True),
        'minifast DataLoader, in order': lambda: DataLoader(ds, bs),
        "PyTorch's over a TensorDataset": lambda: torch_data.DataLoader(
            torch_data.TensorDataset(ds.x, ds.y), bs, shuffle=True),
        "PyTorch's over our Dataset": lambda: torch_data.DataLoader(ds, bs, shuffle=True),
        'the one of 2019, item by item': lambda: DataLoader2019(ds, Sampler2019(ds, bs, True))}
    for make in loaders.values(): epoch(make())                 # warm up
    rounds = [[epoch(make()) for make in loaders.values()] for _ in range(args.n)]
    print(f'torch {torch.__version__}, Python {platform.python_version()}, CPU ({platform.machine()}), '
          f'{torch.get_num_threads()} thread, n = {args.n}, bs = {bs}\n')
    print(f'{"one epoch":<36}{"median":>12} {"ratio":>6}   {"least to most":>21}')
    base = statistics.median(r[0] for r in rounds)
    for name, secs in zip(loaders, zip(*rounds)): row(name, secs, base)
    row('\nget_data, first call in a process', [first_get_data() for _ in range(max(3, args.n//2))])


if __name__ == '__main__': main()
