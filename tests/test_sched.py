"Schedules, ParamScheduler, Recorder and LR_Find: PyTorch's own schedules and a training without a sweep are the oracles"
import copy
import math
import pickle
import random
from functools import partial
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn, optim
from torch.nn import functional as F
from torch.testing import assert_close

from helpers import assert_same as same, quiet, small
from minifast.callback import Callback, CancelBatchException
from minifast.core import set_seed
from minifast.data import DataLoader, Dataset
from minifast.learner import Learner
from minifast.runner import AvgStatsCallback
from minifast.sched import (LR_Find, ParamScheduler, Recorder, annealer, combine_scheds, cos_1cycle_anneal, pg_dicts,
                            sched_cos, sched_exp, sched_lin, sched_no)

QUARTERS = [0, .25, .5, .75, 1]


def data(n=24, bs=8, **kw):
    x, y = torch.randn(n, 6), torch.randint(0, 3, (n,))
    return SimpleNamespace(train_dl=DataLoader(Dataset(x, y), bs, shuffle=True, **kw),
                           valid_dl=DataLoader(Dataset(x, y), bs))


def learner(opt_func=partial(optim.SGD, lr=.1), dls=None, groups=False):
    m = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(.2), nn.Linear(5, 3))
    ps = pg_dicts([m[0].parameters(), [*m[1].parameters(), *m[4].parameters()]]) if groups else m.parameters()
    return Learner(m, opt_func(ps), F.cross_entropy, dls or data())


# --- schedules

@pytest.mark.parametrize('sched, want', [
    (sched_no, [2, 2, 2, 2, 2]), (sched_lin, [2, 1.75, 1.5, 1.25, 1]),
    (sched_cos, [2, 1.5+math.sqrt(.5)/2, 1.5, 1.5-math.sqrt(.5)/2, 1]), (sched_exp, [2*.5**p for p in QUARTERS])])
def test_values(sched, want):
    f = sched(2, 1)
    assert_close([f(p) for p in QUARTERS], [float(o) for o in want])
    assert all(type(f(p)) is float for p in (0, .3, torch.tensor(.3), np.float32(.3)))
    assert pickle.loads(pickle.dumps(f))(.3) == f(.3) == copy.deepcopy(f)(.3)
    assert sched.__doc__ and sched.__name__.startswith('sched_')


@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(0, 1))
def test_between_the_ends(a, b, pos):
    for sched in (sched_lin, sched_cos):
        assert min(a, b) - 1e-9 <= sched(a, b)(pos) <= max(a, b) + 1e-9
        assert_close([sched(a, b)(0), sched(a, b)(1)], [a, b], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize('a, b', [(0, 1), (1, 0), (-1, 1)])
def test_exp_needs_one_sign(a, b):
    with pytest.raises(ValueError, match=f'got {a} and {b}: use sched_cos'): sched_exp(a, b)(.5)
    assert sched_exp(-1, -4)(.5) == -2


def test_annealer_decorates():
    @annealer
    def half(start, end, pos): return start/2
    assert half(4, 0)(1) == 2.


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.floats(0, 1))
def test_combined_is_the_phase_that_pos_is_in(shares, pos):
    pcts = [s/sum(shares) for s in shares]
    f = combine_scheds(pcts, [sched_no(i, i) for i in range(len(pcts))])
    borders = np.cumsum(pcts)
    want = min(int(np.searchsorted(borders, pos + 1e-9, side='right')), len(pcts)-1)
    assert f(pos) == want and f(0) == 0 and f(1) == len(pcts)-1


@pytest.mark.parametrize('n', range(1, 6))
def test_borders_begin_the_next_phase_and_each_phase_runs_from_0_to_1(n):
    f = combine_scheds([1/n]*n, [sched_lin(i, i+.5) for i in range(n)])
    assert_close([f(i/n) for i in range(n)], [float(i) for i in range(n)])
    assert_close([f((i+.5)/n) for i in range(n)], [i+.25 for i in range(n)])
    assert f(1) == n-.5 == f(1.5) and f(-1) == 0. and f(torch.tensor(1.)) == n-.5


