"minifast.cnn: layers from functions, the CNN's sizes, moving to a device, transforming batches, the runner"
import copy
import pickle
import warnings
from collections import Counter, UserDict
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim
from torch.nn import functional as F
from torch.testing import assert_close

from helpers import blobs, conv2d, copies as same, exact, gpu, quiet, small
import minifast.core
from minifast.callback import Callback, CancelBatchException
from minifast.cnn import (BatchTransformXCallback, CudaCallback, Lambda, flatten, get_cnn_layers, get_cnn_model,
                          get_runner)
from minifast.core import set_seed
from minifast.data import DataBunch, Dataset, get_dls, mnist_view, view_tfm
from minifast.learner import Learner
from minifast.losses import accuracy
from minifast.runner import AvgStatsCallback, Runner, TrainEvalCallback
from minifast.sched import LR_Find

quick = settings(max_examples=40, deadline=None)
meta = torch.device('meta')


def make_data(n=22, size=(784,), c=10, bs=8, dtype=torch.float32):
    "Two training batches of 8 and one of 6; validation 10 and 3 in batches of 16"
    g = torch.Generator().manual_seed(1)
    def ds(n): return Dataset(torch.randn(n, *size, generator=g, dtype=dtype), torch.randint(c, (n,), generator=g))
    return DataBunch(*get_dls(ds(n), ds(19), bs), c)


def flat_learner(data=None, opt=partial(optim.SGD, lr=.1, momentum=.9), **kw):
    set_seed(1)
    model = nn.Sequential(nn.Linear(784, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 10))
    parts = dict(model=model, opt=opt(model.parameters()), loss_func=F.cross_entropy, data=data or make_data())
    return Learner(**{**parts, **kw})


class Note(Callback):
    "What `look(run)` gives at every begin_batch, after all others"
    _order = 9
    def __init__(self, look): self.look,self.seen = look,[]
    def begin_batch(self): self.seen.append((self.run.in_train, self.look(self.run)))


# --- Lambda, flatten (q1)

class Quiet:
    "Callable, with the repr that objects have by default"
    def __call__(self, x): return x

def double(x): return 2*x

def test_lambda_is_a_layer_without_parameters():
    fired,x = [],torch.randn(3, 4)
    model = nn.Sequential(Lambda(double), nn.ReLU())
    model[0].register_forward_hook(lambda *a: fired.append(a[2]))
    exact(model(x), F.relu(2*x))
    exact(fired, [2*x])
    assert Lambda(lambda o: o)(x) is x   # what goes in is what the function gets
    assert not list(model.parameters()) and not model.state_dict()

def test_lambda_calls_its_function_only_in_forward():
    calls = []
    layer = Lambda(lambda x: calls.append(x) or x)
    assert calls == []
    layer(torch.zeros(1))
    assert len(calls) == 1

@pytest.mark.parametrize('func, text', [(flatten, 'flatten'), (mnist_view, 'mnist_view'), (torch.relu, 'relu'),
    (view_tfm(1, 28, 28), 'view_tfm(1, 28, 28)'), (lambda x: x, '<lambda>'), (Quiet(), 'Quiet'),
    (partial(double), 'partial(double)'), (partial(Quiet()), 'partial(Quiet)')])
def test_lambda_repr(func, text):
    assert repr(Lambda(func)) == f'Lambda({text})'
    assert ' at 0x' not in repr(nn.Sequential(Lambda(func)))

@pytest.mark.parametrize('func', [flatten, mnist_view, view_tfm(28, 28), partial(double), Quiet(), torch.relu])
@pytest.mark.parametrize('dup', same)
def test_lambda_with_a_name_is_copied_and_pickled(func, dup):
    x = torch.randn(2, 784)
    exact(dup(Lambda(func))(x), func(x))

def test_lambda_with_a_lambda_cannot_be_pickled():
    with pytest.raises((pickle.PicklingError, AttributeError)): pickle.dumps(Lambda(lambda x: x))

@pytest.mark.parametrize('bad', [None, 3, torch.zeros(2), 'flatten'])
def test_lambda_refuses_what_cannot_be_called(bad):
    with pytest.raises(TypeError, match=f'got {type(bad).__name__}: write its name'): Lambda(bad)

