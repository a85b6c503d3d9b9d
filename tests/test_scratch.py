"scratch: the Learner written from tensors and autograd; PyTorch is the oracle"
import copy
import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import exact, gpu
from PIL import Image
from torch import nn
from torch.testing import assert_close

import minifast.all
from minifast.core import set_seed
from minifast.files import mnist_folder
from minifast.scratch import (
    AdaptivePool, Callback, CancelBatchException, CancelEpochException, CancelFitException, ConvLayer, DataLoader,
    DataLoaders, Dataset, Learner, Linear, LRFinder, Module, Normalize, OneCycle, Parameter, Sequential,
    SetupLearnerCB, TrackResults, SGD, collate, cross_entropy, log_softmax, nll, simple_cnn)

@pytest.fixture(scope='module')
def digits(tmp_path_factory): return mnist_folder(tmp_path_factory.mktemp('data')/'digits', 60, 20)

def picture(f, size=(40, 30), color=(250, 10, 120)):
    f.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, color).save(f)

def pairs(n=24, nx=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(nx, generator=g), i % 3) for i in range(n)]

def lin(nx=6, n=3): return Sequential(Linear(nx, n))
def dls(n=24, bs=8): return DataLoaders(DataLoader(pairs(n), bs), DataLoader(pairs(n), bs))


# --- a closed namespace

def test_it_is_not_in_all(): assert minifast.all.Learner is not Learner and not hasattr(minifast.all, 'simple_cnn')


# --- data

def test_dataset(digits):
    ds = Dataset(digits/'train')
    assert len(ds) == 60 and ds.classes == [str(i) for i in range(10)]
    for i in (0, 17, 59):
        x, y = ds[i]
        assert x.shape == (64, 64, 3) and x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1
        assert ds.classes[y] == ds.files[i].parent.name
        with Image.open(ds.files[i]) as im: want = np.array(im.convert('RGB').resize((64, 64), Image.Resampling.BILINEAR))
        assert_close(x, torch.from_numpy(want)/255)

def test_dataset_of_colours(tmp_path):
    for name, color in dict(red=(255, 0, 0), blue=(0, 0, 255)).items(): picture(tmp_path/name/'a.png', color=color)
    ds = Dataset(tmp_path, size=16)
    assert ds.classes == ['blue', 'red'] and ds[0][1] == 0
    assert_close(ds[0][0], torch.tensor([0., 0, 1]).expand(16, 16, 3)); assert_close(ds[1][0][3, 4], torch.tensor([1., 0, 0]))

def test_large_photographs_are_decoded_smaller(tmp_path):
    "A DCT-scaled decode gives nearly the picture that decoding all of it and scaling gives"
    a = np.linspace(0, 255, 512*384).reshape(384, 512, 1).repeat(3, 2).astype(np.uint8)
    (tmp_path/'a').mkdir()
    Image.fromarray(a).save(tmp_path/'a/1.jpg', quality=95)
    want = torch.from_numpy(np.array(Image.fromarray(a).resize((64, 64), Image.Resampling.BILINEAR)))/255
    assert (Dataset(tmp_path)[0][0] - want).abs().mean() < .01

def test_validation_uses_the_classes_of_training(tmp_path):
    for name in 'abc': picture(tmp_path/f'train/{name}/1.jpg')
    picture(tmp_path/'valid/c/1.jpg')
    assert Dataset(tmp_path/'valid', Dataset(tmp_path/'train').classes)[0][1] == 2
    picture(tmp_path/'valid/d/1.jpg')
    with pytest.raises(ValueError, match='valid/d is a class that is not among'): Dataset(tmp_path/'valid', list('abc'))

