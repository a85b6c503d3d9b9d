"minifast.loop: the order of events, every ending at every event, what is left behind, PyTorch as the oracle"
import gc
import inspect
import math
import weakref
from functools import partial, partialmethod
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import IterableDataset

from helpers import assert_same, exact, make_callback as make
from minifast.callback import (EVENTS, Callback, CancelBatchException, CancelEpochException,
                               CancelStepException, CancelTrainException, describe)
from minifast.core import set_seed
from minifast.data import DataBunch, DataLoader, Dataset
from minifast.learner import Learner
from minifast.loop import CallbackList
from minifast.runner import AvgStatsCallback, Runner, TrainingLoop

CANCELS = {'batch': CancelBatchException, 'epoch': CancelEpochException, 'train': CancelTrainException}
KINDS = {**CANCELS, 'error': KeyError, 'ctrl-c': KeyboardInterrupt}
N_TRAIN,N_VALID,EPOCHS = 3,2,2                            # batches; the last of each is a short one


class Fresh:
    "A loader whose batches are new tensors, which it watches but doesn't keep"
    def __init__(self, x, y, bs): self.x,self.y,self.bs,self.refs = x,y,bs,[]
    def __len__(self): return -(-len(self.x)//self.bs)
    def __iter__(self):
        for b in zip(self.x.split(self.bs), self.y.split(self.bs)): yield self.watch(*(o.clone() for o in b))
    def watch(self, *b):
        self.refs += map(weakref.ref, b)
        return b


def make_learner(opt=partial(optim.SGD, lr=.3, momentum=.9), **kw):
    "Always the same net, with dropout, and a batch norm that somebody has frozen in evaluation mode"
    set_seed(1)
    drop = nn.Sequential(nn.Dropout(.3))
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), drop, nn.Linear(6, 3))
    model[1].eval()
    x,y = torch.randn(15, 4),torch.randint(0, 3, (15,))
    parts = dict(model=model, opt=opt(model.parameters()), loss_func=F.cross_entropy,
                 data=DataBunch(Fresh(x[:10], y[:10], 4), Fresh(x[10:], y[10:], 3), 3))
    return Learner(**{**parts, **kw})


def learner_of(model, **kw):
    return make_learner(lambda _: optim.SGD(model.parameters(), lr=.1), model=model, **kw)


def plain_fit(epochs, learn):
    "The same by hand: the validation losses"
    model,opt,losses = learn.model,learn.opt,[]
    for epoch in range(epochs):
        model.train()
        for xb,yb in learn.data.train_dl:
            loss = learn.loss_func(model(xb), yb)
            loss.backward()
            opt.step()
            opt.zero_grad()
        model.eval()
        with torch.no_grad():
            losses.append([learn.loss_func(model(xb), yb).item() for xb,yb in learn.data.valid_dl or []])
    return losses


def same_training(a, b):
    "Two learners came out of two trainings the same, and their optimisers did"
    for o in ('model', 'opt'): assert_same(getattr(a, o).state_dict(), getattr(b, o).state_dict())


def modes(learn): return [m.training for m in learn.model.modules()]


class Trace(Callback):
    "Notes the events of a fit, before any other callback acts"
    _order = -99
    def __init__(self): self.log = []
    def note(self, event):
        if event == 'begin_fit': self.log.clear()
        self.log.append(event)
for event in EVENTS: setattr(Trace, event, partialmethod(Trace.note, event))


class RaiseAt(Callback):
    "Raises, once, at its event's first occurrence, or at the first in a validation batch"
    def __init__(self, event, kind, in_train=True, order=5, text='why'):
        self.exc,self.anywhere,self._order,self.text,self.raised = KINDS[kind],in_train,order,text,False
        setattr(self, event, self.act)
    def act(self):
        if self.raised or self.run.in_train and not self.anywhere: return
        self.raised = True
        raise self.exc(self.text)

class RaiseToo(RaiseAt): pass
class RaiseLast(RaiseAt): pass


# ---------------------------------------------------------------- the order of events

TRAIN = 'begin_batch after_pred after_loss after_backward after_step after_batch'.split()
VALID = 'begin_batch after_pred after_loss after_batch'.split()

def steps(epochs=EPOCHS, n_train=N_TRAIN, n_valid=N_VALID):
    "(event, epoch, part of the epoch, batch) of a fit that nothing disturbs"
    res = [('begin_fit', -1, '', 0)]
    for e in range(epochs):
        res += [('begin_epoch', e, 'begin', 0), *((o, e, 'train', i) for i in range(n_train) for o in TRAIN)]
        if n_valid: res += [('begin_validate', e, 'begin', 0)]
        res += [(o, e, 'valid', i) for i in range(n_valid) for o in VALID]
        res += [('after_epoch', e, 'end', 0)]
    return [*res, ('after_fit', epochs, '', 0)]

def names(steps): return [o[0] for o in steps]


def test_order_of_two_epochs():
    run = Runner(Trace())
    run.fit(2, make_learner())
    t = ('begin_batch', 'after_pred', 'after_loss', 'after_backward', 'after_step', 'after_batch')
    v = ('begin_batch', 'after_pred', 'after_loss', 'after_batch')
    epoch = ['begin_epoch', *t, *t, *t, 'begin_validate', *v, *v, 'after_epoch']
    assert run.trace.log == ['begin_fit', *epoch, *epoch, 'after_fit'] == names(steps())


@pytest.mark.parametrize('epochs', [0, 1, 3])
def test_without_validation(epochs):
    learn,run = make_learner(),Runner(Trace())
    learn.data.valid_dl = None
    run.fit(epochs, learn)
    assert run.trace.log == names(steps(epochs, n_valid=0))


@pytest.mark.parametrize('event, part', [('begin_epoch', 'train'), ('begin_validate', 'valid')])
def test_a_true_answer_skips_its_phase(event, part):
    run = Runner([Trace(), make('Skip', 9, **{event: lambda self: self.epoch == 0}), make('Asked', 10)])
    run.fit(2, make_learner())
    assert run.trace.log == [o for o,e,p,i in steps() if (e, p) != (0, part)]


# ---------------------------------------------------------------- every event, every ending
# What follows when something is raised: b after_batch, bv begin_validate, v a whole validation pass, p
# after_epoch, f after_fit, xb xe xt after_cancel_…; and where the loop goes on: 'step' what comes next, 'batch' the next batch, 'pass'
# what follows the pass at hand (of training: validation; of validation: after_epoch), 'epoch' the next epoch.
# From the specification: each cancel skips what it says and fires its event; after_batch and after_fit run
# whatever happens; after_epoch does unless the fit ends; outside of a batch CancelBatch skips only the rest
# of the event, and in begin_fit each cancel ends the fit; in after_cancel_… and after_fit only what is graver
# has an effect.

IN_BATCH = 'xb b → batch', 'b xe → pass', 'b xt f', 'b f'
BEGINS   = 'xb → step',    'xe → pass',   'xt f',   'f'
EXPECTED = {
    #                       CancelBatch     CancelEpoch    CancelTrain  error or Ctrl-C
    'begin_fit':          ('xb f',         'xe f',        'xt f',      'f'),
    'begin_epoch':        BEGINS,
    'begin_batch':        IN_BATCH,
    'after_pred':         IN_BATCH,
    'after_loss':         IN_BATCH,
    'after_backward':     IN_BATCH,
    'after_step':         IN_BATCH,
    'after_cancel_batch': ('b → batch',    'b xe → pass', 'b xt f',    'b f'),
    'after_batch':        ('xb → batch',   'xe → pass',   'xt f',      'f'),
    'begin_validate':     BEGINS,
    'after_cancel_epoch': ('→ pass',       '→ pass',      'xt f',      'f'),
    'after_epoch':        ('xb → epoch',   'xe → epoch',  'xt f',      'f'),
    'after_cancel_train': ('f',            'f',           'f',         'f'),
    'after_fit':          ('',             '',            '',          '')}
