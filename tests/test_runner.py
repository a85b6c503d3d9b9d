"minifast.runner: modes, averages, the table, progress wherever it is shown, early stopping, copies"
import copy
import importlib
import io
import json
import math
import os
import pickle
import re
import subprocess
import sys
import warnings
from collections import Counter, OrderedDict, UserDict
from functools import partial, partialmethod
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook
from torch import nn, optim
from torch.nn import functional as F
from torch.testing import assert_close

from helpers import assert_same, copies as same, exact, make_callback as make, quiet, small
import minifast
from minifast.callback import (EVENTS, Callback, CancelBatchException, CancelEpochException,
                               CancelTrainException)
from minifast.core import set_seed
from minifast.data import DataBunch
from minifast.learner import Learner
from minifast.losses import accuracy
from minifast.runner import (AvgStats, AvgStatsCallback, EarlyStoppingCallback, ProgressCallback, Runner,
                             TrainEvalCallback, n_items, show_training_loop)

quick = settings(max_examples=60, deadline=None)
PACKAGE = str(Path(minifast.__file__).parents[1])         # for other processes: the one that is tested here
COLUMNS = ['epoch', 'train_loss', 'train_accuracy', 'valid_loss', 'valid_accuracy', 'seconds']


def batches(sizes, seed=0):
    g = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    x,y = torch.randn(n, 4, generator=g),torch.randint(0, 3, (n,), generator=g)
    return list(zip(x.split(sizes), y.split(sizes)))


def make_learner(lr=.3, train=(4, 4, 2), valid=(3, 2), **kw):
    "A small net, always the same; with a rate of 0 and no dropout its losses stay what they are"
    set_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Dropout(.3 if lr else 0.), nn.Linear(5, 3))
    parts = dict(model=model, opt=optim.SGD(model.parameters(), lr=lr), loss_func=F.cross_entropy,
                 data=DataBunch(batches(train), batches(valid, 1) if valid else None, 3))
    return Learner(**{**parts, **kw})


def plain_fit(epochs, learn):
    "By hand: a row (train loss, train accuracy, valid loss, valid accuracy) an epoch, over items"
    rows = []
    for _ in range(epochs):
        row = []
        for dl in (learn.data.train_dl, learn.data.valid_dl):
            train,sums,n = dl is learn.data.train_dl,torch.zeros(2, dtype=torch.float64),0
            learn.model.train(train)
            for xb,yb in dl:
                with torch.set_grad_enabled(train): pred = learn.model(xb); loss = learn.loss_func(pred, yb)
                if train: loss.backward(); learn.opt.step(); learn.opt.zero_grad()
                sums += len(yb)*torch.stack([loss.detach(), (pred.argmax(1) == yb).float().mean()]).double()
                n += len(yb)
            row += (sums/n).tolist()
        rows.append(row)
    return rows


def raising(exc, when=lambda self: True):
    "A method that raises"
    def act(self):
        if when(self): raise exc
    return act


def numbers(run): return [[o[k] for k in o if k not in ('epoch', 'seconds')] for o in run.avg_stats.history]


# ---------------------------------------------------------------- modes

def test_mode_at_every_event():
    seen = {}
    def note(self, event): seen.setdefault((event, self.in_train), set()).add(self.model.training)
    cb = make('Looks', -9, **{e: partialmethod(note, e) for e in EVENTS})
    learn = make_learner()
    learn.model.eval()
    Runner(cb).fit(2, learn)
    assert seen.pop(('begin_fit', False)) == seen.pop(('after_fit', False)) == {False}
    assert seen.pop(('after_epoch', False)) == {False}
    assert all(v == {train} for (event, train),v in seen.items()) and len(seen) == 12
    assert not learn.model.training


def test_every_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.BatchNorm1d(4), nn.Dropout()), nn.Linear(4, 3))
    model[1].eval(); model[1][1].train(); model[2].eval()
    was = [m.training for m in model.modules()]
    assert was == [True, True, False, False, True, False]
    run = Runner()
    for epochs in (1, 0, 2):
        run.fit(epochs, make_learner(model=model, opt=optim.SGD(model.parameters(), lr=.1)))
        assert [m.training for m in model.modules()] == was
    assert set(vars(run.train_eval)) == {'run'}


@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::FutureWarning')   # of TorchScript
def test_a_frozen_part_has_no_mode():
    part = torch.jit.freeze(torch.jit.script(nn.Linear(4, 4).eval()))
    assert not hasattr(part, 'training')
    model = nn.Sequential(part, nn.Dropout(), nn.Linear(4, 3))
    model[1].eval()
    run = quiet(AvgStatsCallback())
    run.fit(1, make_learner(model=model, opt=optim.SGD(model[2].parameters(), lr=.1)))
    assert (model.training, model[1].training) == (True, False) and len(run.rows) == 2


class MyModes(TrainEvalCallback): pass

GIVEN = [TrainEvalCallback(), [make(), TrainEvalCallback()], (MyModes(), make()), None]

@pytest.mark.parametrize('cbs', GIVEN)
def test_one_callback_for_the_modes(cbs):
    run = Runner(cbs)
    assert sum(isinstance(cb, TrainEvalCallback) for cb in run.cbs) == 1


def test_one_callback_for_the_modes_in_cb_funcs():
    assert len(Runner(cb_funcs=TrainEvalCallback).cbs) == 1 == len(Runner(cb_funcs=[MyModes]).cbs)


# ---------------------------------------------------------------- AvgStats

@quick
@given(st.lists(st.integers(1, 7), min_size=1, max_size=7), st.integers(0, 99))
def test_any_partition_gives_the_average_of_all(sizes, seed):
    set_seed(seed)
    n = sum(sizes)
    pred,yb = torch.randn(n, 3, dtype=torch.float64),torch.randint(0, 3, (n,))
    first = lambda p, y: p[:,0].mean()
    stats = AvgStats([accuracy, first], True)
    for p,y in zip(pred.split(sizes), yb.split(sizes)):
        stats.accumulate(SimpleNamespace(pred=p, yb=y, loss=F.cross_entropy(p, y)))
    want = [F.cross_entropy(pred, yb), (pred.argmax(1) == yb).double().mean(), pred[:,0].mean()]
    assert_close(torch.tensor(stats.avg_stats, dtype=torch.float64), torch.stack(want), rtol=1e-6, atol=1e-7)
    assert stats.averages(stats.vals) == stats.avg_stats and all(type(o) is float for o in stats.avg_stats)
    stats.reset()
    assert all(math.isnan(o) for o in stats.avg_stats) and len(stats.avg_stats) == 3


@quick
@given(*[st.lists(st.integers(1, 6), min_size=1, max_size=5)]*2)
def test_any_loader_gives_the_average_of_all(train, valid):
    learn = make_learner(0, train, valid)
    run = quiet(AvgStatsCallback(accuracy))
    run.fit(2, learn)
    want = []
    for dl in (learn.data.train_dl, learn.data.valid_dl):
        x,y = map(torch.cat, zip(*dl))
        pred = learn.model(x)
        want += [F.cross_entropy(pred, y).item(), (pred.argmax(1) == y).double().mean().item()]
    assert_close(numbers(run), [want]*2, rtol=1e-5, atol=1e-6)


def test_table_of_a_real_training():
    "Against numbers computed by hand, to the last bit"
    run,a,b = quiet(AvgStatsCallback(accuracy)),make_learner(),make_learner()
    set_seed(3); run.fit(3, a)
    set_seed(3); want = plain_fit(3, b)
    assert_close(numbers(run), want, rtol=1e-12, atol=0)
    exact(a.model.state_dict(), b.model.state_dict())
    assert [list(o) for o in run.avg_stats.history] == [COLUMNS]*3
    assert [o['epoch'] for o in run.avg_stats.history] == [0, 1, 2]
    assert all(0 <= o['seconds'] < 60 for o in run.avg_stats.history)


