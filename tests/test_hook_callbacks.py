"Hooks in callbacks: they see what a forward by hand sees, change nothing, and go however a fit ends"
import copy
import gc
import pickle
import subprocess
import sys
import weakref
from collections import namedtuple
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn
from torch.testing import assert_close

from helpers import RaiseAt, bunch as make_bunch, net, small
from minifast.callback import (EVENTS, Callback, CancelBatchException, CancelEpochException,
                               CancelTrainException)
from minifast.cnn import get_runner
from minifast.core import set_seed
from minifast.data import DataBunch, DataLoader, Dataset
from minifast.hook_callbacks import ActivationStats, HookCallback, hook_output, hook_outputs
from minifast.gradients import GradientAccumulation
from minifast.hooks import children, leaked_hooks
from minifast.init import GeneralRelu
from minifast.learner import Learner
from minifast.runner import Runner
from minifast.sched import LR_Find, Recorder
from minifast.telemetry import Log

N, BS = 40, 8


def bunch(n=N, **kw): return make_bunch(n, BS, n_valid=20, **kw)


def make(*cbs, model=None, data=None, lr=.1, **kw):
    return get_runner(model or net(), data or bunch(), lr=lr, cbs=list(cbs), **kw)


class Shapes(HookCallback):
    def hook(self, m, inp, outp): return tuple(outp.shape)


# --- models that others made or changed

eager = partial(torch.compile, backend='eager')


def record(of, model, epochs=2, **kw):
    "What `ActivationStats` notes of `model`, from the same start and on the same data"
    set_seed(0)
    learn, run = make(ActivationStats(**kw), model=model, data=bunch())
    run.fit(epochs, learn)
    assert leaked_hooks(model) == []
    return getattr(run.activation_stats, of), learn, run


def runs_before(m):
    c = eager(m)
    c(torch.randn(3, 6))
    return c


def in_place(m):
    m.compile(backend='eager')
    return m


def a_part(m):
    m[2] = eager(m[2])
    m(torch.randn(3, 6))
    return m


@pytest.mark.filterwarnings('ignore:The .grad attribute of a Tensor', 'ignore:Guards may run slower')   # of dynamo
@pytest.mark.parametrize('how', [eager, runs_before, in_place, a_part], ids=['compiled', 'runs_before', 'in_place', 'a_part'])
@pytest.mark.parametrize('of', ['outputs', 'valid', 'grads'])
def test_a_compiled_model_has_the_numbers_and_names_of_the_other(how, of):
    import torch._dynamo
    torch._dynamo.reset()
    set_seed(1)
    m = net()
    plain, c = copy.deepcopy(m), how(m)
    want, learn, run = record(of, plain, valid=True, grads=True)
    got, learn_c, run_c = record(of, c, valid=True, grads=True)
    assert_close(got.stats, want.stats, rtol=0, atol=0, equal_nan=True); assert_close(got.dead, want.dead, equal_nan=True)
    assert got.names == want.names == ['Linear 0', 'ReLU 1', 'Linear 2', 'Tanh 3', 'Linear 4']
    assert_close(list(c.parameters()), list(plain.parameters()), rtol=0, atol=0)
    with hook_outputs(c) as hooks: c(torch.ones(2, 6))
    with hook_outputs(plain) as want: plain(torch.ones(2, 6))
    assert_close([h.stored for h in hooks], [h.stored for h in want], rtol=0, atol=0)
    for again in range(2):
        learn, run = make(Shapes(), model=c)
        run.fit(1, learn)
        assert [h.stored for h in run.shapes.hooks] == [(4, 5), (4, 5), (4, 4), (4, 4), (4, 3)]


class Checkpointed(nn.Module):
    def __init__(self, reentrant=None): super().__init__(); self.part, self.last, self.reentrant = net(), nn.Linear(3, 3), reentrant
    def forward(self, x):
        if self.reentrant is None: return self.last(self.part(x))
        return self.last(torch.utils.checkpoint.checkpoint(self.part, x.requires_grad_(), use_reentrant=self.reentrant))


@pytest.mark.parametrize('reentrant', [True, False])
def test_a_checkpointed_part_is_noted_once_and_so_are_its_gradients(reentrant):
    set_seed(1)
    m = Checkpointed()
    c = copy.deepcopy(m)
    c.reentrant = reentrant
    for of in ('outputs', 'valid', 'grads'):
        want, got = record(of, m, valid=True, grads=True)[0], record(of, c, valid=True, grads=True)[0]
        assert_close(got.stats, want.stats); assert_close(got.hists.sum(1), want.hists.sum(1))
        assert of != 'outputs' or got.asked == want.asked == set(range(6))
    class Count(HookCallback):
        n = 0
        def hook(self, m, inp, outp): self.n += self.in_train
    class CountBackward(Count): is_forward = False
    learn, run = make(Count(), CountBackward(), model=c)
    run.fit(1, learn)
    assert run.count.n == run.count_backward.n == 6*N//BS


