"Telemetry: the numbers are those of PyTorch in float64, none is lost, nothing is changed, kept or waited for"
import copy
import gc
import math
import pickle
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import pickled as by_pickle, saved as by_save, small
from minifast.init import GeneralRelu
from minifast.telemetry import Log, Meter, Reading, Row, Telemetry, Watch, bin_counts, moments

nan, inf = math.nan, math.inf


def record(*batches, **kw):
    "One layer: a `Telemetry` of a batch for each of `batches`, a tensor or a list of tensors (several calls)"
    t = Telemetry(['a'], **kw)
    for b in batches:
        for x in b if isinstance(b, list) else [b]: t.add(0, x)
        t.step()
    return t

def oracle(x):
    "Mean and standard deviation, in float64"
    x = x.detach().double()
    return torch.stack([x.mean(), x.std() if x.numel() > 1 else x.new_tensor(nan)])

def counted(x, t, i=0):
    "numpy's count of the values of `x` on the grid of layer `i`, what is beyond it in the end bins"
    lo, hi = t.ranges[i].tolist()
    x, w = x.detach().double().flatten(), (hi - lo)/t.bins
    x = x[x.isfinite()]
    at = ((x - lo)/w).floor() if t.rng else (x/w).floor() - round(lo/w)     # the edges of a fitted grid are multiples of w
    return np.bincount(at.clamp(0, t.bins-1).long().numpy(), minlength=t.bins).tolist()

def close(t, x, j=0, rtol=2e-5):
    "The stats of batch `j` are those of `x`; a mean counts against the spread"
    (m, s), (want_m, want_s) = t.stats[:, 0, j].double(), oracle(x)
    assert_close(s, want_s, rtol=rtol, atol=1e-12*float(want_m.abs().nan_to_num(0, 0, 0)), equal_nan=True)
    assert_close(m, want_m, rtol=2e-6, atol=1e-6*float(want_s.nan_to_num(0, 0, 0)) + 2e-45, equal_nan=True)


# --- mean and spread

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(64,), (7, 5), (8, 3, 5, 4), (2, 3, 4, 5, 6), (1, 1), (1,), (), (3, 1, 1, 1), (1, 3, 200, 700)]

@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_stats_of_every_type_and_shape(dtype, shape):
    x = (torch.randn(shape)*3 + 1).to(dtype)
    close(record(x), x)

def strided(x): return torch.randn(*x.shape[:-1], 2*x.shape[-1])[..., ::2].copy_(x)
LAYOUTS = dict(channels_last=lambda x: x.to(memory_format=torch.channels_last), strided=strided,
               permuted=lambda x: x.permute(3, 1, 0, 2), expanded=lambda x: x[:1, :, :1].expand(4, -1, 6, -1),
               sliced=lambda x: x[1:, 1:3, ::2], swapped=lambda x: x.flatten(1).t())

@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_stats_of_every_layout(dtype, layout):
    x = LAYOUTS[layout](torch.randn(6, 4, 5, 6).relu().to(dtype) + 1)
    t = record(x, floors=1.)
    close(t, x)
    assert t.hists[0, :, 0].tolist() == counted(x, t)
    assert_close(t.dead_channels[0], (x == 1).float().transpose(0, 1).flatten(1).mean(1))

@pytest.mark.parametrize('mean', [1e2, 1e4, -1e4, 1e5, 1e6, 1e7])
def test_spread_beside_a_large_mean(mean):
    "Better than x.std(), whose mean is rounded to float32"
    x = torch.randn(100_001) + mean
    close(record(x), x, rtol=1e-6)

@pytest.mark.parametrize('scale', [1e-40, 1e-30, 3e-23, 1e-20, 1e-19, 1e-10, 1e10, 1e20, 1e30, 1e38])
def test_squares_neither_vanish_nor_overflow(scale):
    x = torch.randn(1001).clamp(-3, 3)*scale
    close(record(x), x); close(record(x[:3]), x[:3])

