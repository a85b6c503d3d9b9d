"Diagnosis: networks made ill on purpose are found out, each by cause, layer, iteration and remedy; healthy ones pass in silence"
import copy
import math
import pickle
from functools import partial

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.testing import assert_close

import zoo
from helpers import small
from minifast.callback import Callback
from minifast.core import set_seed
from minifast.diagnosis import Cause, Diagnosis, diagnose, plot_telemetry
from minifast.gradients import GradientAccumulation, MixedPrecision
from minifast.hook_callbacks import ActivationStats
from minifast.hooks import leaked_hooks
from minifast.sched import LR_Find
from minifast.telemetry import Telemetry, Watch

nan = math.nan

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')


# --- the zoo: some of its networks here, all of them in bench/diagnosis.py

def found(name, seed=0, opt='sgd', rate=0, ill=None, cbs=(), epochs=2):
    "(diagnosis, what it ought to say)"
    net = {**zoo.NETS, **zoo.APART}[name]
    stats = ActivationStats()
    t = zoo.prepare(net, seed, opt, rate, cbs=[stats, *cbs])
    right = zoo.ILLS[ill](t) if ill else zoo.Verdict('')
    if right is None: pytest.skip('it has no such part')
    t.run.fit(epochs, t.learn)
    return stats.diagnose(), right

HEALTHY = ['resnet zero', 'convnext', 'pre-norm', 'lstm', 'large numbers', 'taste', 'lesson relu', 'gpt']

@pytest.mark.parametrize('opt, rate, seed', [('sgd', 1, 0), ('adam', 1, 1)])
@pytest.mark.parametrize('name', HEALTHY)
def test_silent_while_it_learns(name, opt, rate, seed):
    d, _ = found(name, seed, opt, rate)
    assert not d and len(d) == 0 and d.rows == [] and repr(d).endswith('batches): no layer looks ill'), d

@pytest.mark.parametrize('ill', zoo.ILLS)
@pytest.mark.parametrize('name, opt', [('mlp', 'sgd'), ('resnet', 'adam'), ('gru', 'adam')])
def test_each_illness_by_its_name_place_and_time(name, opt, ill):
    d, right = found(name, 3, opt, ill=ill)
    if right.may and not d: return
    assert bool(d) == bool(right.cause), d
    if not right.cause: return
    hits = [o for o in d if o.kind in right.cause.split(' or ')]
    assert hits, d
    assert any(not right.places or any(f'{o.first}.'.startswith(f'{p}.') for p in right.places) for o in hits), d
    assert any(abs(o.since - right.since) <= 3 for o in hits), d
    assert len(repr(d).split('\n')) <= 10 and all(n in {r[0] for r in d.rows} for o in d for n in o.layers)

def test_the_remedy_fits_the_cause():
    for ill, words in (('rate_high', '05c'), ('inputs_255', '04 data'), ('detached', 'detach'), ('frozen', 'requires_grad_')):
        assert words in found('mlp', ill=ill)[0][0].mend and words in repr(found('mlp', ill=ill)[0])


# --- a plain loop

def mlp(depth=4, gain=2**.5, act=nn.ReLU): return zoo.mlp(act, depth, gain)

def train(net, opt=None, at=None, n=20, every=1, loss=F.cross_entropy, ni=32):
    "A Watch after `n` batches; `at[i](net)` is done before batch i; a step after each `every`"
    torch.manual_seed(1)
    y = torch.arange(256) % 4
    x = torch.randn(4, ni)[y] + torch.randn(256, ni)
    opt = opt or optim.SGD(net.parameters(), lr=.02)
    with Watch(net, opt) as w:
        for i in range(n):
            if at and i in at: at[i](net)
            b = torch.randperm(256)[:32]
            loss(net(x[b]), y[b]).backward()
            if i % every == every - 1:
                w.before_step()
                opt.step()
                w.after_step()
                opt.zero_grad()
            w.end()
    return w

class Times(nn.Module):
    def __init__(self, by): super().__init__(); self.by = by
    def forward(self, x): return x*self.by

def told(d): return [(o.kind, o.since, o.first) for o in d]

def bias(i, v): return lambda net: net[i].bias.data.fill_(v)

