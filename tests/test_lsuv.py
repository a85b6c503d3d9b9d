"Lesson 07a. Mean and std are measured here by hooks of PyTorch's own on a run of the whole model"
import copy
import random
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

from helpers import assert_same, blobs, image_cbfs as cbfs, randomness, saved, small
from minifast.callback import Callback
from minifast.cnn import BatchTransformXCallback, CudaCallback, Lambda, flatten
from minifast.core import set_seed
from minifast.data import DataLoader, mnist_view
from minifast.hook_callbacks import ActivationStats
from minifast.hooks import Hooks, append_stats, get_min, leaked_hooks
from minifast.init import GeneralRelu, conv_layer, get_learn_run, init_cnn
from minifast.learner import Learner
from minifast.lsuv import ConvLayer, LSUVReport, find_modules, get_batch, is_lin_layer, lsuv_init, lsuv_module
from minifast.runner import Runner
from minifast.sched import LR_Find, ParamScheduler, Recorder, sched_lin


def measured(model, ms, xb):
    "[(mean, std)] of what `ms` give in evaluation mode"
    seen, was = {}, [(m, m.training) for m in model.modules()]
    def note(m, i, o): seen.setdefault(m, (o.double().mean().item(), o.double().std().item()))
    hs = [m.register_forward_hook(lambda *a: note(*a)) for m in ms]
    model.eval()
    with torch.no_grad(): model(xb)
    for h in hs: h.remove()
    for m, t in was: m.training = t
    return [seen[m] for m in ms]

def all_well(model, ms, xb, tol=1e-3):
    return all(abs(m) < tol and abs(s - 1) < tol for m, s in measured(model, ms, xb))

def net(*more, nfs=(1, 8, 12, 16), **kw):
    "ConvLayers and a head"
    convs = [ConvLayer(a, b, 3, 2, **kw) for a, b in zip(nfs, nfs[1:])]
    return nn.Sequential(*convs, *more, nn.AdaptiveAvgPool2d(1), Lambda(flatten), nn.Linear(nfs[-1], 5))

def conv_layers(m): return find_modules(m, lambda o: isinstance(o, ConvLayer))
def mendable(m): return find_modules(m, lambda o: isinstance(o, ConvLayer) or is_lin_layer(o))
def snapshot(m): return {k: v.clone() for k, v in m.state_dict().items()}
def same(m, was): return all(v.equal(was[k]) for k, v in m.state_dict().items())
def finite(m): return all(t.isfinite().all() for t in m.state_dict().values())

@pytest.fixture
def xb(): return torch.randn(32, 1, 20, 17)*.8 + .3


# --- the lesson's small version

def deep(act, depth=20): # the lesson's net, narrower
    return nn.Sequential(*[o for _ in range(depth) for o in (nn.Linear(40, 40), act())], nn.Linear(40, 10))

@pytest.mark.parametrize('act', [nn.SiLU, nn.GELU, nn.ReLU, nn.Tanh])
def test_the_small_version_on_a_deep_net(act):
    small_lsuv = small('07a_lsuv', 'small_lsuv')
    m, x = deep(act), torch.randn(200, 40)*3 + 1
    twin = copy.deepcopy(m)
    small_lsuv(m, m[::2], x)
    assert all_well(m, m[::2], x) and not any(o._forward_hooks for o in m.modules())
    assert {r.why for r in lsuv_init(twin, x)} == {'ok'}
    for a, b in zip(m[::2], twin[::2]): assert_close(a.weight, b.weight, rtol=1e-3, atol=1e-5)
    rep = lsuv_init(m, x)
    assert {r.iterations for r in rep} == {0}

def test_the_small_version_on_the_blocks_of_the_lesson(xb):
    "Convolutions of which each has a bias of its own"
    m = nn.Sequential(*[conv_layer(a, b, leak=.1, sub=.4) for a, b in zip((1, 8, 16, 32, 64), (8, 16, 32, 64, 64))])
    small('07a_lsuv', 'small_lsuv')(m, [o[0] for o in m], xb)
    assert all_well(m, [o[0] for o in m], xb)


# --- ConvLayer

@pytest.mark.parametrize('kw', [{}, dict(sub=.4), dict(sub=.4, leak=.1, maxv=2.), dict(leak=.2)])
def test_conv_layer_is_convolution_and_activation(kw):
    m, x = ConvLayer(2, 4, 5, 2, **kw), torch.randn(3, 2, 9, 12)
    z = F.conv2d(x, m.conv.weight, m.conv.bias, 2, 2)
    want = GeneralRelu(kw.get('leak'), kw.get('sub'), kw.get('maxv'))(z)
    assert_close(m(x), want, rtol=0, atol=0)
    assert m(x).shape == (3, 4, 5, 6) and m.weight is m.conv.weight
    assert_close(m.bias, torch.tensor(-kw.get('sub', 0.)))
    m(x).sum().backward()
    assert m.conv.weight.grad.any() and m.conv.bias.grad.any()

def test_conv_layer_defaults_and_errors():
    m = ConvLayer(1, 8)
    assert m(torch.zeros(1, 1, 7, 7)).shape == (1, 8, 4, 4) and m.bias == 0
    with pytest.raises(TypeError, match='lesk'): ConvLayer(1, 8, lesk=.1)
    assert 'GeneralRelu(leak=None, sub=0.4, maxv=None)' in repr(ConvLayer(1, 8, sub=.4))

def test_bias_can_be_set_as_in_2019():
    m, x = ConvLayer(1, 4, sub=.4), torch.randn(2, 1, 8, 8)
    before = m(x)
    m.bias -= .25
    assert_close(m(x), before - .25); assert_close(m.bias.item(), -.65)
    m.weight.data /= 2.
    m.bias = nn.Parameter(torch.tensor(1.)).detach()
    assert m.bias == 1 and not m.relu.sub.requires_grad

