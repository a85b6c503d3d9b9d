"The summary against PyTorch: what it says is so, and the model is as it was"
import copy, pickle, random, re, subprocess, sys
from contextlib import suppress
from functools import partial
from html.parser import HTMLParser
from types import SimpleNamespace as NS

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from helpers import conv2d as conv, gpu, small
from minifast.cnn import get_cnn_model
from minifast.data import DataBunch, Dataset, get_dls
from minifast.hooks import names_of, original, Hook, leaked_hooks
from minifast.learner import Learner
from minifast.summary import (LayerInfo, ModelSummary, dummy_eval, model_sizes, model_summary, num_features_model,
                              preserved, uncompiled, units)

def count(m): return sum(p.numel() for p in m.parameters())
def shapes(o): return [tuple(r.shape) if r.shape is not None else None for r in o]
def row(o, name): return next(r for r in o if r.name == name)

class Block(nn.Module):
    def __init__(self, nf):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(nf, 1, 1))
        self.conv, self.norm = nn.Conv2d(nf, nf, 3, padding=1, bias=False), nn.BatchNorm2d(nf)
        self.never = nn.Linear(3, 2)
    def forward(self, x): return x + self.scale*self.norm(self.conv(x))

class Mixed(nn.Module):
    "Nested, shared, tied, bare, frozen in part, never called, random, with buffers, and modes that differ"
    def __init__(self, p=.5):
        super().__init__()
        act = nn.ReLU()
        self.stem, self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), act), Block(4)
        self.again, self.drop, self.act = self.block, nn.Dropout(p), act
        self.head = nn.Linear(4, 5)
        self.tied = nn.Linear(4, 5)
        self.tied.weight = self.head.weight
        self.head.weight.requires_grad_(False)
        self.register_buffer('seen', torch.zeros(()))
        self.register_buffer('off', torch.tensor([float('nan'), 1.]), persistent=False)
        self.register_buffer('none', None)
        self.block.norm.eval(); self.head.eval()
    def forward(self, x):
        if self.training: self.seen += len(x)
        x = self.drop(self.again(self.block(self.stem(x)))).mean((2, 3))
        return self.act(self.head(x)) + self.tied(x)

def state(m):
    "All that must be as before, as values that can be compared"
    raw = {k: (id(v), v._version, v.clone()) for k, v in m.named_buffers()}
    return NS(modes=[o.training for o in m.modules()], bufs=raw, keys=[list(o._buffers) for o in m.modules()],
              saved=list(m.state_dict()), params={k: (id(p), p._version, p.clone(), p.grad) for k, p in m.named_parameters()},
              hooks=[list(h.items()) for o in m.modules() for h in (o._forward_hooks, o._forward_pre_hooks, o._backward_hooks)],
              attrs=[set(vars(o)) for o in m.modules()], torch=torch.get_rng_state(), py=random.getstate(),
              np=np.random.get_state())

def same(a, b, versions=True):
    assert a.modes == b.modes and a.keys == b.keys and a.saved == b.saved and a.hooks == b.hooks
    assert a.attrs == b.attrs and a.py == b.py and torch.equal(a.torch, b.torch)
    assert all(np.array_equal(x, y) for x, y in zip(a.np, b.np))
    for x, y in ((a.bufs, b.bufs), (a.params, b.params)):
        assert list(x) == list(y)
        for k in x:
            assert x[k][0] == y[k][0], k
            assert_close(x[k][2], y[k][2], rtol=0, atol=0, equal_nan=True)
            if versions: assert x[k][1] == y[k][1], f'{k} was written to'
    assert all(a.params[k][3] is b.params[k][3] for k in a.params)


# --- units

def test_units_of_a_nested_model():
    m = Mixed()
    assert [n for n, _ in units(m)] == ['stem.0', 'stem.1', 'stem.2', 'block', 'block.conv', 'block.norm',
                                        'block.never', 'drop', 'head', 'tied']
    named = dict(m.named_modules())
    assert all(named[n] is o for n, o in units(m))

def test_units_of_single_layers_and_empty_ones():
    lin = nn.Linear(2, 3)
    assert units(lin) == [('', lin)]
    empty = nn.Sequential()
    assert units(empty) == [('', empty)]
    assert [n for n, _ in units(nn.Sequential(nn.Identity(), nn.Sequential()))] == ['0', '1']

def test_units_keep_a_parametrized_module_whole():
    lin = parametrizations.weight_norm(nn.Linear(3, 4))
    assert units(lin) == [('', lin)] and len(list(lin.children())) == 1
    m = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ModuleDict(dict(a=parametrizations.spectral_norm(nn.Conv2d(1, 2, 3)))))
    assert [n for n, _ in units(m)] == ['0', '1.a']

def test_units_attention_has_children_and_parameters():
    assert [n for n, _ in units(nn.MultiheadAttention(4, 2))] == ['', 'out_proj']

def test_units_a_container_whose_only_parameter_is_none():
    m = nn.Sequential(nn.Linear(2, 2))
    m.register_parameter('extra', None)
    assert [n for n, _ in units(m)] == ['0']

def test_units_wants_a_module():
    with pytest.raises(TypeError, match='got dict: give a module'): units({})

@st.composite
def trees(draw, depth=3):
    "A nested model, in which modules are shared now and then"
    made = []
    def layer():
        kind = draw(st.integers(0, 5))
        if kind == 5 and made: return draw(st.sampled_from(made))
        if kind == 4: return Block(2)
        o = [nn.Linear(2, 3), nn.ReLU(), nn.BatchNorm1d(3), nn.Linear(2, 2, bias=False)][kind % 4]
        made.append(o)
        return o
    def tree(d):
        n = draw(st.integers(0, 3))
        return nn.Sequential(*(tree(d-1) if d and draw(st.booleans()) else layer() for _ in range(n)))
    return tree(depth)

@settings(deadline=None, max_examples=60)
@given(trees())
def test_every_parameter_is_in_one_unit_and_every_leaf_is_a_unit(m):
    us = units(m)
    own = [id(p) for _, o in us for p in o.parameters(recurse=False)]
    assert len(own) == len(set(own)) and set(own) == {id(p) for p in m.parameters()}
    leaves = [n for n, o in m.named_modules() if not list(o.children()) or list(o.parameters(recurse=False))]
    assert [n for n, _ in us] == leaves


# --- preserved

