"Hooks: what they see equals a manual forward, they change nothing, and nothing of them stays"
import copy
import gc
import math
import pickle
import subprocess
import sys
import warnings
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import RaiseAt, bunch, net, pickled, saved, small
from minifast import hooks as module
from minifast.callback import (EVENTS, Callback, CancelBatchException, CancelEpochException,
                               CancelTrainException)
from minifast.cnn import get_runner
from minifast.core import ListContainer
from minifast.hooks import (Hook, Hooks, append_stats, calls_hooks, children, first_tensor, floor_of, get_hist,
                            get_min, in_backward, leaked_hooks, name_of, unmeasurable)
from minifast.init import GeneralRelu
from minifast.plot import plot_hists, plot_layers
from minifast.safe_hooks import explain_in_place, made_at, place_hook
from minifast.sched import LR_Find

pytestmark = pytest.mark.filterwarnings('ignore:Guards may run slower')   # Python 3.13.0


def shape(hook, mod, inp, outp): return tuple(outp.shape)
def count(hook, mod, inp, outp): hook.n = getattr(hook, 'n', 0) + 1
def x(n=7): return torch.randn(n, 6)
def traces(m):
    "Everything on the modules that a hook could have changed"
    return [(sorted(vars(o)), [list(v) for k, v in vars(o).items() if 'hooks' in k and v is not None],
             o._is_full_backward_hook) for o in m.modules()]


# --- children

def test_children():
    m = net()
    assert children(m) == list(m) and isinstance(children(m), list) and children(m[0]) == []
    assert children(nn.Sequential(m, m)) == [m]
    with pytest.raises(TypeError, match='got list: pass a layer'): children([m])


# --- one hook

def test_function_gets_hook_module_input_and_output():
    m, xb, seen = net(), x(), []
    hook = Hook(m[2], lambda *args: seen.append(args) or 'kept')
    assert hook.stored is None and hook.active
    out = m(xb)
    (h, mod, inp, outp), = seen
    assert h is hook and mod is m[2] and isinstance(inp, tuple) and hook.stored == 'kept'
    assert_close(inp[0], m[:2](xb)); assert_close(outp, m[:3](xb)); assert_close(out, m[3:](outp))

@pytest.mark.parametrize('res', [None, 0, torch.zeros(7, 3), 'text', (1, 2)])
@pytest.mark.parametrize('forward', [True, False])
def test_a_result_never_replaces_anything(res, forward):
    m, xb = net(), x()
    m(xb).sum().backward()
    want, grads = m(xb), [p.grad.clone() for p in m.parameters()]
    m.zero_grad()
    with Hooks(m, lambda *args: res, forward) as hooks:
        got = m(xb)
        got.sum().backward()
    assert_close(got, want, rtol=0, atol=0)
    assert_close([p.grad for p in m.parameters()], grads, rtol=0, atol=0)
    assert all(h.stored is res for h in hooks)

def by_remove(m): Hook(m[0], count).remove()
def by_remove_twice(m): h = Hook(m[0], count); h.remove(); h.remove()
def by_with(m):
    with Hook(m[0], count): m(x())
def by_with_and_remove(m):
    with Hook(m[0], count) as h: h.remove()
def by_error(m):
    with pytest.raises(KeyError), Hook(m[0], count): m(x()); raise KeyError
def by_ctrl_c(m):
    with pytest.raises(KeyboardInterrupt), Hook(m[0], count): raise KeyboardInterrupt
def by_error_in_the_function(m):
    with pytest.raises(ZeroDivisionError), Hook(m[0], lambda *a: 1/0): m(x())
def by_error_in_the_model(m):
    with pytest.raises(RuntimeError), Hook(m[0], count): m(torch.randn(3, 99))
def by_del(m): h = Hook(m[0], count); m(x()); del h
def by_scope(m): h = Hook(m[0], count); m(x())   # noqa: F841
def by_rebinding(m): hs = [Hook(o, count) for o in m]; m(x()); hs = [Hook(o, count) for o in m]   # noqa: F841
def by_gc(m): h = Hook(m[0], count); h.me = h; del h; gc.collect()
def by_gc_of_a_closure(m): hs = []; hs.append(Hook(m[0], lambda *a: hs)); m(x()); del hs; gc.collect()   # noqa: F821
def by_del_of_the_first(m): a = Hook(m[0], count); b = Hook(m[1], count); del a; assert not m[0]._forward_hooks; del b
def by_nobody(m): Hook(m[0], count)
def by_failing_init(m):
    for bad in (None, 3, 'f'):
        with pytest.raises(TypeError): Hook(m[0], bad)
def backward(m): h = Hook(m[2], count, False); m(x()).sum().backward(); del h
def backward_with(m):
    with Hook(m[0], count, is_forward=False): m(x()).sum().backward()
def many_with(m):
    with Hooks(m, append_stats): m(x())
def many_error(m):
    with pytest.raises(KeyError), Hooks(m, append_stats) as hs: hs.me = hs; raise KeyError
def many_del(m): hs = Hooks(m, append_stats); m(x()); del hs
def many_remove(m): hs = Hooks(m, append_stats); hs[:2].remove(); hs.remove()
def many_partly(m):
    with pytest.raises(TypeError, match='got str'): Hooks([m[0], m[1], 'm[2]'], count)
def many_del_slice(m): hs = keep = Hooks(m, count); held = list(hs); del hs[:]; assert held and not len(keep)
def many_backward(m):
    with Hooks(m, count, is_forward=False): m(x()).sum().backward()
def nested(m):
    with Hooks(m, append_stats), Hook(m[0], count) as h, Hooks(m, count, False): m(x()).sum().backward()
    assert h.n == 1

WAYS = [f for k, f in sorted(globals().items()) if k.startswith(('by_', 'backward', 'many_', 'nested'))]

@pytest.mark.parametrize('way', WAYS, ids=lambda f: f.__name__)
def test_nothing_stays(way):
    m = net()
    before = traces(m)
    for _ in range(5):
        way(m)
        assert leaked_hooks(m) == [] and traces(m) == before
        m(x())

def test_a_removed_hook_is_silent():
    m, h = net(), None
    h = Hook(m[0], count)
    m(x()); h.remove(); m(x())
    assert h.n == 1 and not h.active

def test_while_held_it_stays():
    m = net()
    hooks = [Hook(o, count) for o in children(m[:3])]
    gc.collect()
    for _ in range(3): m(x())
    assert [h.n for h in hooks] == [3, 3, 3] and all(h.active for h in hooks)

def test_deleting_one_of_two_keeps_the_other():
    m = net()
    a, b = Hook(m[0], count), Hook(m[0], shape)
    del a
    m(x())
    assert b.stored == (7, 5) and len(leaked_hooks(m)) == 1
    assert not copy.deepcopy(m)[0]._forward_hooks

def test_removed_between_forward_and_backward_it_is_silent():
    m = net()
    with Hook(m[2], count, is_forward=False) as h: loss = m(x()).sum()
    loss.backward()
    assert not hasattr(h, 'n')

def test_two_hooks_keep_apart_what_they_note():
    m = net()
    a, b = Hook(m[0], append_stats), Hook(m[0], append_stats)
    m(x()); a.remove(); m(x())
    assert len(a.stats[0]) == 1 and len(b.stats[0]) == 2

def test_a_hook_keeps_no_module_alive():
    m = net()
    hooks, ref = Hooks(m, shape), weakref.ref(m[0])
    m(x())
    del m; gc.collect()
    assert ref() is None
    hooks.remove()

def test_a_removed_hook_keeps_no_function_of_the_model():
    m, f = net(), net()
    ref = weakref.ref(f)
    h = Hook(m[0], lambda *a, f=f: None)
    del h, f
    assert ref() is None

@pytest.mark.parametrize('bad', [3, None, 'layer', torch.zeros(3), [nn.ReLU()]])
def test_what_is_no_module_is_refused(bad):
    with pytest.raises(TypeError, match=f'got {type(bad).__name__}: pass a layer'): Hook(bad, count)
    with pytest.raises(TypeError, match='got'): Hooks([bad], count)

@pytest.mark.parametrize('m', [nn.Linear(2, 2), nn.Sequential()])
def test_what_is_no_function_is_refused(m):
    with pytest.raises(TypeError, match='f must be a function of .hook, mod, inp, outp., got NoneType'): Hook(m, None)

