"norm and what all norms share: against PyTorch's, and running batch norm against its definition"
import copy
import math
import pickle
from functools import partial

import pytest
import torch
from helpers import small
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.testing import assert_close

from minifast.core import set_seed
from minifast.init import conv_layer
from minifast.norm import BatchNorm, RunningBatchNorm
from minifast.norms import GroupNorm, InstanceNorm, LayerNorm

TOL = {torch.float64: dict(rtol=0, atol=1e-8), torch.float32: dict(rtol=1e-5, atol=1e-5)}
SHAPES = [(5, 6), (5, 6, 7), (5, 6, 3, 4), (2, 6, 3, 2, 4)]   # sizes all different, H≠W
MAPS = SHAPES[1:]


def theirs_bn(shape, **kw): return {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)](
    shape[1], **kw)
def theirs_in(shape, **kw): return {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}[len(shape)](
    shape[1], affine=True, **kw)

def pairs(shape):
    "name -> (ours, PyTorch's), for inputs of `shape`"
    nf = shape[1]
    res = {'batch': (BatchNorm(nf), theirs_bn(shape)), 'group': (GroupNorm(2, nf), nn.GroupNorm(2, nf)),
           'one group': (GroupNorm(1, nf), nn.GroupNorm(1, nf)),
           'layer, last': (LayerNorm(shape[-1]), nn.LayerNorm(shape[-1])),
           'layer, sample': (LayerNorm(shape[1:]), nn.LayerNorm(shape[1:]))}
    if len(shape) > 2: res['instance'] = InstanceNorm(nf), theirs_in(shape)
    return res
ALL = [(s, k) for s in SHAPES for k in pairs(s)]

def draw_params(m, seed=0):
    "Parameters that aren't 0 or 1"
    set_seed(seed)
    for p in m.parameters(): nn.init.uniform_(p, .3, 1.7)
    return m

def data(shape, dtype=torch.float32, mean=3., std=2.): return torch.randn(shape, dtype=dtype)*std + mean

def both(a, b, x, up):
    "Outputs and gradients of `a` and `b`"
    res = []
    for m in (a, b):
        xi = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = m(xi)
        ps = list(m.parameters())
        res.append((y.detach(), *torch.autograd.grad(y, [xi, *ps], up.to(y.dtype))))
    return res

def assert_same(a, b, x, tol):
    for mine, theirs in zip(*both(a, b, x, torch.randn(x.shape, dtype=x.dtype))): assert_close(mine, theirs, **tol)


# --- the small one of the lesson

@pytest.mark.parametrize('dtype', TOL)
def test_the_small_batch_norm_is_pytorchs(dtype):
    "Forward, backward, running statistics, in training and in evaluation; and so is ours"
    others = nn.BatchNorm2d(6), BatchNorm(6)
    for b in others:
        a = draw_params(small('07_batchnorm', 'SmallBatchNorm')(6)).to(dtype)
        b.to(dtype).load_state_dict(a.state_dict(), strict=False)
        for step in range(3):
            assert_same(a, b, data((5, 6, 3, 4), dtype, mean=step, std=step+.5), TOL[dtype])
            for k, v in a.state_dict().items(): assert_close(v, b.state_dict()[k], **TOL[dtype])
        a.eval(); b.eval()
        before = copy.deepcopy(a.state_dict())
        assert_same(a, b, data((1, 6, 2, 3), dtype), TOL[dtype])
        assert_close(a.state_dict(), before, rtol=0, atol=0)

def test_the_small_batch_norm_trains_as_pytorchs():
    "Three steps of a small network: the same weights"
    ends = []
    for norm in (small('07_batchnorm', 'SmallBatchNorm'), nn.BatchNorm2d, BatchNorm):
        set_seed(0)
        m = nn.Sequential(conv_layer(1, 4, norm=norm), conv_layer(4, 8, norm=norm), nn.Flatten(), nn.Linear(8*9, 3)).double()
        opt = torch.optim.SGD(m.parameters(), lr=.1)
        for _ in range(3):
            m(data((8, 1, 9, 9), torch.float64)).square().mean().backward()
            opt.step()
            opt.zero_grad()
        ends.append([*m.parameters(), m[1][2].running_mean, m[1][2].running_var])
    for other in ends[1:]: assert_close(other, ends[0], rtol=0, atol=1e-9)


# --- against PyTorch