def test_bad_folders(tmp_path):
    (tmp_path/'none').mkdir()
    with pytest.raises(ValueError, match='none holds no pictures'): Dataset(tmp_path/'none')
    with pytest.raises(NotADirectoryError, match='gone'): Dataset(tmp_path/'gone')
    picture(tmp_path/'two/x/cat/1.jpg'); picture(tmp_path/'two/y/cat/1.jpg')
    with pytest.raises(ValueError, match='two/. ?/?cat and .*two/./cat are two classes of one name'): Dataset(tmp_path/'two')
    picture(tmp_path/'empty/cat/1.jpg')
    (tmp_path/'empty/dog').mkdir()
    with pytest.raises(ValueError, match='empty/dog is a class without pictures'): Dataset(tmp_path/'empty')

@pytest.fixture
def with_a_bad_one(tmp_path):
    for i in range(40): picture(tmp_path/f'a/{i:02}.jpg')
    (tmp_path/'a/25.jpg').write_bytes(b'not a picture')
    return Dataset(tmp_path)

def test_collate(digits):
    ds = Dataset(digits/'train', size=16)
    xb, yb = collate([3, 1, 4], ds)
    assert xb.shape == (3, 16, 16, 3) and yb.dtype == torch.int64
    for x, y, i in zip(xb, yb, (3, 1, 4)):
        exact(x, ds[i][0])
        assert y == ds[i][1]

CONTEXTS = [o for o in ('fork', 'spawn', 'forkserver') if o in multiprocessing.get_all_start_methods()]
quiet_fork = pytest.mark.filterwarnings('ignore:This process .* is multi-threaded')

@quiet_fork
@pytest.mark.parametrize('n_workers, context', [(0, None), *[(n, c) for c in CONTEXTS for n in ((1, 3) if c == 'fork' else (2,))]])
def test_loader(digits, n_workers, context):
    ds = Dataset(digits/'train', size=8)
    dl = DataLoader(ds, 7, n_workers=n_workers, context=context)
    got = list(dl)
    assert len(dl) == len(got) == 9 and [len(y) for _, y in got] == [7]*8 + [4]
    exact(torch.cat([x for x, _ in got]), torch.stack([x for x, _ in ds]))
    assert torch.cat([y for _, y in got]).tolist() == [y for _, y in ds]
    assert multiprocessing.active_children() == []

@quiet_fork
def test_each_item_once_in_a_new_order():
    for n in (0, 2):
        dl = DataLoader([(torch.tensor([i]), i) for i in range(50)], 7, shuffle=True, n_workers=n)
        set_seed(3)
        a, b = (torch.cat([y for _, y in dl]).tolist() for _ in range(2))
        assert sorted(a) == sorted(b) == list(range(50)) and a != b
        set_seed(3)
        assert torch.cat([y for _, y in dl]).tolist() == a

@quiet_fork
@pytest.mark.parametrize('n_workers', [0, 2])
def test_an_error_names_the_file(with_a_bad_one, n_workers):
    got = []
    with pytest.raises(ValueError, match="25.jpg isn't a picture"):
        for xb, _ in DataLoader(with_a_bad_one, 4, n_workers=n_workers): got.append(len(xb))
    assert got == [4]*6 and multiprocessing.active_children() == []

@quiet_fork
def test_an_early_break_leaves_no_process(digits):
    for xb, _ in DataLoader(Dataset(digits/'train'), 4, n_workers=2):
        assert len(multiprocessing.active_children()) == 2
        break
    assert multiprocessing.active_children() == []
    with pytest.raises(ZeroDivisionError):
        for xb, _ in DataLoader(Dataset(digits/'train'), 4, n_workers=2): 1/0
    assert multiprocessing.active_children() == []

CTRL_C = """import multiprocessing, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from minifast.scratch import *
if __name__ == '__main__':
    try:
        for i, _ in enumerate(DataLoader(Dataset(sys.argv[1]), 2, n_workers=2)):
            print('batch', flush=True)
            time.sleep(.2)
    except KeyboardInterrupt: print('children', multiprocessing.active_children(), flush=True)
"""