@quick
@given(st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_flatten_shape(size):
    x = torch.randn(size)
    out = flatten(x)
    assert out.shape == (size[0], int(np.prod(size[1:])))
    exact(out.reshape(-1), x.reshape(-1))

def test_flatten_is_pytorchs_with_its_gradient_and_a_view():
    x = torch.randn(3, 2, 4, 5, requires_grad=True)
    exact(flatten(x), nn.Flatten()(x))
    w = torch.randn(3, 40)
    exact(torch.autograd.grad((flatten(x)*w).sum(), x)[0], w.view(3, 2, 4, 5))
    assert flatten(x).data_ptr() == x.data_ptr()
    exact(flatten(x.transpose(1, 3)), x.transpose(1, 3).reshape(3, 40))


# --- the CNN (q2, q3, q5, q7)

def sides(model, x):
    "Height and width after each convolution, by hooks"
    found,hooks = [],[]
    for m in model.modules():
        if isinstance(m, nn.Conv2d): hooks.append(m.register_forward_hook(lambda *a: found.append(a[2].shape[2:])))
    model(x)
    for h in hooks: h.remove()
    return [tuple(o) for o in found]

def test_sizes_parameters_and_kernels_of_the_lessons_network():
    data = make_data()
    model = get_cnn_model(data, [8, 16, 32, 64, 64], conv2d)
    assert sum(p.numel() for p in model.parameters()) == 62_090
    assert sides(model, torch.randn(2, 1, 28, 28)) == [(n, n) for n in (14, 7, 4, 2, 1)]
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in convs] == [(1, 8), (8, 16), (16, 32), (32, 64), (64, 64)]
    assert [m.kernel_size for m in convs] == [(5, 5)] + [(3, 3)]*4 and {m.stride for m in convs} == {(2, 2)}
    assert model(torch.randn(1, 1, 28, 28)).shape == (1, 10)   # one item
    assert type(model) is nn.Sequential and model[-1].in_features == 64

def test_same_numbers_as_plain_pytorch():
    model = get_cnn_model(make_data(c=7), [3, 5], conv2d)
    x = torch.randn(4, 1, 15, 20)
    (a,b),(c,d),(e,f) = [(m.weight, m.bias) for m in (model[0][0], model[1][0], model[-1])]
    h = F.relu(F.conv2d(F.relu(F.conv2d(x, a, b, 2, 2)), c, d, 2, 1))
    want = F.linear(h.mean((2, 3)), e, f)
    assert_close(model(x), want)
    y = torch.randint(7, (4,))
    ours,theirs = (torch.autograd.grad(F.cross_entropy(o, y), list(model.parameters())) for o in (model(x), want))
    assert_close(ours, theirs)

@quick
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 3), st.integers(1, 40), st.integers(1, 40))
def test_any_widths_any_size(nfs, channels, h, w):
    data = make_data(9, (channels, 6, 6), c=4)
    before = list(nfs)
    model = get_cnn_model(data, nfs, conv2d)
    assert model(torch.randn(2, channels, h, w)).shape == (2, 4) and nfs == before
    convs = [m[0] for m in model[:len(nfs)]]
    assert [m.in_channels for m in convs] == [channels, *nfs[:-1]] and [m.out_channels for m in convs] == nfs
    assert [m.kernel_size[0] for m in convs] == [5] + [3]*(len(nfs)-1)

@pytest.mark.parametrize('nfs', [[8, 16, 32, 32], [4], (4, 6), list(np.array([4, 6])), range(2, 5), iter([3, 4])])
def test_get_cnn_layers_takes_sequences_and_leaves_them(nfs):
    layers = get_cnn_layers(make_data(), nfs, conv2d)
    assert isinstance(layers, list)
    if isinstance(nfs, (list, range)):
        before = list(nfs)
        again = get_cnn_layers(make_data(), nfs, conv2d)
        assert list(nfs) == before and [str(o) for o in layers] == [str(o) for o in again]
        assert layers[-1].in_features == before[-1] and len(layers) == len(before) + 3
        assert not {id(p) for o in layers for p in o.parameters()} & {id(p) for o in again for p in o.parameters()}

def test_layer_is_called_as_documented():
    calls = []
    def layer(*args, **kw): calls.append((args, kw)); return nn.Identity()
    tail = get_cnn_layers(make_data(), [8, 16, 32], layer, stride=1, leak=.1)[3:]
    assert calls == [(o, dict(stride=1, leak=.1)) for o in ((1, 8, 5), (8, 16, 3), (16, 32, 3))]
    assert tail[0].output_size == 1 and tail[1].func is flatten and (tail[2].in_features, tail[2].out_features) == (32, 10)

def test_keywords_reach_the_layer():
    model = get_cnn_model(make_data(), [4, 6], conv2d, stride=1)
    assert sides(model, torch.randn(2, 1, 9, 12)) == [(9, 12)]*2

@pytest.mark.parametrize('size, channels', [((784,), 1), ((28, 28), 1), ((1, 28, 28), 1), ((3, 8, 9), 3), ((2, 4, 4), 2)])
def test_channels_come_from_the_data(size, channels):
    assert get_cnn_layers(make_data(size=size), [4], conv2d)[0][0].in_channels == channels

@pytest.mark.parametrize('size', [(2, 3, 4, 5), ()])
def test_items_that_are_no_pictures(size):
    with pytest.raises(ValueError, match=r'needs items \(C,H,W\)'): get_cnn_layers(make_data(size=size), [4], conv2d)

@pytest.mark.parametrize('nfs', [[], None, [0], [8, -1], [8, 2.5], ['8']])
def test_widths_that_make_no_model(nfs):
    with pytest.raises(ValueError, match='nfs must be'): get_cnn_layers(make_data(), nfs, conv2d)

