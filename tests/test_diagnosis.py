"Diagnosis: networks made ill on purpose are found out, each by layer, iteration and lesson; healthy ones pass in silence"
import math
from collections import Counter
from functools import partial

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from minifast.data import get_data, normalize_to
from minifast.diagnosis import Diagnosis, Finding, diagnose, plot_telemetry
from minifast.init import GeneralRelu
from minifast.telemetry import Telemetry

nan = math.nan


@pytest.fixture(scope='module')
def digits():
    x, y, xv, _ = get_data()
    return normalize_to(x, xv)[0][:5120], y[:5120]

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

def kaiming(net, gain=2**.5):
    for m in net.modules():
        if not isinstance(m, (nn.Linear, nn.Conv2d)): continue
        nn.init.normal_(m.weight, 0, gain/m.weight[0].numel()**.5); nn.init.zeros_(m.bias)
    return net

def mlp(depth=5, act=nn.ReLU, nh=50, gain=2**.5, norm=nn.Identity):
    "Linear and activation apart, so that layer 2*i is linear and 2*i+1 its activation"
    hidden = [o for i in range(depth) for o in (nn.Linear(nh if i else 784, nh), nn.Sequential(norm(nh), act()))]
    return kaiming(nn.Sequential(*hidden, nn.Linear(nh, 10)), gain)