@given(n=st.integers(1, 3000), mean=st.floats(-50, 50), e=st.integers(-30, 30), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_moments(n, mean, e, seed):
    x = (torch.randn(n, generator=torch.Generator().manual_seed(seed)) + mean)*10.**e
    m, m2 = moments(x)
    assert_close(float(m), float(x.double().mean()), rtol=1e-6, atol=1e-6*10.**e)
    assert_close(float(m2), float(x.double().var(correction=0))*n, rtol=4e-5, atol=1e-12*10.**(2*e))

def test_moments_of_ten_million():
    x = torch.randn(10_000_000)
    assert_close(float(moments(x)[1]), float(x.double().square().sum()), rtol=3e-6, atol=0)

@pytest.mark.parametrize('value', [0., 1., -7., 1e4, 1e-20, 3e38])
def test_constants(value):
    t = record(torch.full((6, 5), value))
    assert_close(t.stats[0], torch.tensor([[value]]), rtol=1e-6, atol=0)
    assert t.stats[1].item() <= 1e-7*abs(value) and t.hists.sum() == 30 and t.hists.max() == 30
    assert t.dead.item() == (value == 0) and t.near_zero.item() == (abs(value) < .01)

def test_one_number_has_no_spread():
    t = record(torch.tensor([[3.]]))
    assert t.stats[0].item() == 3 and math.isnan(t.stats[1].item()) and t.hists.sum() == 1

def test_autocast_leaves_the_numbers_alone():
    x = torch.randn(1000) + .1
    with torch.autocast('cpu', torch.bfloat16): t = record(x)
    close(t, x)

@pytest.mark.parametrize('bad', [[nan], [inf], [-inf], [nan, inf, -inf, nan]])
@pytest.mark.parametrize('kw', [dict(), dict(rng=(-1, 3)), dict(hists=False)], ids=str)
def test_nan_and_inf_are_counted_apart(bad, kw):
    x = torch.randn(4, 25)
    x.view(-1)[:len(bad)] = torch.tensor(bad)
    t = record(x, torch.randn(4, 25), **kw)
    assert t.nonfinite.tolist() == [[len(bad), 0]]
    assert t.stats[:, :, 0].isnan().tolist() == oracle(x).isnan()[:, None].tolist() and t.stats[:, :, 1].isfinite().all()
    assert_close(t.near_zero[0, 0], (x.abs() < .01).float().mean())
    if t.bins: assert t.hists[0, :, 0].sum() == 100 - len(bad) and t.hists[0, :, 0].tolist() == counted(x, t)

def test_nothing_but_nan():
    t = record(torch.full((3, 4), nan), torch.ones(3, 4))
    assert t.hists.sum((0, 1)).tolist() == [0, 12] and t.nonfinite.tolist() == [[12, 0]]


# --- histograms

@given(st.lists(st.floats(-1e6, 1e6, width=32) | st.floats(width=32, allow_nan=False, allow_infinity=False),
                min_size=1, max_size=40), st.integers(4, 256))
@settings(max_examples=200, deadline=None)
def test_fitted_histogram_counts_every_value_in_its_bin(vals, bins):
    "But for those that become 0 when they are divided by the width of a bin"
    top = max(map(abs, vals))
    x = torch.tensor([v for v in vals if v == 0 or abs(v) > 1e-30*top])
    t = record(x, bins=bins)
    lo, hi = t.ranges[0].tolist()
    assert lo <= float(x.min()) and float(x.max()) < hi and t.hists[0, :, 0].tolist() == counted(x, t)

@given(st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=40), st.integers(4, 256),
       st.integers(-8, 8), st.integers(1, 16))
@settings(max_examples=100, deadline=None)
def test_fixed_histogram_counts_what_is_beyond_in_the_end_bins(vals, bins, lo, width):
    x = torch.tensor(vals)
    t = record(x, bins=bins, rng=(lo, lo + width))
    got, edges = t.hists[0, :, 0], np.linspace(lo, lo + width, bins + 1)
    near_edge = sum(bool(np.abs(edges - v).min() < 1e-5) for v in vals)     # there float32 may decide either way
    assert got.sum() == len(vals) and t.ranges.tolist() == [[lo, lo + width]]
    assert abs(got - torch.tensor(counted(x, t))).sum() <= 2*near_edge
    assert abs(got[0] - sum(v < edges[1] for v in vals)) <= near_edge

