"minifast.sweep: a snapshot puts a training back to the last bit; a suggestion finds what is known to be"
import contextlib
import copy
import itertools
import math
import random
from collections import UserDict
from functools import partial
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils import data as td

from helpers import assert_same as same, exact
from minifast.callback import Callback
from minifast.core import set_seed
from minifast.data import DataBunch, DataLoader, Dataset
from minifast.learner import Learner
from minifast.runner import Runner
from minifast.sweep import Snapshot, Suggestion, snapshot, suggest_lr


def notes(e): return getattr(e, '__notes__', [])


# ---------------------------------------------------------------- a training with everything in it

class Shaky:
    "Batches that draw from every kind of generator there is, in places where a loader may keep one"
    def __init__(self, dl):
        self.dl, self.rng, self.py = dl, np.random.default_rng(3), random.Random(4)
        self.old = SimpleNamespace(deep=SimpleNamespace(rng=np.random.RandomState(5)))
    def __len__(self): return len(self.dl)
    def __iter__(self):
        for xb, yb in self.dl:
            shift = (random.gauss(0, 1) + np.random.normal() + self.rng.normal() + self.py.gauss(0, 1)
                     + self.old.deep.rng.normal())
            yield xb + .1*shift + .1*torch.randn(xb.shape), yb

class Noise(nn.Module):
    "A layer with a generator and numpy's on its own"
    def __init__(self):
        super().__init__()
        self.g = torch.Generator().manual_seed(6)
    def forward(self, x): return x + .1*torch.randn(x.shape, generator=self.g)

def make_data(kind='minifast'):
    g = torch.Generator().manual_seed(0)
    ds = Dataset(torch.randn(28, 6, generator=g), torch.randint(0, 3, (28,), generator=g))
    if kind == 'minifast': return DataLoader(ds, 4, shuffle=True, generator=g)
    if kind == 'torch': return td.DataLoader(ds, 4, shuffle=True, generator=g)
    if kind == 'no generator': return td.DataLoader(ds, 4, shuffle=True)
    sampler = td.WeightedRandomSampler([1.]*28, 28, generator=g)
    return DataLoader(ds, 4, sampler=sampler) if kind == 'sampler' else td.DataLoader(ds, 4, sampler=sampler)

def make(opt_func=partial(optim.SGD, lr=.1, momentum=.9), kind='minifast'):
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), Noise(), nn.Dropout(.3),
                          nn.Linear(8, 3))
    data = DataBunch(Shaky(make_data(kind)), None, 3)
    return Learner(model, opt_func(model.parameters()), F.cross_entropy, data)

def step(learn, xb, yb):
    loss = learn.loss_func(learn.model(xb), yb)
    loss.backward()
    learn.opt.step()
    learn.opt.zero_grad()
    return loss.item()

def train(learn): return [step(learn, xb, yb) for xb, yb in learn.data.train_dl]

def sweep(learn, n=20, hi=10.):
    "Goes round the 7 batches nearly three times"
    batches = itertools.chain.from_iterable(itertools.repeat(learn.data.train_dl))
    for i, (xb, yb) in enumerate(itertools.islice(batches, n)):
        for pg in learn.opt.param_groups: pg['lr'] = 1e-3*(hi/1e-3)**(i/n)
        step(learn, xb, yb)

def flat(o):
    "Everything in a nested state that can be compared, in order, as copies"
    if isinstance(o, dict): return [x for k, v in o.items() for x in (k, *flat(v))]
    if isinstance(o, (list, tuple)): return [x for v in o for x in flat(v)]
    if isinstance(o, np.ndarray): return [torch.from_numpy(o.astype(np.int64))]   # PyTorch 2.1 has no uint32
    return [o.detach().clone()] if isinstance(o, torch.Tensor) else [o]

def look(learn):
    "A copy of all that a training depends on"
    dl = learn.data.train_dl
    mods = list(learn.model.modules())
    return flat([[dict(m._parameters) for m in mods], [dict(m._buffers) for m in mods],
                 [m.training for m in mods], [(p.requires_grad, p.grad) for p in learn.model.parameters()],
                 learn.opt.state_dict(), random.getstate(), np.random.get_state(), torch.get_rng_state(),
                 learn.model[3].g.get_state(), dl.rng.bit_generator.state, dl.py.getstate(),
                 dl.old.deep.rng.get_state()])