def test_nothing_is_said_on_stderr():
    code = '''if 1:
    import copy, gc, pickle
    from torch import nn
    from torch.utils.hooks import RemovableHandle
    from minifast.hooks import Hook, Hooks
    for bad in (3, None, nn.ReLU):
        try: Hook(bad, print)
        except TypeError: pass
        try: Hooks([nn.ReLU(), bad], print)
        except TypeError: pass
    gc.collect()
    m = nn.ReLU()
    for forward in (True, False):
        h = Hook(m, print, forward); c = copy.deepcopy(h), pickle.loads(pickle.dumps(m)); del h, c
    try:
        with Hooks(m, print): raise KeyboardInterrupt
    except KeyboardInterrupt: pass
    h = Hook(m, print); hs = Hooks(m, print); me = [Hook(m, print)]; me.append(me); c = copy.copy(h)
    RemovableHandle.remove = lambda self: print('no work at exit')'''
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.returncode == 0 and r.stdout == r.stderr == ''

def test_an_error_says_that_it_was_in_a_hook():
    m = net()
    with pytest.raises(TypeError) as e, Hook(m[0], lambda mod, inp, outp: None): m(x())
    assert 'in hook <lambda> on Linear, called as f(hook, mod, inp, outp)' in str(e.value.__notes__)
    for hook in (Hook, Hooks):
        with pytest.raises(ZeroDivisionError) as e, hook(m, lambda *a: 1/0, called_as='watch(mod)'): m(x())
        assert 'called as watch(mod)' in str(e.value.__notes__)

def test_repr():
    m = net()
    h = Hook(m[0], partial(append_stats, bins=3))
    assert repr(h) == 'Hook(Linear, partial(append_stats))'
    h.remove()
    assert repr(h) == 'Hook(Linear, partial(append_stats)) removed'


# --- other people's hooks, and copies

def test_hooks_of_others_stay_in_place_and_order():
    m, log = net(), []
    def yours(k): return lambda mod, inp, outp: log.append(k)
    first = m[0].register_forward_hook(yours('first'))
    ours = Hook(m[0], lambda *a: log.append('ours'))
    m[0].register_forward_hook(yours('last'))
    m[0].register_forward_pre_hook(lambda mod, inp: log.append('pre'))
    m(x()); ours.remove(); m(x())
    assert log == ['pre', 'first', 'ours', 'last', 'pre', 'first', 'last']
    first.remove()
    m(x())
    assert log[-2:] == ['pre', 'last']

def test_hooks_of_others_that_replace_still_do():
    m = net()
    m[0].register_forward_hook(lambda mod, inp, outp: outp*0)
    with Hook(m[0], lambda h, mod, i, o: o) as h: m(x())
    assert (h.stored == 0).all()

def test_a_backward_hook_of_another_kind_can_follow():   # PyTorch allows one kind on a module
    m = net()
    with Hook(m[1], count, is_forward=False): pass
    assert m[1]._is_full_backward_hook is None
    m[1]._is_full_backward_hook = False   # what the other kind sets
    with Hook(m[1], count): pass
    m[2].register_full_backward_hook(lambda *a: None)
    with Hook(m[2], count, is_forward=False): pass
    assert m[2]._is_full_backward_hook is True

def yours(mod, inp, outp): pass

COPIES = dict(deepcopy=copy.deepcopy, copy=copy.copy, pickle=lambda m: pickle.loads(pickle.dumps(m)),
              old_pickle=lambda m: pickle.loads(pickle.dumps(m, protocol=2)))

@pytest.mark.parametrize('how', COPIES.values(), ids=COPIES)
@pytest.mark.parametrize('forward', [True, False])
def test_copies_carry_no_hook_of_ours(how, forward):
    m, xb = net(), x()
    m[0].register_forward_hook(yours)
    def unpicklable(*args): pass
    with Hooks([m, *m], unpicklable, forward), Hook(m[0], unpicklable): c = how(m)
    if how is not copy.copy: assert c[0] is not m[0] and traces(c)[0] == traces(m)[0]
    found = [f for o in c.modules() for k, v in vars(o).items() if k.endswith('_hooks') and v for f in v.values()]
    assert found == [yours] and leaked_hooks(c) == [] and not any('__getstate__' in vars(o) for o in c.modules())
    assert_close(c(xb), m(xb))

@pytest.mark.parametrize('how', COPIES.values(), ids=COPIES)
def test_copying_leaves_the_original_hooked(how):
    m = net()
    hooks = Hooks(m, count)
    c = how(nn.Sequential(m))
    if how is not copy.copy:
        c(x())
        assert not any(hasattr(h, 'n') for h in hooks)
    m(x())
    assert [h.n for h in hooks] == [1]*5 and len(leaked_hooks(m)) == 5

def test_torch_save(tmp_path):
    m = net()
    with Hooks(m, lambda *a: None): torch.save(m, tmp_path/'m')
    c = torch.load(tmp_path/'m', weights_only=False)
    assert leaked_hooks(c) == [] and all(not o._forward_hooks for o in c.modules())
    with Hooks(m, count): assert m.state_dict().keys() == c.state_dict().keys()

class OwnState(nn.Linear):
    def __getstate__(self): return {**self.__dict__, 'mark': 1}

class OwnCopy(nn.Linear):
    def __deepcopy__(self, memo):
        new = type(self)(self.in_features, self.out_features)
        new.__dict__.update(copy.deepcopy({k: v for k, v in vars(self).items() if k != '__getstate__'}, memo))
        return new

def test_a_module_with_a_state_of_its_own():
    m = OwnState(6, 5)
    with Hook(m, count): c = copy.deepcopy(m)
    assert c.mark == 1 and not c._forward_hooks

class StateNoDict(nn.Linear):
    def __getstate__(self): return self.in_features, self.out_features
    def __setstate__(self, state): self.__init__(*state)

def test_a_state_that_is_no_dict_is_handed_on():
    m = StateNoDict(6, 5)
    with Hook(m, count) as h: c = copy.deepcopy(m)
    c(x())
    assert c.out_features == 5 and not c._forward_hooks and not hasattr(h, 'n')

def test_a_module_that_copies_itself_gets_hooks_that_do_nothing():
    m = OwnCopy(6, 5)
    with Hook(m, count) as h:
        c = copy.deepcopy(m)
        c(x())
        assert not hasattr(h, 'n')

@pytest.mark.parametrize('how', COPIES.values(), ids=COPIES)
def test_a_copied_hook_keeps_its_numbers_and_hooks_nothing(how):
    m = net()
    hooks = Hooks(m, append_stats)
    m(x())
    c = how(hooks[0])
    assert not c.active and len(leaked_hooks(m)) == 5
    assert_close(list(c.stats), list(hooks[0].stats)); assert_close(get_min(c), get_min(hooks[0]))
    c.remove(); del c; gc.collect()
    m(x())
    assert len(hooks[0].stats[0]) == 2 and len(leaked_hooks(m)) == 5
    if how is not copy.copy: assert len(how(hooks)) == 5 and isinstance(how(hooks), Hooks)


class CopiesItself(nn.Linear):
    def __deepcopy__(self, memo):
        new = memo[id(self)] = type(self).__new__(type(self))
        new.__dict__ = copy.deepcopy(self.__dict__, memo)
        return new

def parametrized(): return nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
def traced_by_fx(): return torch.fx.symbolic_trace(net())
def averaged(): return nn.Sequential(net(), parametrized())

@pytest.mark.parametrize('make', [partial(CopiesItself, 6, 5), parametrized, traced_by_fx, averaged], ids=['own', 'parametrized', 'fx', 'ema'])
def test_copies_made_in_a_way_of_their_own_are_free_and_independent(make):
    m = make() if make is not averaged else nn.Sequential(net())
    hooks = [Hook(m, append_stats), *Hooks([o for o in m.modules() if o is not m], append_stats), Hook(m, count, False)]
    c = torch.optim.swa_utils.AveragedModel(m).module if make is averaged else copy.deepcopy(m)
    c(x()).sum().backward()
    assert leaked_hooks(c) == leaked_hooks(c, foreign=True) == [] and all(not h.stats[0] for h in hooks[:-1])
    assert len(leaked_hooks(m)) == len(hooks) and not hasattr(hooks[-1], 'n')
    with torch.no_grad():
        for p in c.parameters(): p.fill_(9)
    for p in copy.deepcopy(c).parameters(): assert (p == 9).all()   # of the copy, not of what it was copied from