def test_the_shift_is_saved_copied_and_moved():
    m, x = ConvLayer(1, 4, sub=.4, leak=.1), torch.randn(2, 1, 8, 8)
    m.bias = .123
    assert sorted(m.state_dict()) == ['conv.bias', 'conv.weight', 'relu.sub']
    again = ConvLayer(1, 4, leak=.1)
    again.load_state_dict(m.state_dict())
    for o in (again, copy.deepcopy(m)): assert o(x).equal(m(x))
    assert m.double()(x.double()).dtype is torch.float64 and m.to('meta').bias.is_meta

def test_init_cnn_and_dead_units_know_it():
    m = init_cnn(ConvLayer(8, 64, leak=1.))
    assert_close(m.weight.std().item(), 72**-.5, rtol=.05, atol=0)   # slope 1: gain 1
    m = ConvLayer(1, 4, sub=.4)
    m.conv.bias.detach().fill_(-100.)
    with Hooks([m], append_stats) as hooks: m(torch.randn(8, 1, 8, 8))
    assert get_min(hooks[0]).item() == 1


# --- find_modules, is_lin_layer

def test_find_modules():
    shared = nn.Linear(3, 3)
    m = nn.Sequential(ConvLayer(1, 2), nn.ModuleList([shared, nn.ReLU()]), nn.ModuleDict({'a': shared}))
    assert find_modules(m, is_lin_layer) == [m[0].conv, shared]
    assert find_modules(m, lambda o: isinstance(o, ConvLayer)) == [m[0]]
    assert mendable(m) == [m[0], shared] and find_modules(m, lambda o: True) == [m]
    assert find_modules(shared, is_lin_layer) == [shared] and find_modules(m, lambda o: False) == []

def test_is_lin_layer():
    yes = nn.Linear(1, 1), nn.Conv1d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.Conv3d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1)
    no = nn.ReLU(), nn.BatchNorm2d(1), nn.Embedding(2, 2), nn.Sequential(nn.Linear(1, 1)), GeneralRelu()
    assert all(map(is_lin_layer, yes)) and not any(map(is_lin_layer, no))


# --- get_batch

@pytest.fixture(scope='module')
def data(): return blobs(300, 100)

def state(run): return {k: v for k, v in vars(run).items() if k not in ('cbs', '_on')}

@pytest.mark.parametrize('fitted', (False, True))
def test_get_batch(data, fitted):
    cbs = [*cbfs, CudaCallback, Recorder, partial(ParamScheduler, 'lr', sched_lin(.1, .9)), partial(LR_Find, 5)]
    learn, run = get_learn_run([4], data, .3, ConvLayer, cbs=cbs[:-1] if fitted else cbs)
    if fitted: run.logger = lambda row: None; run.fit(1, learn)
    was, of_cbs = state(run), [dict(vars(cb)) for cb in run.cbs]
    lr, rng = learn.opt.param_groups[0]['lr'], torch.get_rng_state()
    xb, yb = get_batch(data.train_dl, run)
    assert xb.shape == (50, 1, 28, 28) and yb.shape == (50,)
    assert state(run) == was and [dict(vars(cb)) for cb in run.cbs] == of_cbs
    assert learn.opt.param_groups[0]['lr'] == lr and torch.get_rng_state().equal(rng)
    assert get_batch(data.train_dl, run)[1].equal(yb)   # the loader's order hasn't moved on
    run.logger = lambda row: None
    if fitted: run.fit(1, learn)

def test_get_batch_own_generator_order_and_errors(data):
    g = torch.Generator(); g.manual_seed(3)
    was = g.get_state()
    class Twice(Callback):
        _order = 3
        def begin_batch(self): self.run.xb = self.run.xb*2; self.seen = True
    run = Runner([Twice(), BatchTransformXCallback(mnist_view)])
    xb, yb = get_batch(DataLoader(data.train_ds, 20, shuffle=True, generator=g), run)
    assert g.get_state().equal(was) and xb.shape == (20, 1, 28, 28) and 'seen' not in vars(run.cbs[1])
    first = get_batch(data.valid_dl, run)
    assert_close(first[0], 2*mnist_view(data.valid_ds.x[:100])); assert first[1].equal(data.valid_ds.y[:100])
    with pytest.raises(ValueError, match='no batch'): get_batch([], run)
    class Bad(Callback):
        def begin_batch(self): raise RuntimeError('boom')
    rng = torch.get_rng_state()
    with pytest.raises(RuntimeError, match='boom'): get_batch(data.train_dl, Runner([Bad()]))
    assert torch.get_rng_state().equal(rng)


# --- what LSUV reaches

ACTS = [{}, dict(sub=.4), dict(leak=.1, sub=.4), dict(leak=1.), dict(maxv=3.), dict(leak=.1, sub=.4, maxv=6.)]

@pytest.mark.parametrize('kw', ACTS, ids=str)
@pytest.mark.parametrize('start', ['default', 'kaiming', 'huge', 'tiny', 'orthonormal', 'shifted'])
def test_every_layer_on_the_batch(kw, start, xb):
    m = net(**kw)
    if start == 'kaiming': init_cnn(m)
    factor = {'huge': 3. if 'maxv' in kw else 1e6, 'tiny': 1e-3 if 'sub' in kw else 1e-12}.get(start, 1.)
    for o in conv_layers(m):
        o.weight.detach().mul_(factor); o.conv.bias.detach().mul_(factor)
        if start == 'shifted': o.bias = 1. if 'maxv' in kw else 7.
    rep = lsuv_init(m, xb, orthonormal=start == 'orthonormal')
    assert all_well(m, mendable(m), xb) and finite(m)
    assert isinstance(rep, LSUVReport) and [r.why for r in rep] == ['ok']*4 and rep.failed == []
    assert all(r.iterations == 1 for r in rep) or 'maxv' in kw or start in ('huge', 'shifted')
    for r, (mean, std) in zip(rep, measured(m, mendable(m), xb)):
        assert_close(torch.tensor(r.after), torch.tensor((mean, std)), rtol=1e-5, atol=1e-5)