@given(st.lists(st.tuples(st.integers(-60, 60), st.integers(-1, 3)), min_size=1, max_size=6), st.integers(4, 64),
       st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_histograms_of_different_ranges_merge_exactly(batches, bins, seed):
    "Magnitudes from 2**-60 to 2**60, relu'd, centred, shifted far off"
    torch.manual_seed(seed)
    xs = [torch.randn(50)*2.**e if s > 2 else (torch.randn(50).relu() + s)*2.**e for e, s in batches]
    t = record(*xs, bins=bins)
    assert t.hists.shape == (1, bins, len(xs))
    (lo, hi), = t.ranges.tolist()
    for j, x in enumerate(xs):
        assert t.hists[0, :, j].tolist() == counted(x, t) and lo <= x.min() and x.max() < hi

def test_bins_are_fine_enough():
    "A batch's own grid has bins of less than an 18th of its range; a merged one less than twice a fresh one's"
    for x in (torch.randn(1000), torch.rand(1000) + 5, torch.randn(1000).relu()*1e-6, torch.rand(1000)*1e9):
        t = record(x)
        assert (t.hists[0, :, 0] > 0).sum() >= 18
    assert (record(torch.rand(1000), torch.rand(1000)*2).hists[0] > 0).sum(0)[1] >= 18

def test_a_merged_grid_reaches_as_far_as_the_values():
    "0 to 5 in bins of 1 is one bin too much for four"
    t = record(torch.tensor([0., 1.9]), torch.tensor([2.5, 4.4]), bins=4)
    assert t.ranges.tolist() == [[0, 8]] and t.hists[0].T.tolist() == [[2, 0, 0, 0], [0, 1, 1, 0]]

def test_all_zeros_get_a_range_one_can_read():
    t = record(torch.zeros(3, 5))
    assert t.ranges.tolist() == [[0, 10]] and t.hists[0, :, 0].tolist() == [15] + [0]*39
    t = record(torch.zeros(3, 5), torch.ones(3, 5))
    assert t.hists.sum(1).tolist() == [[15, 15]] and (t.ranges[0, 1] <= 2.1)

def test_a_value_just_below_an_edge_stays_below_it():
    x = torch.tensor([-1e-9, -1e-30, 0., 1e-30, 5., -5.])
    t = record(x)
    below = t.hists[0, :int((0 - t.ranges[0, 0])/((t.ranges[0, 1] - t.ranges[0, 0])/40)), 0].sum()
    assert below == 3 and t.hists[0, :, 0].tolist() == counted(x, t)

def test_spread_below_the_resolution_of_float32():
    x = torch.tensor([1e7, 1e7 + 1, 1e7 + 2]*9)
    t = record(x)
    assert t.hists.sum() == 27 and sorted(t.hists[t.hists > 0].tolist())[-1] <= 27 and t.hists[0, :, 0].tolist() == counted(x, t)

@pytest.mark.parametrize('n', [1, 2, 3, 1000, 1001])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_bin_counts(n, dtype):
    y = (torch.randn(n)*8 + 10).to(dtype)
    want = y.clamp(0, 19).floor().long().bincount(minlength=20)
    got = bin_counts(y.clone(), 20)
    assert got.dtype == torch.int64 and got.tolist() == want.tolist()
    assert bin_counts(y.clamp(0, 19), 20, inside=True).tolist() == want.tolist()

@pytest.mark.parametrize('bins', [4, 5, 40, 255, 256])
def test_any_number_of_bins(bins):
    x = torch.randn(3001)
    for rng in (None, (-1, 1)):
        t = record(x, bins=bins, rng=rng)
        assert t.hists.shape == (1, bins, 1) and t.hists[0, :, 0].tolist() == counted(x, t)

def test_no_histograms():
    t = record(torch.randn(5, 4), hists=False)
    assert t.bins == 0 and t.hists.shape == (1, 0, 1) and t.ranges.tolist() == [[0, 0]]


# --- dead and near zero

ACTS = {   # name -> (activation, its floor)
    'relu': (F.relu, 0.), 'shifted': (lambda x: F.relu(x) - .4, -.4), 'clamped': (lambda x: x.relu().clamp_max(.5), 0.),
    'shifted and clamped': (lambda x: (x.relu() - .4).clamp_max(.5), -.4), 'hardtanh': (F.hardtanh, -1.),
    'leaky': (lambda x: F.leaky_relu(x, .1), None), 'linear': (lambda x: x, None), 'elu': (F.elu, None),
    'general': (GeneralRelu(sub=.4, maxv=6.), -.4), 'general leaky': (GeneralRelu(leak=.1, sub=.4), None)}

@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('act', ACTS)
def test_dead_share_of_an_activation(act, dtype):
    f, floor = ACTS[act]
    z = torch.randn(64, 6, 3, 2).to(dtype)
    z[:, 0], z[:, 1] = -2, 2                                          # one channel all dead, one all alive
    t = record(f(z), floors=floor)
    below = (z <= (-1 if act == 'hardtanh' else 0)).float()*(floor is not None)
    assert_close(t.dead, below.mean().view(1, 1), rtol=0, atol=1e-7)
    assert_close(t.dead_channels[0], below.mean((0, 2, 3)), rtol=0, atol=1e-7)
    assert t.dead_channels[0][:2].tolist() == [float(floor is not None), 0]

@pytest.mark.parametrize('floor', [0., -.4])
def test_a_dead_layer_is_dead_wherever_its_floor_is(floor):
    "The share of 1 that the old measure, bins around zero, gave as 0 for a shifted activation"
    t = record(F.relu(-torch.rand(16, 8)) + floor, floors=floor)
    assert t.dead.item() == 1 and t.near_zero.item() == (floor == 0)

@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40), st.floats(.001, .5))
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize('kw', [dict(), dict(hists=False), dict(rng=(0, 10)), dict(rng=(.5, 1))], ids=str)
def test_near_zero_is_counted_on_the_values(kw, vals, near):
    x = torch.tensor(vals)
    t = record(x, near=near, **kw)
    assert_close(t.near_zero, (x.abs() < near).float().mean().view(1, 1), rtol=0, atol=1e-6)

def test_nothing_is_counted_where_nothing_is_asked():
    x = torch.zeros(4, 3)
    t = record(x, near=None)
    assert t.near_zero.item() == 0 and t.dead.item() == 1
    t = record(x, floors=None)
    assert t.near_zero.item() == 1 and t.dead.item() == 0
    t = record(x, near=None, floors=None)
    assert t.near_zero.item() == t.dead.item() == 0 and t.dead_channels[0].shape == (0,)

def test_a_floor_for_each_layer():
    t = Telemetry(['a', 'b', 'c'], floors=[0., -.4, None])
    for i in range(3): t.add(i, F.relu(-torch.rand(4, 2)) - .4*(i == 1))
    assert t.dead.flatten().tolist() == [1, 1, 0]

def test_channels_are_those_of_the_last_epoch():
    def batch(k): return torch.stack([torch.zeros(6), torch.ones(6)*k, torch.rand(6) + 1, torch.full((6,), .005)], 1)
    t = Telemetry(['a'])
    for epoch in range(2):
        for k in (0, 1, epoch, 1):
            t.add(0, batch(k)); t.step()
            if epoch == 0: t.fetch()                                   # in the middle of an epoch nothing is lost
        assert_close(t.dead_channels[0], torch.tensor([1., .5 if epoch == 0 else .25, 0, 0]))
        t.end()
        assert_close(t.dead_channels[0], torch.tensor([1., .5 if epoch == 0 else .25, 0, 0]))   # until the next begins
        assert_close(t.near_channels[0], torch.tensor([1., .5 if epoch == 0 else .25, 0, 1]))
    assert t.dead.shape == (1, 8)

def test_channels_of_flat_and_deep_outputs():
    t = Telemetry(['1d', '2d', '3d', 'none'])
    t.add(0, torch.tensor([0., 1., 2., 0.])); t.add(1, torch.tensor([[0., 1.], [0., 0.]]))
    t.add(2, torch.zeros(2, 3, 5))
    assert [o.tolist() for o in t.dead_channels] == [[.5], [1, .5], [1, 1, 1], []]


# --- what is kept and when

def test_every_nth_batch():
    xs = [torch.randn(9) for _ in range(10)]
    t = record(*xs, every=3)
    assert t.iters.tolist() == [0, 3, 6, 9] and t.iters.dtype == torch.int64
    for j, i in enumerate(t.iters): close(t, xs[i], j)

