"init: the activation, the block, Kaiming's weights, the runner in one call"
import copy, io, itertools, math, re, warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn, optim
from torch.nn import init
from torch.nn.utils import parametrizations, parametrize, prune
from torch.testing import assert_close

from helpers import blobs, conv2d, image_cbfs as cbfs, pickled, small
from minifast.cnn import Lambda, flatten
from minifast.core import set_seed
from minifast.init import GeneralRelu, conv_layer, get_learn_run, init_cnn, set_weight
from minifast.runner import Runner

ALL = list(itertools.product((None, 0., .1), (None, 0., .4), (None, 0., 2.)))   # leak, sub, maxv


def composed(x, leak, sub, maxv):
    "The same by PyTorch's own functions, in the order leak, sub, maxv"
    x = torch.relu(x) if leak is None else F.leaky_relu(x, leak)
    if sub  is not None: x = torch.sub(x, sub)
    if maxv is not None: x = torch.minimum(x, torch.tensor(maxv, dtype=x.dtype))
    return x


# --- the lesson's small version

@pytest.mark.parametrize('leak', [0., .1, 1.])
def test_the_small_version_draws_what_torch_and_init_cnn_draw(leak):
    "Bit by bit, with the same seed; but a layer without a rectifier behind it gets another gain from init_cnn"
    small_kaiming, act = small('06c_init', 'small_kaiming'), nn.LeakyReLU(leak)
    m = nn.Sequential(nn.Conv2d(1, 8, 5), act, nn.Conv2d(8, 16, 3), act, nn.Flatten(), nn.Linear(16*4, 10))
    set_seed(3); assert small_kaiming(m, leak) is m
    ours, last = [copy.deepcopy(o) for o in (m[0], m[2])], m[5].weight.clone()
    set_seed(3)
    for o in (*ours, m[5]):
        w = init.kaiming_normal_(torch.empty_like(o.weight), a=leak)
        assert_close(o.weight.detach(), w, rtol=1e-6, atol=1e-7)
        assert o.bias.eq(0).all()
    set_seed(3); init_cnn(m)
    for o, want in zip((m[0], m[2]), ours): assert_close(o.weight, want.weight, rtol=0, atol=0)
    assert_close(m[5].weight.detach()*math.sqrt(6/(1 + leak**2)), last, rtol=1e-5, atol=1e-6)

def test_the_small_version_keeps_the_signal_through_fifty_layers():
    small_kaiming = small('06c_init', 'small_kaiming')
    m, x = nn.Sequential(*[o for _ in range(50) for o in (nn.Linear(256, 256), nn.ReLU())]), torch.randn(64, 256)
    with torch.no_grad(): assert .1 < small_kaiming(m)(x).pow(2).mean() < 10


# --- GeneralRelu

@pytest.mark.parametrize('leak, sub, maxv', ALL)
def test_values_gradients_and_input(leak, sub, maxv):
    x = torch.linspace(-4, 4.03, 160).view(2, 2, 5, 8)   # no kink among them
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    up = torch.randn(x.shape)
    a, b = GeneralRelu(leak, sub, maxv)(mine), composed(theirs, leak, sub, maxv)
    assert_close(a, b, rtol=0, atol=0)
    a.backward(up); b.backward(up)
    assert_close(mine.grad, theirs.grad, rtol=0, atol=0)
    assert_close(mine.detach(), x, rtol=0, atol=0)

@pytest.mark.parametrize('leak, sub, maxv', ALL)
def test_gradcheck_away_from_kinks(leak, sub, maxv):
    x = torch.randn(60, dtype=torch.float64)*3
    edge = (maxv if maxv is not None else 1e9) + (sub or 0)   # where the clamp begins
    x = x[(x.abs() > 1e-3) & ((x - edge).abs() > 1e-3)].requires_grad_()
    assert torch.autograd.gradcheck(GeneralRelu(leak, sub, maxv), x)

@pytest.mark.parametrize('leak, sub, maxv', ALL)
def test_trains_between_two_layers(leak, sub, maxv):
    "Backward runs after a layer and before one, and the step changes what it can reach"
    m = nn.Sequential(nn.Linear(6, 8), GeneralRelu(leak, sub, maxv), nn.Linear(8, 3))
    before = copy.deepcopy(m.state_dict())
    opt = optim.SGD(m.parameters(), lr=.1)
    F.cross_entropy(m(torch.randn(16, 6)), torch.arange(16) % 3).backward()
    opt.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())
    assert not m[2].bias.equal(before['2.bias'])
    if not (maxv == 0 and not sub and not leak):   # then it puts out nothing but 0
        assert not m[0].weight.equal(before['0.weight'])

@given(st.floats(-20, 20, width=32), st.sampled_from([None, 0., .01, .3]),
       st.sampled_from([None, 0., .5, -.5]), st.sampled_from([None, 0., 1., 6.]))