def test_number_of_classes_is_needed():
    data = make_data()
    with pytest.raises(ValueError, match='data.c is None.*c=10'):
        get_cnn_model(DataBunch(data.train_dl, data.valid_dl), [4], conv2d)

@pytest.mark.parametrize('dup', same[1:])
def test_the_model_is_copied_and_pickled(dup):
    model,x = get_cnn_model(make_data(), [4, 6], conv2d),torch.randn(3, 1, 28, 28)
    exact(dup(model)(x), model(x))

@quick
@given(st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]), st.integers(1, 30), st.integers(1, 30))
def test_the_lessons_conv2d_rounds_up(ks, stride, h, w):   # q5
    layer = conv2d(2, 3, ks, stride)
    out = layer(torch.randn(2, 2, h, w))
    assert out.shape == (2, 3, -(-h//stride), -(-w//stride)) and out.min() >= 0 and len(layer) == 2

def test_numbers_in_a_window():   # q3
    def reads(ni, ks): return nn.Conv2d(ni, 8, ks).weight[0].numel()
    assert [reads(ni, ks) for ni in (1, 3) for ks in (3, 5)] == [9, 25, 27, 75]

def test_pooling_by_window_and_by_output():
    x = torch.randn(3, 4, 2, 2)
    exact(nn.MaxPool2d(1)(x), x)
    assert nn.AdaptiveAvgPool2d(1)(x).shape == (3, 4, 1, 1)


# --- CudaCallback (q4): the device 'meta' is everywhere, and a tensor that counts its moves

def devices(run):
    state = [v for s in run.opt.state.values() for k,v in s.items() if torch.is_tensor(v) and k != 'step']
    grouped = [p for g in run.opt.param_groups for p in g['params']]
    return {str(t.device) for t in [run.xb, run.yb, *run.model.parameters(), *run.model.buffers(), *grouped, *state]}

@pytest.mark.parametrize('device', ['meta', meta])
def test_everything_is_on_the_device_in_training_and_validation(device):
    learn = flat_learner()
    run = Runner([CudaCallback(device), note := Note(devices)])
    run.fit(2, learn)
    assert note.seen == ([(True, {'meta'})]*3 + [(False, {'meta'})]*2)*2

def test_already_before_the_first_batch_and_before_other_callbacks():
    class First(Callback):
        def begin_fit(self): self.seen = {p.device for p in self.model.parameters()}
    run = Runner([CudaCallback(meta), first := First()])
    run.fit(1, flat_learner())
    assert first.seen == {meta}

OPTS = [partial(optim.SGD, lr=.1, momentum=.9), partial(optim.SGD, lr=.1, momentum=.9, foreach=True),
        partial(optim.Adam, lr=.01), partial(optim.Adam, lr=.01, foreach=True, amsgrad=True),
        partial(optim.AdamW, lr=.01, foreach=False), partial(optim.RMSprop, lr=.01)]

def kinds(state): return {k: getattr(v, 'shape', v) for k,v in state.items()}

@pytest.mark.parametrize('opt', OPTS)
@pytest.mark.parametrize('epochs_before', [0, 1])
def test_the_optimiser_follows(opt, epochs_before):
    learn = flat_learner(opt=opt)
    Runner().fit(epochs_before, learn)
    group,state = learn.opt.param_groups[0],learn.opt.state
    before = [kinds(s) for s in state.values()]
    steps = [float(s['step']) for s in state.values() if 'step' in s]
    assert len(state) == 6*epochs_before
    run = Runner([CudaCallback(meta), note := Note(devices)])
    run.fit(1, learn)   # steps, too
    assert set(map(str, (o for _,o in note.seen))) == {"{'meta'}"}
    held = learn.opt.param_groups[0]['params']
    assert len(held) == 6 and all(p is q for p,q in zip(held, learn.model.parameters(), strict=True))
    assert learn.opt.param_groups[0] is group and learn.opt.state is state
    assert [id(p) for p in state] == [id(p) for p in held]
    if not epochs_before: return
    assert [kinds(s) for s in state.values()] == before
    assert [float(s['step']) for s in state.values() if 'step' in s] == [n+3 for n in steps]

def test_several_groups_keep_their_members_and_rates():
    learn = flat_learner()
    m = learn.model
    learn.opt = optim.SGD([dict(params=[m[3].weight], lr=.5), dict(params=[m[0].bias, m[0].weight])], lr=.1)
    Runner(CudaCallback(meta)).fit(1, learn)
    a,b = learn.opt.param_groups
    assert a['params'][0] is m[3].weight and b['params'][0] is m[0].bias and b['params'][1] is m[0].weight
    assert (a['lr'], b['lr']) == (.5, .1)

def test_shared_parameters_stay_shared():
    set_seed(1)
    a,b = nn.Linear(784, 784),nn.Linear(784, 784)
    b.weight = a.weight
    model = nn.Sequential(a, b, nn.Linear(784, 10))
    learn = Learner(model, optim.SGD(model.parameters(), lr=.1), F.cross_entropy, make_data())
    Runner(CudaCallback(meta)).fit(1, learn)
    assert model[0].weight is model[1].weight and model[0].bias is not model[1].bias
    assert [id(p) for p in learn.opt.param_groups[0]['params']] == [id(p) for p in model.parameters()]

def test_the_weights_of_the_loss_come_along():
    loss = nn.CrossEntropyLoss(weight=torch.arange(1., 11.))
    learn = flat_learner(loss_func=loss)
    Runner(CudaCallback(meta)).fit(1, learn)
    assert loss.weight.device == meta
    assert [id(p) for p in learn.opt.param_groups[0]['params']] == [id(p) for p in learn.model.parameters()]

def test_a_parameter_of_the_loss_stays_in_the_optimiser():
    class Scaled(nn.Module):
        def __init__(self): super().__init__(); self.s = nn.Parameter(torch.ones(()))
        def forward(self, pred, yb): return F.cross_entropy(self.s*pred, yb)
    loss = Scaled()
    learn = flat_learner(loss_func=loss)
    learn.opt.add_param_group(dict(params=[loss.s, stranger := nn.Parameter(torch.ones(2))]))
    Runner(CudaCallback(meta)).fit(1, learn)
    held = learn.opt.param_groups[1]['params']
    assert held[0] is loss.s and held[0].device == meta and held[1] is stranger

def test_an_optimiser_with_a_state_of_its_own_kind():
    class Odd:
        param_groups,state = [],{'count': 3, 'means': torch.zeros(2)}
        def step(self): pass
        def zero_grad(self): pass
    Runner(CudaCallback(meta)).fit(1, flat_learner(opt=lambda ps: Odd()))
    assert Odd.state['count'] == 3 and Odd.state['means'].device == meta

class CountsTo(nn.Linear):
    def to(self, *args, **kw): self.moves = [*vars(self).get('moves', []), args]; return super().to(*args, **kw)

@pytest.mark.parametrize('device', [meta, torch.device('cpu')])
def test_the_model_is_moved_once(device):
    model = CountsTo(784, 10)
    run = Runner([CudaCallback(device), note := Note(lambda run: len(run.model.moves))])
    run.fit(3, Learner(model, optim.SGD(model.parameters(), lr=.1), F.cross_entropy, make_data()))
    assert model.moves == [(device,)] and {n for _,n in note.seen} == {1}

class Recorded(torch.Tensor):
    "A tensor that counts the moves of it and of what is made from it"
    moves = Counter()
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.to: cls.moves['to'] += 1
        if func in (torch.Tensor.cpu, torch.Tensor.cuda): cls.moves['other'] += 1
        return super().__torch_function__(func, types, args, kwargs or {})

@pytest.mark.parametrize('device, n', [('cpu', 0), ('meta', 10), (None, 0)])
def test_a_batch_moves_once_or_not_at_all(device, n, monkeypatch):
    monkeypatch.setattr(minifast.core, 'default_device', lambda: torch.device('cpu'))
    data = make_data()
    def recorded(dl): return [(xb.as_subclass(Recorded), yb.as_subclass(Recorded)) for xb,yb in dl]
    Recorded.moves.clear()
    learn = flat_learner(SimpleNamespace(train_dl=recorded(data.train_dl), valid_dl=recorded(data.valid_dl)))
    Runner(CudaCallback(device)).fit(1, learn)
    assert Recorded.moves == (Counter(to=n) if n else Counter())   # both tensors of 3 + 2 batches

class Same(Callback):
    "Between Same and Same.after_pred nobody has put another batch there"
    _order = -5
    def __init__(self): self.n = 0
    def begin_batch(self): self.was = self.run.xb,self.run.yb
    def after_pred(self):
        assert self.run.xb is self.was[0] and self.run.yb is self.was[1]
        self.n += 1

def test_on_the_cpu_nothing_changes():
    plain,moved = flat_learner(),flat_learner()
    params,groups = list(moved.model.parameters()),moved.opt.param_groups[0]['params']
    for learn,cbs in ((plain, []), (moved, [CudaCallback('cpu'), s := Same()])):
        set_seed(3)
        Runner(cbs).fit(2, learn)
    exact(moved.model.state_dict(), plain.model.state_dict())
    exact(moved.opt.state_dict()['state'], plain.opt.state_dict()['state'])
    assert s.n == 10 and moved.opt.param_groups[0]['params'] is groups
    assert all(p is q for p,q in zip(params, moved.model.parameters(), strict=True))

def test_data_that_live_on_the_device_are_not_copied():
    run = Runner([CudaCallback(meta), s := Same()])
    run.fit(1, flat_learner(make_data().to(meta)))
    assert s.n == 5

class Held:
    "A batch that isn't a tensor but can be moved"
    def __init__(self, x): self.x = x
    def to(self, device, **kw): return Held(self.x.to(device))
    def __len__(self): return len(self.x)

class TakesAll(nn.Module):
    def __init__(self): super().__init__(); self.lin = nn.Linear(4, 3)
    def forward(self, b): return self.lin(b['x'][0]) + self.lin(b['x'][1].x)

def test_nested_batches():
    def batch(n): return {'x': (torch.randn(n, 4), Held(torch.randn(n, 4))), 'name': 'a'},[torch.zeros(n, 3), torch.zeros(n, 3)]
    model = TakesAll()
    data = SimpleNamespace(train_dl=[batch(3), batch(2)], valid_dl=[batch(5)])
    def loss(pred, yb): return F.mse_loss(pred, yb[0] + yb[1])
    def look(run): return {str(t.device) for t in (run.xb['x'][0], run.xb['x'][1].x, *run.yb)} | {run.xb['name']}
    for device,note in ((d, Note(look)) for d in ('cpu', 'meta')):
        Runner([CudaCallback(device), note]).fit(1, Learner(model, optim.SGD(model.parameters(), lr=.1), loss, data))
        assert note.seen == [(True, {device, 'a'})]*2 + [(False, {device, 'a'})]
    assert type(data.train_dl[0][0]['x']) is tuple and data.train_dl[0][0]['x'][0].device.type == 'cpu'   # not in place

def test_the_run_gets_the_batch_not_the_callback():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        Runner(cb := CudaCallback(meta)).fit(1, flat_learner())
    assert not {'xb', 'yb', 'model', 'opt'} & set(vars(cb))

def test_the_default_is_asked_for_when_the_fit_begins(monkeypatch):
    asked = []
    monkeypatch.setattr(minifast.core, 'default_device', lambda: asked.append(1) or meta)
    run = Runner([CudaCallback(), note := Note(devices)])
    assert asked == []
    run.fit(1, flat_learner())
    assert asked == [1] and {str(o) for _,o in note.seen} == {"{'meta'}"}
    monkeypatch.setattr(minifast.core, 'default_device', lambda: torch.device('cpu'))
    run.fit(1, flat_learner())   # another machine's choice, next time
    assert {str(o) for _,o in note.seen[5:]} == {"{'cpu'}"}

def test_a_device_that_is_not_there_fails_at_the_fit():
    if torch.cuda.is_available(): pytest.skip('this machine has CUDA')
    learn,cb = flat_learner(),CudaCallback('cuda')
    with pytest.raises(RuntimeError, match="got device 'cuda', but torch finds no CUDA device here"): Runner(cb).fit(1, learn)
    cb.device = 'cpu'
    Runner(cb).fit(1, learn)

def test_a_batch_before_any_fit():
    "What `get_batch` of a later lesson does: begin_batch alone"
    run = Runner(CudaCallback(meta))
    run.xb,run.yb = torch.zeros(2, 3),torch.zeros(2)
    run('begin_batch')
    assert run.xb.device == run.yb.device == meta

@pytest.mark.parametrize('dup', same)
@pytest.mark.parametrize('fits', [0, 1])
def test_callbacks_are_copied_before_and_after_a_fit(dup, fits):
    cbs = [CudaCallback('cpu'), BatchTransformXCallback(view_tfm(784))]
    Runner(cbs).fit(fits, flat_learner())
    copies = [dup(cb) for cb in cbs]
    assert copies[0].device == 'cpu' and not any('run' in vars(cb) for cb in copies)
    Runner(copies).fit(1, flat_learner())

def test_the_same_callback_on_two_devices_in_turn():
    cb,note = CudaCallback('cpu'),Note(devices)
    run = Runner([cb, note])
    run.fit(1, flat_learner())
    cb.device = 'meta'
    run.fit(1, flat_learner())
    assert {str(o) for _,o in note.seen[:5]} == {"{'cpu'}"} and {str(o) for _,o in note.seen[5:]} == {"{'meta'}"}

def test_the_sweep_of_the_rates_leaves_no_trace_beside_it():
    learn = flat_learner()
    before = copy.deepcopy(learn.model.state_dict())
    Runner([LR_Find(max_iter=5), CudaCallback('cpu')]).fit(1, learn)
    exact(learn.model.state_dict(), before)

class Mapped(nn.Linear):
    "Its register of parameters is a mapping, and no dict"
    def __init__(self):
        super().__init__(6, 6)
        vars(self)['_parameters'] = UserDict(self._parameters)

@pytest.mark.filterwarnings('ignore')   # PyTorch's own, about scripts and in its compiler
@pytest.mark.parametrize('device', ['cpu', 'meta'])
@pytest.mark.parametrize('part', [Mapped, lambda: torch.jit.script(nn.Linear(6, 6)),
                                  lambda: torch.jit.trace(nn.Linear(6, 6), torch.randn(2, 6)),
                                  lambda: torch.compile(nn.Linear(6, 6), backend='eager')],
                         ids=['mapping', 'script', 'trace', 'compiled'])
def test_modules_whose_parameters_are_no_dict(part, device):
    "They move, and the optimiser still holds what the model holds"
    model = nn.Sequential(nn.Linear(6, 6), part(), nn.Linear(6, 3))
    opt = optim.SGD(model.parameters(), lr=.1, momentum=.9)
    dl = [(torch.randn(8, 6), torch.randint(0, 3, (8,)))]*2
    Runner(CudaCallback(device)).fit(1, Learner(model, opt, F.cross_entropy, DataBunch(dl, None)))
    ps = list(model.parameters())
    assert {p.device.type for p in ps} == {device} and [id(p) for p in opt.param_groups[0]['params']] == [id(p) for p in ps]

@pytest.mark.parametrize('x, kind', [([torch.zeros(5)], 'list'), (None, 'NoneType'), ('ab', 'str'), (torch.zeros(()), 'Tensor')])
def test_items_that_are_no_pictures_are_told_by_kind(x, kind):
    data = SimpleNamespace(train_ds=[(x, 0)], c=3)
    with pytest.raises(ValueError, match=rf'a CNN needs items .*got a {kind} of shape \(\): reshape'): get_cnn_model(data, [4], conv2d)

def test_a_batch_that_is_there_already_is_not_moved(monkeypatch):
    "That costs a comparison of devices: nothing is called, and the run keeps the same tensors"
    run = Runner(cb := CudaCallback('cpu'))
    run.fit(1, flat_learner())
    x,y = run.xb,run.yb = torch.zeros(4, 2),torch.zeros(4)
    def moves(*args, **kw): raise AssertionError('moved')
    monkeypatch.setattr(minifast.cnn, 'to_device', moves)
    for k in ('to', 'cpu', 'cuda'): monkeypatch.setattr(torch.Tensor, k, moves)
    cb.begin_batch()
    assert run.xb is x and run.yb is y
    run.yb = [y]   # of a list it can't be known: it is asked to move
    with pytest.raises(AssertionError, match='moved'): cb.begin_batch()

mps = pytest.mark.skipif(not torch.backends.mps.is_available(), reason='no MPS device on this machine')

@pytest.mark.parametrize('device', [pytest.param('cuda', marks=gpu), pytest.param('mps', marks=mps)])
def test_an_accelerator_gives_the_cpus_losses_without_a_copy_a_batch(device):
    def losses(data, device):
        set_seed(1)
        learn,run = get_runner(get_cnn_model(data, [4, 6], conv2d), data, .1,
                               [CudaCallback(device), s := Same(), AvgStatsCallback(accuracy), partial(BatchTransformXCallback, mnist_view)])
        s.after_pred = lambda: None
        run.logger = lambda cells: None
        run.fit(1, learn)
        assert next(learn.model.parameters()).device.type == device
        return [run.avg_stats.history[0][k] for k in ('train_loss', 'valid_loss')]
    data = make_data(2000, bs=64)
    want = losses(data, 'cpu')
    assert_close(losses(data, device), want, rtol=0, atol=1e-3)
    resident = data.to(device)
    run = Runner([CudaCallback(device), s := Same()])
    run.fit(1, flat_learner(resident))
    assert s.n == len(resident.train_dl) + len(resident.valid_dl)

@gpu
def test_the_state_of_adam_on_cuda_as_load_state_dict_places_it():
    learn = flat_learner(opt=partial(optim.Adam, lr=.01))
    Runner().fit(1, learn)
    Runner(CudaCallback('cuda')).fit(1, learn)
    for s in learn.opt.state.values(): assert s['exp_avg'].is_cuda and not s['step'].is_cuda


# --- BatchTransformXCallback (q6)

def shapes(run): return tuple(run.xb.shape)

@pytest.mark.parametrize('tfm', [mnist_view, view_tfm(1, 28, 28)])
def test_batches_become_pictures(tfm):
    data = make_data()
    model = get_cnn_model(data, [4], conv2d)
    rows,labels = data.train_ds.x.clone(),Note(lambda run: tuple(run.yb.shape))
    run = Runner([note := Note(shapes), labels, BatchTransformXCallback(tfm)])
    run.fit(1, Learner(model, optim.SGD(model.parameters(), lr=.1), F.cross_entropy, data))
    sizes = [(True, 8), (True, 8), (True, 6), (False, 16), (False, 3)]   # the short last batches too
    assert note.seen == [(t, (n, 1, 28, 28)) for t,n in sizes] and labels.seen == [(t, (n,)) for t,n in sizes]
    exact(data.train_ds.x, rows)

@pytest.mark.parametrize('turn', [1, -1])
def test_it_comes_after_the_move(turn):
    seen = []
    def tfm(x): seen.append(x.device); return x
    Runner([CudaCallback(meta), BatchTransformXCallback(tfm)][::turn]).fit(1, flat_learner())
    assert set(seen) == {meta} and len(seen) == 5
    assert CudaCallback._order < BatchTransformXCallback._order == 2

def test_the_same_values_as_transforming_the_data():
    data = make_data()
    def train(data, cbs):
        set_seed(2)
        model = get_cnn_model(data, [4, 6], conv2d)
        Runner(cbs).fit(1, Learner(model, optim.SGD(model.parameters(), lr=.1), F.cross_entropy, data))
        return model.state_dict()
    def pictures(dl): return Dataset(mnist_view(dl.dataset.x), dl.dataset.y)
    ready = DataBunch(*get_dls(pictures(data.train_dl), pictures(data.valid_dl), 8), 10)
    assert_close(train(data, [BatchTransformXCallback(mnist_view)]), train(ready, []))

def test_cancelled_batches_are_transformed_afresh():
    class Skip(Callback):
        _order = 5
        def begin_batch(self):
            if self.iter == 0 and self.in_train: raise CancelBatchException
    data = make_data()
    model = get_cnn_model(data, [4], conv2d)
    run = Runner([Skip(), BatchTransformXCallback(mnist_view), note := Note(shapes)])
    run.fit(1, Learner(model, optim.SGD(model.parameters(), lr=.1), F.cross_entropy, data))
    assert [s[0] for _,s in note.seen] == [8, 6, 16, 3]

@pytest.mark.parametrize('tfm', [mnist_view, view_tfm(1, 28, 28)])
def test_it_pickles_with_what_data_offers(tfm):
    cb = pickle.loads(pickle.dumps(BatchTransformXCallback(tfm)))
    assert cb.tfm(torch.zeros(3, 784)).shape == (3, 1, 28, 28)

@pytest.mark.parametrize('bad', [None, (1, 28, 28), torch.zeros(2, 784)])
def test_a_transformation_must_be_a_function(bad):
    with pytest.raises(TypeError, match=rf'got {type(bad).__name__}: try view_tfm\(1, 28, 28\)'): BatchTransformXCallback(bad)


# --- get_runner (q8)

class Tick(Callback):
    def __init__(self, log=None, name='tick'): self.log,self.who = log,name
    def begin_fit(self): self.log is not None and self.log.append(self.who)

def lin(): return nn.Sequential(nn.Linear(784, 5), nn.ReLU(), nn.Linear(5, 10))

def test_learner_and_runner():
    model,data = lin(),make_data()
    learn,run = get_runner(model, data, .3)
    assert type(learn) is Learner and type(run) is Runner
    assert learn.model is model and learn.data is data and learn.loss_func is F.cross_entropy
    (group,) = learn.opt.param_groups
    assert type(learn.opt) is optim.SGD and group['lr'] == .3 and group['foreach'] and group['momentum'] == 0
    assert [id(p) for p in group['params']] == [id(p) for p in model.parameters()]
    assert get_runner(model, data)[0].opt.param_groups[0]['lr'] == .6

def test_own_optimiser_and_loss():
    opt_func = partial(optim.AdamW, weight_decay=.5)
    learn,run = get_runner(lin(), make_data(), 2e-3, opt_func=opt_func, loss_func=(loss := nn.CrossEntropyLoss()))
    group = learn.opt.param_groups[0]
    assert type(learn.opt) is optim.AdamW and (group['lr'], group['weight_decay']) == (2e-3, .5)
    assert learn.loss_func is loss
    run.fit(1, learn)

def test_classes_are_called_anew_and_instances_kept():
    mine = AvgStatsCallback(accuracy)
    cbs = [mine, CudaCallback, partial(BatchTransformXCallback, view_tfm(784)), Tick]
    before = list(cbs)
    (a,ra),(b,rb) = (get_runner(lin(), make_data(), .1, cbs) for _ in range(2))
    assert cbs == before and ra.avg_stats is mine
    shared = {id(o) for o in ra.cbs} & {id(o) for o in rb.cbs}
    assert shared == {id(mine)} and a.opt is not b.opt
    no_instances = [get_runner(lin(), make_data(), .1, cbs[1:])[1].cbs for _ in range(2)]
    assert not {id(o) for o in no_instances[0]} & {id(o) for o in no_instances[1]}
    assert ra.cuda and ra.batch_transform_x.tfm.size == (784,)

def test_order_of_equals_is_the_order_given():
    log = []
    mixed = [partial(Tick, log, 'a'), Tick(log, 'b'), partial(Tick, log, 'c'), Tick(log, 'd')]
    learn,run = get_runner(lin(), make_data(), .1, mixed)
    run.fit(1, learn)
    assert log == list('abcd')

@pytest.mark.parametrize('cbs, n', [(None, 0), ([], 0), (Tick, 1), (Tick(), 1), ((Tick, Tick), 2), (partial(Tick), 1)])
def test_none_one_or_several_callbacks(cbs, n):
    learn,run = get_runner(lin(), make_data(), .1, cbs)
    assert sum(isinstance(o, Tick) for o in run.cbs) == n
    assert sum(isinstance(o, TrainEvalCallback) for o in run.cbs) == 1
    run.fit(1, learn)

def test_an_instance_that_can_be_called_is_not():
    class Callable(Tick):
        def __call__(self): raise AssertionError('called')
    _,run = get_runner(lin(), make_data(), .1, [cb := Callable()])
    assert run.cbs[-1] is cb

def test_one_train_eval_callback_if_a_class_is_given():
    _,run = get_runner(lin(), make_data(), .1, TrainEvalCallback)
    assert len(run.cbs) == 1

@pytest.mark.parametrize('bad', [3, 'recorder', [Tick, None]])
def test_what_makes_no_callback(bad):
    with pytest.raises(TypeError, match='cbs takes callbacks'): get_runner(lin(), make_data(), .1, bad)

def test_a_model_without_parameters():
    made = []
    with pytest.raises(ValueError, match='Sequential has no parameters, so nothing to train'):
        get_runner(nn.Sequential(nn.ReLU(), Lambda(flatten)), make_data(), opt_func=lambda *a, **k: made.append(a))
    assert made == []

def test_an_epoch_lowers_the_loss():
    set_seed(0)
    x,y = torch.randn(512, 784),torch.arange(512) % 10
    ds = Dataset(x + F.one_hot(y, 784)*6, y)
    learn,run = get_runner(lin(), DataBunch(*get_dls(ds, ds, 32), 10), .1, [CudaCallback('cpu')])
    before = F.cross_entropy(learn.model(ds.x), y).item()
    run.fit(1, learn)
    assert F.cross_entropy(learn.model(ds.x), y).item() < before - .1

@pytest.mark.parametrize('opt_func', [None, partial(optim.SGD, momentum=.9), optim.Adam])
def test_the_whole_against_a_loop_in_plain_pytorch(opt_func):
    data = make_data(40, dtype=torch.float64)
    set_seed(1)
    ours = get_cnn_model(data, [4, 6], conv2d).double()
    theirs = copy.deepcopy(ours)
    set_seed(2)
    learn,run = get_runner(ours, data, .05, [CudaCallback('cpu'), partial(BatchTransformXCallback, mnist_view)], opt_func)
    run.fit(2, learn)
    set_seed(2)
    opt = (opt_func or optim.SGD)(theirs.parameters(), lr=.05)
    for _ in range(2):
        for i in torch.randperm(40).split(8):
            opt.zero_grad()
            F.cross_entropy(theirs(data.train_ds.x[i].view(-1, 1, 28, 28)), data.train_ds.y[i]).backward()
            opt.step()
    assert_close(ours.state_dict(), theirs.state_dict())


# --- the lesson's small versions

def weights(model, data, *cbs):
    "What two epochs make of `model`"
    set_seed(7)
    run = quiet(*cbs)
    run.fit(2, Learner(model, optim.SGD(model.parameters(), lr=.1, momentum=.9), F.cross_entropy, data))
    return list(model.parameters())

def test_the_small_cnn_trains_to_the_weights_of_the_exported_one_bit_by_bit():
    data = blobs(200, 100)
    set_seed(1)
    by_hand = small('06_cuda_cnn', 'small_cnn')()
    set_seed(1)
    one_line = get_cnn_model(data, [8, 16, 32, 32], conv2d)
    exact(list(by_hand.parameters()), list(one_line.parameters()))
    start = [p.detach().clone() for p in by_hand.parameters()]
    got = weights(by_hand, data)
    exact(got, weights(one_line, data, BatchTransformXCallback(mnist_view)))
    assert not any(p.equal(q) for p,q in zip(got, start))
    found,x = [],torch.randn(2, 784)
    for m in by_hand:
        x = m(x)
        if isinstance(m, nn.Conv2d): found.append((*x.shape[1:],))
    assert found == [(8, 14, 14), (16, 7, 7), (32, 4, 4), (32, 2, 2)]

def test_small_cuda_moves_as_the_exported_one_but_for_the_optimiser():
    SmallCuda,data = small('06_cuda_cnn', 'SmallCuda'),blobs(200, 100)
    models = [get_cnn_model(data, [4, 6], conv2d)]
    models += [copy.deepcopy(models[0]) for _ in range(2)]
    view = partial(BatchTransformXCallback, mnist_view)
    got = [weights(m, data, view(), *cbs) for m,cbs in zip(models, ([], [SmallCuda('cpu')], [CudaCallback('cpu')]))]
    exact(got[0], got[1]); exact(got[0], got[2])
    for cls,follows in ((SmallCuda, False), (CudaCallback, True)):
        learn = flat_learner()
        run = Runner([cls('meta'), note := Note(lambda run: (run.xb.device.type, run.yb.device.type))])
        run.fit(1, learn)
        assert note.seen == [(True, ('meta', 'meta'))]*3 + [(False, ('meta', 'meta'))]*2
        held,now = learn.opt.param_groups[0]['params'],list(learn.model.parameters())
        assert [p is q for p,q in zip(held, now, strict=True)] == [follows]*6
