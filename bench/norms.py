"""What the norms cost: forward and backward, against PyTorch's own and the plain formula with autograd.

    nice -n -20 taskset -c 1 python bench/norms.py [--rounds 25]

Lesson sizes, one larger map, and batch size 2. All ways take turns in one process, on one thread, each called
as often as fills some milliseconds; given are the median times of PyTorch's, and for each way the median over
the rounds of its time over PyTorch's in the same round. Processor time: a busy machine disturbs it less."""
import argparse
import platform
import statistics
import time

import torch
from torch import nn

from minifast.norm import BatchNorm, RunningBatchNorm
from minifast.norms import GroupNorm, InstanceNorm, LayerNorm

SIZES = [(512, 8, 14, 14), (512, 16, 7, 7), (512, 32, 4, 4), (512, 64, 2, 2), (32, 64, 28, 28),
         (2, 8, 14, 14)]


class Plain(nn.Module):
    "The formula as it stands in the lesson, with the gradient through the statistics by autograd"
    def __init__(self, dims, *size):
        super().__init__()
        self.dims = dims
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, x):
        mean, var = x.mean(self.dims, keepdim=True), x.var(self.dims, correction=0, keepdim=True)
        return self.weight*(x - mean)/(var + 1e-5).sqrt() + self.bias


class PlainBatchNorm(Plain):
    def __init__(self, nf):
        super().__init__((0, 2, 3), nf, 1, 1)
        self.register_buffer('means', torch.zeros(1, nf, 1, 1))
        self.register_buffer('vars', torch.ones(1, nf, 1, 1))

    def forward(self, x):
        mean, var = x.mean(self.dims, keepdim=True), x.var(self.dims, correction=0, keepdim=True)
        with torch.no_grad(): self.means.lerp_(mean, .1); self.vars.lerp_(var, .1)
        return self.weight*(x - mean)/(var + 1e-5).sqrt() + self.bias


class PlainRunning(Plain):
    "Running sums, squares and counts, as in the course of 2019"
    def __init__(self, nf):
        super().__init__((0, 2, 3), nf, 1, 1)
        self.sums = self.sqrs = torch.zeros(1, nf, 1, 1)
        self.count = 0.

    def forward(self, x):
        n, mom = x.numel()/x.shape[1], 1 - .9/max(len(x)-1, 1)**.5
        self.sums = torch.lerp(self.sums.detach(), x.sum(self.dims, keepdim=True), mom)
        self.sqrs = torch.lerp(self.sqrs.detach(), (x*x).sum(self.dims, keepdim=True), mom)
        self.count += mom*(n - self.count)
        mean = self.sums/self.count
        factor = self.weight/(self.sqrs/self.count - mean*mean + 1e-5).sqrt()
        return x*factor + (self.bias - mean*factor)


def ways(size):
    "Rows: (name, PyTorch's, ours, plain)"
    nf, sample = size[1], size[1:]
    return [('BatchNorm', nn.BatchNorm2d(nf), BatchNorm(nf), PlainBatchNorm(nf)),
            ('RunningBatchNorm / BatchNorm2d', nn.BatchNorm2d(nf), RunningBatchNorm(nf), PlainRunning(nf)),
            ('LayerNorm(C,H,W)', nn.LayerNorm(sample), LayerNorm(sample), Plain((1, 2, 3), *sample)),
            ('LayerNorm() / GroupNorm(1)', nn.GroupNorm(1, nf), LayerNorm(), Plain((1, 2, 3), 1, 1, 1)),
            ('GroupNorm(4)', nn.GroupNorm(4, nf), GroupNorm(4, nf), None),
            ('InstanceNorm', nn.InstanceNorm2d(nf, affine=True), InstanceNorm(nf), Plain((2, 3), nf, 1, 1))]


def seconds(m, x, up, k):
    start = time.process_time()
    for _ in range(k): m(x).backward(up)
    return (time.process_time() - start)/k


def measure(mods, size, rounds):
    "Median microseconds of the first, and each one's median ratio to it"
    x, up = torch.randn(size, requires_grad=True), torch.randn(size)
    mods = [m for m in mods if m is not None]
    for m in mods: seconds(m, x, up, 3)
    k = max(1, int(3e-3/min(seconds(m, x, up, 5) for m in mods)))
    rows = [[seconds(m, x, up, k) for m in mods] for _ in range(rounds)]
    return statistics.median(r[0] for r in rows)*1e6, [statistics.median(r[i]/r[0] for r in rows)
                                                       for i in range(1, len(mods))]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=25)
    rounds = p.parse_args().rounds
    torch.set_num_threads(1)
    print(f'torch {torch.__version__}, {platform.processor() or platform.machine()}, 1 thread, float32, '
          f'forward + backward, medians of {rounds} rounds')
    for i, (name, *_) in enumerate(ways(SIZES[0])):
        print(f'\n{name}\n{"size":<20}{"PyTorch, µs":>12}{"ours":>8}{"plain":>8}   times PyTorch\'s')
        found = []
        for size in SIZES:
            us, ratios = measure(ways(size)[i][1:], size, rounds)
            found.append(ratios)
            cells = ''.join(f'{r:8.2f}' for r in ratios)
            print(f'{"×".join(map(str, size)):<20}{us:>12.0f}{cells}', flush=True)
        print(f'{"median":<32}' + ''.join(f'{statistics.median(o):8.2f}' for o in zip(*found)))


if __name__ == '__main__': main()