@pytest.mark.parametrize('how', [pickled, saved])
def test_a_model_of_fx_pickles_while_hooked(how):
    m = traced_by_fx()
    with Hooks(list(m.modules()), append_stats) as hooks: c = how(m)
    assert leaked_hooks(c) == [] and all(not h.stats[0] for h in hooks)
    v = x()
    assert_close(c(v), m(v), rtol=0, atol=0)

@pytest.mark.parametrize('how', [copy.copy, pickled])
def test_a_copy_of_a_copy_has_its_own_state(how):
    m = CopiesItself(6, 5)
    with Hook(m, count): c = copy.deepcopy(m)
    with torch.no_grad(): c.bias.fill_(9)
    assert (how(c).bias == 9).all() and leaked_hooks(how(c)) == []

def test_tracing_by_fx_notes_nothing_and_keeps_the_hooks():
    m, inner = net(), net()
    with Hooks([m, inner, *inner], append_stats) as hooks:
        g = torch.fx.symbolic_trace(nn.Sequential(inner, nn.ReLU()))
        assert all(not h.stats[0] for h in hooks)
        g(x())   # its layers are those of `inner`, with their hooks
    assert [len(h.stats[0]) for h in hooks] == [0, 0] + [1]*5


# --- compiled models

eager = partial(torch.compile, backend='eager')

def by_hand(m, xb):
    outs = [xb]
    for layer in m: outs.append(layer(outs[-1]))
    return torch.stack([o.mean() for o in outs[1:]]).detach()

def means(hooks): return torch.stack([h.stats[0][-1] for h in hooks])
def calls(hooks): return [len(h.stats[0]) for h in hooks]

@pytest.fixture
def uncompiled():
    import torch._dynamo
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()

def compiled(m): return eager(m)
def in_place(m):
    m.compile(backend='eager')
    return m
def in_a_function(m):
    f = eager(lambda xb: m(xb)*2)
    return lambda xb: f(xb)/2
def whole_graph(m):
    if not hasattr(torch.compiler, 'set_stance'): pytest.skip('before PyTorch 2.6 that ends in its own error')
    return eager(m, fullgraph=True)

WAYS_TO_COMPILE = [compiled, in_place, in_a_function, whole_graph]

@pytest.mark.parametrize('how', WAYS_TO_COMPILE, ids=lambda f: f.__name__)
@pytest.mark.parametrize('runs', [0, 2])
def test_hooks_on_a_compiled_model_see_what_the_model_does(how, runs, uncompiled):
    m, xb = net(), x()
    c, plain = how(m), m(xb)
    for _ in range(runs): c(xb)
    for _ in range(2):   # placed, removed and placed again
        with Hooks(m, append_stats) as hooks: assert_close(c(xb), plain); c(xb)
        assert calls(hooks) == [2]*5 and leaked_hooks(m) == []
        assert_close(means(hooks), by_hand(m, xb))
        assert_close(c(xb), plain)
        assert calls(hooks) == [2]*5
    with Hooks(m, append_stats) as hooks: m.eval(); c(xb)
    assert calls(hooks) == [0]*5 and [len(h.valid_stats[0]) for h in hooks] == [1]*5

@pytest.mark.parametrize('runs', [0, 1])
def test_a_model_that_is_compiled_when_its_hooks_are_there(runs, uncompiled):
    m, xb = net(), x()
    want, hooks = by_hand(m, xb), Hooks(m, append_stats)
    for _ in range(runs): m(xb)
    c = eager(m)
    c(xb); c(xb)
    assert calls(hooks) == [2 + runs]*5
    assert_close(means(hooks), want)
    hooks.remove()
    c(xb)
    assert calls(hooks) == [2 + runs]*5

@pytest.mark.parametrize('runs', [0, 1])
def test_gradients_of_a_compiled_model(runs, uncompiled):
    m, xb = net(), x()
    with Hooks(m, grad_of_out, is_forward=False) as hooks: m(xb).square().sum().backward()
    want, c = [h.stored for h in hooks], eager(m)
    for _ in range(runs): c(xb).square().sum().backward()
    with Hooks(m, grad_of_out, is_forward=False) as hooks: c(xb).square().sum().backward()
    assert_close([h.stored for h in hooks], want)

def test_hooks_of_a_compiled_model_are_those_of_the_model_itself(uncompiled):
    m, xb = net(), x()
    c = eager(m)
    assert children(c) == children(m)
    c(xb)
    with Hooks(c, append_stats) as hooks, Hook(c, append_stats) as whole:
        c(xb)
        assert [(o.name, o.func) for o in leaked_hooks(c)] == [('', 'append_stats')] + [(str(i), 'append_stats') for i in range(5)]
    assert calls(hooks) == [1]*5 and calls([whole]) == [1] and leaked_hooks(c) == []
    with Hook(c, append_stats) as whole: m.eval(); c(xb)
    assert calls([whole]) == [0] and len(whole.valid_stats[0]) == 1

@pytest.mark.filterwarnings('ignore:The .grad attribute of a Tensor')   # dynamo looks at its inputs
def test_a_compiled_part_of_a_model(uncompiled):
    m, xb = nn.Sequential(nn.Linear(6, 6), net(), nn.ReLU()), x()
    whole = m[1]
    m[1] = eager(whole)
    m(xb)
    with Hooks(m, append_stats) as outer, Hooks(m[1], append_stats) as inner:
        m(xb)
        assert [o.name for o in leaked_hooks(m)] == ['0', '1', '1.0', '1.1', '1.2', '1.3', '1.4', '2']
    assert calls([*outer, *inner]) == [1]*8
    assert_close(means(inner), by_hand(whole, m[0](xb)))

def test_copies_of_a_compiled_model(uncompiled):
    m, xb = net(), x()
    c = eager(m)
    c(xb)
    with Hooks([c, *m], append_stats) as hooks: d = copy.deepcopy(c); d(xb)
    assert leaked_hooks(d) == [] and calls(hooks) == [0]*6

@pytest.mark.skipif(not hasattr(torch.compiler, 'set_stance'), reason='PyTorch 2.6')
def test_what_is_compiled_runs_compiled_again_when_the_last_hook_goes(uncompiled):
    runs = []
    def backend(gm, inputs): return lambda *args: runs.append(1) or gm.forward(*args)
    m, xb = net(), x()
    c = torch.compile(m, backend=backend)
    c(xb)
    assert len(runs) == 1
    a, b = Hook(m[0], append_stats), Hook(m[1], append_stats)
    c(xb); a.remove(); c(xb)
    assert len(runs) == 1 and calls([a, b]) == [1, 2]
    b.remove()
    c(xb)
    assert len(runs) == 2   # as it was compiled before
    with torch.compiler.set_stance('force_eager'):
        with Hook(m[0], count): pass
        c(xb)
    c(xb)
    assert len(runs) == 3   # what others asked for is as it was
    with pytest.raises(TypeError): Hooks([m[0], None], count)
    with pytest.raises(ValueError): Hook(nn.ReLU(inplace=True), count, is_forward=False)
    c(xb)
    assert len(runs) == 4

def test_nobody_pays_for_a_compiler_that_isn_t_used():
    code = 'if 1:\n' + """
    import sys, torch
    from torch import nn
    from minifast.hooks import Hooks, append_stats
    m, xb = nn.Sequential(nn.Linear(6, 5), nn.ReLU()), torch.randn(7, 6)
    with Hooks(m, append_stats) as hooks: m(xb)
    with Hooks(m, append_stats, is_forward=False): m(xb).sum().backward()
    assert 'torch._dynamo' not in sys.modules
    hooks = Hooks(m, append_stats)   # nobody has compiled so far
    c = torch.compile(m, backend='eager')
    c(xb); c(xb)
    assert [len(h.stats[0]) for h in hooks] == [2, 2] and hooks[0].stats[0][0] == hooks[0].stats[0][1] == m[0](xb).mean()"""
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr

