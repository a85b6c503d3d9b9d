"The losses against PyTorch, in value and gradient, and what they say to arguments that don't fit"
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from torch import tensor
from torch.testing import assert_close

from helpers import small
from minifast.losses import accuracy, cross_entropy, log_softmax, logsumexp, nll

quick = settings(deadline=None, max_examples=60, derandomize=True)
dtypes = pytest.mark.parametrize('dtype', (torch.float32, torch.float64))
inf = math.inf


@st.composite
def batches(draw, big=1e6):
    "Scores (bs,classes) of either precision, between -`big` and `big`, and labels"
    bits,bs,c = draw(st.sampled_from((32,64))), draw(st.integers(1,6)), draw(st.integers(1,7))
    x = draw(arrays(np.dtype(f'float{bits}'), (bs,c), elements=st.floats(-big, big, width=bits)))
    y = draw(arrays(np.int64, bs, elements=st.integers(0, c-1)))
    return torch.from_numpy(x.copy()), torch.from_numpy(y.copy())


def same(mine, theirs, x, *args):
    "`mine(x)` and `theirs(x)` agree in value, and so do the gradients of a weighted sum of them"
    a,b = x.clone().requires_grad_(), x.clone().requires_grad_()
    out,exp = mine(a, *args), theirs(b, *args)
    assert_close(out, exp, equal_nan=True)
    w = torch.linspace(.5, 2, out.numel(), dtype=out.dtype).view(out.shape)
    (out*w).sum().backward(); (exp*w).sum().backward()
    assert_close(a.grad, b.grad)


def lse(x): return torch.logsumexp(x, -1)
def lsm(x): return F.log_softmax(x, -1)


@quick
@given(batches(big=20))
def test_logsumexp_equals_torch(b): same(logsumexp, lse, b[0])

@quick
@given(batches())
def test_logsumexp_of_large_scores(b):
    "Its gradient is the softmax; torch's own comes from the rounded result, off by 2e-4 at a score of 4096"
    x = b[0].requires_grad_()
    assert_close(logsumexp(x), lse(x))
    logsumexp(x).sum().backward()
    assert_close(x.grad, F.softmax(x.detach(), -1))

@quick
@given(batches())
def test_log_softmax_equals_torch(b): same(log_softmax, lsm, b[0])

@quick
@given(batches())
def test_nll_equals_torch(b): same(nll, F.nll_loss, F.log_softmax(b[0], -1), b[1])

@quick
@given(batches())
def test_cross_entropy_equals_torch(b): same(cross_entropy, F.cross_entropy, *b)

@quick
@given(batches())
def test_accuracy_equals_a_loop(b):
    x,y = b
    hits = [max(range(len(r)), key=lambda j: r[j]) == label for r,label in zip(x.tolist(), y.tolist())]
    assert_close(accuracy(x, y), tensor(sum(hits)/len(hits)))   # of equal scores the first counts, as in max

@quick
@given(batches(big=50), st.floats(-50, 50, width=32))
def test_a_shift_changes_nothing(b, shift):
    x,y = b
    x = x.double()
    assert_close(log_softmax(x+shift), log_softmax(x))
    assert_close(logsumexp(x+shift), logsumexp(x)+shift)
    assert_close(cross_entropy(x+shift, y), cross_entropy(x, y))
    assert (log_softmax(x) <= 0).all()
    assert_close(log_softmax(x).exp().sum(-1), torch.ones(len(x)).double())


@dtypes
@pytest.mark.parametrize('c', (1, 2, 10, 1000))
@pytest.mark.parametrize('scale', (1e-3, 1, 1e3, 1e6))
def test_class_counts_and_scales(dtype, c, scale):
    x,y = torch.randn(33, c, dtype=dtype)*scale, torch.randint(c, (33,))
    same(log_softmax, lsm, x)
    same(cross_entropy, F.cross_entropy, x, y)
    assert cross_entropy(x, y).dtype == dtype and cross_entropy(x, y).shape == ()


@dtypes
@pytest.mark.parametrize('row', ([100.,0.], [-200.,-201.], [1e4,1e4], [1e30,-1e30], [0.,-inf], [-inf,3.],
                                 [88.8,88.8]))
def test_extreme_scores(dtype, row):
    x = tensor([row], dtype=dtype)
    for f,g in ((logsumexp,lse), (log_softmax,lsm)): assert_close(f(x), g(x))
    for y in (0,1):
        if row[y] > -inf: same(cross_entropy, F.cross_entropy, x, tensor([y]))
    assert not log_softmax(x).isnan().any()