def test_one_step_is_exact_for_homogeneous_activations(xb):
    for kw in ACTS[:4]:
        m = net(**kw)
        lsuv_init(m, xb, max_iter=1)
        assert all_well(m, conv_layers(m), xb, 1e-5)

@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 6), st.integers(1, 12), st.sampled_from([1, 3, 5]), st.floats(0, 1),
       st.floats(-2, 2), st.sampled_from([None, 2.5, 6.]), st.floats(-6, 6))
def test_any_net(seed, depth, nf, ks, leak, sub, maxv, scale):
    set_seed(seed)
    m = nn.Sequential(*[ConvLayer(nf if i else 2, nf, ks, 1, sub=sub, leak=leak, maxv=maxv) for i in range(depth)])
    for p in m.parameters(): p.detach().mul_(10**scale)
    x, was = torch.randn(16, 2, 7, 6), copy.deepcopy(m)
    rep = lsuv_init(m, x)
    assert finite(m) and len(rep) == depth and all(r.iterations <= 20 for r in rep)
    good = [o for o, r in zip(m, rep) if r.why == 'ok']
    assert all(abs(a) < 1e-3 and abs(s - 1) < 1e-3 for a, s in measured(m, good, x))
    for o, p, r in zip(m, was, rep):
        assert r.why in ('ok', 'limit', 'dead') and (r.why == 'ok' or same(o, p.state_dict()))
    if maxv is None and leak > .01 and scale > -2: assert rep.failed == []   # else rounding may hide the signal

LAYERS = [(nn.Linear(6, 9), (20, 6)), (nn.Conv1d(3, 4, 3), (5, 3, 11)), (nn.Conv3d(2, 3, 2), (3, 2, 4, 5, 6)),
          (nn.ConvTranspose2d(3, 4, 3, 2), (4, 3, 5, 6)), (nn.Conv2d(4, 6, 3, groups=2, dilation=2), (3, 4, 9, 8))]

@pytest.mark.parametrize('layer, size', LAYERS, ids=lambda o: str(o)[:20])
@pytest.mark.parametrize('orthonormal', (False, True))
def test_every_kind_of_layer(layer, size, orthonormal):
    m, x = nn.Sequential(copy.deepcopy(layer), nn.ReLU(inplace=True)), torch.randn(size)*3 + 1
    seen = []
    lsuv_init(m, x, orthonormal=orthonormal)
    h = m[0].register_forward_hook(lambda mod, i, o: seen.append((o.mean().item(), o.std().item())))
    m(x); h.remove()
    assert abs(seen[0][0]) < 1e-5 and abs(seen[0][1] - 1) < 1e-5

def test_orthonormal_rows_are_those_of_the_paper(xb):
    m = net()
    lsuv_init(m, xb, orthonormal=True, shift=False)
    for o in conv_layers(m)[1:]:
        w = o.weight.detach().flatten(1)
        gram = w @ w.T
        assert_close(gram/gram[0, 0], torch.eye(len(w)), rtol=0, atol=1e-5)

def test_variance_only_leaves_the_shift_a_scale(xb):
    m, twin = net(sub=.4), None
    twin = copy.deepcopy(m)
    rep = lsuv_init(m, xb, shift=False)
    assert all(abs(s - 1) < 1e-3 for _, s in measured(m, mendable(m), xb)) and rep.failed == []
    assert max(abs(a) for a, _ in measured(m, mendable(m), xb)) > .05
    s = twin[0](xb).std()
    assert_close(m[0](xb), twin[0](xb)/s)   # the first layer: all divided by one number

def test_a_bounded_activation_takes_a_loop(xb):
    m = net(maxv=2., sub=.4)
    rep = lsuv_init(m, xb)
    assert all_well(m, mendable(m), xb) and max(r.iterations for r in rep) > 1
    assert all_well(m, mendable(m), xb, .51e-3)   # half the tolerance is aimed at, so that a second run is quiet

def test_other_dtypes(xb):
    m = net().double()
    lsuv_init(m, xb.double())
    assert all_well(m, mendable(m), xb.double(), 1e-9) and m[0].bias.dtype is torch.float64
    for dtype in (torch.bfloat16, torch.float16):
        m = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 20)).to(dtype)
        rep = lsuv_init(m, torch.randn(64, 30).to(dtype), tol=.02, orthonormal=True)
        assert rep.failed == [] and m[0].weight.dtype is dtype and finite(m)

def test_a_mean_far_from_zero():
    x = torch.randn(64, 1, 12, 12)*.1 + 1000
    m = nn.Sequential(ConvLayer(1, 4), ConvLayer(4, 4))
    rep = lsuv_init(m, x)
    assert finite(m) and rep.failed == [] and all_well(m, list(m), x)


# --- the report

def test_the_report(xb):
    m = net(sub=.1)
    names = ['0 (ConvLayer)', '1 (ConvLayer)', '2 (ConvLayer)', '5 (Linear)']
    first = measured(m, [m[0]], xb)[0]
    rep = lsuv_init(m, xb)
    assert [r.name for r in rep] == names and rep[0]._fields == ('name', 'before', 'after', 'iterations', 'why')
    assert_close(torch.tensor(rep[0].before), torch.tensor(first), rtol=1e-5, atol=1e-6)
    lines = repr(rep).splitlines()
    assert len(lines) == 6 and all(a in b for a, b in zip(names, lines[2:])) and 'why it stopped' in lines[0]
    assert 'steps' in repr(LSUVReport([])) and len(rep[:2]) == 2

