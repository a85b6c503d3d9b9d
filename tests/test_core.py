"Lesson 00: lists, names, seeds, devices"
import copy
import io
import os
import pickle
import random
import re
import subprocess
import sys
from collections import OrderedDict, defaultdict, namedtuple
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.testing import assert_close

from minifast import core
from minifast.core import (ListContainer, camel2snake, default_device, listify, live_display, map_leaves, set_seed, shows_error,
                           to_cpu, to_device, to_floats)

Batch = namedtuple('Batch', 'xb yb')


# listify

single = ['abc', '', b'ab', bytearray(b'ab'), {'a':1}, OrderedDict(a=1), 3, 0, False, len, dict,
          partial(int, base=2), np.arange(3), np.array(1.), np.float32(1), object()]

@pytest.mark.parametrize('o', single, ids=lambda o: type(o).__name__)
def test_listify_one_thing(o):
    res = listify(o)
    assert type(res) is list and len(res) == 1 and res[0] is o

@pytest.mark.parametrize('t', [torch.ones(3), torch.tensor(1.), torch.ones(0), nn.Parameter(torch.ones(2,2))])
def test_listify_tensor_is_one_thing(t):
    res = listify(t)
    assert len(res) == 1 and res[0] is t

@pytest.mark.parametrize('o,want', [
    ((1,2), [1,2]), (range(3), [0,1,2]), ((i for i in 'ab'), ['a','b']), ({5}, [5]),
    ((), []), ({'a':1}.keys(), ['a']),
    (Batch(1,2), [1,2]), (map(str, [1]), ['1']), (ListContainer([1,2]), [1,2])])
def test_listify_several(o, want): assert listify(o) == want

def test_listify_nothing_and_lists():
    xs = [1,2]
    assert listify() == listify(None) == [] and listify(xs) is xs and listify([None]) == [None]

def test_listify_modules():
    lin,net = nn.Linear(2,1),nn.Sequential(nn.Linear(2,3), nn.ReLU())
    assert listify(lin) == [lin] and listify(net) == [net[0], net[1]]

def test_listify_does_not_ask_the_object():
    "A callback that answers to every attribute is still one thing"
    class Anything:
        def __getattr__(self, k): raise RecursionError(k)
    o = Anything()
    assert listify(o)[0] is o


# camel2snake

@pytest.mark.parametrize('s,want', [
    ('AvgStatsCallback','avg_stats_callback'), ('LR_Find','lr_find'), ('SetupLearnerCB','setup_learner_cb'),
    ('BatchTransformXCallback','batch_transform_x_callback'), ('HTTPServer','http_server'),
    ('Recorder','recorder'),
    ('BatchNorm2d','batch_norm2d'), ('Conv2dLayer','conv2d_layer'), ('ParamScheduler','param_scheduler'),
    ('_Private','_private'), ('already_snake','already_snake'), ('__dunder__','__dunder__'),
    ('A','a'), ('', ''), ('ABC','abc'), ('aB','a_b')])
def test_camel2snake(s, want): assert camel2snake(s) == want

@given(st.lists(st.from_regex('[A-Z][a-z]{1,5}', fullmatch=True), min_size=1, max_size=5))
def test_camel2snake_words(words): assert camel2snake(''.join(words)) == '_'.join(words).lower()

@given(st.from_regex('[A-Za-z0-9_]{0,20}', fullmatch=True))
def test_camel2snake_range(s):
    res = camel2snake(s)
    assert camel2snake(res) == res and res.replace('_', '') == s.replace('_', '').lower()
    if '__' not in s: assert '__' not in res


# shows_error

def test_shows_error_prints(capsys):
    with shows_error(ValueError): raise ValueError('got 3: give 2')
    assert capsys.readouterr().out == 'ValueError: got 3: give 2\n'

def test_shows_error_subclass_and_tuple(capsys):
    with shows_error(LookupError): [][1]
    with shows_error((TypeError,KeyError)): {}['k']
    with shows_error(): 1/0
    assert capsys.readouterr().out.splitlines() == [
        'IndexError: list index out of range', "KeyError: 'k'", 'ZeroDivisionError: division by zero']