def test_formula(v, leak, sub, maxv):
    want = v if v > 0 else (leak or 0)*v
    want = min(want - (sub or 0), math.inf if maxv is None else maxv)
    assert_close(GeneralRelu(leak, sub, maxv)(torch.tensor(v, dtype=torch.float64)).item(), want)

def test_order_is_leak_sub_maxv():
    assert GeneralRelu(sub=.5, maxv=1.)(torch.tensor(1.2)) == torch.tensor(1.2) - .5   # clamped first: 0.5
    assert GeneralRelu(leak=.1, sub=.5, maxv=1.)(torch.tensor(9.)) == 1                # clamped first: 0.5
    assert_close(GeneralRelu(leak=.1, sub=.5)(torch.tensor(-2.)), torch.tensor(-.7))   # lowered first: -.25

def test_zero_is_not_none():
    x = torch.tensor([-1., 3.])
    assert GeneralRelu(maxv=0)(x).max() == 0 and GeneralRelu(maxv=None)(x).max() == 3
    assert repr(GeneralRelu(0, 0, 0)) == 'GeneralRelu(leak=0, sub=0, maxv=0)'

def test_repr_shows_what_is_set():
    assert repr(GeneralRelu()) == 'GeneralRelu()'
    assert repr(GeneralRelu(leak=.1, maxv=6.)) == 'GeneralRelu(leak=0.1, maxv=6.0)'
    assert 'sub=0.4' in repr(nn.Sequential(GeneralRelu(sub=.4)))

@pytest.mark.parametrize('leak, sub, maxv', ALL)
def test_floor_is_the_lowest_value(leak, sub, maxv):
    act = GeneralRelu(leak, sub, maxv)
    out = act(torch.linspace(-100, 100, 1001))
    if leak: assert act.floor is None and out.min() < -9
    else:
        assert type(act.floor) is float and out.min() == act.floor
        assert (out == act.floor).sum() >= 500

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_floor_is_met_exactly_in_other_dtypes(dtype):
    act = GeneralRelu(sub=.4, maxv=6.)
    assert act(torch.tensor([-1., -2.], dtype=dtype)).eq(act.floor).all()

def test_floor_follows_the_settings():
    act = GeneralRelu(sub=.4)
    act.sub = .25   # as the layer-by-layer inits do
    assert act.floor == -.25 and act(torch.tensor(-1.)) == -.25
    act.leak = .1
    assert act.floor is None
    assert math.copysign(1, GeneralRelu().floor) == 1   # 0, not -0
    assert GeneralRelu(maxv=-1.).floor == -1 == GeneralRelu(maxv=-1.)(torch.tensor(-5.))   # no other value

def test_a_frozen_or_shared_input_is_fine():
    x = torch.randn(5, 5)
    kept, act = x.clone(), GeneralRelu(.1, .4, 1.)
    assert act(x).data_ptr() != x.data_ptr() and x.equal(kept)
    y = x.clone().requires_grad_()
    (act(y) + act(y)).sum().backward()
    assert_close(y.grad, 2*torch.where(x > 0, 1., .1)*(x - .4 < 1.))

def test_survives_compile_free_transforms():
    xs = torch.randn(4, 3)
    act = GeneralRelu(.1, .4, 1.)
    assert_close(torch.vmap(act)(xs), act(xs))
    assert act(torch.empty(2, 3, device='meta')).shape == (2, 3)

def test_normal_input_ends_near_mean_zero():
    "The reason for sub .4: the mean of relu of a standard normal is 1/sqrt(2 pi)"
    z = torch.randn(200_000, dtype=torch.float64)
    assert_close(GeneralRelu()(z).mean().item(), 1/math.sqrt(2*math.pi), atol=.01, rtol=0)
    assert abs(GeneralRelu(leak=.1, sub=.4)(z).mean()) < .05


# --- conv_layer

def test_block_is_conv_act():
    m = conv_layer(3, 8)
    assert [type(o) for o in m] == [nn.Conv2d, GeneralRelu]
    assert (m[0].kernel_size, m[0].stride, m[0].padding) == ((3, 3), (2, 2), (1, 1)) and m[0].bias is not None
    assert repr(m[1]) == 'GeneralRelu()'

@pytest.mark.parametrize('ks, stride, h, w', [*itertools.product((1, 3, 5, 7), (1, 2, 3), (7, 8), (9, 12))])
def test_size_depends_on_stride_only(ks, stride, h, w):
    out = conv_layer(2, 4, ks, stride)(torch.randn(3, 2, h, w))
    assert out.shape == (3, 4, math.ceil(h/stride), math.ceil(w/stride))

