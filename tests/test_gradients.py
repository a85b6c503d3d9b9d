"minifast.gradients: accumulation, clipping and mixed precision, each against a loop by hand"
import copy
import math
import pickle
from functools import partial

import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F

from helpers import exact, gpu, make_callback as make, quiet
from minifast.callback import CancelBatchException, CancelEpochException, CancelTrainException
from minifast.cnn import CudaCallback
from minifast.core import set_seed
from minifast.data import DataBunch
from minifast.gradients import GradientAccumulation, GradientClip, MixedPrecision
from minifast.learner import Learner
from minifast.runner import AvgStatsCallback, Runner, TrainingLoop
from minifast.sched import LR_Find, ParamScheduler, Recorder, sched_lin

scaled = pytest.mark.skipif(not hasattr(torch.amp, 'GradScaler'), reason='scaling on a CPU needs PyTorch 2.3')
OPTS = {'sgd': partial(optim.SGD, lr=.1), 'momentum': partial(optim.SGD, lr=.1, momentum=.9, weight_decay=.01),
        'adamw': partial(optim.AdamW, lr=.02), 'foreach': partial(optim.AdamW, lr=.02, foreach=True)}


def pairs(n=50, dtype=torch.float64):
    g = torch.Generator().manual_seed(5)
    return torch.randn(n, 6, generator=g, dtype=torch.float64).to(dtype),torch.randint(0, 3, (n,), generator=g)

def make_learner(sizes, opt='sgd', dtype=torch.float64, loss_func=F.cross_entropy):
    "Batches of these sizes, one after the other"
    set_seed(1)
    x,y = pairs(sum(sizes), dtype)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    dl = list(zip(x.split(sizes), y.split(sizes)))
    return Learner(model, OPTS[opt](model.parameters()), loss_func, DataBunch(dl, dl[:2]))

def close(a, b, tol=1e-12):
    for p,q in zip(a.model.parameters(), b.model.parameters()): torch.testing.assert_close(p, q, rtol=0, atol=tol)


# ---------------------------------------------------------------- accumulation

@pytest.mark.parametrize('opt', OPTS)
@pytest.mark.parametrize('sizes, n', [
    ([8]*6, 2), ([8]*6, 3), ([8]*7, 3), ([8]*5 + [3], 2), ([8]*6 + [5], 3), ([4]*3, 9), ([9], 4), ([3, 8, 1, 12, 5], 2),
    ([1, 1, 20, 2, 7, 7], 4), ([5]*4, 1)], ids=str)
def test_equals_batches_n_times_as_large(opt, sizes, n):
    big = [sum(sizes[i:i+n]) for i in range(0, len(sizes), n)]
    a,b = make_learner(sizes, opt),make_learner(big, opt)
    Runner(GradientAccumulation(n)).fit(3, a)
    Runner().fit(3, b)
    close(a, b)

def test_equals_a_loop_by_hand():
    sizes = [7, 7, 7, 7, 4]
    a,b = make_learner(sizes, 'momentum'),make_learner(sizes, 'momentum')
    Runner(GradientAccumulation(2)).fit(2, a)
    for _ in range(2):
        for group in (b.data.train_dl[:2], b.data.train_dl[2:4], b.data.train_dl[4:]):
            items = sum(len(yb) for _,yb in group)
            for xb,yb in group: (b.loss_func(b.model(xb), yb)*len(yb)/items).backward()
            b.opt.step()
            b.opt.zero_grad()
    close(a, b)

def test_float32_within_a_millionth():
    a,b = make_learner([32]*4, 'adamw', torch.float32),make_learner([128], 'adamw', torch.float32)
    Runner(GradientAccumulation(4)).fit(2, a)
    Runner().fit(2, b)
    close(a, b, 1e-6)

def test_the_table_shows_the_loss_itself():
    sizes = [8, 8, 8, 3]
    runs = [quiet(AvgStatsCallback(), *cbs) for cbs in ([], [GradientAccumulation(2)])]
    for run in runs:
        learn = make_learner(sizes)
        learn.opt.param_groups[0]['lr'] = 0.
        run.fit(1, learn)
    a,b = (run.avg_stats.history[0] for run in runs)
    assert (a['train_loss'], a['valid_loss']) == (b['train_loss'], b['valid_loss'])