@pytest.mark.parametrize('yb', [
    torch.zeros(3), (torch.zeros(3, 7), torch.zeros(5)), [torch.zeros(3)], {'a': torch.zeros(3, 1), 'b': 1},
    ({'a': [torch.zeros(3)]}, torch.zeros(9)), np.zeros(3)],
    ids=['tensor', 'tuple', 'list', 'dict', 'nested', 'array'])
def test_the_size_is_that_of_yb(yb):
    "… as xb may be cropped, mixed or nested by a callback"
    stats = AvgStats(None, True)
    stats.accumulate(SimpleNamespace(xb=torch.zeros(99), pred=None, yb=yb, loss=torch.tensor(1.)))
    stats.accumulate(SimpleNamespace(xb=torch.zeros(99), pred=None, yb=torch.zeros(1), loss=torch.tensor(5.)))
    assert stats.avg_stats == [2.] and repr(stats) == 'AvgStats(2.0000)'


# ---------------------------------------------------------------- how many items

def at_hand(yb, pred=None, xb=None): return SimpleNamespace(yb=yb, pred=pred, xb=xb, loss=torch.tensor(1.))
def boxes(n): return {'boxes': torch.zeros(n, 4), 'labels': torch.zeros(n)}
Ragged = lambda *ns: [torch.zeros(n) for n in ns]
with warnings.catch_warnings():
    warnings.simplefilter('ignore')                        # that nested tensors are a prototype
    jagged = torch.nested.nested_tensor(Ragged(2, 5, 3))

@pytest.mark.parametrize('yb, n', [
    ([boxes(2), boxes(5), boxes(1)], 3), ([boxes(2)]*4, 4), (tuple(boxes(2) for _ in range(4)), 4), ([{}, {}], 2),
    (['a', 'bcd', 'e'], 3), (('ab', 'cd'), 2), ([1, 2, 3, 4], 4), ([None, None], 2), ([], 0),
    (Ragged(2, 5, 3), 3), (Ragged(4, 4), 4), ([torch.tensor(1), torch.tensor(2)], 2), ([Ragged(2, 3), Ragged(1)], 2),
    ([torch.zeros(6), [torch.zeros(6, 2), torch.zeros(6)]], 6), ((torch.zeros(6), boxes(6)), 6),
    (boxes(7), 7), (OrderedDict(a=1, b=torch.zeros(5)), 5), (UserDict(a=torch.zeros(5)), 5),
    (torch.zeros(3, 2).to_sparse(), 3), (jagged, 3), (np.zeros((4, 2)), 4), (range(5), 5)], ids=str)
def test_items_of_the_targets(yb, n):
    assert n_items(at_hand(yb, torch.zeros(99), torch.zeros(98))) == n

@pytest.mark.parametrize('yb', [None, 'names.txt', 3, torch.tensor(3), {}, {'a': None}, object()], ids=str)
def test_items_of_targets_that_dont_say(yb):
    assert n_items(at_hand(yb, torch.zeros(5, 2), torch.zeros(98))) == 5
    assert n_items(at_hand(yb, torch.tensor(1.), torch.zeros(6, 2))) == 6
    assert n_items(at_hand(yb, None, [torch.zeros(5, 7), torch.zeros(3, 9)])) == 2
    with pytest.raises(TypeError) as e: n_items(at_hand(yb, torch.tensor(1.), None))
    assert str(e.value).startswith("can't tell how many items a batch has from yb ")
    assert str(e.value).endswith('pred () float32 and xb NoneType: let one of them be a tensor (bs,…), or a list '
                                 'with an element for each item')

def test_a_detector_is_averaged_over_its_images():
    "Batches of 3 and 1 images, whose first image has 1 box and 9"
    class Detector(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.zeros(()))
        def forward(self, xb): return [self.w*x.mean() for x in xb]
    def loss(pred, yb): return sum(p + len(y['boxes']) for p,y in zip(pred, yb))/len(yb)
    def images(n): return [torch.zeros(3, 8+i, 8) for i in range(n)]
    data = DataBunch([(images(3), [boxes(1), boxes(2), boxes(6)]), (images(1), [boxes(9)])], None)
    model = Detector()
    run = quiet(AvgStatsCallback())
    run.fit(1, Learner(model, optim.SGD(model.parameters(), lr=0), loss, data))
    assert run.avg_stats.history[0]['train_loss'] == (1+2+6+9)/4


# ---------------------------------------------------------------- notes are copies

@pytest.mark.parametrize('order', [51, 99])
def test_a_loss_changed_in_place_afterwards(order):
    def changes(self):
        with torch.no_grad(): self.loss.mul_(0)
    a,b = quiet(AvgStatsCallback()),quiet(AvgStatsCallback(), make('Changes', order, after_batch=changes))
    for run in (a, b): run.fit(2, make_learner())
    exact(numbers(b), numbers(a))

def test_a_metric_that_fills_the_same_tensor_again():
    class Buffered:
        def __init__(self): self.out,self.n = torch.zeros(()),0
        def __call__(self, pred, yb): self.n += 1; return self.out.fill_(self.n)
    run = quiet(AvgStatsCallback(Buffered()))
    run.fit(1, make_learner(train=(4, 4, 2), valid=None))
    assert run.avg_stats.history[0]['train_Buffered'] == (4*1 + 4*2 + 2*3)/10


# ---------------------------------------------------------------- no stdout, or one that is no file

class OnlyWrites:
    def __init__(self): self.said = ''
    def write(self, s): self.said += s

@pytest.mark.parametrize('out', [None, OnlyWrites(), io.StringIO()], ids=['none', 'only writes', 'text'])
def test_any_stdout(monkeypatch, out):
    monkeypatch.setattr(sys, 'stdout', out)
    run = Runner([AvgStatsCallback(accuracy), ProgressCallback()])
    run.fit(2, make_learner())
    assert len(run.avg_stats.history) == 2
    said = out.said if isinstance(out, OnlyWrites) else out.getvalue() if out else 'epoch\n0\n1\n'
    assert [o.split()[0] for o in said.splitlines()] == ['epoch', '0', '1']

def test_a_closed_stdout_has_no_bars(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, 'stdout', out)
    out.close()                                            # isatty of a closed file is a ValueError
    run = quiet(AvgStatsCallback(accuracy), ProgressCallback())
    run.fit(1, make_learner())
    assert len(run.rows) == 2


def test_repr(): assert repr(AvgStats(accuracy, False)) == 'AvgStats(nan, nan)'


@pytest.mark.parametrize('how', ['generator', 'later'])
def test_metrics_are_the_callbacks_own(how):
    metrics = [accuracy]
    run = quiet(AvgStatsCallback(metrics if how == 'later' else (o for o in metrics)))
    metrics.append(named('late'))
    run.fit(1, make_learner())
    assert list(run.avg_stats.history[0]) == COLUMNS and [len(o) for o in run.rows] == [6, 6]
    assert 0 <= run.avg_stats.history[0]['valid_accuracy'] <= 1 and run.avg_stats.history[0]['valid_loss'] > 1


class Metric:
    def __call__(self, pred, yb): return 1

TWOS = [2, 2., np.float32(2), np.float64(2), torch.tensor(2), torch.tensor([2.]),
        *(torch.tensor(2., dtype=o) for o in (torch.float32, torch.float64, torch.bfloat16))]

@pytest.mark.parametrize('value', [*TWOS, True, False, torch.tensor(True), torch.tensor(False)], ids=repr)
def test_what_metrics_may_return(value):
    run = quiet(AvgStatsCallback([lambda p, y: value, accuracy]))
    run.fit(1, make_learner())
    row = run.avg_stats.history[0]
    assert row['train_<lambda>'] == row['valid_<lambda>'] == float(value)
    assert all(type(v) is float for k,v in row.items() if k != 'epoch')