def test_shows_error_missing():
    with pytest.raises(AssertionError, match='expected ValueError, but'):
        with shows_error(ValueError): pass
    with pytest.raises(AssertionError, match='expected ValueError or TypeError, but'):
        with shows_error((ValueError,TypeError)): pass

def test_shows_error_lets_others_through(capsys):
    with pytest.raises(KeyError):
        with shows_error(ValueError): {}['k']
    with pytest.raises(KeyboardInterrupt):
        with shows_error(): raise KeyboardInterrupt
    assert capsys.readouterr().out == ''

def test_shows_error_prints_notes(capsys):
    e = ValueError('bad')
    e.__notes__ = ['in callback Recorder', 'batch 3']   # what add_note does from Python 3.11 on
    with shows_error(): raise e
    assert capsys.readouterr().out == 'ValueError: bad\n  in callback Recorder\n  batch 3\n'


# ListContainer

letters = list('abcd')
bools = [True,False,False,True]

@pytest.fixture
def box(): return ListContainer(list(letters))

masks = dict(list=bools, tuple=tuple(bools), torch=torch.tensor(bools), numpy=np.array(bools),
             tensors=[torch.tensor(b) for b in bools], scalars=[np.bool_(b) for b in bools])

@pytest.mark.parametrize('mask', masks.values(), ids=masks.keys())
def test_mask(box, mask):
    assert box[mask] == ['a','d']
    box[mask] = ['A','D']
    assert box.items == ['A','b','c','D']
    del box[mask]
    assert box.items == ['b','c']

@pytest.mark.parametrize('mask', [
    [True], bools + [False], torch.tensor(bools + [True]), np.array(bools[:3]),
    torch.ones(0, dtype=torch.bool), np.ones(0, dtype=bool)])
def test_mask_of_wrong_length(box, mask):
    n = len(mask)
    for f in (lambda: box[mask], lambda: box.__delitem__(mask), lambda: box.__setitem__(mask, ['x']*n)):
        with pytest.raises(ValueError, match=f'mask of length {n} for 4 items'): f()
    assert box.items == letters

@pytest.mark.parametrize('idx,want', [
    ([], []), ((), []), (torch.ones(0, dtype=torch.long), []), ([0], ['a']), ([0,-1,0], ['a','d','a']),
    ((1,2), ['b','c']), (range(2), ['a','b']), (np.array([3,0]), ['d','a']),
    (torch.tensor([3,-4]), ['d','a']),
    ([np.int64(1)], ['b']),
    ([torch.tensor(1)], ['b']), ([1,0,1,0], ['b','a','b','a']), (np.array([1,0], dtype=np.uint8), ['b','a']),
    (slice(None), letters), (slice(1,3), ['b','c']), (slice(None,None,-1), letters[::-1]),
    (slice(2,99), ['c','d']),
    ([False]*4, []), ([True]*4, letters)])
def test_several(box, idx, want):
    res = box[idx]
    assert res == want and type(res) is list and res is not box.items

@pytest.mark.parametrize('i,want', [
    (0,'a'), (3,'d'), (-1,'d'), (-4,'a'), (np.int64(2),'c'), (torch.tensor(-2),'c')])
def test_one(box, i, want):
    assert box[i] == want
    box[i] = [1,2]              # one place takes one thing, whatever it is
    assert box[i] == [1,2] and len(box) == 4
    del box[i]
    assert len(box) == 3 and [1,2] not in box.items

@pytest.mark.parametrize('i', [4, -5, [0,4], torch.tensor([-5]), np.int64(9)])
def test_out_of_range(box, i):
    for f in (lambda: box[i], lambda: box.__delitem__(i), lambda: box.__setitem__(i, ['x','y'])):
        with pytest.raises(IndexError, match='for 4 items: give one from -4 to 3'): f()
    assert box.items == letters

def test_out_of_range_of_nothing():
    with pytest.raises(IndexError, match='got index 0 for 0 items$'): ListContainer()[0]

@pytest.mark.parametrize('i', [
    1.5, None, 'a', True, torch.tensor(True), np.bool_(True), [1.,2.], torch.tensor([1.,0.]), [0,True], ['a'],
    [[0,1]], torch.zeros(2,2).long(), torch.ones(4,2).bool(), np.ones((4,1), dtype=bool)])