class Gives(nn.Module):
    "Hands on what it gets, by way of something that isn't a plain tensor of floats"
    def __init__(self, there, back): super().__init__(); self.there, self.back = Fn(there), Fn(back)
    def forward(self, x): return self.back(self.there(x))


class Fn(nn.Module):
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, x): return self.f(x)


def as_nested(x): return torch.nested.as_nested_tensor([x[:3], x[3:]])
def to_quint8(x): return torch.quantize_per_tensor(x.detach(), .1, 0, torch.quint8)


ODD = dict(sparse_coo=(lambda x: x.to_sparse(), lambda x: x.to_dense()), nested=(as_nested, lambda x: torch.cat(x.unbind())),
           complex64=(torch.fft.fft, lambda x: x.real), quint8=(to_quint8, lambda x: x.dequantize()),
           int64=(lambda x: (x*9).long(), lambda x: x.float()), bool=(lambda x: x > 0, lambda x: x.float()),
           _mkldnn=(lambda x: x.to_mkldnn(), lambda x: x.to_dense()))
ODD['no tensor'] = lambda x: [lambda: x], lambda x: x[0]()


@pytest.mark.filterwarnings('ignore:The PyTorch API of nested tensors', 'ignore:.*quantiz', 'ignore:torch.ao')
@pytest.mark.parametrize('what', ODD)
def test_what_cant_be_measured_is_passed_over_and_said_once(what):
    def model(): return nn.Sequential(nn.Linear(6, 5), Gives(*ODD[what]), nn.Linear(5, 3))
    set_seed(1)
    m = model()
    learn, run = make(stats := ActivationStats(valid=True, grads=True), model=m)
    with pytest.warns(UserWarning, match=rf'ActivationStats has no numbers of Fn 1.there \({what}\): it measures') as said: run.fit(2, learn)
    assert len([o for o in said if 'has no numbers' in str(o.message)]) == 1 and leaked_hooks(m) == []
    t = stats.outputs
    assert t.stats.isnan().any(2).tolist() == [[False, True, False, False]]*2 and t.hists.sum((1, 2))[1] == 0
    learn, run = make(Both := ActivationStats(lambda m: [m[0]]), model=m)
    run.fit(1, learn)   # what isn't watched isn't said
    assert Both.outputs.stats.isfinite().all()


@pytest.mark.filterwarnings('ignore:.torch.jit')   # deprecated
def test_torchscript_in_a_model_is_left_alone_and_said_before_the_fit():
    m = nn.Sequential(nn.Linear(6, 5), torch.jit.script(nn.Linear(5, 4)), nn.Linear(4, 3))
    learn, run = make(stats := ActivationStats(), model=m)
    with pytest.warns(UserWarning, match='not watched, as TorchScript calls no hooks: 1 of 3 modules'): run.fit(1, learn)
    assert stats.outputs.names == ['Linear 0', 'Linear 2'] and stats.stats.isfinite().all()
    was = copy.deepcopy(m[0].state_dict())
    learn, run = make(ActivationStats(m), model=m)
    with pytest.raises(TypeError, match='got Linear in TorchScript, which calls no hooks inside'): run.fit(1, learn)
    assert leaked_hooks(m) == [] and torch.equal(m[0].weight, was['weight'])


def test_copies_of_the_model_in_a_fit_have_no_hooks():
    class Average(Callback):   # as an EMA does
        def begin_fit(self): self.average = torch.optim.swa_utils.AveragedModel(self.model)
        def after_step(self): self.average.update_parameters(self.model); self.copy = copy.deepcopy(self.model)
        def begin_epoch(self): self.traced = pickle.loads(pickle.dumps(torch.fx.symbolic_trace(self.model)))
    class Late(Average): _order = 50
    learn, run = make(ActivationStats(grads=True), late := Late())
    run.fit(2, learn)
    before = run.activation_stats.stats.clone()
    for m in (late.average, late.copy, late.traced):
        assert leaked_hooks(m) == leaked_hooks(m, foreign=True) == []
        m(torch.randn(3, 6)).sum().backward()
    assert_close(run.activation_stats.stats, before, rtol=0, atol=0)
    assert late.average.n_averaged == 2*N//BS


# --- outputs to keep

@pytest.mark.parametrize('act', [nn.ReLU(inplace=True), nn.Hardtanh(inplace=True), nn.ReLU()])
def test_a_layer_in_place_behind_changes_nothing(act):
    m, xb = nn.Sequential(nn.Linear(6, 5), act), torch.randn(7, 6)
    with hook_outputs(m) as hooks: out = m(xb)
    assert_close(hooks[0].stored, m[0](xb).detach())
    assert_close(hooks[1].stored, out.detach())
    assert not any(h.stored.requires_grad for h in hooks) and leaked_hooks(m) == []