@pytest.mark.skipif(os.name == 'nt', reason='no SIGINT to a group there')
def test_ctrl_c_leaves_no_process(digits, tmp_path):
    (tmp_path/'go.py').write_text(CTRL_C)
    with subprocess.Popen([sys.executable, '-W', 'ignore', tmp_path/'go.py', digits/'train'], text=True, stdout=-1,
                          start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)) as p:
        assert p.stdout.readline() == 'batch\n'
        os.killpg(p.pid, signal.SIGINT)   # as a terminal does: to the workers too
        rest = p.stdout.read()
        assert rest.split('\n')[-2] == 'children []' and p.wait(30) == 0
        with pytest.raises(ProcessLookupError): os.killpg(p.pid, 0)   # nobody of its group is left

@pytest.mark.parametrize('kw', [dict(ds=[]), dict(bs=0), dict(n_workers=-1)])
def test_bad_loader(kw):
    with pytest.raises(ValueError, match='a loader needs'): DataLoader(**{**dict(ds=pairs()), **kw})

def test_normalize():
    x = torch.rand(5, 7, 6, 3)*torch.tensor([1., 2, 3]) + 1
    norm = Normalize((x.mean((0, 1, 2)), x.std((0, 1, 2))))
    out = norm(x)
    assert out.shape == (5, 3, 7, 6)
    assert_close(out.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    assert_close(out.std((0, 2, 3)), torch.ones(3))
    assert_close(norm(x[:1]), (x[:1].permute(0, 3, 1, 2) - x.mean((0, 1, 2))[:, None, None])/x.std((0, 1, 2))[:, None, None])


# --- modules

class Net(Module):
    def __init__(self):
        self.w = Parameter(torch.ones(2))
        self.inner = Sequential(Linear(3, 4), Linear(4, 5))
        self.tail = Linear(5, 6)

def shapes(m): return [tuple(p.shape) for p in m.parameters()]

def test_parameters_in_order():
    assert shapes(Net()) == [(2,), (4, 3), (4,), (5, 4), (5,), (6, 5), (6,)]

def test_reassignment():
    net = Net()
    net.tail, net.w = Linear(5, 1), Parameter(torch.zeros(9))
    assert shapes(net) == [(9,), (4, 3), (4,), (5, 4), (5,), (1, 5), (1,)]
    net.tail = None
    assert len(net.parameters()) == 5
    net.w = torch.zeros(9)   # a plain tensor isn't trained
    assert len(net.parameters()) == 4
    del net.inner
    assert net.parameters() == []

def test_shared_modules_count_once():
    one = Linear(4, 4)
    net = Sequential(one, one, Sequential(one, Linear(4, 2)))
    net.tied = one.w
    assert shapes(net) == [(4, 4), (4,), (2, 4), (2,)]
    F.mse_loss(net(torch.ones(3, 4)), torch.zeros(3, 2)).backward()
    before = [p.detach().clone() for p in net.parameters()]
    grads = [p.grad.clone() for p in net.parameters()]
    SGD(net.parameters(), .1).step()
    for p, was, g in zip(net.parameters(), before, grads): assert_close(p.detach(), was - .1*g)

def test_training_flag():
    net = Net()
    assert not net.training
    net.training = True
    assert net.training and net.inner.training and net.inner.layers[1].training and net.tail.training
    net.inner.training = False
    assert net.training and not net.inner.layers[0].training and net.tail.training

def test_hook():
    seen, m = [], Linear(3, 2)
    m.hook = lambda res, args: seen.append((res.shape, args[0].shape))
    net = Sequential(m, Linear(2, 1))
    net(torch.ones(5, 3))
    m.hook = None
    net(torch.ones(5, 3))
    assert seen == [((5, 2), (5, 3))]

def test_move():
    net = Net()
    (net.inner(torch.ones(1, 3))**2).sum().backward()
    assert net.to(torch.float64) is net and {p.dtype for p in net.parameters()} == {torch.float64}   # as a device does
    assert all(isinstance(p, Parameter) and p.requires_grad for p in net.parameters())

@pytest.mark.parametrize('copied', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=['deepcopy', 'pickle'])
def test_copies(copied):
    set_seed(0)
    net = simple_cnn()
    net.layers[1].w.requires_grad_(False)
    net.training = True
    new = copied(net)
    x = torch.randn(2, 3, 16, 16)
    exact(new(x), net(x))
    assert new.training and len(new.parameters()) == 10 and all(type(p) is Parameter for p in new.parameters())
    assert [p.requires_grad for p in new.parameters()] == [p.requires_grad for p in net.parameters()]
    with torch.no_grad(): new.layers[0].w += 1
    assert not torch.equal(new.layers[0].w, net.layers[0].w)

def test_copies_keep_what_is_shared():
    one = Linear(4, 4)
    new = copy.deepcopy(Sequential(one, one))
    assert new.layers[0] is new.layers[1] and len(new.parameters()) == 2

def test_results_are_plain_tensors():
    p = Parameter(torch.ones(3))
    assert p.requires_grad and p.is_leaf
    for o in (p*2, p.detach(), p.sum(), torch.stack([p, p])): assert type(o) is torch.Tensor

def test_no_forward():
    with pytest.raises(NotImplementedError, match='Net has no forward'): Net()(1)

@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('bias, act', [(True, True), (False, False)])
def test_conv_layer(stride, bias, act):
    set_seed(0)
    m = ConvLayer(3, 5, stride, bias, act)
    if bias:
        with torch.no_grad(): m.b += torch.randn(5)
    x, theirs = torch.randn(4, 3, 9, 6), nn.Conv2d(3, 5, 3, stride, 1, bias=bias)
    theirs.load_state_dict(dict(weight=m.w.detach(), **(dict(bias=m.b.detach()) if bias else {})))
    out, want = m(x), theirs(x).relu() if act else theirs(x)
    assert_close(out, want)
    out.square().sum().backward(); want.square().sum().backward()
    assert_close(m.w.grad, theirs.weight.grad)
    assert len(m.parameters()) == 1 + bias

def test_start():
    set_seed(0)
    assert abs(ConvLayer(64, 128).w.std() - math.sqrt(2/(64*9))) < .001
    assert abs(ConvLayer(64, 128, act=False).w.std() - math.sqrt(1/(64*9))) < .001
    x = torch.randn(256, 3, 32, 32)
    for layer in simple_cnn().layers[:4]:
        x = layer(x)
        assert .3 < x.std() < 1.5

def test_linear_and_pool():
    set_seed(0)
    m, x = Linear(6, 4), torch.randn(3, 6)
    with torch.no_grad(): m.b += torch.randn(4)
    assert_close(m(x), F.linear(x, m.w, m.b))
    x = torch.randn(2, 5, 3, 7)
    assert_close(AdaptivePool()(x), F.adaptive_avg_pool2d(x, 1).flatten(1))

def test_simple_cnn():
    net = simple_cnn()
    assert len(net.parameters()) == 10 and sum(p.numel() for p in net.parameters()) == 98_730
    assert net(torch.randn(2, 3, 50, 41)).shape == (2, 10) and simple_cnn(7)(torch.randn(1, 3, 64, 64)).shape == (1, 7)


# --- loss and optimiser

@pytest.mark.parametrize('scale', [1, 30, 1e4])
def test_losses(scale):
    set_seed(0)
    x, y = torch.randn(7, 5)*scale, torch.tensor([0, 4, 2, 2, 1, 3, 0])
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    assert_close(log_softmax(x), F.log_softmax(x, 1)); assert_close(nll(x, y), F.nll_loss(x, y))
    ours, theirs = cross_entropy(a, y), F.cross_entropy(b, y)
    assert_close(ours, theirs)
    ours.backward(); theirs.backward()
    assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-5)