def small_one(net, opt, at=None, n=20):
    "(what the lesson's small diagnosis finds, what it noted, a Watch of the same steps)"
    step, find = (small('06ab_diagnosis', k, torch=torch) for k in ('small_step', 'small_diagnose'))
    names, weights = zip(*((k, m.weight) for k, m in net.named_modules() if isinstance(m, nn.Linear)))
    seen = []
    class Stepped:   # an optimiser whose steps are noted
        param_groups = opt.param_groups
        def step(self): step(opt, weights, seen)
        def zero_grad(self): opt.zero_grad()
    w = train(net, Stepped(), at, n)
    return find(names, seen), torch.tensor(seen).T, w

def test_the_small_one_notes_what_a_watch_notes():
    for make in (partial(optim.SGD, lr=.02, momentum=.9), partial(optim.Adam, lr=.003)):
        net = mlp()
        found, seen, w = small_one(net, make(net.parameters()))
        size, change = torch.stack([o for _, o in w.steps], 2)[[i for i, o in enumerate(w.weights) if o.matrix]].unbind(1)[:2]
        assert found == [] and not diagnose(w)
        assert_close(seen, change/size, rtol=1e-4, atol=1e-7)

@pytest.mark.parametrize('at', [0, 9])
def test_the_small_one_names_the_layers_that_get_no_gradient(at):
    net = mlp(6)
    found, _, w = small_one(net, optim.SGD(net.parameters(), lr=.02), {at: lambda net: zoo.detach(net[4])})
    cause, = diagnose(w)
    assert cause.kind == 'no gradient' and found == [(n, at) for n in cause.layers] == [('0', at), ('2', at), ('4', at)]

def test_the_small_one_sees_a_rate_too_low_and_none_too_high():
    assert small_one(net := mlp(), optim.SGD(net.parameters(), lr=1e-7))[0] == [('all layers', 0)]
    assert small_one(net := mlp(), optim.SGD(net.parameters(), lr=20.))[0] in ([], [('all layers', 1)])

@pytest.mark.parametrize('at', [0, 7])
def test_dead_units_are_the_cause_and_the_rest_its_consequence(at):
    d = diagnose(train(mlp(), at={at: bias(2, -100.)}))
    assert told(d) == [('dead', at, '2')] and ('3', 'dead', at) in d.rows
    assert {n for n, kind, _ in d.rows if kind == 'dead'} >= {'0', '2', '3'}   # the gradients before it are 0 too

def test_what_has_passed_is_of_no_concern():
    net = mlp()
    assert not diagnose(train(net, at={0: bias(2, -100.), 6: bias(2, 0.)}))

def test_accumulated_batches_are_no_standstill():
    w = train(mlp(), every=4, n=40)
    assert len(w.steps) == 10 and len(w.flows) == 40 and not diagnose(w)

def test_a_rate_too_high_is_no_weight_decay():
    net = mlp()
    assert told(diagnose(train(net, optim.SGD(net.parameters(), lr=20.))))[0] == ('rate too high', 0, '0')

def test_momentum_and_adam_are_taken_as_they_are():
    for make in (partial(optim.SGD, lr=.01, momentum=.9), partial(optim.Adam, lr=.003), partial(optim.RMSprop, lr=.001)):
        net = mlp()
        opt = make(net.parameters())
        old = net[0].weight.detach().clone()
        w = train(net, opt, n=1)
        size, step, grad, along = w.steps[0][1][0]
        new = net[0].weight.detach()
        assert_close(size, old.norm()); assert_close(step, (new - old).norm())
        assert_close(along, ((new - old)*old).sum(), rtol=1e-3, atol=1e-6)

def test_a_group_with_a_small_rate_of_its_own_is_not_vanishing():
    net = mlp()
    opt = optim.SGD([dict(params=net[:4].parameters(), lr=1e-7), dict(params=net[4:].parameters())], lr=.02)
    assert not diagnose(train(net, opt))

def test_five_hundred_layers_in_ten_lines():
    "All of them share the blame, from the first on: what is behind the loss of the signal is rounding, and no place"
    for seed in range(3):
        set_seed(seed)
        net = nn.Sequential(*[m for _ in range(250) for m in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 4))
        d = diagnose(train(zoo.kaiming(net, 1.25), n=9))
        assert told(d)[0] == ('vanishing', 0, '0') and len(repr(d).split('\n')) <= 10 and len(d.rows) > 20