def do_nothing(m): pass
def forward(m): m.train()(torch.randn(4, 3, 9, 9))
def flip(m): m.train(); m.head.train(); m.stem.eval()
def draw(m): torch.rand(3); random.random(); np.random.rand()
def fill(m): m.stem[1].running_mean.fill_(7); m.off.zero_()
def by_data(m): m.stem[1].running_mean.data.add_(1)   # isn't counted in _version
def rebind(m): m.seen = torch.ones(3); m.none = torch.ones(1); m.off = None
def resize(m): m.stem[1].running_var.resize_(9).fill_(2); m.off.data = torch.zeros(2, 2, dtype=torch.float64)
def delete(m): del m.seen; del m.stem[1].running_mean; m.seen = 3; m.stem[1].running_mean = torch.ones(1)
def add(m): m.register_buffer('new', torch.ones(1)); m.block.register_buffer('new', torch.ones(1), persistent=False)
def persist(m): m._non_persistent_buffers_set.clear(); m._non_persistent_buffers_set.add('seen')
DAMAGE = [do_nothing, forward, flip, draw, fill, by_data, rebind, resize, delete, add, persist]

@pytest.mark.parametrize('error', [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize('f', DAMAGE, ids=lambda f: f.__name__)
def test_preserved(f, error):
    m = Mixed()
    before = state(m)
    with suppress(BaseException if error else ()), preserved(m):
        f(m)
        if error: raise error
    after = state(m)
    same(before, after, versions=f in (do_nothing, flip, draw))
    m(torch.randn(2, 3, 9, 9)); m.state_dict()   # and it works

def test_the_damage_is_damage():
    for f in DAMAGE[1:]:
        m = Mixed()
        before = state(m)
        f(m)
        with pytest.raises(AssertionError): same(before, state(m), versions=False)

def test_preserved_raises_what_was_raised():
    e = ValueError('mine')
    with pytest.raises(ValueError) as got, preserved(Mixed()): raise e
    assert got.value is e

def test_preserved_changes_nothing_itself():
    m = Mixed()
    modes = [o.training for o in m.modules()]
    with preserved(m): assert [o.training for o in m.modules()] == modes and torch.is_grad_enabled()

def test_a_pending_backward_still_works():
    m = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()   # in eval mode the backward needs the buffers
    loss = m(torch.randn(4, 3)).sum()
    dummy_eval(m); model_summary(m)
    loss.backward()
    assert m[0].weight.grad is not None

def test_a_pending_backward_in_training_mode():
    m = Mixed().train()
    loss = m(torch.randn(4, 3, 9, 9)).sum()
    model_summary(m, (9, 9))
    loss.backward()

def test_a_generator_that_a_layer_holds():
    m = nn.Sequential(nn.Linear(2, 2))
    m.gen = torch.Generator().manual_seed(3)
    was = m.gen.get_state()
    with preserved(m): torch.rand(3, generator=m.gen)
    assert torch.equal(was, m.gen.get_state())

def test_preserved_copies_no_parameters():
    m = nn.Linear(3, 3)
    with preserved(m), torch.no_grad(): m.weight.fill_(5)
    assert (m.weight == 5).all()

def test_shared_and_odd_buffers():
    m = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    m[1].running_mean = m[0].running_mean
    m.register_buffer('far', torch.eye(3).to_sparse())
    m.register_buffer('whole', torch.tensor([True, False]))
    m.register_buffer('wave', torch.tensor([1 + 2j]))
    with preserved(m): m(torch.randn(5, 3)); m.whole.logical_not_(); m.wave.zero_(); m.far.mul_(2)
    assert m[0].running_mean is m[1].running_mean and (m[0].running_mean == 0).all()
    assert m.whole.tolist() == [True, False] and m.wave.tolist() == [1 + 2j] and m.far.to_dense().equal(torch.eye(3))

def test_preserved_and_lazy_layers():
    m = nn.Sequential(nn.LazyBatchNorm1d())
    with preserved(m): pass
    assert m[0].training

@given(st.lists(st.sampled_from(DAMAGE[1:]), min_size=1, max_size=4))
@settings(deadline=None, max_examples=30)
def test_preserved_from_many_damages(fs):
    m = Mixed()
    before = state(m)
    with suppress(Exception), preserved(m):
        for f in fs: f(m)
    same(before, state(m), versions=False)

@gpu
@pytest.mark.cuda
def test_on_a_gpu():
    m = Mixed().cuda()
    before, cuda = state(m), torch.cuda.get_rng_state_all()
    with preserved(m): m.train()(torch.randn(4, 3, 9, 9, device='cuda')); torch.rand(2, device='cuda')
    same(before, state(m), versions=False)
    assert all(map(torch.equal, cuda, torch.cuda.get_rng_state_all()))
    before = state(m)
    assert dummy_eval(m, (9, 9)).is_cuda
    assert model_summary(m, (9, 9)).total == count(m)
    same(before, state(m))
    assert all(map(torch.equal, cuda, torch.cuda.get_rng_state_all()))


# --- the dummy batch

class Spy(nn.Module):
    "Keeps what it gets"
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)
    def forward(self, *xs):
        self.got, self.grad, self.mode = xs, torch.is_grad_enabled(), [o.training for o in self.modules()]
        return xs[0]

def got(m, size=None):
    dummy_eval(m, size)
    assert not m.grad and not any(m.mode)
    return [(tuple(x.shape), x.dtype) for x in m.got]

@pytest.mark.parametrize('first, size, shape', [
    (nn.Conv1d(3, 2, 3), None, (3, 64)), (nn.Conv2d(3, 2, 3), None, (3, 64, 64)), (nn.Conv3d(1, 2, 3), None, (1, 64, 64, 64)),
    (nn.ConvTranspose2d(5, 2, 3), None, (5, 64, 64)), (nn.Linear(7, 2), None, (7,)),
    (nn.Conv2d(3, 2, 3), (28, 30), (3, 28, 30)), (nn.Conv2d(3, 2, 3), (3, 28, 30), (3, 28, 30)), (nn.Conv2d(3, 2, 3), [28, 30], (3, 28, 30)),
    (nn.Conv2d(3, 2, 3), torch.Size([28, 30]), (3, 28, 30)), (nn.Conv2d(3, 2, 3), (784,), (784,)), (nn.Conv1d(3, 2, 3), 50, (3, 50)),
    (nn.Linear(7, 2), 7, (7,)), (nn.Linear(7, 2), (4, 7), (4, 7)), (nn.Linear(7, 2), (), ()), (nn.LSTM(3, 2), (4, 3), (4, 3)),
    (nn.Conv2d(3, 2, 3), (np.int64(9), 8), (3, 9, 8)), (parametrizations.weight_norm(nn.Conv2d(3, 2, 3)), (9, 8), (3, 9, 8))])
def test_sizes(first, size, shape):
    assert got(Spy(first), size) == [((2, *shape), torch.float32)]
    assert got(Spy(nn.BatchNorm2d(3), first, nn.Conv2d(9, 9, 1)), size) == [((2, *shape), torch.float32)]

def test_the_batch_is_zeros():
    m = Spy(nn.Linear(3, 2))
    dummy_eval(m)
    assert not m.got[0].any()

def test_embedding_gets_whole_numbers():
    assert got(Spy(nn.Embedding(5, 3)), 7) == [((2, 7), torch.int64)]
    assert got(Spy(nn.EmbeddingBag(5, 3), nn.Conv1d(3, 2, 3)), 7) == [((2, 7), torch.int64)]   # no channels of a later conv
    assert got(Spy(nn.Embedding(5, 3), nn.Linear(2, 2)), [(4,), (6,)]) == [((2, 4), torch.int64), ((2, 6), torch.float32)]

def test_several_inputs():
    assert got(Spy(nn.Bilinear(4, 5, 3)), [(4,), (5,)]) == [((2, 4), torch.float32), ((2, 5), torch.float32)]
    assert got(Spy(nn.Conv2d(3, 4, 3)), [(9, 9), (6,)]) == [((2, 3, 9, 9), torch.float32), ((2, 6), torch.float32)]
    m, a, b = Spy(nn.Linear(2, 2)), torch.ones(5, 2), torch.ones(5, dtype=torch.int32)
    for xs in ((a, b), [a, b]):
        dummy_eval(m, xs)
        assert m.got[0] is a and m.got[1] is b
    dummy_eval(m, a)
    assert m.got[0] is a
    assert got(m, [a, (3,)]) == [((5, 2), torch.float32), ((5, 3), torch.float32)]   # the batch size of what is given
    nested = (a, (a, a))
    dummy_eval(m, nested)
    assert m.got[1] is nested[1]

@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions(dtype):
    m = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)).to(dtype)
    assert dummy_eval(m, (8, 8)).dtype == dtype and model_summary(m, (8, 8)).total == count(m)
    assert got(Spy(nn.Embedding(3, 2).to(dtype)), 4)[0][1] == torch.int64
    assert got(Spy(nn.Linear(3, 2).to(dtype)))[0][1] == dtype