@pytest.mark.filterwarnings('ignore:.torch.jit')   # deprecated
def test_where_hooks_cant_fire_that_is_said_before_anything_changes():
    m = nn.Sequential(nn.Linear(6, 5), torch.jit.script(nn.Sequential(nn.Linear(5, 4), nn.ReLU())), nn.Linear(4, 3))
    before = traces(m[::2])
    for way in (lambda: Hook(m[1], count), lambda: Hook(next(m[1].children()), count, is_forward=False), lambda: Hooks(m, count)):
        with pytest.raises(TypeError, match='in TorchScript, which calls no hooks inside: hook a module around it'): way()
    assert traces(m[::2]) == before and leaked_hooks(m) == []
    with Hooks([m, m[0], m[2]], shape) as hooks: m(x())
    assert [h.stored for h in hooks] == [(7, 3), (7, 5), (7, 3)]
    assert [calls_hooks(o) for o in m] == [True, False, True]

@pytest.mark.filterwarnings('ignore:.torch.jit')   # deprecated
def test_a_traced_model_calls_hooks_itself_and_not_inside():
    m, xb = net(), x()
    t = torch.jit.trace(m, xb)
    with Hook(t, shape) as h: t(xb)
    assert h.stored == (7, 3)
    with pytest.raises(TypeError, match='got Linear in TorchScript'): Hooks(t, shape)
    with Hooks(m, append_stats): t = torch.jit.trace(m, xb)   # the hooks stay outside
    assert_close(t(xb), m(xb)); assert 'bincount' not in str(t.inlined_graph)


# --- checkpointing

class Checkpointed(nn.Module):
    def __init__(self, reentrant): super().__init__(); self.part, self.last, self.reentrant = net(), nn.Linear(3, 2), reentrant
    def forward(self, x):
        return self.last(torch.utils.checkpoint.checkpoint(self.part, x, use_reentrant=self.reentrant))

@pytest.mark.parametrize('reentrant', [True, False])
def test_a_forward_that_runs_again_in_the_backward_counts_once(reentrant):
    m, xb = Checkpointed(reentrant), x().requires_grad_()
    m.last(m.part(xb)).square().sum().backward()
    want = [p.grad.clone() for p in m.parameters()]
    m.zero_grad()
    with Hooks(m.part, append_stats) as fwd, Hooks(m.part, grad_of_out, is_forward=False) as bwd, \
         Hooks(m.part, count, is_forward=False) as n_bwd, Hooks(m.part, count) as n_fwd, \
         Hooks(m.part, count, recomputed=True) as n_all:
        m(xb).square().sum().backward()
    assert calls(fwd) == [h.n for h in n_fwd] == [h.n for h in n_bwd] == [1]*5
    assert [h.n for h in n_all[:4]] == [2]*4   # who asks sees both; the last isn't needed again in each kind
    assert_close([p.grad for p in m.parameters()], want); assert_close(means(fwd), by_hand(m.part, xb))
    with Hooks(m.part, grad_of_out, is_forward=False) as plain: m.last(m.part(xb)).square().sum().backward()
    assert_close([h.stored for h in bwd], [h.stored for h in plain])

def test_a_checkpoint_within_one_and_two_backwards():
    class Nested(Checkpointed):
        def forward(self, x):
            def inner(x): return torch.utils.checkpoint.checkpoint(self.part, x, use_reentrant=False)
            return self.last(torch.utils.checkpoint.checkpoint(inner, x, use_reentrant=False))
    m, xb = Nested(False), x().requires_grad_()
    with Hooks(m.part, append_stats) as hooks:
        for _ in range(3): m(xb).sum().backward()
        m(xb)
    assert calls(hooks) == [4]*5

def test_in_backward():
    seen = []
    y = torch.ones(2, requires_grad=True)*2
    y.register_hook(lambda g: seen.append(in_backward()))
    y.sum().backward()
    assert seen == [True] and in_backward() is False


# --- backward

def test_backward_hooks_see_autograds_gradients():
    m, xb = net(), x().requires_grad_()
    outs = [xb]
    for layer in m: outs.append(layer(outs[-1]))
    want = torch.autograd.grad(outs[-1].square().sum(), outs)
    with Hooks(m, lambda h, mod, gi, go: (gi, go), is_forward=False) as hooks: m(xb).square().sum().backward()
    for i, h in enumerate(hooks):
        (gi,), (go,) = h.stored
        assert_close(gi, want[i]); assert_close(go, want[i+1])

def test_the_first_layer_warns_nobody():   # warnings are errors here
    m = net()
    with Hooks(m, lambda h, mod, gi, go: gi, is_forward=False) as hooks: m(x()).sum().backward()
    assert hooks[0].stored == (None,) and hooks[1].stored[0].shape == (7, 5)

def heard(m, xb):
    "What a training step of `m` warns of"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        with Hooks(m, grad_of_out, is_forward=False): m(xb).sum().backward()
        m(xb).sum().backward()
        warnings.warn('another')
    return [str(o.message) for o in caught]

def grad_of_out(h, mod, gi, go): return go

def test_the_filter_of_warnings_goes_with_the_hooks():
    m, before = net(), list(warnings.filters)
    hooks = Hooks(m, count, is_forward=False)
    assert len(warnings.filters) == len(before) + 5
    hooks[1:].remove()
    m(x()).sum().backward()   # still silent
    del hooks
    assert list(warnings.filters) == before
    with pytest.raises(ValueError), Hook(nn.ReLU(inplace=True), count, is_forward=False): pass
    with Hook(m[0], count): assert list(warnings.filters) == before   # a forward hook needs none
    assert list(warnings.filters) == before and heard(m, x()) == ['another']

def test_others_are_warned_as_before():
    m = net()
    m[0].register_full_backward_hook(lambda *a: None)
    said = heard(m, x())
    assert [o[:28] for o in said] == ['Full backward hook is firing', 'another']   # when ours are gone

def test_a_filter_that_somebody_took_away_is_no_fault():
    m = net()
    with warnings.catch_warnings(): h = Hook(m[0], count, is_forward=False)
    before = list(warnings.filters)
    h.remove()
    assert leaked_hooks(m) == [] and list(warnings.filters) == before

@pytest.mark.parametrize('hook', [Hook, Hooks])
def test_the_in_place_trap_is_explained(hook):
    m = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True))
    with pytest.raises(RuntimeError) as e, hook(m[0], count, is_forward=False): m(x())
    assert 'make the next layer with inplace=False' in str(e.value.__notes__)
    assert leaked_hooks(m) == []
    m(x()).sum().backward()

def test_a_backward_hook_on_a_layer_in_place_is_refused():
    m = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True))
    before = traces(m)
    with pytest.raises(ValueError, match='ReLU.inplace=True. changes its input in place.*inplace=False'):
        Hook(m[1], count, is_forward=False)
    with pytest.raises(ValueError): Hooks(m, count, is_forward=False)
    assert traces(m) == before
    with Hook(m[1], count) as h: m(x())
    assert h.n == 1


# --- many hooks

def test_hooks_of_a_model_are_those_of_its_children():
    m = nn.Sequential(net(), nn.ReLU())
    with Hooks(m, count) as hooks: m(x())
    assert isinstance(hooks, ListContainer) and [h.n for h in hooks] == [1, 1] and len(hooks) == 2
    with Hooks(list(m[0]), shape) as hooks: m(x())
    assert [h.stored for h in hooks] == [(7, 5), (7, 5), (7, 4), (7, 4), (7, 3)]
    with Hooks((o for o in m[0]), shape) as hooks: assert len(hooks) == 5
    with Hooks(m[0][0], shape) as hooks: m(x()); assert [h.stored for h in hooks] == [(7, 5)]
    assert len(Hooks([], count)) == 0

@pytest.mark.parametrize('idx, want', [
    (slice(1, 3), [1, 2]), (slice(None, None, -2), [4, 2, 0]), ([0, -1], [0, 4]), ([True, False]*2 + [True], [0, 2, 4]),
    (torch.tensor([False, True, False, False, True]), [1, 4]), (np.array([True]*5), [0, 1, 2, 3, 4]), ([], [])])