def test_which_layers(xb):
    m = net()
    was = snapshot(m[1])
    for layers in ([m[0], m[2]], (m[0], m[2], m[0]), lambda o: o in (m[0], m[2])):
        rep = lsuv_init(m, xb, layers)
        assert [r.name for r in rep] == ['0 (ConvLayer)', '2 (ConvLayer)'] and same(m[1], was)
    assert [r.name for r in lsuv_init(m, xb, m[0])] == ['0 (ConvLayer)']
    assert [r.name for r in lsuv_init(m[0], xb)] == ['(ConvLayer)']
    assert len(lsuv_init(m, xb, [])) == 0

def test_order_is_that_of_the_calls():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first, self.idle = nn.Linear(8, 4), nn.Linear(6, 8), nn.Linear(2, 2)
        def forward(self, x): return self.last(torch.tanh(self.first(x)))
    m, x = Backwards(), torch.randn(40, 6)
    rep = lsuv_init(m, x)
    assert [(r.name.split()[0], r.why) for r in rep] == [('first', 'ok'), ('last', 'ok'), ('idle', 'never called')]
    assert all_well(m, [m.first, m.last], x) and rep.failed == [rep[2]] and rep[2].before[0] != rep[2].before[0]

def test_a_learner_will_do(data):
    learn, run = get_learn_run([4, 8], data, .3, ConvLayer, cbs=cbfs)
    xb, _ = get_batch(data.train_dl, run)
    assert lsuv_init(learn, xb).failed == [] and all_well(learn.model, mendable(learn.model), xb)
    for bad in (3, Learner(None, None, None, None)):
        with pytest.raises(TypeError, match='give a module or a Learner'): lsuv_init(bad, xb)
    run.logger = lambda row: None
    run.fit(2, learn)
    assert run.avg_stats.history[-1]['valid_accuracy'] > .5

@pytest.mark.parametrize('kw', [dict(tol=0), dict(tol=-1.), dict(max_iter=0), dict(tol=float('nan'))], ids=str)
def test_settings_that_make_no_sense(kw, xb):
    m = net(); was = snapshot(m)
    with pytest.raises(ValueError, match='tol must be above 0 and max_iter at least 1'): lsuv_init(m, xb, **kw)
    assert same(m, was)
    with pytest.raises(TypeError, match='got str: give a module'): lsuv_init(m, xb, [m[0], 'no module'])
    assert not m[0]._forward_hooks and same(m, was)


# --- a second run, and copies

@pytest.mark.parametrize('kw', ACTS, ids=str)
@pytest.mark.parametrize('orthonormal', (False, True))
def test_a_second_run_changes_nothing(kw, orthonormal, xb):
    m = net(nn.Dropout(), **kw)
    lsuv_init(m, xb, orthonormal=orthonormal)
    was = snapshot(m)
    rep = lsuv_init(m, xb, orthonormal=orthonormal)
    assert same(m, was)
    assert [r.iterations for r in rep] == [0]*4 and all(r.before == r.after for r in rep)

@pytest.mark.parametrize('kw', ACTS, ids=str)
def test_a_state_dict_gives_the_same_bits(kw, xb):
    m, fresh = net(**kw), net(**kw)
    lsuv_init(m, xb)
    fresh.load_state_dict(saved(m.state_dict(), weights_only=True))
    assert fresh(xb).equal(m(xb)) and copy.deepcopy(m)(xb).equal(m(xb))
    assert fresh[0].bias.equal(m[0].bias)


def test_a_mean_alone_is_mended(xb):
    m = net()
    lsuv_init(m, xb)
    m[1].bias = .5
    assert [r.iterations for r in lsuv_init(m, xb)] == [0, 1, 0, 0] and all_well(m, mendable(m), xb)


# --- what can't be mended

def by_name(rep): return {r.name.split()[0]: r.why for r in rep}

def test_dead_layers_keep_their_own_and_the_others_are_mended(xb):
    m = net(sub=.4)
    m[1].conv.weight.detach().zero_(); m[1].conv.bias.detach().fill_(-1.)   # nothing gets through the ReLU
    was = snapshot(m[1])
    rep = lsuv_init(m, xb)
    assert by_name(rep) == {'0': 'ok', '1': 'dead', '2': 'dead', '5': 'dead'} and same(m[1], was)
    assert rep[1].iterations == 0 and rep[1].after == rep[1].before and len(rep.failed) == 3
    with pytest.raises(ValueError, match=r'1 \(ConvLayer\) could not be mended \(dead\): .*same for every item'):
        lsuv_module(m, m[1], xb)
    assert same(m[1], was) and finite(m) and not m[1]._forward_hooks
    assert by_name(lsuv_init(m, xb, orthonormal=True))['1'] == 'ok'   # new weights

def test_a_constant_input_is_no_signal():
    m, x = net(), torch.full((8, 1, 12, 12), 3.)
    was = snapshot(m)
    assert set(by_name(lsuv_init(m, x)).values()) == {'dead'} and same(m, was)
    one = lsuv_init(m, torch.randn(1, 1, 12, 12))   # a batch of one can't be compared with another item
    assert one.failed == [] and finite(m)
    m[0].conv.weight.detach().zero_(); m[0].conv.bias.detach().fill_(2.)   # but here all its numbers are equal
    assert by_name(lsuv_init(m, torch.randn(1, 1, 12, 12)))['0'] == 'dead' and m[0].conv.bias.eq(2).all()

@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_nan_inputs(bad, xb):
    m = net(); was = snapshot(m)
    xb[3, 0, 2, 2] = bad
    rep = lsuv_init(m, xb)
    assert {r.why for r in rep} <= {'nan input'} and same(m, was)
    with pytest.raises(ValueError, match='nan input.*mend the data'): lsuv_module(m, m[0], xb)

def test_weights_that_overflow_or_are_nan(xb):
    m = net()
    m[1].conv.weight.detach().fill_(1e38)
    rep = lsuv_init(m, xb)
    assert by_name(rep)['0'] == 'ok' and by_name(rep)['1'] == 'overflow' and by_name(rep)['2'] == 'nan input'
    assert m[1].conv.weight.eq(1e38).all()