def test_an_output_changed_later_by_hand_stays_as_it_was():
    m, xb = nn.Linear(6, 5), torch.randn(7, 6)
    with hook_output(m) as hook, torch.no_grad():
        out = m(xb)
        was = out.clone()
        out.zero_()
    assert_close(hook.stored, was)


def test_with_its_graph_one_can_go_backward():
    m, xb = net(), torch.randn(7, 6)
    with hook_output(m[2], detach=False) as hook: m(xb)
    want = torch.autograd.grad(m[:3](xb).sum(), m[0].weight)[0]
    assert_close(torch.autograd.grad(hook.stored.sum(), m[0].weight)[0], want)


def test_without_a_graph_nothing_is_held():
    m, xb = net(), torch.randn(7, 6, requires_grad=True)    # the graph would hold it
    with hook_output(m[2]) as hook: m(xb)
    ref = weakref.ref(xb)
    del xb
    gc.collect()
    assert ref() is None and hook.stored.grad_fn is None


def test_gradients_are_autograds():
    m, xb = net(), torch.randn(7, 6)
    with hook_outputs([m[1], m[2]], grad=True) as hooks: m(xb).square().sum().backward()
    a = m[:2](xb).detach().requires_grad_()
    b = m[2](a)
    b.retain_grad()
    m[3:](b).square().sum().backward()
    assert_close(hooks[0].stored[0], a.grad)
    assert_close(hooks[1].stored[0], b.grad)
    with hook_output(m[2], grad=True) as hook: m(xb).square().sum().backward()
    assert_close(hook.stored[0], b.grad)


Pair = namedtuple('Pair', 'a b')


class Nested(nn.Module):
    def __init__(self, make): super().__init__(); self.make = make
    def forward(self, x): return self.make(x)


@pytest.mark.parametrize('make,read', [
    (lambda x: (x, [x + 1, 'text', None]), lambda o: (o[0], o[1][0])),
    (lambda x: {'a': x, 'b': (x + 1, 3)}, lambda o: (o['a'], o['b'][0])),
    (lambda x: Pair(x, x + 1), lambda o: (o.a, o.b))])
def test_outputs_that_are_tuples_or_dicts(make, read):
    m, xb = Nested(make), torch.randn(4, 3)
    with hook_output(m) as hook: out = m(xb)
    want = [o.clone() for o in read(out)]
    assert type(hook.stored) is type(out)
    for o in read(out): o.zero_()
    for o, w in zip(read(hook.stored), want): assert_close(o, w)


def test_the_cpu_option_asks_for_the_cpu():
    class Away(torch.Tensor):   # says that it lives elsewhere, and notes what it is asked
        asked = []
        is_cpu = property(lambda self: False)
        def cpu(self): self.asked.append('cpu'); return torch.Tensor(self.as_subclass(torch.Tensor)).clone()
    m = Nested(lambda x: x.as_subclass(Away))
    with hook_output(m, cpu=True) as hook: m(torch.ones(2))
    assert Away.asked == ['cpu'] and type(hook.stored) is torch.Tensor
    m = nn.Linear(6, 5)
    with hook_output(m, cpu=True) as hook: out = m(torch.randn(7, 6))
    assert hook.stored.device.type == 'cpu' and hook.stored.data_ptr() != out.data_ptr()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device on this machine')
def test_the_cpu_option_on_a_gpu():
    m = nn.Linear(6, 5).cuda()
    with hook_output(m, cpu=True) as hook: out = m(torch.randn(7, 6, device='cuda'))
    assert hook.stored.device.type == 'cpu'
    assert_close(hook.stored, out.detach().cpu())


def test_before_the_first_call_nothing_is_stored():
    m = net()
    with hook_output(m[0]) as hook: assert hook.stored is None
    hook = hook_output(m[0])
    del hook
    assert leaked_hooks(m) == []


# --- hooks as a callback

ENDS = [CancelBatchException, CancelEpochException, CancelTrainException, RuntimeError, KeyboardInterrupt]


@pytest.mark.parametrize('exc', ENDS)
@pytest.mark.parametrize('event', EVENTS)
def test_no_end_of_a_fit_leaves_a_hook(event, exc):
    for _ in range(5):
        cb, stats = Shapes(), ActivationStats(grads=True, valid=True)
        learn, run = make(cb, stats, RaiseAt(event, exc))
        for _ in range(2):
            try: run.fit(2, learn)
            except (RuntimeError, KeyboardInterrupt): pass
            assert leaked_hooks(learn.model) == [] and not cb.watched
            assert not any(o._backward_hooks or o._forward_hooks for o in learn.model.modules())


class Broken(nn.Module):
    def __init__(self): super().__init__(); self.n = 0
    def forward(self, x):
        self.n += 1
        if self.n % 4 == 3: raise ArithmeticError('broken')
        return x


def broken_loss(pred, yb): raise ArithmeticError('broken')


class BrokenHook(HookCallback):
    def hook(self, m, inp, outp): raise ArithmeticError('broken')