OPTS = [partial(optim.SGD, lr=.1), partial(optim.SGD, lr=.1, momentum=.9),
        partial(optim.SGD, lr=.1, momentum=.9, nesterov=True, weight_decay=.01),
        partial(optim.SGD, lr=.1, momentum=.5, foreach=True), partial(optim.Adam, lr=.01, foreach=True),
        partial(optim.Adam, lr=.01, foreach=False, amsgrad=True), partial(optim.AdamW, lr=.01),
        partial(optim.AdamW, lr=torch.tensor(.01), foreach=False), partial(optim.Adam, lr=.01, fused=True),
        partial(optim.RMSprop, lr=.01, momentum=.5, centered=True), partial(optim.Adagrad, lr=.1),
        partial(optim.ASGD, lr=.1), partial(optim.Rprop, lr=.01)]
IDS = [' '.join([f.func.__name__, *(f'{k}={v}' for k, v in f.keywords.items() if k != 'lr')]) for f in OPTS]


# ---------------------------------------------------------------- Snapshot: back to the last bit

def test_the_sweep_leaves_traces_without_it():
    "Else the tests below would test nothing"
    learn = make()
    train(learn)
    before, losses = look(learn), train(copy.deepcopy(learn))
    sweep(learn)
    after = look(learn)
    differ = [i for i, (x, y) in enumerate(zip(before, after))
              if not (torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y)]
    assert len(differ) > 20 and max(train(learn)) > max(losses)

@pytest.mark.parametrize('opt_func', OPTS, ids=IDS)
@pytest.mark.parametrize('epochs', [0, 1])
def test_the_next_epoch_is_that_without_a_sweep(opt_func, epochs):
    "Bit for bit, from a fresh optimiser and from one with a state"
    runs = []
    for sweeping in (False, True):
        set_seed(1)
        learn = make(opt_func)
        for _ in range(epochs): train(learn)
        if sweeping:
            snap, before = Snapshot(learn), look(learn)
            sweep(learn)
            snap.restore()
            same(look(learn), before)
        runs.append(([train(learn), train(learn)], look(learn)))
    assert runs[0][0] == runs[1][0]
    same(runs[0][1], runs[1][1])

@pytest.mark.parametrize('kind', ['minifast', 'torch', 'no generator', 'sampler', 'torch sampler'])
def test_loaders(kind):
    "The order of the batches, wherever the loader has its generator"
    learn = make(kind=kind)
    snap = Snapshot(learn)
    first = [(xb, yb) for xb, yb in learn.data.train_dl]
    list(learn.data.train_dl)
    snap.restore()
    exact([(xb, yb) for xb, yb in learn.data.train_dl], first)

def test_taking_a_snapshot_changes_nothing():
    learn = make()
    train(learn)
    before = look(learn)
    Snapshot(learn)
    same(look(learn), before)

def test_restored_as_often_as_you_like():
    "The second restore mustn't find what the training after the first one made of it"
    learn = make(partial(optim.Adam, lr=.01))
    train(learn)
    def gather(): F.cross_entropy(learn.model(torch.ones(4, 6)), torch.zeros(4, dtype=torch.long)).backward()
    gather()   # gradients that somebody keeps
    snap, before = Snapshot(learn), look(learn)
    for i in range(3):
        gather()   # the same tensors, in place
        if i: sweep(learn)
        snap.restore()
        same(look(learn), before)

def test_objects_stay_the_same():
    "Parameters, buffers, their memory, the groups and the state of the optimiser, and hooks on any of them"
    learn = make()
    train(learn)
    model, opt = learn.model, learn.opt
    hits = []
    model[0].weight.register_hook(lambda g: hits.append(1))
    def ids():
        tensors = [*model.parameters(), *model.buffers()]
        return ([id(o) for o in (opt.state, opt.param_groups, *opt.param_groups, *tensors)],
                [t.data_ptr() for t in tensors])
    before = ids()
    snap = Snapshot(learn)
    sweep(learn)
    snap.restore()
    assert ids() == before
    assert [id(p) for p in opt.param_groups[0]['params']] == [id(p) for p in model.parameters()]
    del hits[:]
    train(learn)
    assert len(hits) == 7
    assert opt.state[model[0].weight]['momentum_buffer'].abs().sum() > 0

@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
@pytest.mark.parametrize('at', [0, 3])
def test_after_an_exception(error, at):
    learn = make()
    train(learn)
    snap, before = Snapshot(learn), look(learn)
    def breaks(o, i=itertools.count()):
        if next(i) == at: raise error
    handle = learn.model[5].weight.register_hook(breaks)   # in the middle of backward
    with pytest.raises(error):
        try: sweep(learn)
        finally: snap.restore()
    handle.remove()
    same(look(learn), before)


# ---------------------------------------------------------------- Snapshot: odd models and optimisers

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(6, 3)
        self.register_buffer('count', torch.zeros((), dtype=torch.long), persistent=False)
        self.register_buffer('late', None)
        self.register_buffer('sums', torch.zeros(()))
        self.register_buffer('gone', torch.ones(2))
        self.register_parameter('none', None)

