"""What telemetry costs: the lessons' CNN at bs 512, all 8 layers, every batch, against no hooks.

    python bench/hooks_telemetry.py [--rounds 40] [--batches 6] [--device cpu]

All ways take turns of a few batches in one process, on one thread, each with a network of its own. A way's
ratio is the median over the rounds of its time over that of `no hooks` in the same round; what `end()` takes
to fetch the numbers is measured apart, and its share added. Times are processor time on a CPU, which a busy
machine disturbs less, and wall time elsewhere.

A second table has whole epochs as people run them: `ActivationStats` in a Runner against a Runner without.
Its blocks are the model's 7 children (the view is a callback there), its leaves the 11 innermost modules."""
import argparse
import platform
import random
import statistics
import time

import torch
from torch import nn, optim
from torch.nn import functional as F

from minifast.cnn import BatchTransformXCallback, CudaCallback, get_cnn_model, get_runner
from minifast.core import set_seed
from minifast.data import DataBunch, DataLoader, Dataset, get_data, mnist_view, normalize_to
from minifast.hook_callbacks import ActivationStats
from minifast.hooks import children
from minifast.telemetry import Telemetry

LAYERS = ['view', 'conv1', 'conv2', 'conv3', 'conv4', 'pool', 'flatten', 'linear']


class Way2019:
    "As in the course of 2019: `mean().item()`, `std().item()`, and `histc` if asked"
    def __init__(self, hists): self.hists, self.rows = hists, []
    def step(self): pass
    def end(self): self.rows.clear()

    def add(self, i, x):
        x = x.detach()
        self.rows.append((x.mean().item(), x.std().item(), x.histc(40, 0, 10) if self.hists else None))


def plain(**kw): return Telemetry(LAYERS, near=None, floors=None, **kw)


# name -> what watches the outputs, what watches the gradients
WAYS = {'no hooks': (None, None), 'no hooks again': (None, None),
        '2019: mean, std': (lambda: Way2019(False), None),
        '2019: mean, std, histogram': (lambda: Way2019(True), None),
        'means + stds': (lambda: plain(hists=False), None),
        'means + stds + histograms': (plain, None),
        '  the same, range 0 to 10': (lambda: plain(rng=(0, 10)), None),
        '  + dead and near-zero shares': (lambda: Telemetry(LAYERS), None),
        '  + gradients, likewise': (lambda: Telemetry(LAYERS), lambda: Telemetry(LAYERS))}