@given(n=st.integers(1, 120), keep=st.integers(2, 9), every=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_at_most_keep_batches_stay(n, keep, every):
    t = Telemetry(['a'], keep=keep, every=every, hists=False)
    for i in range(n):
        t.add(0, torch.full((2,), float(i))); t.step()
        if i % 7 == 0: t.fetch()
        assert len(t.log.waiting) + len(t.log.rows) <= keep
    its = t.iters.tolist()
    assert its == list(range(0, n, t.every)) and t.stats[0, 0].tolist() == its and len(its) <= keep
    assert len(its) > keep//2 or t.every == every                                  # no more than needed is dropped

def size(t): return len(pickle.dumps(t))

def test_memory_stays_the_same():
    t, sizes = Telemetry(['a', 'b'], keep=16), []
    for i in range(400):
        t.add(0, torch.randn(8, 4)); t.add(1, torch.randn(8, 3, 2)); t.step()
        if i % 50 == 49: sizes.append(size(t))
    assert max(sizes) < 1.7*min(sizes) and len(t.iters) <= 16

def test_without_keep_a_batch_costs_a_row():
    t = Telemetry(['a'])
    for i in range(3000): t.add(0, torch.randn(64, 4)); t.step()
    assert len(t.log.waiting) + len(t.log.rows) == 3000 and size(t) < 3000*(10 + 40)*8*1.2

def test_what_waits_is_fetched_in_time():
    t = Telemetry(['a']*100, hists=False)
    for i in range(50):
        for j in range(100): t.add(j, torch.ones(2))
        t.step()
    assert len(t.log.waiting) < 4200 and t.stats.shape == (2, 100, 50)

def test_several_calls_in_a_batch_are_one_column():
    a, b, c = torch.randn(5, 4) + 100, torch.randn(30, 4)*3, torch.randn(2, 4)
    t = record([a, b], [c], [c, c, a])
    assert t.stats.shape == (2, 1, 3) and t.hists.sum(1).tolist() == [[140, 8, 36]]
    for j, x in enumerate([torch.cat([a, b]), c, torch.cat([c, c, a])]):
        close(t, x, j)
        assert t.hists[0, :, j].tolist() == counted(x, t)
        assert_close(t.near_zero[0, j], (x.abs() < .01).float().mean())

def test_a_layer_that_is_not_called_is_nan():
    t = Telemetry(['a', 'b', 'never'])
    for i in range(4):
        t.add(0, torch.randn(3, 4))
        if i % 2: t.add(1, torch.randn(3, 4))
        t.step()
    assert t.stats.isnan().tolist() == [[[False]*4, [True, False]*2, [True]*4]]*2
    assert t.dead.isnan().tolist() == t.stats[0].isnan().tolist() and t.hists.sum(1)[1].tolist() == [0, 12, 0, 12]
    assert t.dead_channels[2].shape == (0,) and t.nonfinite.tolist() == [[0]*4]*3

def test_nothing_yet_and_nothing_more():
    t = Telemetry(['a', 'b'])
    assert t.stats.shape == (2, 2, 0) and t.hists.shape == (2, 40, 0) and t.iters.shape == (0,)
    assert t.dead.shape == t.near_zero.shape == (2, 0) and [o.shape for o in t.dead_channels] == [(0,)]*2
    t.add(0, torch.randn(0, 3)); t.step(); t.end()
    assert t.stats.shape == (2, 2, 0) and repr(t) == 'Telemetry(2 layers, 0 batches)'
    t.add(1, torch.randn(2, 3, requires_grad=True)); t.step()
    assert t.asked == {1} and repr(t) == 'Telemetry(2 layers, 1 batches)'
    t.reset()
    assert t.it == 0 and t.stats.shape == (2, 2, 0) and t.asked == set() and t.dead_channels[1].shape == (0,)

def test_reset_takes_back_a_doubled_every():
    t = record(*[torch.ones(2)]*20, keep=3, every=2)
    assert t.every > 2
    t.reset()
    assert t.every == 2

def test_recording_says_whether_a_batch_is_noted():
    t, seen = Telemetry(['a'], every=2), []
    for _ in range(4): seen.append(t.recording); t.add(0, torch.ones(2)); t.step()
    assert seen == [True, False, True, False] and t.iters.tolist() == [0, 2]

def test_layers_share_their_room_without_mixing():
    xs = [torch.randn(n, 3).to(d) for n, d in [(2, torch.float32), (500, torch.float32), (3, torch.float64),
                                               (9, torch.float16), (40, torch.float64), (1, torch.float32)]]
    together = Telemetry([str(i) for i in range(6)])
    for _ in range(2):
        for i, x in enumerate(xs): together.add(i, x)
        together.step()
    for i, x in enumerate(xs):
        alone = record(x, x)
        assert_close(together.stats[:, i:i+1], alone.stats, rtol=0, atol=0)
        assert (together.hists[i] == alone.hists[0]).all() and (together.near_zero[i] == alone.near_zero).all()


# --- meter, log, reading

def test_a_row_has_named_fields():
    x = torch.randn(5, 3)
    row = Meter(bins=8)(x, floor=None)
    assert isinstance(row, Row) and row.n == 15 and row.counts.sum() == 15 and row.hits.shape == (2, 3)
    assert_close(row.mean, x.mean()); assert_close(row.root, float((x - x.mean()).norm()))
    log = Log(bins=8)
    log.add(3, row)
    log.fetch()
    assert log.rows['layer'].tolist() == [3] and log.rows['n'].tolist() == [15]
    assert log.rows['counts'].shape == (1, 8) and repr(log) == 'Log(1 rows, 0 waiting)'

def test_a_reading_is_the_same_until_there_is_more():
    t = record(torch.randn(5, 3))
    first = t.reading
    assert t.reading is first and t.stats is t.stats and t.hists is first.hists
    t.add(0, torch.randn(5, 3))
    assert t.reading is not first and t.iters.tolist() == [0, 1] and first.iters.tolist() == [0]
    second = t.reading
    t.step(); t.end()
    assert t.reading is second

class Counts(TorchDispatchMode):
    "How often each operation ran"
    def __init__(self): super().__init__(); self.n = Counter()
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n[func.name().split('::')[1].split('.')[0]] += 1
        return func(*args, **(kwargs or {}))

def test_each_table_is_made_once():
    t = Telemetry(['a', 'b'])
    for _ in range(4):
        for i in (0, 1): t.add(i, torch.randn(9, 4))
        t.step()
    def read(): return t.stats, t.dead, t.near_zero, t.nonfinite, t.hists, t.ranges, t.dead_channels, t.iters
    with Counts() as c: was = read()
    assert c.n['index_add_'] == 6 and c.n['index_put_'] + c.n['_index_put_impl_'] == 2    # sums; a layer's histograms
    with Counts() as c: assert all(a is b for a, b in zip(read(), was))
    assert not c.n

def test_tables_read_in_inference_mode_are_plain_tensors():
    t = record(torch.randn(5, 3))
    with torch.inference_mode(): t.stats
    w = torch.ones(2, 1, 1, requires_grad=True)
    (w*t.stats).sum().backward()
    assert_close(w.grad, t.stats)

def test_no_ladder():
    for c in (Telemetry, Meter, Log, Reading): assert c.__mro__ == (c, object)


# --- nothing is changed, kept, or waited for

@pytest.mark.parametrize('kw', [dict(), dict(rng=(-1, 1)), dict(hists=False), dict(near=None, floors=None)], ids=str)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_the_tensor_stays_as_it_was(dtype, kw):
    x = torch.randn(4, 3, 5).to(dtype)
    x[0, 0, 0] = nan
    before = x.clone()
    record(x, x.transpose(0, 2), x[1:], **kw)
    assert_close(x, before, rtol=0, atol=0, equal_nan=True)

@pytest.mark.parametrize('kw', [dict(), dict(rng=(0, 1)), dict(hists=False)], ids=str)
def test_neither_tensor_nor_graph_is_kept(kw):
    t = Telemetry(['a'], **kw)
    for shape in [(4, 3), (4,), (4, 3, 2, 2), ()]:
        w = torch.ones((), requires_grad=True)
        x = torch.randn(shape)*w
        refs = [weakref.ref(o) for o in (w, x)]                      # `w` dies with the graph, not before
        storage = x.untyped_storage().data_ptr()
        t.add(0, x)
        kept = [o for w in t.log.waiting for o in w.row if torch.is_tensor(o)]
        assert kept and not any(o.requires_grad or o.untyped_storage().data_ptr() == storage for o in kept)
        del w, x
        gc.collect()
        assert [r() for r in refs] == [None]*2
    t.step()
    assert not t.stats.requires_grad and t.stats.numel() == 2

def test_grad_modes_may_alternate():
    m, t = nn.Linear(4, 3), Telemetry(['a'])
    x, outs = torch.randn(5, 4), []
    for mode in (torch.inference_mode, torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode(): outs.append(m(x)); t.add(0, outs[-1]); t.step()
    outs[1].sum().backward()
    with torch.inference_mode(): assert t.stats.shape == (2, 1, 4)
    assert_close(t.stats[:, 0, 3], t.stats[:, 0, 0]); assert t.asked == {0}

def test_gradients_from_hooks():
    torch.manual_seed(0)
    lin, grads, want = nn.Linear(4, 3), Telemetry(['h'], near=None), []
    for _ in range(3):
        h = lin(torch.randn(6, 4)); h.retain_grad()
        h.register_hook(lambda g: grads.add(0, g))
        h.pow(3).mean().backward()
        grads.step(); want.append(h.grad)
    for j, g in enumerate(want): close(grads, g, j)
    assert grads.asked == set() and grads.near_zero.tolist() == [[0]*3]

def same(a, b):
    assert_close([a.stats, a.dead, a.near_zero, a.nonfinite, a.ranges], [b.stats, b.dead, b.near_zero, b.nonfinite, b.ranges],
                 rtol=0, atol=0, equal_nan=True)
    assert (a.hists == b.hists).all() and a.iters.tolist() == b.iters.tolist() and a.asked == b.asked
    assert_close(a.dead_channels, b.dead_channels)

@pytest.mark.parametrize('again', [copy.copy, copy.deepcopy, by_pickle, by_save])
def test_copies_are_equal_and_go_on_alone(again):
    t = record(torch.randn(4, 3, requires_grad=True), torch.randn(4, 3), every=1, keep=50)
    u = again(t)
    same(t, u)
    for o in (t, u): o.add(0, torch.ones(4, 3)); o.step()
    same(t, u)
    assert t.hists.sum(1).tolist() == [[12]*3]                        # each its own, not both in one
    u.add(0, torch.ones(4, 3)); u.step()
    assert len(u.iters) == 4 and len(t.iters) == 3

def test_a_pickle_holds_no_room():
    t = record(torch.randn(100_000))
    assert size(t) < 5000 and size(copy.deepcopy(t)) < 5000


class Elsewhere(torch.Tensor):
    "A tensor that says it isn't on the CPU, so that `Telemetry` takes the way it goes for a GPU; counts `cpu()`"
    transfers = 0
    is_cpu = property(lambda self: False)
    def cpu(self):
        Elsewhere.transfers += 1
        return self.as_subclass(torch.Tensor)

elsewhere = pytest.mark.skipif(torch.__version__.startswith('2.1.'), reason='PyTorch 2.1 makes no subclass under a mode')

class Waits(TorchDispatchMode):
    "Notes the operations that a GPU would make the CPU wait for"
    ops = ('_local_scalar_dense', 'item', 'nonzero', 'bincount', 'unique', '_unique2', 'masked_select', 'equal', 'is_nonzero')
    def __init__(self): super().__init__(); self.seen, self.n = [], 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split('::')[1].split('.')[0]
        self.n += 1
        index = name.startswith('index') and any(torch.is_tensor(o) and o.dtype == torch.bool for o in args[1] or ())
        if name in self.ops or index: self.seen.append(name)
        return func(*args, **(kwargs or {}))

def test_waits_are_noticed():
    "The recorder itself works, and the CPU's way has what it looks for"
    with Waits() as w: torch.ones(3).sum().item(); torch.ones(3)[torch.tensor([True, False, True])]
    assert w.seen == ['_local_scalar_dense', 'index']
    with Waits() as w: record(torch.randn(9))
    assert w.seen

ELSEWHERE = {'fitted': dict(), 'fixed': dict(rng=(-1, 2)), 'no histograms': dict(hists=False), 'plain': dict(near=None, floors=None)}

@elsewhere
@pytest.mark.parametrize('kw', ELSEWHERE)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_a_device_is_not_waited_for(dtype, kw):
    "No operation of `add` and `step` needs a number from the device, and the epoch's rows come in one transfer"
    t, xs = Telemetry(['a', 'b'], **ELSEWHERE[kw]), [torch.randn(4, 3, 5).to(dtype).relu(), torch.randn(8, 2).to(dtype)]
    xs[1][0, 0] = nan
    far = [x.clone().as_subclass(Elsewhere) for x in xs]
    Elsewhere.transfers = 0
    with Waits() as w:
        for _ in range(5):
            for i, x in enumerate(far): t.add(i, x)
            t.step()
    assert w.n > 100 and w.seen == [] and Elsewhere.transfers == 0
    t.end()
    assert Elsewhere.transfers == 1
    here = Telemetry(['a', 'b'], **ELSEWHERE[kw])
    for _ in range(5):
        for i, x in enumerate(xs): here.add(i, x)
        here.step()
    assert_close(t.stats, here.stats, rtol=1e-5, atol=1e-7, equal_nan=True)
    for k in ('dead', 'near_zero', 'nonfinite', 'ranges'): assert_close(getattr(t, k), getattr(here, k), equal_nan=True)
    assert (t.hists == here.hists).all() and Elsewhere.transfers == 1
    assert_close(t.dead_channels, here.dead_channels); assert type(t.stats) is torch.Tensor

def histc_on_meta():
    try: return torch.ones(3, device='meta').histc(4, 0, 1) is not None
    except NotImplementedError: return False   # PyTorch 2.1 has none

@pytest.mark.parametrize('kw', ELSEWHERE)
def test_a_device_without_numbers_does(kw):
    "Tensors on meta have no numbers: whatever asks for one raises"
    if ELSEWHERE[kw].get('hists', True) and not histc_on_meta(): pytest.skip('this PyTorch has no histc on meta')
    with pytest.raises(RuntimeError): torch.ones(3, device='meta').mean().item()
    t = Telemetry(['a'], **ELSEWHERE[kw])
    for _ in range(3): t.add(0, torch.randn(8, 3, 5, 5, device='meta')); t.step()
    assert len(t.log.waiting) == 3 and all(w.row.flat.device.type == 'meta' for w in t.log.waiting)


def test_a_device_counts_beyond_what_float32_can():
    y = torch.zeros(2**24 + 100)
    y[:7] = 3.
    got = bin_counts(y.as_subclass(Elsewhere), 5)
    assert got.tolist() == [2**24 + 93, 0, 0, 7, 0]


# --- what can be given wrongly

@pytest.mark.parametrize('kw, message', [
    (dict(floors=[0.]), r'got 1 floors for 2 layers: give one for each'), (dict(bins=3), r'got bins=3: give 4 to 256'),
    (dict(bins=257), r'got bins=257'), (dict(rng=(1, 0)), r'got rng=\(1, 0\): give \(low,high\) with low < high'),
    (dict(rng=(2, 2)), r'low < high'), (dict(every=0), r'got every=0, keep=None: give at least 1 and 2'),
    (dict(keep=1), r'got every=1, keep=1: give at least 1 and 2'), (dict(keep=0), 'keep=0')])
def test_errors(kw, message):
    with pytest.raises(ValueError, match=message): Telemetry(['a', 'b'], **kw)

def test_names_are_texts():
    t = Telemetry([1, nn.ReLU()])
    assert t.names == ['1', 'ReLU()'] and t.floors == [0., 0.] and Telemetry('ab', floors=(None, 1)).floors == [None, 1]


# --- a whole network

def test_a_network_in_training_equals_a_manual_forward():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 5))
    t, want = Telemetry([type(m).__name__ for m in net]), []
    hs = [m.register_forward_hook(lambda m, inp, outp, i=i: t.add(i, outp)) for i, m in enumerate(net)]
    opt = torch.optim.SGD(net.parameters(), lr=.1)
    for _ in range(4):
        x = y = torch.randn(10, 1, 8, 8)
        F.cross_entropy(net(x), torch.randint(0, 5, (10,))).backward()
        shadow, outs = copy.deepcopy(net), []
        for m in shadow: m._forward_hooks.clear(); y = m(y); outs.append(y)
        want.append(torch.stack([torch.stack([o.mean(), o.std()]) for o in outs], 1))
        opt.step(); opt.zero_grad(); t.step()
    for h in hs: h.remove()
    assert_close(t.stats, torch.stack(want, 2).detach(), rtol=1e-5, atol=1e-6)
    assert t.hists.sum(1).tolist() == [[360]*4]*4 + [[50]*4]
    assert t.asked == set(range(5))