def test_wrong_kind(box, i):
    with pytest.raises(TypeError, match='give an int, a slice, a list of ints or a bool for each'): box[i]
    with pytest.raises(TypeError): del box[i]
    assert box.items == letters

def test_setting_several(box):
    box[[0,-1]] = (1,2)
    assert box.items == [1,'b','c',2]
    box[1:3] = 'word'           # one thing in place of two: a slice may change the length
    assert box.items == [1,'word',2]
    for new in (['x'], None, range(3)):
        with pytest.raises(ValueError, match=f'got {len(listify(new))} items for 2 places'): box[[0,1]] = new
    assert box.items == [1,'word',2]

@pytest.mark.parametrize('idx,left', [
    (slice(1,3), 'ad'), (slice(None,None,-2), 'ac'), ([0,2,0,-4], 'bd'), ([], 'abcd'),
    ([3,0], 'bc'), (slice(None), '')])
def test_deleting(box, idx, left):
    del box[idx]
    assert box.items == list(left)

def test_does_not_alias():
    xs = [1,2]
    c = ListContainer(xs)
    xs.append(3); c[0] = 9
    assert c.items == [9,2] and xs == [1,2,3]
    d = ListContainer(c)
    del d[0]
    assert len(c) == 2

def test_empty_and_single():
    assert len(ListContainer()) == len(ListContainer(None)) == 0 and list(ListContainer('abc')) == ['abc']
    assert not ListContainer() and ListContainer([0])

@pytest.mark.parametrize('n,first,last', [
    (0,'(0 items)','[]'), (1,'(1 item)','[0]'), (10,'(10 items)','8, 9]'),
    (11,'(11 items)','8, 9, ...]'), (108,'(108 items)','8, 9, ...]')])
def test_repr(n, first, last):
    lines = repr(ListContainer(range(n))).split('\n')
    assert lines[0] == f'ListContainer {first}' and lines[1].endswith(last) and '10' not in lines[1]

def test_subset_is_what_indexing_returns():
    class Kept(ListContainer):
        def subset(self, items): return type(self)(items)
    c = Kept(letters)
    for idx in (slice(1,3), [1,2], [False,True,True,False]):
        assert type(c[idx]) is Kept and c[idx].items == ['b','c']
    assert c[1] == 'b' and repr(c[:2]).startswith('Kept (2 items)')

def test_container_copies_and_pickles():
    c = ListContainer([1,[2]])
    for d in (copy.deepcopy(c), pickle.loads(pickle.dumps(c))):
        d[1].append(3)
        assert c.items == [1,[2]] and type(d) is ListContainer

ints = st.one_of(st.none(), st.integers(-12,12))

@given(st.integers(0,8), ints, ints, ints.filter(lambda i: i != 0), st.booleans())
def test_slices_are_lists_slices(n, start, stop, step, delete):
    xs,s = list(range(n)),slice(start, stop, step)
    c = ListContainer(xs)
    assert c[s] == xs[s]
    if delete:
        del c[s], xs[s]
        assert c.items == xs

@given(st.data())
def test_masks_and_indices_are_tensors(data):
    n = data.draw(st.integers(1,9))
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    idx = torch.tensor(data.draw(st.lists(st.integers(-n,n-1), max_size=6)), dtype=torch.long)
    t,c = torch.arange(n),ListContainer(range(n))
    assert c[mask] == t[mask].tolist() and c[idx] == t[idx].tolist() == c[idx.tolist()]
    del c[mask]
    assert c.items == t[~mask].tolist()


# set_seed

def draws(): return random.random(), np.random.rand(), torch.rand(1).item()

def test_set_seed_repeats_all_three():
    set_seed(7); a = draws()
    b = draws()
    set_seed(7)
    assert draws() == a and all(x != y for x,y in zip(a, b))
    set_seed(8)
    assert all(x != y for x,y in zip(a, draws()))

def test_set_seed_is_the_usual_seed():
    set_seed(42)
    assert draws() == (random.Random(42).random(), np.random.RandomState(42).rand(),
                       torch.rand(1, generator=torch.Generator().manual_seed(42)).item())