def test_a_part_shares_its_hooks(idx, want):
    m = net()
    hooks = Hooks(m, count)
    part = hooks[idx]
    assert type(part) is Hooks and len(part) == len(want)
    assert all(a is hooks[i] for a, i in zip(part, want))
    part.remove()
    assert [h.active for h in hooks] == [i not in want for i in range(5)]
    del part; gc.collect()
    assert len(leaked_hooks(m)) == 5 - len(want)

def test_letting_go_of_a_part_keeps_the_hooks():
    m = net()
    hooks = Hooks(m, count)
    part = hooks[:3]
    del part; gc.collect()
    assert len(leaked_hooks(m)) == 5 and len(hooks) == 5

@pytest.mark.parametrize('idx, left', [(0, [1, 2, 3, 4]), (-1, [0, 1, 2, 3]), (slice(1, 3), [0, 3, 4]), ([0, 2], [1, 3, 4]),
                                       (torch.tensor([True]*4 + [False]), [4])])
def test_deleting_removes(idx, left):
    m = net()
    hooks = Hooks(m, count)
    held = list(hooks)
    del hooks[idx]
    assert [h.active for h in held] == [i in left for i in range(5)]
    assert list(hooks) == [held[i] for i in left] and [int(o.name) for o in leaked_hooks(m)] == left

@pytest.mark.parametrize('ms, forward, exc', [([0, 1, 'no module'], True, TypeError), ([0, 1, 4], False, ValueError)])
def test_half_a_construction_leaves_nothing_even_while_the_error_is_looked_at(ms, forward, exc):
    m = nn.Sequential(*net()[:4], nn.ReLU(inplace=True))
    with pytest.raises(exc) as e: Hooks([m[o] if o in range(5) else o for o in ms], count, forward)
    assert leaked_hooks(m) == [] and e.value.__traceback__ is not None

def test_bad_indices_remove_nothing():
    m = net()
    hooks = Hooks(m, count)
    for bad in (9, [0, 9], [True]):
        with pytest.raises((IndexError, ValueError)): del hooks[bad]
    assert len(leaked_hooks(m)) == len(hooks) == 5

def test_a_long_repr_says_that_there_is_more():
    m = nn.Sequential(*[nn.ReLU() for _ in range(12)])
    with Hooks(m, count) as hooks: r = repr(hooks)
    assert r.startswith('Hooks (12 items)\n[Hook(ReLU, count), ') and r.endswith(', ...]')

def test_with_gives_the_hooks_and_keeps_what_they_noted():
    m = net()
    with Hooks(m, append_stats) as hooks: assert isinstance(hooks, Hooks); m(x())
    assert all(len(h.stats[0]) == 1 for h in hooks) and not any(h.active for h in hooks)


# --- what is still there

def test_leaked_hooks_says_where():
    m = nn.Sequential(net(), nn.ReLU())
    hooks = [Hook(m[0][2], partial(append_stats, bins=3))]   # this very line
    hooks += Hooks([m, m[1]], count, is_forward=False)   # and this one
    a, first, b = leaked_hooks(m)
    assert [(o.name, o.kind, o.func) for o in (a, first, b)] == [
        ('', 'backward', 'count'), ('0.2', 'forward', 'partial(append_stats)'), ('1', 'backward', 'count')]
    assert first.where.startswith('test_hooks.py, line ') and first.where.endswith('   # this very line')
    assert a.where == b.where and a.where.endswith('   # and this one')
    assert tuple(first) == (first.name, first.kind, first.func, first.where)

def test_the_place_is_outside_of_the_package():
    class Watching(Callback):
        def begin_fit(self): self.at = leaked_hooks(self.model)
    m = net()
    learn, run = get_runner(m, bunch(), cbs=[Watching(), type('Made', (Callback,), dict(begin_fit=make_inside, _order=-9))()])
    run.fit(0, learn)   # here
    assert [o.where.endswith('   # here') for o in run.watching.at] == [True]

def test_the_place_is_right_where_the_lesson_itself_defines_hook():
    with open(module.__file__) as f: code = f.read().replace('from .', 'from minifast.')
    lesson = {'__name__': '__main__'}
    exec(compile(code, 'cell', 'exec'), lesson)
    m = net()
    hooks = lesson['Hooks'](m, count)   # made here
    assert len(hooks) == 5 and all(o.where.endswith('   # made here') for o in lesson['leaked_hooks'](m))

INSIDE = dict(__name__='minifast.somewhere', Hook=Hook, count=count)
exec('def make_inside(self): self.hook = Hook(self.model[0], count)', INSIDE)
make_inside = INSIDE['make_inside']

def test_hooks_of_others_are_told_apart():
    m = net()
    m[0].register_forward_hook(yours)
    m[1].register_forward_pre_hook(lambda mod, inp: None)
    m[2].register_full_backward_hook(lambda *a: None)
    m[3].register_full_backward_pre_hook(yours)
    assert leaked_hooks(m) == []
    with Hook(m[0], count):
        assert len(leaked_hooks(m)) == 1
        assert [tuple(o) for o in leaked_hooks(m, foreign=True)] == [
            ('0', 'forward', 'yours', ''), ('1', 'forward pre', '<lambda>', ''), ('2', 'backward', '<lambda>', ''),
            ('3', 'backward pre', 'yours', '')]

def test_name_of():
    assert [name_of(o) for o in ('', '_orig_mod', '_orig_mod.0', '1._orig_mod.a._orig_mod.b', '1.weight', 'my_orig_mod.2')] == [
        '', '', '0', '1.a.b', '1.weight', 'my_orig_mod.2']

def test_leaked_hooks_wants_a_module():
    with pytest.raises(TypeError, match='got list'): leaked_hooks([net()])


# --- a Runner's fit

class Watch(Callback):
    "Hooks that live from begin_fit to after_fit"
    _order = -5
    def begin_fit(self): self.hooks = Hooks(self.model, append_stats)
    def after_fit(self): self.hooks.remove()

FIRST = dict(after_cancel_batch=CancelBatchException, after_cancel_epoch=CancelEpochException,
             after_cancel_train=CancelTrainException)

@pytest.mark.parametrize('exc', [CancelBatchException, CancelEpochException, CancelTrainException, KeyError, KeyboardInterrupt])
@pytest.mark.parametrize('event', EVENTS)
def test_no_end_of_a_fit_leaves_a_hook(event, exc):
    m, d = net(), bunch()
    before = traces(m)
    for _ in range(5):
        cbs = [RaiseAt(event, exc()), Watch()]
        if event in FIRST: cbs.append(type('Before', (RaiseAt,), {})('after_loss', FIRST[event]()))
        learn, run = get_runner(m, d, cbs=cbs)
        try:
            with Hooks(m, count) as hooks:
                assert len(leaked_hooks(m)) == 5
                run.fit(2, learn)
        except (KeyError, KeyboardInterrupt): pass
        assert leaked_hooks(m) == [] and traces(m) == before and not any(h.active for h in hooks)

def test_a_second_fit_and_an_error_in_model_or_loss():
    m, d = net(), bunch()
    learn, run = get_runner(m, d, cbs=[Watch()])
    for _ in range(5): run.fit(1, learn); assert leaked_hooks(m) == []
    learn.loss_func = lambda *a: 1/0
    for _ in range(5):
        with pytest.raises(ZeroDivisionError): run.fit(1, learn)
        assert leaked_hooks(m) == []
    learn.model, learn.loss_func = nn.Sequential(*m, nn.Linear(99, 3)), F.cross_entropy
    for _ in range(5):
        with pytest.raises(RuntimeError), Hooks(learn.model, count): run.fit(1, learn)
        assert leaked_hooks(learn.model) == []

class FailsAt(nn.Module):
    "Hands on what it gets, and raises `exc` at the call `n`, in the forward or in the backward"
    def __init__(self, exc, n, in_backward=False): super().__init__(); self.exc, self.n, self.in_backward = exc, n, in_backward
    def fail(self, *args): raise self.exc
    def forward(self, x):
        self.n -= 1
        if self.n == 0 and not self.in_backward: self.fail()
        if self.n == 0: x.register_hook(self.fail)
        return x