@pytest.mark.filterwarnings('ignore:The PyTorch API of nested tensors', 'ignore:Sparse CSR', 'ignore:.*quantiz', 'ignore:torch.ao')
@pytest.mark.parametrize('make', [
    lambda x: x.to_sparse(), lambda x: x.to_sparse_csr(), lambda x: torch.nested.as_nested_tensor([x[:1], x[1:]]), torch.fft.fft,
    lambda x: torch.quantize_per_tensor(x, .1, 0, torch.quint8), lambda x: x.to_mkldnn(),
    lambda x: x.to(torch.float8_e4m3fn), lambda x: x[:0]])
def test_what_cant_be_measured_is_passed_over(make):
    x = torch.randn(4, 3)
    t, plain = Telemetry(['a', 'b']), Telemetry(['a', 'b'])
    for _ in range(2):
        for i in (0, 1): t.add(i, x); plain.add(i, x)
        t.add(1, make(x)); t.step(); plain.step()
    assert_close(t.stats, plain.stats, rtol=0, atol=0); assert_close(t.hists, plain.hists)
    assert_close(t.dead_channels, plain.dead_channels)


@pytest.mark.parametrize('x', [torch.tensor([[True, False], [False, False]]), torch.tensor([[3, 0], [0, -5]]), torch.zeros(3, 4).t()[1:]])
def test_whole_numbers_and_odd_strides_are_measured(x):
    t = Telemetry(['a'])
    t.add(0, x); t.step()
    assert_close(t.stats[:, 0, 0], torch.stack([x.float().mean(), x.float().std()])); assert t.hists.sum() == x.numel()