SHORT = dict(b='after_batch', bv='begin_validate', p='after_epoch', f='after_fit',
             xb='after_cancel_batch', xe='after_cancel_epoch', xt='after_cancel_train')
BEFORE = {'after_cancel_batch': '', 'after_cancel_epoch': 'b', 'after_cancel_train': 'b'}   # a cancel first

VALIDATION = [o for o in steps(1) if o[0] == 'begin_validate' or o[2] == 'valid']

def column(kind): return min(list(KINDS).index(kind), 3)


def trace_of(cell, event, in_train=True):
    "The whole trace of a fit in which something is raised at `event`, and then `cell` of the table happens"
    tail,_,to = cell.partition('→')
    at,all_steps = 'after_loss' if event in BEFORE else event, steps()
    i = next(i for i,(o,e,p,b) in enumerate(all_steps) if o == at and (in_train or p == 'valid'))
    epoch,part,batch = all_steps[i][1:]
    then = {'step': all_steps[i+1:], 'batch': [o for o in all_steps[i:] if o[1:] != (epoch, part, batch)],
            'pass': [o for o in all_steps[i:] if pass_of(o) != pass_of(all_steps[i])],
            'epoch': [o for o in all_steps if o[1] > epoch], '': []}[to.strip()]
    via = [SHORT[o] for o in BEFORE[event].split()] + [event] if event in BEFORE else []
    tail = [e for o in tail.split() for e in (names(VALIDATION) if o == 'v' else [SHORT[o]])]
    return names(all_steps[:i+1]) + via + tail + names(then)

def pass_of(step):
    "(epoch, part) in which a pass and the event that begins it are one part"
    event,epoch,part,_ = step
    return epoch, {'begin_epoch': 'train', 'begin_validate': 'valid'}.get(event, part)


oracle = make_learner()
plain_fit(EPOCHS, oracle)

def check_left(run, learn, was):
    "A fit of `run` left nothing behind: not in the model, not in the runner, not in torch"
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert all(p.grad is None for p in learn.model.parameters())
    assert modes(learn) == was
    assert not run.fitting and not run.in_train
    assert [run.xb, run.yb, run.pred, run.loss, run.dl] == [None]*5


def check_usable(run):
    "The same runner fits again as if nothing had been"
    learn = make_learner()
    run.fit(EPOCHS, learn)
    same_training(learn, oracle)
    assert run.trace.log == names(steps())


def ends(run, learn, kind):
    "Fit, and check that an error comes out if `kind` is one, else nothing: the notes on it"
    try: run.fit(EPOCHS, learn)
    except BaseException as e:
        assert kind not in CANCELS and type(e) is KINDS[kind] and e.args == ('why',)
        return getattr(e, '__notes__', [])
    assert kind in CANCELS


def check_ending(trace, kind, *cbs):
    "A fit with `cbs` has this trace, ends as `kind` does, calls each after_fit, leaves nothing: the notes"
    fits = []
    run = Runner([make('Late', 99, after_fit=lambda self: fits.append(self.fitting)), *cbs, Trace()])
    learn = make_learner()
    was = modes(learn)
    notes = ends(run, learn, kind)
    assert run.trace.log == trace and all(cb.raised for cb in cbs) and fits == [True]
    check_left(run, learn, was)
    check_usable(run)
    return notes


IN_VALID = (*VALID, 'after_cancel_batch', 'after_cancel_epoch', 'after_cancel_train')

@pytest.mark.parametrize('order', [-50, 5])               # before the callback that sets the modes, and after
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('event, in_train', [*((e, True) for e in EVENTS), *((e, False) for e in IN_VALID)])
def test_every_event_every_ending(event, in_train, kind, order):
    cbs = [RaiseAt(event, kind, in_train or event in BEFORE, order)]
    if event in BEFORE: cbs.append(RaiseToo('after_loss', event.rsplit('_', 1)[1], in_train))
    check_ending(trace_of(EXPECTED[event][column(kind)], event, in_train), kind, *cbs)


def test_the_table_has_every_event():
    assert list(EXPECTED) == list(EVENTS) and set(SHORT.values()) < set(EVENTS)


TWO = {  # raised in after_loss, and then in after_batch: the graver decides
    'batch':  dict(batch='xb b xb → batch', epoch='xb b xe → pass', train='xb b xt f', error='xb b f'),
    'epoch':  dict(batch='b xe → pass',     epoch='b xe → pass',    train='b xt f',    error='b f'),
    'train':  dict(batch='b xt f',          epoch='b xt f',         train='b xt f',    error='b f'),
    'error':  dict(batch='b f',             epoch='b f',            train='b f',       error='b f')}

@pytest.mark.parametrize('second', KINDS)
@pytest.mark.parametrize('first', KINDS)
@pytest.mark.parametrize('in_train', [True, False])
def test_two_in_one_batch(in_train, first, second):
    "Of two errors the first stays, and the second is a note on it"
    as_row = {'ctrl-c': 'error'}
    cell = TWO[as_row.get(first, first)][as_row.get(second, second)]
    gravest = first if column(first) >= column(second) else second
    both = first not in CANCELS and second not in CANCELS
    cbs = (RaiseAt('after_loss', first, in_train),
           RaiseToo('after_batch', second, in_train, text='too' if both else 'why'))
    notes = check_ending(trace_of(cell, 'after_loss', in_train), gravest, *cbs)
    if gravest not in CANCELS: assert sum('and after that' in o for o in notes) == both
    if both: assert f"and after that {KINDS[second].__name__}: {KINDS[second]('too')}" in notes


@pytest.mark.parametrize('first, event, second, ending, cell', [
    ('epoch', 'begin_validate',     'epoch',  'epoch',  'b xe bv xe p → epoch'),
    ('epoch', 'begin_validate',     'train',  'train',  'b xe bv xt f'),
    ('epoch', 'begin_validate',     'error',  'error',  'b xe bv f'),
    ('epoch', 'after_epoch',        'batch',  'batch',  'b xe v p xb → epoch'),
    ('epoch', 'after_epoch',        'epoch',  'epoch',  'b xe v p xe → epoch'),
    ('epoch', 'after_epoch',        'train',  'train',  'b xe v p xt f'),
    ('epoch', 'after_epoch',        'error',  'error',  'b xe v p f'),
    ('train', 'after_cancel_train', 'error',  'error',  'b xt f'),
    ('train', 'after_fit',          'train',  'train',  'b xt f'),
    ('train', 'after_fit',          'error',  'error',  'b xt f'),
    ('error', 'after_fit',          'train',  'error',  'b f'),
    ('error', 'after_fit',          'error',  'error',  'b f'),
    ('error', 'after_fit',          'ctrl-c', 'error',  'b f'),
    ('ctrl-c', 'after_fit',         'error',  'ctrl-c', 'b f')])
def test_two_at_two_levels(first, event, second, ending, cell):
    both = first not in CANCELS and second not in CANCELS
    notes = check_ending(trace_of(cell, 'after_loss'), ending, RaiseAt('after_loss', first, order=7),
                         RaiseToo(event, second, text='too' if both else 'why'))
    if both: assert sum('and after that' in o and 'too' in o for o in notes) == 1


