"norms: layer, group and instance norm; what they share with batch norm is tested in test_norm.py"
import pytest
import torch
import torch.nn.functional as F
from helpers import small
from test_norm import MAPS, SHAPES, TOL, assert_same, data, draw_params
from torch import nn
from torch.testing import assert_close

from minifast.norm import BatchNorm, RunningBatchNorm
from minifast.norms import GroupNorm, InstanceNorm, LayerNorm


# --- the small one of the lesson

@pytest.mark.parametrize('dtype', TOL)
@pytest.mark.parametrize('shape', [(4,), (3, 4), (6, 3, 4)], ids=str)
def test_the_small_layer_norm_is_pytorchs(shape, dtype):
    a, b = (cls(shape).to(dtype) for cls in (small('07b_norms', 'SmallLayerNorm'), nn.LayerNorm))
    b.load_state_dict(draw_params(a).state_dict())
    assert_same(a, b, data((5, 6, 3, 4), dtype), TOL[dtype])
    assert_same(a.eval(), b.eval(), data((1, 6, 3, 4), dtype), TOL[dtype])
    c = LayerNorm(shape).to(dtype)
    c.load_state_dict(a.state_dict())
    assert_same(a, c, data((2, 6, 3, 4), dtype), TOL[dtype])


# --- layer norm

def test_layer_norm_of_whole_samples_has_one_weight():
    "The 2019 course's: all but the batch, one weight and one bias, here with the biased variance"
    m = draw_params(LayerNorm())
    assert m.weight.shape == m.bias.shape == ()
    class Theirs(nn.Module):
        def __init__(self): super().__init__(); self.w, self.b = [nn.Parameter(p.detach().clone()) for p in m.parameters()]
        def forward(self, x): return F.layer_norm(x, x.shape[1:])*self.w + self.b
    for shape in SHAPES: assert_same(m, Theirs(), data(shape), TOL[torch.float32])
    assert_same(m.double(), Theirs().double(), data((5, 6, 3, 4), torch.float64), TOL[torch.float64])

def test_eps_in_the_place_of_the_shape():
    with pytest.raises(TypeError, match=r'got 1e-05: write LayerNorm\(eps=1e-05\)'): LayerNorm(1e-5)

def test_a_shape_may_be_a_list_or_a_size():
    for shape in ([3, 4], torch.Size([3, 4])): assert_same(LayerNorm(shape), nn.LayerNorm(shape), data((5, 6, 3, 4)), TOL[torch.float32])
    assert LayerNorm(4).shape == (4,) and LayerNorm().shape is None

def test_what_has_no_samples_is_refused():
    with pytest.raises(ValueError, match=r'LayerNorm\(None'): LayerNorm()(data((4,)))
    assert LayerNorm(4)(data((4,))).shape == (4,)   # as nn.LayerNorm


# --- settings and special cases

@pytest.mark.parametrize('a, b', [(GroupNorm(3, 6, affine=False), nn.GroupNorm(3, 6, affine=False)),
                                  (InstanceNorm(6, affine=False), nn.InstanceNorm2d(6)),
                                  (LayerNorm((3, 4), affine=False), nn.LayerNorm((3, 4), elementwise_affine=False)),
                                  (GroupNorm(3, 6, eps=.3), nn.GroupNorm(3, 6, eps=.3)),
                                  (LayerNorm(4, eps=.3), nn.LayerNorm(4, eps=.3)),
                                  (InstanceNorm(6, eps=.3), nn.InstanceNorm2d(6, eps=.3, affine=True))], ids=str)
def test_settings(a, b):
    assert_same(a, b, data((5, 6, 3, 4)), TOL[torch.float32])
    assert not [*a.parameters()] or {*a.state_dict()} == {'weight', 'bias'}

def test_special_cases_of_each_other():
    x = data((4, 6, 3, 5), torch.float64)
    tol = TOL[torch.float64]
    assert_close(GroupNorm(6, 6).double()(x), InstanceNorm(6).double()(x), **tol)
    assert_close(GroupNorm(1, 6).double()(x), LayerNorm().double()(x), **tol)
    assert_close(LayerNorm(x.shape[1:]).double()(x), LayerNorm().double()(x), **tol)
    assert_close(BatchNorm(6).double()(x[:1]), InstanceNorm(6).double()(x[:1]), **tol)
    folded = BatchNorm(4*6).double()(x.reshape(1, 4*6, 3, 5)).view_as(x)   # instances as channels
    assert_close(folded, InstanceNorm(6).double()(x), **tol)
    flat = data((4, 6), torch.float64)
    assert_close(BatchNorm(4).double()(flat.T).T, LayerNorm(6).double()(flat), **tol)   # samples as channels
    assert_close(RunningBatchNorm(6, mom=1.).double()(x), BatchNorm(6).double()(x), **tol)

def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match='divisor of 6'): GroupNorm(4, 6)
    with pytest.raises(ValueError, match='divisor'): GroupNorm(0, 6)
    with pytest.raises(ValueError, match='LayerNorm()'): LayerNorm(8)(data((2, 8, 4, 4)))
    with pytest.raises(ValueError, match=r'InstanceNorm\(6.*\(2, 6, 1, 1\).*larger maps'): InstanceNorm(6)(data((2, 6, 1, 1)))
    with pytest.raises(ValueError, match=r'GroupNorm\(2, 6.*\(2, 8, 3, 3\).*\(bs,6'): GroupNorm(2, 6)(data((2, 8, 3, 3)))

@pytest.mark.parametrize('shape', MAPS, ids=str)
def test_a_sample_gives_the_same_alone_and_in_any_mode(shape):
    x = data(shape, torch.float64)
    for m in (LayerNorm(), GroupNorm(2, 6), InstanceNorm(6)):
        m = draw_params(m).double()
        y = m(x)
        assert_close(m(x[:1]), y[:1]); assert_close(m.eval()(x), y); assert not [*m.buffers()]