@dtypes
@pytest.mark.parametrize('row', ([-inf,-inf], [inf,0.], [inf,-inf], [math.nan,1.]))
def test_infinite_scores_end_as_in_torch(dtype, row):
    x = tensor([row], dtype=dtype)
    assert_close(logsumexp(x), lse(x), equal_nan=True)
    assert_close(log_softmax(x), lsm(x), equal_nan=True)
    assert cross_entropy(x, tensor([0])).isnan()   # a broken model isn't hidden


def test_the_plain_formulas_would_fail_these():
    "The cases above aren't harmless: the formulas without the trick give inf or nan, or lose digits"
    x = tensor([[100.,0.]])
    assert x.exp().sum(-1).log().isinf() and (x.exp()/x.exp().sum()).isnan().any()
    even = tensor([1e4,1e4])
    assert abs((even-logsumexp(even))[0] + math.log(2)) > 1e-4
    assert abs(log_softmax(even)[0] + math.log(2)) < 1e-6


@pytest.mark.parametrize('dtype,tol', ((torch.float16,2e-3), (torch.bfloat16,2e-2)))
def test_half_precision(dtype, tol):
    x,y = (torch.randn(16, 10)*20).to(dtype), torch.randint(10, (16,))
    out = cross_entropy(x, y)
    assert out.dtype == dtype
    assert_close(out.float(), F.cross_entropy(x.float(), y), rtol=tol, atol=tol)
    assert logsumexp(torch.full((1,2), 6e4, dtype=torch.float16)).isfinite()


@pytest.mark.parametrize('shape', ((5,), (3,4), (2,3,4), (3,1,4), (2,3,4,5)))
def test_any_number_of_dims_for_log_softmax(shape):
    x = torch.randn(shape)*10
    same(logsumexp, lse, x); same(log_softmax, lsm, x)
    assert logsumexp(x).shape == shape[:-1] and log_softmax(x).shape == shape


def test_gradcheck():
    x,y = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), tensor([0,2,1,1])
    for f in (logsumexp, log_softmax, lambda x: cross_entropy(x, y), lambda x: nll(log_softmax(x), y)):
        assert torch.autograd.gradcheck(f, x) and torch.autograd.gradgradcheck(f, x)

def test_gradient_is_softmax_minus_one_hot():
    x,y = torch.randn(6, 5, requires_grad=True), tensor([0,4,1,2,3,3])
    cross_entropy(x, y).backward()
    assert_close(x.grad, (F.softmax(x.detach(), -1) - F.one_hot(y, 5))/6)
    assert_close(x.grad.sum(-1), torch.zeros(6), atol=1e-7, rtol=0)


def test_values_known_by_heart():
    assert_close(cross_entropy(torch.zeros(7,10), torch.arange(7)), tensor(10.).log())
    assert_close(nll(tensor([[.9,.1]]).log(), tensor([0])), tensor(.10536), atol=1e-5, rtol=0)   # positive
    assert nll(tensor([[.1,.9]]).log(), tensor([0])) > nll(tensor([[.9,.1]]).log(), tensor([0]))
    assert accuracy(tensor([[0.,1],[1,0],[0,1],[1,0]]), tensor([1,0,1,1])) == .75

def test_arguments_stay_as_they_are():
    x,y = torch.randn(5, 3), tensor([0,1,2,1,0])
    before = x.clone(), y.clone()
    logsumexp(x), log_softmax(x), nll(x, y), cross_entropy(x, y), accuracy(x, y)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])

def test_views_and_other_int_labels():
    x,y = torch.randn(3, 8).t(), torch.arange(8)%3   # x isn't contiguous
    exp = F.cross_entropy(x, y)
    for dt in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        assert_close(cross_entropy(x, y.to(dt)), exp)
        assert_close(nll(log_softmax(x), y.to(dt)), exp)
        assert_close(accuracy(x, y.to(dt)), accuracy(x, y))

def test_accuracy_is_a_float_without_gradient():
    x,y = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), tensor([0,1,2,1,0])
    acc = accuracy(x, y)
    assert acc.dtype == torch.float32 and acc.shape == () and not acc.requires_grad
    assert accuracy(x, x.argmax(-1)) == 1 and accuracy(x, (x.argmax(-1)+1)%3) == 0

def test_an_empty_batch_is_nan_as_in_torch():
    x,y = torch.zeros(0,3), torch.zeros(0, dtype=torch.int64)
    assert cross_entropy(x, y).isnan() and F.cross_entropy(x, y).isnan() and accuracy(x, y).isnan()