@pytest.mark.parametrize('wd', [0., .3])
def test_sgd(wd):
    set_seed(0)
    start = torch.randn(4, 3)
    a, b = Parameter(start.clone()), nn.Parameter(start.clone())
    unused = Parameter(torch.ones(2))
    ours, theirs = SGD([a, unused], .1, wd), torch.optim.SGD([b], .1, weight_decay=wd)
    for i in range(6):
        for p, opt in ((a, ours), (b, theirs)):
            (p**3).sum().backward()
            opt.step()
            opt.zero_grad()
        ours.lr = theirs.param_groups[0]['lr'] = .1/(i + 2)
        assert_close(a.detach(), b.detach())
        assert a.grad is None
    exact(unused.detach(), torch.ones(2))

def test_sgd_takes_a_generator():
    p = Parameter(torch.ones(1))
    opt = SGD((o for o in [p]), .5)
    for _ in range(2):
        p.sum().backward()
        opt.step()
    assert p.item() == 0

def test_the_same_losses_as_pytorch():
    set_seed(0)
    model, few = simple_cnn(), [(torch.randn(16, 3, 32, 32).double(), torch.randint(0, 10, (16,))) for _ in range(20)]
    for p in model.parameters(): p.data = p.data.double()   # in float32 a rounding error may grow
    def conv(o):
        c = nn.Conv2d(o.w.shape[1], len(o.w), 3, 2, 1)
        c.load_state_dict(dict(weight=o.w.detach(), bias=o.b.detach()))
        return nn.Sequential(c, nn.ReLU())
    last = nn.Linear(128, 10)
    last.load_state_dict(dict(weight=model.layers[-1].w.detach(), bias=model.layers[-1].b.detach()))
    theirs = nn.Sequential(*map(conv, model.layers[:4]), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last).double()
    kept = Kept()
    Learner(model, DataLoaders(few, few), cross_entropy, .05, [kept]).fit(1)
    opt, losses = torch.optim.SGD(theirs.parameters(), .05), []
    for xb, yb in few:
        loss = F.cross_entropy(theirs(xb), yb)
        losses.append(loss.item())
        loss.backward(); opt.step(); opt.zero_grad()
    assert_close(kept.losses[:20], losses, atol=1e-9, rtol=0)