def test_one_cycle_and_a_phase_of_no_length():
    f = combine_scheds([.3, .7], cos_1cycle_anneal(.1, 1, .01))
    assert_close([f(p) for p in (0, .15, .3, .65, 1)], [.1, .55, 1., .505, .01])
    g = combine_scheds([.5, 0, .5], [sched_no(1, 1), sched_no(2, 2), sched_no(3, 3)])
    assert [g(p) for p in (0, .49, .5, 1)] == [1, 1, 3, 3]
    assert combine_scheds([.7, .2, .1], [sched_no(1, 1)]*3)(.5) == 1 and pickle.loads(pickle.dumps(f))(.2) == f(.2)


@pytest.mark.parametrize('pcts, n, says', [
    ([.3, .6], 2, 'sum to 1, got 0.9 from'), ([.5, .5], 3, '2 shares'), ([], 0, 'one share'), ([1.5, -.5], 2, 'at least 0')])
def test_wrong_shares(pcts, n, says):
    with pytest.raises(ValueError, match=says): combine_scheds(pcts, [sched_no(1, 1)]*n)


# --- the small ones of the lesson

def lesson(name): return small('05c_anneal', name)

@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.floats(0, 1, exclude_max=True))
def test_the_small_combine_is_the_exported_one(shares, pos):
    "Away from borders, where rounding decides which phase it is, and below 1"
    pcts = [s/sum(shares) for s in shares]
    borders = np.cumsum(pcts)
    scheds = [f(i, i+1.5) for i, f in enumerate([sched_cos, sched_lin, sched_no, sched_cos, sched_lin][:len(pcts)])]
    if min(abs(borders - pos)) < 1e-8: return
    assert_close(lesson('small_combine')(pcts, scheds)(pos), combine_scheds(pcts, scheds)(pos), rtol=0, atol=1e-9)


def test_the_small_combine_fails_at_the_end():
    phases = [.3, .7], cos_1cycle_anneal(.1, 1, .01)
    assert lesson('small_combine')(*phases)(1) is None
    assert_close(combine_scheds(*phases)(1), .01)


def test_the_small_annealer_gives_the_same_curve():
    for pos in np.linspace(0, 1, 51): assert lesson('small_cos')(2, .1)(pos) == sched_cos(2, .1)(pos)
    lin = lesson('small_annealer')(lambda start, end, pos: start + pos*(end-start))
    assert lin(1, 2)(.25) == 1.25
    with pytest.raises((AttributeError, pickle.PicklingError)): pickle.dumps(lin(1, 2))


@pytest.mark.parametrize('opt_func', [partial(optim.SGD, lr=.1), optim.Adam], ids=str)
@pytest.mark.parametrize('groups', [False, True])
def test_the_small_scheduler_trains_to_the_same_weights(opt_func, groups):
    cycle = combine_scheds([.3, .7], cos_1cycle_anneal(.01, .1, .001))
    states = []
    for cb in (lesson('SmallScheduler')(cycle), ParamScheduler('lr', cycle)):
        set_seed(1)
        learn = learner(opt_func, groups=groups)
        quiet(cb).fit(3, learn)
        states.append(learn.model.state_dict())
    same(*states)


@pytest.mark.parametrize('seed', range(5))
def test_the_small_sweep_sees_the_losses_of_the_exported_one(seed):
    "On one seed, as far as both go: they end by other rules"
    def fresh():
        set_seed(seed)
        return learner(dls=data(n=320))
    rates, losses = lesson('small_sweep')(fresh(), n=40, lo=1e-4, hi=10.)
    run = quiet(LR_Find(max_iter=40, min_lr=1e-4, max_lr=10))
    run.fit(1, fresh())
    n = min(len(losses), len(run.lr_find.losses))
    assert n >= 20 and losses[:n] == run.lr_find.losses[:n]
    assert_close(rates[:n], run.lr_find.lrs[:n])


