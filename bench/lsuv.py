"""What `lsuv_init` costs, in forward passes of the model, and what it leaves, for 5, 20 and 50 convolutions.

    python bench/lsuv.py [--rounds 5] [--course]

The ways take turns in one process, on one thread, each on a fresh copy; given are medians of processor
time, which a busy machine disturbs less. max |mean| and max |std-1| are measured afterwards, by hooks on a
run of the whole model. With `--course` also the loop of 2019, repaired as far as it needs to end (shift until
|mean| < tol, then scale until |std-1| < tol, a run of the whole model for each try, 50 tries at most), and
with scale and shift exchanged; once each."""
import argparse
import copy
import platform
import statistics
import time

import torch
from torch import nn

from minifast.lsuv import ConvLayer, lsuv_init

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

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=5, help='rounds (default 5)')
    p.add_argument('--course', action='store_true', help='the loop of 2019 too; minutes')
    args = p.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(42)
    ways = {'lsuv_init': lsuv_init, 'orthonormal': lambda m, x: lsuv_init(m, x, orthonormal=True)}
    once = {"2019's loop": course, 'scale first': lambda m, x: course(m, x, 'scale shift')}
    if not args.course: once = {}
    print(f'torch {torch.__version__}, Python {platform.python_version()}, CPU ({platform.machine()}), '
          f'{torch.get_num_threads()} thread, n = {args.rounds}\n')
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
