"Lesson 01: every plot accepts and returns axes, needs no display, and shows what it was given"
import math
import subprocess
import sys
import warnings
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from matplotlib.colors import to_hex, to_rgb
from PIL import Image
from torch.testing import assert_close

from minifast import plot
from minifast.plot import (COLORS, get_ax, get_grid, layer_colors, plot_func, plot_hists, plot_layers,
                           show_image, show_images, use_style)


@pytest.fixture(autouse=True)
def no_figures_left():
    "Each test begins with matplotlib's own settings and no figure"
    plt.close('all')
    with plt.rc_context():
        yield
        for n in plt.get_fignums(): plt.figure(n).canvas.draw()   # what was drawn can really be rendered
    plt.close('all')

def shown(ax): return np.asarray(ax.images[0].get_array())
def texts(ax): return ax.get_title(), ax.get_xlabel(), ax.get_ylabel()
def spines(ax): return {k for k,v in ax.spines.items() if v.get_visible()}


# colours and style

def test_colors():
    assert list(COLORS.values()) == ['#0072B2','#D55E00','#888888','#009E73','#CC79A7','#56B4E9','#E69F00']
    assert list(COLORS)[:3] == ['train','valid','baseline']

def test_use_style():
    use_style()
    fig,ax = plt.subplots()
    lines = [ax.plot([0,i])[0] for i in range(7)]
    assert [o.get_color() for o in lines] == list(COLORS.values()) and spines(ax) == {'left','bottom'}
    assert fig.get_size_inches().tolist() == [5,3] and fig.get_layout_engine() is not None
    assert fig.dpi <= 80       # small pictures

def test_layer_colors():
    cs = layer_colors(5)
    assert len(set(cs)) == 5 and all(c == to_hex(c) for c in cs)
    assert cs[0] == to_hex(plt.colormaps['viridis'](0.))
    assert layer_colors(0) == [] and layer_colors(1) == cs[:1]
    with pytest.raises(ValueError, match='got -1 layers'): layer_colors(-1)

@given(st.integers(2,60))
def test_layer_colors_are_in_order(n):
    lum = [float(np.dot(to_rgb(c), (.2126,.7152,.0722))) for c in layer_colors(n)]
    assert len(lum) == n and lum == sorted(lum) and lum[-1] < .85    # legible on white


# axes

def test_get_ax_new():
    ax = get_ax(title='finding', xlabel='time (s)', ylabel='loss')
    assert texts(ax) == ('finding','time (s)','loss') and spines(ax) == {'left','bottom'}
    assert ax.figure.get_size_inches().tolist() == [5,3] and type(ax.figure.get_layout_engine()).__name__ == \
        'ConstrainedLayoutEngine'
    assert ax.plot([0,1])[0].get_color() == COLORS['train']      # without use_style
    assert get_ax(figsize=(4,2)).figure.get_size_inches().tolist() == [4,2]

def test_get_ax_given():
    ax = plt.subplots()[1]
    ax.set_xlabel('kept')
    assert get_ax(ax, title=3) is ax and texts(ax) == ('3','kept','') and len(plt.get_fignums()) == 1
    assert spines(ax) == {'left','bottom'}

def test_get_ax_keeps_the_colour_cycle():
    ax = get_ax()
    first = ax.plot([0,1])[0].get_color()
    assert get_ax(ax).plot([0,2])[0].get_color() != first

@pytest.mark.parametrize('n,nrows,ncols,want', [
    (1,None,None,(1,1)), (2,None,None,(1,2)), (5,None,None,(2,3)), (9,None,None,(3,3)), (5,1,None,(1,5)),
    (5,None,1,(5,1)), (5,None,4,(2,4)), (7,2,None,(2,4)), (4,3,3,(3,3))])
def test_get_grid(n, nrows, ncols, want):
    fig,axs = get_grid(n, nrows, ncols)
    assert axs[0].get_gridspec().get_geometry() == want and axs.shape == (n,) and len(fig.axes) == n
    assert all(spines(ax) == {'left','bottom'} for ax in axs)

@given(st.integers(1,40))
def test_grid_size_is_small(n):
    r,c = plot._grid_size(n, None, None)
    assert r*c >= n and (r-1)*c < n and r <= c <= r + 1

@pytest.mark.parametrize('n,rc,size', [
    (1,{},(5,3)), (2,dict(nrows=1),(10,3.5)), (4,{},(10,5)), (2,dict(ncols=1),(5,5)),
    (4,dict(figsize=(3,2)),(3,2))])