# --- the loop

class Kept(Callback):
    def before_fit(self): self.losses = []
    def after_batch(self): self.losses.append(self.loss.item())

EVENTS = [f'{when}_{what}' for what in ('fit', 'epoch', 'batch') for when in ('before', 'after')]

class Tell(Callback):
    "Notes all events; raises `exc` at the first `at`"
    def __init__(self, at=None, exc=None): self.said, self.at, self.exc = [], at, exc
    def __getattribute__(self, k):
        if k not in EVENTS: return super().__getattribute__(k)
        def event():
            self.said.append(k)
            if k == self.at and self.said.count(k) == 1: raise self.exc
        return event

BATCH, PASS = ['before_batch', 'after_batch'], ['before_epoch', *['before_batch', 'after_batch']*3, 'after_epoch']

def told(at=None, exc=None, epochs=2):
    learn = Learner(lin(), dls(), cross_entropy, .1, [tell := Tell(at, exc)])
    learn.fit(epochs)
    return tell.said, learn

def test_events():
    assert told()[0] == ['before_fit', *PASS*4, 'after_fit']
    assert told(epochs=0)[0] == ['before_fit', 'after_fit']

AFTER_CANCEL = {
    ('before_batch', CancelBatchException): ['before_fit', 'before_epoch', 'before_batch', *BATCH*2, 'after_epoch', *PASS*3],
    ('after_batch', CancelBatchException): ['before_fit', *PASS*4],
    ('before_epoch', CancelEpochException): ['before_fit', 'before_epoch', *PASS*3],
    ('before_batch', CancelEpochException): ['before_fit', 'before_epoch', 'before_batch', *PASS*3],
    ('after_batch', CancelEpochException): ['before_fit', 'before_epoch', *BATCH, *PASS*3],
    ('after_epoch', CancelEpochException): ['before_fit', *PASS*4],
    ('before_fit', CancelFitException): ['before_fit'],
    ('before_epoch', CancelFitException): ['before_fit', 'before_epoch'],
    ('before_batch', CancelFitException): ['before_fit', 'before_epoch', 'before_batch'],
    ('after_batch', CancelFitException): ['before_fit', 'before_epoch', *BATCH],
    ('after_epoch', CancelFitException): ['before_fit', *PASS],
    ('after_fit', CancelFitException): ['before_fit', *PASS*4]}