def test_a_weight_that_would_become_inf_where_nobody_looks():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[1e-30]*4, [1e30]*4]))
        def forward(self, x): return x*self.weight[0]
    m, x = Part(), torch.randn(50, 4)
    was = snapshot(m)
    assert lsuv_init(m, x, [m])[0].why == 'limit' and same(m, was)

def test_never_called_and_no_weight(xb):
    m = net()
    with pytest.raises(ValueError, match='Linear.*never called'): lsuv_module(m, nn.Linear(2, 2), xb)
    with pytest.raises(ValueError, match=r'3 \(AdaptiveAvgPool2d\).*no weight.*pass a layer'): lsuv_module(m, m[3], xb)
    rep = lsuv_init(m, xb, [m[0], m[3]])
    assert by_name(rep) == {'0': 'ok', '3': 'no weight'} and rep[1].after[1] > 0

def test_without_bias():
    m, x = nn.Sequential(nn.Linear(6, 9, bias=False), nn.ReLU(), nn.Linear(9, 3)), torch.randn(50, 6) + 1
    rep = lsuv_init(m, x)
    (mean, std), (mean2, std2) = measured(m, [m[0], m[2]], x)
    assert by_name(rep) == {'0': 'no bias', '2': 'ok'} and rep.failed == []
    assert abs(std - 1) < 1e-3 < abs(mean) and abs(mean2) < 1e-3 and abs(std2 - 1) < 1e-3
    assert lsuv_module(m, m[0], x) == rep[0].after
    was = snapshot(m); lsuv_init(m, x); assert same(m, was)
    centred = nn.Linear(6, 9, bias=False)
    z = torch.randn(50, 6); z = z - z.mean(0)
    assert lsuv_init(centred, z)[0].why == 'ok'   # its mean is 0 without one

class ReluBlock(nn.Module):
    "What the mean can't be moved to 0 for: the bias acts before the ReLU"
    def __init__(self):
        super().__init__()
        self.conv, self.calls = nn.Conv2d(1, 4, 3), 0
    weight = property(lambda self: self.conv.weight)
    bias = property(lambda self: self.conv.bias)
    def forward(self, x): self.calls += 1; return F.relu(self.conv(x))

@pytest.mark.parametrize('max_iter', [1, 7, 20])
def test_the_limit(max_iter, xb):
    m = ReluBlock(); was = snapshot(m)
    rep = lsuv_init(m, xb, [m], max_iter=max_iter)
    assert rep[0].why == 'limit' and rep[0].iterations <= max_iter and same(m, was) and m.calls <= max_iter + 1
    with pytest.raises(ValueError, match=r'ReluBlock\) could not be mended \(limit\).*shift=False'): lsuv_module(m, m, xb)
    assert lsuv_init(m, xb, [m], shift=False)[0].why == 'ok' and abs(m(xb).std() - 1) < 1e-3

class FixedShift(nn.Module):
    "A bias that can be read and not set"
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(6, 6, bias=False)
        self.register_buffer('shift', torch.tensor(.3))
    weight = property(lambda self: self.lin.weight)
    bias = property(lambda self: self.shift*1)
    def forward(self, x): return self.lin(x) + self.bias

def test_a_bias_that_cant_be_set_is_none():
    m, x = nn.Sequential(FixedShift(), nn.Linear(6, 3)), torch.randn(40, 6)
    rep = lsuv_init(m, x, list(m))
    assert by_name(rep) == {'0': 'no bias', '1': 'ok'} and m[0].shift == .3 and abs(m[0](x).std() - 1) < 1e-3

def test_a_layer_that_cant_be_put_back_keeps_no_other_from_it():
    class Stubborn(FixedShift):
        n, value = 0, .3
        @property
        def bias(self): return self.value
        @bias.setter
        def bias(self, v):
            self.n += 1
            if self.n > 1: raise RuntimeError('not again')
            self.value = float(v)
    m, x = nn.Sequential(nn.Linear(6, 6), Stubborn(), nn.Linear(6, 6), nn.Linear(7, 3)), torch.randn(40, 6)
    was = snapshot(m)
    with pytest.raises(RuntimeError, match='mat1') as e: lsuv_init(m, x, list(m))
    assert same(m, was) and any('1 keeps its change: not again' in n for n in e.value.__notes__)

def test_a_noisy_layer_ends():
    class Noisy(nn.Linear):
        def forward(self, x): return super().forward(x) + torch.randn(len(x), self.out_features)
    m, x = Noisy(4, 4), torch.randn(16, 4)
    was = snapshot(m)
    rep = lsuv_init(m, x, [m], tol=1e-6)
    assert rep[0].why == 'limit' and same(m, was)

def test_shared_weights_and_layers_called_twice():
    lin, x = nn.Linear(6, 6), torch.randn(50, 6)*2 + 1
    m = nn.Sequential(lin, nn.ReLU(), lin)
    rep = lsuv_init(m, x)
    assert [r.why for r in rep] == ['ok'] and all_well(m, [lin], x)   # by its first call
    tied = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    tied[2].weight = tied[0].weight
    b = tied[2].bias.clone()
    rep = lsuv_init(tied, x)
    assert by_name(rep) == {'0': 'ok', '2': 'shared weight'} and tied[2].bias.equal(b) and all_well(tied, [tied[0]], x)

def test_parametrized_weights():
    m, x = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 3)), torch.randn(40, 6)
    rep = lsuv_init(m, x)
    assert by_name(rep) == {'0': 'ok', '2': 'ok'} and all_well(m, [m[0], m[2]], x)
    s = parametrizations.spectral_norm(nn.Linear(6, 6, bias=False))   # its norm is 1 whatever one sets
    s.eval()(x); was = snapshot(s)
    assert lsuv_init(s, x)[0].why == 'fixed scale' and same(s, was)
    with pytest.raises(ValueError, match='Linear.*could not be mended \\(fixed scale\\).*spectral norm.*leave it out'): lsuv_module(s, s, x)