@pytest.mark.parametrize('exc', [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize('place', ['forward', 'validation', 'backward', 'loss', 'hook'])
@pytest.mark.parametrize('forward', [True, False])
def test_an_error_or_ctrl_c_in_model_loss_or_hook(exc, place, forward):
    def raises(*args): raise exc
    m, d = nn.Sequential(*net(), nn.Identity()), bunch()
    before = traces(m)
    for _ in range(5):
        if place in ('forward', 'validation', 'backward'): m[5] = FailsAt(exc, 5 if place == 'validation' else 2, place == 'backward')
        before = traces(m)
        learn, run = get_runner(m, d, loss_func=raises if place == 'loss' else F.cross_entropy, cbs=[Watch()])
        with pytest.raises(exc), Hooks(m, raises if place == 'hook' else count, forward) as hooks: run.fit(2, learn)
        assert leaked_hooks(m) == [] and traces(m) == before and not any(h.active for h in hooks)

def test_a_diverging_lr_finder():
    m, d = net(), bunch()
    before, weights = traces(m), copy.deepcopy(m.state_dict())
    for _ in range(5):
        learn, run = get_runner(m, d, cbs=[Watch(), find := LR_Find(max_iter=60, max_lr=1e9)])
        with Hooks(m, append_stats) as hooks, Hooks(m, count, False): run.fit(1, learn)
        assert 5 < len(find.losses) < 60 and len(hooks[0].stats[0]) >= len(find.losses)   # it diverged
        assert leaked_hooks(m) == [] and traces(m) == before
        assert_close(m.state_dict(), weights, rtol=0, atol=0)

def test_watching_changes_no_weight():
    res = []
    for ms in (lambda m: [], lambda m: m):
        torch.manual_seed(0)
        m = net()
        learn, run = get_runner(m, bunch(), lr=.5)
        with Hooks(ms(m), append_stats), Hooks(ms(m), append_stats, is_forward=False): run.fit(2, learn)
        res.append(m.state_dict())
    assert_close(*res, rtol=0, atol=0)

def test_training_and_validation_are_apart_and_equal_a_manual_forward():
    class Manual(Callback):
        "What every layer gives, before the step that changes it"
        _order = 9
        def begin_fit(self): self.seen = {True: [], False: []}
        def after_pred(self):
            out, row = self.xb, []
            for layer in copy.deepcopy(self.model):
                out = layer(out).detach()
                row.append([out.mean(), out.std(), out.clamp(-1, 1).histc(20, -1, 1).long(), (out.abs() <= .1).float().mean()])
            self.seen[self.in_train].append(row)
    m = net()
    learn, run = get_runner(m, bunch(26), cbs=[Manual()])
    with Hooks(m, partial(append_stats, bins=20, rng=(-1, 1), near=.1)) as hooks: run.fit(3, learn)
    for i, h in enumerate(hooks):
        for stats, in_train, n in ((h.stats, True, 12), (h.valid_stats, False, 6)):
            rows = [row[i] for row in run.manual.seen[in_train]]
            assert len(rows) == n
            for j in range(3): assert_close(torch.stack(stats[j]), torch.stack([row[j] for row in rows]))
            assert_close(get_min(h, valid=not in_train), torch.stack([row[3] for row in rows]))


# --- statistics

def noted(act, layer=None, **kw):
    "A hook after one batch of which `act` is the layer's output"
    layer = layer or nn.Identity()
    with Hook(layer, partial(append_stats, **kw)) as hook: layer(act)
    return hook

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 50), st.floats(-5, 5), st.floats(.1, 9), st.floats(.1, 6), st.integers(0, 10**6))
def test_stats_equal_numpy(n, bins, lo, width, scale, seed):
    a = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)*scale
    lo, hi = float(np.float32(lo)), float(np.float32(lo + width))
    h = noted(a, bins=bins, rng=(lo, hi), near=.3)
    (means, stds), hists, v = h.stats, h.hists, a.numpy()
    assert_close(means[0].item(), v.mean()); assert_close(stds[0].item(), v.std(ddof=int(n > 1)))
    got, clipped = hists[0].numpy(), v.clip(lo, hi)
    assert got.sum() == n and got.shape == (bins,)
    want = np.histogram(clipped, bins, (lo, hi))[0]
    edges = np.linspace(lo, hi, bins+1)
    near_edge = (np.abs(clipped[:, None] - edges).min(1) < 1e-9).sum()
    assert np.abs(got.cumsum() - want.cumsum()).max() <= near_edge
    assert (got[0] >= (v <= lo).sum()) and got[-1] >= (v >= hi).sum()

def test_stats_are_there_from_the_start_and_read_as_in_2019():
    m = net()
    with Hooks(m, append_stats) as hooks:
        assert all(len(h.stats) == 2 and list(h.stats) == [[], []] == list(h.valid_stats) and h.hists == [] for h in hooks)
        for _ in range(4): m(x())
    for h in hooks:
        ms, ss = h.stats
        hi = h.hists
        assert len(ms) == len(ss) == len(hi) == 4 and isinstance(ms, list) and isinstance(h.stats, tuple)
        assert ms[0].shape == () and hi[0].shape == (40,) and not ms[0].requires_grad and ss[0].grad_fn is None
        assert torch.stack(h.stats[2]).t().float().log1p().equal(get_hist(h))
    plot_layers([h.stats[0] for h in hooks], ylabel='mean')
    plot_hists(get_hist(hooks[0], log=False))

def test_cells_of_2019():
    def append_pair(hook, mod, inp, outp):
        if not hasattr(hook, 'stats'): hook.stats = ([], [])
        means, stds = hook.stats
        means.append(outp.data.mean()); stds.append(outp.data.std())
    m = net()
    hooks = [Hook(l, append_pair) for l in children(m[:4])]
    m(x())
    for h in hooks:
        assert len(h.stats[0]) == 1
        h.remove()
    assert leaked_hooks(m) == []
    with Hooks(m, append_stats) as hooks: m(x())
    def get_min_2019(h): h1 = torch.stack(h.stats[2]).t().float(); return h1[:2].sum(0)/h1.sum(0)
    assert get_min_2019(hooks[1]).shape == (1,)

def test_the_source_s_cells_run_as_they_are_written():
    m = net()
    with Hooks(m, append_stats) as hooks:
        for _ in range(3): m(x())
        for h in hooks:
            ms, ss = h.stats
            assert [len(o) for o in (ms, ss, h.hists)] == [3]*3 and h.hists[0].sum() > 0
    def append_triple(hook, mod, inp, outp):
        if not hasattr(hook, 'stats'): hook.stats = ([], [], [])
        means, stds, hists = hook.stats
        means.append(outp.detach().mean().cpu()); stds.append(outp.detach().std().cpu())
        hists.append(outp.detach().cpu().histc(40, 0, 10))
    def append_hists(hook, mod, inp, outp):
        if not hasattr(hook, 'hists'): hook.hists = []
        hook.hists.append(outp.detach().histc(40, 0, 10))
    out = torch.tensor([-1., .1, .3, .6, 3., 12.])
    want = torch.tensor([1., 1., 1.] + [0.]*9 + [1.] + [0.]*27)   # the source's histc drops -1 and 12
    for f in (append_triple, append_hists):
        layer = nn.Identity()
        with Hook(layer, f) as h: layer(out); layer(out*0)
        assert_close(get_hist(h, log=False)[:, 0], want); assert_close(get_hist(h), torch.log(1 + get_hist(h, log=False)))
        assert_close(get_min(h), torch.tensor([.5, 1.]))   # the two lowest of 40 parts, as the source reads them
        with pytest.raises(ValueError, match='histograms alone'): get_min(h, dead=True)
        with pytest.raises(ValueError, match='without a validation batch'): get_min(h, valid=True)

def test_histograms_in_more_parts_than_a_byte_counts():
    a = torch.linspace(0, 10, 30_001)[:-1]
    h = noted(a, bins=1000)
    assert h.hists[0].sum() == 30_000 and h.hists[0].shape == (1000,) and (h.hists[0] - 30).abs().max() <= 1

def test_a_function_around_append_stats_works():
    hook = SimpleNamespace()
    append_stats(hook, nn.ReLU(), None, torch.ones(3))
    assert hook.stats[0][0] == 1