@pytest.mark.parametrize('shape', [(256, 8, 14, 14), (256, 16, 7, 7), (64, 3, 32, 32)])
def test_a_sample_is_of_all_places(shape):
    "Pictures whose border is always 0, as digits have it: every place counts as often as the others"
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x[:,:,:2] = 0
    exact_, sampled = Telemetry(['a']), Telemetry(['a'], sample=4096)
    for t in (exact_, sampled):
        t.add(0, x)
        t.step()
    torch.testing.assert_close(sampled.stats, exact_.stats)
    assert abs(sampled.dead[0,0] - exact_.dead[0,0]) < .03 and abs(exact_.dead[0,0] - 2/shape[2]) < 1e-3


@pytest.mark.parametrize('kw', [dict(), dict(rng=(-1, 2)), dict(hists=False), dict(near=None, floors=None)], ids=str)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_a_sample_of_a_small_tensor_is_all_of_it(dtype, kw):
    xs = [torch.randn(8, 3, 5, 4), torch.randn(7, 5).relu(), torch.randn(9), torch.randn(4, 5, 6, 3).permute(0, 3, 1, 2), torch.ones(1, 4).expand(6, 4)]
    xs[1][0, :2] = torch.tensor([nan, inf])
    whole, some = (Telemetry('abcde', sample=n, **{'floors': [0., 0., None, -.4, 1.], **kw}) for n in (None, 1000))
    for t in (whole, some):
        for _ in range(3):
            for i, x in enumerate(xs): t.add(i, x.to(dtype))
            t.step()
        t.end()
    for k in ('stats', 'dead', 'near_zero', 'nonfinite', 'ranges'): assert_close(getattr(some, k), getattr(whole, k), equal_nan=True)
    assert torch.equal(some.hists, whole.hists); assert_close(some.dead_channels, whole.dead_channels)