def test_block_with_norm():
    m = conv_layer(3, 8, norm=nn.BatchNorm2d, leak=.1)
    assert [type(o) for o in m] == [nn.Conv2d, GeneralRelu, nn.BatchNorm2d]
    assert m[0].bias is None and m[2].num_features == 8 and m[1].leak == .1
    out = m(torch.randn(16, 3, 9, 9))
    assert_close(out.mean((0, 2, 3)), torch.zeros(8), atol=1e-5, rtol=0)   # the norm comes last
    assert conv_layer(3, 8, norm=partial(nn.GroupNorm, 2))[2].num_groups == 2

def test_block_computes_conv_then_act():
    m, x = conv_layer(2, 4, leak=.1, sub=.4, maxv=1.), torch.randn(3, 2, 9, 9)
    assert_close(m(x), composed(F.conv2d(x, m[0].weight, m[0].bias, 2, 1), .1, .4, 1.))

def test_other_activations_and_none():
    assert [type(o) for o in conv_layer(1, 2, act=None)] == [nn.Conv2d]
    assert [type(o) for o in conv_layer(1, 2, act=None, norm=nn.BatchNorm2d)] == [nn.Conv2d, nn.BatchNorm2d]
    assert conv_layer(1, 2, act=nn.LeakyReLU, negative_slope=.3)[1].negative_slope == .3
    assert type(conv_layer(1, 2, act=lambda: nn.Tanh())[1]) is nn.Tanh

def test_errors_say_what_to_write():
    with pytest.raises(TypeError, match=r'bn=True.*norm=nn.BatchNorm2d'): conv_layer(1, 8, bn=True)
    with pytest.raises(TypeError, match="leak.*act=None"): conv_layer(1, 8, act=None, leak=.1)
    with pytest.raises(TypeError, match='lesk'): conv_layer(1, 8, lesk=.1)


# --- init_cnn

def std_of(w): return w.detach().double().pow(2).mean().sqrt().item()   # about 0, the mean it should have
def square(o): return std_of(o.weight)**2*o.weight[0].numel()   # the gain's square

RECT = [(nn.ReLU(), 0.), (nn.ReLU6(), 0.), (nn.LeakyReLU(.2), .2), (nn.PReLU(4, .25), .25),
        (GeneralRelu(), 0.), (GeneralRelu(0., .4, 6.), 0.), (GeneralRelu(.1, .4, 6.), .1)]

@pytest.mark.parametrize('uniform', (False, True))
@pytest.mark.parametrize('act, leak', RECT, ids=repr)
def test_bit_for_bit_like_torch(act, leak, uniform):
    "The same random numbers as torch's own, with a set to the slope of the activation"
    m = nn.Sequential(nn.Conv2d(3, 4, 5), act, nn.Conv2d(4, 8, 3, groups=2), act)
    set_seed(1); init_cnn(m, uniform)
    f, want = init.kaiming_uniform_ if uniform else init.kaiming_normal_, []
    set_seed(1)
    for o in (m[0], m[2]): want.append(f(torch.empty_like(o.weight), a=leak))
    for o, w in zip((m[0], m[2]), want): assert_close(o.weight.detach(), w, rtol=1e-6, atol=1e-7)
    assert all(o.bias.eq(0).all() for o in (m[0], m[2]))

@pytest.mark.parametrize('uniform', (False, True))
def test_normal_and_uniform_have_the_same_std(uniform):
    "With 300,000 weights the std is known to 2 per mille, and the shape of the distribution is told"
    lin = nn.Linear(600, 500)
    init_cnn(nn.Sequential(lin, GeneralRelu(leak=.1)), uniform)
    std = math.sqrt(2/(1 + .1**2)/600)
    w = lin.weight.detach().double()
    assert_close(std_of(w), std, rtol=.01, atol=0)
    assert abs(w.mean()) < .01*std
    kurtosis = (w.pow(4).mean()/w.pow(2).mean()**2).item()   # 3 of a normal, 1.8 of a uniform distribution
    assert abs(kurtosis - (1.8 if uniform else 3)) < .1
    if uniform: assert w.abs().max() <= math.sqrt(3)*std*(1 + 1e-6)

LAYERS = [nn.Conv1d(16, 64, 9), nn.Conv2d(8, 64, 5), nn.Conv3d(4, 64, 3), nn.Linear(150, 64),
          nn.Bilinear(12, 12, 64), nn.Conv2d(32, 64, 5, groups=4), nn.Conv2d(8, 64, 5, dilation=2),
          nn.Conv2d(8, 64, 5, bias=False)]

@pytest.mark.parametrize('layer', LAYERS, ids=repr)
def test_every_kind_of_layer(layer):
    init_cnn(nn.Sequential(layer, nn.ReLU()))
    n = layer.weight[0].numel()
    assert_close(std_of(layer.weight), math.sqrt(2/n), rtol=.06, atol=0)
    assert layer.bias is None or layer.bias.eq(0).all()