@pytest.mark.parametrize('kw,cbs', [(dict(model=nn.Sequential(nn.Linear(6, 3), Broken())), [Shapes]),
                                    (dict(loss_func=broken_loss), [Shapes]), ({}, [Shapes, BrokenHook])])
def test_an_error_in_model_loss_or_hook(kw, cbs):
    for _ in range(5):
        learn, run = make(*(f() for f in cbs), ActivationStats(grads=True), **kw)
        with pytest.raises(ArithmeticError): run.fit(1, learn)
        assert leaked_hooks(learn.model) == []


def test_a_diverging_sweep_and_a_second_fit():
    for _ in range(5):
        learn, run = make(Shapes(), ActivationStats(), LR_Find(max_iter=30, max_lr=1e6))
        run.fit(1, learn)
        assert leaked_hooks(learn.model) == []
        run.fit(1, learn)
        assert leaked_hooks(learn.model) == []


def test_while_it_trains_they_are_there_once():
    class Look(Callback):
        def begin_fit(self): self.n = []
        def after_loss(self): self.n.append(len(leaked_hooks(self.model)))
    learn, run = make(Shapes(), Look())
    for _ in range(2):
        run.fit(2, learn)
        assert set(run.look.n) == {5} and len(run.look.n) == 2*(5 + 2)


def test_what_was_stored_can_be_read_afterwards():
    learn, run = make(Shapes())
    run.fit(1, learn)
    assert [h.stored for h in run.shapes.hooks] == [(4, 5), (4, 5), (4, 4), (4, 4), (4, 3)]
    assert not any(h.active for h in run.shapes.hooks)


def test_hooks_that_are_to_stay():
    learn, run = make(Shapes(do_remove=False))
    run.fit(1, learn)
    assert len(leaked_hooks(learn.model)) == 5
    run.fit(1, learn)
    assert len(leaked_hooks(learn.model)) == 5       # not twice
    learn.model(torch.randn(9, 6))
    assert run.shapes.hooks[0].stored == (9, 5)
    run.shapes.remove()
    run.shapes.remove()
    assert leaked_hooks(learn.model) == []


def test_they_go_with_their_callback():
    learn, run = make(Shapes(do_remove=False))
    run.fit(1, learn)
    del run
    gc.collect()
    assert leaked_hooks(learn.model) == []


def test_they_follow_another_model():
    cb = Shapes(do_remove=False)
    (one, run), (two, _) = make(cb), make()
    run.fit(1, one)
    run.fit(1, two)
    assert leaked_hooks(one.model) == [] and len(leaked_hooks(two.model)) == 5


@pytest.mark.parametrize('modules,names', [
    (None, ['Linear 0.0', 'ReLU 0.1', 'Linear 1']), (children, ['Sequential 0', 'Linear 1']),
    (lambda m: m[1], ['Linear 1']), (lambda m: [m[1], m[1]], ['Linear 1']),
    (lambda m: m, ['Sequential 0', 'Linear 1'])])
def test_which_modules(modules, names):
    class Names(Shapes):
        def after_loss(self): self.names = list(self.watched.values())
    m = nn.Sequential(nn.Sequential(nn.Linear(6, 5), nn.ReLU()), nn.Linear(5, 3))
    learn, run = make(Names(modules), model=m)
    run.fit(1, learn)
    assert run.names.names == names


def test_modules_themselves():
    m = net()
    for ms, names in [([m[0], m[3]], ['Linear 0', 'Tanh 3']), (m[2], ['Linear 2']), (m, 5)]:
        learn, run = make(ActivationStats(ms), model=m)
        run.fit(1, learn)
        got = run.activation_stats.outputs.names
        assert got == names if isinstance(names, list) else len(got) == names


@pytest.mark.parametrize('bad,exc', [([], ValueError), (lambda m: [], ValueError), ([3], TypeError),
                                     ('0', TypeError), (lambda m: None, ValueError)])
def test_bad_modules(bad, exc):
    learn, run = make(Shapes(bad))
    with pytest.raises(exc): run.fit(1, learn)
    assert leaked_hooks(learn.model) == []


def test_a_subclass_without_hook():
    class Nothing(HookCallback): pass
    learn, run = make(Nothing())
    with pytest.raises(NotImplementedError, match=r'Nothing needs a method hook\(self, m, inp, outp\)'): run.fit(1, learn)
    assert leaked_hooks(learn.model) == []


def test_an_error_says_how_hook_is_called():
    class Wrong(HookCallback):
        def hook(self, hook, mod, inp, outp): pass    # what a Hook's function takes
    learn, run = make(Wrong())
    with pytest.raises(TypeError) as e: run.fit(1, learn)
    assert 'on Linear, called as hook(m, inp, outp)' in str(e.value.__notes__)