def test_three_in_after_fit():
    "Every after_fit is called; of the errors the first comes out, and the others stand on it"
    late = make('Late', 99, after_fit=lambda self: self.trace.log.append('late'))
    run = Runner([RaiseAt('after_fit', 'error', order=60), RaiseToo('after_fit', 'error', text='two'),
                  RaiseLast('after_fit', 'ctrl-c', order=-50, text='three'), late, Trace()])
    notes = ends(run, make_learner(), 'error')
    assert run.trace.log[-2:] == ['late', 'after_fit']     # the last one leaves first
    assert [o for o in notes if 'and after' in o] == ["and after that KeyError: 'two'",
                                                      'and after that KeyboardInterrupt: three']


@pytest.mark.parametrize('first', ['error', 'ctrl-c'])
def test_an_error_and_two_more_in_after_fit(first):
    "The fit's own error comes out, and both others stand on it"
    run = Runner([RaiseAt('after_loss', first), RaiseToo('after_fit', 'error', order=60, text='two'),
                  RaiseLast('after_fit', 'error', order=-50, text='three'), Trace()])
    notes = ends(run, make_learner(), first)
    assert run.trace.log[-1] == 'after_fit'
    assert [o for o in notes if 'and after' in o] == ["and after that KeyError: 'two'",
                                                      "and after that KeyError: 'three'"]


def test_a_cancel_after_the_pass_was_cancelled_cancels_nothing_more():
    "after_cancel_epoch isn't in the pass any more, nor is it another one"
    run = Runner([Trace(), RaiseAt('after_loss', 'epoch'), RaiseToo('after_cancel_epoch', 'epoch')])
    run.fit(1, make_learner())
    assert run.trace.log.count('after_cancel_epoch') == 1 and 'begin_validate' in run.trace.log


def test_some_batches_and_then_validation():
    "What the exception is for: a callback of one line trains on the first batch of each epoch"
    class First(Callback):
        def begin_batch(self):
            if self.in_train and self.iter == 1: raise CancelEpochException
    run = Runner([First(), AvgStatsCallback()])
    run.logger = lambda cells: None
    run.fit(3, make_learner())
    assert run.n_iter == 3 and run.avg_stats.train_stats.sizes == [4]
    assert all(math.isfinite(row['valid_loss']) for row in run.avg_stats.history)


@pytest.mark.parametrize('event, part', [('begin_epoch', 'train'), ('begin_validate', 'valid')])
def test_cancel_epoch_at_a_beginning_skips_that_pass(event, part):
    "… as a true answer does, but says so by its event"
    def act(self):
        if self.epoch == 0: raise CancelEpochException
    run = Runner([Trace(), make('Skip', 9, **{event: act})])
    run.fit(2, make_learner())
    log = [o for o in run.trace.log if o != 'after_cancel_epoch']
    assert log == [o for o,e,p,i in steps() if (e, p) != (0, part)]
    assert run.trace.log.count('after_cancel_epoch') == 1


def test_the_state_after_a_cancelled_pass():
    "after_cancel_epoch still sees the batch that was cancelled; what follows is in validation, without gradients"
    got = []
    def notes(event): return lambda self: got.append((event, self.in_train, torch.is_grad_enabled(), self.where()))
    run = Runner([RaiseAt('after_loss', 'epoch'),
                  make('Notes', **{e: notes(e) for e in ('after_cancel_epoch', 'begin_validate', 'after_epoch')})])
    run.fit(1, make_learner())
    assert got == [('after_cancel_epoch', True, True, ', epoch 0, training batch 0 of 3'),
                   ('begin_validate', False, False, ', epoch 0 of 1'), ('after_epoch', False, True, ', epoch 0 of 1')]


def test_of_two_at_one_event_the_first_acts():
    run = Runner([Trace(), RaiseAt('after_loss', 'batch'), RaiseToo('after_loss', 'train')])
    run.fit(1, make_learner())
    count = run.trace.log.count
    assert (count('begin_batch'), count('after_cancel_batch'), count('after_cancel_train')) == (2, 1, 1)


@pytest.mark.parametrize('kind', CANCELS)
def test_a_subclass_of_a_cancel(kind):
    cb = RaiseAt('after_loss', kind)
    cb.exc = type('Mine', (CANCELS[kind],), {})
    check_ending(trace_of(EXPECTED['after_loss'][column(kind)], 'after_loss'), kind, cb)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('where', ['model', 'loss', 'step', 'loader'])
def test_raised_by_others_than_callbacks(where, kind):
    "In the model, the loss, the optimiser or the loader at the second batch: an end like any other"
    learn,run,n = make_learner(loss_func=nn.CrossEntropyLoss()),Runner(Trace()),[0]
    def fails(f):
        def act(*args, **kw):
            n[0] += 1
            if n[0] == 2: raise KINDS[kind]('why')
            return f(*args, **kw)
        return act
    target,k,upto = dict(model=(learn.model[4], 'forward', 1), loss=(learn.loss_func, 'forward', 2),
                         step=(learn.opt, 'step', 4), loader=(learn.data.train_dl, 'watch', None))[where]
    setattr(target, k, fails(getattr(target, k)))
    was = modes(learn)
    ends(run, learn, kind)
    delattr(target, k)
    first = names(steps())[:2] + TRAIN
    tail = EXPECTED['after_loss' if upto else 'begin_epoch'][column(kind)].split()[0]
    if upto or kind != 'batch':
        assert run.trace.log[:9+(upto or 0)] == first + TRAIN[:upto or 0] + [SHORT[tail]]
    assert run.trace.log[-1] == 'after_fit' and run.trace.log.count('after_fit') == 1
    check_left(run, learn, was)
    check_usable(run)


# ---------------------------------------------------------------- what is left behind

class Loss(nn.Module):
    "Cross entropy that watches what it takes and returns"
    def __init__(self): super().__init__(); self.refs = []
    def forward(self, pred, yb):
        res = F.cross_entropy(pred, yb)
        self.refs += weakref.ref(res),weakref.ref(pred)
        return res


@pytest.fixture
def no_gc():
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize('kind', ['', *KINDS])
@pytest.mark.parametrize('event', EVENTS)
def test_no_cycle_keeps_a_batch_alive(event, kind, no_gc):
    "No batch, prediction or loss is alive after the fit, though nobody has collected garbage"
    learn = make_learner(loss_func=Loss())
    run = Runner([AvgStatsCallback(lambda p, y: (p.argmax(1) == y).float().mean())])
    run.logger = lambda cells: None
    if kind: run.add_cb(RaiseAt(event, kind, order=60))
    if event in BEFORE: run.add_cb(RaiseToo('after_loss', event.rsplit('_', 1)[1]))
    ends(run, learn, kind or 'train')
    refs = [r for o in (learn.data.train_dl, learn.data.valid_dl, learn.loss_func) for r in o.refs]
    assert not [r().shape for r in refs if r() is not None]
    assert refs or event in ('begin_fit', 'begin_epoch')


@pytest.mark.parametrize('event', ['begin_batch', 'after_pred', 'after_loss'])
@pytest.mark.parametrize('in_train', [True, False])
def test_gradients_of_a_callback(event, in_train):
    "'Gradients are zeroed at the end of a batch however it ended'"
    def act(self):
        if self.in_train != in_train or self.iter: return
        with torch.enable_grad(): self.loss_func(self.model(self.xb), self.yb).backward()
        raise CancelBatchException
    def looks(self): left.append(any(p.grad is not None for p in self.model.parameters()))
    learn,left = make_learner(),[]
    Runner([make('Looks', -9, begin_batch=looks), make('Own', **{event: act})]).fit(1, learn)
    assert not any(left) and all(p.grad is None for p in learn.model.parameters())