def test_complex_and_no_parameters_at_all():
    assert got(Spy(nn.Linear(3, 2, dtype=torch.complex64)))[0][1] == torch.complex64
    assert got(Spy(), (3,))[0][1] == torch.float32
    m = Spy(); m.register_buffer('b', torch.zeros(1, dtype=torch.float64))
    assert got(m, (3,))[0][1] == torch.float64

def test_on_meta():
    with torch.device('meta'): m = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.Dropout())
    assert dummy_eval(m).is_meta and shapes(model_summary(m, (9, 9)))[-1] == (4, 5, 5)
    assert model_sizes(m, (9, 9)) == [(2, 4, 5, 5)]*3

@pytest.mark.parametrize('m', [nn.LSTM(3, 2), nn.Sequential(), nn.Embedding(3, 2), nn.Sequential(nn.GRU(3, 3), nn.Linear(3, 3)),
                               nn.ReLU(), nn.MultiheadAttention(4, 2)], ids=lambda m: type(m).__name__)
def test_no_size_to_be_told(m):
    with pytest.raises(ValueError, match=r'no size.*such as \(3, 64, 64\)'): dummy_eval(m)

def test_wrong_sizes():
    for bad in ('big', 2.5, [(3,), 'x'], np.zeros((2, 3))):
        with pytest.raises(ValueError, match='give a size such as'): dummy_eval(nn.Linear(3, 2), bad)

@pytest.mark.parametrize('f', [dummy_eval, model_sizes, num_features_model, model_summary])
def test_lazy_layers_are_refused(f):
    m = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3), nn.LazyBatchNorm1d())
    before = [type(o) for o in m]
    with pytest.raises(ValueError, match=r'1\.weight has no shape yet.*run a batch first'): f(m, (2,))
    assert [type(o) for o in m] == before
    m(torch.zeros(2, 2))
    if f is not num_features_model: f(m, (2,))

@pytest.mark.parametrize('f', [dummy_eval, model_sizes, num_features_model])
def test_wants_a_module(f):
    with pytest.raises(TypeError, match='got int'): f(3)

def test_eval_and_train_of_the_model_are_not_called():
    class Merges(nn.Linear):
        def train(self, mode=True): raise RuntimeError('merges its weights')
    assert dummy_eval(Merges(2, 3)).shape == (2, 3)

def test_dummy_eval_gives_what_eval_mode_gives():
    m = Mixed()
    x = torch.randn(6, 3, 9, 9)
    want = copy.deepcopy(m).eval()(x).detach()
    assert_close(dummy_eval(m, x), want, rtol=0, atol=0)
    assert dummy_eval(nn.LSTM(3, 4), (5, 3))[1][0].shape == (1, 5, 4)

FUNCS = [dummy_eval, model_sizes, num_features_model, model_summary]

def test_everything_as_before_after_success():
    m = Mixed()
    random.random(); np.random.rand()
    seen = []
    m.stem[0].register_forward_hook(lambda *o: seen.append('a'))
    m.register_forward_pre_hook(lambda *o: seen.append('b'))
    m.head.register_full_backward_hook(lambda *o: None)
    mine = Hook(m.head, lambda *o: None)
    before = state(m)
    for f in FUNCS: f(m, (9, 9))
    same(before, state(m))
    assert seen == ['b', 'a']*4 and mine.active and len(leaked_hooks(m)) == 1

@pytest.mark.parametrize('f', [dummy_eval, model_sizes, num_features_model, model_summary])
@pytest.mark.parametrize('how', ['layer', 'forward', 'hook', 'ctrl-c'])
def test_everything_as_before_after_a_failure(f, how):
    m = Mixed()
    def fail(*o): raise (KeyboardInterrupt if how == 'ctrl-c' else ZeroDivisionError)('from the model')
    if how == 'layer': m.head = nn.Linear(3, 5).eval()
    elif how == 'forward': m.drop.forward = fail
    else: m.drop.register_forward_hook(fail)
    before = state(m)
    with pytest.raises((RuntimeError, ZeroDivisionError, KeyboardInterrupt)): f(m, (9, 9))
    same(before, state(m))
    assert leaked_hooks(m) == []