@elsewhere
def test_samples_wait_on_their_device():
    "One transfer for all of them, and the numbers of a CPU"
    xs = [torch.randn(64, 6, 9, 9).relu(), torch.randn(300, 70)]
    far, here = (Telemetry(['a', 'b'], sample=512) for _ in range(2))
    Elsewhere.transfers = 0
    with Waits() as w:
        for _ in range(3):
            for i, x in enumerate(xs): far.add(i, x.as_subclass(Elsewhere))
            far.step()
    assert w.n and w.seen == [] and Elsewhere.transfers == 0
    far.end()
    assert Elsewhere.transfers == 1
    for _ in range(3):
        for i, x in enumerate(xs): here.add(i, x)
        here.step()
    assert_close(far.stats, here.stats, rtol=1e-5, atol=1e-7); assert_close(far.dead, here.dead); assert torch.equal(far.hists, here.hists)

def test_a_watch_looks_less_often_and_misses_no_step():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    with Watch(net, opt := torch.optim.SGD(net.parameters(), lr=.1), look=3) as w:
        for _ in range(20):
            net(torch.randn(5, 4)).square().mean().backward()
            w.before_step(); opt.step(); w.after_step(); w.end(); opt.zero_grad()
    assert [o[0] for o in w.flows] == [0, 1, 2, 3, 6, 9, 12, 15, 18] and [o[0] for o in w.steps] == list(range(20))