@pytest.mark.parametrize('layer, size', [
    (nn.Linear(512, 512), (64, 512)), (nn.Conv1d(64, 96, 3), (4, 64, 300)),
    (nn.Conv2d(32, 48, 3), (4, 32, 40, 40)), (nn.Conv3d(16, 24, 3), (2, 16, 14, 14, 14)),
    (nn.Conv2d(64, 48, 3, groups=2), (4, 64, 30, 30)), (nn.ConvTranspose1d(96, 64, 4, 2), (4, 96, 300)),
    (nn.ConvTranspose2d(64, 48, 3), (4, 64, 30, 30)), (nn.ConvTranspose2d(96, 32, 4, 2), (4, 96, 30, 30)),
    (nn.ConvTranspose3d(64, 32, 4, 2), (1, 64, 9, 9, 9)),
    (nn.ConvTranspose2d(64, 128, 4, 2, groups=4), (4, 64, 30, 30))], ids=lambda o: repr(o)[:60])
@pytest.mark.parametrize('act', [nn.ReLU(), nn.LeakyReLU(.3), GeneralRelu(.5)], ids=repr)
def test_a_block_keeps_the_mean_square(layer, size, act):
    "What Kaiming is for: E[x²] behind layer and rectifier is E[x²] before them (away from the borders)"
    m = init_cnn(nn.Sequential(copy.deepcopy(layer), act))
    with torch.no_grad(): out = m(torch.randn(size) + .5)
    for d in range(2, out.dim()): out = out.narrow(d, 3, out.shape[d] - 6)
    assert_close(out.pow(2).mean().item(), 1.25, rtol=.2, atol=0)

def test_thirty_layers_keep_the_scale():
    def deep(act): return nn.Sequential(*[o for _ in range(30) for o in (nn.Linear(256, 256), act)])
    x = torch.randn(64, 256)
    for act in (nn.ReLU(), GeneralRelu(.1)):
        m = deep(act)
        with torch.no_grad():
            assert m(x).std(0).mean() < 1e-6   # torch's own: the rows of x have nearly no say any more
            assert .2 < init_cnn(m)(x).pow(2).mean() < 3

def test_the_rectifier_is_the_next_one_in_line():
    "Through nesting, norms and dropout, up to the next layer; one ReLU may serve several"
    relu = nn.ReLU()
    m = nn.Sequential(
        nn.Sequential(nn.Conv2d(8, 64, 3), nn.BatchNorm2d(64)), nn.Sequential(nn.Dropout(), nn.LeakyReLU(1.)),
        nn.Conv2d(64, 64, 3), relu,   # 2
        nn.Conv2d(64, 64, 3), relu,   # 4
        nn.Conv2d(64, 64, 3), nn.Tanh(),   # 6
        nn.Conv2d(64, 64, 3), GeneralRelu(.5),   # 8
        nn.Linear(64, 900))
    init_cnn(m)
    for o, want in ((m[0][0], 1.), (m[2], 2.), (m[4], 2.), (m[6], 1/3), (m[8], 2/1.25), (m[10], 1/3)):
        assert_close(square(o), want, rtol=.06, atol=0)

def test_scores_begin_as_small_as_torchs_own():
    "A layer with no rectifier behind it has the std of nn.Linear's own init"
    lin = nn.Linear(300, 1000)
    own = std_of(lin.weight)
    for uniform in (False, True): assert_close(std_of(init_cnn(lin, uniform).weight), own, rtol=.01, atol=0)

class Branches(nn.Module):
    "Nested, with a list and a dict, bias or none, norms of every kind, an embedding, a bare parameter"
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((3, 3), 7.))
        self.embed = nn.Embedding(10, 20)
        normed = nn.ModuleDict(dict(a=conv_layer(4, 4, norm=nn.BatchNorm2d)))
        self.body  = nn.ModuleList([conv_layer(1, 4), normed])
        self.norms = nn.Sequential(nn.LayerNorm([4, 7, 7]), nn.GroupNorm(2, 4),
                                   nn.InstanceNorm2d(4, affine=True))
        self.head  = nn.Sequential(nn.Flatten(), nn.Linear(196, 10, bias=False))
        self.rnn   = nn.GRU(3, 3)

def test_only_layers_are_touched():
    m = Branches()
    with torch.no_grad():
        for o in m.norms: o.weight.fill_(3.); o.bias.fill_(2.)
    before = copy.deepcopy(m.state_dict())
    with pytest.warns(UserWarning, match=r'leaves as they are: rnn \(GRU: several weights\)'): assert init_cnn(m) is m
    changed = {k for k, v in m.state_dict().items() if not v.equal(before[k])}
    assert changed == {'body.0.0.weight', 'body.0.0.bias', 'body.1.a.0.weight', 'head.1.weight'}
    assert m.body[0][0].bias.eq(0).all()

class LayerNorm3(nn.Module):
    "A norm of one's own with an affine of three dims"
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(4, 1, 1)), nn.Parameter(torch.zeros(4, 1, 1))