@pytest.mark.parametrize('f', [dummy_eval, model_sizes, num_features_model, model_summary])
def test_the_failure_says_which_layers_ran(f):
    m = nn.Sequential(conv(1, 4), conv(4, 8), nn.Flatten(), nn.Linear(7, 2))
    with pytest.raises(RuntimeError, match='mat1 and mat2') as e: f(m, (8, 8))
    at, ran, advice = e.value.__notes__
    assert at == 'in 3 (Linear), which got [2, 32]'
    if f in (dummy_eval, model_summary):
        assert ran == ('before it ran: 0.0 (Conv2d) [2, 4, 4, 4] → 0.1 (ReLU) [2, 4, 4, 4] → '
                       '1.0 (Conv2d) [2, 8, 2, 2] → 1.1 (ReLU) [2, 8, 2, 2] → 2 (Flatten) [2, 32]')
    else:   # these watch the children too, and the last five are told
        assert ran == ('before it ran: … → 0 (Sequential) [2, 4, 4, 4] → 1.0 (Conv2d) [2, 8, 2, 2] → '
                       '1.1 (ReLU) [2, 8, 2, 2] → 1 (Sequential) [2, 8, 2, 2] → 2 (Flatten) [2, 32]')
    assert 'the batch was [2, 1, 8, 8]' in advice and 'the size of one item' in advice

def notes(m, size):
    with pytest.raises(Exception) as e: dummy_eval(m, size)
    return getattr(e.value, '__notes__', None)

def test_notes_for_other_failures():
    assert notes(nn.Linear(3, 2), (4,))[:2] == ['in Linear, which got [2, 4]', 'before it ran: nothing']
    class Own(nn.Module):
        def __init__(self): super().__init__(); self.a = nn.Linear(3, 2)
        def forward(self, x, scale): self.a(x); raise KeyError('own code')
    at, ran, _ = notes(Own(), [(3,), ()])
    assert at == 'in Own, which got [2, 3], [2]' and ran == 'before it ran: a (Linear) [2, 2]'
    deep = nn.Sequential(*(nn.Linear(3, 3) for _ in range(9)), nn.Linear(2, 2))
    at, ran, _ = notes(deep, (3,))
    assert at == 'in 9 (Linear), which got [2, 3]' and ran.startswith('before it ran: … → 4 (Linear)') and ran.count('→') == 5
    lstm = nn.Sequential(nn.LSTM(3, 2, batch_first=True), nn.ReLU())
    at, ran, _ = notes(lstm, (4, 3))
    assert at == 'in 1 (ReLU), which got ([2, 4, 2], ([1, 2, 2], [1, 2, 2]))'
    assert notes(nn.Linear(3, 2), [(3,), (3,)])[0] == 'in Linear, which got [2, 3], [2, 3]'


# --- sizes and channels

def manual(m, x):
    out = []
    with torch.no_grad():
        for o in m: x = o(x); out.append(x.shape)
    return out