def test_blocks_are_named_in_few_words():
    names = tuple(f'blocks.{i}.{o}' for i in range(3, 12) for o in ('a', 'b'))
    text = str(Cause('dead', 5, 'blocks.3.b', names, 'm', 'u', 'r', ('vanishing',)))
    assert text.startswith('dead since iteration 5: blocks.3 to blocks.11, 18 layers; it began in blocks.3.b\n')
    assert 'm; healthy is u. To do: r. It leads to: vanishing.' in text
    long = Cause('dead', 5, 'blocks.3.b', names, 'what was measured '*4, 'u', 'what to do '*5)
    assert max(map(len, str(long).split('\n'))) <= 100 and '\n    To do: what' in str(long)
    assert len(repr(Diagnosis([long]*9, idle=names)).split('\n')) <= 10 and 'and 7 more: print' in repr(Diagnosis([long]*9))
    kinds = [Cause(k, 0, 'a', names, 'm', 'u', 'r') for k in 'abcdefghijkl']
    assert len(repr(Diagnosis(kinds, idle=names)).split('\n')) == 10 and not Diagnosis([])

class Twice(nn.Module):
    "A layer called twice, one that is never called, one that chance leaves out, a head that isn't used"
    def __init__(self):
        super().__init__()
        self.a, self.b, self.idle, self.some = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.act, self.head, self.other = nn.ReLU(), nn.Linear(32, 4), nn.Linear(32, 9)
        self.i = 0
    def forward(self, x):
        self.i += 1
        x = self.act(self.b(self.act(self.b(self.act(self.a(x))))))
        if self.i % 5 < 2: x = x + self.some(x)
        out = self.head(x)
        self.other(x)
        return out

def test_shared_idle_and_skipped_layers():
    w = train(Twice(), n=24)
    d = diagnose(w)
    assert not d and d.idle == ['idle'] and 'never called: idle' in repr(d)
    assert sum(n == 'b' for n in w.flows[0][1]) == 2

def test_the_beginning_may_be_frozen():
    net = mlp()
    net[0].requires_grad_(False); net[2].requires_grad_(False)
    assert not diagnose(train(net))
    other = mlp(6)
    other[6].requires_grad_(False)
    assert told(diagnose(train(other))) == [('frozen', 0, '6')]

@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('make', [weight_norm, spectral_norm])
def test_a_parametrized_first_layer(make, bias):
    "Its matrix is seen, and what makes it is no layer"
    def first(): return nn.Sequential(make(nn.Linear(32, 32, bias)), nn.ELU(), nn.Linear(32, 4))
    torch.manual_seed(0)
    assert not diagnose(train(first())).rows and diagnose(train(first())).idle == []
    net = first()
    d = diagnose(train(net, optim.SGD(net.parameters(), lr=100.)))
    assert [o.kind for o in d] == ['rate too high'] and '0' in d[0].layers
    net = nn.Sequential(Times(100.), *first())
    assert told(diagnose(train(net, optim.Adam(net.parameters(), lr=.003))))[:1] == [('inputs', 0, '1')]

def test_the_rate_is_named_before_what_vanishes():
    def net(): return nn.Sequential(*[m for _ in range(5) for m in (nn.Linear(32, 32), nn.Sigmoid())], nn.Linear(32, 4))
    for lr, kind in ((1e-8, 'rate too low'), (1e3, 'rate too high')):
        torch.manual_seed(0)
        assert diagnose(train(m := net(), optim.SGD(m.parameters(), lr=lr)))[0].kind == kind

def test_limits_can_be_given():
    w = train(mlp())
    assert not diagnose(w) and {o.kind for o in diagnose(w, high=1e-4)} == {'rate too high'}
    with pytest.raises(TypeError): diagnose(w, nonsense=1)

def test_nothing_to_judge():
    with pytest.raises(ValueError, match=r'got Watch\(.* 0 batches\), so there is nothing to judge: train'):
        diagnose(Watch(mlp(), None))
    with pytest.raises(TypeError, match='got Telemetry, which knows nothing of the steps: give a Watch'):
        diagnose(Telemetry(['a']))