def test_norms_of_ones_own_and_layers_of_ones_own():
    norm = init_cnn(LayerNorm3())
    assert norm.weight.eq(1).all()
    class Own(nn.Module):   # a layer without a bias attribute
        def __init__(self):
            super().__init__()
            self.weight, self.relu = nn.Parameter(torch.zeros(200, 50)), nn.ReLU()
    assert_close(std_of(init_cnn(Own()).weight), .2, rtol=.05, atol=0)

def with_weight(name, *size):
    "A module of a class called `name`, with a weight of ones and no bias attribute"
    m = type(name, (nn.Module,), {})()
    m.weight = nn.Parameter(torch.ones(size))
    return m

@pytest.mark.parametrize('name, size', [('Scale', (8,)), ('BatchNorm7d', (1, 8, 1, 1)), ('LayerNorm3', (4, 5)),
                                        ('MyNorm', (4, 5)), ('EmbeddingBag', (8, 3)), ('ScaledEmbedding', (8, 3))])
def test_what_only_scales_or_looks_up_stays(name, size):
    assert init_cnn(with_weight(name, *size)).weight.eq(1).all()
    real = nn.EmbeddingBag(8, 3)
    kept = real.weight.clone()
    assert init_cnn(real).weight.equal(kept)

@pytest.mark.parametrize('name', ['NormalLinear', 'WeightNormConv2d', 'EmbeddingToHidden', 'BagOfLayers'])
def test_a_layer_with_a_misleading_name_is_drawn(name):
    "Only the end of the name tells: a norm is called LayerNorm or BatchNorm2d"
    assert_close(std_of(init_cnn(with_weight(name, 300, 200)).weight), 1/math.sqrt(3*200), rtol=.03, atol=0)

class ConvLayer(nn.Module):
    "The shape of the course's later layer: its `weight` is that of the convolution"
    def __init__(self, ni, nf, leak):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(ni, nf, 3), GeneralRelu(leak)
    weight = property(lambda self: self.conv.weight)

def test_a_layer_that_shows_anothers_weight():
    m = init_cnn(nn.Sequential(ConvLayer(8, 64, 1.), ConvLayer(64, 64, None)))
    for o, want in zip(m, (1., 2.)): assert_close(square(o), want, rtol=.06, atol=0)

@pytest.mark.parametrize('uniform', (False, True))
def test_shared_weights_are_drawn_once(uniform, monkeypatch):
    lin, other = nn.Linear(40, 40), nn.Linear(40, 40)
    other.weight = lin.weight   # tied
    m = nn.Sequential(lin, nn.ReLU(), lin, nn.LeakyReLU(1.), other, nn.Linear(40, 2))
    name, drawn = 'uniform_' if uniform else 'normal_', []
    real = getattr(init, name)
    monkeypatch.setattr(init, name, lambda w, *a: (drawn.append(id(w)), real(w, *a))[1])
    init_cnn(m, uniform)
    assert len(drawn) == len(set(drawn)) == 2 and id(lin.weight) in drawn
    assert_close(std_of(lin.weight), math.sqrt(2/40), rtol=.1, atol=0)   # by what follows its first use

def test_flags_modes_gradients_and_dtypes_stay():
    m = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)).to(torch.bfloat16)
    m[0].weight.requires_grad_(False)
    m[2].eval()
    ids, w = [id(p) for p in m.parameters()], m[0].weight.clone()
    init_cnn(m)
    assert [id(p) for p in m.parameters()] == ids and not m[0].weight.equal(w)
    assert not m[0].weight.requires_grad and m[3].weight.requires_grad and m[3].weight.is_leaf
    assert not m[2].training and m[0].training and m[0].weight.dtype is torch.bfloat16
    assert all(p.grad is None for p in m.parameters())

def test_same_seed_same_weights_and_only_torchs_generator():
    import random
    import numpy as np
    def draw(): set_seed(3); return init_cnn(conv_layer(1, 8))[0].weight
    assert draw().equal(draw())
    states = random.getstate(), np.random.get_state()[1].copy()
    draw_again = init_cnn(conv_layer(1, 8))
    assert random.getstate() == states[0] and (np.random.get_state()[1] == states[1]).all() and draw_again

def test_models_without_layers_and_things_that_are_no_model():
    assert list(init_cnn(nn.Sequential(nn.ReLU(), nn.Dropout())).parameters()) == []
    with pytest.raises(TypeError, match=r'takes a module, got \[.*pass the model'): init_cnn([nn.ReLU()])
    assert init_cnn(nn.Linear(3, 4, device='meta')).weight.is_meta

def test_a_lazy_layer_is_not_passed_over():
    m = nn.Sequential(nn.LazyLinear(300), nn.ReLU())
    with pytest.raises(ValueError, match='LazyLinear.*has no weights yet: run the model on a batch first'): init_cnn(m)
    m(torch.zeros(2, 200))
    assert_close(std_of(init_cnn(m)[0].weight), .1, rtol=.03, atol=0)