def test_metrics_are_computed_without_gradients():
    seen = []
    def looks(pred, yb): seen.append(torch.is_grad_enabled()); return pred.mean()
    run = quiet(AvgStatsCallback(looks))
    run.fit(1, make_learner())
    assert seen == [False]*5
    stats = run.avg_stats
    assert not any(v.requires_grad for o in (stats.train_stats, stats.valid_stats) for v in o.vals)


def top(pred, yb, k=1): return pred.mean()

@pytest.mark.parametrize('metrics, columns', [
    (None, []), ([], []), (accuracy, ['accuracy']), ([top, accuracy], ['top', 'accuracy']),
    ([top, partial(top, k=3)], ['top', 'top_2']), ([top]*3, ['top', 'top_2', 'top_3']),
    (partial(partial(top, k=1)), ['top']), (Metric(), ['Metric']), (lambda p, y: 1, ['<lambda>'])])
def test_column_names(metrics, columns):
    run = quiet(AvgStatsCallback(metrics))
    run.fit(1, make_learner())
    want = [f'{p}_{o}' for p in ('train', 'valid') for o in ['loss', *columns]]
    assert [o.strip() for o in run.rows[0]] == ['epoch', *want, 'seconds'] == list(run.avg_stats.history[0])


def named(name):
    def f(pred, yb): return 1.
    f.__name__ = name
    return f

def test_a_metric_called_loss():
    assert AvgStatsCallback(named('loss')).names[1:3] == ['train_loss', 'train_loss_2']

@quick
@given(st.lists(st.sampled_from(['top', 'top_2', 'top_3', 'loss', 'loss_2']), max_size=7))
def test_no_two_columns_alike(metrics):
    "… and a metric keeps its name wherever it is the first to have it"
    names = AvgStatsCallback([named(o) for o in metrics]).names[1:len(metrics)+2]
    assert len(set(names)) == len(names) and names[0] == 'train_loss'
    for i,(metric,name) in enumerate(zip(metrics, names[1:])):
        own = f'train_{metric}'
        assert name == own and own not in names[:i+1] or own in names[:i+1] and name.startswith(f'{own}_')


# ---------------------------------------------------------------- what counts, and what doesn't

def by_hand(learn, keep):
    "Average loss of the training batches in `keep`, at the weights as they are"
    bs = [learn.data.train_dl[i] for i in keep]
    x,y = map(torch.cat, zip(*bs)) if bs else (None, None)
    return F.cross_entropy(learn.model(x), y).item() if bs else math.nan


@pytest.mark.parametrize('event', ['begin_batch', 'after_pred', 'after_loss', 'after_backward', 'after_step'])
@pytest.mark.parametrize('cut', [0, 1, 2])
def test_a_cancelled_batch_isnt_counted(event, cut):
    learn = make_learner(0)
    act = raising(CancelBatchException, lambda self: self.in_train and self.iter == cut)
    run = quiet(AvgStatsCallback(), make(**{event: act}))
    run.fit(1, learn)
    assert_close(numbers(run)[0][0], by_hand(learn, {0, 1, 2}-{cut}), rtol=1e-6, atol=0)
    assert run.avg_stats.train_stats.sizes == [n for i,n in enumerate((4, 4, 2)) if i != cut]


@pytest.mark.parametrize('cut', [0, 1, 2])
def test_a_cancelled_epoch_counts_as_far_as_it_went(cut):
    learn = make_learner(0)
    act = raising(CancelEpochException, lambda self: self.in_train and self.iter == cut)
    run = quiet(AvgStatsCallback(), make(after_loss=act))
    run.fit(1, learn)
    (train, valid), = numbers(run)
    assert_close(train, by_hand(learn, range(cut)), rtol=1e-6, atol=0, equal_nan=True)
    assert math.isfinite(valid)                            # the training pass is cancelled, and nothing else
    assert (run.rows[1][1].strip() == '-') == (cut == 0)


@pytest.mark.parametrize('cut', [0, 1])
def test_a_cancelled_validation_counts_as_far_as_it_went(cut):
    learn = make_learner(0)
    act = raising(CancelEpochException, lambda self: not self.in_train and self.iter == cut)
    run = quiet(AvgStatsCallback(), make(after_loss=act))
    run.fit(1, learn)
    (train, valid), = numbers(run)
    assert math.isfinite(train) and math.isnan(valid) == (cut == 0)
    assert len(run.avg_stats.valid_stats.sizes) == cut


def no(self): return self.epoch == 1

@pytest.mark.parametrize('event, missing', [('begin_epoch', 0), ('begin_validate', 1)])
def test_a_skipped_phase_is_a_dash(event, missing):
    "… in its epoch only: no number of another epoch stands there"
    run = quiet(AvgStatsCallback(), make(**{event: no}))
    run.fit(3, make_learner(0))
    for epoch,row in enumerate(numbers(run)):
        assert [math.isnan(v) for v in row] == [epoch == 1 and i == missing for i in (0, 1)]
        assert [o.strip() == '-' for o in run.rows[epoch+1][1:3]] == [math.isnan(v) for v in row]


def test_an_epoch_without_a_batch_shows_nothing_of_the_one_before():
    run = quiet(AvgStatsCallback(accuracy), make(begin_epoch=raising(CancelEpochException(), no)))
    run.fit(3, make_learner(0))
    lost = [True, True, False, False]                      # the training columns of the epoch that lost its training
    assert [[math.isnan(v) for v in row] for row in numbers(run)] == [[False]*4, lost, [False]*4]


def test_an_epoch_without_both_passes_shows_nothing_of_the_one_before():
    run = quiet(AvgStatsCallback(accuracy), make(begin_epoch=raising(CancelEpochException(), no), begin_validate=no))
    run.fit(3, make_learner(0))
    assert [[math.isnan(v) for v in row] for row in numbers(run)] == [[False]*4, [True]*4, [False]*4]


@pytest.mark.parametrize('cbs', [(), (make(begin_epoch=raising(CancelEpochException())),)])
def test_nothing_measured_at_all(cbs):
    run = quiet(AvgStatsCallback(accuracy), *cbs)
    learn = make_learner(valid=None)
    run.fit(2, learn)
    measured = [not math.isnan(v) for v in numbers(run)[1]]
    assert measured == ([False]*4 if cbs else [True, True, False, False])


def test_the_end_of_a_fit_writes_no_row():
    run = quiet(AvgStatsCallback(), make(after_loss=raising(CancelTrainException(), lambda o: o.epoch == 1)))
    run.fit(3, make_learner())
    assert len(run.rows) == 2 and len(run.avg_stats.history) == 1


@pytest.mark.parametrize('exc', [KeyboardInterrupt, ValueError])
def test_an_interrupted_fit_keeps_its_rows(exc):
    act = raising(exc, lambda self: (self.epoch, self.iter) == (2, 1))
    run = quiet(AvgStatsCallback(accuracy), make(after_loss=act))
    with pytest.raises(exc): run.fit(3, make_learner())
    want = quiet(AvgStatsCallback(accuracy))
    want.fit(2, make_learner())
    assert numbers(run) == numbers(want)
    assert run.avg_stats.train_stats.sizes == [4]          # and the epoch that was cut off can be looked at


def test_a_second_fit_starts_afresh():
    run,other = quiet(AvgStatsCallback(accuracy)),quiet(AvgStatsCallback(accuracy))
    run.fit(1, make_learner(.7))
    run.fit(2, make_learner())
    other.fit(2, make_learner())
    assert numbers(run) == numbers(other) and len(run.rows) == 2+3
    run.fit(0, make_learner())
    assert run.avg_stats.history == []


def anew(run): run.loss = run.loss*3
def in_place(run): run.loss.mul_(3)
def third(self): self.run.loss = self.loss/3