def test_get_grid_sizes(n, rc, size): assert tuple(get_grid(n, **rc)[0].get_size_inches()) == size

def test_get_grid_title_and_sharing():
    fig,axs = get_grid(2, title=0, sharey=True)
    axs[0].plot([0,5])
    assert fig.get_suptitle() == '0' and axs[0].get_ylim() == axs[1].get_ylim()
    assert axs[1].plot([0,1])[0].get_color() == COLORS['train']

@pytest.mark.parametrize('args,msg', [((0,), 'got n=0: give 1 or more'), ((-2,), 'got n=-2'),
                                      ((5,2,2), 'got nrows=2, ncols=2 for 5 axes')])
def test_get_grid_refuses(args, msg):
    with pytest.raises(ValueError, match=msg): get_grid(*args)
    assert not plt.get_fignums()


# one image

grey,colour,alpha = torch.rand(5,7), torch.rand(3,5,7), torch.rand(4,5,7)
hwc,hwa = colour.permute(1,2,0),alpha.permute(1,2,0)
layouts = dict(hw=(grey,grey), hw1=(grey[...,None],grey), c1=(grey[None],grey), chw=(colour,hwc),
               hwc=(hwc,hwc),
               rgba=(alpha,hwa))

@pytest.mark.parametrize('im,want', layouts.values(), ids=layouts.keys())
@pytest.mark.parametrize('conv', [lambda t: t, lambda t: t.numpy(), lambda t: t.clone().requires_grad_()],
                         ids=['tensor','array','with grad'])
def test_show_image_layouts(im, want, conv):
    ax = show_image(conv(im))
    assert_close(torch.from_numpy(shown(ax)), want)
    assert not ax.axison and spines(ax) == {'left','bottom'}

def test_show_image_ambiguous_ends():
    "(3,H,3): a tensor has its channels first, an array has them last"
    t = torch.rand(3,6,3)
    assert_close(torch.from_numpy(shown(show_image(t))), t.permute(1,2,0))
    assert_close(torch.from_numpy(shown(show_image(t.numpy()))), t)
    assert shown(show_image(torch.rand(1,28,3))).shape == (28,3)

@pytest.mark.parametrize('dt', [
    torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32,
    torch.float64])
@pytest.mark.parametrize('shape', [(5,7), (1,5,7), (3,5,7)])
def test_show_image_dtypes(dt, shape):
    t = (torch.rand(shape) > .5).to(dt)
    if dt == torch.bfloat16: convs = [t]
    else: convs = [t, t.numpy()]
    for im in convs:
        a = shown(show_image(im))
        want = t.permute(1,2,0) if shape[0] == 3 else t.reshape(5,7)
        assert_close(torch.from_numpy(a).double(), want.double())

def test_show_image_colours_outside_0_1():
    t = torch.randn(3,5,7)*3 + 1
    a = shown(show_image(t))
    assert a.min() == 0 and a.max() == 1
    assert_close(torch.from_numpy(a), ((t - t.min())/(t.max() - t.min())).permute(1,2,0))
    assert (shown(show_image(torch.full((3,4,4), 7.))) == 0).all()
    assert_close(torch.from_numpy(shown(show_image(grey*9 - 3))), grey*9 - 3)    # grey keeps its numbers

@pytest.mark.parametrize('mode', ['1','L','P','RGB','RGBA','CMYK','LA','I','F','YCbCr'])
def test_show_image_pil(mode):
    rgb = Image.fromarray((colour.permute(1,2,0)*255).byte().numpy())
    if mode in ('I','F','LA'): rgb = rgb.convert('L')
    a = shown(show_image(rgb.convert(mode)))
    assert a.shape[:2] == (5,7)
    if mode == 'RGB': assert (a == np.asarray(rgb)).all()
    if mode == 'L': assert (a == np.asarray(rgb.convert('L'))).all()

def test_show_image_arguments():
    ax = plt.subplots()[1]
    assert show_image(grey, ax, title=torch.tensor(3).item(), cmap='magma', vmin=-1) is ax
    im = ax.images[0]
    assert ax.get_title() == '3' and im.get_cmap().name == 'magma' and im.get_clim()[0] == -1
    assert show_image(grey, title=0).get_title() == '0' and show_image(grey).get_title() == ''
    assert show_image(grey).images[0].get_cmap().name == 'gray'
    assert show_image(grey, figsize=(3,1)).figure.get_size_inches().tolist() == [3,1]
    assert shown(show_image([[0,1],[2,3]])).tolist() == [[0,1],[2,3]]