@pytest.mark.parametrize('dtype', TOL)
@pytest.mark.parametrize('shape, kind', ALL)
def test_forward_gradients_buffers_over_steps_then_eval(shape, kind, dtype):
    a, b = pairs(shape)[kind]
    b.load_state_dict(draw_params(a).state_dict())
    a, b = a.to(dtype), b.to(dtype)
    for step in range(3):
        assert_same(a, b, data(shape, dtype, mean=step, std=step+.5), TOL[dtype])
        for (k, p), q in zip(a.named_buffers(), b.buffers()): assert_close(p, q, **TOL[dtype], msg=k)
    a.eval(); b.eval()
    assert_same(a, b, data(shape, dtype), TOL[dtype])
    assert [*a.state_dict()] == [*b.state_dict()]

@pytest.mark.parametrize('kw', [dict(affine=False), dict(mom=None), dict(mom=.7, eps=.3), dict(mom=1.), dict(mom=0.)], ids=str)
@pytest.mark.parametrize('dtype', TOL)
def test_batch_norm_settings(kw, dtype):
    names = dict(mom='momentum')
    a, b = BatchNorm(6, **kw), nn.BatchNorm2d(6, **{names.get(k, k): v for k, v in kw.items()})
    a, b = draw_params(a, 1).to(dtype), draw_params(b, 1).to(dtype)
    for step in range(4): assert_same(a, b, data((5, 6, 3, 4), dtype, mean=step), TOL[dtype])
    assert_close(a.state_dict(), b.state_dict(), **TOL[dtype])
    a.eval(); b.eval()
    assert_same(a, b, data((5, 6, 3, 4), dtype), TOL[dtype])

@pytest.mark.parametrize('make', [lambda: BatchNorm(6), lambda: LayerNorm(), lambda: LayerNorm(4), lambda: LayerNorm((6, 3, 4)),
    lambda: GroupNorm(2, 6), lambda: InstanceNorm(6), lambda: InstanceNorm(6, affine=False)])
def test_gradcheck(make):
    m = draw_params(make()).double()
    params = [p.detach().clone().requires_grad_() for p in m.parameters()]
    def f(x, *ps): return torch.func.functional_call(m, dict(zip(['weight', 'bias'], ps)), (x,))
    assert gradcheck(f, [data((3, 6, 3, 4), torch.float64).requires_grad_(), *params])

def test_only_what_needs_a_gradient_gets_one():
    for m in (BatchNorm(6), GroupNorm(2, 6), RunningBatchNorm(6)):
        y = m(data((4, 6, 3, 4)))   # the first layer's input needs none
        y.square().sum().backward()
        assert m.weight.grad.isfinite().all() and m.bias.grad is not None
        m.requires_grad_(False)
        x = data((4, 6, 3, 4)).requires_grad_()
        m(x).square().sum().backward()
        assert x.grad is not None

def penalty(m, x):
    "A loss with a penalty on the gradient of the input: the gradients of x and of all parameters"
    x = x.clone().requires_grad_()
    y = m(x)
    g, = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    return torch.autograd.grad(y.sin().sum() + (g.flatten(1).norm(dim=1) - 1).square().sum(), [x, *m.parameters()])

@pytest.mark.parametrize('shape, kind', ALL)
@pytest.mark.parametrize('dtype', TOL)
def test_a_gradient_penalty_is_pytorchs(shape, kind, dtype):
    a, b = (m.to(dtype) for m in pairs(shape)[kind])
    b.load_state_dict(draw_params(a).state_dict())
    for _ in range(2):   # the buffers move on
        for mine, theirs in zip(penalty(a, x := data(shape, dtype)), penalty(b, x)):
            assert_close(mine, theirs, rtol=1e-8 if dtype == torch.float64 else 2e-2, atol=1e-8 if dtype == torch.float64 else 2e-2)

@pytest.mark.parametrize('make', [lambda: BatchNorm(4), lambda: LayerNorm(), lambda: LayerNorm(3), lambda: LayerNorm((4, 2, 3)),
    lambda: GroupNorm(2, 4), lambda: InstanceNorm(4), lambda: InstanceNorm(4, affine=False), lambda: RunningBatchNorm(4), lambda: BatchNorm(4).eval()])
def test_gradgradcheck(make):
    m = draw_params(make()).double()
    kept = {k: v.clone() for k, v in m.named_buffers()}
    params = [p.detach().clone().requires_grad_() for p in m.parameters()]
    def f(x, *ps):
        for k, v in m.named_buffers(): v.copy_(kept[k])   # as if it were the first batch
        return torch.func.functional_call(m, dict(zip(['weight', 'bias'], ps)), (x,))
    assert gradgradcheck(f, [data((3, 4, 2, 3), torch.float64).requires_grad_(), *params])