@pytest.fixture
def odd():
    model = Odd()
    return Learner(model, optim.SGD(model.parameters(), lr=.1), F.cross_entropy, SimpleNamespace(train_dl=[]))

def test_buffers_of_every_kind(odd):
    m, snap = odd.model, Snapshot(odd)
    sums = m.sums
    m.count += 3
    m.late = torch.ones(4)
    m.sums.add_(1)
    m.sums = torch.ones(1, 5)       # by another of another shape
    del m.gone
    m.register_buffer('new', torch.ones(1))
    m.none = nn.Parameter(torch.ones(1))
    snap.restore()
    assert m.count == 0 and m.count.dtype == torch.long and m.late is None and m.none is None
    assert m.sums is sums and m.sums == 0 and m.sums.shape == ()
    exact(m.gone, torch.ones(2))
    assert not hasattr(m, 'new') and list(dict(m.named_buffers())) == ['count', 'sums', 'gone']
    assert set(m.state_dict()) == {'lin.weight', 'lin.bias', 'sums', 'gone'}

def test_parameters_that_were_replaced_frozen_or_thawed(odd):
    m = odd.model
    m.lin.bias.requires_grad_(False)
    weight, values, snap = m.lin.weight, m.lin.weight.detach().clone(), Snapshot(odd)
    with torch.no_grad(): m.lin.weight.add_(1)
    m.lin.weight = nn.Parameter(torch.zeros(3, 6))
    m.lin.bias.requires_grad_(True)
    weight.requires_grad_(False)
    snap.restore()
    assert m.lin.weight is weight and weight.requires_grad and not m.lin.bias.requires_grad
    exact(weight.detach(), values)

def test_modes_of_every_module(odd):
    odd.model.lin.eval()
    snap = Snapshot(odd)
    odd.model.eval()
    odd.model.lin.train()
    snap.restore()
    assert odd.model.training and not odd.model.lin.training

@pytest.mark.parametrize('had', [True, False])
def test_gradients(odd, had):
    p = odd.model.lin.weight
    if had: p.grad = torch.full_like(p, 2.)
    before, snap = p.grad, Snapshot(odd)
    p.grad = torch.ones_like(p)
    if had: before.zero_()
    snap.restore()
    assert p.grad is before and (before is None or before.eq(2).all())

@pytest.mark.parametrize('change', [lambda m: m.double(), lambda m: m.bfloat16()], ids=['double', 'bfloat16'])
def test_a_model_that_was_converted(odd, change):
    "As when it is moved to another device in the middle: parameters keep their identity, buffers don't"
    odd.model.register_buffer('mean', torch.full((3,), 1/3))
    snap, before = Snapshot(odd), copy.deepcopy(odd.model.state_dict())
    p, mean = odd.model.lin.weight, odd.model.mean
    change(odd.model)
    snap.restore()
    assert odd.model.lin.weight is p and odd.model.mean is mean and p.dtype == torch.float32
    exact(dict(odd.model.state_dict()), dict(before))
    odd.model.lin(torch.ones(2, 6)).sum().backward()
    odd.opt.step()

def test_resized_in_place(odd):
    snap = Snapshot(odd)
    odd.model.gone.resize_(4).fill_(3)
    snap.restore()
    exact(odd.model.gone, torch.ones(2))

def test_shared_weights_and_parameters_outside_the_model(odd):
    m, extra = odd.model, nn.Parameter(torch.ones(2))
    m.twin = nn.Linear(6, 3)
    m.twin.weight = m.lin.weight
    odd.opt.add_param_group({'params': [extra], 'lr': .5})
    snap, before = Snapshot(odd), copy.deepcopy(m.state_dict())
    with torch.no_grad():
        for p in (extra, m.lin.weight): p.add_(1)
    snap.restore()
    assert m.twin.weight is m.lin.weight
    exact(dict(m.state_dict()), dict(before))
    exact(extra.detach(), torch.ones(2))

def test_groups_with_their_own_rates(odd):
    m = odd.model
    odd.opt = optim.SGD([{'params': [m.lin.weight], 'lr': .1, 'momentum': .9},
                         {'params': [m.lin.bias], 'lr': .01}], lr=1.)
    groups, snap = list(odd.opt.param_groups), Snapshot(odd)
    for g in odd.opt.param_groups: g.update(lr=7., momentum=.1, nesterov=True, mine=1)
    odd.opt.add_param_group({'params': [nn.Parameter(torch.ones(1))]})
    del groups[0]['weight_decay']
    snap.restore()
    assert [(g['lr'], g['momentum'], g['nesterov'], g['weight_decay']) for g in odd.opt.param_groups] == [
        (.1, .9, False, 0), (.01, 0, False, 0)]
    assert all(a is b for a, b in zip(odd.opt.param_groups, groups, strict=True)) and 'mine' not in groups[0]