@pytest.mark.parametrize('out', [lambda a: (a, None), lambda a: [None, (a,)], lambda a: {'out': a, 'b': 1}, lambda a: {'x': {'y': a}}])
def test_the_first_tensor_counts(out):
    a = torch.randn(50)
    assert_close(noted(out(a)).stats[0][0], a.mean())

def test_lstm():
    m = nn.LSTM(6, 4)
    with Hook(m, append_stats) as h: out, _ = m(torch.randn(5, 2, 6))
    assert_close(h.stats[1][0], out.std())

def test_first_tensor():
    a, b = torch.ones(2), nn.Parameter(torch.zeros(2))
    for o in (a, (a, b), [None, (), [a, b]], {'n': 3, 'x': {'y': (a,)}, 'z': b}): assert first_tensor(o) is a
    for o in (None, 3, 'text', [], {}, (None, [{}]), SimpleNamespace(x=a)): assert first_tensor(o) is None
    assert first_tensor((b, a)) is b and first_tensor({'none': None, 'b': b}) is b

@pytest.mark.parametrize('bad', [None, 'text', (), {'a': 1}])
def test_no_tensor_is_said(bad):
    with pytest.raises(TypeError, match='no tensor in what came out, ' + type(bad).__name__): noted(bad)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_dtypes(dtype):
    a = (torch.randn(20_000)*3 + 1).to(dtype)
    h = noted(a, rng=(-9, 9), near=.5)
    wide = a.double()
    assert_close(h.stats[0][0].double(), wide.mean(), rtol=1e-4, atol=1e-4)
    assert_close(h.stats[1][0].double(), wide.std(), rtol=1e-4, atol=1e-4)
    assert h.stats[2][0].sum() == 20_000 and get_min(h).dtype == torch.float32
    assert_close(get_min(h)[0].double(), (wide.abs() <= .5).double().mean(), rtol=0, atol=1e-6)

def test_no_overflow_in_half_precision():
    h = noted(torch.full((70_000,), 60_000.).half(), rng=(0, 1))
    assert_close(h.stats[0][0], torch.tensor(60_000.)); assert h.stats[1][0] < .1

@pytest.mark.parametrize('v, bar', [(-99., 0), (-1., 0), (-.99, 0), (-.4, 3), (0., 5), (.99, 9), (1., 9), (math.inf, 9), (-math.inf, 0)])
def test_every_value_has_its_bar(v, bar):
    h = noted(torch.full((13,), v), bins=10, rng=(-1, 1))
    assert h.stats[2][0].tolist() == [13*(i == bar) for i in range(10)]

def test_nan_shows_in_the_mean_and_not_in_the_bars():
    h = noted(torch.tensor([1., math.nan, 3.]))
    assert h.stats[0][0].isnan() and h.stats[2][0].sum() == 2

def test_counts_are_exact_beyond_what_float32_counts():
    n = 2**24 + 2**20 + 3
    h = noted(torch.zeros(n, dtype=torch.float16), bins=2, rng=(-1, 1))
    assert h.stats[2][0].tolist() == [0, n] and get_min(h).item() == 1.

def test_one_activation():
    h = noted(torch.tensor([2.]))
    assert h.stats[0][0] == 2 and h.stats[1][0] == 0

@pytest.mark.parametrize('kw', [dict(bins=0), dict(rng=(1, 1)), dict(rng=(2, 1)), dict(rng=(0, math.nan))])
def test_a_bad_histogram_is_refused(kw):
    with pytest.raises(ValueError, match='give 1 bin or more, and a range'): noted(torch.ones(3), **kw)

def ragged(): return torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)])
def quantized(): return torch.quantize_per_tensor(torch.ones(3), .1, 0, torch.quint8)

ODD = dict(nested=ragged, sparse_coo=lambda: torch.eye(3).to_sparse(), sparse_csr=lambda: torch.eye(3).to_sparse_csr(), quint8=quantized,
           complex64=lambda: torch.ones(3, dtype=torch.complex64), complex128=lambda: torch.ones(3, dtype=torch.complex128),
           float8_e5m2=lambda: torch.ones(3).to(torch.float8_e5m2),
           _mkldnn=lambda: torch.ones(2, 3).to_mkldnn())

@pytest.mark.filterwarnings('ignore:The PyTorch API of nested tensors', 'ignore:Sparse CSR tensor support', 'ignore:torch.ao', 'ignore:.*quantiz')
@pytest.mark.parametrize('what', ODD)
def test_what_cant_be_measured_is_passed_over_and_said_once(what):
    a = ODD[what]()
    layer = nn.Identity()
    with Hook(layer, append_stats) as h:
        with pytest.warns(UserWarning, match=f'append_stats notes nothing of a Identity, whose output is {what}: it measures plain') as said:
            for _ in range(3): assert layer(a) is a
        assert len(said) == 1 and list(h.stats) == [[], []] and h.hists == []
        layer(torch.ones(3))
    assert unmeasurable(a) == what and len(h.stats[0]) == 1 and get_min(h).tolist() == [0.]

@pytest.mark.parametrize('a', [torch.tensor([True, False, False, True]), torch.tensor([0, 3, -2]), torch.tensor([0, 200], dtype=torch.uint8),
                               torch.zeros(2, 3).t()[1:], torch.ones(4).expand(3, 4), nn.Parameter(torch.ones(3)), torch.tensor(3.)])
def test_whole_numbers_and_odd_strides_are_measured(a):
    h, wide = noted(a, rng=(-9, 300)), a.detach().double()
    assert unmeasurable(a) == '' and h.hists[0].sum() == a.numel()
    assert_close(h.stats[0][0].double(), wide.mean()); assert_close(get_min(h, dead=True)[0].double(), (wide == 0).double().mean())

def test_a_layer_in_place_behind_changes_nothing():
    m, xb = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True)), x()
    want = m[0](xb)
    with Hook(m[0], append_stats) as h: m(xb)
    assert_close(h.stats[0][0], want.mean())

def test_no_transfer_and_no_graph_in_a_batch():
    class Spy(TorchDispatchMode):
        def __init__(self): super().__init__(); self.ops = []
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            self.ops.append(str(f)); return f(*args, **(kwargs or {}))
    m = net()
    with Hooks(m, append_stats) as hooks, Spy() as spy: m(x())
    assert 'aten.bincount.default' in spy.ops
    assert not [o for o in spy.ops if 'local_scalar' in o or 'item' in o or 'nonzero' in o and 'count' not in o]
    held = [t for h in hooks for o in (*h.stats, h.hists, h.stats.near, h.stats.dead) for t in o]
    assert len(held) == 5*5 and not any(t.requires_grad or t.grad_fn for t in held)
    assert all(t.untyped_storage().nbytes() <= 40*8 for t in held)

def test_what_lies_elsewhere_comes_in_one_transfer_a_list(monkeypatch):
    transfers = []
    class Away:
        device = SimpleNamespace(type='cuda')
        def __init__(self, v): self.v = v
    class Stack(list):
        def cpu(self): transfers.append(len(self)); return [torch.tensor(o.v) for o in self]
    stack = torch.stack
    h = noted(torch.ones(3))
    h.stats.add(*(Away(float(i)) for i in range(5)))
    h.stats.add(*(Away(10.+i) for i in range(5)))
    assert transfers == []
    with monkeypatch.context() as mp:
        mp.setattr(module.torch, 'stack', lambda ts: Stack(ts) if isinstance(ts[0], Away) else stack(ts))
        assert h.stats[0] == [1., 0., 10.]
        assert transfers == [2]*5
    assert h.stats[1] == [0., 1., 11.] and h.stats.near == [0., 3., 13.] and len(transfers) == 5
    assert get_min(h).tolist() == [0., 3., 13.] and get_min(h, dead=True).tolist() == [0., 4., 14.]

def test_histograms_side_by_side():
    layer = nn.Identity()
    with Hook(layer, partial(append_stats, bins=5, rng=(0, 5))) as h:
        for v in (.5, 1.5, 4.5): layer(torch.full((9,), v))
    counts = get_hist(h, log=False)
    assert counts.shape == (5, 3) and counts.dtype == torch.float32
    assert counts.nonzero().tolist() == [[0, 0], [1, 1], [4, 2]] and counts.max() == 9
    assert_close(get_hist(h), torch.log(1 + counts))