@pytest.mark.parametrize('shape', [(784,), (2,5,7), (), (1,1,5,7), (4,3,5,7)])
def test_show_image_refuses(shape):
    with pytest.raises(ValueError, match='got an image of shape .*give .H,W.'): show_image(torch.rand(shape))
    assert not plt.get_fignums()

def test_show_image_leaves_its_input():
    a,t = np.random.randn(3,5,7)*3,torch.randn(3,5,7)
    a0,t0 = a.copy(),t.clone()
    show_image(a), show_image(t)
    assert (a == a0).all() and torch.equal(t, t0)

@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_cuda_tensors():
    assert_close(torch.from_numpy(shown(show_image(colour.cuda()))), colour.permute(1,2,0))
    gpu = partial(torch.tensor, device='cuda')
    ax = plot_layers([[gpu(1.), gpu(2.)], torch.ones(2, device='cuda')])
    assert ax.lines[0].get_ydata().tolist() == [1,2]
    assert shown(plot_hists(torch.ones(4,3, device='cuda'))).shape == (4,3)
    assert show_images(torch.rand(2,4,4, device='cuda'), titles=gpu([1,2]))[1].get_title() == '2'


# many images

@pytest.mark.parametrize('ims', [
    torch.rand(5,8,9), torch.rand(5,1,8,9), torch.rand(5,3,8,9), np.random.rand(5,8,9,3),
    list(torch.rand(5,8,9)),
    [torch.rand(8,9), np.random.rand(3,8,3)]])
def test_show_images(ims):
    axs = show_images(ims)
    assert len(axs) == len(ims) == len(axs[0].figure.axes)
    for ax,im in zip(axs, ims):
        a = plot._to_image(im)
        assert (shown(ax) == a).all() and not ax.axison and ax.get_title() == ''

@pytest.mark.parametrize('titles', [
    torch.tensor([3,1,4]), np.array([3,1,4]), [3,1,4], (3,1,4), ['3','1','4'],
    [torch.tensor(3),1,np.int64(4)],
    iter([3,1,4])])
def test_show_images_titles(titles):
    assert [ax.get_title() for ax in show_images(torch.rand(3,4,4), titles)] == ['3','1','4']

@pytest.mark.parametrize('titles,n', [(torch.arange(2),2), ([1,2,3,4],4), ('abc',1), ([],0), (7,1)])
def test_show_images_wrong_titles(titles, n):
    with pytest.raises(ValueError, match=f'got {n} titles for 3 images: give one for each'):
        show_images(torch.rand(3,4,4), titles)
    assert not plt.get_fignums()

def test_show_images_one_title_is_a_text():
    assert show_images(torch.rand(1,4,4), 'word')[0].get_title() == 'word'

def test_show_images_share_the_grey_scale():
    ims = torch.stack([torch.rand(4,4), torch.rand(4,4)/10])
    lo,hi = ims.min().item(),ims.max().item()
    for x in (ims, list(ims), ims[:,None]):
        for ax in show_images(x): assert ax.images[0].get_clim() == pytest.approx((lo,hi))
    mixed = show_images([ims[0], (ims[1]*2550).byte()])
    assert mixed[0].images[0].get_clim() != mixed[1].images[0].get_clim()
    assert show_images(ims, vmin=-5)[0].images[0].get_clim() == pytest.approx((-5,hi))

def test_show_images_layout():
    axs = show_images(torch.rand(6,4,4), nrows=2)
    assert axs[0].get_gridspec().get_geometry() == (2,3)
    assert show_images(torch.rand(2,4,4), figsize=(3,2))[0].figure.get_size_inches().tolist() == [3,2]
    with pytest.raises(ValueError, match='nrows=1, ncols=2 for 6 axes'):
        show_images(torch.rand(6,4,4), nrows=1, ncols=2)

@pytest.mark.parametrize('n', [0, 257])
def test_show_images_refuses(n):
    with pytest.raises(ValueError, match=f'got {n} images: give 1 to 256'): show_images(torch.rand(n,2,2))

def test_show_images_of_flat_rows():
    with pytest.raises(ValueError, match=r'got an image of shape \(784,\)'): show_images(torch.rand(3,784))


# layers

stats = torch.rand(5,30)

@pytest.mark.parametrize('conv', [
    lambda t: t, lambda t: t.numpy(), lambda t: t.tolist(), lambda t: list(t), lambda t: [list(s) for s in t],
    lambda t: [list(s.clone().requires_grad_().unbind()) for s in t], lambda t: [s.numpy() for s in t]],
    ids=['tensor','array','lists','rows','0-d','with grad','arrays'])