def test_gradgradcheck_of_running_batch_norm_in_mid_training():
    m = draw_params(RunningBatchNorm(4)).double()
    for _ in range(4): m(data((9, 4, 2, 3), torch.float64, 1., 3.))
    kept = {k: v.clone() for k, v in m.named_buffers()}
    def f(x):
        for k, v in m.named_buffers(): v.copy_(kept[k])
        return m(x)
    assert gradgradcheck(f, [data((3, 4, 2, 3), torch.float64).requires_grad_()])

def test_third_derivatives():
    "Against the formula itself: PyTorch 2.13 leaves something out there"
    x = data((4, 6), torch.float64)
    def formula(dim):
        def f(v):
            d = v - v.mean(dim, keepdim=True)
            return d/((d*d).mean(dim, keepdim=True) + 1e-5).sqrt()
        return f
    def third(m):
        v = x.clone().requires_grad_()
        y = m(v).pow(4).sum()
        for _ in range(3): y = torch.autograd.grad(y, v, create_graph=True)[0].sin().sum()
        return y.detach()
    for m, dim in ((BatchNorm(6), 0), (LayerNorm(6), 1)): assert_close(third(m.double()), third(formula(dim)))

def test_second_derivatives_of_low_precision_and_of_parameters_alone():
    for m in (BatchNorm(6), GroupNorm(2, 6), RunningBatchNorm(6)):
        grads = penalty(m, data((4, 6, 3, 4)).bfloat16())
        assert grads[0].dtype == torch.bfloat16 and grads[1].dtype == torch.float32 and all(g.isfinite().all() for g in grads)
        y = m(data((4, 6, 3, 4)))   # x needs none
        g = torch.autograd.grad(y.pow(3).sum(), [m.weight, m.bias], create_graph=True)
        (g[0].square().sum() + g[1].square().sum()).backward()
        assert m.weight.grad.isfinite().all()
    m, x = GroupNorm(2, 6).requires_grad_(False), data((4, 6, 3, 4)).requires_grad_()
    torch.autograd.grad(m(x).pow(3).sum(), x, create_graph=True)[0].square().sum().backward()
    assert x.grad.isfinite().all()

OF_SAMPLES = [(s, k) for s, k in ALL if k != 'batch']

@pytest.mark.filterwarnings('ignore:.torch.jit:DeprecationWarning')   # PyTorch's own
@pytest.mark.parametrize('shape, kind', OF_SAMPLES)
def test_torch_func(shape, kind):
    "Gradients of each sample, derivatives forward and nested, and a batch of batches"
    a, b = (m.double() for m in pairs(shape)[kind])
    b.load_state_dict(draw_params(a).state_dict())
    x, v = data((3, *shape), torch.float64), data((3, *shape), torch.float64)
    def by_sample(m):
        def loss(ps, x): return functional_call(m, ps, (x[None],)).pow(3).sum()
        return vmap(grad(loss), (None, 0))(dict(m.named_parameters()), x[0])
    assert_close(by_sample(a), by_sample(b))
    for f in (lambda m: vmap(m)(x), lambda m: jvp(m, (x[0],), (v[0],)), lambda m: vmap(lambda x, v: jvp(m, (x,), (v,)))(x, v),
              lambda m: grad(lambda x: grad(lambda x: m(x).pow(3).sum())(x).sin().sum())(x[0]), lambda m: vjp(m, x[0])[1](v[0]),
              lambda m: jvp(grad(lambda x: m(x).pow(3).sum()), (x[0],), (v[0],))):
        assert_close(f(a), f(b))
    assert vmap(a.bfloat16())(x.bfloat16()).dtype is torch.bfloat16

@pytest.mark.filterwarnings('ignore:.torch.jit:DeprecationWarning')   # PyTorch's own
def test_forward_mode():
    for shape, kind in [((5, 6, 3, 4), k) for k in pairs((5, 6, 3, 4))]:
        a, b = (m.double() for m in pairs(shape)[kind])
        b.load_state_dict(draw_params(a).state_dict())
        x, v = data(shape, torch.float64), data(shape, torch.float64)
        def tangents(m):
            with forward_ad.dual_level(): return [t.clone() for t in forward_ad.unpack_dual(m(forward_ad.make_dual(x, v)))]
        assert_close(tangents(a), tangents(b)); assert_close(a.state_dict(), b.state_dict())
        x.requires_grad_()
        assert a(x).grad_fn is not None