@pytest.mark.parametrize('act', [anew, in_place])
@pytest.mark.parametrize('before', [True, False])
@pytest.mark.parametrize('order', [-20, 0, 49, 51, 99])
def test_order_of_who_changes_the_loss_doesnt_matter(order, before, act):
    "The loss that was used is the loss that is shown"
    def after_loss(self): act(self.run)
    cb,stats,learn = make(order=order, after_loss=after_loss),AvgStatsCallback(),make_learner(0)
    run = quiet(*([cb, stats] if before else [stats, cb]))
    run.fit(1, learn)
    assert_close(numbers(run)[0][0], 3*by_hand(learn, range(3)), rtol=1e-6, atol=0)


@pytest.mark.parametrize('before', [True, False])
def test_after_batch_of_others_comes_first(before):
    "… so a loss that was scaled for the step can be put right again"
    def after_loss(self): anew(self.run)
    cb,stats,learn = make(after_loss=after_loss, after_batch=third),AvgStatsCallback(),make_learner(0)
    run = quiet(*([cb, stats] if before else [stats, cb]))
    run.fit(1, learn)
    assert_close(numbers(run)[0][0], by_hand(learn, range(3)), rtol=1e-6, atol=0)


@pytest.mark.parametrize('values, want', [([math.nan, 1., 1.], math.nan), ([math.inf, 1., 1.], math.inf),
                                          ([math.inf, -math.inf, 1.], math.nan), ([4e307]*3, math.inf)])
def test_what_isnt_finite_is_shown(values, want):
    vals = iter(values)
    run = quiet(AvgStatsCallback(lambda p, y: next(vals)))
    run.fit(1, make_learner(valid=None))
    assert_close(run.avg_stats.history[0]['train_<lambda>'], want, equal_nan=True)


# ---------------------------------------------------------------- metrics that fail

def notes_of(run, learn=None):
    with pytest.raises(Exception) as e: run.fit(1, learn or make_learner())
    return e.value, '\n'.join([str(e.value), *e.value.__notes__])

def test_a_metric_that_fails_is_named():
    def wrong(pred, yb): return (pred == yb).float().mean()
    for m in (wrong, partial(wrong)):
        e,said = notes_of(quiet(AvgStatsCallback([accuracy, m])))
        assert type(e) is RuntimeError
        assert said.endswith("metric 'wrong' of pred (4,3) float32 and yb (4) int64\n"
                             'in AvgStatsCallback.after_batch, epoch 0, training batch 0 of 3')

@pytest.mark.parametrize('value, got', [(None, 'NoneType'), ('x', 'str'), (torch.zeros(4), '(4) float32')],
                         ids=['None', 'text', 'one for each item'])
def test_a_metric_that_returns_no_number_is_named(value, got):
    def forgetful(pred, yb): return value
    e,said = notes_of(quiet(AvgStatsCallback([accuracy, forgetful])))
    assert type(e) is TypeError and "metric 'forgetful'" in said
    assert str(e) == f'a metric must return one number, the mean over the batch, got {got}'

@pytest.mark.parametrize('exc', [ValueError, KeyboardInterrupt])
def test_averages_after_a_metric_has_failed(exc):
    n = [0]
    def fails(pred, yb):
        n[0] += 1
        if n[0] == 3: raise exc
        return 1.
    run,learn = quiet(AvgStatsCallback(fails)),make_learner(0)
    with pytest.raises(exc): run.fit(1, learn)
    assert_close(run.avg_stats.train_stats.avg_stats, [by_hand(learn, range(2)), 1.], rtol=1e-6, atol=0)


# ---------------------------------------------------------------- the table as text

def cells(row):
    "A row of history as text"
    numbers = ['-' if math.isnan(row[k]) else f'{row[k]:.4f}' for k in COLUMNS[1:-1]]
    return [str(row['epoch']), *numbers, f"{row['seconds']:.2f}"]


def test_rows_that_are_printed(capsys):
    run = Runner(AvgStatsCallback(accuracy))
    run.fit(3, make_learner(valid=None))
    lines = capsys.readouterr().out.splitlines()
    assert [o.split() for o in lines[:1]] == [COLUMNS] and len(lines) == 4 and len(set(map(len, lines))) == 1
    for line,row in zip(lines[1:], run.avg_stats.history):
        assert line.split() == cells(row)
    assert '  '.join(o.rjust(8) for o in COLUMNS) == lines[0]
    ends = [m.end() for m in re.finditer(r'\S+', lines[0])]
    assert all([m.end() for m in re.finditer(r'\S+', o)] == ends for o in lines)     # flush right


def test_the_header_comes_with_the_first_row():
    skip = raising(CancelBatchException, lambda self: self.epoch == 0)   # the rest of that after_epoch
    run = quiet(AvgStatsCallback(accuracy), make(after_epoch=skip))
    run.fit(3, make_learner())
    assert [row[0].strip() for row in run.rows] == ['epoch', '1', '2']


def test_the_logger_is_anybodys():
    run,rows = Runner(AvgStatsCallback()),[]
    run.logger = rows.append
    run.fit(2, make_learner())
    assert len(rows) == 3 and all(isinstance(o, str) for row in rows for o in row)


# ---------------------------------------------------------------- one transfer an epoch

@pytest.fixture
def transfers(monkeypatch):
    "A list to which a string is added whenever anybody reads a tensor's value"
    seen = []
    def counted(k):
        f = getattr(torch.Tensor, k)
        def read(self, *args, **kw): seen.append(k); return f(self, *args, **kw)
        monkeypatch.setattr(torch.Tensor, k, read)
    for k in 'item tolist cpu numpy __float__ __int__ __bool__ __index__ __array__'.split(): counted(k)
    return seen


def reads(transfers, run, learn, epochs=3):
    "At which event, -> how often, a value is read in a fit"
    now,found = [''],[]
    def note(self, event):
        found.append((now[0], len(transfers)))
        now[0] = event
    run.add_cb(make('Notes', -99, **{e: partialmethod(note, e) for e in EVENTS}))
    run.fit(epochs, learn)
    found.append((now[0], len(transfers)))
    count = Counter()
    for (_, n0),(event, n1) in zip(found, found[1:]): count[event] += n1-n0
    return +count


def test_the_counter_counts(transfers):
    t = torch.ones(())
    float(t), int(t), bool(t), t.item(), t.tolist(), t.cpu(), t.numpy(), [0, 1][t.long()], np.asarray(t)
    assert {'__float__', '__int__', '__bool__', '__index__', 'item', 'tolist', 'numpy'} <= set(transfers)


def test_one_transfer_an_epoch(transfers):
    metrics = [accuracy, top, lambda p, y: 2, lambda p, y: (p > 0).any()]
    run = quiet(AvgStatsCallback(metrics), ProgressCallback(''))
    assert reads(transfers, run, make_learner(train=(4,)*9)) == {'after_epoch': 3}


def test_none_where_nothing_was_measured(transfers):
    cancels = raising(CancelEpochException())
    run = quiet(AvgStatsCallback(accuracy), make(begin_epoch=cancels, begin_validate=cancels))
    assert reads(transfers, run, make_learner()) == {}


def test_early_stopping_reads_the_table(transfers):
    run = quiet(AvgStatsCallback(accuracy), EarlyStoppingCallback('valid_accuracy', patience=9))
    assert reads(transfers, run, make_learner()) == {'after_epoch': 3}


def test_the_bars_read_nothing(transfers, capsys):
    run = Runner([AvgStatsCallback(accuracy), ProgressCallback('terminal')])
    assert reads(transfers, run, make_learner()) == {'after_epoch': 3}


# ---------------------------------------------------------------- progress: a pipe

PIPE = '''
import sys, torch
torch.set_num_threads(1)
from torch import nn, optim
from minifast.data import DataBunch
from minifast.learner import Learner
from minifast.losses import accuracy, cross_entropy
from minifast.runner import AvgStatsCallback, ProgressCallback, Runner
model = nn.Linear(4, 3)
b = torch.randn(8, 4), torch.randint(0, 3, (8,))
learn = Learner(model, optim.SGD(model.parameters(), lr=.1), cross_entropy, DataBunch([b]*3, [b]))
run = Runner([ProgressCallback(), AvgStatsCallback(accuracy)])
run.fit(3, learn)
assert not {'fastprogress', 'matplotlib.pyplot', 'IPython'} & set(sys.modules)
'''