def test_groups_that_were_removed_come_back(odd):
    snap, group = Snapshot(odd), odd.opt.param_groups[0]
    odd.opt.param_groups = []
    snap.restore()
    assert odd.opt.param_groups == [group] and group['params'][0] is odd.model.lin.weight

def test_a_state_in_more_bits_than_the_parameters(odd):
    "ASGD counts in float32: `load_state_dict` casts that to the parameters' type, and has lost bits"
    odd.model.bfloat16()
    odd.opt = optim.ASGD(odd.model.parameters(), lr=.1)
    def go(n):
        for _ in range(n):
            odd.model.lin(torch.ones(2, 6, dtype=torch.bfloat16)).sum().backward()
            odd.opt.step()
    go(3)
    snap, before = Snapshot(odd), flat(odd.opt.state_dict())
    dict_before = copy.deepcopy(odd.opt.state_dict())
    go(2)
    snap.restore()
    same(flat(odd.opt.state_dict()), before)
    odd.opt.load_state_dict(dict_before)
    with pytest.raises(AssertionError): same(flat(odd.opt.state_dict()), before)

def test_a_runner_in_a_fit():
    "What LR_Find does: a snapshot when the fit begins, `restore` when it ends, and a fit that leaves nothing"
    class Undo(Callback):
        def begin_fit(self): self.snap = Snapshot(self.run)
        def begin_batch(self): self.opt.param_groups[0]['lr'] = 3.
        def after_fit(self): self.snap.restore()

    learn = make()
    set_seed(3)
    Runner().fit(1, learn)
    learn.model[1].eval()
    before = look(learn)
    Runner(Undo()).fit(2, learn)
    same(look(learn), before)

def test_what_a_snapshot_needs(odd):
    for o, says in [(odd.model, 'got Odd without model, opt, data: give a Learner'),
                    (Runner(), 'got Runner without model, opt, data'),
                    (SimpleNamespace(model=odd.model), 'got SimpleNamespace without opt, data')]:
        with pytest.raises(TypeError, match=says): Snapshot(o)

def test_loaders_that_hold_much_or_themselves(odd):
    "Modules, classes, cycles and things without attributes are no trouble"
    a, b = SimpleNamespace(np=np, cls=np.random.RandomState, self=None, n=[1]*9), SimpleNamespace()
    a.self, a.b, b.a, b.rng = a, b, a, np.random.default_rng(0)
    odd.data.train_dl = a
    snap = Snapshot(odd)
    first = b.rng.random(3)
    snap.restore()
    assert (b.rng.random(3) == first).all()

def test_generators_of_others_are_left_alone(odd):
    "What a module or a class holds that the loader happens to know isn't the loader's"
    module = ModuleType('module')
    module.rng = np.random.default_rng(0)
    cls = type('Other', (), {'rng': np.random.default_rng(0)})
    odd.data.train_dl = SimpleNamespace(module=module, cls=cls)
    snap = Snapshot(odd)
    first = [o.rng.random() for o in (module, cls)]
    snap.restore()
    assert all(o.rng.random() != v for o, v in zip((module, cls), first))


def test_after_load_state_dict(odd):
    "It gives an optimiser new lists and dicts: the old ones come back"
    p, opt = odd.model.lin.weight, optim.SGD(odd.model.parameters(), lr=.1, momentum=.9)
    odd.opt = opt
    odd.model.lin(torch.ones(2, 6)).sum().backward()
    opt.step()
    snap, state, groups, was = Snapshot(odd), opt.state, opt.param_groups, flat(opt.state_dict())
    opt.load_state_dict(optim.SGD(odd.model.parameters(), lr=7.).state_dict())
    assert opt.state is not state and opt.param_groups is not groups
    snap.restore()
    assert opt.state is state and opt.param_groups is groups and groups[0]['params'][0] is p
    same(flat(opt.state_dict()), was)

class Stubborn(nn.Linear):
    "Once armed, its mode can't be set"
    armed = False
    def __setattr__(self, k, v):
        if k == 'training' and self.armed: raise RuntimeError('no mode for me')
        super().__setattr__(k, v)

@pytest.mark.parametrize('at', [0, 1, 2])
def test_every_step_though_another_fails(at):
    "A part that can't be put back raises, and all other parts are as before"
    learn = make()
    learn.model.insert(2*at, Stubborn(*((8, 8) if at else (6, 6))))
    learn.opt.add_param_group({'params': learn.model[2*at].parameters()})
    train(learn)
    state = lambda: [learn.opt.state_dict(), learn.model.state_dict(), torch.get_rng_state(),
                     random.getstate(), np.random.get_state(),
                     [o.training for o in learn.model.modules() if not isinstance(o, Stubborn)]]
    snap, before = Snapshot(learn), flat(state())
    sweep(learn)
    learn.model.eval()
    learn.model[2*at].armed = True
    with pytest.raises(RuntimeError, match='no mode for me'): snap.restore()
    same(flat(state()), before)