def test_an_output_of_a_kind_of_its_own():
    "Kept as what it is, with copies in it"
    class Out(dict):
        def update(self, *args): raise RuntimeError('no update')
    class Head(nn.Module):
        def forward(self, x):
            self.out = Out(h=x, n=None)
            return self.out
    m, x = Head(), torch.ones(2)
    with hook_output(m) as hook: m(x)
    assert type(hook.stored) is Out and hook.stored is not m.out and hook.stored['n'] is None
    x.zero_()
    assert hook.stored['h'].tolist() == [1, 1]


def test_backward_hooks():
    class Grads(HookCallback):
        is_forward = False
        def begin_fit(self): super().begin_fit(); self.n = 0
        def hook(self, m, inp, outp): self.n += 1; return outp[0]
    learn, run = make(Grads())
    run.fit(1, learn)
    assert run.grads.n == 5*5 and run.grads.hooks[4].stored.shape == (8, 3)   # training only
    assert leaked_hooks(learn.model) == []


def test_hooks_of_others_stay_in_place_and_order():
    m, seen = net(), []
    m[0].register_forward_hook(lambda *a: seen.append('before'))
    class Note(HookCallback):
        def hook(self, m, inp, outp): seen.append('ours')
    learn, run = make(Note(lambda m: m[0]), model=m)
    run.fit(1, learn)
    m[0].register_forward_hook(lambda *a: seen.append('after'))
    assert set(zip(seen[::2], seen[1::2])) == {('before', 'ours')}
    seen.clear()
    m(torch.randn(2, 6))
    assert seen == ['before', 'after']


@pytest.mark.parametrize('how', [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies(how):
    learn, run = make(Shapes(do_remove=False), ActivationStats(grads=True))
    run.fit(1, learn)
    assert len(leaked_hooks(learn.model)) == 5
    assert leaked_hooks(how(learn.model)) == []
    again = how(run)
    assert_close(again.activation_stats.stats, run.activation_stats.stats)
    assert len(leaked_hooks(learn.model)) == 5
    learn2, _ = make()
    again.fit(1, learn2)
    assert len(leaked_hooks(learn2.model)) == 5


def test_copies_in_the_middle_of_a_fit():
    class Copy(Callback):
        def after_loss(self): self.copy = copy.deepcopy(self.model)
    learn, run = make(Shapes(), ActivationStats(grads=True), Copy())
    run.fit(1, learn)
    assert leaked_hooks(run.copy.copy) == [] and not run.copy.copy[0]._forward_hooks


def test_nothing_is_said_on_stderr():
    code = '''
import torch
from torch import nn
from minifast.cnn import get_runner
from minifast.data import DataBunch, DataLoader, Dataset
from minifast.hook_callbacks import ActivationStats, HookCallback
class Bad(HookCallback):
    def hook(self, m, inp, outp): raise KeyboardInterrupt
data = DataBunch(DataLoader(Dataset(torch.randn(8, 3), torch.zeros(8).long()), 4), None, 2)
for cb in (ActivationStats(grads=True), Bad(do_remove=False), ActivationStats(do_remove=False)):
    learn,run = get_runner(nn.Sequential(nn.Linear(3, 2)), data, cbs=cb)
    try: run.fit(1, learn)
    except KeyboardInterrupt: pass
    del run, learn
try: ActivationStats([3]); get_runner(nn.Linear(3, 2), data, cbs=ActivationStats([3]))[1].fit(1, None)
except TypeError: pass
'''
    r = subprocess.run([sys.executable, '-W', 'error', '-c', code], capture_output=True, text=True)
    assert (r.returncode, r.stderr) == (0, '')


# --- ActivationStats

def by_hand(model, xs):
    "(2,layers,batches) of a forward through `model`, a Sequential, for each of `xs`"
    cols = []
    for x in xs:
        col = []
        for m in model:
            x = m(x)
            col.append(torch.stack([x.float().mean(), x.float().std()]).detach())
        cols.append(torch.stack(col, 1))
    return torch.stack(cols, 2)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_equal_a_forward_by_hand(dtype):
    m, data = net().to(dtype), bunch(dtype=dtype)
    want = by_hand(m, [b[0] for b in data.train_dl])
    learn, run = make(ActivationStats(), model=m, data=data, lr=0.)
    run.fit(1, learn)
    got = run.activation_stats.stats
    assert got.shape == (2, 5, 5) and got.dtype == torch.float32 and got.is_cpu and not got.requires_grad
    tol = dict(rtol=1e-5, atol=1e-6) if dtype in (torch.float32, torch.float64) else dict(rtol=1e-2, atol=1e-2)
    assert_close(got, want, **tol)


def test_histograms_lose_no_value():
    learn, run = make(ActivationStats(), ActivationStats(rng=(0, .1), bins=7))
    run.fit(2, learn)
    sizes = torch.tensor([40, 40, 32, 32, 24])[:, None].expand(5, 10)
    for s in (run.activation_stats, run.activation_stats_2):
        assert torch.equal(s.hists.sum(1), sizes)
    assert run.activation_stats_2.hists.shape == (5, 7, 10)
    assert run.activation_stats_2.ranges.tolist() == [[0, pytest.approx(.1)]]*5


def test_training_and_validation_apart():
    m, data = net(), bunch()
    learn, run = make(ActivationStats(valid=True), model=m, data=data, lr=0.)
    run.fit(2, learn)
    s = run.activation_stats
    want = by_hand(m, [b[0] for b in data.valid_dl])
    assert s.stats.shape == (2, 5, 10) and s.valid.stats.shape == (2, 5, 4)
    assert s.iters.tolist() == list(range(10)) and s.valid.iters.tolist() == list(range(4))
    assert_close(s.valid.stats, torch.cat([want, want], 2), rtol=1e-5, atol=1e-6)


def test_gradients_are_autograds_in_the_record():
    m, data = net(), bunch(n=BS)
    xb, yb = next(iter(data.train_dl))
    outs = [xb]
    for layer in m: outs.append(layer(outs[-1]))
    grads = torch.autograd.grad(F.cross_entropy(outs[-1], yb), outs[1:])
    learn, run = make(ActivationStats(grads=True), model=m, data=data)
    run.fit(1, learn)
    want = torch.stack([torch.stack([g.mean(), g.std()]) for g in grads], 1)
    assert_close(run.activation_stats.grads.stats[:, :, 0], want, rtol=1e-4, atol=1e-7)
    assert run.activation_stats.grads.stats.shape == (2, 5, 1) and run.activation_stats.grads.near is None


def test_gradients_of_the_validation_are_not_noted():
    class Always(nn.Module):   # has a graph in validation too, and goes backward in it
        def __init__(self): super().__init__(); self.layer = nn.Linear(6, 3)
        def forward(self, x):
            with torch.enable_grad():
                out = self.layer(x)
                if not self.training: out.sum().backward(retain_graph=True)
            return out
    learn, run = make(ActivationStats(grads=True, valid=True), model=Always())
    run.fit(1, learn)
    assert (run.activation_stats.grads.stats[1] > 0).all() and run.activation_stats.grads.stats.shape == (2, 1, 5)


def test_gradients_with_layers_in_place():
    m = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))
    twin = copy.deepcopy(m)
    twin[1].inplace = False
    data, got = bunch(), []
    for o in (m, twin):
        learn, run = make(ActivationStats(grads=True), model=o, data=data)
        run.fit(2, learn)
        got.append(run.activation_stats)
    assert_close(got[0].stats, got[1].stats)
    assert_close(got[0].grads.stats, got[1].grads.stats)
    assert (got[0].hists[0].sum(0) == 40).all() and got[0].stats[0, 0].min() < got[0].stats[0, 1].min()