# --- weights that are worked out from others

def old_weight_norm(m, **kw):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return nn.utils.weight_norm(m, **kw)
class Double(nn.Module):
    def forward(self, x): return 2*x
    def right_inverse(self, v): return v/2
class Abs(nn.Module):   # no right inverse
    def forward(self, x): return x.abs()
def own(m, p): parametrize.register_parametrization(m, 'weight', p); return m
def twice_pruned(m):
    for _ in range(2): prune.random_unstructured(m, 'weight', .3)
    return prune.random_unstructured(m, 'bias', .5)

MADE = dict(
    weight_norm=parametrizations.weight_norm, weight_norm_dim1=lambda m: parametrizations.weight_norm(m, dim=1),
    old_weight_norm=old_weight_norm, old_weight_norm_dim1=lambda m: old_weight_norm(m, dim=1), old_weight_norm_whole=lambda m: old_weight_norm(m, dim=None),
    own=lambda m: own(m, Double()), bias_too=lambda m: old_weight_norm(old_weight_norm(m), name='bias', dim=None))
LAYER = dict(linear=lambda: nn.Linear(200, 300), conv=lambda: nn.Conv2d(20, 150, 5, padding=2), transposed=lambda: nn.ConvTranspose2d(60, 40, 4, 2))

def effective(layer):
    "The weight that the next call computes with"
    x = torch.zeros(1, layer.weight.shape[0 if isinstance(layer, nn.ConvTranspose2d) else 1], *[9]*(layer.weight.dim() - 2))
    layer(x)
    return layer.weight.detach().clone()

@pytest.mark.parametrize('uniform', [False, True])
@pytest.mark.parametrize('how', MADE)
@pytest.mark.parametrize('kind', LAYER)
def test_the_weight_that_counts_is_kaimings(kind, how, uniform):
    layer = MADE[how](LAYER[kind]())
    ids = [id(p) for p in layer.parameters()]
    twin = LAYER[kind]()
    set_seed(1); init_cnn(nn.Sequential(twin, nn.LeakyReLU(.3)), uniform)
    set_seed(1); init_cnn(nn.Sequential(layer, nn.LeakyReLU(.3)), uniform)
    assert_close(layer.weight.detach(), twin.weight.detach())   # at once
    assert_close(effective(layer), twin.weight.detach(), rtol=1e-4, atol=1e-6)
    assert layer.bias.eq(0).all() and [id(p) for p in layer.parameters()] == ids and layer.training
    layer.weight.sum().backward() if how == 'own' else layer(torch.randn(2, layer.weight.shape[0 if kind == 'transposed' else 1], *[9]*(layer.weight.dim() - 2))).sum().backward()
    assert all(p.requires_grad for p in layer.parameters())

PRUNED = dict(one=lambda m: prune.random_unstructured(m, 'weight', .6), l1=lambda m: prune.l1_unstructured(m, 'weight', .6), twice=twice_pruned,
              filters=lambda m: prune.ln_structured(m, 'weight', .5, n=2, dim=0), inputs=lambda m: prune.ln_structured(m, 'weight', .5, n=2, dim=1))

@pytest.mark.parametrize('how', PRUNED)
@pytest.mark.parametrize('kind', LAYER)
def test_a_pruned_layer_keeps_the_mean_square_of_what_it_still_gives(kind, how):
    layer = PRUNED[how](LAYER[kind]())
    mask = layer.weight_mask.clone()
    m = init_cnn(nn.Sequential(layer, nn.LeakyReLU(.3)))
    assert layer.weight_mask.equal(mask) and layer.weight[mask == 0].eq(0).all() and effective(layer).equal(layer.weight)
    filters = mask.transpose(0, 1) if kind == 'transposed' else mask
    alive = filters.flatten(1).any(1)
    ni = mask.shape[0 if kind == 'transposed' else 1]
    with torch.no_grad(): out = m(torch.randn(64 if kind == 'linear' else 4, ni, *[24]*(mask.dim() - 2)) + .5)
    for d in range(2, out.dim()): out = out.narrow(d, 3, out.shape[d] - 6)
    assert_close(out[:, alive].pow(2).mean().item(), 1.25, rtol=.25, atol=0)
    assert layer.bias.eq(0).all() and effective(prune.remove(layer, 'weight')).any()

def test_a_mask_of_nothing_but_zeros():
    layer = prune.custom_from_mask(nn.Linear(3, 4), 'weight', torch.zeros(4, 3))
    init_cnn(layer)
    assert layer.weight.eq(0).all() and layer(torch.ones(3)).eq(0).all()

def old_spectral_norm(m):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return nn.utils.spectral_norm(m)
def scripted(m):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return torch.jit.script(m)
def traced(m):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return torch.jit.trace(m, torch.zeros(1, 5))
def odd_weight(m): m.weight_extra, m.weight = m.weight, None; return m