@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.integers(8, 20), st.integers(8, 20), st.integers(1, 3))
def test_model_sizes_equal_a_forward_by_hand(nfs, h, w, k):
    m = nn.Sequential(*(nn.Sequential(nn.Conv2d(a, b, 2*k-1, 2, k-1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in zip(nfs, nfs[1:])))
    x = torch.zeros(2, nfs[0], h, w)
    want = manual(m.eval(), x)
    m.train()
    got = model_sizes(m, (h, w))
    assert got == want and all(isinstance(s, torch.Size) for s in got)
    assert num_features_model(m, (h, w)) == nfs[-1]
    o = model_summary(m, (h, w))
    assert [r.shape for r in o if r.type == 'ReLU'] == [s[1:] for s in want]

def test_sizes_of_other_children():
    assert model_sizes(nn.Linear(3, 4)) == [(2, 4)]
    assert model_sizes(nn.Sequential(nn.LSTM(3, 4, batch_first=True)), (5, 3)) == [((2, 5, 4), ((1, 2, 4), (1, 2, 4)))]
    m = Mixed()
    assert model_sizes(m, (9, 9)) == [(2, 4, 7, 7), (2, 4, 7, 7), (2, 4, 7, 7), (2, 5), (2, 5), (2, 5)]   # act: its last call
    assert model_sizes(Block(4), (9, 9)) == [(2, 4, 9, 9), (2, 4, 9, 9), None]

def test_num_features():
    assert num_features_model(nn.Sequential(conv(3, 4), conv(4, 9))) == 9
    assert num_features_model(nn.Sequential(conv(3, 4), nn.Flatten(), nn.LSTM(64, 5)), (8, 8)) == 64   # the LSTM's is a tuple
    assert num_features_model(Block(4), (9, 9)) == 4          # the last one isn't called
    assert num_features_model(nn.Linear(3, 6)) == 6
    with pytest.raises(ValueError, match='no child of this LSTM'): num_features_model(nn.LSTM(3, 4), (5, 3))


# --- the summary

def test_the_printed_numbers():
    m = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
                      nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    o = model_summary(m, (3, 352, 352))
    assert [(r.type, tuple(r.shape), r.params, r.trainable) for r in o] == [
        ('Conv2d', (64, 176, 176), 9408, 'yes'), ('BatchNorm2d', (64, 176, 176), 128, 'yes'), ('ReLU', (64, 176, 176), 0, ''),
        ('MaxPool2d', (64, 88, 88), 0, ''), ('Conv2d', (64, 88, 88), 36_864, 'yes'), ('AdaptiveAvgPool2d', (64, 1, 1), 0, ''),
        ('Flatten', (64,), 0, '')]
    assert model_summary(nn.Linear(512, 37))[0][1:] == ('Linear', (37,), 18_981, 'yes', '')

def data(n=8, size=(784,)):
    ds = Dataset(torch.zeros(n, *size), torch.zeros(n, dtype=torch.long))
    return DataBunch(*get_dls(ds, ds, bs=4), c=10)

def test_the_cnn_and_a_learner():
    m = get_cnn_model(data(), [8, 16, 32, 64, 64], conv)
    learn = Learner(m, None, None, data())
    assert model_summary(learn, (28, 28)).total == 62_090 == model_summary(m, (1, 28, 28)).total
    with pytest.raises(RuntimeError): model_summary(learn)   # the items are flat
    learn.data = data(size=(1, 28, 28))
    assert model_summary(learn).inputs == ((1, 28, 28),)
    learn.data = None
    assert model_summary(learn).inputs == ((1, 64, 64),)     # as for the model alone

def rows_of(o): return [(r.name, r.type, tuple(r.shape), r.params) for r in o]

@pytest.mark.parametrize('nfs', [[8, 16, 32, 64, 64], [8, 16, 32, 32], [3]])
def test_the_lessons_small_summary_tells_the_same(nfs):
    small_summary = small('06ac_model_summary', 'small_summary', partial=partial)
    m = get_cnn_model(data(), nfs, conv)
    got = small_summary(m, torch.zeros(2, 1, 28, 28))
    assert got == rows_of(model_summary(m, (28, 28))) and len(got) == 2*len(nfs) + 3
    assert sum(n for *_, n in got) == count(m) and leaked_hooks(m, foreign=True) == []

def test_what_the_lessons_small_summary_gets_wrong():
    "Each of these is told in the lesson, and the exported one gets it right"
    small_summary = small('06ac_model_summary', 'small_summary', partial=partial)
    def looked(f, m, *args): before = state(m); f(m, *args); same(before, state(m), versions=False)
    m = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    with pytest.raises(AssertionError): looked(small_summary, m, torch.zeros(2, 4))
    looked(model_summary, m, (4,))
    shared = nn.Sequential(m[0], nn.ReLU(), m[0])
    assert sum(n for *_, n in small_summary(shared, torch.zeros(2, 4))) == 40
    assert sum(r.params for r in model_summary(shared)) == 20 == count(shared)
    far = copy.deepcopy(m).to('meta')
    with pytest.raises(RuntimeError): small_summary(far, torch.zeros(2, 4))
    assert len(leaked_hooks(far, foreign=True)) == 3
    clean = copy.deepcopy(m).to('meta')
    assert shapes(model_summary(clean)) == [(4,)]*3 and leaked_hooks(clean, foreign=True) == []
    attention = nn.MultiheadAttention(4, 2)   # parameters of its own, which no leaf has
    leaves = [o for o in attention.modules() if not list(o.children())]
    own = [p for _, o in units(attention) for p in o.parameters(recurse=False)]
    assert sum(map(count, leaves)) < sum(p.numel() for p in own) == count(attention)

def test_whatever_has_a_model():
    m = nn.Linear(3, 2)
    assert str(model_summary(NS(model=m))) == str(model_summary(m))
    with pytest.raises(TypeError, match='got str: give a module or Learner'): model_summary('m')
    with pytest.raises(TypeError, match='give a module or Learner'): model_summary(NS(model=3))
    two = NS(model=nn.Bilinear(3, 4, 2), data=NS(train_ds=[((torch.zeros(3), np.zeros(4)), 0)]))
    assert model_summary(two).inputs == ((3,), (4,))
    with pytest.raises(ValueError, match='has no shape: give input_size'):
        model_summary(NS(model=m, data=NS(train_ds=[('a picture', 0)])))

def test_an_item_that_draws_random_numbers():
    class Augmented:
        def __getitem__(self, i): return torch.rand(3)*random.random()*np.random.rand(), 0
    m = nn.Linear(3, 2)
    before = state(m)
    model_summary(NS(model=m, data=NS(train_ds=Augmented())))
    same(before, state(m))

def test_everything_odd_in_one():
    m = Mixed()
    o = model_summary(m, (9, 9))
    assert [r.name for r in o] == ['stem.0', 'stem.1', 'stem.2', 'block.conv', 'block.norm', 'block', 'drop', 'head',
                                   'stem.2', 'tied', 'block.never']
    notes = [r.note for r in o]
    assert notes == ['', '', '', '×2', '×2', '×2, own parameters only', '', '', 'again', 'shares head (Linear)', 'not called']
    assert [r.params for r in o] == [112, 8, 0, 144, 8, 4, 0, 25, 0, 5, 8]
    assert [r.trainable for r in o] == ['yes', 'yes', '', 'yes', 'yes', 'yes', '', 'partly', '', 'partly', 'yes']
    assert shapes(o) == [(4, 7, 7)]*7 + [(5,)]*3 + [None]
    assert (o.total, o.trainable, o.frozen) == (count(m), count(m) - 20, 20)

@settings(deadline=None, max_examples=40)
@given(trees(), st.data())
def test_totals(m, draws):
    for p in m.parameters(): p.requires_grad_(draws.draw(st.booleans()))
    class Calls(nn.Module):   # runs some layers on what they take, some of them twice, and others not at all
        def __init__(self): super().__init__(); self.m = m
        def forward(self, x):
            for n, o in units(m):
                if isinstance(o, (nn.Linear, nn.ReLU, nn.BatchNorm1d)):
                    for _ in range(len(n) % 3): o(x.new_zeros(2, getattr(o, 'in_features', 3)))
            return x
    o = model_summary(Calls(), (2,))
    assert o.total == count(m) == sum(r.params for r in o)
    assert o.trainable == sum(p.numel() for p in m.parameters() if p.requires_grad)
    assert o.frozen == o.total - o.trainable
    for r in o:
        flags = {p.requires_grad for p in dict(Calls().named_modules())[r.name].parameters(recurse=False)}
        assert r.trainable == {(): '', (True,): 'yes', (False,): 'no'}.get(tuple(flags), 'partly')
    assert {r.name for r in o} == {n for n, _ in units(Calls())}

@pytest.mark.parametrize('layers, two_ways', [(1, False), (2, False), (2, True), (3, True)])
def test_an_lstm(layers, two_ways):
    m = nn.LSTM(5, 4, layers, batch_first=True, bidirectional=two_ways)
    d = 1 + two_ways
    r, = model_summary(m, (7, 5))
    assert r.shape == ((7, 4*d), ((layers*d, 4), (layers*d, 4))) and r.params == count(m) and r.name == ''
    r, = model_summary(m, torch.zeros(6, 7, 5))   # and with another batch
    assert r.shape == ((7, 4*d), ((layers*d, 4), (layers*d, 4)))

def test_several_inputs_and_a_dict():
    class Two(nn.Module):
        def __init__(self): super().__init__(); self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 4)
        def forward(self, x, y): return dict(sum=self.a(x) + self.b(y), parts=[x, None, 'text', 3.])
    class Outer(nn.Module):
        def __init__(self): super().__init__(); self.two = Two(); self.two.own = nn.Parameter(torch.zeros(2))
        def forward(self, x, y): return self.two(x, y)
    o = model_summary(Outer(), [(3,), (5,)])
    assert o.inputs == ((3,), (5,)) and str(o).startswith('input [3], [5]\n')
    assert row(o, 'two').shape == dict(sum=(4,), parts=((3,), 'None', 'text', 'float'))
    assert '{sum: [4], parts: ([3], None, text, float)}' in str(o)

def test_a_real_batch():
    m = nn.Sequential(conv(1, 3), nn.Flatten())
    assert shapes(model_summary(m, torch.zeros(5, 1, 8, 8))) == shapes(model_summary(m, (8, 8)))

def test_parametrized_layers_count_what_they_hold():
    m = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), parametrizations.spectral_norm(nn.Linear(4, 4)))
    m[0].bias.requires_grad_(False)
    before = state(m)
    o = model_summary(m)
    same(before, state(m))   # spectral norm keeps vectors that it improves while it trains
    assert [(r.name, r.params, r.trainable, r.note) for r in o] == [('0', 4 + 12 + 4, 'partly', ''), ('1', 20, 'yes', '')]
    assert o.total == count(m)