def test_gradients_from_before_a_fit_dont_count():
    learn = make_learner()
    for p in learn.model.parameters(): p.grad = torch.ones_like(p)
    Runner().fit(EPOCHS, learn)
    same_training(learn, oracle)


def test_gradients_that_a_validation_leaves_train_nothing():
    "A callback that runs a backward pass in a validation batch, and cancels nothing"
    def act(self):
        if self.in_train: return
        with torch.enable_grad(): self.loss_func(self.model(self.xb), self.yb).backward()
    a,b = make_learner(),make_learner()
    for o in (a, b): o.model[3] = nn.Identity()            # nothing that draws random numbers
    Runner().fit(EPOCHS, a)
    Runner(make('Own', after_loss=act)).fit(EPOCHS, b)
    same_training(a, b)


def test_zero_grad_is_called_for_training_only():
    "Once a step, once an epoch and once at the end: 64 validation batches used to call it 64 times"
    calls,learn = [],make_learner()
    zero = learn.opt.zero_grad
    learn.opt.zero_grad = lambda: calls.append(1) or zero()
    TrainingLoop().fit(EPOCHS, learn)
    assert len(calls) == EPOCHS*(N_TRAIN+1) + 1


# ---------------------------------------------------------------- a step that is left out

def keep(when=lambda self: True):
    def act(self):
        if when(self): raise CancelStepException
    return make('Keeps', after_backward=act)

def test_cancel_step_keeps_the_gradients():
    "Three batches, a step after the second and the third: as the two and the one by hand"
    a,b = make_learner(),make_learner()
    run = TrainingLoop([Trace(), keep(lambda self: self.iter == 0)])
    set_seed(2); run.fit(1, a)
    set_seed(2)
    for i,(xb,yb) in enumerate(b.data.train_dl):
        b.loss_func(b.model(xb), yb).backward()
        if i == 0: continue
        b.opt.step()
        b.opt.zero_grad()
    same_training(a, b)
    kept = 'begin_batch after_pred after_loss after_backward after_batch'.split()
    assert run.trace.log[:len(kept)+2] == ['begin_fit', 'begin_epoch', *kept] and run.n_iter == N_TRAIN
    assert all(p.grad is None for p in a.model.parameters())


def test_cancel_step_is_a_completed_batch():
    run = Runner([AvgStatsCallback(), keep()])
    run.logger = lambda cells: None
    a = make_learner()
    was = {k: v.clone() for k,v in a.model.state_dict().items()}
    run.fit(1, a)
    exact(dict(a.model.named_parameters()), {k: was[k] for k,_ in a.model.named_parameters()})   # no step at all
    assert math.isfinite(run.avg_stats.history[0]['train_loss']) and run.pos == 1


def test_kept_gradients_end_with_the_epoch_and_with_the_fit():
    "What a callback keeps at the end of an epoch isn't added to the next one"
    learn,seen = make_learner(),[]
    def looks(self): seen.append(any(p.grad is not None for p in self.model.parameters()))
    TrainingLoop([make('Looks', -9, begin_batch=looks), keep()]).fit(2, learn)
    train,valid = [False, True, True],[True, True]         # validation touches none
    assert seen == 2*(train+valid) and all(p.grad is None for p in learn.model.parameters())


@pytest.mark.parametrize('event', ['batch', 'epoch'])
@pytest.mark.parametrize('at', ['begin_batch', 'after_loss', 'after_backward', 'after_step'])
def test_a_cancelled_batch_takes_kept_gradients_along(event, at):
    learn,seen = make_learner(),[]
    def looks(self): seen.append(any(p.grad is not None for p in self.model.parameters()))
    def cancels(self):
        if self.in_train and self.iter == 1: raise CANCELS[event]
    keeps = keep(lambda self: self.iter != 1)
    TrainingLoop([make('Looks', -9, begin_batch=looks), make('Cancels', -5, **{at: cancels}), keeps]).fit(1, learn)
    assert seen[:3] == [False, True, False] and all(p.grad is None for p in learn.model.parameters())


@pytest.mark.parametrize('event', [e for e in EVENTS if 'cancel' not in e and e != 'after_backward'])
def test_cancel_step_elsewhere_is_an_error(event):
    def act(self): raise CancelStepException
    e,notes = error_of(TrainingLoop(make(**{event: act})), make_learner())
    assert type(e) is CancelStepException and 'in Some.act' in notes[0]
    in_batch = event in TRAIN and event != 'after_batch'
    assert ('CancelStepException means something in after_backward only' in str(notes)) == in_batch


# ---------------------------------------------------------------- who comes last leaves first

@pytest.mark.parametrize('orders', [(0, 0), (0, 5), (5, 0), (-3, 70)])
def test_two_that_put_the_same_back(orders):
    def begins(self): self.was,self.run.logger = self.run.logger,self
    def ends(self): self.run.logger = self.was
    run = Runner([make(f'Cb{i}', o, begin_fit=begins, after_fit=ends) for i,o in enumerate(orders)])
    was = run.logger
    for epochs in (1, 0, 2):
        run.fit(epochs, make_learner())
        assert run.logger is was


@pytest.mark.parametrize('exc', [CancelTrainException, CancelBatchException, CancelEpochException])
def test_a_training_that_ends_in_after_epoch_is_seen_by_all(exc):
    "CancelTrain waits for later callbacks; the others skip the rest of the event, as everywhere"
    seen = []
    def ends(self):
        if self.epoch == 1: raise exc
    run = TrainingLoop([make('Ends', 60, after_epoch=ends),
                        make('Late', 80, after_epoch=lambda self: seen.append(self.epoch))])
    run.fit(4, make_learner())
    assert seen == ([0, 1] if exc is CancelTrainException else [0, 2, 3])
    assert run.epoch == (1 if exc is CancelTrainException else 4)


def test_an_error_after_a_cancel_in_after_epoch():
    "The error comes out, and nobody is called after it"
    def cancels(self): raise CancelTrainException
    def fails(self): raise KeyError('why')
    seen = []
    cbs = [make('Cancels', 1, after_epoch=cancels), make('Fails', 2, after_epoch=fails),
           make('Late', 3, after_epoch=lambda self: seen.append(1))]
    e,notes = error_of(TrainingLoop(cbs), make_learner())
    assert type(e) is KeyError and notes[0].startswith('in Fails.fails') and not seen


# ---------------------------------------------------------------- loaders that promise something else

class Promises:
    "A loader of `n` batches whose len is `says`"
    def __init__(self, n, says, bs=4): self.n,self.says,self.bs = n,says,bs
    def __len__(self): return self.says
    def __iter__(self):
        for i in range(self.n): yield torch.ones(self.bs, 4),torch.zeros(self.bs, dtype=torch.long)

class Unsharded(IterableDataset):
    "An iterable dataset whose len is wrong, as that of one that isn't sharded is with workers"
    def __init__(self, n, says): self.n,self.says = n,says
    def __len__(self): return self.says
    def __iter__(self): return ((torch.ones(4), 0) for _ in range(self.n))