def test_plain_rows_in_a_pipe():
    env = {**os.environ, 'PYTHONIOENCODING': 'ascii', 'OMP_NUM_THREADS': '1', 'PYTHONPATH': PACKAGE}
    r = subprocess.run([sys.executable, '-W', 'error', '-c', PIPE], capture_output=True, env=env, timeout=120)
    out = r.stdout.decode('ascii')                         # no block characters
    assert (r.returncode, r.stderr) == (0, b'')
    assert '\r' not in out.replace(os.linesep, '\n') and '\x1b' not in out and '\b' not in out
    lines = out.splitlines()
    assert lines[0].split() == COLUMNS and len(lines) == 4
    rows = [dict(zip(COLUMNS, map(float, o.split()), strict=True)) for o in lines[1:]]
    assert [o['epoch'] for o in rows] == [0, 1, 2] and rows[0]['train_loss'] > rows[2]['train_loss']


# ---------------------------------------------------------------- progress: a terminal

class Terminal(io.StringIO):
    def isatty(self): return True

def screen(text):
    "What a terminal shows in the end: a carriage return goes back, and what comes then overwrites"
    lines = []
    for line in text.split('\n'):
        shown = ''
        for part in line.split('\r'): shown = part + shown[len(part):]
        lines.append(shown.rstrip())
    return [o for o in lines if o]


def test_detects_a_terminal(monkeypatch):
    for out,bars in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, 'stdout', out)
        Runner([ProgressCallback(), AvgStatsCallback()]).fit(1, make_learner())
        assert ('\r' in out.getvalue()) == ('█' in out.getvalue()) == bars


def test_ipython_in_a_terminal_is_no_notebook(monkeypatch):
    monkeypatch.setitem(sys.modules, 'IPython', SimpleNamespace(get_ipython=lambda: SimpleNamespace()))
    for out,bars in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, 'stdout', out)
        Runner(ProgressCallback()).fit(1, make_learner())
        assert ('█' in out.getvalue()) == bars


def ended(run):
    "Has the callback no bars any more?"
    return {k: v for k,v in vars(run.progress).items() if k != 'run'} == vars(ProgressCallback('terminal'))


@pytest.mark.parametrize('epochs', [1, 3])
def test_bars_on_a_terminal(capsys, epochs):
    run = Runner([AvgStatsCallback(accuracy), ProgressCallback('terminal')])
    before = run.logger
    run.fit(epochs, make_learner())
    out = capsys.readouterr().out
    for e in range(epochs):
        for n in (3, 2): assert re.search(rf'Epoch {e+1}/{epochs} : \|█+\| 100.00% \[{n}/{n} ', out)
    assert run.logger == before and ended(run)


def test_the_table_on_a_terminal_is_complete(capsys):
    run = Runner([AvgStatsCallback(accuracy), ProgressCallback('terminal')])
    run.fit(3, make_learner())
    lines = [o for o in screen(capsys.readouterr().out) if '|' not in o]
    assert lines[0].split() == COLUMNS
    for line,row in zip(lines[1:], run.avg_stats.history, strict=True):
        assert line.split() == cells(row)


ENDS = [None, CancelBatchException, CancelEpochException, CancelTrainException, ValueError, KeyboardInterrupt]

PLACES = 'begin_fit begin_epoch after_loss begin_validate after_epoch after_fit'.split()

@pytest.mark.parametrize('exc', ENDS)
@pytest.mark.parametrize('event', PLACES)
@pytest.mark.parametrize('order', [-5, 5])
def test_the_logger_is_given_back(capsys, event, order, exc):
    "However a fit ends; and the next one shows bars again"
    cb = make('Fails', order, fails=True, **{event: raising(exc, lambda self: exc and self.fails)})
    run = Runner([cb, ProgressCallback('terminal'), AvgStatsCallback()])
    run.logger = before = lambda cells: None
    ok = exc not in (ValueError, KeyboardInterrupt)
    try: run.fit(2, make_learner()); assert ok
    except (ValueError, KeyboardInterrupt): assert not ok
    assert run.logger is before and ended(run)
    cb.fails = False
    capsys.readouterr()
    run.fit(1, make_learner())
    assert 'Epoch 1/1' in capsys.readouterr().out and run.logger is before


@pytest.mark.parametrize('display', ['terminal', 'notebook', '', None])
def test_no_bars_for_no_epochs(capsys, display):
    run = Runner([AvgStatsCallback(), ProgressCallback(display)])
    before = run.logger
    run.fit(0, make_learner())
    assert capsys.readouterr() == ('', '') and run.logger is before


@pytest.mark.parametrize('display', ['bars', 'Notebook', True, 0, 'tty'])
def test_displays_there_are(display):
    with pytest.raises(ValueError, match=f"^display must be 'notebook', 'terminal', '' .* got {display!r}$"):
        ProgressCallback(display)


@pytest.mark.parametrize('display', ['terminal', ''])
def test_progress_changes_no_number(capsys, display):
    a,b = make_learner(),make_learner()
    set_seed(3); Runner([ProgressCallback(display), AvgStatsCallback()]).fit(3, a)
    set_seed(3); plain_fit(3, b)
    exact(a.model.state_dict(), b.model.state_dict())


def test_progress_without_a_table(capsys):
    Runner(ProgressCallback('terminal')).fit(2, make_learner())
    assert 'Epoch 2/2' in capsys.readouterr().out


def test_progress_with_skipped_phases(capsys):
    run = Runner([ProgressCallback('terminal'), AvgStatsCallback(),
                  make(begin_validate=no, begin_epoch=lambda o: o.epoch == 2),
                  make('Cut', after_batch=raising(CancelEpochException(), lambda o: o.epoch == 3))])
    run.fit(5, make_learner())
    assert len(run.avg_stats.history) == 5 and 'Epoch 5/5' in capsys.readouterr().out


def test_two_progress_callbacks(capsys):
    run = Runner([ProgressCallback('terminal'), ProgressCallback('terminal'), AvgStatsCallback()])
    before = run.logger
    run.fit(1, make_learner())
    assert run.logger is before


# ---------------------------------------------------------------- progress: a notebook

EXECUTE = '''
import sys, nbformat
from nbclient import NotebookClient
path, folder = sys.argv[1:]
nb = nbformat.read(path, 4)
NotebookClient(nb, timeout=100, kernel_name='python3', resources={'metadata': {'path': folder}}).execute()
nbformat.write(nb, path)
'''
SETUP = PIPE.split('run = ')[0].replace('import sys, torch', 'import json, fastprogress, torch') + '''
from minifast.callback import Callback
class Stops(Callback):
    def after_loss(self):
        if self.epoch == 1: raise self.kind('stop')
print(fastprogress.__version__)
'''
CELLS = [SETUP, '''
run = Runner([AvgStatsCallback(accuracy), ProgressCallback()])
before = run.logger
run.fit(3, learn)
print(json.dumps([run.logger is before, run.avg_stats.history]))
'''] + [f'''
run = Runner([Stops(), AvgStatsCallback(accuracy), ProgressCallback()])
run.stops.kind,before = {kind},run.logger
try: run.fit(3, learn)
except {kind} as e: print(json.dumps([run.logger is before, str(e)]))
''' for kind in ('ValueError', 'KeyboardInterrupt')] + ['''
run = Runner([AvgStatsCallback(accuracy), ProgressCallback('notebook')])
run.fit(0, learn)
run.fit(1, Learner(model, learn.opt, cross_entropy, DataBunch([b], None)))
''', '''
Runner([AvgStatsCallback(accuracy), ProgressCallback('')]).fit(2, learn)
''', '''
Runner([AvgStatsCallback(accuracy), ProgressCallback('terminal')]).fit(2, learn)
''']