@pytest.mark.filterwarnings('ignore:.torch.jit:DeprecationWarning')   # PyTorch's own
def test_norms_with_averages_say_that_torch_func_cant_train_them():
    x = data((4, 6, 3, 4))
    for m in (BatchNorm(6), RunningBatchNorm(6)):
        was = copy.deepcopy(m.state_dict())
        for f in (lambda: vmap(m)(x[None]), lambda: grad(lambda x: m(x).sum())(x), lambda: jvp(m, (x,), (x,))):
            with pytest.raises(RuntimeError, match="can't note averages inside of a transform of torch.func.*call eval.*GroupNorm"): f()
        assert_close(m.state_dict(), was, rtol=0, atol=0)
        m.eval()
        assert_close(vmap(m)(x[None])[0], m(x)); assert grad(lambda x: m(x).pow(2).sum())(x).shape == x.shape
    m = RunningBatchNorm(6)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match='no forward-mode derivative in training: call eval'): m(forward_ad.make_dual(x, x))
    assert m.count == 0

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('make', [lambda: BatchNorm(6), lambda: LayerNorm(), lambda: GroupNorm(2, 6), lambda: InstanceNorm(6), lambda: RunningBatchNorm(6)])
def test_compiled_in_one_graph(make):
    torch.compiler.reset()
    m, x = draw_params(make()), data((4, 6, 3, 4))
    newer = hasattr(torch.compiler, 'set_stance')   # an older one breaks the graph here
    c = torch.compile(copy.deepcopy(m), backend='eager', fullgraph=newer)
    for _ in range(2): assert_close(c(x), m(x))
    assert_close(dict(c._orig_mod.named_buffers()), dict(m.named_buffers()))
    c(x.requires_grad_()).pow(2).sum().backward()
    g, x.grad = x.grad, None
    m(x).pow(2).sum().backward()
    assert_close(g, x.grad)

@pytest.mark.parametrize('kind', pairs((5, 6, 3, 4)))
def test_channels_last(kind):
    x = data((5, 6, 3, 4)).to(memory_format=torch.channels_last)
    a, b = pairs(x.shape)[kind]
    b.load_state_dict(draw_params(a).state_dict())
    assert_same(a, b, x, TOL[torch.float32])
    if 'layer' not in kind: assert a(x).is_contiguous(memory_format=torch.channels_last)
    up = data(x.shape, mean=0.).to(memory_format=torch.channels_last)   # and a gradient that lies otherwise than x
    for mine, theirs in zip(*both(a, b, x.contiguous(), up)): assert_close(mine, theirs, **TOL[torch.float32])

@pytest.mark.parametrize('kind', pairs((5, 6, 3, 4)))
def test_a_slice_of_something_larger(kind):
    x = data((5, 8, 6, 4))[:, 1:7, ::2]
    a, b = pairs(x.shape)[kind]
    assert_same(a, b, x, TOL[torch.float32])