def test_the_small_sweep_leaves_its_traces_and_ends_at_a_bad_batch():
    set_seed(0)
    learn = learner(dls=data(n=320))
    before = everything(learn)
    rates, _ = lesson('small_sweep')(learn, n=30)
    assert learn.opt.param_groups[0]['lr'] == rates[-1]
    assert not learn.model[0].weight.equal(before['model']['0.weight'])
    class BadLoss(nn.Module):
        n = 0
        def forward(self, pred, yb):
            self.n += 1
            return F.cross_entropy(pred, yb)*(5 if self.n == 11 else 1)
    for kind in ('small', 'exported'):
        learn = learner(dls=data(n=320))
        learn.loss_func = BadLoss()
        if kind == 'small': assert len(lesson('small_sweep')(learn, n=30, hi=1e-2)[1]) == 11
        else:
            run = quiet(LR_Find(max_iter=30, max_lr=1e-2))
            run.fit(1, learn)
            assert len(run.lr_find.losses) == 30


# --- ParamScheduler

@pytest.mark.parametrize('opt_func', [optim.SGD, partial(optim.SGD, foreach=True), partial(optim.Adam, foreach=True),
                                      partial(optim.Adam, foreach=False), optim.AdamW], ids=str)
def test_rates_as_if_set_by_hand(opt_func):
    set_seed(1); a = learner(partial(opt_func, lr=.1), data())
    set_seed(1); b = learner(partial(opt_func, lr=.1), data())
    set_seed(2)
    run = quiet(ParamScheduler('lr', sched_cos(.1, .01)), Recorder())
    run.fit(2, a)
    set_seed(2)
    for i in range(2):
        b.model.train()
        for j, (xb, yb) in enumerate(b.data.train_dl):
            b.opt.param_groups[0]['lr'] = sched_cos(.1, .01)((i*3+j)/6)
            F.cross_entropy(b.model(xb), yb).backward()
            b.opt.step(); b.opt.zero_grad()
    assert_close(a.model.state_dict(), b.model.state_dict(), rtol=0, atol=0)
    assert_close(run.recorder.lrs, [[sched_cos(.1, .01)(k/6) for k in range(6)]])


def test_groups_momentum_and_betas():
    sgd = learner(partial(optim.SGD, lr=.1, momentum=.9), groups=True)
    quiet(ParamScheduler('lr', [sched_lin(.1, .2), sched_no(.5, .5)]), ParamScheduler('momentum', sched_lin(0, .6))).fit(1, sgd)
    assert_close([g['lr'] for g in sgd.opt.param_groups], [.1+.1*2/3, .5])
    assert_close([g['momentum'] for g in sgd.opt.param_groups], [.4, .4])
    adam = learner(optim.Adam)
    quiet(ParamScheduler('momentum', sched_no(.7, .7))).fit(1, adam)
    assert adam.opt.param_groups[0]['betas'] == (.7, .999)


def test_reused_with_another_number_of_groups_and_not_in_validation():
    cb = ParamScheduler('lr', sched_lin(1, 0))
    seen = []
    class Look(Callback):
        _order = 5
        def begin_batch(self): seen.append((self.in_train, self.opt.param_groups[0]['lr']))
    quiet(cb, Look()).fit(1, learner(groups=True))
    quiet(cb).fit(1, learner())
    assert_close([lr for t, lr in seen if t], [1., 2/3, 1/3])
    assert_close([lr for t, lr in seen if not t], [1/3]*3)


@pytest.mark.parametrize('cbs, says', [
    ([ParamScheduler('lr', sched_no(1, 1)), ParamScheduler('lr', sched_no(1, 1))], "both set 'lr'"),
    ([ParamScheduler('lr', sched_no(1, 1)), LR_Find()], "both set 'lr'"),
    ([ParamScheduler('rate', sched_no(1, 1))], "SGD has no 'rate': choose one of lr, momentum"),
    ([ParamScheduler('lr', [sched_no(1, 1)]*3)], 'got 3 schedules for 1 parameter groups')])