@pytest.mark.parametrize('n', [0, 2**32-1, np.int64(5), torch.tensor(5)])
def test_seeds_that_work(n):
    set_seed(n); a = draws()
    set_seed(int(n))
    assert draws() == a

@pytest.mark.parametrize('n', [-1, 2**32, 1.5, None, 'a'])
def test_seeds_that_do_not(n):
    state = random.getstate(), torch.get_rng_state()
    with pytest.raises(ValueError, match=re.escape(f'got {n!r} as a seed')): set_seed(n)
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])

def test_reproducible(monkeypatch):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', '')
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG')
    benchmark = torch.backends.cudnn.benchmark
    try:
        torch.backends.cudnn.benchmark = True
        set_seed(1)
        assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark
        set_seed(1, reproducible=True)
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8'
        set_seed(1)
        assert torch.are_deterministic_algorithms_enabled()    # left as it is
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = benchmark

def test_torch_seed_covers_cuda(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', seen.append)
    set_seed(3)
    assert seen == [3]


# map_leaves

class Guarded(OrderedDict):
    "As some libraries' outputs: keys are attributes too, and `update` is forbidden"
    def update(self, *args, **kw): raise RuntimeError('no update')
    def __setitem__(self, k, v): super().__setitem__(k, v); object.__setattr__(self, k, v)

def guarded(**kw):
    g = Guarded()
    for k,v in kw.items(): g[k] = v
    return g

def test_map_leaves_keeps_the_kinds():
    o = {'a':[1,(2,'x',None)], 'b':Batch(3, [4]), 'c':OrderedDict(z=5), 'd':defaultdict(list, k=6), 'e':guarded(h=7)}
    m = map_leaves(lambda v: (v,), o)
    assert m == {'a':[(1,),((2,),('x',),(None,))], 'b':Batch((3,), [(4,)]), 'c':{'z':(5,)}, 'd':{'k':(6,)}, 'e':{'h':(7,)}}
    assert [type(v) for v in m.values()] == [list, Batch, OrderedDict, defaultdict, Guarded]
    assert m['d']['new'] == [] and 'new' not in o['d'] and m['e'].h == (7,) and o['e'].h == 7
    assert o['a'] == [1,(2,'x',None)] and o['b'] == Batch(3, [4])      # as before

@pytest.mark.parametrize('o', [3, 'ab', None, {1,2}, range(3), np.ones(2), torch.ones(2), nn.Linear(1,1), ListContainer([1])])
def test_map_leaves_of_one_leaf(o):
    seen = []
    assert map_leaves(lambda v: seen.append(v) or 5, o) == 5 and len(seen) == 1 and seen[0] is o

def test_map_leaves_of_nothing():
    for o in ((), [], {}):
        m = map_leaves(len, o)
        assert m == o and type(m) is type(o)

def test_map_leaves_is_leaf_is_asked_about_containers_only():
    size,asked = torch.Size([2,3]),[]
    def is_leaf(o): asked.append(type(o)); return isinstance(o, torch.Size)
    assert map_leaves(type, [size, 1, {'k':size}], is_leaf) == [torch.Size, int, {'k':torch.Size}]
    assert asked == [list, torch.Size, dict, torch.Size]

def test_map_leaves_plain():
    p = nn.utils.rnn.pack_sequence([torch.ones(3,2), torch.ones(1,2)])
    with pytest.raises(AttributeError): map_leaves(lambda t: getattr(t, 'shape', None), p)   # it wants tensors
    m = map_leaves(lambda t: getattr(t, 'shape', None), {'p':p, 'l':[1]}, plain=True)
    assert m == {'p':((4,2),(3,),None,None), 'l':(None,)} and type(m['p']) is tuple
    assert type(map_leaves(str, guarded(h=1), plain=True)) is type(map_leaves(str, defaultdict(list), plain=True)) is dict

nested = st.recursive(st.integers() | st.text(max_size=2), lambda o: st.lists(o, max_size=3) | st.tuples(o, o)
                      | st.dictionaries(st.text(max_size=2), o, max_size=3) | st.builds(Batch, o, o), max_leaves=12)

@given(nested)
def test_map_leaves_in_order_and_each_once(o):
    "As torch's own walk through such structures sees them"
    from torch.utils import _pytree as pytree
    want,seen = pytree.tree_leaves(o),[]
    assert map_leaves(lambda v: seen.append(v) or v, o) == o and sorted(map(repr, seen)) == sorted(map(repr, want))
    m = map_leaves(lambda v: [v], o)
    assert repr(m) == repr(pytree.tree_map(lambda v: [v], o))


# devices

@pytest.mark.parametrize('cuda,mps,want', [
    (True,True,'cuda'), (True,False,'cuda'), (False,True,'mps'), (False,False,'cpu')])
def test_default_device(monkeypatch, cuda, mps, want):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: mps)
    assert default_device() == torch.device(want)