LEFT = dict(
    spectral=(lambda: parametrizations.spectral_norm(nn.Linear(5, 5)), 'ParametrizedLinear: its scale is fixed'), old_spectral=(lambda: old_spectral_norm(nn.Linear(5, 5)), 'Linear: its scale is fixed'),
    orthogonal=(lambda: parametrizations.orthogonal(nn.Linear(5, 5)), 'its scale is fixed'), no_inverse=(lambda: own(nn.Linear(5, 5), Abs()), 'its scale is fixed'),
    rnn=(lambda: nn.RNN(5, 5), 'RNN: several weights'), lstm=(lambda: nn.LSTM(5, 5, 2, bidirectional=True), 'LSTM: several weights'), gru=(lambda: nn.GRU(5, 5), 'GRU: several weights'),
    cell=(lambda: nn.LSTMCell(5, 5), 'LSTMCell: several weights'), normed_rnn=(lambda: parametrizations.weight_norm(nn.GRU(5, 5), 'weight_hh_l0'), 'GRU: several weights'),
    script=(lambda: scripted(nn.Linear(5, 5)), 'Linear: TorchScript'), trace=(lambda: traced(nn.Linear(5, 5)), 'Linear: TorchScript'), extra=(lambda: odd_weight(nn.Linear(5, 5)), 'several weights'))

@pytest.mark.parametrize('kind', LEFT)
def test_what_is_left_alone_is_named_and_ends_the_search_for_a_rectifier(kind):
    make, why = LEFT[kind]
    part = make()
    m = nn.Sequential(nn.Linear(300, 900), nn.Sequential(part, nn.LeakyReLU(1.)), nn.Linear(900, 300), nn.ReLU())
    before, modes = copy.deepcopy(part.state_dict()), [o.training for o in m.modules()]
    with pytest.warns(UserWarning) as w: assert init_cnn(m) is m
    text, = [str(o.message) for o in w if 'init_cnn' in str(o.message)]
    assert re.search(rf'leaves as they are: 1\.0 \(.*{why}\); draw their weights yourself', text) and w[0].filename == __file__
    assert all(v.equal(before[k]) for k, v in part.state_dict().items()) and [o.training for o in m.modules()] == modes
    assert_close(square(m[0]), 1/3, rtol=.06, atol=0)   # as without a rectifier
    assert_close(square(m[2]), 2., rtol=.06, atol=0)

def test_a_made_weight_ends_the_search_for_a_rectifier():
    m = init_cnn(nn.Sequential(nn.Linear(300, 900), parametrizations.weight_norm(nn.Linear(900, 300)), nn.LeakyReLU(1.)))
    assert_close(square(m[0]), 1/3, rtol=.06, atol=0)
    assert_close(square(m[1]), 1., rtol=.06, atol=0)

@pytest.mark.filterwarnings('ignore')
def test_several_are_left_alone_in_one_warning():
    m = nn.ModuleDict(dict(rnn=nn.GRU(3, 3), mix=nn.MultiheadAttention(4, 2), part=scripted(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))))
    with pytest.warns(UserWarning, match=r'rnn \(GRU: several weights\), mix \(MultiheadAttention: several weights\), part.0 \(Linear: TorchScript\)'): init_cnn(m)

def test_set_weight():
    lin, v = nn.Linear(4, 3), torch.randn(3, 4)
    assert set_weight(lin, v) and lin.weight.equal(v) and set_weight(lin, torch.ones(3), 'bias') and lin.bias.eq(1).all()
    assert not set_weight(nn.ReLU(), v) and not set_weight(nn.GRU(4, 3), v)
    s = parametrizations.spectral_norm(nn.Linear(4, 3))
    before = copy.deepcopy(s.state_dict())
    assert not set_weight(s, v) and all(a.equal(b) for a, b in zip(s.state_dict().values(), before.values()))
    half = parametrizations.weight_norm(nn.Linear(4, 3).to(torch.bfloat16))
    assert set_weight(half, v.bfloat16()) and half.weight.dtype is torch.bfloat16
    zero = old_weight_norm(nn.Linear(4, 3))
    assert set_weight(zero, torch.eye(3, 4)) and zero(torch.ones(4)).sub(zero.bias).equal(torch.ones(3))

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('run', [False, True])
def test_compiled_models(run):
    torch.compiler.reset()
    m = nn.Sequential(nn.Linear(20, 30), torch.compile(nn.Sequential(nn.LeakyReLU(.2), nn.Linear(30, 5)), backend='eager'))
    twin = nn.Sequential(nn.Linear(20, 30), nn.LeakyReLU(.2), nn.Linear(30, 5))
    c, x = torch.compile(m, backend='eager'), torch.randn(6, 20)
    if run: c(x)
    set_seed(3); assert init_cnn(c) is c
    set_seed(3); init_cnn(twin)
    assert_close(c(x), twin(x)) ; assert_close(m(x), twin(x))
    lin = torch.compile(parametrizations.weight_norm(nn.Linear(20, 30)), backend='eager')
    set_seed(3); init_cnn(nn.Sequential(lin, nn.ReLU()))
    assert_close(std_of(lin._orig_mod.weight), math.sqrt(2/20), rtol=.1, atol=0)