def test_two_steps_that_fail_are_both_told():
    m = nn.Sequential(Stubborn(2, 2), nn.Dropout(), Stubborn(2, 2))
    with pytest.raises(RuntimeError) as e, snapshot(m):
        m.eval()
        m[0].armed = m[2].armed = True
    assert m.training and m[1].training
    assert 'then failed too: RuntimeError: no mode for me' in notes(e.value)[-1]

def test_the_error_of_the_block_is_not_lost():
    m = Stubborn(2, 2)
    with pytest.raises(RuntimeError) as e, snapshot(m):
        m.armed = True
        raise KeyError('block')
    assert isinstance(e.value.__context__, KeyError)

def test_a_model_with_torchscript_in_it():
    "Its registers aren't dicts; values, modes and the rate come back"
    with pytest.warns(DeprecationWarning) if hasattr(torch, 'accelerator') else contextlib.nullcontext():
        part = torch.jit.script(nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)))
    model = nn.Sequential(nn.Linear(6, 6), part)
    dl = [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))]*5
    learn = Learner(model, optim.SGD(model.parameters(), lr=.1), F.cross_entropy, SimpleNamespace(train_dl=dl))
    before = copy.deepcopy(dict(model.state_dict()))
    snap = Snapshot(learn)
    sweep(learn)
    model.eval()
    snap.restore()
    exact(dict(model.state_dict()), before)
    assert model.training and part.training and learn.opt.param_groups[0]['lr'] == .1


class Carrier(nn.Module):
    "Hands its input on, and has a buffer"
    def __init__(self, buffer):
        super().__init__()
        self.register_buffer('b', buffer)
    def forward(self, x): return x

class Counts(nn.Linear):
    "Saves more than tensors: PyTorch calls that extra state"
    def __init__(self):
        super().__init__(6, 6)
        self.seen = {'batches': 0}
    def get_extra_state(self): return self.seen
    def set_extra_state(self, state): self.seen = state
    def forward(self, x):
        self.seen['batches'] += 1
        return super().forward(x)

class Grows(nn.Module):
    "Makes a layer in its first forward"
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(6, 6)
    def forward(self, x):
        if not hasattr(self, 'more'): self.more = nn.Linear(6, 6)
        return self.lin(x)

class Mapped(nn.Linear):
    "Its register of parameters is a mapping, and no dict"
    def __init__(self):
        super().__init__(6, 6)
        vars(self)['_parameters'] = UserDict(self._parameters)

PARTS = {'nested': lambda: Carrier(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
         'conjugate': lambda: Carrier(torch.tensor([1+2j]).conj()), 'sparse': lambda: Carrier(torch.eye(2).to_sparse()),
         'quantised': lambda: Carrier(torch.quantize_per_tensor(torch.ones(2), .1, 0, torch.qint8)),
         'extra state': Counts, 'grows': Grows, 'mapped': Mapped}

@pytest.mark.filterwarnings('ignore')   # of PyTorch, about its own kinds of tensors
@pytest.mark.parametrize('part', PARTS)
def test_odd_modules_and_tensors(part):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), PARTS[part](), nn.Linear(6, 3))
    dl = [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))]*5
    learn = Learner(model, optim.SGD(model.parameters(), lr=.1), F.cross_entropy, SimpleNamespace(train_dl=dl))
    names, before = [k for k, _ in model.named_modules()], [p.detach().clone() for p in model.parameters()]
    counted = copy.deepcopy(getattr(model[1], 'seen', None))
    snap = Snapshot(learn)
    for _ in range(2):   # the second restore finds what the first one did
        sweep(learn)
        snap.restore()
        assert [k for k, _ in model.named_modules()] == names and getattr(model[1], 'seen', None) == counted
        exact([p.detach() for p in model.parameters()], before)
        assert learn.opt.param_groups[0]['lr'] == .1

new_lazy = pytest.mark.filterwarnings('ignore:Lazy modules are a new feature:UserWarning')   # in PyTorch 2.1

@new_lazy
@pytest.mark.parametrize('make_lazy', [lambda: nn.LazyLinear(3), lambda: nn.LazyBatchNorm1d(),
                                       lambda: nn.LazyBatchNorm1d(affine=False)])
def test_layers_that_have_no_size_yet(make_lazy):
    "A batch gives them weights, which couldn't be taken away again: said before the first one"
    model = nn.Sequential(nn.Linear(6, 3), nn.Sequential(make_lazy()))
    learn = Learner(model, optim.SGD(model.parameters(), lr=.1), F.cross_entropy, SimpleNamespace(train_dl=[]))
    with pytest.raises(ValueError, match=r'1\.0\.(weight|running_mean) has no size before the first batch.* call model\(xb\)'):
        Snapshot(learn)
    model(torch.randn(4, 6))
    Snapshot(learn).restore()