def test_plot_layers_data(conv):
    ax = plot_layers(conv(stats), title='t', ylabel='y (units)')
    assert texts(ax) == ('t','iteration','y (units)')
    assert_close(torch.tensor(np.array([o.get_ydata() for o in ax.lines])).float(), stats)
    assert ax.lines[0].get_xdata().tolist() == list(range(30))
    assert [o.get_color() for o in ax.lines] == layer_colors(5)

def overlaps(a, b):
    return a.x0 < b.x1 - 1 and b.x0 < a.x1 - 1 and a.y0 < b.y1 - 1 and b.y0 < a.y1 - 1

@pytest.mark.parametrize('n', [1, 5, 10])
def test_plot_layers_legend(n):
    ax = plot_layers(torch.rand(n,4), labels=[f'layer {i}' for i in range(n)])
    fig,leg = ax.figure,ax.get_legend()
    fig.canvas.draw()
    assert [t.get_text() for t in leg.get_texts()] == [f'layer {i}' for i in range(n)]
    assert len(fig.axes) == 1
    assert [o.get_color() for o in leg.get_lines()] == layer_colors(n)
    box = leg.get_window_extent()
    assert box.x0 >= ax.get_window_extent().x1 - 1                             # beside the plot
    assert box.x1 <= fig.bbox.x1 + 1 and box.y1 <= fig.bbox.y1 + 1 and box.y0 >= fig.bbox.y0 - 1

@pytest.mark.parametrize('n', [11, 12, 50, 200])
def test_plot_layers_colour_bar(n):
    ax = plot_layers(torch.rand(n,4))
    fig = ax.figure
    fig.canvas.draw()
    assert ax.get_legend() is None and len(fig.axes) == 2 and fig.axes[1].get_ylabel() == 'layer'
    ticks = fig.axes[1].get_yticklabels()
    assert 4 <= len(ticks) <= 7 and ticks[0].get_text() == '0' and ticks[-1].get_text() == str(n-1)
    boxes = [t.get_window_extent() for t in ticks]
    assert not any(overlaps(a, b) for i,a in enumerate(boxes) for b in boxes[:i])
    heights = fig.axes[1].get_yticks()
    assert heights.tolist() == [int(t.get_text()) for t in ticks]   # a tick stands at its own layer
    mesh = fig.axes[1].collections[-1]
    for off in (-.4,0,.4):                                                    # in the middle of its colour
        assert [to_hex(mesh.cmap(mesh.norm(i + off))) for i in range(n)] == layer_colors(n)

def test_plot_layers_labels_on_the_bar():
    ax = plot_layers(torch.rand(20,3), labels=[f'conv{i}' for i in range(20)])
    labels = [t.get_text() for t in ax.figure.axes[1].get_yticklabels()]
    assert labels[0] == 'conv0' and labels[-1] == 'conv19'

def test_plot_layers_details():
    ax0 = plt.subplots()[1]
    ax = plot_layers([[1,2,3],[4]], ax0, every=10, xlabel='batch')
    assert ax is ax0 and ax.lines[1].get_ydata().tolist() == [4]
    assert ax.lines[0].get_xdata().tolist() == [0,10,20]
    assert ax.get_xlabel() == 'batch' and ax.lines[0].get_linewidth() > ax.lines[1].get_linewidth()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ['0','1']

def test_plot_layers_refuses():
    with pytest.raises(ValueError, match='got no layers'): plot_layers([])
    with pytest.raises(ValueError, match='got 2 labels for 5 layers'): plot_layers(stats, labels=['a','b'])
    assert not plt.get_fignums()


# histograms

def test_plot_hists():
    h = torch.randint(5, 1000, (40,60))
    ax = plot_hists(h, rng=(-7,7), title='t', ylabel='activation of layer 3')
    im,bar = ax.images[0],ax.figure.axes[1]
    assert_close(torch.from_numpy(shown(ax)), h.double().log1p())
    assert list(im.get_extent()) == [0,60,-7,7] and im.origin == 'lower'
    assert bar.get_ylabel() == 'log(1 + count)'
    assert texts(ax) == ('t','iteration','activation of layer 3') and im.get_clim()[0] == 0

def test_plot_hists_first_bin_is_at_the_bottom():
    h = torch.zeros(4,2)
    h[0] = 9
    ax = plot_hists(h, rng=(0,8))
    inside = ax.transData.transform((.5,1.))         # iteration 0, activation 1: the first bin
    class At: x,y = inside
    assert ax.images[0].get_cursor_data(At) == pytest.approx(np.log(10))

