"""What a diagnosis finds in the zoo of tests/zoo.py: caught, missed, false alarms, by network and illness.

    python bench/diagnosis.py [--nets resnet,vit] [--apart] [--seeds 3] [--ills rate_high,nan] [--verbose]

Healthy networks are trained at both rates with SGD and AdamW, ill ones at the lower. The signs:
+ caught (the cause, where it began, since when within three iterations)
p the cause, but another place or time      x another cause than the right one
- missed      . silent where that is right too      ! a false alarm"""
import argparse
import importlib.util
import platform
import sys
from collections import Counter
from pathlib import Path

import torch

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root/'tests'))

import zoo  # noqa: E402

def findings(d, n=3):
    "(kind, place, since) of the first few lines"
    return [(o.kind, o.first, o.since) for o in list(d)[:n]]


def sign(found, right):
    if not right.cause: return '!' if found else '+'
    if not found: return '.' if right.may else '-'
    hits = [o for o in found if o[0] in right.cause.split(' or ')]
    if not hits: return 'x'
    def place(name): return not right.places or any((name + '.').startswith(p + '.') for p in right.places)
    return '+' if any(place(p) and abs(s - right.since) <= 3 for _, p, s in hits) else 'p'


def run(net, seed, opt, rate, ill, watch):
    cb = watch()
    t = zoo.prepare(net, seed, opt, rate, cbs=[cb])
    right = zoo.ILLS[ill](t) if ill else zoo.Verdict('')
    if right is None: return None
    t.run.fit(3, t.learn)
    return cb.diagnose(), right


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--nets', default='', help='names, with commas')
    p.add_argument('--ills', default='healthy,' + ','.join(zoo.ILLS))
    p.add_argument('--apart', action='store_true', help='the networks that no threshold was chosen by')
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--verbose', action='store_true')
    p.add_argument('--watch', default='', help='another class to watch with: file.py:Class')
    args = p.parse_args()
    torch.set_num_threads(1)
    from minifast.hook_callbacks import ActivationStats
    watch = ActivationStats
    if args.watch:
        path, name = args.watch.split(':')
        spec = importlib.util.spec_from_file_location('watch', path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        watch = getattr(module, name)
    nets = zoo.APART if args.apart else zoo.NETS
    nets = {k: v for k, v in nets.items() if not args.nets or k in args.nets.split(',')}
    ills, total = args.ills.split(','), {}
    print(f'torch {torch.__version__}, cpu ({platform.machine()}), 1 thread, n = {args.seeds} seeds, '
          '48 batches of 16\n')
    print(f"{'':<16}" + ' '.join(f'{o[:8]:<8}' for o in ills))
    for name, net in nets.items():
        cells = []
        for ill in ills:
            cell = ''
            for opt in ('sgd', 'adam'):
                for rate in (0, 1) if ill == 'healthy' else (0,):
                    for seed in range(args.seeds):
                        got = run(net, seed, opt, rate, '' if ill == 'healthy' else ill, watch)
                        if got is None: continue
                        d, right = got
                        s = sign(findings(d), right)
                        cell += s
                        if not args.verbose or s in '+.': continue
                        print(f'  {s} {name}, {ill}, {opt} {rate}, seed {seed}: {right}\n{d}', flush=True)
            total.setdefault(ill, Counter()).update(cell)
            short = Counter(cell)
            cells.append(cell if len(cell) <= 8 else ' '.join(f'{v}{k}' for k, v in short.items()))
        print(f'{name:<16}' + ' '.join(f'{o:<8}' for o in cells), flush=True)
    print()
    for k, c in total.items(): print(f'{k:<18}' + '  '.join(f'{v} {s}' for s, v in c.most_common()))


if __name__ == '__main__': main()