def test_a_rate_that_is_a_tensor_stays_that_tensor(odd):
    "Somebody may hold it, as PyTorch's schedulers do"
    rate = torch.tensor(.1)
    odd.opt = optim.SGD(odd.model.parameters(), lr=rate)
    snap = Snapshot(odd)
    rate.fill_(7.)
    odd.opt.param_groups[0]['lr'] = 3.
    snap.restore()
    assert odd.opt.param_groups[0]['lr'] is rate and rate == torch.tensor(.1)


# ---------------------------------------------------------------- snapshot: modes, buffers, random states

@pytest.mark.parametrize('error', [None, ValueError, KeyboardInterrupt])
def test_snapshot_after_an_exception(error):
    learn = make()
    train(learn)
    weight = learn.model[0].weight.detach().clone()
    before = look(learn)
    with contextlib.suppress(error or ()), snapshot(learn.model, learn.data.train_dl, params=True):
        for xb, yb in learn.data.train_dl: F.cross_entropy(learn.model(xb), yb).backward()
        learn.model.eval()
        with torch.no_grad(): learn.model[0].weight.add_(1)
        if error: raise error
    same(look(learn), before)
    exact(learn.model[0].weight.detach(), weight)

def test_snapshot_takes_parameters_only_if_asked(odd):
    m = odd.model
    with snapshot(m), torch.no_grad(): m.lin.weight.fill_(5)
    assert (m.lin.weight == 5).all()
    with snapshot(m, params=True), torch.no_grad(): m.lin.weight.fill_(6)
    assert (m.lin.weight == 5).all()

def test_snapshot_of_a_loader_alone():
    "The generators in it and the global ones"
    for kind in ('minifast', 'torch', 'sampler'):
        dl = make_data(kind)
        with snapshot(dl): first = [xb for xb, _ in dl]
        exact([xb for xb, _ in dl], first)

def test_snapshot_of_nothing_is_that_of_the_global_generators():
    def draw(): return random.random(), np.random.normal(), torch.rand(1).item()
    with snapshot(): first = draw()
    assert draw() == first

def test_nothing_is_written_without_need():
    m = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    m[0].running_mean.fill_(math.nan)
    tensors = [*m.parameters(), *m.buffers()]
    versions = [t._version for t in tensors]
    with snapshot(m, params=True): m.eval()(torch.ones(2, 3))
    assert [t._version for t in tensors] == versions

def test_the_sign_of_zero_is_a_bit():
    m = nn.Module()
    m.register_buffer('zero', -torch.zeros(2))
    with snapshot(m): m.zero.copy_(torch.zeros(2))
    assert m.zero.signbit().all()

@pytest.mark.parametrize('make_buffer', [lambda: torch.ones(2).to_sparse(), lambda: torch.tensor([1 + 2j]),
    lambda: torch.ones(3, 4).t(), lambda: torch.zeros(0, 3), lambda: torch.ones(2).bfloat16(),
    lambda: torch.ones(1, 3, 4, 5).to(memory_format=torch.channels_last), lambda: torch.tensor([True, False])])
def test_buffers_of_any_layout(make_buffer):
    m = nn.Module()
    m.register_buffer('b', make_buffer())
    def dense(): return m.b.to_dense() if m.b.is_sparse else m.b
    before, b = dense().clone(), m.b
    with snapshot(m): m.b.zero_()
    exact(dense(), before)
    assert m.b is b

def test_a_buffer_that_became_part_of_a_graph():
    m = nn.BatchNorm1d(3)
    w = torch.ones(3, requires_grad=True)
    with snapshot(m): m.running_mean.mul_(w)
    assert m.running_mean.is_leaf and not m.running_mean.requires_grad and (m.running_mean == 0).all()

@new_lazy
def test_lazy_layers_are_left_alone():
    m = nn.Sequential(nn.LazyLinear(3), nn.Dropout())
    with snapshot(m, params=True): m.eval()
    assert m.training and m[0].has_uninitialized_params()

def test_snapshot_of_a_learner(odd):
    with pytest.raises(TypeError, match='got Learner: give its model, or take a Snapshot'):
        with snapshot(odd): pass


# ---------------------------------------------------------------- suggest_lr: curves with a known answer

def curve(c=-2., width=.3, drop=2., breaks=None, noise=0., n=100, seed=0, lo=-6., hi=1.):
    "Falls by `drop`, fastest at 10**c, and breaks at about 10**breaks; noise in parts of the drop"
    x = np.linspace(lo, hi, n)
    y = 1 + drop - drop/(1 + np.exp(-(x-c)/width)) + noise*drop*np.random.default_rng(seed).standard_normal(n)
    if breaks is not None: y = y + drop*np.exp(np.minimum((x-breaks)/.15, 50))
    return 10**x, y