def test_a_spread_that_float32_can_just_tell():
    "Items that are equal have none, however large; others have theirs, down to squares that are 0 in float32"
    lin = nn.Linear(8, 8)
    def spread(x):
        with Watch(lin, None) as w: lin(x); w.end()
        return float(w.flows[0][2][0][1])
    assert spread(torch.full((7, 8), .1)*1e6) == 0
    x = torch.randn(7, 8)*1e-25
    assert spread(x) == pytest.approx(float(x.double().var(0, correction=0).mean().sqrt()), rel=1e-3)

def test_a_step_with_a_closure_makes_its_gradients_itself():
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3), torch.randn(20, 4)
    opt = torch.optim.LBFGS(net.parameters(), lr=.1, max_iter=4)
    def closure():
        opt.zero_grad()
        loss = (net(x) - 1).square().mean()
        loss.backward()
        return loss
    with Watch(net, opt) as w:
        for _ in range(4):
            old = net.weight.detach().clone()
            w.before_step(); opt.step(closure); w.after_step(); w.end()
    size, step, grad, _ = w.steps[-1][1][0]
    assert_close(size, old.norm()); assert_close(step, (net.weight - old).norm())
    assert all(rows.isfinite().all() for _, rows in w.steps) and grad > 0 and len(w.flows) == 4


# --- the small ones of the lesson

def test_the_small_telemetry_has_the_same_means_and_stds():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
    names = [str(i) for i in range(4)]
    few, t = small('06aa_telemetry', 'SmallTelemetry', torch=torch)(names, rng=(-8, 8)), Telemetry(names, rng=(-8, 8))
    opt = torch.optim.SGD(net.parameters(), lr=.1)
    for _ in range(5):
        x = torch.randn(10, 1, 8, 8)
        for i, m in enumerate(net):
            x = m(x)
            for o in (few, t): o.add(i, x)
        F.cross_entropy(x, torch.randint(0, 5, (10,))).backward()
        opt.step(); opt.zero_grad()
        for o in (few, t): o.step()
    for o in (few, t): o.end()
    assert few.stats.shape == t.stats.shape and few.hists.shape == t.hists.shape
    assert_close(few.stats, t.stats, rtol=1e-5, atol=1e-6)
    assert few.hists.sum(1).tolist() == t.hists.sum(1).tolist() and (few.hists - t.hists).abs().max() <= 1   # an edge

def test_the_small_watch_has_the_same_steps():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    opt = torch.optim.Adam(net.parameters(), lr=.01)
    few = small('06aa_telemetry', 'SmallWatch')(net, opt)
    with Watch(net, opt) as w:
        for _ in range(4):
            F.cross_entropy(net(torch.randn(9, 6)), torch.randint(0, 3, (9,))).backward()
            for o in (few, w): o.before_step()
            opt.step(); opt.zero_grad()
            for o in (few, w): o.after_step(); o.end()
    size, step = torch.stack([rows[[o.matrix for o in w.weights], :2] for _, rows in w.steps]).unbind(2)
    assert_close(torch.tensor(few.shares), step/size, rtol=1e-5, atol=0)


# --- weights and what flows

def pictures(n): return torch.randn(2, n, 8, 8)

@pytest.mark.parametrize('layer, x, shape, fans', [
    (nn.Linear(32, 10), torch.randn(2, 32), (10, 32), (32, 10)), (nn.Conv2d(3, 8, 5), pictures(3), (8, 3, 5, 5), (75, 200)),
    (nn.Conv2d(4, 8, 3, groups=2), pictures(4), (8, 2, 3, 3), (18, 36)),
    (nn.ConvTranspose2d(4, 6, 2, stride=2), pictures(4), (4, 6, 2, 2), (4, 24)),
    (nn.Embedding(9, 4), torch.tensor([1]), (9, 4), (1, 1))], ids=lambda o: type(o).__name__)
def test_fans_of_a_weight(layer, x, shape, fans):
    with Watch(layer, opt := torch.optim.SGD(layer.parameters(), lr=.1)) as w:
        layer(x).sum().backward()
        w.before_step(); opt.step(); w.after_step(); w.end()
    first = w.weights[0]
    assert (first.shape, (first.fan_in, first.fan_out), first.matrix, first.group, first.why) == (shape, fans, True, 0, '')
    assert first.usual == pytest.approx((math.prod(shape)/fans[0])**.5)

def test_weights_that_dont_learn_say_why():
    net = nn.Sequential(nn.Conv2d(3, 8, 5), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 10))
    net[0].bias.requires_grad_(False)
    with Watch(net, opt := torch.optim.SGD(net[:2].parameters(), lr=1)) as w:
        net(torch.randn(2, 3, 6, 6)).sum().backward()
        w.before_step(); opt.step(); w.after_step(); w.end()
    assert [o.layer for o in w.weights if o.matrix] == ['0', '3'] and len(w.weights) == 6
    assert [o.why for o in w.weights] == ['', 'requires_grad is False', '', '', *['it is in no group of the optimiser']*2]

def test_a_flow_has_sizes_spreads_and_the_share_that_is_dead():
    torch.manual_seed(0)
    lin = nn.Sequential(nn.Linear(100, 50), nn.ReLU())
    nn.init.constant_(lin[0].bias, -9)
    with Watch(lin, None) as w: lin(3*torch.randn(20, 100)); w.end()
    (_, names, rows), = w.flows
    came, spread, gave, top, bad, dead, _ = rows.T
    assert names == ('0', '1') and abs(came[0] - 3) < .2 and abs(spread[0] - 3) < .2 and abs(gave[0] - 9.2) < .3
    assert dead[0].isnan() and dead[1] == 1 and gave[1] == top[1] == 0 and bad.tolist() == [0, 0]