@pytest.mark.parametrize('act,dead', [(nn.ReLU(), 1.), (GeneralRelu(sub=.4), 1.), (GeneralRelu(leak=.1, sub=.4), 0.),
                                      (nn.Hardtanh(), 1.), (nn.ReLU6(), 1.), (nn.LeakyReLU(.1), 0.), (nn.ELU(), 0.)])
def test_the_dead_share_of_a_layer_that_is_dead(act, dead):
    m = nn.Sequential(nn.Linear(6, 5), act, nn.Linear(5, 3))
    nn.init.constant_(m[0].bias, -100.)
    learn, run = make(ActivationStats(), model=m)
    run.fit(1, learn)
    assert run.activation_stats.dead[1].tolist() == [dead]*5
    assert ('dead' in {o.kind for o in run.activation_stats.diagnose()}) == bool(dead)


def test_the_dead_share_by_channel():
    m = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    with torch.no_grad(): m[1].bias[:] = torch.tensor([-100., 100, -100, 100])
    learn, run = make(ActivationStats(), model=m)
    run.fit(1, learn)
    assert run.activation_stats.dead_channels[2].tolist() == [1, 0, 1, 0]
    assert run.activation_stats.dead[2].tolist() == [.5]*5


@pytest.mark.parametrize('act', [GeneralRelu(sub=.4), nn.Hardtanh()])
def test_the_floor_of_a_block_is_that_of_its_last_layer(act):
    m = nn.Sequential(nn.Sequential(nn.Linear(6, 5), act), nn.Linear(5, 3))
    nn.init.constant_(m[0][0].bias, -100.)
    learn, run = make(ActivationStats(children), model=m)
    run.fit(1, learn)
    assert run.activation_stats.dead[0].tolist() == [1]*5


def test_dropout_is_no_death():
    m = nn.Sequential(nn.Linear(6, 50), nn.Dropout(.95), nn.Linear(50, 3))
    learn, run = make(ActivationStats(), model=m)
    run.fit(1, learn)
    assert run.activation_stats.dead[1].tolist() == [0]*5
    assert 'dead' not in {o.kind for o in run.activation_stats.diagnose()}