def test_to_device_structures():
    t = lambda: torch.ones(2,3)
    b = {'a':[t(),(t(),'name',3)], 'b':Batch(t(), None), 'c':OrderedDict(z=t(), a=1), 'd':np.ones(2)}
    m = to_device(b, 'meta')
    assert type(m) is dict and type(m['a']) is list and type(m['a'][1]) is tuple and type(m['b']) is Batch
    assert type(m['c']) is OrderedDict and list(m['c']) == ['z','a']
    assert m['d'] is b['d'] and m['a'][1][1:] == ('name',3) and m['b'].yb is None
    for x in (m['a'][0], m['a'][1][0], m['b'].xb, m['c']['z']):
        assert x.device.type == 'meta' and x.shape == (2,3)
    assert b['a'][0].device.type == b['c']['z'].device.type == 'cpu'

def test_to_device_defaultdict_and_sizes():
    d = defaultdict(list, a=torch.ones(1))
    m = to_device(d, 'meta')
    assert m['new'] == [] and m['a'].is_meta and 'new' not in d
    assert to_device(torch.Size([2,3]), 'meta') == torch.Size([2,3])

def test_to_device_packed_sequence():
    "A namedtuple that has a method `to` of its own"
    p = nn.utils.rnn.pack_sequence([torch.ones(3,2), torch.ones(1,2)])
    m = to_device((p,), 'meta')[0]
    assert type(m) is type(p) and m.data.is_meta

def test_to_device_where_update_is_forbidden():
    g = guarded(h=torch.ones(2), n=3)
    m = to_device(g, 'meta')
    assert type(m) is Guarded and m.h.is_meta and m['n'] == 3 and not g.h.is_meta

def test_to_device_modules_and_grads():
    net = nn.Linear(2,3)
    assert to_device(net, 'meta') is net and net.weight.is_meta
    x = torch.ones(3, requires_grad=True)
    (to_cpu([x*2])[0]).sum().backward()
    assert_close(x.grad, torch.full((3,), 2.))

@pytest.mark.parametrize('b', [3, 'cuda', None, 1.5, b'x', {1,2}, len])
def test_passed_through(b): assert to_device(b, 'meta') is b and to_cpu(b) is b

def test_default_is_used(monkeypatch):
    monkeypatch.setattr(core, 'default_device', lambda: torch.device('meta'))
    assert to_device(torch.ones(1)).is_meta and to_device(torch.ones(1), None).is_meta
    assert not to_device(torch.ones(1), torch.device('cpu')).is_meta

def test_to_cpu_keeps_dtypes():
    for dt in (torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.float64):
        t = torch.ones(2).to(dt)
        assert to_cpu(t) is t and to_cpu((t,))[0].dtype == dt

def test_non_blocking_only_towards_cuda():
    seen = []
    class Spy(torch.Tensor):
        def to(self, device, **kw): seen.append((torch.device(device).type, kw)); return self
    t = torch.ones(2).as_subclass(Spy)
    core._move(t, torch.device('cuda')); core._move(t, torch.device('cpu'))
    assert seen == [('cuda',{'non_blocking':True}), ('cpu',{'non_blocking':False})]

def test_missing_device():
    with pytest.raises(RuntimeError, match="got 'nowhere'|nowhere"): to_device(torch.ones(1), 'nowhere')
    if torch.cuda.is_available(): return
    with pytest.raises(RuntimeError, match="got device 'cuda:1', but torch finds no CUDA device here: give"):
        to_device(torch.ones(1), 'cuda:1')