class Course(nn.Module):
    "Like the ConvLayer of 2019: the bias is a number that isn't in the state dict"
    def __init__(self, sub=.3):
        super().__init__()
        self.conv, self.sub = nn.Conv2d(1, 4, 3), sub
    weight = property(lambda self: self.conv.weight)
    @property
    def bias(self): return -self.sub
    @bias.setter
    def bias(self, v): self.sub = -v
    def forward(self, x): return F.relu(self.conv(x)) - self.sub

def test_layers_of_ones_own(xb):
    m = Course()
    assert lsuv_init(m, xb, [m])[0].why == 'ok' and all_well(m, [m], xb, 1e-5) and isinstance(m.bias, float)
    class Early(Course):   # its bias comes before the ReLU
        def forward(self, x): return F.relu(self.conv(x) - self.sub)
    for max_iter in (3, 20, 400):
        m = Early(); was = snapshot(m)
        assert lsuv_init(m, xb, [m], max_iter=max_iter)[0].why == 'limit' and m.bias == -.3 and same(m, was)
    class Buffer(nn.Linear):
        def __init__(self):
            super().__init__(6, 4, bias=False)
            del self.bias
            self.register_buffer('bias', torch.zeros(()))
        def forward(self, x): return F.relu(x @ self.weight.T) + self.bias
    m, x = Buffer(), torch.randn(30, 6)
    assert lsuv_init(m, x)[0].why == 'ok' and all_well(m, [m], x) and 'bias' in m.state_dict()

def test_outputs_in_a_tuple_and_inputs_by_name():
    class Two(nn.Linear):
        def forward(self, *, inp): return super().forward(inp), 'text'
    class Model(nn.Module):
        def __init__(self): super().__init__(); self.two, self.last = Two(6, 5), nn.Linear(5, 3)
        def forward(self, x): return self.last(self.two(inp=x)[0])
    m, x = Model(), torch.randn(30, 6) + 2
    rep = lsuv_init(m, x)
    assert rep.failed == [] and abs(m.two(inp=x)[0].std() - 1) < 1e-4
    assert lsuv_init(nn.Sequential(Lambda(torch.argmax)), x, lambda o: isinstance(o, Lambda))[0].why == 'no weight'


# --- weights that are worked out from others

def pruned(m, k='weight'): return prune.random_unstructured(m, k, .4)
MADE = dict(weight_norm=parametrizations.weight_norm, old_weight_norm=nn.utils.weight_norm, pruned=pruned,
            both=lambda m: pruned(nn.utils.weight_norm(m), 'bias'), all_pruned=lambda m: pruned(pruned(m), 'bias'))

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('orthonormal', [False, True])
@pytest.mark.parametrize('how', MADE)
def test_made_weights(how, orthonormal):
    x = torch.randn(40, 6)*3 + 1
    m = nn.Sequential(MADE[how](nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 3))
    m(x).sum().backward()   # so that the weight is the result of a graph
    masks = {k: v.clone() for k, v in m.named_buffers()}
    rep = lsuv_init(m, x, orthonormal=orthonormal, shift='pruned' not in how and how != 'both')
    assert rep.failed == [] and all(v.equal(masks[k]) for k, v in m.named_buffers())
    assert all(abs(s - 1) < 1e-3 for _, s in measured(m, [m[0], m[2]], x))
    assert copy.deepcopy(m)(x).equal(m(x)) or how == 'both'
    m(x).sum().backward()
    assert all(p.requires_grad for p in m.parameters())

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('how', MADE)
def test_made_weights_are_put_back(how):
    m = nn.Sequential(MADE[how](nn.Linear(6, 6)), nn.Linear(6, 6), nn.Linear(7, 3))
    x = torch.randn(40, 6)
    was, w, b, y = snapshot(m), m[0].weight.detach().clone(), m[0].bias.detach().clone(), m[:2](x)
    with pytest.raises(RuntimeError): lsuv_init(m, x)
    assert same(m, was) and m[0].weight.equal(w) and m[0].bias.equal(b) and m[:2](x).equal(y)

@pytest.mark.filterwarnings('ignore')
def test_an_old_spectral_norm_is_passed_over():
    m, x = nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 3)), torch.randn(40, 6)
    was = snapshot(m[0])
    assert by_name(lsuv_init(m, x)) == {'0': 'fixed scale', '2': 'ok'} and same(m[0], was) and m[0].training


# --- outputs that aren't plain dense tensors

def ragged(x): return torch.nested.nested_tensor(list(x.unbind()))
ODD = dict(nested=(ragged, lambda x: torch.stack(x.unbind())), sparse=(lambda x: x.to_sparse(), lambda x: x.to_dense()), csr=(lambda x: x.to_sparse_csr(), lambda x: x.to_dense()),
           quantized=(lambda x: torch.quantize_per_tensor(x, .01, 0, torch.qint8), lambda x: x.dequantize()), complex=(lambda x: torch.complex(x, x), lambda x: x.real),
           whole=(lambda x: (x*9).long(), lambda x: x.float()), mkldnn=(lambda x: x.to_mkldnn(), lambda x: x.to_dense()), text=(lambda x: {'a': 'text'}, lambda o: torch.randn(20, 6)))

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', ODD)
def test_other_tensors_are_passed_over(kind):
    f, back = ODD[kind]
    class Gives(nn.Linear):
        def forward(self, x): return f(super().forward(x))
    m, x = nn.Sequential(Gives(6, 6), Lambda(back), nn.Linear(6, 3)), torch.randn(20, 6)
    was = snapshot(m[0])
    rep = lsuv_init(m, x)
    assert by_name(rep) == {'0': 'no weight', '2': 'ok'} and same(m[0], was) and str(rep)
    with pytest.raises(ValueError, match='no dense tensor of floats'): lsuv_module(m, m[0], x)
    assert same(m[0], was)