@pytest.mark.parametrize('part', ['train', 'valid'])
@pytest.mark.parametrize('n, says', [(5, 4), (2, 1), (9, 2)])
def test_more_batches_than_promised(part, n, says):
    seen = []
    learn = make_learner()
    setattr(learn.data, f'{part}_dl', Promises(n, says))
    counts = make(after_batch=lambda self: seen.append(self.in_train))
    with pytest.raises(RuntimeError) as e: Runner(counts).fit(2, learn)
    assert seen.count(part == 'train') == says
    assert str(e.value) == (f'{part}_dl promised {says} batches by its len and gives more, but schedules and bars '
                      f'count on {says}: let the len of this Promises be right')


@pytest.mark.parametrize('part', ['train', 'valid'])
@pytest.mark.parametrize('n, says', [(3, 4), (0, 1), (2, 9)])
def test_fewer_batches_than_promised(part, n, says):
    learn = make_learner()
    setattr(learn.data, f'{part}_dl', Promises(n, says))
    run = Runner()
    with pytest.warns(UserWarning, match=f'^{part}_dl promised {says} batches by its len and gave {n}, so sch'):
        run.fit(1, learn)
    assert run.trained == 1


def test_an_iterable_dataset_that_gives_less():
    learn = make_learner()
    learn.data.train_dl = TorchLoader(Unsharded(6, 8), batch_size=2)
    with pytest.warns(UserWarning, match='^train_dl promised 4 batches by its len and gave 3'):
        Runner().fit(1, learn)


def test_a_cancelled_pass_promised_nothing_else():
    "pytest makes an error of the warning"
    def cancels(self): raise CancelEpochException
    Runner(make(after_loss=cancels)).fit(2, make_learner())


# ---------------------------------------------------------------- set_epoch

class Order:
    "A sampler, or a loader, that wants to know the epoch"
    def __init__(self, n=10): self.n,self.told = n,[]
    def __len__(self): return self.n
    def __iter__(self): return iter(range(self.n))
    def set_epoch(self, epoch): self.told.append(epoch)

class OrderedLoader(Order):
    def __iter__(self):
        for _ in range(self.n): yield torch.ones(4, 4),torch.zeros(4, dtype=torch.long)

def of_sampler(ds, order): return TorchLoader(ds, batch_size=4, sampler=order)
def of_batch_sampler(ds, order):
    return TorchLoader(ds, batch_sampler=torch.utils.data.BatchSampler(order, 4, False))
def of_own_batches(ds, order):
    order.__class__ = type('Batches', (Order,), {'__iter__': lambda self: iter([[0, 1], [2]]), '__len__': lambda self: 2})
    return TorchLoader(ds, batch_sampler=order)

def of_dataset(ds, order):
    order.__class__ = type('Items', (Order,), {'__getitem__': lambda self, i: ds[i]})
    return TorchLoader(order, batch_size=4)

@pytest.mark.parametrize('loader', [of_sampler, of_batch_sampler, of_own_batches, of_dataset, lambda ds, order: order])
def test_a_sampler_is_told_the_epoch(loader):
    order = OrderedLoader(3) if loader.__name__ == '<lambda>' else Order()
    learn = make_learner()
    learn.data.train_dl = loader(Dataset(torch.ones(10, 4), torch.zeros(10, dtype=torch.long)), order)
    TrainingLoop().fit(3, learn)
    assert order.told == [0, 1, 2]


def test_a_distributed_sampler_has_another_order_each_epoch():
    from torch.utils.data.distributed import DistributedSampler
    ds = Dataset(torch.arange(10.)[:,None].expand(10, 4).contiguous(), torch.zeros(10, dtype=torch.long))
    orders,learn = [],make_learner()
    learn.data.train_dl = TorchLoader(ds, batch_size=10, sampler=DistributedSampler(ds, 1, 0, seed=3))
    TrainingLoop(make(begin_batch=lambda self: orders.append(self.xb[:,0].tolist()))).fit(3, learn)
    train = [o for o in orders if len(o) == 10]
    assert len({tuple(o) for o in train}) == 3 and all(sorted(o) == list(range(10)) for o in train)


# ---------------------------------------------------------------- the oracle

OPTS = {'sgd': partial(optim.SGD, lr=.2),
        'momentum': partial(optim.SGD, lr=.1, momentum=.9, weight_decay=.01),
        'adam': partial(optim.Adam, lr=.02), 'foreach': partial(optim.AdamW, lr=.02, foreach=True)}

@pytest.mark.parametrize('opt', OPTS)
@pytest.mark.parametrize('epochs', [0, 1, 3])
def test_equals_the_plain_loop(opt, epochs):
    "Weights, buffers, optimiser, validation losses and the state of the random generator, to the last bit"
    a,b = make_learner(OPTS[opt]),make_learner(OPTS[opt])
    set_seed(7)
    want,rng = plain_fit(epochs, b),torch.get_rng_state()
    got = []
    def notes(self):
        if not self.in_train: got.append((self.epoch, self.loss.item()))
    set_seed(7)
    Runner(make(after_loss=notes)).fit(epochs, a)
    same_training(a, b)
    exact(torch.get_rng_state(), rng)
    assert got == [(e, v) for e,vs in enumerate(want) for v in vs]


def test_the_loop_alone_leaves_the_modes():
    a,b = make_learner(),make_learner()
    for o in (a, b): o.model.eval(); o.data.valid_dl = None
    b.model.train = lambda mode=True: b.model
    set_seed(7); plain_fit(2, b)
    set_seed(7); TrainingLoop().fit(2, a)
    same_training(a, b)
    assert not a.model.training


def test_fits_in_a_row_are_one():
    a,b,run = make_learner(),make_learner(),Runner()
    set_seed(7); plain_fit(4, b)
    set_seed(7)
    for n in (1, 0, 2, 1): run.fit(n, a)
    same_training(a, b)
    assert (run.epoch, run.epochs, run.n_iter) == (1, 1, N_TRAIN)


def test_shuffled_loaders():
    ds,res = Dataset(torch.randn(20, 4), torch.randint(0, 3, (20,))),[]
    for fit in (plain_fit, Runner().fit):
        learn = make_learner(data=DataBunch(DataLoader(ds, 6, shuffle=True), DataLoader(ds, 7), 3))
        set_seed(3); fit(2, learn)
        res.append(learn)
    same_training(*res)


def scaled(o): return DataBunch([(2*xb, yb) for xb,yb in o.data.train_dl], None)
def other_opt(o): return optim.Adam(o.model.parameters(), lr=.01)
def with_tanh(o): return nn.Sequential(o.model, nn.Tanh())
def turned(p, y): return F.cross_entropy(p, 2-y)
def softer(p, y): return F.cross_entropy(p/2, y)
def thrice(p, y): return 3*F.cross_entropy(p, y)
def slow(o): o.opt.param_groups[0]['lr'] = .01

def sets(k, f): return lambda o: setattr(o, k, f(o))

ACTS = {  # an event, what a callback does there, and what a plain loop's learner has to be to do the same
    'xb':        ('begin_batch', sets('xb', lambda o: o.xb*2), sets('data', scaled)),
    'yb':        ('after_pred', sets('yb', lambda o: 2-o.yb), sets('loss_func', lambda o: turned)),
    'pred':      ('after_pred', sets('pred', lambda o: o.pred/2), sets('loss_func', lambda o: softer)),
    'loss':      ('after_loss', sets('loss', lambda o: o.loss*3), sets('loss_func', lambda o: thrice)),
    'lr':        ('begin_fit', slow, slow),
    'loss_func': ('begin_fit', *[sets('loss_func', lambda o: F.multi_margin_loss)]*2),
    'model':     ('begin_fit', *[sets('model', with_tanh)]*2),
    'opt':       ('begin_fit', *[sets('opt', other_opt)]*2),
    'data':      ('begin_fit', *[sets('data', scaled)]*2)}