@pytest.mark.filterwarnings('ignore')
def test_the_warning_of_a_compiled_model_says_the_names_that_it_had():
    m = torch.compile(nn.Sequential(nn.Linear(3, 3), torch.compile(nn.Sequential(nn.GRU(3, 3)), backend='eager')), backend='eager')
    with pytest.warns(UserWarning, match=r': 1\.0 \(GRU'): init_cnn(m)


# --- get_learn_run, and the call forms of 2019

@pytest.fixture(scope='module')
def data(): return blobs(400, 200)

def test_cells_of_2019(data, capsys):
    learn, run = get_learn_run([8, 16], data, .45, conv_layer, cbs=cbfs, leak=.1, sub=.4, maxv=6.)
    assert isinstance(run, Runner) and len(learn.model) == 5 and learn.opt.param_groups[0]['lr'] == .45
    run.fit(4, learn)
    assert run.avg_stats.history[-1]['valid_accuracy'] > .9
    assert repr(learn.model[1][1]) == 'GeneralRelu(leak=0.1, sub=0.4, maxv=6.0)'
    assert learn.model[0][0].kernel_size == (5, 5) and 'epoch' in capsys.readouterr().out

def test_get_learn_run_is_its_parts(data):
    set_seed(5)
    learn, _ = get_learn_run([8, 16], data, .2, conv_layer, uniform=True, leak=.3)
    set_seed(5)
    m = nn.Sequential(conv_layer(1, 8, 5, leak=.3), conv_layer(8, 16, leak=.3), nn.AdaptiveAvgPool2d(1),
                      Lambda(flatten), nn.Linear(16, 10))
    assert_close(learn.model.state_dict(), init_cnn(m, uniform=True).state_dict(), rtol=0, atol=0)
    b = math.sqrt(6/(1 + .3**2)/72)
    assert .9*b < learn.model[1][0].weight.abs().max() <= b*(1 + 1e-6)

def test_settings_reach_their_place(data):
    learn, run = get_learn_run([4], data, .01, conv_layer, opt_func=partial(optim.Adam, betas=(.8, .9)),
                               stride=1, norm=nn.BatchNorm2d, act=nn.ReLU)
    assert type(learn.opt) is optim.Adam and learn.opt.param_groups[0]['betas'] == (.8, .9)
    assert [type(o) for o in learn.model[0]] == [nn.Conv2d, nn.ReLU, nn.BatchNorm2d]
    assert learn.model[0][0].stride == (1, 1)
    model = get_learn_run([64], data, .1, conv2d)[0].model
    assert_close(std_of(model[0][0].weight), math.sqrt(2/25), rtol=.06, atol=0)

def test_two_calls_share_nothing(data):
    (a, r1), (b, r2) = (get_learn_run([4], data, .1, conv_layer, cbs=cbfs) for _ in range(2))
    assert r1.avg_stats is not r2.avg_stats and a.model is not b.model and len(cbfs) == 2


# --- copies

@pytest.mark.parametrize('copied', [copy.deepcopy, pickled])
def test_copies(copied):
    m, x = init_cnn(conv_layer(1, 4, leak=.1, sub=.4, maxv=2.)), torch.randn(2, 1, 9, 9)
    m.requires_grad_()(x).sum().backward()
    again = copied(m)
    assert_close(again(x), m(x), rtol=0, atol=0)
    assert repr(again) == repr(m) and again[1].floor is None

def test_state_dict():
    "The activation has no state: the weights of a block with ReLU fit, and those of one without"
    a, b = conv_layer(1, 4, leak=.1, sub=.4), conv_layer(1, 4, act=nn.ReLU)
    assert list(a.state_dict()) == ['0.weight', '0.bias'] == list(b.state_dict())
    f = io.BytesIO()
    torch.save(init_cnn(a).state_dict(), f); f.seek(0)
    b.load_state_dict(torch.load(f, weights_only=True))
    assert b[0].weight.equal(a[0].weight)

@settings(max_examples=30, deadline=None)
@given(st.integers(1, 64), st.integers(1, 64), st.sampled_from([1, 3, 5, 7]), st.floats(0, 1), st.booleans())
def test_any_block_any_leak(ni, nf, ks, leak, uniform):
    m = conv_layer(ni, nf, ks, leak=leak)
    set_seed(7); init_cnn(m, uniform)
    f = init.kaiming_uniform_ if uniform else init.kaiming_normal_
    set_seed(7); want = f(torch.empty(nf, ni, ks, ks), a=leak)
    assert_close(m[0].weight.detach(), want, rtol=1e-5, atol=1e-7)