@pytest.mark.filterwarnings('ignore')
def test_odd_inputs_and_no_data_at_all():
    class Sums(nn.Linear):
        def forward(self, x): return super().forward(torch.stack([o.sum(0) for o in x.unbind()]))
    m, x = nn.Sequential(Sums(6, 4)), torch.nested.nested_tensor([torch.randn(n, 6) for n in (3, 1, 2, 5)])
    assert lsuv_init(m, x).failed == []
    assert abs(m(x).std() - 1) < 1e-3
    m[0].weight.detach().fill_(1e38)
    assert lsuv_init(m, x)[0].why == 'overflow'
    with torch.device('meta'): m, x = net(), torch.randn(4, 1, 20, 20)
    assert {r.why for r in lsuv_init(m, x)} == {'no weight'}


# --- compiled models, TorchScript, lazy layers

def compiled(m): return torch.compile(m, backend='eager')
def part(m): m[1] = compiled(m[1]); return m
def nested(m): return compiled(part(m))
def in_place(m): m[1].compile(backend='eager'); m.compile(backend='eager'); return m
def by_function(m): m[1].forward = compiled(m[1].forward); return m
def conv_in_it(m): m[1].conv = compiled(m[1].conv); return m

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('run', [False, True], ids=['fresh', 'run'])
@pytest.mark.parametrize('way', [compiled, part, nested, in_place, by_function, conv_in_it], ids=lambda f: f.__name__)
def test_compiled(way, run, xb):
    torch.compiler.reset()
    plain = net(leak=.1)
    c = way(copy.deepcopy(plain))
    if run: c(xb); c.eval()(xb); c.train()
    want, rep = lsuv_init(plain, xb), lsuv_init(c, xb)
    assert str(rep) == str(want) and rep.failed == [] and len(rep) == 4
    assert_close(c(xb), plain(xb))    # the compiled model sees it
    assert_close([v.clone() for v in c.state_dict().values()], [v.clone() for v in plain.state_dict().values()])
    assert c.training and not leaked_hooks(c, foreign=True)

@pytest.mark.filterwarnings('ignore')
def test_a_compiled_layer_may_be_given(xb):
    m, twin = net(), net()
    twin.load_state_dict(m.state_dict())
    m[1] = compiled(m[1])
    assert lsuv_module(compiled(m), m[1], xb) == lsuv_module(twin, twin[1], xb)
    assert [r.name for r in lsuv_init(m, xb, [m[1], m[0], m[1]._orig_mod])] == ['0 (ConvLayer)', '1 (ConvLayer)']
    m[1]._orig_mod.idle = nn.Linear(3, 3)
    rep = lsuv_init(compiled(m), xb, lambda o: isinstance(o, nn.Linear))
    assert by_name(rep) == {'1.idle': 'never called', '5': 'ok'}

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('make', ['script', 'trace'])
def test_torchscript_is_reported(make):
    x, inner = torch.randn(40, 6), nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    inner = torch.jit.script(inner) if make == 'script' else torch.jit.trace(inner, x)
    m = nn.Sequential(nn.Linear(6, 6), inner, torch.jit.script(nn.ReLU()), nn.Linear(6, 3))
    was, modes = snapshot(m[1]), [o.training for o in m.modules()]
    rep = lsuv_init(m, x)
    assert by_name(rep) == {'1': 'TorchScript', '0': 'ok', '3': 'ok'} and same(m[1], was) and all_well(m, [m[0], m[3]], x)
    assert [o.training for o in m.modules()] == modes
    with pytest.raises(ValueError, match="TorchScript.*before torch.jit's script or trace"): lsuv_module(m, m[1], x)
    assert by_name(lsuv_init(m[1], x)).popitem()[1] == 'TorchScript'

def test_lazy_layers_are_refused():
    m = nn.Sequential(nn.Linear(6, 6), nn.LazyLinear(3))
    was = m[0].weight.clone()
    with pytest.raises(ValueError, match=r'1\.weight has no shape yet: run the model on a batch first'): lsuv_init(m, torch.randn(9, 6))
    assert m[0].weight.equal(was) and isinstance(m[1], nn.LazyLinear)

def test_parameters_in_lists_and_buffers_of_none():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.ps = nn.ParameterDict(dict(a=nn.Parameter(torch.randn(6, 6)), b=torch.ones(2)))
            self.lin = nn.Linear(6, 3)
            self.register_buffer('nothing', None); self.register_parameter('weight', None)
        def forward(self, x): return self.lin(x@self.ps['a'])
    m, x = Own(), torch.randn(20, 6)
    a = m.ps['a'].clone()
    assert lsuv_init(m, x).failed == [] and all_well(m, [m.lin], x) and m.ps['a'].equal(a)
    assert by_name(lsuv_init(m, x, [m, m.lin])) == {'lin': 'ok', '(Own)': 'no weight'}

@pytest.mark.parametrize('reentrant', [False, True])
@pytest.mark.filterwarnings('ignore:None of the inputs')
def test_a_layer_that_would_run_again_in_the_backward(reentrant):
    from torch.utils.checkpoint import checkpoint
    class Saves(nn.Module):
        def __init__(self): super().__init__(); self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
        def forward(self, x): return self.b(checkpoint(self.a, x, use_reentrant=reentrant))
    m, x = Saves(), torch.randn(20, 6)
    assert by_name(lsuv_init(m, x)) == {'a': 'ok', 'b': 'ok'} and all_well(m, [m.a, m.b], x)


# --- dropout, norms: mode, states, gradients and hooks stay

class Busy(nn.Module):
    "Everything that a run could disturb"
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.drop = ConvLayer(1, 6, sub=.2), nn.BatchNorm2d(6), nn.Dropout(.4)
        self.b, self.inst = conv_layer(6, 8, norm=nn.BatchNorm2d, leak=.1), nn.InstanceNorm2d(8, affine=True)
        self.register_buffer('calls', torch.zeros((), dtype=torch.long))
        self.head, self.norm.training = nn.Linear(8, 3), False
    def forward(self, x):
        self.calls += 1
        if self.training: random.random(), np.random.rand()
        x = self.inst(self.b(self.drop(self.norm(self.a(x)))))
        torch.randn(3), random.random(), np.random.rand()
        return self.head(x.mean((2, 3)))