def off(s, c): return abs(math.log10(s.steep) - c)

@given(n=st.integers(60, 300), c=st.floats(-4, -1.5), width=st.floats(.15, .5), drop=st.floats(.3, 9),
       gap=st.none() | st.floats(5, 9))
def test_a_clean_curve(n, c, width, drop, gap):
    breaks = None if gap is None else c + gap*width
    s = suggest_lr(*curve(c, width, drop, breaks, n=n))
    assert off(s, c) < .15 and s.safe <= s.steep

@pytest.mark.parametrize('noise, width', [(.05, (.15, .4)), (.1, (.15, .25))])
@pytest.mark.parametrize('n', [100, 200])
def test_noisy_curves(noise, width, n):
    "300 seeds, and none is further off than .35 powers of ten"
    rng, offs = np.random.default_rng(0), []
    for seed in range(300):
        c, w = rng.uniform(-4, -1.5), rng.uniform(*width)
        breaks = c + rng.uniform(5, 9)*w if seed % 2 else None
        offs.append(off(suggest_lr(*curve(c, w, rng.uniform(.5, 5), breaks, noise, n, seed)), c))
    assert max(offs) < .35 and np.mean(offs) < .1

@pytest.mark.parametrize('n', [10, 15, 20, 30])
def test_short_sweeps(n):
    "Coarse, but right to the distance of a few points"
    s = suggest_lr(*curve(n=n, width=.4))
    assert off(s, -2) < 1.5*7/n

def test_the_safe_rate():
    "A tenth of the rate with the lowest loss, if that is below the steep one"
    lrs, losses = curve(c=-2., width=.15, breaks=-.9)
    s, low = suggest_lr(lrs, losses), lrs[np.argmin(losses)]
    assert s.safe < s.steep and .8 < s.safe/(low/10) < 1.25
    s = suggest_lr(*curve(c=-2., breaks=None))   # here a tenth of the lowest lies above the steep one
    assert s.safe == s.steep and isinstance(s, Suggestion) and s == (s.steep, s.safe)

def test_never_falls():
    flat_curve, rising = [2.3]*50, list(np.linspace(1, 2, 50))
    lrs = np.logspace(-6, 1, 50)
    assert suggest_lr(lrs, flat_curve) is None and suggest_lr(lrs, rising) is None
    assert suggest_lr(*curve(drop=1e-9, breaks=0.)) is None
    assert suggest_lr(lrs, [2.3 + 1e-9*(-1)**i for i in range(50)]) is None

@pytest.mark.parametrize('n', [10, 20, 50, 100, 300])
@pytest.mark.parametrize('breaks', [None, -1.])
def test_noise_is_rarely_taken_for_a_fall(n, breaks):
    rng, lrs = np.random.default_rng(0), np.logspace(-6, 1, n)
    up = 0 if breaks is None else np.exp((np.log10(lrs)-breaks)/.15)
    assert sum(suggest_lr(lrs, 2.3 + .1*rng.standard_normal(n) + up) is not None for _ in range(300)) <= 15

def test_a_small_fall_is_seen():
    "Half a unit of loss, under noise of a tenth of that"
    assert all(off(suggest_lr(*curve(drop=.5, noise=.1, seed=s)), -2) < 1 for s in range(100))

@pytest.mark.parametrize('end', [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite_are_left_out(end):
    lrs, losses = curve(breaks=0.)
    want = suggest_lr(lrs[:80], losses[:80])
    assert suggest_lr(lrs, [*losses[:80], *[end]*20]) == want
    with_holes = [end if i in (3, 44, 60) else v for i, v in enumerate(losses)]
    assert off(suggest_lr(lrs, with_holes), -2) < .15

def test_divergence_does_not_count_by_its_size():
    lrs, losses = curve(breaks=-.5)
    higher = np.where(losses > 4, losses*1e9, losses)
    assert suggest_lr(lrs, losses) == suggest_lr(lrs, higher)

@pytest.mark.parametrize('i', [15, 40, 55, 60, 70])
def test_a_single_huge_loss(i):
    "Before the fall, in it and after it"
    lrs, losses = curve(breaks=0., noise=.02)
    losses[i] = 1e4
    assert off(suggest_lr(lrs, losses), -2) < .4

def test_two_falls():
    "One of the two, and not a rate between them where nothing falls"
    x, found = np.linspace(-6, 1, 100), set()
    for k in (.9, 1/.9):   # which of them is the steeper one
        s = suggest_lr(10**x, 3 - k/(1 + np.exp(-(x+4)/.15)) - 1/(1 + np.exp(-(x+1.5)/.15)))
        found.add(round(math.log10(s.steep), 1))
    assert found == {-4., -1.5}

@settings(max_examples=50)
@given(a=st.floats(1e-3, 1e3), b=st.floats(-10, 10), shift=st.floats(-2, 2))
def test_units_do_not_matter(a, b, shift):
    "A loss in other units has the same answer; rates in other units have it in theirs"
    lrs, losses = curve(noise=.05, breaks=-.3)
    s, t = suggest_lr(lrs, losses), suggest_lr(lrs*10**shift, a*losses + b)
    assert_close(torch.tensor(t), torch.tensor(s)*10**shift)

@given(st.lists(st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf]), min_size=10, max_size=60))
def test_whatever_the_losses(losses):
    "A suggestion within the rates, `safe` not above `steep`, or None; never a warning"
    lrs = np.logspace(-6, 1, len(losses))
    if sum(map(math.isfinite, losses)) < 10: return
    s = suggest_lr(lrs, losses)
    if s is not None: assert lrs[0] <= s.steep <= lrs[-1] and 0 < s.safe <= s.steep