def test_every_and_keep():
    def stats(**kw):
        set_seed(1)
        learn, run = make(ActivationStats(grads=True, **kw), model=net(), data=bunch(n=160))
        run.fit(1, learn)
        return run.activation_stats
    whole, third, few = stats(), stats(every=3), stats(keep=8)
    assert whole.stats.shape == (2, 5, 20)
    assert third.iters.tolist() == list(range(0, 20, 3)) == third.grads.iters.tolist()
    assert_close(third.stats, whole.stats[:, :, ::3])
    assert_close(third.grads.stats, whole.grads.stats[:, :, ::3])
    assert len(few.iters) <= 8 and len(few.grads.iters) <= 8
    assert_close(few.stats, whole.stats[:, :, few.iters])


def test_without_histograms():
    learn, run = make(ActivationStats(hists=False))
    run.fit(1, learn)
    assert run.activation_stats.hists.numel() == 0 and run.activation_stats.stats.shape == (2, 5, 5)


def test_without_shares():
    m = net()
    nn.init.constant_(m[0].bias, -100.)
    learn, run = make(ActivationStats(near=None), model=m)
    run.fit(1, learn)
    s = run.activation_stats
    assert s.dead.sum() == s.near_zero.sum() == 0 and s.stats.isfinite().all()


class Odd(nn.Module):
    "A tuple, a dict, whole numbers, a text; a layer that is never called, and one that is called twice"
    def __init__(self):
        super().__init__()
        self.lstm, self.idle, self.twice = nn.LSTM(6, 4), nn.Linear(6, 4), nn.Linear(4, 4)
        self.dict, self.whole = Nested(lambda x: {'a': ['text', x]}), Nested(lambda x: x.argmax(1))
        self.none, self.head = Nested(lambda x: None), nn.Linear(4, 3)
    def forward(self, x):
        x = self.twice(self.twice(self.lstm(x)[0]))
        self.none(x), self.whole(x)
        return self.head(self.dict(x)['a'][1])


def test_odd_outputs():
    learn, run = make(ActivationStats(grads=True), model=Odd())
    with pytest.warns(UserWarning, match=r'no numbers of Nested whole \(int64\), Nested none \(no tensor\): it'): run.fit(1, learn)
    s = run.activation_stats
    names = [o.split()[1] for o in s.outputs.names]
    seen = {n: bool(v) for n, v in zip(names, s.stats[0].isfinite().all(1))}
    assert seen == dict(lstm=True, idle=False, twice=True, dict=True, whole=False, none=False, head=True)
    assert s.hists[names.index('twice')].sum(0).tolist() == [2*BS*4]*5
    assert not s.diagnose() and s.diagnose().idle == ['idle']


def test_each_fit_begins_a_new_record():
    learn, run = make(ActivationStats())
    run.fit(2, learn)
    was = run.activation_stats.outputs
    run.fit(1, learn)
    assert run.activation_stats.outputs is not was and run.activation_stats.stats.shape[2] == 5
    assert was.stats.shape[2] == 10


def test_what_an_interrupted_fit_has_noted():
    class Stop(Callback):
        def after_loss(self):
            if self.n_iter == 3: raise KeyboardInterrupt
    learn, run = make(ActivationStats(), Stop())
    with pytest.raises(KeyboardInterrupt): run.fit(1, learn)
    assert run.activation_stats.iters.tolist() == [0, 1, 2, 3]


def test_watching_changes_nothing():
    losses = []
    for cbs in ([], [ActivationStats(grads=True, valid=True)]):
        set_seed(3)
        learn, run = make(*cbs, Recorder(), model=nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Dropout(.5),
                                                               nn.ReLU(inplace=True), nn.Linear(9, 3)))
        run.fit(3, learn)
        losses.append((run.recorder.losses, list(learn.model.state_dict().values()), torch.rand(1)))
    assert losses[0][0] == losses[1][0] and losses[0][2] == losses[1][2]
    for a, b in zip(losses[0][1], losses[1][1]): assert torch.equal(a, b)


def test_no_graph_is_held():
    class Ref(Callback):
        def begin_fit(self): self.refs = []
        def after_loss(self): self.refs.append(weakref.ref(self.run.loss))
    learn, run = make(ActivationStats(grads=True), Ref())
    run.fit(1, learn)
    gc.collect()
    assert [r() for r in run.ref.refs] == [None]*len(run.ref.refs)


def test_one_transfer_an_epoch(monkeypatch):
    n, was = [0], Log.fetch
    def fetch(self): n[0] += bool(self.waiting); was(self)
    monkeypatch.setattr(Log, 'fetch', fetch)
    learn, run = make(ActivationStats(grads=True, valid=True), data=bunch(n=800))
    run.fit(3, learn)
    assert n[0] == 3*3                    # outputs, gradients, validation


@pytest.mark.parametrize('kw', [dict(bins=1000), dict(rng=(1, 0)), dict(every=0), dict(keep=1)])
def test_bad_settings_are_said_at_once(kw):
    with pytest.raises(ValueError, match='got'): ActivationStats(**kw)