@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_cuda_there_and_back():
    b = {'x':torch.randn(4,3), 'y':(torch.arange(4).pin_memory(), 'name')}
    g = to_device(b)
    assert g['x'].is_cuda and g['y'][0].is_cuda and g['y'][1] == 'name'
    assert_close(to_cpu(g)['x'], b['x'], rtol=0, atol=0)
    set_seed(5); a = torch.rand(3, device='cuda')
    set_seed(5)
    assert torch.equal(torch.rand(3, device='cuda'), a)
    gpu = partial(torch.tensor, device='cuda')
    ts = [gpu(1/3, dtype=torch.float64), torch.tensor(7), 2, gpu(.5)]
    assert to_floats(ts) == [1/3, 7., 2., .5]


# to_floats

@pytest.mark.parametrize('dt', [
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_to_floats_is_item(dt):
    ts = list((torch.rand(20)*200).to(dt))
    res = to_floats(ts)
    assert res == [float(t.item()) for t in ts] and all(type(f) is float for f in res)

def test_to_floats_mixed():
    third = torch.tensor(1/3, dtype=torch.float64)
    vals = [1, third, torch.tensor(2**53 - 1), True, torch.tensor([[.1]], requires_grad=True), np.float32(.5),
            torch.tensor(float('inf')), torch.tensor(.1, dtype=torch.bfloat16), torch.tensor(False)]
    assert to_floats(vals) == [float(v.item() if isinstance(v, torch.Tensor) else v) for v in vals]
    assert to_floats([third])[0] == 1/3

def test_to_floats_little_and_nan():
    assert to_floats([]) == to_floats(None) == []
    assert to_floats(3) == to_floats(torch.tensor(3)) == [3.]
    a,b = to_floats([torch.tensor(float('nan')), float('nan')])
    assert a != a and b != b

def test_to_floats_leaves_its_input():
    vals = [torch.tensor(1.), 2]
    to_floats(vals)
    assert isinstance(vals[0], torch.Tensor) and type(vals[1]) is int

@pytest.mark.parametrize('size', [(3,), (0,), (2,2)])
def test_to_floats_needs_one_element(size):
    with pytest.raises(ValueError, match=re.escape(f'shape {size}: give one element each')):
        to_floats([torch.tensor(1.), torch.ones(size)])

def test_to_floats_one_transfer(monkeypatch):
    "However many tensors, one `.tolist()`, and no `.item()` or `float()` on a tensor"
    calls,real = [],torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, 'tolist', lambda t: calls.append(t.shape) or real(t))
    def refuse(self): raise AssertionError('a transfer for one element')
    monkeypatch.setattr(torch.Tensor, 'item', refuse)
    monkeypatch.setattr(torch.Tensor, '__float__', refuse)
    ts = [torch.tensor(float(i)) for i in range(100)]
    assert to_floats(ts + [.5]) == [float(i) for i in range(100)] + [.5] and calls == [(100,)]

@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(-1e6,1e6), st.sampled_from(['float','float32','float64']))))
def test_to_floats_keeps_order(pairs):
    vals = [f if k == 'float' else torch.tensor(f, dtype=getattr(torch, k)) for f,k in pairs]
    assert to_floats(vals) == [float(v) for v in vals]


# the module

def test_import_does_no_work():
    code = '''if True:
        import random, sys, torch
        state = lambda: (random.getstate(), torch.get_rng_state().tolist(), torch.get_num_threads())
        before = state()
        import minifast.core
        assert state() == before and not torch.cuda.is_initialized()
        assert not {'matplotlib', 'IPython', 'fastcore'} & set(sys.modules)'''
    subprocess.run([sys.executable, '-W', 'error', '-c', code], check=True)

def test_every_name_is_documented():
    for name in core.__all__: assert getattr(core, name).__doc__


@pytest.mark.parametrize('out', [None, object(), io.StringIO()])
def test_no_bars_where_none_can_be_seen(out, monkeypatch):
    monkeypatch.setattr('sys.stdout', out)
    monkeypatch.delitem(sys.modules, 'IPython', raising=False)
    assert live_display() == ''

def test_bars_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self): return True
    monkeypatch.setattr('sys.stdout', Terminal())
    monkeypatch.delitem(sys.modules, 'IPython', raising=False)
    assert live_display() == 'terminal'