@pytest.mark.parametrize('conv', [
    lambda t: t.numpy(), lambda t: t.tolist(), lambda t: t.half(), lambda t: t.bfloat16(), lambda t: t.int()])
def test_plot_hists_data(conv):
    h = torch.tensor([[1.,2,0],[0,4,8]])
    assert_close(torch.from_numpy(shown(plot_hists(conv(h)))), h.double().log1p())

def test_plot_hists_arguments():
    ax0 = plt.subplots()[1]
    ax = plot_hists(torch.ones(3,4), ax0, every=5, vmin=0, vmax=9, cmap='gray', xlabel='batch')
    im = ax.images[0]
    assert ax is ax0 and list(im.get_extent()) == [0,20,0,10] and im.get_clim() == (0,9)
    assert ax.get_xlabel() == 'batch' and im.get_cmap().name == 'gray'
    plot_hists(torch.zeros(3,4))                      # nothing counted is no reason to fail

@pytest.mark.parametrize('bad,msg', [
    (torch.ones(5), r'shape \(5,\)'), (torch.ones(2,3,4), r'give \(bins, iterations\)'),
    (torch.ones(40,0), r'shape \(40, 0\)'), (-torch.ones(2,2), 'got -1 as a count'),
    (torch.zeros(2,2).log(), 'got -inf as a count')])
def test_plot_hists_refuses(bad, msg):
    with pytest.raises(ValueError, match=msg): plot_hists(bad)
    with pytest.raises(ValueError, match='give .low, high.'): plot_hists(torch.ones(2,2), rng=(1,1))
    assert not plt.get_fignums()


# functions

def kinked(x): return 0. if x < .5 else x

@pytest.mark.parametrize('f', [
    torch.relu, torch.nn.ReLU(), math.cos, kinked, lambda x: x**2, lambda x: 3,
    lambda x: torch.tensor([float(x)]),
    lambda x: float(x), torch.nn.GELU()])
def test_plot_func(f):
    ax = plot_func(f, -2, 3, n=11, title='t', xlabel='x', ylabel='y')
    xs,ys = ax.lines[0].get_data()
    want = [f(x) for x in torch.linspace(-2,3,11)]
    want = [float(y.item() if isinstance(y, torch.Tensor) else y) for y in want]
    assert_close(xs, np.linspace(-2,3,11), atol=1e-6, rtol=0)
    assert ys.tolist() == want and texts(ax) == ('t','x','y') and ax.get_legend() is None

def test_plot_func_ends_exactly():
    xs = plot_func(lambda x: x).lines[0].get_xdata()
    assert xs[0] == 0 and xs[-1] == 1 and len(xs) == 101

def test_plot_func_second_line():
    ax = plot_func(torch.relu, label='relu')
    assert plot_func(torch.tanh, ax=ax, label=2) is ax and len(plt.get_fignums()) == 1
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ['relu','2']
    assert [o.get_color() for o in ax.lines] == [COLORS['train'], COLORS['valid']]

def test_plot_func_with_gradients():
    lin = torch.nn.Linear(1,1)
    plot_func(lambda x: lin(x[None]))

def test_plot_func_refuses():
    with pytest.raises(ValueError, match='got n=1: a line needs 2 points'): plot_func(torch.relu, n=1)
    with pytest.raises(ValueError, match='one element each'): plot_func(lambda x: torch.ones(3))
    assert not plt.get_fignums()


# the module

def test_quiet(tmp_path):
    "Nothing warns from the data to the file"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        axs = plot_layers(stats), plot_layers(torch.rand(50,9)), show_image(grey), plot_hists(torch.ones(4,4))
        for ax in axs:
            ax.figure.savefig(tmp_path/'a.png')
            assert (tmp_path/'a.png').stat().st_size > 500

def test_no_pyplot_before_a_plot_and_no_display_for_one():
    code = '''if True:
        import os, sys
        for k in ('DISPLAY', 'WAYLAND_DISPLAY', 'MPLBACKEND'): os.environ.pop(k, None)
        from minifast.plot import show_images
        assert not [m for m in sys.modules if m.split('.')[0] in ('matplotlib', 'PIL', 'IPython')]
        import torch
        show_images(torch.rand(2,4,4))[0].figure.canvas.draw()
        assert 'matplotlib.pyplot' in sys.modules'''
    subprocess.run([sys.executable, '-W', 'error', '-c', code], check=True)

def test_every_name_is_documented():
    for name in plot.__all__: assert name == 'COLORS' or getattr(plot, name).__doc__