def test_transformer():
    m = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False)
    o = model_summary(m, (5, 8))
    assert o.total == count(m) == sum(r.params for r in o)
    assert [r.name for r in o if r.note == 'not called'] == [f'layers.{i}.self_attn.out_proj' for i in (0, 1)]
    m(torch.randn(2, 5, 8))[..., 0].sum().backward()   # what isn't called is used all the same
    assert m.layers[0].self_attn.out_proj.weight.grad.abs().max() > 1e-4
    assert row(o, 'layers.0.self_attn').shape == ((5, 8), 'None') and row(o, 'layers.1.norm2').shape == (5, 8)

def test_order_is_that_of_execution():
    class Backwards(nn.Module):
        def __init__(self): super().__init__(); self.last, self.first = nn.Linear(2, 1), nn.Linear(3, 2)
        def forward(self, x): return self.last(self.first(x))
    assert [r.name for r in model_summary(Backwards(), 3)] == ['first', 'last']

def test_empty_ones():
    o = model_summary(nn.Sequential(), (7, 5))
    assert list(o) == [LayerInfo('', 'Sequential', (7, 5), 0, '', '')] and (o.total, o.trainable, o.frozen) == (0, 0, 0)
    assert str(o).endswith('0 parameters: 0 trainable, 0 frozen')
    assert shapes(model_summary(nn.Sequential(nn.ReLU(), nn.Sequential()), 4)) == [(4,), (4,)]

def test_parameters_in_a_list():
    class Bare(nn.Module):
        def __init__(self): super().__init__(); self.ps = nn.ParameterList([nn.Parameter(torch.zeros(3)) for _ in range(2)])
        def forward(self, x): return x + self.ps[0] + self.ps[1]
    o = model_summary(Bare(), (3,))
    assert [(r.name, r.params, r.note) for r in o] == [('ps', 6, 'not called')] and o.total == 6


# --- text and HTML

class Cells(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.rows, self.open, self.caption = [], [], ''
        self.feed(html); self.close()
        assert not self.open
    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == 'tr': self.rows.append([])
        if tag in ('td', 'th'): self.rows[-1].append('')
    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, text):
        if self.open[-1] in ('td', 'th'): self.rows[-1][-1] += text
        else: self.caption += text

def test_text():
    m = nn.Sequential(conv(1, 4), nn.Flatten(), nn.Linear(64, 1000))
    m[0].requires_grad_(False)
    assert str(model_summary(m, (8, 8))) == '''\
input [1, 8, 8]
---------------------------------------------------
layer  type     output shape  parameters  trainable
---------------------------------------------------
0.0    Conv2d   [4, 4, 4]             40  no
0.1    ReLU     [4, 4, 4]              0
1      Flatten  [64]                   0
2      Linear   [1000]            65,000  yes
---------------------------------------------------
65,040 parameters: 65,000 trainable, 40 frozen'''

def test_html_says_what_the_text_says():
    m = Mixed()
    o = model_summary(m, (9, 9))
    cells = Cells(o._repr_html_())
    assert cells.caption == 'input [3, 9, 9]' and cells.rows[-1] == [str(o).splitlines()[-1]]
    assert cells.rows[0] == ['layer', 'type', 'output shape', 'parameters', 'trainable', '']
    lines = [re.split(r'\s{2,}', line) for line in str(o).splitlines()[4:-2]]
    assert [[c for c in r if c] for r in cells.rows[1:-1]] == lines
    text = str(o).splitlines()   # the columns are aligned
    at = text[2].index('output shape')
    assert all(t[at-2:at] == '  ' and t[at] in '[ ' for t in text[4:-2])

def test_html_is_escaped():
    bad = type('<b>&', (nn.Linear,), {})
    m = nn.Sequential(); m.add_module('<script>', bad(2, 2))
    html = model_summary(m, 2)._repr_html_()
    assert '<script>' not in html and '<b>' not in html and '&lt;script&gt;' in html
    assert Cells(html).rows[1][:2] == ['<script>', '<b>&']

def test_it_is_a_list_of_rows():
    o = model_summary(nn.Sequential(conv(1, 4), nn.Flatten()), (8, 8))
    assert isinstance(o, ModelSummary) and len(o) == 3 and o[0].type == 'Conv2d'
    assert [r.type for r in o[1:]] == ['ReLU', 'Flatten'] and [r.type for r in o[[True, False, True]]] == ['Conv2d', 'Flatten']
    again = pickle.loads(pickle.dumps(o))
    assert str(again) == str(o) and again.total == o.total

def test_nothing_of_the_model_is_kept():
    import gc, weakref
    m = nn.Sequential(conv(1, 4))
    o, ref = model_summary(m, (8, 8)), weakref.ref(m)
    del m; gc.collect()
    assert ref() is None and len(o) == 2

def test_a_pipe_gets_plain_text():
    code = ('from torch import nn; from minifast.summary import model_summary; '
            'print(model_summary(nn.Sequential(nn.Linear(3, 2), nn.ReLU())))')
    r = subprocess.run([sys.executable, '-c', code], capture_output=True)
    text = r.stdout.decode('utf-8')
    assert not r.stderr and text.splitlines()[0] == 'input [3]' and '\x1b' not in text and '<' not in text
    assert text.splitlines()[-1] == '8 parameters: 8 trainable, 0 frozen' and text.isascii()