def test_falling_heights_without_a_falling_line():
    "Found by search: then there is no steepest descent"
    rng, lrs = np.random.default_rng(0), np.logspace(-6, 1, 57)
    for _ in range(3000):
        s = suggest_lr(lrs, np.exp(rng.uniform(-30, 30, 57))*rng.choice([-1, 1], 57))
        assert s is None or math.isfinite(s.steep)

def test_what_it_takes():
    lrs, losses = curve(breaks=0.)
    want = suggest_lr(lrs.tolist(), losses.tolist())
    tensors = torch.tensor(lrs), torch.tensor(losses, requires_grad=True)
    for a, b in [(lrs, losses), (tuple(lrs), iter(losses)), tensors, ([*tensors[0]], [*tensors[1]])]:
        assert suggest_lr(a, b) == want
    assert all(type(v) is float for v in want)
    half = suggest_lr(tensors[0].float(), tensors[1].detach().bfloat16())
    assert off(half, -2) < .15
    uneven = np.sort(np.random.default_rng(0).choice(len(lrs), 70, replace=False))
    assert off(suggest_lr(lrs[uneven], losses[uneven]), -2) < .15

BAD = [([.1, .2], [1.], 'got 2 rates, 1 losses: give as many'), ([], [1.], 'got 0 rates'),
       ([0., .1], [1.]*2, r'above 0 and rise, got \[0.0\]: give one sweep'), ([-.1, .1], [1.]*2, r'\[-0.1\]'),
       ([.1, .3, .2], [1.]*3, r'rise, got \[0.3, 0.2\]'), ([.1, .1], [1.]*2, r'\[0.1, 0.1\]'),
       ([.1, math.nan], [1.]*2, r'\[0.1, nan\]'), ([.1, math.inf], [1.]*2, r'\[0.1, inf\]'),
       ([], [], 'at least 10 finite losses, got 0: sweep over more'), (range(1, 10), [1.]*9, 'got 9'),
       (range(1, 13), [1.]*9 + [math.nan]*3, 'got 9'), (torch.ones(2, 2), torch.ones(2), 'shape')]

@pytest.mark.parametrize('lrs, losses, says', BAD)
def test_bad_input(lrs, losses, says):
    with pytest.raises(ValueError, match=says): suggest_lr(lrs, losses)

def test_ten_losses_are_enough():
    assert suggest_lr(range(1, 11), range(10, 0, -1)) is not None


# ---------------------------------------------------------------- both on a problem whose limit is known

@pytest.mark.parametrize('k', [.1, 1., 100.])
def test_a_parabola(k):
    "Gradient descent on k·x²/2 breaks above 2/k, reaches the minimum in one step at 1/k, and moves with k"
    x = nn.Parameter(torch.tensor([3.], dtype=torch.float64))
    learn = Learner(nn.ParameterList([x]), optim.SGD([x], lr=.1), None, SimpleNamespace(train_dl=[]))
    snap, lrs, losses = Snapshot(learn), np.logspace(-6, 1, 200)/k, []
    for lr in lrs:
        learn.opt.param_groups[0]['lr'] = lr
        loss = (k*x*x/2).sum()
        loss.backward()
        learn.opt.step()
        learn.opt.zero_grad()
        losses.append(loss.item())
    s = suggest_lr(lrs, losses)
    assert .01 < s.steep*k < 1 and s.safe*k < .2
    assert_close(s.steep*k, suggest_lr(lrs*k, [v/k for v in losses]).steep)
    snap.restore()
    assert x.item() == 3 and learn.opt.param_groups[0]['lr'] == .1