@pytest.mark.parametrize('what', ACTS)
def test_what_a_callback_changes_acts(what):
    event,act,differ = ACTS[what]
    a,b = make_learner(),make_learner()
    for o in (a, b): o.data.valid_dl = None
    differ(b)
    parts = dict(vars(a))
    set_seed(7); plain_fit(2, b)
    set_seed(7); Runner(make(**{event: lambda self: act(self.run)})).fit(2, a)
    exact(list(a.model.parameters()), list(b.model.parameters()))
    assert vars(a) == parts                                # the Learner keeps its own


def test_what_a_callback_sets_on_itself_acts_on_nothing():
    "… and it's told so, once"
    def act(self): self.xb = torch.zeros(4, 4)
    learn,run = make_learner(),Runner(make('Mine', begin_batch=act))
    with pytest.warns(UserWarning, match=r'^Mine sets `self.xb`.*write `self.run.xb = …`$') as caught:
        run.fit(EPOCHS, learn)
    assert len(caught) == 1
    same_training(learn, oracle)


@pytest.mark.parametrize('epochs, at, n', [(5, 0, 1), (1, 0, 3), (3, 1, 2)])
def test_the_number_of_epochs_can_be_changed(epochs, at, n):
    def act(self):
        if self.epoch == at: self.run.epochs = n
    run = Runner([Trace(), make('Changes', after_epoch=act)])
    run.fit(epochs, make_learner())
    assert run.trace.log.count('begin_epoch') == n


# ---------------------------------------------------------------- where the run is

@pytest.mark.parametrize('epochs, n', [(1, 1), (2, 4), (3, 3), (7, 10), (1, 7)])
def test_position(epochs, n):
    "pos and n_epochs are quotients of counts: exact, floats, from 0 to 1"
    b,got = (torch.randn(2, 4), torch.tensor([0, 1])),[]
    def at(event): return lambda self: got.append((event, self.n_epochs, self.pos))
    events = 'begin_fit begin_epoch begin_batch after_batch begin_validate after_epoch after_fit'
    run = Runner(make(**{e: at(e) for e in events.split()}))
    run.fit(epochs, make_learner(data=DataBunch([b]*n, [b]*2)))
    want = [('begin_fit', 0, 0)]
    for e in range(epochs):
        want += [('begin_epoch', e, e/epochs)]
        for i in range(n): want += [(o, e + i/n, (e + i/n)/epochs) for o in ('begin_batch', 'after_batch')]
        after = ('begin_validate', *['begin_batch', 'after_batch']*2, 'after_epoch')
        want += [(o, e+1, (e+1)/epochs) for o in after]
    assert got == [*want, ('after_fit', epochs, 1)] and all(type(v) is float for o in got for v in o[1:])
    assert (run.n_epochs, run.pos) == (epochs, 1)


def test_position_without_a_fit():
    run = Runner()
    assert (run.n_epochs, run.pos, run.epoch, run.n_iter) == (0, 0, 0, 0)
    run.fit(0, make_learner())
    assert (run.n_epochs, run.pos) == (0, 0) and type(run.pos) is float


def positions(epochs, *cbs):
    "pos at every event"
    got = []
    run = Runner([*cbs, make('Looks', -60, **dict.fromkeys(EVENTS, lambda self: got.append(self.pos)))])
    run.fit(epochs, make_learner())
    return got, run.pos

@pytest.mark.parametrize('kind', ['batch', 'train'])
@pytest.mark.parametrize('in_train', [True, False])
@pytest.mark.parametrize('event', EVENTS)
def test_position_in_spite_of_cancels(event, in_train, kind):
    "It never falls, and stays within 0 and 1"
    got,last = positions(2, RaiseAt(event, kind, in_train))
    assert got == sorted(got) and 0 <= got[0] and got[-1] <= 1 and 0 <= last <= 1

@pytest.mark.parametrize('epoch', [0, 1])
def test_position_after_a_cancelled_epoch(epoch):
    "… is that of an epoch that is over"
    def act(self):
        if self.in_train and (self.epoch, self.iter) == (epoch, 1): raise CancelEpochException
    got,last = positions(2, make(after_loss=act))
    assert got == sorted(got) and got[0] == 0 and got[-1] == last == 1


def test_what_callbacks_can_read():
    got = []
    def looks(self):
        r = self.run
        assert r.fitting and (r.epoch, r.epochs) == (0, 1)
        assert all(getattr(r, k) is getattr(r.learn, k) for k in ('model', 'opt', 'loss_func', 'data'))
        assert r.dl is (r.data.train_dl if r.in_train else r.data.valid_dl)
        assert torch.is_grad_enabled() == r.in_train and (r.loss is None or r.loss.requires_grad == r.in_train)
        got.append((r.iter, r.iters, r.n_iter, r.in_train, r.completed, r.pred is None, r.loss is None))
    Runner(make(begin_batch=looks, after_batch=looks)).fit(1, make_learner())
    want = []
    for i in range(3): want += [(i, 3, i, True, False, True, True), (i, 3, i+1, True, True, False, False)]
    for i in range(2): want += [(i, 2, 3, False, False, True, True), (i, 2, 3, False, True, False, False)]
    assert got == want


def test_only_completed_batches_count():
    "… in n_iter; and after_batch of a cancelled one finds no loss, neither its own nor an older one"
    got = []
    def act(self):
        if self.iter == 1: raise CancelBatchException
    def looks(self): got.append((self.completed, self.loss is None))
    run = Runner(make(begin_batch=act, after_batch=looks))
    run.fit(1, make_learner())
    done,not_done = (True, False),(False, True)
    assert run.n_iter == 2 and got == [done, not_done, done, done, not_done]


def test_where():
    got = []
    def at(event): return lambda self: got.append((event, self.where()))
    Runner(make(**{e: at(e) for e in EVENTS})).fit(2, make_learner())
    outside = 'begin_epoch', 'begin_validate', 'after_epoch'
    assert got[0] == ('begin_fit', ', epoch 0 of 2') and got[-1] == ('after_fit', ', epoch 2 of 2')
    assert [o for k,o in got if k in outside] == [f', epoch {e} of 2' for e in (0, 0, 0, 1, 1, 1)]
    first = [o for k,o in got if k == 'after_batch'][:5]
    assert first == [f', epoch 0, training batch {i} of 3' for i in range(3)] + \
                    [f', epoch 0, validation batch {i} of 2' for i in range(2)]


def test_what_a_runner_lacks():
    run = Runner()
    for k in ('model', 'opt', 'loss_func', 'data'):
        assert not hasattr(run, k)
        with pytest.raises(AttributeError, match=f"^the Runner has no '{k}' before its first fit$"):
            getattr(run, k)
    with pytest.raises(AttributeError, match="^the Runner has no 'stop'$"): run.stop
    run.fit(0, make_learner())
    assert run.model is run.learn.model


# ---------------------------------------------------------------- events are resolved once a fit

def test_idle_callbacks_arent_asked_in_batches():
    class Counts(Callback):
        n = 0
        def __getattribute__(self, k): Counts.n += 1; return super().__getattribute__(k)
    res = []
    for n in (1, 3):
        run = Runner([Counts() for _ in range(3)])
        Counts.n = 0
        run.fit(n, make_learner())
        res.append(Counts.n)
    assert res[0] == res[1]