def conv2d(ni, nf, ks): return nn.Sequential(nn.Conv2d(ni, nf, ks, stride=2, padding=ks//2), nn.ReLU())


def cnn():
    convs = [conv2d(*o) for o in [(1, 8, 5), (8, 16, 3), (16, 32, 3), (32, 32, 3)]]
    return nn.Sequential(nn.Unflatten(1, (1, 28, 28)), *convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(32, 10))


class Training:
    "A network, its optimiser, and what watches it"
    def __init__(self, outs, grads, device):
        set_seed(0)
        self.model = cnn().to(device)
        self.opt = optim.SGD(self.model.parameters(), lr=.1)
        self.watchers = [w() if w else None for w in (outs, grads)]
        for i, m in enumerate(self.model):
            if outs: m.register_forward_hook(lambda m, inp, outp, i=i: self.note(i, outp))

    def note(self, i, outp):
        outs, grads = self.watchers
        outs.add(i, outp)
        if grads and outp.requires_grad: outp.register_hook(lambda g: grads.add(i, g))

    def batch(self, xb, yb):
        F.cross_entropy(self.model(xb), yb).backward()
        self.opt.step()
        self.opt.zero_grad()
        for w in self.watchers:
            if w: w.step()

    def end(self):
        for w in self.watchers:
            if w: w.end()


def seconds(f, device):
    "Processor time of `f` on a CPU, wall time until all is done on a GPU"
    cuda, clock = device == 'cuda', time.process_time if device == 'cpu' else time.perf_counter
    if cuda: torch.cuda.synchronize()
    start = clock()
    f()
    if cuda: torch.cuda.synchronize()
    return clock() - start


def measure(batches, rounds, per, device):
    "-> name -> seconds of each turn of `per` batches; name -> seconds that fetching takes, a batch"
    runs = {k: Training(*w, device) for k, w in WAYS.items()}
    turns, ends, seen = {k: [] for k in runs}, {k: [] for k in runs}, 0
    for r in range(rounds + 1):
        order = random.sample(list(runs), len(runs))
        at = [batches[(r*per + j) % len(batches)] for j in range(per)]
        seen += per
        due = seen >= 24 or r == rounds
        for k in order:
            turns[k].append(seconds(lambda: [runs[k].batch(*b) for b in at], device))
            if due: ends[k].append(seconds(runs[k].end, device)/seen)
        if due: seen = 0
    return {k: v[1:] for k, v in turns.items()}, ends          # the first round warms up


EPOCHS = {'a Runner': [], 'a Runner again': [],
          'blocks: means + stds': [lambda: ActivationStats(children, hists=False, near=None)],
          'blocks: + histograms': [lambda: ActivationStats(children, near=None)],
          'blocks: + shares (dead, near zero)': [lambda: ActivationStats(children)],
          'leaves: all of it (the default)': [ActivationStats],
          'leaves: all of it, every=4': [lambda: ActivationStats(every=4)]}


def epochs(x, y, n, device):
    "Print what whole epochs through the Runner take"
    data, runs = DataBunch(DataLoader(Dataset(x, y), 512, shuffle=True), None, 10), {}
    for k, cbs in EPOCHS.items():
        set_seed(0)
        cbs = [CudaCallback(device), BatchTransformXCallback(mnist_view), *cbs]
        runs[k] = get_runner(get_cnn_model(data, [8, 16, 32, 32], conv2d), data, lr=.1, cbs=cbs)
    times = {k: [] for k in runs}
    for _ in range(n + 3):                                     # in the first three the heap grows
        for k in random.sample(list(runs), len(runs)):
            learn, run = runs[k]
            times[k].append(seconds(lambda: run.fit(1, learn), device))
    print(f"\nn = {n} epochs of 98 batches\n\n{'':<36}{'s/epoch':>8} {'ratio':>7}   {'least, most':>13}")
    for k, v in times.items():
        ratios = [a/b for a, b in zip(v[3:], times['a Runner'][3:])]
        print(f'{k:<36}{statistics.median(v[3:]):8.2f} {statistics.median(ratios):7.3f}   '
              f'{min(ratios):6.3f}-{max(ratios):6.3f}')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=40)
    p.add_argument('--batches', type=int, default=6, help='of a turn (default 6)')
    p.add_argument('--epochs', type=int, default=5, help='whole epochs of the second table (default 5)')
    p.add_argument('--device', default='cpu')
    args = p.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    x, y, xv, yv = get_data()
    x, y = normalize_to(x, xv)[0].to(args.device), y.to(args.device)
    batches = [(x[i:i+512], y[i:i+512]) for i in range(0, 24*512, 512)]
    turns, ends = measure(batches, args.rounds, args.batches, args.device)
    cpu = f'{args.device} ({platform.machine()}), 1 thread'
    name = torch.cuda.get_device_name() if args.device == 'cuda' else cpu
    print(f'torch {torch.__version__}, {name}, bs 512\n')
    print(f'n = {args.rounds} rounds of {args.batches} batches\n')
    print(f"{'':<32}{'ms/batch':>9} {'ratio':>7}   {'quartiles':>13}   {'end of epoch':>12}")
    for k, v in turns.items():
        end = statistics.median(ends[k])                       # a batch's share of what fetching takes
        extra = end/(statistics.median(turns['no hooks'])/args.batches)
        low, mid, high = statistics.quantiles([a/b + extra for a, b in zip(v, turns['no hooks'])])
        ms = statistics.median(v)/args.batches*1e3
        print(f'{k:<32}{ms:9.2f} {mid:7.3f}   {low:6.3f}-{high:6.3f}   {end*98e3:9.1f} ms')
    if args.epochs: epochs(x, y, args.epochs, args.device)


if __name__ == '__main__': main()