def test_before_a_batch_and_with_another_function():
    h = Hook(nn.ReLU(), append_stats)
    for f in (get_hist, get_min):
        with pytest.raises(ValueError, match='without a training batch: make it with append_stats'): f(h)
        with pytest.raises(ValueError, match='without a validation batch'): f(noted(torch.ones(3)), valid=True)
        with pytest.raises(ValueError, match='append_stats'): f(Hook(nn.ReLU(), shape))

def test_validation_is_read_with_valid():
    layer = nn.Identity()
    with Hook(layer, append_stats) as h: layer(torch.ones(4)); layer.eval()(torch.zeros(4)); layer(torch.zeros(4))
    assert get_min(h).tolist() == [0.] and get_min(h, valid=True).tolist() == [1., 1.]
    assert get_hist(h).shape == (40, 1) and get_hist(h, valid=True).shape == (40, 2)

RECTIFIERS = dict(relu=nn.ReLU(), general=GeneralRelu(), shifted=GeneralRelu(sub=.4), cut=GeneralRelu(sub=.4, maxv=6.),
                  plain_leak=GeneralRelu(leak=0, sub=.4), below=GeneralRelu(sub=.4, maxv=-1.),
                  hardtanh=nn.Hardtanh(-.1, 5.), relu6=nn.ReLU6())

def test_floor_of():
    assert [floor_of(o) for o in RECTIFIERS.values()] == [0, 0, -.4, -.4, -.4, -1, -.1, 0]
    for act in (nn.LeakyReLU(), nn.PReLU(), nn.RReLU(), nn.ELU(), nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(),
                GeneralRelu(leak=.1, sub=.4)):
        assert floor_of(act) is None and floor_of(nn.Sequential(nn.ReLU(), act)) is None
    assert floor_of(nn.Sequential(nn.ELU(), nn.Sequential(nn.Linear(2, 2), nn.Hardtanh()))) == -1
    assert floor_of(nn.Linear(2, 2)) == floor_of(nn.Sigmoid()) == 0

def test_zeros_by_chance_are_no_death():
    drop = nn.Dropout(.5)
    with Hook(drop, append_stats) as h: drop(torch.ones(1000))
    assert get_min(h, dead=True).tolist() == [0.] and get_min(h) > .3

@pytest.mark.parametrize('act', RECTIFIERS.values(), ids=RECTIFIERS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('block', [False, True])
def test_a_dead_layer_is_dead_whatever_its_floor(act, dtype, block):
    layer = nn.Sequential(nn.Identity(), act) if block else act
    with Hook(layer, append_stats) as h:
        for below in (100, 50, 0):
            layer(torch.cat([-torch.rand(below) - .1, torch.full((100-below,), 3.)]).to(dtype))
    want = [1., 1., 1.] if act is RECTIFIERS['below'] else [1., .5, 0.]
    assert get_min(h).tolist() == get_min(h, dead=True).tolist() == want

@pytest.mark.parametrize('act', [GeneralRelu(leak=.1), GeneralRelu(leak=.1, sub=.4), nn.LeakyReLU(), nn.Identity()])
def test_without_a_floor_nothing_is_dead(act):
    with Hook(act, partial(append_stats, near=.05)) as h: out = act(torch.linspace(-2, 2, 1000))
    assert get_min(h, dead=True).tolist() == [0.]
    assert_close(get_min(h)[0], (out.abs() <= .05).float().mean())
    assert 0 < get_min(h).item() < .6

def test_near_and_floor_can_be_given():
    a = torch.tensor([-1., -1., -.5, 0., .005, .02, .4, 3.])
    for kw, near, dead in (({}, 2/8, 1/8), (dict(near=.02), 3/8, 1/8), (dict(near=0), 1/8, 1/8), (dict(near=.4), 4/8, 1/8),
                           (dict(floor=-1.), 4/8, 2/8), (dict(floor=-1, near=5), 1., 2/8), (dict(floor=math.nan), 2/8, 0.)):
        h = noted(a, **kw)
        assert (get_min(h).item(), get_min(h, dead=True).item()) == (near, dead), kw

def test_near_zero_goes_by_value_and_not_by_bars():
    for kw in (dict(), dict(bins=1), dict(rng=(-7, 7)), dict(bins=3, rng=(50, 60))):
        assert get_min(noted(torch.tensor([0., .009, .2, .4]), **kw)).tolist() == [.5]


def test_what_all_of_them_keep():
    with Hooks(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), lambda hook, mod, inp, outp: tuple(outp.shape)) as hooks:
        assert hooks.stored == [None, None]
    m = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    with Hooks(m, lambda hook, mod, inp, outp: tuple(outp.shape)) as hooks: m(torch.zeros(4, 3))
    assert hooks.stored == [(4, 2), (4, 2)] and hooks[1:].stored == [(4, 2)]


# --- what a Hook is made of, and the lesson's small one

class Plain:
    "The least that place_hook asks for"
    is_forward, recomputed, called_as = True, False, 'f(…)'
    def __init__(self, f): self.f = f

def test_place_hook_with_an_object_of_ones_own():
    m, plain = net(), Plain(shape)
    before = traces(m)
    undo = place_hook(m[0], plain)
    m(x())
    assert plain.stored == (7, 5) and undo.alive and [o.where for o in leaked_hooks(m)] == [', line 0: ']
    undo(); undo()
    assert not undo.alive and traces(m) == before
    undo = place_hook(m[0], plain)
    del plain
    assert not undo.alive and traces(m) == before

def test_a_call_that_a_backward_still_holds_does_nothing_once_it_is_undone():
    m, plain = net(), Plain(count)
    plain.is_forward = False
    undo = place_hook(m[2], plain)
    loss = m(x()).sum()
    undo()
    loss.backward()
    assert not hasattr(plain, 'n') and not hasattr(plain, 'stored')

def test_made_at_passes_over_the_package_and_one_class():
    class Mine:
        def __init__(self): self.where = made_at(), made_at(Mine)
    inner, outer = Mine().where   # here
    lines = Path(__file__).read_text(encoding='utf-8').split('\n')
    assert inner[0] == outer[0] == __file__
    assert 'self.where =' in lines[inner[1] - 1] and lines[outer[1] - 1].endswith('# here')

def test_where_a_hook_was_made_can_be_said():
    m = net()
    hooks = [Hook(m[0], count, where=('a/b.py', 3)), *Hooks(m[1:3], count, where=('c.py', 4))]
    assert len(hooks) == 3 and [o.where for o in leaked_hooks(m)] == ['b.py, line 3: ', 'c.py, line 4: ', 'c.py, line 4: ']

def test_only_the_error_in_place_gets_a_note():
    e = RuntimeError('Output 0 of BackwardHookFunctionBackward is a view and is being modified inplace')
    other = RuntimeError('another')
    for o in (e, other, None): explain_in_place(o)
    assert 'inplace=False' in e.__notes__[0] and not hasattr(other, '__notes__')

def test_the_small_hook_gives_the_stats_of_the_exported_one():
    SmallHook, small_stats = small('06a_hooks', 'SmallHook'), small('06a_hooks', 'small_stats')
    learn, run = get_runner(m := net(), bunch(), lr=.5)
    mine = [SmallHook(layer, small_stats) for layer in m]
    with Hooks(m, append_stats) as hooks: run.fit(3, learn)
    for a, b in zip(mine, hooks, strict=True):
        assert len(a.means) == len(a.stds) == len(a.hists) == 9 and not any(o.requires_grad for o in a.means)
        assert_close(a.means, b.stats[0]); assert_close(a.stds, b.stats[1])
        counts = torch.stack(a.hists).t()
        assert (counts - get_hist(b, log=False)).abs().sum() <= 2 and counts.shape == (40, 9) and (counts.sum(0) > 0).all()
    for h in mine: h.remove()
    assert not any(o._forward_hooks for o in m)

def test_the_small_hook_keeps_stored_and_leaves_the_output():
    SmallHook, m, xb = small('06a_hooks', 'SmallHook'), net(), x()
    want = m(xb)
    with SmallHook(m[0], shape) as hook: assert_close(m(xb), want, rtol=0, atol=0)
    assert hook.stored == (7, 5)
    m(x(3))
    assert hook.stored == (7, 5)   # it is gone