def test_steps_and_what_is_left():
    steps = make('Steps', after_step=lambda self: counts.append(self.iter))
    counts,learn = [],make_learner([4]*7)
    run = Runner([steps, GradientAccumulation(3)])
    run.fit(2, learn)
    assert counts == [2, 5, 6]*2 and run.n_iter == 14 and run.pos == 1
    assert all(p.grad is None for p in learn.model.parameters())

@pytest.mark.parametrize('at', ['begin_batch', 'after_loss', 'after_backward'])
@pytest.mark.parametrize('order', [0, 30])
def test_a_cancelled_batch_takes_its_group_along(at, order):
    "Batch 1 of 0 to 5 is cancelled: gone are 0 and 1, the next groups are 2, 3 and 4, 5"
    def act(self):
        if self.in_train and self.iter == 1: raise CancelBatchException
    if (at, order) == ('after_backward', 30): pytest.skip('is called for a step only: tested below')
    a,b = make_learner([4]*6),make_learner([4]*6)
    Runner([make('Cancels', order, **{at: act}), GradientAccumulation(2)]).fit(1, a)
    b.data.train_dl = b.data.train_dl[2:]
    Runner(GradientAccumulation(2)).fit(1, b)
    close(a, b, 0)

def test_a_batch_that_is_cancelled_when_it_is_done():
    "In after_batch there is nothing left to skip, and the gradients stay"
    def act(self):
        if self.in_train and self.iter == 0: raise CancelBatchException
    a,b = make_learner([4]*4),make_learner([4]*4)
    Runner([make('Cancels', after_batch=act), GradientAccumulation(2)]).fit(1, a)
    Runner(GradientAccumulation(2)).fit(1, b)
    close(a, b, 0)

@pytest.mark.parametrize('exc', [CancelEpochException, CancelTrainException])
def test_a_pass_that_is_broken_off(exc):
    "What was collected isn't added to the next epoch"
    def act(self):
        if self.in_train and self.epoch == 0 and self.iter == 3: raise exc
    a,b = make_learner([4]*4),make_learner([4]*4)
    Runner([make('Cancels', begin_batch=act), GradientAccumulation(2)]).fit(2, a)
    run = Runner(GradientAccumulation(2))
    whole,b.data.train_dl = b.data.train_dl,b.data.train_dl[:2]
    run.fit(1, b)
    b.data.train_dl = whole
    if exc is CancelEpochException: run.fit(1, b)
    close(a, b, 0)

def test_validation_collects_nothing():
    a,b = make_learner([4]*4),make_learner([4]*4)
    b.data.valid_dl = None
    for o in (a, b): Runner(GradientAccumulation(3)).fit(2, o)
    close(a, b, 0)

def test_with_schedule_and_recorder():
    run = Runner([GradientAccumulation(2), ParamScheduler('lr', sched_lin(.1, .2)), Recorder()])
    run.fit(1, make_learner([4]*5))
    assert len(run.recorder.losses) == len(run.recorder.lrs[0]) == 5

def test_a_sweep_leaves_no_trace():
    learn = make_learner([4]*6)
    was = copy.deepcopy(learn.model.state_dict())
    run = Runner([GradientAccumulation(2), LR_Find(12)])
    run.fit(1, learn)
    exact(learn.model.state_dict(), was)
    assert len(run.lr_find.losses) == 12

@pytest.mark.parametrize('n', [0, -1, 2.5, '4', None])
def test_no_number_of_batches(n):
    with pytest.raises(ValueError, match='^n must be a whole number of batches from 1 up, got'): GradientAccumulation(n)


# ---------------------------------------------------------------- clipping

@pytest.mark.parametrize('opt', OPTS)
@pytest.mark.parametrize('max_norm', [.05, .2, 1e9])
def test_clip_equals_a_loop_by_hand(opt, max_norm):
    a,b = make_learner([8]*4, opt),make_learner([8]*4, opt)
    clip,norms = GradientClip(max_norm),[]
    Runner(clip).fit(2, a)
    for _ in range(2):
        for xb,yb in b.data.train_dl:
            b.loss_func(b.model(xb), yb).backward()
            norms.append(nn.utils.clip_grad_norm_(b.model.parameters(), max_norm))
            b.opt.step()
            b.opt.zero_grad()
    close(a, b, 0)
    exact(torch.stack(clip.norms), torch.stack(norms))