def table(outputs):
    "The rows of the last table that is displayed, as lists of text"
    data = [o.data for o in outputs if o.output_type == 'display_data']
    html = [d.get('text/html') or d.get('text/markdown', '') for d in data]
    rows = re.findall(r'<tr[^>]*>(.*?)</tr>', [o for o in html if '<table' in o][-1], re.S)
    return [[o.strip() for o in re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', row, re.S)] for row in rows]

def printed(cell): return ''.join(o.text for o in cell.outputs if o.get('name') == 'stdout')


@pytest.fixture(scope='module', params=['installed', 'FASTPROGRESS_1_1'])
def notebook(request, tmp_path_factory):
    "The cells above, run by a fresh kernel: with the fastprogress that is installed, and with another one"
    env = {k: v for k, v in os.environ.items() if k not in ('MPLBACKEND', 'IN_TEST')}
    folder = env.get(request.param, '')
    if request.param != 'installed' and not folder:
        pytest.skip('FASTPROGRESS_1_1 names no folder with fastprogress 1.1 and what it needs')
    tmp = tmp_path_factory.mktemp('nb')
    env.update(OMP_NUM_THREADS='1', IPYTHONDIR=str(tmp/'.ipython'),
               PYTHONPATH=os.pathsep.join([*[folder]*bool(folder), PACKAGE]),
               PATH=os.path.dirname(sys.executable) + os.pathsep + env['PATH'])
    nbformat.write(new_notebook(cells=[new_code_cell(o.strip()) for o in CELLS]), tmp/'x.ipynb')
    cmd = [sys.executable, '-c', EXECUTE, tmp/'x.ipynb', tmp]
    r = subprocess.run(cmd, env=env, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-2000:]
    cells = nbformat.read(tmp/'x.ipynb', 4).cells
    assert printed(cells[0]).startswith('1.' if request.param == 'installed' else '1.1')
    return cells[1:]


def test_notebook_shows_table_and_graph(notebook):
    cell = notebook[0]
    given_back,history = json.loads(printed(cell))
    rows = table(cell.outputs)
    assert given_back and rows[0] == COLUMNS
    assert rows[1:] == [cells(o) for o in history]
    assert sum('image/png' in o.get('data', {}) for o in cell.outputs) == 1


def test_notebook_leaves_no_bar(notebook):
    "… and says nothing on stderr, prints no bar characters"
    for cell in notebook[:4]:
        text = json.dumps(cell.outputs)
        assert '<progress' not in text and '\\u2588' not in text and '"stderr"' not in text


def test_notebook_after_an_error_and_an_interrupt(notebook):
    for cell in notebook[1:3]:
        assert json.loads(printed(cell)) == [True, 'stop']
        assert len(table(cell.outputs)) == 2               # header, and the epoch that was completed


def test_notebook_without_epochs_and_without_validation(notebook):
    rows = table(notebook[3].outputs)
    assert len(rows) == 2 and rows[1][3:5] == ['-', '-']


def test_notebook_with_plain_rows(notebook):
    assert {o.output_type for o in notebook[4].outputs} == {'stream'}
    assert len(printed(notebook[4]).splitlines()) == 3


def test_notebook_with_the_terminals_bars(notebook):
    assert 'Epoch 2/2' in printed(notebook[5]) and not [o for o in notebook[5].outputs if 'data' in o]


# ---------------------------------------------------------------- early stopping

def fit_values(values, epochs=None, **kw):
    "A fit in which the monitored column has these values -> the runner"
    def value(pred, yb): return float(values[run.epoch])
    run = quiet(AvgStatsCallback(value), EarlyStoppingCallback('valid_value', **{'higher_is_better': True, **kw}))
    run.fit(len(values) if epochs is None else epochs, make_learner(train=(1,), valid=(1,)))
    return run

@quick
@given(st.lists(st.sampled_from([0., .25, .5, .75, 1., math.nan, math.inf]), min_size=1, max_size=9),
       st.integers(1, 4), st.sampled_from([0., .25, .3]), st.booleans())
def test_stops_when_it_should(values, patience, min_delta, higher):
    "At the first epoch that is the last of `patience` epochs without an improvement"
    better,best = [],None                                  # better: was each epoch an improvement?
    for v in values:
        sign = 1 if higher else -1
        gain = math.inf if best is None else sign*(v - best)
        good = not math.isnan(v) and sign*v > -math.inf and gain > min_delta
        better.append(good)
        if good: best = v
    ends = [t for t in range(len(values)) if t+1 >= patience and not any(better[t+1-patience:t+1])]
    run = fit_values(values, patience=patience, min_delta=min_delta, higher_is_better=higher)
    assert run.early_stopping.stopped == (ends[0] if ends else None)
    assert len(run.avg_stats.history) == (ends[0]+1 if ends else len(values))


@pytest.mark.parametrize('values, kw, stopped', [
    ([1, 2, 3, 2, 2, 2, 9], {}, 5), ([1, 2, 3, 2, 2, 2, 9], dict(patience=2), 4), ([5]*9, {}, 3),
    ([3, 2, 1], dict(patience=1), 1), ([3, 2, 1, 1, 1], dict(patience=2, higher_is_better=False), 4),
    ([1, 1.5, 2], dict(patience=1, min_delta=.5), 1), ([1, 1.5, 2.1], dict(patience=2, min_delta=1), None),
    ([math.nan]*5, dict(patience=2), 1), ([math.nan, 1, 2], dict(patience=2), None),
    ([1, math.nan, 2, 3], dict(patience=2), None)])
def test_stops_here(values, kw, stopped):
    run = fit_values(values, **kw)
    assert run.early_stopping.stopped == stopped
    assert run.epoch == (len(values) if stopped is None else stopped)


@pytest.mark.parametrize('monitor, lower', [
    ('valid_loss', True), ('train_loss', True), ('valid_error_rate', True), ('valid_accuracy', False),
    ('train_accuracy', False)])
def test_direction_by_name(monitor, lower):
    def error_rate(pred, yb): return 1 - accuracy(pred, yb)
    for higher in (None, not lower):
        stop = EarlyStoppingCallback(monitor, 1, higher_is_better=higher)
        run = quiet(AvgStatsCallback([accuracy, error_rate]), stop)
        run.fit(40, make_learner())
        col = [o[monitor]*(-1 if lower else 1) for o in run.avg_stats.history]
        assert col[-1] <= max(col[:-1]) and run.early_stopping.best == max(col) == col[-2]
        assert run.early_stopping.best_epoch == len(col)-2


def test_default_is_the_validation_loss():
    cb = EarlyStoppingCallback()
    assert (cb.monitor, cb.patience, cb.min_delta) == ('valid_loss', 3, 0)


def test_stopping_starts_afresh_in_a_second_fit():
    run = fit_values([9, 1, 1, 1, 1], patience=2)
    assert run.early_stopping.stopped == 2
    run.fit(5, make_learner(train=(1,), valid=(1,)))
    assert run.early_stopping.stopped == 2 and len(run.avg_stats.history) == 3
    run.fit(1, make_learner(train=(1,), valid=(1,)))
    assert run.early_stopping.stopped is None and run.early_stopping.best_epoch == 0


def test_stopping_ends_the_fit_in_order():
    log = []
    stop = EarlyStoppingCallback('train_loss', 1, higher_is_better=True)
    note = {e: partialmethod(lambda self, e: log.append(e), e) for e in EVENTS if e[:5] == 'after'}
    run = quiet(AvgStatsCallback(), stop, make('Log', 99, **note))
    run.fit(9, make_learner(.05))
    assert log[-4:] == ['after_batch', 'after_epoch', 'after_cancel_train', 'after_fit']
    assert log.count('after_epoch') == stop.stopped+1 == len(run.avg_stats.history)   # of a later order, the last too


def test_stopping_without_a_table():
    e,said = notes_of(Runner(EarlyStoppingCallback()))
    assert type(e) is ValueError
    assert 'EarlyStoppingCallback reads the table: add AvgStatsCallback(metrics) to the Runner' in said


@pytest.mark.parametrize('monitor', ['accuracy', 'valid_los', ''])
def test_stopping_by_a_column_there_isnt(monitor):
    e,said = notes_of(quiet(AvgStatsCallback(accuracy), EarlyStoppingCallback(monitor)))
    assert type(e) is ValueError
    assert f"there is no column {monitor!r}, only {', '.join(COLUMNS[1:-1])}\n" in said


@pytest.mark.parametrize('monitor', ['seconds', 'epoch'])
def test_stopping_by_what_is_no_measure(monitor):
    e,said = notes_of(quiet(AvgStatsCallback(accuracy), EarlyStoppingCallback(monitor, higher_is_better=True)))
    assert type(e) is ValueError and f'there is no column {monitor!r}, only train_loss' in said


@pytest.mark.parametrize('wrong', [EarlyStoppingCallback('valid_los'), EarlyStoppingCallback('valid_top'),
                                   EarlyStoppingCallback()])
def test_what_stopping_lacks_is_said_before_the_training(wrong):
    def top(pred, yb): return 1.
    learn = make_learner(valid=(3,) if wrong.monitor != 'valid_loss' else None)
    was = {k: v.clone() for k,v in learn.model.state_dict().items()}
    e,_ = notes_of(quiet(AvgStatsCallback(top), wrong), learn)
    assert type(e) is ValueError
    exact(learn.model.state_dict(), was)


@pytest.mark.parametrize('name, higher', [
    ('mse', False), ('mae', False), ('rmse', False), ('perplexity', False), ('error_rate', False), ('Perplexity', False),
    ('RootMSE', False), ('focal_loss', False), ('wer', False), ('balanced_accuracy', True), ('f1', True),
    ('AUC', True), ('accuracy_2', True), ('dice', True), ('top5', None), ('lossless', None), ('score', None),
    ('accuracy_loss', None)])
def test_which_direction_a_name_says(name, higher):
    "A worse value each epoch stops at once, a better one never; what isn't known has to be told"
    def value(pred, yb): return float(run.epoch)
    value.__name__ = name
    run = quiet(AvgStatsCallback(value), EarlyStoppingCallback(f'valid_{name}', patience=1))
    learn = make_learner(train=(1,), valid=(1,))
    if higher is not None:
        run.fit(4, learn)
        assert run.early_stopping.stopped == (None if higher else 1)
        return
    e,said = notes_of(run, learn)
    assert type(e) is ValueError
    assert f"is a higher 'valid_{name}' better or worse? Its name doesn't say: pass higher_is_better=True or" in said
    for told in (True, False):
        run = quiet(AvgStatsCallback(value), EarlyStoppingCallback(f'valid_{name}', 1, higher_is_better=told))
        run.fit(4, learn)
        assert run.early_stopping.stopped == (None if told else 1)


def skips(when):
    def act(self): return bool(when(self))
    return make('Skips', begin_validate=act)

@pytest.mark.parametrize('every', [2, 3, 5])
@pytest.mark.parametrize('patience', [1, 2, 3])
def test_an_epoch_that_wasnt_measured_isnt_worse(every, patience):
    "Validated in every second, third … epoch: patience counts those"
    values = [3., 1., 2., 2., 2., 2., 2.]
    def value(pred, yb): return values[run.epoch//every]
    stop = EarlyStoppingCallback('valid_value', patience, higher_is_better=False)
    run = quiet(AvgStatsCallback(value), stop, skips(lambda self: self.epoch % every))
    run.fit(len(values)*every, make_learner(train=(1,), valid=(1,)))
    assert (stop.best_epoch, stop.stopped) == (every, (1 + patience)*every)


def test_a_measured_nan_is_worse_and_is_shown():
    def value(pred, yb): return math.nan
    stop = EarlyStoppingCallback('valid_value', 3, higher_is_better=True)
    run = quiet(AvgStatsCallback(value), stop, skips(lambda self: self.epoch == 1))
    run.fit(9, make_learner())
    assert stop.stopped == 3
    at = list(run.avg_stats.history[0]).index('valid_value')
    assert [row[at].strip() for row in run.rows[1:]] == ['nan', '-', 'nan', 'nan']


def test_a_column_that_is_never_measured():
    run = quiet(AvgStatsCallback(accuracy), EarlyStoppingCallback(), skips(lambda self: True))
    with pytest.raises(ValueError) as e: run.fit(3, make_learner())
    assert str(e.value) == "'valid_loss' was never measured: something skips every batch that it is made of"
    assert len(run.avg_stats.history) == 3
    e,said = notes_of(quiet(AvgStatsCallback(accuracy), EarlyStoppingCallback()), make_learner(valid=None))
    assert "'valid_loss' is never measured without validation data: pass a valid_dl, or monitor='train_loss'" in said


def test_what_stopping_found_can_be_read_before_a_fit():
    class Mine(EarlyStoppingCallback):
        def begin_fit(self):
            super().begin_fit()
            self.total = self.run.epochs                   # a run is there in a fit, and not before
    stop = Mine()
    assert (stop.stopped, stop.best_epoch) == (None, -1)
    quiet(AvgStatsCallback(), stop).fit(1, make_learner())
    assert stop.total == 1 and stop.best_epoch == 0


@pytest.mark.parametrize('kw', [{'patience': 0}, {'patience': -1}, {'min_delta': -.1}])
def test_stopping_with_no_sense(kw):
    with pytest.raises(ValueError, match='^patience must be at least 1 and min_delta at least 0, got'):
        EarlyStoppingCallback(**kw)


# ---------------------------------------------------------------- the loop, printed

def drawn(run, capsys):
    "(event, depth, callbacks) of each line of the printed loop that is an event"
    show_training_loop(run)
    lines = [o for o in capsys.readouterr().out.splitlines() if o.split()[0] in EVENTS]
    return [(o.split()[0], (len(o)-len(o.lstrip()))//4, re.findall(r'\b[A-Z]\w*', o)) for o in lines]


def test_the_table_is_asked_for_by_its_class(capsys):
    "A subclass has another name, and progress and stopping find it all the same"
    class Mine(AvgStatsCallback): pass
    run = Runner([Mine(), EarlyStoppingCallback(patience=1), ProgressCallback('terminal')])
    run.fit(2, make_learner())
    assert len(run.mine.history) == 2 and run.find(AvgStatsCallback) is run.mine and not hasattr(run, 'avg_stats')
    assert run.early_stopping.best_epoch >= 0


def test_the_printed_loop(capsys):
    got = drawn(Runner([EarlyStoppingCallback(), AvgStatsCallback()]), capsys)
    who = {'begin_fit': 'TrainEvalCallback AvgStatsCallback EarlyStoppingCallback',
           'after_batch': 'AvgStatsCallback', 'after_epoch': 'AvgStatsCallback EarlyStoppingCallback',
           **dict.fromkeys(('begin_epoch', 'begin_validate', 'after_fit'), 'TrainEvalCallback')}
    depth = dict(begin_fit=0, begin_epoch=1, begin_validate=1, after_cancel_epoch=1, after_epoch=1,
                 after_cancel_train=0, after_fit=0)
    assert got == [(e, depth.get(e, 2), who.get(e, '').split()) for e in EVENTS]


def test_the_printed_loop_is_the_one_that_runs(capsys):
    "Every event, in the order in which they come, and in it the callbacks in the order in which they act"
    log = []
    def says(self, event): log.append((event, type(self).__name__))
    methods = {e: partialmethod(says, e) for e in EVENTS}
    cbs = [make(f'Cb{i}', o, **methods) for i,o in enumerate((3, -50, 7, 3))]
    run = Runner(cbs)
    run.fit(1, make_learner(train=(4,), valid=None))
    normal = list(dict(log))
    lines = drawn(run, capsys)
    assert [e for e,_,_ in lines] == list(EVENTS)
    assert [e for e in EVENTS if 'cancel' not in e and e != 'begin_validate'] == normal
    for event,_,who in lines:
        order = ['Cb1', 'Cb0', 'Cb3', 'Cb2'][::-1 if event == 'after_fit' else 1]
        assert [o for o in who if o != 'TrainEvalCallback'] == order
        assert event not in normal or [cb for e,cb in log if e == event] == [o for o in who if o[:2] == 'Cb']


def test_an_attribute_is_no_event(capsys):
    show_training_loop(Runner(make('Has', loss=None, pred=None)))
    assert 'Has' not in capsys.readouterr().out


# ---------------------------------------------------------------- the small Runner of lesson 05b

CUTS = {  # event: where the small one knows each cancel
    CancelBatchException: 'begin_batch after_pred after_loss after_backward after_step',
    CancelEpochException: 'begin_epoch begin_batch after_loss after_step after_batch begin_validate',
    CancelTrainException: 'begin_fit begin_epoch begin_batch after_backward after_batch begin_validate after_epoch'}

def trained_by(cls, event=None, exc=None):
    "Weights, the state of the random numbers, events and rows of a fit in which `exc` is raised, once, at `event`"
    log = []
    trace = make('Trace', -99, **{e: partialmethod(lambda self, e: log.append(e), e) for e in EVENTS})
    stats,cbs = AvgStatsCallback(accuracy),[trace]
    if event:
        cut = make('Cut', 70)
        vars(cut)[event] = lambda: raised.append(1) if raised else first(exc)
        raised = []
        def first(exc):
            raised.append(1)
            raise exc
        cbs.append(cut)
    learn = make_learner()
    set_seed(3)
    run = cls([TrainEvalCallback(), *cbs, stats, EarlyStoppingCallback(patience=1)])
    run.logger = lambda cells: None
    run.fit(2, learn)
    rows = [{k: v for k,v in row.items() if k != 'seconds'} for row in stats.history]
    return learn.model.state_dict(),torch.get_rng_state(),learn.model.training,log,repr(rows)


@pytest.mark.parametrize('exc, event', [(None, None), *((c, e) for c,es in CUTS.items() for e in es.split())])
def test_the_small_runner_trains_as_the_exported_one(exc, event):
    "Two epochs with and without each cancel: weights, random numbers, events and the table are equal to the last bit"
    got = trained_by(small('05b_early_stopping', 'SmallRunner'), event, exc)
    assert_same(got, trained_by(Runner, event, exc))
    assert set(got[3]) >= {'begin_fit', 'after_fit'} and event in (None, *got[3])


def test_the_small_runner_has_all_events():
    "… between them, the trainings with each cancel call all 14"
    cls = small('05b_early_stopping', 'SmallRunner')
    cuts = [(None, None)] + [('after_loss', c) for c in CUTS]
    assert {e for event,exc in cuts for e in trained_by(cls, event, exc)[3]} == set(EVENTS)


# ---------------------------------------------------------------- copies, of every callback that there is

ARGS = {'AvgStatsCallback': (accuracy,), 'ParamScheduler': lambda sched: ('lr', sched.sched_cos(.3, .1)),
        'ProgressCallback': ('terminal',)}

def every_callback():
    for name in ('runner', 'sched'):
        module = importlib.import_module(f'minifast.{name}')
        for k in module.__all__:
            cls = getattr(module, k)
            if not (isinstance(cls, type) and issubclass(cls, Callback)): continue
            args = ARGS.get(k, ())
            yield pytest.param(cls, args(module) if callable(args) else args, id=k)

def runner_with(cb):
    run = Runner([cb] if isinstance(cb, AvgStatsCallback) else [AvgStatsCallback(accuracy), cb])
    run.logger = print
    return run

def weights(run):
    learn = make_learner()
    set_seed(5)
    run.fit(2, learn)
    return learn.model.state_dict()


def test_every_callback_is_found():
    ids = [o.id for o in every_callback()]
    assert {'TrainEvalCallback', 'AvgStatsCallback', 'ProgressCallback', 'EarlyStoppingCallback', 'Recorder',
            'ParamScheduler', 'LR_Find'} <= set(ids)


@pytest.mark.parametrize('when', ['new', 'attached', 'after a fit', 'after a cancel', 'after an error'])
@pytest.mark.parametrize('cls, args', list(every_callback()))
def test_copies_of_every_callback(cls, args, when, capsys):
    "Unattached, with the same state, and of the same use"
    cb = cls(*args)
    if when != 'new': run = runner_with(cb)
    if when == 'after a fit': weights(run)
    if when in ('after a cancel', 'after an error'):
        exc = CancelTrainException if 'cancel' in when else KeyError
        run.add_cb(make(after_loss=raising(exc, lambda self: self.iter == 1)))
        try: weights(run)
        except KeyError: pass
    want = weights(runner_with(cls(*args)))
    for dup in same:
        new = dup(cb)
        assert type(new) is cls and set(vars(new)) == set(vars(cb)) - {'run'} and not hasattr(new, 'model')
        assert {k: v for k,v in vars(new).items() if isinstance(v, (int, float, str))} == {
            k: v for k,v in vars(cb).items() if isinstance(v, (int, float, str))}
        exact(weights(runner_with(new)), want)
        if when != 'new': assert cb.run is run


def test_progress_keeps_nothing_of_the_runner(capsys):
    run = Runner([AvgStatsCallback(), ProgressCallback('terminal')])
    run.logger = lambda cells: None
    run.fit(1, make_learner())
    pickle.dumps(run.progress)


def wrong_loss(pred, yb): return pred.nonsense

def full_runner():
    return Runner([AvgStatsCallback(accuracy), EarlyStoppingCallback(patience=1), ProgressCallback('')])

@pytest.mark.parametrize('when', ['new', 'after a fit', 'after an error'])
@pytest.mark.parametrize('dup', same)
def test_copies_of_a_runner(dup, when, capsys):
    run = full_runner()
    want = weights(run) if when == 'after a fit' else weights(full_runner())
    if when == 'after an error':
        with pytest.raises(AttributeError): run.fit(1, make_learner(loss_func=wrong_loss))
    new = dup(run)
    assert type(new) is Runner and new is not run and [type(o) for o in new.cbs] == [type(o) for o in run.cbs]
    assert all(cb.run is new for cb in new.cbs) and new.avg_stats is new.cbs[1] and not new.fitting
    assert new.avg_stats.history == run.avg_stats.history
    for o in (new, run, new):
        exact(weights(o), want)
        assert all(cb.run is o for cb in o.cbs)
    new('begin_validate')


@pytest.mark.parametrize('dup', same[1:])
def test_copies_of_a_runner_are_independent(dup, capsys):
    run = full_runner()
    weights(run)
    history = copy.deepcopy(run.avg_stats.history)
    new = dup(run)
    old,ps,held = (set(map(id, o)) for o in (run.model.parameters(), new.model.parameters(),
                                             new.opt.param_groups[0]['params']))
    assert not old & ps and ps == held
    new.fit(3, new.learn)
    new.add_cb(make('Late'))
    assert run.avg_stats.history == history and len(run.cbs) == 4 and run.avg_stats.run is run


def test_a_shallow_copy_takes_nothing_away():
    run = full_runner()
    new = copy.copy(run)
    new.add_cb(make('Late'))
    assert len(run.cbs) == 4 and run.avg_stats.run is run


def test_a_copy_from_the_middle_of_a_fit():
    kept = []
    def keeps(self):
        if not kept: kept.append(copy.deepcopy(self.run))
    run = quiet(make(after_epoch=keeps), AvgStatsCallback())
    run.fit(2, make_learner())
    exact(weights(kept[0]), weights(run))