@pytest.mark.parametrize('low', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('kind', [*pairs((5, 6, 3, 4)), 'running'])
def test_autocast_and_low_precision_inputs(kind, low):
    a = RunningBatchNorm(6) if kind == 'running' else pairs((5, 6, 3, 4))[kind][0]
    draw_params(a)
    x = data((5, 6, 3, 4), mean=100.).to(low)
    exact = copy.deepcopy(a)(x.float())
    with torch.autocast('cpu', dtype=torch.bfloat16): y = a(x)
    assert y.dtype == low
    assert_close(y, exact.to(low), rtol=0, atol=.02)
    y.float().square().sum().backward()
    assert a.weight.grad.dtype == torch.float32 and a.weight.grad.isfinite().all()

def test_sums_over_low_precision_are_made_in_float32():
    m = BatchNorm(1)
    m(data((10, 1, 20, 15)).bfloat16()).float().sum().backward()
    assert m.bias.grad.item() == 3000   # 3008 in bfloat16

def half_norms():
    try: return nn.LayerNorm(2).half()(torch.ones(2, 2).half()) is not None
    except RuntimeError: return False   # PyTorch 2.1 has none on a CPU

LOW = [torch.bfloat16, pytest.param(torch.float16, marks=[] if half_norms() else pytest.mark.skip('no float16 norms'))]

@pytest.mark.parametrize('low', LOW)
@pytest.mark.parametrize('kind', pairs((5, 6, 3, 4)))
def test_a_whole_module_in_low_precision(kind, low):
    a, b = pairs((5, 6, 3, 4))[kind]
    b.load_state_dict(draw_params(a).state_dict())
    a, b, x = a.to(low), b.to(low), data((5, 6, 3, 4)).to(low)
    for mine, theirs in zip(*both(a, b, x, torch.randn(x.shape))):
        assert mine.dtype == low
        assert_close(mine, theirs, rtol=.05, atol=.05)
    assert_close(a.eval()(x), b.eval()(x), rtol=.05, atol=.05)

@pytest.mark.parametrize('kind', pairs((5, 6, 3, 4)))
def test_state_dicts_both_ways(kind):
    a, b = pairs((5, 6, 3, 4))[kind]
    a(data((5, 6, 3, 4))); draw_params(a)
    b.load_state_dict(a.state_dict())
    assert_close(b.eval()(data((2, 6, 3, 4))), a.eval()(data((2, 6, 3, 4))), rtol=9, atol=9)   # it runs
    x = data((4, 6, 3, 4))
    assert_close(a(x), b(x), **TOL[torch.float32])
    b.train()(data((5, 6, 3, 4))); draw_params(b, 5)
    new = pairs((5, 6, 3, 4))[kind][0]
    new.load_state_dict(b.state_dict())
    assert_close(new.eval()(x), b.eval()(x), **TOL[torch.float32])

ONE = [(n, c, *sp) for n in (1, 2) for c in (1, 4) for sp in ((), (1,), (1, 1), (2, 1))]

@pytest.mark.parametrize('shape', ONE, ids=str)
def test_one_value_follows_pytorchs_rule(shape):
    def same(a, b):
        x = data(shape)
        try: y = b(x)
        except ValueError:
            with pytest.raises(ValueError, match='its own mean'): a(x)
        else: assert_close(a(x), y, rtol=0, atol=3e-4)   # where var = 0, PyTorch's rounding is multiplied by 316
    same(BatchNorm(shape[1]), theirs_bn(shape))
    for g in {1, 2, shape[1]} - ({2} if shape[1] == 1 else set()): same(GroupNorm(g, shape[1]), nn.GroupNorm(g, shape[1]))
    if len(shape) > 2: same(InstanceNorm(shape[1]), theirs_in(shape))
    BatchNorm(shape[1]).eval()(data(shape))   # allowed, and finite
    same(LayerNorm(shape[1:]), nn.LayerNorm(shape[1:]))

def test_a_refused_batch_leaves_no_trace():
    m = BatchNorm(4)
    with pytest.raises(ValueError): m(data((1, 4, 1, 1)))
    assert m.num_batches_tracked == 0 and m.running_mean.eq(0).all()

@pytest.mark.parametrize('shape', [(0, 6), (0, 6, 7), (0, 6, 3, 4), (0, 6, 1, 1), (2, 6, 0)], ids=str)
def test_an_empty_batch_changes_nothing(shape):
    "Empty out, gradients of 0, as in PyTorch; what was known of past batches stays (PyTorch's counter moves)"
    ours = {'batch': BatchNorm(6), 'no mom': BatchNorm(6, mom=None), 'running': RunningBatchNorm(6), 'whole': LayerNorm(),
            'layer': LayerNorm(shape[-1] or 6), 'group': GroupNorm(2, 6), 'no affine': GroupNorm(2, 6, affine=False)}
    if shape[-1] == 0: del ours['layer']
    if shape[2:] not in ((), (1, 1)): ours['instance'] = InstanceNorm(6)
    full = data((5, 6, *shape[2:])) if all(shape[2:]) else data((5, 6, 4))
    for k, m in ours.items():
        draw_params(m)(full)
        before = copy.deepcopy(m.state_dict())
        for train in (True, False):
            x, params = torch.randn(shape).requires_grad_(), [*m.parameters()]
            y = m.train(train)(x)
            assert y.shape == shape and y.dtype == x.dtype, k
            for g, t in zip(torch.autograd.grad(y.sum(), [x, *params]), [x, *params]):
                assert g.shape == t.shape and g.eq(0).all(), k
        assert_close(m.state_dict(), before, rtol=0, atol=0)
        assert m(torch.randn(shape).half()).dtype == torch.float16

def test_an_empty_batch_against_pytorchs():
    x = data((5, 6, 3, 4))
    for a, b in pairs(x.shape).values():
        if isinstance(a, InstanceNorm): continue   # PyTorch's fails with an IndexError
        assert_same(a, b, x, TOL[torch.float32]); assert_same(a, b, x[:0], TOL[torch.float32])
        assert_same(a, b, x + 1, TOL[torch.float32])
        for (k, p), q in zip(a.named_buffers(), b.buffers()):
            assert_close(p, q - int(k == 'num_batches_tracked'), **TOL[torch.float32])

def test_a_mean_of_1000_in_float32():
    x = data((64, 3, 8, 8), mean=1000., std=.1)
    for m in (BatchNorm(3), GroupNorm(3, 3), InstanceNorm(3), LayerNorm(), RunningBatchNorm(3)):
        exact = copy.deepcopy(m).double()(x.double())
        assert_close(m(x), exact.float(), rtol=0, atol=3e-3)   # x itself is known to 3e-5 of .1

def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r'BatchNorm\(4.*\(2, 3, 5, 5\).*\(bs,4'): BatchNorm(4)(data((2, 3, 5, 5)))
    with pytest.raises(ValueError, match=r'\(4,\)'): BatchNorm(4)(data((4,)))
    with pytest.raises(ValueError, match='mom must be above 0'): RunningBatchNorm(3, mom=0)
    with pytest.raises(ValueError, match='mom must be above 0'): RunningBatchNorm(3, mom=1.5)