def test_what_cannot_be_scheduled(cbs, says):
    learn = learner()
    before = copy.deepcopy(learn.model.state_dict())
    with pytest.raises(ValueError, match=says): quiet(*copy.deepcopy(cbs)).fit(1, learn)
    assert_close(learn.model.state_dict(), before, rtol=0, atol=0)


def test_a_rate_is_no_schedule():
    with pytest.raises(TypeError, match='takes functions of pos, got 0.1'): ParamScheduler('lr', .1)


def test_rates_follow_pos_when_the_training_grows():
    "A callback may change `run.epochs` in the middle of an epoch: rates follow `run.pos`"
    seen = []
    class Longer(Callback):
        _order = 5
        def begin_batch(self):
            if self.in_train: seen.append((self.opt.param_groups[0]['lr'], 1 - self.pos))
        def after_batch(self):
            if self.n_iter == 2: self.run.epochs = 4
    quiet(ParamScheduler('lr', sched_lin(1, 0)), Longer()).fit(2, learner())
    assert len(seen) == 12
    assert_close([lr for lr, _ in seen], [want for _, want in seen])


def test_a_batch_too_many_has_the_rate_of_the_end():
    cb = ParamScheduler('lr', sched_lin(1, .1))
    learn, run = learner(), quiet(cb)
    class More(Callback):
        def after_epoch(self):   # by hand, behind the three that the loader promised
            self.run.in_train, self.run.iter, self.run.iters = True, 3, 3
            cb.begin_batch()
            self.run.in_train = False
    run.add_cb(More())
    run.fit(1, learn)
    assert_close(learn.opt.param_groups[0]['lr'], .1)


@pytest.mark.parametrize('pos', [1 + 1e-12, 1.0000001, 1.5, torch.tensor(1.0000001), np.float32(1.0000001)])
@pytest.mark.parametrize('n', [1, 2, 3, 10])
def test_a_little_beyond_the_end(pos, n):
    "As rounding may put it: the end of the last phase"
    scheds = [sched_cos(i, i+1) for i in range(n)]
    assert_close(combine_scheds([1/n]*n, scheds)(pos), float(n))
    assert_close(combine_scheds([.3, .7], cos_1cycle_anneal(.1, 1, .01))(pos), .01)


class OwnSGD:
    "An optimiser without groups"
    def __init__(self, ps): self.ps = list(ps)
    def step(self): pass
    def zero_grad(self): pass

@pytest.mark.parametrize('make_cb', [partial(ParamScheduler, 'lr', sched_no(1, 1)), LR_Find, Recorder])
def test_an_optimiser_without_groups(make_cb):
    with pytest.raises(TypeError, match="a OwnSGD, has no param_groups: give it a list of dicts"):
        quiet(make_cb()).fit(1, learner(OwnSGD))


# --- Recorder

def test_recorder_notes_completed_training_batches():
    class SkipSecond(Callback):
        def after_loss(self):
            if self.in_train and self.iter == 1: raise CancelBatchException
    seen = []
    class Look(Callback):
        _order = 99
        def after_batch(self):
            if self.in_train and self.completed: seen.append(self.loss.item())
    run = quiet(SkipSecond(), Look(), AvgStatsCallback(), Recorder())
    learn = learner(groups=True)
    run.fit(2, learn)
    assert run.recorder.losses == seen and len(seen) == 4 and [len(o) for o in run.recorder.lrs] == [4, 4]
    assert [o['iteration'] for o in run.recorder.metrics] == [2, 4]
    assert [o['valid_loss'] for o in run.recorder.metrics] == [o['valid_loss'] for o in run.avg_stats.history]
    run.fit(1, learn)
    assert len(run.recorder.losses) == 2


class ChangesInPlace(Callback):
    "Halves a rate that is a tensor and empties the loss, behind the callbacks that note them"
    _order = 99
    def after_batch(self):
        if not self.in_train: return
        for g in self.opt.param_groups:
            if isinstance(g['lr'], torch.Tensor): g['lr'].mul_(.5)
        self.run.loss.detach().zero_()