def watched(m, xb):
    "`m` with gradients and hooks, and a function that tells whether anything but layers has changed"
    m(xb).sum().backward()
    fired, params = [], [(p, p.grad.clone(), p.requires_grad) for p in m.parameters()]
    hooks = [o.register_forward_hook(lambda *a: fired.append(1)) for o in (m.a, m.head)]
    def hooks_now(): return [(list(o._forward_hooks.items()), list(o._forward_pre_hooks), list(o._backward_hooks),
                              dict(o._forward_hooks_with_kwargs)) for o in m.modules()]
    bufs = {k: v.clone() for k, v in m.named_buffers() if k != 'a.relu.sub'}
    ids, modes, rng, placed = {k: id(v) for k, v in m.named_buffers()}, [o.training for o in m.modules()], None, hooks_now()
    rng = randomness()
    def unchanged():
        assert [o.training for o in m.modules()] == modes
        assert_same(rng, randomness())
        assert all(v.equal(bufs[k]) for k, v in m.named_buffers() if k in bufs)
        assert {k: id(v) for k, v in m.named_buffers()} == ids
        assert all(p is q and q.grad.equal(g) and q.requires_grad == r and q.is_leaf
                   for (p, g, r), q in zip(params, m.parameters()))
        assert hooks_now() == placed and leaked_hooks(m) == []
        return True
    return unchanged, hooks

def test_nothing_else_changes(xb):
    m = Busy().train()
    unchanged, _ = watched(m, xb)
    rep = lsuv_init(m, xb)
    assert unchanged() and [r.why for r in rep] == ['ok', 'no bias', 'ok']
    lsuv_init(m, xb, orthonormal=True)
    assert unchanged()
    lsuv_module(m, m.head, xb)
    assert unchanged() and all_well(m, [m.a, m.head], xb)

@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize('where', ['before', 'behind', 'inside'])
def test_after_an_exception_all_is_as_before(error, where, xb):
    m = Busy().train()
    unchanged, hooks = watched(m, xb)
    was, n = snapshot(m), []
    def stop(*a):
        n.append(1)
        if len(n) > (where == 'inside'): raise error('stop')
    real = m.b[0].forward
    if where == 'inside': m.b[0].forward = lambda x: (stop(), real(x))[1]   # when it is run for the second time
    else:
        place = m.head.register_forward_pre_hook(stop) if where == 'behind' else m.a.register_forward_pre_hook(stop)
    with pytest.raises(error, match='stop'): lsuv_init(m, xb)
    if where == 'inside': del m.b[0].forward
    else: place.remove()
    assert unchanged() and same(m, was)
    assert lsuv_init(m, xb).failed == [] and unchanged()

def test_hooks_of_others_see_the_mended_output(xb):
    m, seen = net(), []
    h = m[0].register_forward_hook(lambda mod, i, o: seen.append(o.std().item()))
    lsuv_init(m, xb)
    assert len(seen) == 1 and abs(seen[0] - 1) < 1e-3
    h.remove()

def test_dropout_is_off_and_the_mean_holds(xb):
    m = net(nn.Dropout(.5)).train()
    assert lsuv_init(m, xb).failed == [] and all_well(m, mendable(m), xb) and m.training

def test_no_graph_is_built_and_training_goes_on(xb):
    m = net()
    lsuv_init(m, xb)
    assert all(p.grad is None and p.is_leaf and p.requires_grad for p in m.parameters())
    m(xb).pow(2).sum().backward()
    assert all(p.grad.isfinite().all() for p in m.parameters()) and not m[0].relu.sub.requires_grad

def test_telemetry_of_a_mended_net(data):
    stats = ActivationStats(conv_layers)
    learn, run = get_learn_run([4, 8], data, .1, ConvLayer, cbs=[*cbfs, lambda: stats])
    lsuv_init(learn, get_batch(data.train_dl, run)[0])
    run.logger = lambda row: None
    run.fit(1, learn)
    assert_close(stats.stats[1, :, 0], torch.ones(2), rtol=.2, atol=0) and stats.dead.max() < 1


# --- lsuv_module, as in 2019

def test_the_call_of_2019_says_what_to_write(xb):
    m = net(); was = snapshot(m)
    for call in (lambda: lsuv_module(m[0], xb), lambda: lsuv_module(m=m[0], model=m), lambda: lsuv_module(m, m[0])):
        with pytest.raises(TypeError, match=r'write lsuv_module\(model, m, xb\), e\.g\. lsuv_module\(learn\.model, m, xb\)'): call()
    assert same(m, was) and not m[0]._forward_hooks

def test_layer_by_layer_as_in_2019(xb):
    m = net()
    for o in conv_layers(m):
        mean, std = lsuv_module(m, o, xb)
        assert abs(mean) < 1e-3 and abs(std - 1) < 1e-3
    assert all_well(m, conv_layers(m), xb)

def test_work_is_one_sweep(xb):
    "Each layer runs twice at most, and nothing else more than once"
    m, n = net(nn.Identity()), {}
    for o in m.modules():
        def counted(*a, o=o, f=o.forward, **kw): n[o] = n.get(o, 0) + 1; return f(*a, **kw)
        o.forward = counted
    lsuv_init(m, xb)
    assert n[m] == n[m[3]] == 1 and all(n[o] == 2 for o in mendable(m))

def test_fifty_layers():
    m = nn.Sequential(*[ConvLayer(8 if i else 1, 8, 3, 1) for i in range(50)])
    x = torch.randn(8, 1, 10, 10)
    assert lsuv_init(m, x).failed == [] and all_well(m, list(m), x)