# --- what they have in common

def test_a_constant_before_a_norm_is_lost_and_a_factor_nearly():
    x = data((4, 6, 3, 5), torch.float64)
    for m in (BatchNorm(6), GroupNorm(2, 6), InstanceNorm(6), LayerNorm()):
        m = m.double()
        assert_close(m(x + 7), m(x)); assert_close(m(x*3), m(x), rtol=0, atol=1e-4)

def test_as_the_norm_of_conv_layer():
    for norm in (BatchNorm, InstanceNorm, RunningBatchNorm, partial(GroupNorm, 4), lambda nf: LayerNorm()):
        block = conv_layer(1, 8, norm=norm)
        assert block(data((2, 1, 9, 8))).shape == (2, 8, 5, 4) and block[0].bias is None

@pytest.mark.parametrize('m', [BatchNorm(6), LayerNorm(), LayerNorm((3, 4)), GroupNorm(2, 6), InstanceNorm(6), RunningBatchNorm(6)], ids=str)
def test_copies_pickles_and_an_in_place_layer_behind(m):
    x = data((4, 6, 3, 4)).requires_grad_()
    y = nn.Sequential(m, nn.ReLU(inplace=True))(x)
    y.sum().backward()
    for c in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert_close(c.state_dict(), m.state_dict())
        assert_close(c.eval()(x), m.eval()(x))
    assert not m.training and '(' in repr(m)


# --- RunningBatchNorm

def by_sums(batches, mom=.1):
    "Means and variances by running sums, squares and counts in float64, batch after batch"
    s = q = c = 0.
    for x in batches:
        x, m = x.double().transpose(0, 1).flatten(1), 1 - (1-mom)/math.sqrt(max(len(x)-1, 1))
        s, q, c = (old*(1-m) + m*new for old, new in ((s, x.sum(1)), (q, (x*x).sum(1)), (c, x.shape[1])))
        yield s/c, q/c - (s/c)**2

@pytest.mark.parametrize('sizes', [(2, 2, 2), (1, 1, 1, 1), (32, 32, 5), (8, 1), (64, 2, 3)], ids=str)
@pytest.mark.parametrize('mom', [.1, .5])
def test_running_sums_squares_and_counts(sizes, mom):
    batches = [data((bs, 3, 4, 5), torch.float64, mean=i) for i, bs in enumerate(sizes)]
    m = RunningBatchNorm(3, mom=mom).double()
    for x, (mean, var) in zip(batches, by_sums(batches, mom)):
        y = m(x)
        assert_close(m.running_mean, mean); assert_close(m.running_var, var)
        want = (x - mean.view(-1, 1, 1))/(var.view(-1, 1, 1) + 1e-5).sqrt()
        assert_close(y, want); assert_close(copy.deepcopy(m).eval()(x), want)   # the same in eval
    assert m.num_samples_tracked == sum(sizes)