@pytest.mark.parametrize('opt_func', [optim.SGD, partial(optim.Adam, foreach=False), optim.Adagrad], ids=str)
def test_what_was_noted_stays(opt_func):
    "Rates and losses are noted by value, not by reference"
    losses = []
    class Look(Callback):
        _order = 98
        def after_batch(self):
            if self.in_train: losses.append(self.loss.item())
    rate = .1 if opt_func is optim.Adagrad else torch.tensor(.1)
    run = quiet(Look(), Recorder(), AvgStatsCallback(), ChangesInPlace())
    run.fit(2, learner(partial(opt_func, lr=rate)))
    want = [.1]*6 if opt_func is optim.Adagrad else [.1*.5**i for i in range(6)]
    assert_close([float(v) for v in run.recorder.lrs[0]], want)
    assert run.recorder.losses == losses and min(losses) > 0
    assert_close([float(v) for v in run.recorder.plot_lr().lines[0].get_ydata()], want)
    plt.close('all')


def test_losses_that_were_read_stay_as_they_are():
    read = []
    class Read(Callback):
        _order = 99
        def after_epoch(self): read.append(self.run.recorder.losses)
    run = quiet(Recorder(), Read())
    run.fit(3, learner())
    assert [len(o) for o in read] == [3, 6, 9] and run.recorder.losses == read[-1]


def test_recorder_survives_an_interruption_and_pickles():
    class Stop(Callback):
        _order = 99
        def after_batch(self):
            if self.n_iter == 2: raise KeyboardInterrupt
    run = quiet(Recorder(), Stop())
    with pytest.raises(KeyboardInterrupt): run.fit(1, learner())
    assert len(run.recorder.losses) == 2 and len(pickle.loads(pickle.dumps(run.recorder)).losses) == 2
    assert len(copy.deepcopy(run.recorder).losses) == 2


def test_no_transfer_in_a_batch(monkeypatch):
    class InBatch(Callback):
        _order = 98
        def begin_epoch(self): self.run.counting = True
        def begin_validate(self): self.run.counting = False
    run, n = quiet(Recorder(), AvgStatsCallback(), ParamScheduler('lr', sched_no(.1, .1)), InBatch()), []
    run.counting = False
    def counted(f, k): return lambda self, *a, **kw: (run.counting and n.append(k), f(self, *a, **kw))[1]
    for k in ('item', 'tolist', 'cpu', '__float__', '__bool__', '__int__', 'numpy'):
        monkeypatch.setattr(torch.Tensor, k, counted(getattr(torch.Tensor, k), k))
    learn = learner()
    learn.data.train_dl = [b for b in learn.data.train_dl]
    run.fit(1, learn)
    assert not n


def test_recorder_before_a_fit():
    with pytest.raises(ValueError, match='nothing recorded yet'): Recorder().losses
    with pytest.raises(ValueError, match='no sweep yet'): LR_Find().suggestion


def test_plots():
    run = quiet(AvgStatsCallback(), Recorder(), ParamScheduler('lr', sched_lin(.1, 1)))
    run.fit(3, learner(groups=True))
    r = run.recorder
    ax = r.plot_lr()
    assert list(ax.lines[1].get_ydata()) == r.lrs[1] and len(ax.lines) == 2 and ax.get_legend()
    assert len(r.plot_lr(0).lines) == 1
    ax = r.plot_loss(skip_last=2)
    assert ax.lines[0].get_ydata().tolist() == r.losses[:-2] and ax.lines[1].get_xdata().tolist() == [3, 6]
    ax = r.plot(skip_last=1, pgid=0)
    assert ax.get_xscale() == 'log' and ax.lines[0].get_xdata().tolist() == r.lrs[0][:-1]
    assert all(o.get_xlabel() and o.get_ylabel() for o in (ax, r.plot_loss(), r.plot_lr()))
    plt.close('all')


# --- LR_Find