def test_another_shape_gets_another_row():
    class Twice(nn.Module):
        def __init__(self): super().__init__(); self.conv = nn.Conv2d(1, 2, 3)
        def forward(self, x): return self.conv(x), self.conv(x[..., 1:]), self.conv(x)
    o = model_summary(Twice(), (9, 9))
    assert [r[2:] for r in o] == [((2, 7, 7), 20, 'yes', '×2'), ((2, 7, 6), 0, 'yes', 'again')] and o.total == 20


# --- compiled models: the original is looked at

def cnn(): return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.Flatten(), nn.Linear(144, 5))
def compiled(m): return torch.compile(m, backend='eager')
def whole(m): return compiled(m)
def child(m): m[1] = compiled(m[1]); return m
def grandchild(m): m[1][0] = compiled(m[1][0]); return compiled(m)
def last(m): m[3] = compiled(m[3]); return m
def in_place(m): m.compile(backend='eager'); return m
def child_in_place(m): m[1].compile(backend='eager'); return m
def forward_of_child(m): m[1].forward = compiled(m[1].forward); return m
WAYS = [whole, child, grandchild, last, in_place, child_in_place, forward_of_child]

@pytest.mark.filterwarnings('ignore')   # the compiler's own
@pytest.mark.parametrize('run', [False, True], ids=['fresh', 'run'])
@pytest.mark.parametrize('way', WAYS, ids=lambda f: f.__name__)
def test_compiled(way, run):
    torch.compiler.reset()
    plain = cnn()
    want = [f(plain, (8, 8)) for f in FUNCS]
    c = way(copy.deepcopy(plain))
    if run: c(torch.zeros(2, 1, 8, 8)); c.load_state_dict(dict(zip(c.state_dict(), plain.state_dict().values())))
    before = [o.training for o in c.modules()]
    got = [f(c, (8, 8)) for f in FUNCS]
    assert_close(got[0], want[0]); assert got[1:3] == want[1:3]
    assert str(got[3]) == str(want[3]) and '_orig_mod' not in repr(list(got[3]))
    assert [o.training for o in c.modules()] == before and leaked_hooks(c) == []
    assert [n for n, _ in units(c)] == [n for n, _ in units(plain)]

@pytest.mark.filterwarnings('ignore')
def test_a_compiled_models_failure_tells_the_names_that_it_had():
    c = compiled(nn.Sequential(conv(1, 4), compiled(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)))))
    with pytest.raises(RuntimeError, match='mat1 and mat2') as e: model_summary(c, (8, 8))
    at, ran, _ = e.value.__notes__
    assert at == 'in 1.1 (Linear), which got [2, 64]' and ran.endswith('0.1 (ReLU) [2, 4, 4, 4] → 1.0 (Flatten) [2, 64]')

@pytest.mark.filterwarnings('ignore')
def test_compiled_parametrized_and_learners():
    lin = parametrizations.weight_norm(nn.Linear(3, 4))
    r, = model_summary(compiled(lin))
    assert (r.type, r.params, r.note) == (type(lin).__name__, 12 + 4 + 4, '')
    m = compiled(nn.Sequential(nn.Linear(784, 3)))
    assert str(model_summary(Learner(m, None, None, data()))) == str(model_summary(original(m)))

@pytest.mark.filterwarnings('ignore')
def test_original_names_and_uncompiled():
    plain = cnn()
    c = child(compiled(plain)._orig_mod)
    assert original(compiled(plain)) is plain is original(plain)
    assert names_of(c)[plain[1]] == '1' == names_of(c)[original(plain[1])] and names_of(compiled(c))[c] == ''
    seen = []
    plain.eval()(torch.zeros(2, 1, 8, 8))
    h = original(plain[1])[1].register_forward_hook(lambda *a: seen.append(torch._dynamo.is_compiling()))
    with pytest.raises(KeyError), uncompiled(c): c(torch.zeros(2, 1, 8, 8)); raise KeyError
    assert seen == [False]
    h.remove()
    torch.compiler.reset()
    assert_close(c(torch.ones(2, 1, 8, 8)), cnn_of(c)(torch.ones(2, 1, 8, 8)))   # compiles as before
    with pytest.raises(TypeError, match='got str'): original('m')

def cnn_of(c):
    m = cnn()
    m.load_state_dict(dict(zip(m.state_dict(), c.state_dict().values())))
    return m.eval()

def test_a_summary_doesnt_load_the_compiler():
    code = ('import sys; from torch import nn; from minifast.summary import model_summary; '
            "model_summary(nn.Linear(3, 2)); print('torch._dynamo' in sys.modules)")
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == 'False'


# --- outputs that aren't plain dense tensors

class Calls(nn.Module):
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, *xs): return self.f(*xs)

def ragged(x): return torch.nested.nested_tensor([o[:i+1] for i, o in enumerate(x)])
def jagged(x): return torch.nested.nested_tensor([o[:i+1] for i, o in enumerate(x)], layout=torch.jagged)
needs_jagged = pytest.mark.skipif(not hasattr(torch, 'jagged'), reason='an older PyTorch')
def unragged(x): return torch.stack([o.sum() for o in x.unbind()])[:, None]
def quantized(x): return torch.quantize_per_tensor(x, .1, 0, torch.qint8)
ODD = [(ragged, unragged, 'nested tensor'), pytest.param(jagged, unragged, 'nested tensor', marks=needs_jagged), (lambda x: (x, [ragged(x)]), lambda o: o[0], ((6,), ('nested tensor',))),
       (lambda x: x.to_sparse(), lambda x: x.to_dense(), (6,)), (lambda x: x.to_sparse_csr(), lambda x: x.to_dense(), (6,)),
       (quantized, lambda x: x.dequantize(), (6,)), (lambda x: torch.complex(x, x), lambda x: x.real, (6,)), (lambda x: dict(a=x), lambda o: o['a'], dict(a=(6,)))]

@pytest.mark.filterwarnings('ignore')   # of PyTorch, that these kinds of tensors are young or old
@pytest.mark.parametrize('f, back, want', ODD)
def test_other_tensors(f, back, want):
    m = nn.Sequential(nn.Linear(6, 6), Calls(f), Calls(back), nn.LazyLinear(3))
    m(torch.randn(2, 6))
    o = model_summary(m, (6,))
    assert o[1].shape == want and o[3].shape == (3,) and o.total == count(m) and str(o)
    assert model_sizes(m, (6,))[3] == (2, 3) and num_features_model(m, (6,)) == 3