def test_a_method_that_came_after_the_runner_is_heard():
    cb,got = make(),[]
    run = Runner(cb)
    vars(cb)['after_loss'] = lambda: got.append(1)
    run.fit(1, make_learner())
    assert len(got) == N_TRAIN+N_VALID


# ---------------------------------------------------------------- errors say where

def error_of(run, learn, epochs=2):
    with pytest.raises(Exception) as e: run.fit(epochs, learn)
    return e.value, e.value.__notes__

@pytest.mark.parametrize('event', [e for e in EVENTS if 'cancel' not in e])
def test_an_error_of_a_callback(event):
    "Its class, its method, the epoch, the batch; and what was at hand"
    in_batch = event in TRAIN
    def act(self):
        if in_batch and (self.epoch, self.iter) != (1, 2): return
        raise IndexError('list index out of range')
    e,notes = error_of(Runner(make('Mine', **{event: act})), make_learner())
    place = 'epoch 1, training batch 2 of 3' if in_batch else f'epoch {2*(event == "after_fit")} of 2'
    assert e.args == ('list index out of range',) and notes[0] == f'in Mine.act, {place}'
    pred,loss = '(2,3) float32', '() float32'
    at = {'begin_batch': ('NoneType', 'NoneType'), 'after_pred': (pred, 'NoneType'), 'after_batch': None}
    shapes = at.get(event, (pred, loss)) if in_batch else None
    assert notes[1:] == ([f'at {place}: xb (2,4) float32, yb (2) int64, pred {shapes[0]}, loss {shapes[1]}']
                         if shapes else [])


@pytest.mark.parametrize('event', BEFORE)
def test_an_error_after_a_cancel(event):
    def act(self): raise IndexError
    _,notes = error_of(Runner([RaiseAt('after_loss', event.rsplit('_', 1)[1]), make('Mine', **{event: act})]),
                       make_learner())
    assert notes[0].startswith('in Mine.act, epoch 0') and len(notes) == 1


def test_after_epoch_is_in_no_batch():
    def act(self): raise IndexError
    run = Runner([RaiseAt('after_loss', 'epoch'), make('Mine', after_epoch=act)])
    _,notes = error_of(run, make_learner())
    assert notes[0] == 'in Mine.act, epoch 0 of 2'


def test_an_error_in_validation():
    def act(self):
        if not self.in_train: raise IndexError
    _,notes = error_of(Runner(make('Mine', after_pred=act)), make_learner())
    assert notes == ['in Mine.act, epoch 0, validation batch 0 of 2', 'at epoch 0, validation batch 0 of 2: '
                     'xb (3,4) float32, yb (3) int64, pred (3,3) float32, loss NoneType']


def test_shapes_when_the_model_fails():
    e,notes = error_of(Runner(), learner_of(nn.Linear(5, 3)))
    assert notes == ['at epoch 0, training batch 0 of 3: xb (4,4) float32, yb (4) int64, pred NoneType, '
                     'loss NoneType']
    assert 'shapes' in str(e)


def test_shapes_when_the_loss_fails():
    _,notes = error_of(Runner(), make_learner(loss_func=lambda p, y: F.mse_loss(p[0], y[:2].float())))
    assert notes == ['at epoch 0, training batch 0 of 3: xb (4,4) float32, yb (4) int64, pred (4,3) float32, '
                     'loss NoneType']


def test_shapes_of_a_loss_that_is_no_number():
    e,notes = error_of(Runner(), make_learner(loss_func=partial(F.cross_entropy, reduction='none')))
    assert notes[0].endswith('loss (4) float32') and 'scalar' in str(e)


class Then(nn.Module):
    "Linear, and then `f`"
    def __init__(self, f): super().__init__(); self.lin,self.f = nn.Linear(4, 3),f
    def forward(self, x): return self.f(self.lin(x))

def in_place(x):
    x = x.exp()
    x += 1                                                 # backward needs the result of exp
    return x

def test_hint_on_operations_in_place():
    e,notes = error_of(Runner(), learner_of(Then(in_place)))
    assert 'modified by an inplace operation' in str(e)
    assert 'write it out of place' in notes[-1] and len(notes) == 2


def test_hint_on_backward_hooks():
    model = Then(F.relu_)
    model.lin.register_full_backward_hook(lambda *args: None)
    e,notes = error_of(Runner(), learner_of(model))
    assert 'modified inplace' in str(e) and 'hook another module' in notes[-1] and len(notes) == 2


def test_hint_on_devices():
    "CUDA's words"
    def says(p, y): raise RuntimeError('Expected all tensors to be on the same device, but found two')
    _,notes = error_of(Runner(), make_learner(loss_func=says))
    assert 'devices: move' in notes[-1] and len(notes) == 2

def test_hint_on_devices_without_cuda():
    _,notes = error_of(Runner(), learner_of(nn.Linear(4, 3, device='meta')))
    assert 'devices: move' in notes[-1]


def test_an_interrupt_is_left_as_it_is():
    with pytest.raises(KeyboardInterrupt) as e: Runner(RaiseAt('after_loss', 'ctrl-c')).fit(1, make_learner())
    assert not hasattr(e.value, '__notes__')


# ---------------------------------------------------------------- what is wrong is said before it begins

def refused(exc, match, epochs=1, learn=None):
    "fit raises; no event has happened, the weights are as they were, and the runner can be used"
    run,learn = Runner(Trace()),learn or make_learner()
    params = list(learn.model.parameters()) if isinstance(getattr(learn, 'model', None), nn.Module) else []
    was = [p.detach().clone() for p in params]
    with pytest.raises(exc, match=match): run.fit(epochs, learn)
    assert run.trace.log == [] and not run.fitting
    exact([p.detach() for p in params], was)
    check_usable(run)


@pytest.mark.parametrize('epochs', [-1, 1.5, 1., '3', None, [1]])
def test_epochs_is_a_count(epochs):
    refused(ValueError, r'^epochs must be a whole number from 0 up, got .*: call run.fit\(epochs, learn\)$',
            epochs)

def test_epochs_of_numpy():
    learn = make_learner()
    Runner().fit(np.int64(EPOCHS), learn)
    same_training(learn, oracle)

def test_arguments_the_wrong_way_round():
    with pytest.raises(ValueError, match='^epochs must be a whole number from 0 up, got Learner'):
        Runner().fit(make_learner(), 1)


@pytest.mark.parametrize('lacks', [('model',), ('opt',), ('loss_func',), ('data',), ('opt', 'data')])
def test_parts_that_are_missing(lacks):
    learn = SimpleNamespace(**{k: v for k,v in vars(make_learner()).items() if k not in lacks})
    refused(TypeError, f"^fit needs a Learner, got SimpleNamespace without {', '.join(lacks)}: call",
            learn=learn)

def test_anything_with_the_parts_is_a_learner():
    learn = SimpleNamespace(**vars(make_learner()))
    Runner().fit(EPOCHS, learn)
    same_training(learn, oracle)

@pytest.mark.parametrize('part', ['model', 'opt', 'loss_func', 'data'])
def test_parts_that_are_none(part):
    learn = make_learner()
    setattr(learn, part, None)
    refused(TypeError, f'^fit needs a Learner, got Learner without {part}: call', learn=learn)