@pytest.mark.parametrize('how', [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_says_the_same(how):
    w = train(mlp(), at={5: bias(2, -100.)})
    assert repr(diagnose(how(w))) == repr(diagnose(w))

def test_sparse_gradients_and_one_item_and_double():
    net = nn.Sequential(nn.Embedding(9, 8, sparse=True), nn.Flatten(), nn.Linear(24, 4))
    with Watch(net, opt := optim.SGD(net.parameters(), lr=.1)) as w:
        for _ in range(9):
            net(torch.randint(0, 9, (1, 3))).square().mean().backward()
            w.before_step(); opt.step(); w.after_step(); w.end(); opt.zero_grad()
    assert not diagnose(w)
    def double(net): return train(net.double(), loss=lambda p, y: F.cross_entropy(p, y), ni=32)
    torch.set_default_dtype(torch.float64)
    try: assert not diagnose(double(mlp()))
    finally: torch.set_default_dtype(torch.float32)


# --- in a fit

class Stop(Callback):
    def after_backward(self):
        if self.n_iter == 5: raise KeyboardInterrupt

def fit(*cbs, ill=None, epochs=2, **kw):
    stats = ActivationStats(**kw)
    t = zoo.prepare(zoo.NETS['mlp'], 0, cbs=[stats, *cbs])
    if ill: zoo.ILLS[ill](t)
    t.run.fit(epochs, t.learn)
    return stats, t

@pytest.mark.parametrize('cbs', [[GradientAccumulation(4)], [MixedPrecision(torch.bfloat16)]])
def test_silent_with_other_callbacks(cbs): assert not fit(*cbs)[0].diagnose()

@pytest.mark.parametrize('kw', [dict(every=4), dict(keep=8), dict(grads=True), dict(hists=False, near=None),
                                dict(modules=lambda m: [m[0]]), dict(sample=None)])
def test_whatever_is_noted(kw):
    assert not fit(**kw)[0].diagnose()
    assert told(fit(ill='rate_high', **kw)[0].diagnose())[0][0] == 'rate too high'

def test_a_fit_that_is_broken_off_and_another():
    stats, t = fit()
    t.run.add_cb(Stop())
    with pytest.raises(KeyboardInterrupt): t.run.fit(1, t.learn)
    assert leaked_hooks(t.learn.model) == [] and len(stats.watch.steps) == 5 and not stats.diagnose()

def test_a_sweep_ends_with_a_rate_that_is_too_high():
    stats, t = fit(LR_Find(max_iter=60, max_lr=1e4), epochs=9)
    assert [o.kind for o in stats.diagnose()] == ['rate too high'] and stats.diagnose()[0].since > 10


def made(*layers, n=4, **kw):
    "Telemetry of `n` equal batches"
    t = Telemetry([f'l{i}' for i in range(len(layers))], **kw)
    for _ in range(n):
        for i, x in enumerate(layers): t.add(i, x)
        t.step()
    return t

def spread(s): return torch.randn(4000)*s

# --- the picture

def network(n, iters=60, **kw):
    t = Telemetry([f'layer {i}' for i in range(n)], **kw)
    for b in range(iters):
        for i in range(n): t.add(i, F.relu(torch.randn(40, 4)*.97**i + .01*b))
        t.step()
    return t

def texts(ax): return ax.get_xlabel(), ax.get_ylabel()
def thick(ax): return [o for o in ax.lines if o.get_linewidth() > 1]
def labels(ax): return sorted(o.get_text() for o in ax.texts)
def note(axs): return axs[0].figure.get_supxlabel()

@pytest.mark.parametrize('n', [1, 5, 16])
def test_the_whole_picture(n):
    t = network(n)
    axs = plot_telemetry(t, 'The finding')
    hists = min(n, 4)
    assert len(axs) == 4 + hists and axs[0].figure.get_suptitle() == 'The finding' and note(axs) == ''
    assert [texts(a) for a in axs[:4]] == [('iteration', k) for k in ('mean', 'standard deviation', 'share at the floor', 'share within ±0.01')]
    for ax, ys in zip(axs, [*t.stats, t.dead, t.near_zero]):
        assert len(ax.lines) == n
        for line, y in zip(ax.lines, ys):
            assert_close(torch.tensor(line.get_xdata()).long(), t.iters); assert_close(torch.tensor(line.get_ydata()).float(), y)
    colors = [[mpl.colors.to_hex(o.get_color()) for o in a.lines] for a in axs[:4]]
    assert colors[0] == colors[1] == colors[2] == colors[3] and len(set(colors[0])) == n
    assert labels(axs[1]) == sorted(f'{i} layer {i}' for i in range(n))
    for ax, i in zip(axs[4:], sorted({round(i*(n-1)/3) for i in range(4)})):
        assert ax.get_title() == f'{i} layer {i}' and texts(ax) == ('iteration', 'value')
        im, = ax.images
        used = t.hists[i].sum(1).nonzero().flatten()
        assert_close(torch.tensor(im.get_array()), t.hists[i][used[0]:used[-1]+1].double().log1p())
        lo, hi = t.ranges[i].tolist()
        w = (hi - lo)/40
        assert im.get_extent() == pytest.approx([0, 60, lo + int(used[0])*w, lo + (int(used[-1]) + 1)*w])

def test_a_label_stands_by_the_end_of_its_line_and_apart_from_the_others():
    axs = plot_telemetry(network(5))
    axs[0].figure.canvas.draw()
    for ax in axs[:4]:
        ends = {o.get_text(): o for o in ax.texts}
        heights = []
        for i, line in enumerate(ax.lines):
            o = ends[f'{i} layer {i}']
            y = ax.transAxes.inverted().transform(ax.transData.transform((0, line.get_ydata()[-1])))[1]
            assert o.xy == pytest.approx((1, y), abs=1e-4) and abs(o.xyann[1] - y) < .3
            heights.append(o.xyann[1])
        heights.sort()
        assert min(b - a for a, b in zip(heights, heights[1:])) > .069 and heights[-1] <= 1 + 1e-9

def blocks(n, per=4, iters=6):
    "A telemetry of stem, `n` blocks of `per` layers, and head"
    names = ['Conv2d stem', *[f'Linear blocks.{i}.fc{j}' for i in range(n) for j in range(per)], 'Linear head']
    t = Telemetry(names)
    for b in range(iters):
        for i in range(len(names)): t.add(i, torch.randn(40, 4)*.99**i + .01*b)
        t.step()
    return t

RUNS = {(4, 10): ['0 Conv2d stem', '41 Linear head', *(f'blocks.{i}' for i in range(4))],
        (12, 4): ['blocks.1 to 2', 'blocks.11 to head', 'blocks.3 to 4', 'blocks.5 to 6', 'blocks.7 to 8', 'blocks.9 to 10', 'stem to blocks.0'],
        (125, 4): ['stem to blocks.14', 'blocks.111 to head', *(f'blocks.{i} to {i+15}' for i in range(15, 111, 16))]}

@pytest.mark.parametrize('n, per', RUNS)
def test_many_layers_by_block(n, per):
    "Of each run of blocks the median, and thin lines for the least and the largest"
    t = blocks(n, per)
    axs = plot_telemetry(t)
    for ax, ys in zip(axs, t.stats):
        runs = len(RUNS[n, per])
        single = sum(' ' in o and o[0].isdigit() for o in RUNS[n, per])
        assert len(thick(ax)) == runs <= 8 and len(ax.lines) == single + 3*(runs - single)
    assert labels(axs[1]) == sorted(RUNS[n, per]) and 'median' in note(axs)
    rgb = {mpl.colors.to_hex(o.get_color()) for o in axs[0].lines}
    assert len(rgb) == runs

def test_a_run_is_the_median_and_the_range_of_its_layers():
    t = blocks(4, 10)
    ax = plot_telemetry(t)[1]
    mid, low, high = (torch.tensor(ax.lines[i].get_ydata()) for i in (1, 2, 3))   # blocks.0, after the stem
    own = t.stats[1, 1:11]
    for got, want in zip((mid, low, high), (own.median(0).values, own.amin(0), own.amax(0))): assert_close(got, want)

@pytest.mark.parametrize('names, want', [
    ([f'hidden {i}' for i in range(50)], ['49 hidden 49', *(f'hidden {i} to {i+6}' for i in range(0, 49, 7))]),
    ([f'ReLU {i}' for i in range(40)], [f'block {i} to {i+4}' for i in range(0, 40, 5)]),
    ([f'Linear net1.{k}.{i}' for k in range(4) for i in range(9)], [f'net1.{k}' for k in range(4)]),
    (['layer'] + ['x']*30, ['0 layer', 'x'])])
def test_runs_of_names(names, want):
    t = Telemetry(names, hists=False)
    for i in range(len(names)): t.add(i, torch.randn(5)*1.2**i)
    t.step()
    assert labels(plot_telemetry(t)[1]) == sorted(want)

def test_what_was_not_called_is_no_gap_and_is_said_once():
    t = Telemetry(['a', 'now and then', 'never', 'breaks'])
    for b in range(12):
        t.add(0, torch.randn(50))
        if b % 3 == 0: t.add(1, torch.randn(50))
        t.add(3, torch.full((50,), nan if b > 5 else 1.))
        t.step()
    axs = plot_telemetry(t, layers=[0, 1])
    assert note(axs) == 'called now and then: now and then (4 of 12 batches); never called: never'
    a, some, breaks = axs[0].lines
    assert list(some.get_xdata()) == [0, 3, 6, 9] and torch.tensor(some.get_ydata()).isfinite().all()
    assert list(torch.tensor(breaks.get_ydata()).isfinite()) == [True]*6 + [False]*6      # called, and nan: a gap
    h = torch.tensor(axs[5].images[0].get_array())
    assert h.shape[1] == 12 and h.any(0).all() and (h[:, 1:3] == h[:, :1]).all()

def test_lines_on_one_another_get_one_label():
    t = Telemetry([f'l{i}' for i in range(9)])
    for i in range(9): t.add(i, torch.randn(50) + 3)
    t.step()
    axs = plot_telemetry(t)
    assert labels(axs[2]) == labels(axs[3]) == ['all 9'] and len(labels(axs[0])) == 9

@pytest.mark.parametrize('t', [network(5), network(16), network(50), blocks(125)])
def test_nothing_overlaps(t):
    "Every text of the figure is inside it, and the axes' boxes, texts included, are apart"
    axs = plot_telemetry(t, 'A title')
    fig = axs[0].figure
    fig.canvas.draw()
    r = fig.canvas.get_renderer()
    boxes = [a.get_tightbbox(r) for a in fig.axes]
    assert all(b.x0 >= -1 and b.y0 >= -1 and b.x1 <= fig.bbox.x1 + 1 and b.y1 <= fig.bbox.y1 + 1 for b in boxes)
    for i, a in enumerate(boxes):
        for b in boxes[:i]: assert min(a.x1, b.x1) - max(a.x0, b.x0) < 2 or min(a.y1, b.y1) - max(a.y0, b.y0) < 2
    for ax in axs[:4]:
        one = sorted((mpl.text.Text.get_window_extent(o, r) for o in ax.texts), key=lambda b: b.y0)
        assert all(a.y1 - b.y0 < 2 for a, b in zip(one, one[1:]))
    w, h = fig.get_size_inches()
    assert w <= 10.5 and h <= 6.5

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
    axs = plot_telemetry(t)
    axs[0].figure.canvas.draw()
    assert [a.get_ylabel() for a in axs[2:4]] == ['share (not counted)']*2 and not axs[2].lines and note(axs) == 'never called: c'

def test_nothing_to_draw():
    with pytest.raises(ValueError, match='0 batches.*nothing to draw'): plot_telemetry(Telemetry(['a']))

@pytest.mark.skipif(not hasattr(torch.amp, 'GradScaler'), reason='float16 on a CPU needs PyTorch 2.3')
def test_a_step_that_is_left_out_for_overflow_is_no_illness():
    stats, t = fit(MixedPrecision(torch.float16, init_scale=2.**40))
    skipped = [it for it, rows in stats.watch.steps if not rows[:, 1].any()]
    assert skipped and skipped[0] == 0 and len(skipped) < len(stats.watch.steps) and not stats.diagnose()