def test_no_ladder():
    "ActivationStats, HookCallback, Callback: no more of ours above one another"
    assert ActivationStats.__mro__ == (ActivationStats, HookCallback, Callback, object)


def test_what_is_not_there():
    s = ActivationStats()
    for f in (s.plot, s.diagnose, lambda: s.stats, lambda: s.dead):
        with pytest.raises(ValueError, match='call run.fit'): f()
    learn, run = make(s)
    run.fit(1, learn)
    for of in ('grads', 'valid'):
        with pytest.raises(ValueError, match=f'make it with {of}=True'): s.plot(of=of)


def test_plot():
    learn, run = make(ActivationStats(grads=True, valid=True))
    run.fit(1, learn)
    for of in ('outputs', 'grads', 'valid'):
        axs = run.activation_stats.plot('A title', of=of)
        assert len(axs) == 8 and axs[0].figure._suptitle.get_text() == 'A title'
        assert all(ax.get_xlabel() and ax.get_ylabel() for ax in axs)
    assert len(run.activation_stats.plot(layers=[0, 2])) == 6
    import matplotlib.pyplot as plt
    plt.close('all')


def test_a_frozen_part_is_not_ill():
    m = net()
    for p in m[0].parameters(): p.requires_grad_(False)
    learn, run = make(ActivationStats(grads=True), model=m)
    run.fit(1, learn)
    assert not run.activation_stats.diagnose()


def test_a_part_that_gets_no_gradient_is():
    class Cut(nn.Module):
        def forward(self, x): return x.detach()
    m = nn.Sequential(nn.Linear(6, 5), Cut(), nn.Linear(5, 3))
    learn, run = make(ActivationStats(grads=True), model=m)
    run.fit(1, learn)
    d = run.activation_stats.diagnose()
    assert [(o.first, o.kind) for o in d] == [('0', 'no gradient')]


def test_thresholds_are_passed_on():
    learn, run = make(ActivationStats())
    run.fit(1, learn)
    assert not run.activation_stats.diagnose() and run.activation_stats.diagnose(dead=.01)
    with pytest.raises(TypeError): run.activation_stats.diagnose(nonsense=1)


def test_what_lesson_06ac_makes_can_be_had_here():
    from minifast import hook_callbacks, summary
    assert hook_callbacks.model_summary is summary.model_summary and 'model_summary' in hook_callbacks.__all__
    assert hook_callbacks.model_sizes is summary.model_sizes and 'model_sizes' in hook_callbacks.__all__


@pytest.mark.parametrize('n, every', [(20, 1), (21, 4)])
def test_many_layers_are_noted_in_each_fourth_batch(n, every):
    m = nn.Sequential(*[o for _ in range(n) for o in (nn.Linear(6, 6), nn.Tanh())])
    data = DataBunch(DataLoader(Dataset(torch.randn(40, 6), torch.zeros(40).long()), 2), None)
    s, asked = ActivationStats(), ActivationStats(every=1)
    learn, run = get_runner(m, data, lr=.1, cbs=[s, asked])
    run.fit(1, learn)
    assert s.iters.tolist() == list(range(0, 20, every)) and asked.iters.tolist() == list(range(20))
    assert [o[0] for o in s.watch.steps] == list(range(20)) == [o[0] for o in asked.watch.steps]   # the diagnosis sees all
    assert_close(s.stats, asked.stats[:, :, ::every])


def test_the_small_one_has_the_numbers_of_the_exported():
    "Means and standard deviations of all children, of training batches only; its histograms count what lies from -10 to 10"
    stats, few = ActivationStats(children, every=1, sample=None, rng=(-10, 10)), small('06b_hook_callbacks', 'SmallStats')()
    learn, run = make(stats, few)
    run.fit(2, learn)
    assert few.means.shape == (5, 10) and leaked_hooks(learn.model) == []
    assert_close(torch.stack([few.means, few.stds]), stats.stats, rtol=1e-5, atol=1e-6)
    assert torch.equal(few.hists.sum(1), stats.hists.sum(1).float())

def test_the_small_one_takes_its_hooks_away_after_an_error():
    few = small('06b_hook_callbacks', 'SmallStats')()
    learn, run = make(few, RaiseAt('after_loss', RuntimeError('x')))
    with pytest.raises(Exception): run.fit(1, learn)
    assert leaked_hooks(learn.model) == []


@pytest.mark.parametrize('every', [1, 2, 4])
def test_steps_are_noted_where_several_batches_make_one(every):
    "Of 24 batches each fourth ends in a step; each so many of these are noted"
    set_seed(0)
    model, stats = net(), ActivationStats(every=every)
    learn = Learner(model, torch.optim.SGD(model.parameters(), lr=.1), F.cross_entropy, make_bunch(96, 4))
    run = Runner([stats, GradientAccumulation(4)])
    run.fit(1, learn)
    assert len(stats.watch.steps) == -(-6//every) and stats.watch.flows
    assert 'rate too low' not in {o.kind for o in stats.diagnose()}