@pytest.mark.parametrize('data', [[], SimpleNamespace(train_dl=[1])])
def test_data_without_loaders(data):
    k = 'valid_dl' if hasattr(data, 'train_dl') else 'train_dl'
    refused(TypeError, rf'{type(data).__name__}, has no {k}: pass DataBunch\(train_dl, valid_dl, c\)$',
            learn=make_learner(data=data))


def test_model_without_parameters():
    learn = make_learner(model=nn.ReLU())
    refused(ValueError, '^ReLU has no parameters, so there is nothing to train$', learn=learn)

def test_optimiser_of_another_model():
    learn = make_learner(opt=lambda ps: make_learner().opt)
    refused(ValueError, '^the optimiser holds no parameter of this Sequential.*model.parameters', learn=learn)

def test_optimiser_of_a_part_of_the_model():
    learn = make_learner()
    learn.opt = optim.SGD(learn.model[4].parameters(), lr=.1)
    first = learn.model[0].weight.detach().clone()
    Runner().fit(1, learn)
    exact(learn.model[0].weight.detach(), first)


class Stream(IterableDataset):
    def __iter__(self): return iter([(torch.zeros(4), 1)])

NO_LEN = 'is a {} without a length, which schedules need: pass an object with __len__ and __iter__$'

@pytest.mark.parametrize('k', ['train_dl', 'valid_dl'])
@pytest.mark.parametrize('dl, match', [
    ([], 'has no batches: it needs an item, or bs items with drop_last$'), ((), 'has no batches'),
    (iter([1]), NO_LEN.format('list_iterator')), (TorchLoader(Stream()), NO_LEN.format('DataLoader')),
    (3, NO_LEN.format('int'))], ids=['list', 'tuple', 'iterator', 'stream', 'int'])
def test_loaders(k, dl, match):
    learn = make_learner()
    setattr(learn.data, k, dl)
    refused(ValueError, f'^{k} {match}', learn=learn)

def test_no_training_loader():
    refused(ValueError, '^train_dl is a NoneType', learn=make_learner(data=DataBunch(None, None)))


x,y = torch.randn(6, 4),torch.randint(0, 3, (6,))

@pytest.mark.parametrize('b', [x, (x, y, y), (x,), 5, {'x': x, 'y': y, 'z': y}],
                         ids=['tensor', 'three', 'one', 'int', 'dict'])
def test_a_batch_that_is_no_pair(b):
    learn,run = make_learner(data=DataBunch([(x, y), b], None)),Runner(Trace())
    was = modes(learn)
    with pytest.raises(TypeError, match=r'pair.*\(xb,yb\)') as e: run.fit(1, learn)
    assert describe(b) in str(e.value) and 'epoch 0, training batch 1 of 2' in str(e.value)
    check_left(run, learn, was)
    check_usable(run)


def first(o):
    "The first tensor in a nested batch"
    if isinstance(o, dict): o = list(o.values())
    return first(o[0]) if isinstance(o, (list, tuple)) else o

@pytest.mark.parametrize('b', [[x, y], (x, y), ({'x': x}, y), ([x, x], (y, y))],
                         ids=['list', 'tuple', 'dict', 'nested'])
def test_nested_batches_reach_the_model_as_they_are(b):
    class Takes(nn.Linear):
        def forward(self, xb): assert xb is b[0]; return super().forward(first(xb))
    def loss(pred, yb): assert yb is b[1]; return F.cross_entropy(pred, first(yb))
    run = Runner()
    run.fit(1, learner_of(Takes(4, 3), data=DataBunch([b], None), loss_func=loss))
    assert run.n_iter == 1


# ---------------------------------------------------------------- a fit in a fit

def test_fit_in_a_fit_of_the_same_runner():
    def act(self):
        if self.epoch == 1 and self.wants: self.run.fit(1, make_learner())
    cb = make(after_epoch=act, wants=True)
    run,learn = Runner([Trace(), cb]),make_learner()
    was = modes(learn)
    e,notes = error_of(run, learn)
    assert type(e) is RuntimeError and str(e) == 'this Runner is in the middle of a fit: make another one'
    assert notes == ['in Some.act, epoch 1 of 2'] and run.trace.log == names(steps())
    check_left(run, learn, was)
    cb.wants = False
    check_usable(run)


@pytest.mark.parametrize('event', ['begin_fit', 'begin_epoch', 'after_epoch', 'after_fit'])
def test_fit_in_a_fit_of_another(event):
    "Both train as they would alone"
    inner = []
    def act(self):
        before = torch.get_rng_state()
        inner.append(make_learner())
        Runner().fit(EPOCHS, inner[-1])
        torch.set_rng_state(before)
    outer = make_learner()
    Runner(make(**{event: act})).fit(EPOCHS, outer)
    assert len(inner) == (1 if 'fit' in event else EPOCHS)
    for o in (outer, *inner): same_training(o, oracle)


def test_one_callback_in_two_runners():
    "It belongs to the one that fits"
    cb = Trace()
    runs = Runner(cb),Runner(cb)
    for run in (*runs, runs[0]):
        run.fit(EPOCHS, make_learner())
        assert cb.run is run and cb.log == names(steps())


# ---------------------------------------------------------------- no values to read

@pytest.mark.skipif(torch.__version__.startswith('2.1.'), reason='PyTorch 2.1 has no AdamW on meta')
def test_on_the_meta_device():
    "Shapes without numbers: the loop reads no value. The averages do, but in after_epoch, not in a batch"
    b = torch.zeros(5, 4, device='meta'),torch.zeros(5, dtype=torch.long, device='meta')
    model,shapes = nn.Sequential(nn.Linear(4, 3), nn.Dropout(.1)).to('meta'),set()
    def looks(self): shapes.add((self.pred.shape, self.loss.device.type))
    for opt in OPTS.values():
        learn = make_learner(lambda _: opt(model.parameters()), model=model, data=DataBunch([b]*3, [b]))
        run = Runner([make(after_loss=looks), Trace()])
        run.fit(2, learn)
        assert run.n_iter == 6 and shapes == {((5, 3), 'meta')} and run.trace.log == names(steps(2, 3, 1))
    run = Runner([AvgStatsCallback(lambda p, y: (p.argmax(1) == y).float().mean()), Trace()])
    e,notes = error_of(run, learn)
    assert notes == ['in AvgStatsCallback.after_epoch, epoch 0 of 2']
    assert run.trace.log == [*names(steps(1, 3, 1))[:-1], 'after_fit']


# ---------------------------------------------------------------- one idea, one screen

def test_the_loop_stands_in_one_class():
    "forward, backward, step and every event in order, as `Runner??` shows them; and little stands above it"
    src = inspect.getsource(Runner)
    at = [src.index(o) for o in EVENTS]
    assert at == sorted(at) and src.count('\n') <= 80
    fired = [src.rindex(f"'{o}'") for o in EVENTS]           # and each is fired there, by its name
    loop = ['self.pred = self.model(', "'after_pred'", 'self.loss = self.loss_func(', "'after_loss'",
            '.backward()', "'after_backward'", '.opt.step()', "'after_step'", '.opt.zero_grad()']
    found = [src.rindex(o) for o in loop]
    assert all(fired) and found == sorted(found)
    assert Runner.__mro__ == (Runner, CallbackList, object)


def test_what_a_run_has_is_set_in_init():
    "A new run has every attribute that a fit sets, but for the parts of the Learner"
    run = TrainingLoop()
    was = set(vars(run))
    run.fit(1, make_learner())
    assert set(vars(run)) - was == {'model', 'opt', 'loss_func', 'data'}