def test_debiasing_would_cancel():
    "Averages that begin at 0 are too small at first, but the count as much as the sums"
    weight = s = c = 0.
    m = RunningBatchNorm(3).double()
    for _ in range(20):
        x = data((2, 3, 4, 5), torch.float64)
        s, c, weight = .1*x.sum((0, 2, 3)) + .9*s, .1*40 + .9*c, .1 + .9*weight
        m(x)
        assert_close(m.running_mean, (s/weight)/(c/weight)); assert_close(m.running_mean, s/c)

@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=5), st.floats(.01, 1.), st.integers(1, 4))
def test_any_batches_are_finite_and_mean_what_they_say(sizes, mom, pixels):
    m, batches = RunningBatchNorm(2, mom=mom).double(), [data((bs, 2, pixels), torch.float64) for bs in sizes]
    for x, (mean, var) in zip(batches, by_sums(batches, mom)):
        assert m(x).isfinite().all()
        assert_close(m.running_mean, mean, rtol=1e-6, atol=1e-9); assert_close(m.running_var, var, rtol=1e-6, atol=1e-9)

def test_the_first_batch_is_batch_norm():
    for dtype, tol in TOL.items():
        a, b = draw_params(RunningBatchNorm(6)).to(dtype), nn.BatchNorm2d(6).to(dtype)
        b.load_state_dict(a.state_dict(), strict=False)
        assert_same(a, b, data((32, 6, 3, 4), dtype), tol)

def autograd_rbn(x, weight, bias, old, mom, eps=1e-5, floor=0.):
    "By sums and autograd, gradients through this batch's part only"
    n = x.numel()/x.shape[1]
    m = 1 - (1-mom)/math.sqrt(max(len(x)-1, 1))
    s, q, c = ((1-m)*o + m*new for o, new in zip(old, (x.sum((0, 2, 3)), (x*x).sum((0, 2, 3)), n)))
    mean, var = (s/c).view(-1, 1, 1), (q/c - (s/c)**2).clamp_min(floor).view(-1, 1, 1)
    return weight.view(-1, 1, 1)*(x - mean)/(var + eps).sqrt() + bias.view(-1, 1, 1)

@pytest.mark.parametrize('bs, std', [(32, 1.), (2, 1.), (1, 1.), (2, .03)])
def test_gradient_through_this_batchs_part(bs, std):
    m = draw_params(RunningBatchNorm(3)).double()
    first = data((bs, 3, 4, 5), torch.float64, mean=0, std=std)
    m(first)
    k = 1 - .9/math.sqrt(max(bs-1, 1))
    old = k*first.sum((0, 2, 3)), k*first.square().sum((0, 2, 3)), k*bs*20
    floor = .01 if 2*bs < 20 else 0.
    x = data((bs, 3, 4, 5), torch.float64, mean=0, std=std)*torch.tensor([1., 2., 6.]).view(3, 1, 1)
    mine = [o.detach().clone().requires_grad_() for o in (x, m.weight, m.bias)]
    up = torch.randn(x.shape, dtype=torch.float64)
    want = torch.autograd.grad(autograd_rbn(*mine, old, .1, floor=floor), mine, up)
    xi = x.clone().requires_grad_()
    got = torch.autograd.grad(m(xi), [xi, m.weight, m.bias], up)
    for g, w in zip(got, want): assert_close(g, w, rtol=1e-7, atol=1e-8)

def test_gradcheck_in_mid_training():
    m = draw_params(RunningBatchNorm(3)).double()
    for _ in range(3): m(data((4, 3, 2, 3), torch.float64))
    kept = [(b, b.clone()) for b in m.buffers()]
    def f(x):
        for b, v in kept: b.copy_(v)
        return m(x)
    assert gradcheck(f, data((4, 3, 2, 3), torch.float64).requires_grad_())

def test_before_any_training_it_passes_its_input_through():
    x = data((4, 3, 2, 3))
    assert_close(RunningBatchNorm(3).eval()(x), x, rtol=1e-5, atol=0)
    assert_close(RunningBatchNorm(3).eval()(x), nn.BatchNorm2d(3).eval()(x))

def test_one_number_a_channel():
    m = RunningBatchNorm(3)
    for _ in range(50): y = m(data((1, 3)))
    assert y.isfinite().all() and (m.running_var > .5).all()
    assert (m.running_mean - 3).abs().max() < 2.5

def test_a_last_batch_of_one():
    m, x = RunningBatchNorm(3), data((33, 3, 4, 4))
    m(x[:32])
    before = m.running_mean.clone()
    assert m(x[32:]).isfinite().all()
    share = .1*16/(.1*16 + .9*m_of(32)*32*16)
    assert_close(m.running_mean, before + share*(x[32].mean((1, 2)) - before))