@pytest.mark.filterwarnings('ignore')
def test_a_nested_batch():
    m = nn.Sequential(Calls(unragged), nn.Linear(1, 3))
    o = model_summary(m, ragged(torch.ones(4, 6)))
    assert o.inputs == ('nested tensor',) and shapes(o[1:]) == [(3,)] and str(o).startswith('input nested tensor')


# --- modules without plain dicts, and other odd ones

def script(m): return torch.jit.script(m)
def trace(m): return torch.jit.trace(m, torch.zeros(2, 6))
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('make', [script, trace], ids=lambda f: f.__name__)
def test_torchscript_in_a_model(make):
    part = make(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.BatchNorm1d(4)).train())
    m = nn.Sequential(nn.Linear(6, 6), part, nn.Linear(4, 3))
    m[1].train()
    modes, bufs = [o.training for o in m.modules()], [b.clone() for b in m.buffers()]
    o = model_summary(m)
    assert [o.training for o in m.modules()] == modes and all(map(torch.equal, m.buffers(), bufs))
    assert o.total == count(m) == sum(r.params for r in o) and row(o, '1').params == 28 + 8 and row(o, '1').trainable == 'yes'
    assert [r.name for r in o] == (['0', '2', '1'] if make is script else ['0', '1', '2'])
    assert row(o, '1').note == ("TorchScript, can't be watched" if make is script else 'TorchScript')
    assert model_sizes(m) == [(2, 6), None if make is script else (2, 4), (2, 3)] and num_features_model(m) == 3
    r, = model_summary(m[1], torch.zeros(5, 6))   # and alone
    assert r.params == 36 and dummy_eval(m[1], torch.zeros(5, 6)).shape == (5, 4)

@pytest.mark.filterwarnings('ignore')
def test_a_script_within_torchscript_and_one_of_nothing():
    class Holds(nn.Module):
        def __init__(self): super().__init__(); self.a, self.b = script(nn.Linear(6, 6)), nn.Linear(6, 2)
        def forward(self, x): return self.b(self.a(x))
    assert [r.params for r in model_summary(script(Holds()), (6,))] == [42 + 14]
    m = nn.Sequential(nn.Linear(6, 6), script(nn.ReLU()))
    assert [(r.params, r.note) for r in model_summary(m)] == [(42, ''), (0, "TorchScript, can't be watched")]

def test_fx_graphs_parameter_dicts_and_missing_ones():
    g = torch.fx.symbolic_trace(nn.Sequential(conv(1, 4), nn.Flatten()))
    assert shapes(model_summary(g, (8, 8))) == [(4, 4, 4), (4, 4, 4), (64,)]
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.d = nn.ParameterDict(dict(a=nn.Parameter(torch.zeros(3)), b=torch.ones(2)))
            self.register_buffer('nothing', None); self.register_parameter('weight', None)
        def forward(self, x): return x + self.d['a']
    o = model_summary(Own(), (3,))
    assert o.total == count(Own()) == 5 and o.inputs == ((3,),)

@pytest.mark.filterwarnings('ignore:None of the inputs')
def test_a_forward_that_would_run_again_counts_once():
    from torch.utils.checkpoint import checkpoint
    for reentrant in (False, True):
        part = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        m = nn.Sequential(nn.Linear(3, 3), Calls(lambda x: checkpoint(part, x, use_reentrant=reentrant)))
        m[1].part = part
        assert [(r.name, r.note) for r in model_summary(m, torch.randn(4, 3)) if r.name != '1'] == [('0', ''), ('1.part.0', ''), ('1.part.1', '')]


# --- the batch of a Learner is like its items

def summary_of(m, *items):
    return model_summary(NS(model=m, data=NS(train_ds=[(x, 0) for x in items])))

@pytest.mark.parametrize('x, shape, dtype', [
    (torch.tensor([3, 1, 4]), (2, 3), torch.int64), (np.zeros((4, 5), np.uint8), (2, 4, 5), torch.uint8), (torch.zeros(3, dtype=torch.bool), (2, 3), torch.bool),
    (7, (2,), torch.int64), (torch.tensor(7, dtype=torch.int32), (2,), torch.int32), (torch.zeros(3), (2, 3), torch.float32),
    (np.zeros(3), (2, 3), torch.float32), (torch.zeros(3, dtype=torch.float16), (2, 3), torch.float32), (.5, (2,), torch.float32)])   # floats as the model's
def test_the_items_own_kind(x, shape, dtype):
    m = Spy(nn.ReLU())
    assert summary_of(m, x).inputs == (shape[1:],)
    assert [(tuple(o.shape), o.dtype) for o in m.got] == [(shape, dtype)]
    assert summary_of(m.double(), x) and m.got[0].dtype == dtype   # no parameters
    m = Spy(nn.BatchNorm1d(3)).double()
    summary_of(m, x)
    assert m.got[0].dtype == (torch.float64 if dtype.is_floating_point else dtype) and not m.got[0].any()

def test_ids_and_bytes_and_structures():
    words = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
    assert shapes(summary_of(words, torch.tensor([1, 2, 3]))) == [(3, 4), (12,), (2,)]
    assert shapes(summary_of(nn.Sequential(Calls(lambda x: x.float()/255), nn.Linear(3, 2)), torch.zeros(3, dtype=torch.uint8))) == [(3,), (2,)]
    late = Spy(nn.Embedding(9, 4))   # floats stay floats where an embedding comes first
    summary_of(late, torch.rand(3)); assert late.got[0].dtype == torch.float32
    m = Spy(nn.Linear(3, 2))
    assert summary_of(m, dict(ids=torch.tensor([1, 2]), more=[np.float64(3.), torch.zeros(4)])).inputs == (dict(ids=(2,), more=((), (4,))),)
    assert m.got[0]['ids'].dtype == torch.int64 and m.got[0]['more'][0].dtype == torch.float32
    summary_of(m, (torch.tensor([1, 2]), torch.rand(4)))
    assert [(tuple(o.shape), o.dtype) for o in m.got] == [((2, 2), torch.int64), ((2, 4), torch.float32)]
    assert summary_of(nn.Conv2d(3, 4, 3), torch.rand(8, 9)).inputs == ((3, 8, 9),)   # channels that it lacks
    for bad in ('text', None, (), object(), ['a', torch.zeros(2)]):
        with pytest.raises(ValueError, match='first item of the data.*has no shape: give input_size'): summary_of(m, bad)