class Meddle(Callback):
    "Uses every random generator, so that a trace would show; fails in batch `at` with `exc`"
    def __init__(self, exc=None, at=3): self.exc, self.at = exc, at
    def after_loss(self):
        random.random(); np.random.rand(); torch.rand(1)
        if self.exc and self.iter == self.at: raise self.exc


def everything(learn):
    return copy.deepcopy(dict(model=learn.model.state_dict(), opt=learn.opt.state_dict(), torch=torch.get_rng_state(),
                              numpy=torch.from_numpy(np.random.get_state()[1].astype('int64')), py=random.getstate(),
                              training=[m.training for m in learn.model.modules()],
                              grads=[p.grad for p in learn.model.parameters()]))


@pytest.mark.parametrize('exc', [None, RuntimeError('x'), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize('opt_func', [partial(optim.SGD, lr=.1, momentum=.9), partial(optim.Adam, lr=1e-3)], ids=['sgd', 'adam'])
def test_no_trace(opt_func, exc):
    gen = torch.Generator().manual_seed(3)
    learn = learner(opt_func, data(generator=gen))
    quiet().fit(1, learn)                     # so that the optimiser has a state
    learn.model[1].eval()                     # and a mode is mixed
    before, order = everything(learn), gen.get_state()
    run = quiet(LR_Find(max_iter=20), Meddle(exc), Recorder())
    if exc is None: run.fit(1, learn)
    else:
        with pytest.raises(type(exc)): run.fit(1, learn)
        assert len(run.lr_find.lrs) == 3
    same(before, everything(learn))
    assert_close(gen.get_state(), order)
    assert run.data is learn.data
    assert len(run.recorder.losses) == len(run.lr_find.losses)


@pytest.mark.parametrize('n_batches', [1, 3, 7])
def test_max_iter_batches_on_a_short_loader(n_batches):
    learn = learner(dls=data(8*n_batches))
    run = quiet(LR_Find(max_iter=20, min_lr=1e-5, max_lr=1e-2), AvgStatsCallback())
    run.fit(5, learn)
    assert len(run.lr_find.lrs) == 20 and not run.avg_stats.history
    assert_close(run.lr_find.lrs, [1e-5*1e3**(i/19) for i in range(20)])


class Lies:
    "`promised` batches are promised, `given` come, each time or once only"
    def __init__(self, promised, given, once=False):
        dl = data(8*given).train_dl
        self.promised, self.dl = promised, iter([*dl]) if once else dl
    def __len__(self): return self.promised
    def __iter__(self): return iter(self.dl)

@pytest.mark.parametrize('promised, given', [(3, 5), (5, 3), (100, 1), (1, 100)])
def test_loaders_that_give_more_or_less_than_they_promise(promised, given):
    learn = learner(dls=SimpleNamespace(train_dl=Lies(promised, given), valid_dl=None))
    before = everything(learn)
    run = quiet(LR_Find(max_iter=20, min_lr=1e-5, max_lr=1e-2))
    run.fit(1, learn)
    same(before, everything(learn))
    assert run.data is learn.data
    assert_close(run.lr_find.lrs, [1e-5*1e3**(i/19) for i in range(20)])


def test_a_loader_that_can_be_gone_round_only_once():
    "It gives no batch the second time: an error, and no endless loop"
    learn = learner(dls=SimpleNamespace(train_dl=Lies(7, 7, once=True), valid_dl=None))
    before = everything(learn)
    with pytest.raises(RuntimeError, match='a Lies, gave 7 batches and then no more, but the sweep takes 20'):
        quiet(LR_Find(max_iter=20, max_lr=1e-2)).fit(1, learn)
    same(before, everything(learn))
    run = quiet(LR_Find(max_iter=7, max_lr=1e-2))
    run.fit(1, learner(dls=SimpleNamespace(train_dl=Lies(7, 7, once=True), valid_dl=None)))
    assert len(run.lr_find.lrs) == 7   # one round is enough


def test_the_data_that_another_callback_had_put_in_place():
    class Swap(Callback):
        def begin_fit(self): self.run.data = mine
    mine, learn = data(), learner()
    run = quiet(Swap(), LR_Find(max_iter=5, max_lr=1e-3))
    run.fit(1, learn)
    assert run.data is mine


@pytest.mark.filterwarnings('ignore:Lazy modules are a new feature:UserWarning')   # in PyTorch 2.1
def test_a_layer_without_weights_yet_is_told_before_the_sweep():
    learn = learner()
    learn.model.append(nn.LazyBatchNorm1d())
    run, rate = quiet(LR_Find()), learn.opt.param_groups[0]['lr']
    with pytest.raises(ValueError, match='5.weight has no size before the first batch'): run.fit(1, learn)
    assert learn.model[5].has_uninitialized_params() and learn.opt.param_groups[0]['lr'] == rate == .1
    assert run.data is learn.data and not run.lr_find.lrs


class FailsToGoBack(nn.Linear):
    "Once trained, its mode can't be set by name"
    armed = False
    def __setattr__(self, k, v):
        if k == 'training' and self.armed: raise RuntimeError('no mode for me')
        super().__setattr__(k, v)
    def train(self, mode=True): return self

def test_a_sweep_that_cannot_put_one_part_back_puts_back_all_others():
    learn = learner()
    learn.model[0] = FailsToGoBack(6, 5)
    learn.opt = optim.SGD(learn.model.parameters(), lr=.1, momentum=.9)
    class Arm(Callback):
        def after_batch(self): self.model[0].armed = True
    before = everything(learn)
    run = quiet(LR_Find(max_iter=10, max_lr=1e-2), Meddle(), Arm(), Recorder())
    with pytest.raises(RuntimeError, match='no mode for me'): run.fit(1, learn)
    same(before, everything(learn))
    assert run.data is learn.data and len(run.lr_find.lrs) == 10


def test_stops_when_the_loss_is_no_number_or_diverges():
    class Spoil(Callback):
        def __init__(self, at, v): self.at, self.v = at, v
        def after_loss(self):
            if self.iter >= self.at: self.run.loss = self.loss*self.v
    for at, v, n in ((12, float('nan'), 13), (12, float('inf'), 13)):
        run = quiet(LR_Find(max_iter=50, max_lr=1e-3), Spoil(at, v))
        learn = learner()
        before = everything(learn)
        run.fit(1, learn)
        assert len(run.lr_find.losses) == n
        same(before, everything(learn))
    run = quiet(LR_Find(max_iter=50, max_lr=1e-3), Spoil(12, 50))
    run.fit(1, learner())
    assert 13 <= len(run.lr_find.losses) <= 15


def test_second_sweep_starts_afresh_and_all_groups_get_the_rate():
    run, learn = quiet(LR_Find(max_iter=10, max_lr=1e-3)), learner(groups=True)
    class Look(Callback):
        _order = 80
        def after_loss(self): assert len({g['lr'] for g in self.opt.param_groups}) == 1
    run.add_cb(Look())
    run.fit(1, learn)
    first = run.lr_find.losses
    run.fit(1, learn)
    assert run.lr_find.losses == first and len(first) == 10


@pytest.mark.parametrize('kw', [dict(max_iter=1), dict(min_lr=0), dict(min_lr=1, max_lr=.1)])
def test_wrong_sweeps(kw):
    with pytest.raises(ValueError, match='LR_Find needs max_iter >= 2 and 0 < min_lr < max_lr, got'): LR_Find(**kw)


def test_plot_marks_the_suggestion():
    run = quiet(LR_Find(max_iter=60, min_lr=1e-4, max_lr=2))
    set_seed(0)
    x = torch.randn(512, 6)
    y = (x@torch.randn(6, 3)).argmax(1)
    dl = DataLoader(Dataset(x, y), 64, shuffle=True)
    run.fit(1, learner(dls=SimpleNamespace(train_dl=dl, valid_dl=None)))
    s, ax = run.lr_find.suggestion, run.lr_find.plot()
    assert s.safe <= s.steep and [o.get_xdata()[0] for o in ax.lines[1:]] == list(s) and ax.get_xscale() == 'log'
    plt.close('all')
