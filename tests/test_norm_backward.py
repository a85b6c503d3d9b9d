"norm_backward: statistics, the derivative by the formula, and what is refused; most is tested through the norms in test_norm.py"
import pytest
import torch
from helpers import small
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from minifast.core import set_seed
from minifast.norm_backward import by_channel, check_channels, check_noting, mean_var, standardise


def few(*shape):
    "Input for gradcheck"
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)

def test_the_small_one_has_pytorchs_gradients():
    "But no second derivative: that is how the lesson breaks it"
    f = small('06d_norm_backward', 'SmallNormBackward', over=(0, 2, 3)).apply
    set_seed(0)
    args = few(3, 2, 2, 3), few(1, 2, 1, 1), few(1, 2, 1, 1)
    def theirs(x, w, b): return nn.functional.batch_norm(x, None, None, w.flatten(), b.flatten(), training=True)
    up = torch.randn(3, 2, 2, 3, dtype=torch.float64)
    y, want = f(*args, 1e-5), theirs(*args)
    assert_close(y, want)
    assert_close(torch.autograd.grad(y, args, up), torch.autograd.grad(want, args, up))
    assert not gradgradcheck(lambda *a: f(*a, 1e-5), args, raise_exception=False)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_mean_var(dtype):
    x = (torch.randn(7, 5, 3) + 2).to(dtype).requires_grad_()
    mean, var = mean_var(x, [0, 2])
    assert mean.shape == var.shape == (1, 5, 1) and mean.dtype == var.dtype == torch.promote_types(dtype, torch.float32)
    assert not mean.requires_grad and not var.requires_grad
    exact = x.detach().double()
    assert_close(mean.double(), exact.mean((0, 2), keepdim=True), rtol=1e-5, atol=1e-5)
    assert_close(var.double(), exact.var((0, 2), correction=0, keepdim=True), rtol=1e-5, atol=1e-5)

def test_mean_var_far_from_zero():
    x = torch.randn(100_000)*.1 + 1000
    assert_close(mean_var(x, [0])[1].double(), x.double().var(correction=0, keepdim=True), rtol=1e-3, atol=0)

@pytest.mark.parametrize('size', [(5, 6), (5, 6, 7), (5, 6, 3, 4), (5, 6, 2, 3, 4)], ids=str)
def test_by_channel(size):
    a, none = by_channel(torch.zeros(size), torch.arange(6.), None)
    assert none is None and a.shape == (1, 6, *[1]*(len(size)-2))
    assert (torch.zeros(size) + a)[0, 4].eq(4).all()

@pytest.mark.parametrize('shares', [(1., 1.), (0., 0.), (.3, .3), (.3, 0.), (torch.tensor(.3), torch.tensor([.3, 0.]).view(1, 2, 1))], ids=str)
def test_shares(shares):
    "A mean and a variance that come from `x` in part: against plain steps with autograd"
    set_seed(0)
    args, up = (few(4, 2, 3), few(1, 2, 1), few(1, 2, 1)), torch.randn(4, 2, 3, dtype=torch.float64)
    a, b = shares
    def stats(x):
        mean = x.mean((0, 2), keepdim=True)
        return mean, (x - mean).square().mean((0, 2), keepdim=True)
    def part(new, share): return share*new + (1-share)*new.detach()
    def plain(x, w, bias):
        mean, var = stats(x)
        return w*(x - part(mean, a))/(part(var, b) + .1).sqrt() + bias
    def ours(x, w, bias): return standardise(x, *stats(x.detach()), w, bias, .1, shares)
    assert_close(ours(*args), plain(*args))
    assert_close(torch.autograd.grad(ours(*args), args, up), torch.autograd.grad(plain(*args), args, up))

def test_constants():
    x, mean, var = few(4, 2, 3), torch.ones(1, 2, 1), torch.full((1, 2, 1), 4.)
    w, b = few(1, 2, 1), few(1, 2, 1)
    assert_close(standardise(x, mean, var, None, None, 0., None), (x - 1)/2)
    f = lambda *a: standardise(a[0], mean.double(), var.double(), *a[1:], 0., None)   # noqa: E731
    assert gradcheck(f, (x, w, b)) and gradgradcheck(f, (x, w, b))
    assert standardise(x.half(), mean, var, None, None, 0., None).dtype == torch.float16

def test_checks():
    norm = nn.Identity()
    norm.nf = 6
    check_channels(norm, torch.zeros(2, 6)); check_noting(norm)
    for size in ((6,), (2, 5), (2, 5, 6)):
        with pytest.raises(ValueError, match=r'Identity\(\) got .* give \(bs,6'): check_channels(norm, torch.zeros(size))
    with torch.autograd.forward_ad.dual_level():
        check_noting(norm)
        with pytest.raises(RuntimeError, match='no forward-mode derivative'): check_noting(norm, forward_mode=False)