def test_clip_is_of_the_step():
    "Of the mean over four batches, once, and not of each"
    a,b = make_learner([4]*8),make_learner([16]*2)
    clips = GradientClip(.1),GradientClip(.1)
    Runner([clips[0], GradientAccumulation(4)]).fit(1, a)
    Runner(clips[1]).fit(1, b)
    close(a, b)
    assert len(clips[0].norms) == 2
    torch.testing.assert_close(torch.stack(clips[0].norms), torch.stack(clips[1].norms))

@pytest.mark.parametrize('v', [0, -1, math.nan])
def test_no_length(v):
    with pytest.raises(ValueError, match='^max_norm must be above 0, got'): GradientClip(v)


# ---------------------------------------------------------------- mixed precision

def autocast_is_on(): return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype != torch.float32

def half_loop(learn, dtype, epochs, scaler=None, n=1, max_norm=None):
    "By hand, as PyTorch's examples do it -> the validation losses"
    model,opt,losses = learn.model,learn.opt,[]
    for _ in range(epochs):
        for i,(xb,yb) in enumerate(learn.data.train_dl):
            with torch.autocast('cpu', dtype): loss = learn.loss_func(model(xb), yb)
            (scaler.scale(loss) if scaler else loss).backward()
            if (i+1) % n: continue
            for p in model.parameters(): p.grad /= n
            if scaler: scaler.unscale_(opt)
            if max_norm: nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            if scaler: scaler.step(opt); scaler.update()
            else: opt.step()
            opt.zero_grad()
        with torch.no_grad(), torch.autocast('cpu', dtype):
            losses.append([learn.loss_func(model(xb), yb).item() for xb,yb in learn.data.valid_dl])
    return losses

COMBINED = {'alone': {}, 'collected': dict(n=2), 'clipped': dict(max_norm=.1), 'both': dict(n=2, max_norm=.1)}

def cbs_of(n=1, max_norm=None):
    cbs = [GradientClip(max_norm)] if max_norm else []
    return [*cbs, GradientAccumulation(n)] if n > 1 else cbs

@pytest.mark.parametrize('opt', OPTS)
@pytest.mark.parametrize('how', COMBINED)
def test_bfloat16_equals_a_loop_by_hand(opt, how):
    a,b = make_learner([8]*4, opt, torch.float32),make_learner([8]*4, opt, torch.float32)
    run = quiet(AvgStatsCallback(), MixedPrecision(), *cbs_of(**COMBINED[how]))
    run.fit(2, a)
    losses = half_loop(b, torch.bfloat16, 2, **COMBINED[how])
    close(a, b, 1e-7)
    want = [sum(o)/2 for o in losses]
    assert [o['valid_loss'] for o in run.avg_stats.history] == pytest.approx(want, rel=1e-4)

@scaled
@pytest.mark.parametrize('how', COMBINED)
@pytest.mark.parametrize('scale', [2.**10, 2.**40])
def test_float16_equals_a_loop_by_hand(how, scale):
    "A scale of 2^40 overflows: those steps are left out until it has come down"
    a,b = make_learner([8]*40, 'momentum', torch.float32),make_learner([8]*40, 'momentum', torch.float32)
    half = MixedPrecision(torch.float16, scale)
    Runner([half, *cbs_of(**COMBINED[how])]).fit(2, a)
    scaler = torch.amp.GradScaler('cpu', scale)
    half_loop(b, torch.float16, 2, scaler, **COMBINED[how])
    close(a, b, 1e-7)
    assert half.scaler.get_scale() == scaler.get_scale() and (scale > 1e6) == (scaler.get_scale() < scale)
    assert all(p.isfinite().all() for p in a.model.parameters())

@scaled
def test_small_gradients_vanish_only_without_a_scale():
    "A loss of a ten-millionth: float16 has no numbers of that size"
    def tiny(pred, yb): return F.cross_entropy(pred, yb)*1e-7
    moved = []
    for scale in (1., 2.**16):
        learn = make_learner([16]*2, 'sgd', torch.float32, tiny)
        was = learn.model[0].weight.detach().clone()
        learn.opt.param_groups[0]['lr'] = 1e6
        Runner(MixedPrecision(torch.float16, scale)).fit(1, learn)
        moved.append(not torch.equal(was, learn.model[0].weight))
    assert moved == [False, True]