def cnn(act=nn.ReLU, norm=nn.Identity, init=kaiming):
    sizes = [(1, 8, 5), (8, 16, 3), (16, 32, 3), (32, 32, 3)]
    convs = [nn.Sequential(nn.Conv2d(ni, nf, ks, 2, ks//2), norm(nf), act()) for ni, nf, ks in sizes]
    return init(nn.Sequential(nn.Unflatten(1, (1, 28, 28)), *convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)))

def train(net, digits, lr=.05, iters=24, bs=128, at=None, floors=0., **kw):
    "Telemetry of outputs and gradients; `at[i](net, opt)` is done before batch `i`"
    names = [f'{type(m).__name__.lower()}' for m in net]
    t, grads = Telemetry(names, floors=floors, **kw), Telemetry(names, near=None)
    def note(i, outp):
        t.add(i, outp)
        if outp.requires_grad: outp.register_hook(lambda g: grads.add(i, g))
    for i, m in enumerate(net): m.register_forward_hook(lambda m, inp, outp, i=i: note(i, outp))
    opt = optim.SGD(net.parameters(), lr=lr)
    for b, x, y in zip(range(iters), *(o.split(bs) for o in digits)):
        if at and b in at: at[b](net, opt)
        F.cross_entropy(net(x), y).backward()
        opt.step(); opt.zero_grad(); t.step(); grads.step()
    return t, grads


# --- healthy

HEALTHY = {
    'mlp': (mlp, .05), 'small mlp': (partial(mlp, 1), .1), 'wide mlp': (partial(mlp, 3, nh=300), .05),
    '20 layers': (partial(mlp, 20), .01), 'pytorch mlp': (lambda: mlp(2).apply(
        lambda m: m.reset_parameters() if isinstance(m, nn.Linear) else None), .1),
    'tanh': (partial(mlp, 5, nn.Tanh, gain=1), .1), 'sigmoid': (partial(mlp, 2, nn.Sigmoid, gain=1), .3),
    'gelu': (partial(mlp, 5, nn.GELU), .05), 'leaky': (partial(mlp, 5, partial(nn.LeakyReLU, .1)), .05),
    'batchnorm': (partial(mlp, 4, norm=nn.BatchNorm1d), .2), 'cnn': (cnn, .1),
    'cnn, batchnorm': (partial(cnn, norm=nn.BatchNorm2d), .4), 'cnn, general': (partial(cnn, partial(GeneralRelu, .1, .4, 6.)), .2),
    'cnn, shifted': (partial(cnn, partial(GeneralRelu, sub=.4)), .2), 'cnn, relu6': (partial(cnn, nn.ReLU6), .1)}

@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('kind', HEALTHY)
def test_silent_on_a_healthy_network(kind, seed, digits):
    make, lr = HEALTHY[kind]
    torch.manual_seed(seed)
    t, grads = train(make(), digits, lr, floors=-.4 if kind == 'cnn, shifted' else 0.)
    d = diagnose(t, grads)
    assert not d and len(d) == 0, d
    assert not diagnose(t) and repr(d) == f'{t}: no layer looks ill'

@pytest.mark.parametrize('share', [.5, .6, .85])
def test_a_relu_with_many_zeros_is_not_ill(share):
    t = Telemetry(['in', 'relu'])
    for _ in range(5):
        t.add(0, torch.randn(100, 50)); t.add(1, (torch.randn(100, 50) + 1)*(torch.rand(100, 50) > share)); t.step()
    assert not diagnose(t)

def test_sparse_but_loud_is_not_vanishing():
    "A softmax that is sure of itself: nine outputs of ten are near zero"
    t = Telemetry(['in', 'softmax'], floors=None)
    for _ in range(5): t.add(0, torch.randn(100, 10)); t.add(1, (20*torch.randn(100, 10)).softmax(1)); t.step()
    assert t.near_zero[1, 0] > .8 and not diagnose(t, near=.8)

@pytest.mark.parametrize('scale', [1., 255.])
def test_raw_pixels_before_a_batchnorm_are_no_reference(scale):
    t = Telemetry(['pixels', 'norm'])
    for _ in range(3): x = torch.rand(64, 20)*scale; t.add(0, x); t.add(1, F.batch_norm(x, None, None, training=True)); t.step()
    assert not diagnose(t)

def test_a_frozen_part_misses_no_gradient(digits):
    net = mlp(3)
    for m in net[:4]: m.requires_grad_(False)
    t, grads = train(net, digits)
    assert t.asked == {4, 5, 6} and grads.stats[1, :4].isnan().all() and not diagnose(t, grads)

def test_what_has_passed_is_of_no_concern():
    t = Telemetry(['a'])
    for x in [torch.full((3, 3), nan)]*4 + [torch.zeros(9, 9)]*4 + [torch.randn(9, 9)]: t.add(0, x); t.step()
    assert not diagnose(t)


# --- ill on purpose: one for each illness

def bias(i, value): return lambda net, opt: net[i].bias.data.fill_(value)
def scale(i, by): return lambda net, opt: net[i].weight.data.mul_(by)

@pytest.mark.parametrize('i, since', [(0, 0), (4, 0), (4, 13)])
def test_dead(i, since, digits):
    t, grads = train(mlp(), digits, at={since: bias(i, -100.)})
    d = diagnose(t, grads)
    dead = [o for o in d if o.illness == 'dead']     # those after it too while their biases are 0, the last layer's apart
    assert (dead[0].layer, dead[0].name, dead[0].since, dead[0].value) == (i+1, 'sequential', since, 1)
    assert len(dead) == (1 if since else 9 - i) and dead[0].lesson.startswith('06c init')
    assert f'Layer {i+1} (sequential)' in repr(d) and '100.0% of its values are at the floor' in repr(d)
    assert all(o.illness == 'no gradient' and o.since == since for o in d if o.layer <= i)   # nothing gets through

def test_dead_at_a_shifted_floor(digits):
    net = mlp(act=partial(GeneralRelu, sub=.4))
    net[2].bias.data.fill_(-100.)
    t, _ = train(net, digits, floors=-.4)
    assert [(o.layer, o.illness, o.since) for o in diagnose(t)] == [(3, 'dead', 0)]

@pytest.mark.parametrize('act', [nn.Tanh, nn.Sigmoid, nn.Hardtanh])
@pytest.mark.parametrize('since', [0, 11])
def test_saturated(act, since, digits):
    t, _ = train(mlp(act=act, gain=1), digits, lr=.01, at={since: scale(4, 200.)})
    d = [o for o in diagnose(t) if o.illness == 'saturated']
    assert [(o.layer, o.since) for o in d] == [(5, since)] and d[0].value > .8
    assert d[0].lesson == '06c init, 07 batch norm' and 'at the ends of their range' in d[0].because

@pytest.mark.parametrize('since', [0, 9])
def test_exploding(since, digits):
    "The weights of one layer are ten times too large, and the rate is too"
    t, grads = train(mlp(), digits, lr=0., at={since: scale(4, 1000.)})
    d = diagnose(t)
    assert d[0].illness == 'exploding' and (d[0].layer, d[0].since) == (4, since) and d[0].value > 100
    assert {o.layer for o in d} == set(range(4, 11)) and 'lower rate' in d[0].lesson and '06c' in d[0].lesson
    back = diagnose(t, grads)     # backwards it explodes in the layers before
    assert {o.layer for o in back if 'gradient' in o.because} <= set(range(4)) and {o.illness for o in back} == {'exploding'}

def test_not_a_number(digits):
    def much(net, opt): opt.param_groups[0]['lr'] = 1e6
    t, grads = train(mlp(), digits, at={7: much})
    assert [o.layer for o in diagnose(t) if 'nan or inf' in o.because] == list(range(11))
    d = diagnose(t, grads)
    assert len(d) == 11 and {o.illness for o in d} == {'exploding'} and min(o.since for o in d) == 8
    assert 'nan or inf' in d[-1].because and 'Layer 0 (linear), and 10 more: exploding from iteration 8 on' in repr(d)

def pass_on(by):
    "A layer that passes its input on and multiplies the gradient"
    class Pass(nn.Module):
        def forward(self, x): return x*by + (x*(1 - by)).detach()
    return Pass()

@pytest.mark.parametrize('by, illness, lesson', [(1e-6, 'vanishing', '07a LSUV'), (1e5, 'exploding', '05c anneal')])
def test_only_the_gradient(by, illness, lesson, digits):
    net = mlp(4)
    net.insert(4, pass_on(by))
    t, grads = train(net, digits, lr=0.)
    assert not diagnose(t) and all(m(torch.ones(3)).allclose(torch.ones(3), atol=.05) for m in net[4:5])
    d = diagnose(t, grads)
    assert [o.layer for o in d] == [0, 1, 2, 3] and {(o.illness, o.since) for o in d} == {(illness, 0)}
    assert lesson in d[0].lesson and 'gradient' in d[0].because

def test_gradients_that_vanish_below_what_a_square_can_hold(digits):
    net = mlp(4)
    net.insert(4, pass_on(1e-30))
    assert {o.illness for o in diagnose(*train(net, digits, lr=0.))} == {'vanishing'}

@pytest.mark.parametrize('since', [0, 10])
def test_vanishing(since, digits):
    t, _ = train(mlp(), digits, lr=0., at={since: scale(4, 1e-4)})
    d = diagnose(t)
    assert [(o.layer, o.since) for o in d] == [(i, since) for i in range(4, 11)]
    assert {o.illness for o in d} == {'vanishing'} and '07a LSUV' in d[0].lesson and '06c init' in d[0].lesson

def test_vanishing_layer_by_layer(digits):
    t, _ = train(mlp(10, gain=.7), digits)
    d = diagnose(t)
    assert {o.illness for o in d} == {'vanishing'} and 5 < d[0].layer < 13 and len(d) == 21 - d[0].layer

@pytest.mark.parametrize('seed', range(3))
def test_the_plain_cnn_vanishes(seed, digits):
    torch.manual_seed(seed)
    d = diagnose(*train(cnn(init=lambda net: net), digits, .2))
    assert d and {o.illness for o in d} == {'vanishing'} and d[0].since == 0 and 3 <= d[0].layer <= 5

class Detach(nn.Module):
    def forward(self, x): return x.detach() if self.training else x

@pytest.mark.parametrize('since', [0, 8])
def test_no_gradient(since, digits):
    net = mlp(4)
    net.insert(4, Detach())
    net[4].eval()
    t, grads = train(net, digits, at={since: lambda net, opt: net[4].train()})
    d = diagnose(t, grads)     # what lies before the detach, and the detach itself where it was once due a gradient
    assert [(o.layer, o.illness, o.since) for o in d] == [(i, 'no gradient', since) for i in range(4 + (since > 0))]
    assert d[0].lesson == '06a hooks' and 'no gradient reaches it' in repr(d)

def test_gradients_of_zero_are_none():
    t, g = Telemetry(['a', 'b']), Telemetry(['a', 'b'], near=None)
    for _ in range(3):
        for i in (0, 1): t.add(i, torch.randn(5, 5, requires_grad=True)); g.add(i, torch.randn(5, 5)*i)
        t.step(); g.step()
    assert [(o.layer, o.illness) for o in diagnose(t, g)] == [(0, 'no gradient')]


# --- the rules

def made(*layers, n=4, **kw):
    "Telemetry of `n` equal batches"
    t = Telemetry([f'l{i}' for i in range(len(layers))], **kw)
    for _ in range(n):
        for i, x in enumerate(layers): t.add(i, x)
        t.step()
    return t

def spread(s): return torch.randn(4000)*s
def ills(t, g=None, **kw): return [(o.layer, o.illness) for o in diagnose(t, g, **kw)]

@pytest.mark.parametrize('low, high, kw', [
    (90, 110, dict(explode=100.)), (9, 11, dict(explode=10.))])
def test_exploding_threshold(low, high, kw): assert ills(made(spread(low), spread(high)), **kw) == [(1, 'exploding')]

def test_dead_threshold():
    layers = [torch.cat([torch.zeros(n), torch.rand(1000-n) + 1]) for n in (880, 900, 950)]
    assert ills(made(*layers)) == [(1, 'dead'), (2, 'dead')]
    assert ills(made(*layers), dead=.92) == [(2, 'dead')] and ills(made(*layers, floors=None)) == []

def test_vanishing_thresholds():
    assert ills(made(spread(1), spread(.06), spread(.04))) == [(2, 'vanishing')]
    assert ills(made(spread(1), spread(.06), spread(.04)), vanish=.08) == [(1, 'vanishing'), (2, 'vanishing')]
    assert ills(made(spread(.1), spread(.0056), spread(.004))) == [(1, 'vanishing'), (2, 'vanishing')]     # near zero
    assert ills(made(spread(.1), spread(.0056), spread(.004)), near=1.1) == [(2, 'vanishing')]
    assert ills(made(spread(.1), spread(.0056), spread(.004), near=None)) == [(2, 'vanishing')]

def test_saturated_needs_both_ends_and_a_range():
    ends = torch.cat([-torch.ones(450), torch.ones(450), torch.rand(100)*2 - 1])
    low_only, few = torch.cat([torch.zeros(800), torch.rand(200)]), torch.cat([torch.ones(800), torch.rand(200) + 1])
    assert ills(made(spread(1), ends, low_only, few, floors=None)) == [(1, 'saturated')]
    assert ills(made(spread(1), ends, floors=None), saturated=.95) == []
    inner = torch.cat([-torch.ones(450), torch.full((450,), .5), torch.rand(100)*2 - 1])     # at 3/4 of the range
    assert ills(made(spread(1), inner, floors=None)) == []
    assert ills(made(spread(1), ends, floors=None, hists=False)) == []
    flags = torch.cat([torch.zeros(500), torch.ones(500)])                    # two values only: a flag, or a gate
    assert ills(made(spread(1), flags, floors=None, rng=(-20, 20))) == []

def test_gradient_thresholds():
    t = made(*[spread(1).requires_grad_()]*3)
    def g(*s): return made(*map(spread, s), near=None)
    assert ills(t, g(1, 1, 1)) == [] and ills(t, g(2e3, 1, 1)) == [(0, 'exploding')] and ills(t, g(900, 1, 1)) == []
    assert ills(t, g(5e-5, 1, .01)) == [(0, 'vanishing')] and ills(t, g(2e-4, 1, .01)) == []
    assert ills(t, g(5, 1, 1), explode_grad=4) == [(0, 'exploding')] and ills(t, g(.1, 1, 1), vanish_grad=.2) == [(0, 'vanishing')]

def test_it_has_to_hold():
    t = Telemetry(['a'])
    for bad in [1, 0, 1, 1, 0, 1, 1, 1]: t.add(0, torch.zeros(9)*bad + torch.randn(9).abs()*(1-bad)); t.step()
    assert [(o.illness, o.since) for o in diagnose(t)] == [('dead', 5)] and not diagnose(t, hold=4)
    short = made(torch.zeros(9), n=2)
    assert ills(short) == [(0, 'dead')] and not diagnose(made(torch.ones(9), n=1), hold=1)

@pytest.mark.parametrize('kw, since', [(dict(every=4), 12), (dict(keep=8), 12)])
def test_since_counts_iterations(kw, since):
    t = Telemetry(['a'], **kw)
    for i in range(30): t.add(0, torch.rand(9)*(i < 12)); t.step()
    assert diagnose(t)[0].since == since

def test_the_gravest_and_at_most_one_a_layer():
    x = spread(1000.)
    x[:3900] = 0
    assert ills(made(x)) == [(0, 'exploding')] and ills(made(x), explode=1e9) == [(0, 'dead')]

def test_a_finding_and_its_words():
    o = Finding(3, 'conv', 'dead', 12, .97, '97.0% …')
    assert o.lesson == '06c init, 05c anneal (a lower rate)'
    d = Diagnosis([o, Finding(5, 'a name that is too long', 'dead', 9, 1., 'x'), Finding(6, 'out', 'vanishing', 0, 1., 'y')])
    rows = repr(d).split('\n')
    assert len(rows) == 8 and rows[1].split()[:4] == ['3', 'conv', 'dead', '12'] and 'a name that is t ' in rows[2]
    assert 'Layer 5 (a name that is too long), and 1 more: dead from iteration 9 on' in repr(d)
    assert 'Layer 6 (out): vanishing from iteration 0 on' in repr(d) and '07a LSUV' in repr(d)
    assert bool(d) and not Diagnosis([]) and [p.layer for p in d] == [3, 5, 6] and d[0] is o

def test_what_sets_in_while_training_is_a_matter_of_the_rate():
    early, late = (Finding(1, 'a', 'vanishing', since, 0., '') for since in (0, 5))
    assert early.lesson == '06c init, 07a LSUV, 07 batch norm' and late.lesson == f'05c anneal (a lower rate), {early.lesson}'
    assert 'from iteration 5 on' in repr(Diagnosis([late])) and f'See {late.lesson}.' in repr(Diagnosis([late]))

class Tables(TorchDispatchMode):
    "How many layers' histograms were put together, and how many sums of rows were made"
    def __init__(self): super().__init__(); self.n = Counter()
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n[func.name().split('::')[1].split('.')[0]] += 1
        return func(*args, **(kwargs or {}))

def test_a_picture_and_a_diagnosis_make_each_table_once():
    t, grads = network(3), network(3, near=None)
    with Tables() as c: plot_telemetry(t); diagnose(t, grads); plot_telemetry(t)
    assert c.n['index_put_'] + c.n['_index_put_impl_'] == 3          # nothing asks for the gradients' histograms
    assert c.n['index_add_'] == 6 + 4                                # counts, mean, deviations, dead, near zero, nan

def test_nothing_to_judge():
    with pytest.raises(ValueError, match=r'got Telemetry\(1 layers, 0 batches\), so there is nothing to judge: train'):
        diagnose(Telemetry(['a']))


# --- the picture

def network(n, iters=60, **kw):
    t = Telemetry([f'layer {i}' for i in range(n)], **kw)
    for b in range(iters):
        for i in range(n): t.add(i, F.relu(torch.randn(40, 4)*.97**i + .01*b))
        t.step()
    return t

def texts(ax): return ax.get_xlabel(), ax.get_ylabel()

@pytest.mark.parametrize('n', [1, 5, 50])
def test_the_whole_picture(n):
    t = network(n)
    axs = plot_telemetry(t, 'The finding')
    hists = min(n, 4)
    assert len(axs) == 4 + hists and axs[0].figure.get_suptitle() == 'The finding'
    assert [texts(a) for a in axs[:4]] == [('iteration', k) for k in ('mean', 'standard deviation', 'share at the floor', 'share within ±0.01')]
    for ax, ys in zip(axs, [*t.stats, t.dead, t.near_zero]):
        assert len(ax.lines) == n
        for line, y in zip(ax.lines, ys):
            assert_close(torch.tensor(line.get_xdata()).long(), t.iters); assert_close(torch.tensor(line.get_ydata()).float(), y)
    colors = [[mpl.colors.to_hex(o.get_color()) for o in a.lines] for a in axs[:4]]
    assert colors[0] == colors[1] == colors[2] == colors[3] and len(set(colors[0])) == n
    for ax, i in zip(axs[4:], sorted({round(i*(n-1)/3) for i in range(4)})):
        assert ax.get_title() == f'{i} layer {i}' and texts(ax) == ('iteration', 'value')
        im, = ax.images
        used = t.hists[i].sum(1).nonzero().flatten()
        assert_close(torch.tensor(im.get_array()), t.hists[i][used[0]:used[-1]+1].double().log1p())
        lo, hi = t.ranges[i].tolist()
        w = (hi - lo)/40
        assert im.get_extent() == pytest.approx([0, 60, lo + int(used[0])*w, lo + (int(used[-1]) + 1)*w])

@pytest.mark.parametrize('n', [5, 50])
def test_nothing_overlaps(n):
    "Every text of the figure is inside it, and the axes' boxes, texts included, are apart"
    axs = plot_telemetry(network(n), 'A title')
    fig = axs[0].figure
    fig.canvas.draw()
    r = fig.canvas.get_renderer()
    boxes = [a.get_tightbbox(r) for a in fig.axes]
    assert all(b.x0 >= -1 and b.y0 >= -1 and b.x1 <= fig.bbox.x1 + 1 and b.y1 <= fig.bbox.y1 + 1 for b in boxes)
    for i, a in enumerate(boxes):
        for b in boxes[:i]: assert min(a.x1, b.x1) - max(a.x0, b.x0) < 2 or min(a.y1, b.y1) - max(a.y0, b.y0) < 2
    w, h = fig.get_size_inches()
    assert w <= 12 and h <= 5.5

def test_layers_can_be_chosen():
    t = network(6)
    assert [a.get_title() for a in plot_telemetry(t, layers=[1, 5, 2, 3, 4])[4:]] == [f'{i} layer {i}' for i in (1, 5, 2, 3, 4)]
    assert len(plot_telemetry(t, layers=[])) == 4 and len(plot_telemetry(network(3, hists=False))) == 4
    t = Telemetry(['a', 'never'])
    t.add(0, torch.randn(9)); t.step()
    assert [a.get_title() for a in plot_telemetry(t)[4:]] == ['0 a']
    with pytest.raises(ValueError, match=r'got layers=\[0, 1\], but \[1\] have no histogram'): plot_telemetry(t, layers=[0, 1])

@pytest.mark.parametrize('kw', [dict(every=3), dict(keep=7)])
def test_x_is_the_iteration(kw):
    t = network(3, **kw)
    axs = plot_telemetry(t)
    for ax in axs[:4]: assert [list(o.get_xdata()) for o in ax.lines] == [t.iters.tolist()]*3
    assert axs[4].images[0].get_extent()[1] == len(t.iters)*t.every

def test_magnitudes_apart_go_on_a_log_axis():
    t = made(spread(1e-4), spread(1), spread(1e3))
    axs = plot_telemetry(t)
    assert [a.get_yscale() for a in axs[1:3]] == ['log', 'linear']
    assert plot_telemetry(made(spread(1), spread(5)))[1].get_yscale() == 'linear'

def test_it_draws_what_is_odd():
    "nan, a layer that is never called, all zeros, one batch, no threshold for near zero"
    t = Telemetry(['a', 'b', 'c', 'd'], near=None)
    for i, x in [(0, torch.full((4,), nan)), (1, torch.zeros(4)), (3, torch.tensor([[2.]]))]: t.add(i, x)
    plot_telemetry(t)[0].figure.canvas.draw()

def test_nothing_to_draw():
    with pytest.raises(ValueError, match='0 batches.*nothing to draw'): plot_telemetry(Telemetry(['a']))

def test_a_constant_gradient_has_a_size():
    "The gradient of a mean is the same for all, so that its standard deviation is 0"
    t = made(*[spread(1).requires_grad_()]*3)
    def g(*s): return made(*[torch.full((50,), o) for o in s], near=None)
    assert ills(t, g(.1, .1, .1)) == [] and ills(t, g(.1, 1e-6, .1)) == [(1, 'vanishing')]
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    t, grads = Telemetry(['in', 'act', 'out'], hists=False), Telemetry(['in', 'act', 'out'], near=None)
    for _ in range(3):
        x = torch.randn(32, 8)
        for i, m in enumerate(net):
            x = m(x)
            t.add(i, x); x.register_hook(lambda o, i=i: grads.add(i, o))
        x.mean().backward(); t.step(); grads.step()
    assert grads.stats[1, 2].eq(0).all() and not diagnose(t, grads)

def test_one_number_alone_is_a_gradient():
    "A batch of one item, and a model with one output"
    t = made(spread(1).requires_grad_(), torch.ones(1, 1).requires_grad_())
    assert ills(t, made(spread(1), torch.ones(1, 1), near=None)) == []
    assert ills(t, made(spread(1), torch.zeros(1, 1), near=None)) == [(1, 'no gradient')]

def test_a_gradient_of_zero_in_words():
    t, g = Telemetry(['a', 'b']), Telemetry(['a', 'b'], near=None)
    for small in (1e-9, 1e-9, 0.):
        for i, by in enumerate((small, 1.)): t.add(i, torch.randn(50, requires_grad=True)); g.add(i, torch.randn(50)*by)
        t.step(); g.step()
    assert [(o.name, o.illness, o.since, o.because) for o in diagnose(t, g)] == [('a', 'vanishing', 0, 'gradient is 0')]
    for i, by in enumerate((1e-9, 1.)): g.add(i, torch.arange(50.)*by)
    g.step(); t.step()
    assert diagnose(t, g)[0].because == "gradient 1e-09 times the largest layer's"