# what they say to arguments that don't fit: what was passed, what is allowed, what to do
losses = pytest.mark.parametrize('f,name', ((nll,'logp'), (cross_entropy,'pred'), (accuracy,'pred')))
scores, labels = torch.randn(4, 3), tensor([0,1,2,1])

def says(exc, *texts): return pytest.raises(exc, match='.*'.join(map(re.escape, texts)))

@losses
@pytest.mark.parametrize('bad,got', (
    (labels.float(),'torch.float32'), (labels.bool(),'torch.bool'), ([0,1,2,1],'list'),
    (F.one_hot(labels,3).double(),'torch.float64'), (None,'NoneType')))
def test_labels_of_a_wrong_kind(f, name, bad, got):
    with says(TypeError, 'yb must be a tensor of whole numbers, got', got, 'yb.argmax(-1)'): f(scores, bad)

def test_labels_as_numpy():
    with says(TypeError, 'got int64: use torch.as_tensor(yb)'): cross_entropy(scores, labels.numpy())

@losses
@pytest.mark.parametrize('bad,got', ((scores.argmax(-1),'torch.int64'), (scores.tolist(),'list')))
def test_scores_of_a_wrong_kind(f, name, bad, got):
    with says(TypeError, f'{name} must be a tensor of floats, got {got}: pass the scores'): f(bad, labels)

@losses
@pytest.mark.parametrize('shape', ((4,), (4,3,2), ()))
def test_scores_that_are_not_2d(f, name, shape):
    x = torch.zeros(shape)
    with says(ValueError, f'{name} must be (bs, classes), got {shape}', 'reshape'): f(x, labels)

@losses
@pytest.mark.parametrize('bad', (labels[:3], labels[:,None], labels[None], tensor(1), labels.repeat(2)))
def test_labels_of_another_shape(f, name, bad):
    got = tuple(bad.shape)
    with says(ValueError, 'yb must have shape (4,), one class for each row of', f'{name}, got {got}'):
        f(scores, bad)

@pytest.mark.parametrize('f', (nll, cross_entropy))
@pytest.mark.parametrize('bad,msg', (([0,3,2,1],'got 3 at yb[1] (outside: 1 of 4)'),
                                     ([0,-1,5,1],'got -1 at yb[1] (outside: 2 of 4)'),
                                     ([0,1,2,-100],'got -100 at yb[3]')))
def test_labels_out_of_range(f, bad, msg):
    with says(ValueError, 'yb must be in 0..2 for 3 classes, ', msg, 'more outputs'): f(scores, tensor(bad))

@quick
@given(batches(), st.data())
def test_any_label_out_of_range_is_found(b, data):
    x,y = b
    y[data.draw(st.integers(0, len(y)-1))] = data.draw(st.integers(-1000,-1) | st.integers(x.shape[1], 1000))
    with pytest.raises(ValueError, match='yb must be in'): cross_entropy(x, y)

@pytest.mark.parametrize('f', (logsumexp, log_softmax))
def test_whole_numbers_as_scores(f):
    "uint8 would wrap around: 1-3 is 254"
    x = tensor([1,3], dtype=torch.uint8)
    with says(TypeError, 'scores must be floats, got torch.uint8: use x.float()'): f(x)

def test_other_errors_pass_through(monkeypatch):
    "An error that isn't about labels keeps its own message"
    def gather(*args): raise RuntimeError('another device')
    monkeypatch.setattr(torch.Tensor, 'gather', gather)
    with pytest.raises(RuntimeError, match='another device'): nll(log_softmax(scores), labels)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@dtypes
def test_on_cuda(dtype):
    x,y = torch.randn(64, 10, dtype=dtype)*100, torch.randint(10, (64,))
    same(cross_entropy, F.cross_entropy, x.cuda(), y.cuda())
    assert_close(cross_entropy(x.cuda(), y.cuda()).cpu(), cross_entropy(x, y))
    assert_close(accuracy(x.cuda(), y.cuda()).cpu(), accuracy(x, y))


# ---------------------------------------------------------------- the small version of lesson 03

def test_the_small_cross_entropy():
    "Value and gradient as the exported one's while no score is above 88; then it overflows, and -1 is the last class"
    f = small('03_losses', 'small_cross_entropy')
    for scale in (.1, 1, 10):
        x,y = torch.randn(33, 10).clamp(-4, 4)*scale, torch.randint(10, (33,))
        same(f, cross_entropy, x, y)
    assert f(tensor([[100.,0.]]), tensor([0])).isinf() and cross_entropy(tensor([[100.,0.]]), tensor([0])) == 0
    assert f(x, torch.full((33,), -1)) == f(x, torch.full((33,), 9))