def test_the_types():
    seen = {}
    def looks(self): seen.update(pred=self.pred.dtype, loss=self.loss.dtype)
    def looks_at_grad(self): seen['grad'] = self.model[0].weight.grad.dtype
    learn = make_learner([8]*2, dtype=torch.float32)
    Runner([MixedPrecision(torch.bfloat16), make(after_loss=looks, after_backward=looks_at_grad)]).fit(1, learn)
    assert seen == dict(pred=torch.bfloat16, loss=torch.float32, grad=torch.float32)
    assert all(p.dtype == torch.float32 for p in learn.model.parameters())

FAILS = ['begin_batch', 'model', 'after_pred', 'loss', 'after_loss', 'after_backward', 'after_step', 'after_batch']

@pytest.mark.parametrize('at', FAILS)
@pytest.mark.parametrize('exc', [KeyError, KeyboardInterrupt, CancelBatchException, CancelTrainException])
@pytest.mark.parametrize('order', [-5, 40])
@pytest.mark.parametrize('dtype', [torch.bfloat16, pytest.param(torch.float16, marks=scaled)])
def test_autocast_and_optimiser_after_any_ending(at, exc, order, dtype):
    def act(self):
        if run.in_train and run.iter == 1: raise exc
    learn,events = make_learner([8]*3, dtype=torch.float32),{}
    if at == 'model': learn.model.register_forward_pre_hook(lambda *_: act(None))
    elif at == 'loss':
        learn.loss_func = lambda *b: (act(None), F.cross_entropy(*b))[1]
    else: events[at] = act
    run,opt = Runner([MixedPrecision(dtype), make('Fails', order, **events)]),learn.opt
    try: run.fit(1, learn)
    except (KeyError, KeyboardInterrupt) as e: assert type(e) is exc
    assert not autocast_is_on() and run.opt is opt is learn.opt
    assert all(p.grad is None for p in learn.model.parameters())

@scaled
def test_every_callback_sees_its_optimiser():
    "Schedules set the rates of the optimiser itself, and a sweep puts everything back"
    learn = make_learner([8]*4, 'momentum', torch.float32)
    was = copy.deepcopy([learn.model.state_dict(), learn.opt.state_dict()])
    run = Runner([MixedPrecision(torch.float16), LR_Find(12)])
    run.fit(1, learn)
    assert len(run.lr_find.losses) == 12
    exact([learn.model.state_dict(), learn.opt.state_dict()], was)
    Runner([MixedPrecision(torch.float16), ParamScheduler('lr', sched_lin(.1, .2))]).fit(1, learn)
    assert learn.opt.param_groups[0]['lr'] == pytest.approx(.175)

def test_copies_and_a_second_fit():
    learn = make_learner([8]*2, dtype=torch.float32)
    run = Runner([MixedPrecision(), GradientClip(1.), GradientAccumulation(2)])
    run.fit(1, learn)
    for again in (copy.deepcopy(run), pickle.loads(pickle.dumps(run)), run):
        again.fit(1, learn)
        assert again.mixed_precision.run is again and not autocast_is_on()

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.int8, 'float16', 16])
def test_no_small_type(dtype):
    with pytest.raises(ValueError, match='^dtype must be torch.bfloat16 or torch.float16, got'): MixedPrecision(dtype)

@pytest.mark.skipif(hasattr(torch.amp, 'GradScaler'), reason='this PyTorch scales on a CPU too')
def test_float16_on_a_cpu_of_old():
    learn = make_learner([8]*2, dtype=torch.float32)
    with pytest.raises(ValueError, match='^float16 on cpu needs PyTorch 2.3 or newer'):
        Runner(MixedPrecision(torch.float16)).fit(1, learn)
    assert not autocast_is_on()

@gpu
@pytest.mark.parametrize('dtype', [None, torch.bfloat16, torch.float16])
def test_on_a_gpu(dtype):
    learn = make_learner([8]*6, dtype=torch.float32)
    run = quiet(AvgStatsCallback(), CudaCallback(), MixedPrecision(dtype), GradientClip(1.), GradientAccumulation(2))
    run.fit(4, learn)
    losses = [o['train_loss'] for o in run.avg_stats.history]
    assert losses[-1] < losses[0] and all(p.dtype == torch.float32 for p in learn.model.parameters())

def test_unused_they_cost_nothing():
    "Nobody listens to after_backward, and the loop calls nothing there"
    run = TrainingLoop()
    run.fit(1, make_learner([4]*2))
    assert run._on['after_backward'] == ()