@pytest.mark.parametrize('at, exc', AFTER_CANCEL)
def test_cancel(at, exc):
    said, learn = told(at, exc)
    assert said == [*AFTER_CANCEL[at, exc], 'after_fit']
    learn.fit(1)   # and again

@pytest.mark.parametrize('at', EVENTS)
def test_an_error_passes_and_after_fit_is_called(at):
    learn = Learner(lin(), dls(), cross_entropy, .1, [tell := Tell(at, ZeroDivisionError)])
    with pytest.raises(ZeroDivisionError): learn.fit(1)
    assert tell.said[-1] == 'after_fit'
    assert torch.is_grad_enabled()

def test_validation_keeps_no_graph_and_changes_nothing():
    class Look(Callback):
        def before_fit(self): self.seen = []
        def after_batch(self): self.seen.append((self.model.training, self.preds.requires_grad))
    set_seed(0)
    learn = Learner(lin(), dls(), cross_entropy, .1, [look := Look()])
    learn.fit(1)
    assert look.seen == [(True, True)]*3 + [(False, False)]*3
    w = [p.detach().clone() for p in learn.model.parameters()]
    learn.one_epoch(False)
    for p, was in zip(learn.model.parameters(), w): exact(p.detach(), was)

def test_callback():
    cb = Callback()
    with pytest.raises(AttributeError, match='no learner yet'): cb.model
    assert not hasattr(cb, 'before_fit')
    for new in (copy.deepcopy(cb), pickle.loads(pickle.dumps(cb))): assert 'learner' not in vars(new)
    a, b = (Learner(lin(), dls(), cross_entropy, .1, [cb]) for _ in range(2))
    a.fit(1)
    b.fit(1)
    assert cb.model is b.model and cb.lr == .1   # the one that trains
    with pytest.raises(AttributeError): cb.no_such_thing

def test_setup():
    norm = Normalize((torch.full((3,), .5), torch.full((3,), 2.)))
    xb = torch.rand(4, 8, 9, 3)
    seen = []
    class Look(Callback):
        def before_batch(self): seen.append(self.batch[0])
    few = [(xb, torch.tensor([0, 1, 2, 3]))]
    Learner(simple_cnn(), DataLoaders(few, few), cross_entropy, .1, [SetupLearnerCB(norm, torch.device('cpu')), Look()]).fit(1)
    for x in seen: assert_close(x, norm(xb))

@gpu
def test_setup_on_a_gpu():
    few = [(torch.rand(4, 3, 8, 9), torch.tensor([0, 1, 2, 3]))]
    learn = Learner(simple_cnn(), DataLoaders(few, few), cross_entropy, .1, [SetupLearnerCB(device=torch.device('cuda')), kept := Kept()])
    learn.fit(2)
    assert learn.batch[0].is_cuda and all(p.is_cuda for p in learn.model.parameters()) and kept.losses[-1] < kept.losses[0]

def test_results(capsys):
    set_seed(0)
    data = pairs(20)
    learn = Learner(model := lin(), DataLoaders(DataLoader(data, 8), DataLoader(data, 7)), cross_entropy, .1, [track := TrackResults()])
    learn.fit(2)
    x, y = collate(range(20), data)
    with torch.no_grad():
        want = F.cross_entropy(model(x), y).item(), (model(x).argmax(1) == y).float().mean().item()
    assert [o[:2] for o in track.history] == [(0, 'train'), (0, 'valid'), (1, 'train'), (1, 'valid')]
    assert_close(torch.tensor(track.history[-1][2:]), torch.tensor(want))   # a last batch of 6 counts for 6
    out = capsys.readouterr().out.split('\n')
    assert len(out) == 5 and f'loss {want[0]:.4f}  accuracy {want[1]:.4f}' in out[3]
    assert not track.sums.requires_grad

