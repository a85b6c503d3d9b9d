"What several test files use: `from helpers import …`; what one file needs stands in that file"
import copy
import io
import json
import pickle
import random
import re
from configparser import ConfigParser
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import minifast.all
from minifast.callback import Callback
from minifast.cnn import BatchTransformXCallback
from minifast.core import set_seed
from minifast.data import DataBunch, DataLoader, Dataset, get_dls, mnist_view
from minifast.losses import accuracy
from minifast.runner import AvgStatsCallback, Runner

root = Path(__file__).resolve().parents[1]
ini = ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device on this machine')


# --- the small version of a lesson

def small(lesson, name, **given):
    "What the one cell of `lesson` that defines `name` makes of it, with the names of minifast.all and `given`"
    cells = json.loads((root/'nbs'/f'{lesson}.ipynb').read_text(encoding='utf-8'))['cells']
    found = [src for c in cells if c['cell_type'] == 'code'
             and re.search(rf'^(?:class|def) {name}\b', src := ''.join(c['source']), re.M)]
    assert len(found) == 1 and '#| export' not in found[0], f'{lesson} has {len(found)} small cells for {name}'
    names = {**vars(minifast.all), **given}
    exec(found[0], names)
    return names[name]


# --- equal to the last bit, copies, random states

exact = partial(assert_close, rtol=0, atol=0, equal_nan=True)

def assert_same(a, b):
    "Two nested states are of the same types and agree to the last bit"
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor): exact(a, b)
    elif isinstance(a, np.ndarray): np.testing.assert_array_equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for k in a: assert_same(a[k], b[k])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b): assert_same(x, y)
    else: assert a == b

def pickled(o): return pickle.loads(pickle.dumps(o))

def saved(o, weights_only=False):
    "What `torch.load` gives back after `torch.save`"
    f = io.BytesIO()
    torch.save(o, f)
    f.seek(0)
    return torch.load(f, weights_only=weights_only)

copies = [copy.copy, copy.deepcopy, pickled]

def randomness():
    "The states of the generators of torch, Python and numpy"
    return torch.get_rng_state(), random.getstate(), np.random.get_state()


# --- callbacks and runners

def make_callback(name='Some', order=0, base=Callback, **methods):
    "An instance of a new class of callbacks"
    return type(name, (base,), {'_order': order, **methods})()

class RaiseAt(Callback):
    "Raises `exc` at `event`"
    def __init__(self, event, exc):
        self.exc = exc
        setattr(self, event, self.act)
    def act(self): raise self.exc

def quiet(*cbs):
    "A Runner that keeps its table rows in `rows`"
    run = Runner(list(cbs))
    run.rows = []
    run.logger = run.rows.append
    return run

image_cbfs = [partial(AvgStatsCallback, accuracy), partial(BatchTransformXCallback, mnist_view)]


# --- models and data

def net(): return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))

def conv2d(ni, nf, ks=3, stride=2):
    return nn.Sequential(nn.Conv2d(ni, nf, ks, padding=ks//2, stride=stride), nn.ReLU())

def bunch(n=24, bs=8, shuffle=False, n_valid=None, dtype=torch.float32, nx=6):
    "Noise in 3 classes; the first `n_valid` items, or all, are for validation"
    x, y = torch.randn(n, nx, dtype=dtype), torch.randint(0, 3, (n,))
    valid = Dataset(x[:n_valid], y[:n_valid])
    return DataBunch(DataLoader(Dataset(x, y), bs, shuffle=shuffle), DataLoader(valid, 2*bs), 3)

def blobs(n_train, n_valid):
    "Ten clouds of 784 numbers, which every network can tell apart"
    set_seed(0)
    y = torch.arange(n_train + n_valid) % 10
    x = torch.randn(10, 784)[y] + .3*torch.randn(len(y), 784)
    train, valid = Dataset(x[:n_train], y[:n_train]), Dataset(x[n_train:], y[n_train:])
    return DataBunch(*get_dls(train, valid, bs=50), c=10)
