"""Pictures a second, read from a folder of JPEGs: the DataLoader of lesson 19 with 0, 1 and 2 workers, and
PyTorch's over the same Dataset, so with the same decode; then the same folder held in memory as bytes.

    python bench/jpeg_folder.py [--n 1000] [--side 160] [--rounds 9]

The loaders take turns in one process, in another order each round, a whole epoch each with the start of its
workers; the median round counts, and every ratio is to PyTorch's with the same number of workers. The
photographs are made up (smooth noise): what a decoder has to do depends on their size and sharpness."""
import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader as TorchLoader

from minifast import data
from minifast.core import set_seed
from minifast.scratch import DataLoader, Dataset

def make(folder, n, side):
    rng = np.random.default_rng(0)
    for i in range(n):
        f = folder/str(i % 10)/f'{i:05}.jpg'
        f.parent.mkdir(exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (side//8, side//6, 3), dtype=np.uint8))
        small.resize((side*4//3, side), Image.Resampling.BICUBIC).save(f, quality=90)

def epoch(dl):
    start, n = time.perf_counter(), 0
    for xb, _ in dl: n += len(xb)
    return n/(time.perf_counter() - start)

class InMemory:
    "All pictures of a folder as bytes in one tensor; floats are made batch by batch"
    def __init__(self, ds, bs):
        x = torch.stack([(x*255).round().byte() for x, _ in ds])
        y = torch.tensor([ds.number[f.parent.name] for f in ds.files])
        self.dl = data.DataLoader(data.Dataset(x, y), bs, shuffle=True)
    def __iter__(self): return ((xb.float()/255, yb) for xb, yb in self.dl)

def main(n, side, rounds, bs=64):
    set_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as tmp:
        make(Path(tmp), n, side)
        ds = Dataset(tmp)
        loaders, memory = {}, 'in memory, after the first epoch'
        for k in (0, 1, 2):
            loaders[f'lesson 19, {k} workers'] = DataLoader(ds, bs, True, k)
            loaders[f'PyTorch, {k} workers'] = TorchLoader(ds, bs, True, num_workers=k)
        start = time.perf_counter()
        loaders[memory] = InMemory(ds, bs)
        first = n/(time.perf_counter() - start)
        rates = {k: [] for k in loaders}
        for _ in range(rounds):
            for k in random.sample(list(loaders), len(loaders)): rates[k].append(epoch(loaders[k]))
    mid = {k: statistics.median(v) for k, v in rates.items()}
    print(f'{n} JPEGs of {side*4//3}x{side}, bs {bs}, medians of {rounds}, '
          f'cpu, one thread a process, torch {torch.__version__}')
    print(f'{"loader":34} {"pictures/s":>11}  beside PyTorch')
    for k, v in mid.items():
        same = mid[k.replace('lesson 19', 'PyTorch').replace(memory, 'PyTorch, 0 workers')]
        print(f'{k:34} {v:11,.0f}  {v/same:.2f}')
    print(f'{"in memory, the first epoch":34} {first:11,.0f}')

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for k, v in dict(n=1000, side=160, rounds=9).items(): p.add_argument(f'--{k}', type=int, default=v)
    main(**vars(p.parse_args()))