def m_of(bs): return 1 - .9/math.sqrt(bs-1)

def test_a_large_batch_counts_for_more():
    shares = []
    for bs in (2, 8, 32, 512):
        m = RunningBatchNorm(1); m(torch.zeros(bs, 1, 2, 2)); m(torch.ones(bs, 1, 2, 2))
        shares.append(m.running_mean.item())
    assert_close(shares[0], .1/.19); assert shares == sorted(shares) and shares[-1] > .9

def test_the_clamp_ends_after_20_samples():
    m, tiny = RunningBatchNorm(1), data((2, 1, 4, 4), mean=0., std=1e-3)
    stds = [m(tiny).std().item() for _ in range(12)]
    assert max(stds[:9]) < .02 and min(stds[9:]) > .2   # 2·9 = 18 samples, then 20
    fresh = RunningBatchNorm(1)
    y = fresh(tiny)
    assert_close(fresh.eval()(tiny), y)                  # clamped in eval too
    fresh.load_state_dict(m.state_dict())
    assert fresh.eval()(tiny).std() > .2                 # the number of samples was saved

def test_state_dict_into_a_fresh_module_goes_on_exactly():
    m = draw_params(RunningBatchNorm(3))
    for _ in range(3): m(data((2, 3, 4, 4)))
    new = RunningBatchNorm(3)
    new.load_state_dict(m.state_dict())
    cop, x = copy.deepcopy(m), data((2, 3, 4, 4))
    for o in (new, cop): assert torch.equal(o(x), m(x) if o is cop else copy.deepcopy(m)(x))
    plain = nn.BatchNorm2d(3)   # what is enough for inference fits PyTorch's
    more = plain.load_state_dict(m.state_dict(), strict=False).unexpected_keys
    assert set(more) == {'count', 'num_samples_tracked'}
    assert_close(plain.eval()(x), m.eval()(x))

def test_eval_twice_backward_and_a_change_of_weight():
    m = RunningBatchNorm(3)
    m(data((4, 3, 4, 4)))
    m.eval()
    x = data((4, 3, 4, 4)).requires_grad_()
    m(x).sum().backward(); m(x).sum().backward()
    before = m(x).detach()
    with torch.no_grad(): m.weight *= 2
    assert_close(m(x).detach(), 2*before)

def test_eval_changes_nothing():
    for m in (RunningBatchNorm(3), BatchNorm(3)):
        m(data((4, 3, 4, 4)))
        before = copy.deepcopy(m.state_dict())
        m.eval()(data((4, 3, 4, 4)))
        assert_close(m.state_dict(), before, rtol=0, atol=0)

def test_two_forwards_before_one_backward():
    for m in (RunningBatchNorm(3), BatchNorm(3)):
        x = data((4, 3, 4, 4)).requires_grad_()
        (m(x).square().sum() + m(x+1).square().sum()).backward()
        assert x.grad.isfinite().all()

@pytest.mark.parametrize('low', [torch.float16, torch.bfloat16])
def test_low_precision_remembers_in_float32(low):
    m = RunningBatchNorm(3).to(low)
    assert m.weight.dtype == low and m.running_mean.dtype == m.count.dtype == torch.float32
    x = data((256, 3, 28, 28), mean=50.).to(low)   # 200,704 numbers a channel: more than float16 can count
    for _ in range(2): y = m(x)
    assert y.dtype == low and y.isfinite().all() and m.count > 1e5
    assert_close(m.running_mean, torch.full((3,), 50.), rtol=1e-2, atol=0)
    assert_close(y.float().std((0, 2, 3)), torch.ones(3), rtol=.02, atol=0)
    assert RunningBatchNorm(3).double().running_mean.dtype == torch.float64
    m2 = RunningBatchNorm(3); m2(data((4, 3, 4, 4))); before = m2.running_mean.clone()
    assert torch.equal(m2.to(low).running_mean, before)

def test_on_the_meta_device_and_with_gradients_off():
    assert RunningBatchNorm(3).to('meta').half().running_mean.device.type == 'meta'
    with torch.no_grad(): assert BatchNorm(3)(data((4, 3, 4, 4))).std() > .9

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('kind', pairs((5, 6, 3, 4)))
def test_on_cuda(kind):
    a, b = (o.cuda() for o in pairs((5, 6, 3, 4))[kind])
    assert_same(a, b, data((5, 6, 3, 4)).cuda(), TOL[torch.float32])