def test_finder():
    set_seed(0)
    model = lin()
    start = [p.detach().clone() for p in model.parameters()]
    learn = Learner(model, dls(), cross_entropy, .3, [find := LRFinder()])
    learn.fit(100)
    assert_close(torch.tensor(find.lrs), 1e-6*1.2**torch.arange(len(find.lrs)), rtol=1e-4, atol=0)
    assert find.lrs[-1] <= 10 < find.lrs[-1]*1.2 and len(find.lrs) == len(find.losses) == 89
    for p, was in zip(model.parameters(), start): exact(p.detach(), was)
    assert learn.lr == learn.opt.lr == .3

def test_finder_stops_at_nan():
    def broken(scores, y): return cross_entropy(scores, y)*(math.nan if find.learner.opt.lr > 1e-5 else 1)
    find = LRFinder()
    learn = Learner(lin(), dls(), broken, .3, [find])
    learn.fit(100)
    assert find.lrs[-1] < 1e-5 < find.lrs[-1]*1.2 and learn.opt.lr == .3
    assert all(p.isfinite().all() for p in learn.model.parameters())

def test_finder_after_an_error():
    class Stop(Callback):
        def before_fit(self): raise CancelFitException
    model = lin()
    start = [p.detach().clone() for p in model.parameters()]
    Learner(model, dls(), cross_entropy, .3, [Stop(), LRFinder()]).fit(1)   # it never began
    with pytest.raises(ZeroDivisionError):
        Learner(model, dls(), cross_entropy, 1., [LRFinder(), Tell('after_epoch', ZeroDivisionError)]).fit(1)
    for p, was in zip(model.parameters(), start): exact(p.detach(), was)

def test_one_cycle():
    cycle = OneCycle(.8)
    learn = Learner(lin(), dls(96, 8), cross_entropy, .1, [cycle])
    learn.fit(5)
    assert len(cycle.lrs) == 60 and cycle.lrs[0] == pytest.approx(.08) and max(cycle.lrs) == pytest.approx(.8)
    assert cycle.lrs.index(max(cycle.lrs)) == 15 and cycle.lrs[-1] == pytest.approx(.8/45)
    assert np.ptp(np.diff(cycle.lrs[:16])) < 1e-9 and np.ptp(np.diff(cycle.lrs[15:])) < 1e-9
    assert learn.opt.lr == cycle.lrs[-1]

def test_plots():
    cycle, find = OneCycle(.1), LRFinder()
    for cb in (cycle, find): Learner(lin(), dls(), cross_entropy, .1, [cb]).fit(2)
    for o in (cycle.plot(), find.plot()): assert o.get_xlabel() and o.get_ylabel()
    assert find.plot().get_xscale() == 'log' and len(cycle.plot().lines[0].get_xdata()) == 6


# --- what comes from elsewhere

def test_a_learner_takes_pytorchs_modules():
    "… and every layer of them is in the mode of the pass"
    class Modes(Callback):
        def before_fit(self): self.seen = []
        def after_batch(self): self.seen.append({m.training for m in self.model.modules()})
    net = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.Dropout()), nn.Linear(8, 3))
    Learner(net, dls(), cross_entropy, .1, [modes := Modes()]).fit(1)
    assert modes.seen == [{True}]*3 + [{False}]*3

def test_a_list_of_files_is_no_folder(digits):
    with pytest.raises(TypeError, match='got 2 files: give the folder'): Dataset([digits/'a.jpg', digits/'b.jpg'])
