"minifast.learner: the box, the model for flat rows, and what create_learner refuses"
import pickle
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.testing import assert_close

from helpers import exact, small
from minifast.data import DataBunch, DataLoader, Dataset, get_dls
from minifast.learner import Learner, create_learner, get_model
from minifast.losses import cross_entropy


def bunch(n=64, m=7, c=3, bs=16, shape=None):
    "Three clouds of points that a small model can tell apart"
    y = torch.arange(n) % c
    x = torch.randn(n, *(shape or (m,))) + (0 if shape else 4*F.one_hot(y, m))
    ds = Dataset(x, y)
    return DataBunch(*get_dls(ds, ds, bs), c)


def holds(opt, model):
    "Are the parameters of the optimiser those of the model, the very same tensors?"
    return all(p is q for p, q in zip(opt.param_groups[0]['params'], model.parameters(), strict=True))


def mean_loss(learn):
    ds = learn.data.valid_ds
    with torch.no_grad(): return F.cross_entropy(learn.model(ds.x), ds.y).item()


def train(learn, epochs):
    for _ in range(epochs):
        for xb, yb in learn.data.train_dl:
            learn.loss_func(learn.model(xb), yb).backward()
            learn.opt.step(); learn.opt.zero_grad()


def test_learner_is_a_plain_box():
    parts = object(), object(), object(), object()
    learn = Learner(*parts)
    assert (learn.model, learn.opt, learn.loss_func, learn.data) == parts
    assert list(vars(learn)) == ['model', 'opt', 'loss_func', 'data']
    learn = Learner(model=1, opt=2, loss_func=3, data=4)
    learn.model = 5
    assert learn.model == 5
    with pytest.raises(TypeError): Learner(1, 2, 3)


def test_repr():
    learn = create_learner(partial(get_model, lr=.25), cross_entropy, bunch())
    assert repr(learn) == ('Learner\n  model     Sequential, 553 parameters\n  opt       SGD, lr 0.25\n'
                           '  loss_func cross_entropy\n  data      DataBunch')
    m = nn.Linear(2, 2)
    groups = optim.Adam([{'params': [m.weight], 'lr': .1}, {'params': [m.bias], 'lr': .01}])
    text = repr(Learner(m, groups, nn.CrossEntropyLoss(), None))
    assert 'Linear, 6 parameters' in text and 'Adam, lr 0.1, 0.01' in text
    assert 'CrossEntropyLoss' in text and 'NoneType' in text
    for odd in (object(), lambda x: x, partial(cross_entropy), [1], None):
        assert '0x' not in repr(Learner(odd, odd, odd, odd))


def test_subclass_shows_its_name():
    class Mine(Learner): pass
    assert repr(Mine(1, 2, 3, 4)).startswith('Mine\n')


def test_pickle_and_deepcopy():
    learn = create_learner(get_model, cross_entropy, bunch())
    for new in (deepcopy(learn), pickle.loads(pickle.dumps(learn))):
        assert mean_loss(new) == mean_loss(learn)
        assert holds(new.opt, new.model)
        before = mean_loss(learn)
        train(new, 1)
        assert mean_loss(learn) == before                       # nothing is shared


@pytest.mark.parametrize('m, c, nh, lr', [(7, 3, 50, .5), (1, 1, 1, .01), (784, 10, 20, 1.)])
def test_get_model(m, c, nh, lr):
    model, opt = get_model(bunch(m=m, c=c), lr=lr, nh=nh)
    assert [type(o) for o in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [tuple(p.shape) for p in model.parameters()] == [(nh, m), (nh,), (c, nh), (c,)]
    assert type(opt) is optim.SGD and opt.param_groups[0]['lr'] == lr and opt.param_groups[0]['momentum'] == 0
    assert len(opt.param_groups) == 1
    assert holds(opt, model)
    assert model(torch.randn(5, m)).shape == (5, c)


def test_defaults_are_those_of_2019():
    model, opt = get_model(bunch())
    assert model[0].out_features == 50 and opt.param_groups[0]['lr'] == .5


def test_get_model_follows_the_seed_and_takes_numpy_ints():
    data = bunch()
    torch.manual_seed(1); a = get_model(data, nh=np.int64(4))[0]
    torch.manual_seed(1); b = get_model(data, nh=4)[0]
    assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)
    assert a[0].weight is not b[0].weight


@pytest.mark.parametrize('nh', [0, -1, 2.5, '50', None])
def test_get_model_refuses_nh(nh):
    with pytest.raises(ValueError, match=f'nh must be an int above 0, got {nh}'): get_model(bunch(), nh=nh)


@pytest.mark.parametrize('c', [None, 0, 2.5])
def test_get_model_refuses_c(c):
    data = bunch()
    data.c = c
    with pytest.raises(ValueError, match=f'the number of classes of data, must be an int above 0, got {c}'):
        get_model(data)


def test_get_model_refuses_pictures_and_single_numbers():
    numbers = Dataset(torch.zeros(9), torch.zeros(9))
    for data in (bunch(shape=(1, 4, 4)), DataBunch(*get_dls(numbers, numbers, 3), 2)):
        with pytest.raises(ValueError, match='needs flat rows, got items of shape'): get_model(data)


@pytest.mark.parametrize('x, kind', [([torch.zeros(5)], 'list'), (None, 'NoneType'), ('ab', 'str'), ({'x': 1}, 'dict')])
def test_get_model_refuses_what_is_no_tensor(x, kind):
    data = DataBunch(DataLoader([(x, 0)]*4, 2, collate_fn=list), None, 2)
    with pytest.raises(ValueError, match=rf'needs flat rows, got items of type {kind}:'): get_model(data)


@pytest.mark.filterwarnings('ignore:Lazy modules are a new feature:UserWarning')   # in PyTorch 2.1
def test_the_repr_of_odd_models_and_optimisers():
    "A rate that is a tensor is shown as a number; weights that aren't there yet don't count"
    class NoRate(optim.Optimizer):
        def __init__(self, ps): super().__init__(ps, {})
    model = nn.Sequential(nn.Linear(2, 3), nn.LazyLinear(4))
    for opt, says in ((optim.SGD(model.parameters(), lr=torch.tensor(.1)), 'SGD, lr 0.1'), (NoRate(model.parameters()), 'NoRate')):
        text = repr(Learner(model, opt, nn.functional.cross_entropy, None))
        assert says in text and 'tensor' not in text and 'Sequential, 9 parameters' in text


def test_get_model_refuses_a_negative_rate():
    with pytest.raises(ValueError, match='learning rate'): get_model(bunch(), lr=-1)


def test_get_model_works_with_datasets_of_others():
    ds = [(torch.randn(5), i % 2) for i in range(20)]
    model, opt = get_model(DataBunch(DataLoader(ds, 4), DataLoader(ds, 4), 2))
    assert model[0].in_features == 5


def test_create_learner():
    seen, data = [], bunch()

    def model_func(data): seen.append(data); return get_model(data, lr=.1)
    a, b = create_learner(model_func, cross_entropy, data), create_learner(model_func, cross_entropy, data)
    assert seen == [data, data] and type(a) is Learner
    assert a.data is data and a.loss_func is cross_entropy and a.opt.param_groups[0]['lr'] == .1
    assert a.model is not b.model and a.opt is not b.opt        # new ones each time
    c = create_learner(model_func=lambda d: list(get_model(d)), loss_func=F.cross_entropy, data=data)
    assert c.data is data


def test_a_created_learner_learns():
    learn = create_learner(get_model, cross_entropy, bunch())
    before = mean_loss(learn)
    train(learn, 5)
    assert mean_loss(learn) < before/5


def test_same_parameters_as_by_hand():
    torch.manual_seed(0)
    ds = Dataset(torch.randn(40, 6).double(), torch.arange(40) % 4)
    learn = create_learner(get_model, cross_entropy, DataBunch(DataLoader(ds, 16), DataLoader(ds, 16), 4))
    learn.model.double()
    theirs = deepcopy(learn.model)
    train(learn, 3)
    for _ in range(3):
        for i in range(0, 40, 16):
            theirs.zero_grad()
            F.cross_entropy(theirs(ds.x[i:i+16]), ds.y[i:i+16]).backward()
            with torch.no_grad():
                for p in theirs.parameters(): p -= .5*p.grad
    assert_close(learn.model.state_dict(), theirs.state_dict())


@pytest.mark.parametrize('model_func', [nn.Linear(7, 3), None, 'get_model', (1, 2)])
def test_create_learner_refuses_what_is_no_function(model_func):
    with pytest.raises(TypeError, match=r'model_func must be a function.*write Learner\(model, opt, '):
        create_learner(model_func, cross_entropy, bunch())


def test_create_learner_refuses_arguments_in_another_order():
    with pytest.raises(TypeError, match='loss_func must be a function, got DataBunch: the order is '):
        create_learner(get_model, bunch(), cross_entropy)


@pytest.mark.parametrize('made', [None, nn.Linear(7, 3), (1,), (1, 2, 3), 'ab', {1: 2, 3: 4}])
def test_create_learner_refuses_what_is_no_pair(made):
    def half_done(data): return made
    with pytest.raises(TypeError, match=r'must return the pair \(model, opt\), but half_done returned'):
        create_learner(half_done, cross_entropy, bunch())


def test_create_learner_refuses_a_model_without_parameters():
    def nothing_to_learn(data): return nn.Sequential(nn.Flatten(), nn.ReLU()), SimpleNamespace()
    with pytest.raises(ValueError, match='nothing_to_learn made has no parameters'):
        create_learner(nothing_to_learn, cross_entropy, bunch())
    create_learner(lambda d: (torch.relu, None), cross_entropy, bunch())   # no module


def test_errors_of_model_func_come_through():
    def broken(data): raise KeyError('mine')
    with pytest.raises(KeyError, match='mine'): create_learner(broken, cross_entropy, bunch())


# --- the small loop of the lesson

def small_fit(*args):
    "The lesson's loop; what it prints goes to `printed`"
    printed = []
    return small('04a_learner', 'small_fit', print=printed.append)(*args), printed

def a_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(.3), nn.Linear(8, 4)).double()

@pytest.mark.parametrize('opt_func', [partial(optim.SGD, lr=.1), partial(optim.SGD, lr=.1, momentum=.9), optim.Adam], ids=str)
def test_the_small_loop_trains_as_one_written_for_pytorch(opt_func):
    "With dropout and batch norm, so that modes, and gradients left over, would show"
    torch.manual_seed(1)
    x, y = torch.randn(45, 6).double(), torch.randint(0, 4, (45,))
    train_dl = [(x[i:i+8], y[i:i+8]) for i in range(0, 32, 8)]
    valid_dl = [(x[32:40], y[32:40]), (x[40:], y[40:])]   # 8 and 5 items
    ours, theirs = a_net(), a_net()
    torch.manual_seed(2)
    losses, printed = small_fit(3, ours, opt_func(ours.parameters()), F.cross_entropy, train_dl, valid_dl)

    torch.manual_seed(2)
    opt, want, rows = opt_func(theirs.parameters()), [], []
    for _ in range(3):
        theirs.train()
        for xb, yb in train_dl:
            opt.zero_grad(set_to_none=False)
            loss = nn.CrossEntropyLoss()(theirs(xb), yb)
            loss.backward()
            opt.step()
            want.append(loss.item())
        theirs.eval()
        pred = theirs(x[32:]).detach()   # all 13 at once
        rows.append((nn.CrossEntropyLoss()(pred, y[32:]).item(), (pred.argmax(1) == y[32:]).double().mean().item()))
    exact(ours.state_dict(), theirs.state_dict())
    assert losses == want and not ours.training
    for row, (loss, acc) in zip(printed[1:], rows, strict=True):
        assert_close([float(o) for o in row.split()[2:]], [loss, acc], rtol=0, atol=6e-4)


def test_the_small_loop_leaves_no_gradients_and_validation_makes_none():
    model, seen = a_net(), []
    class Looks(nn.Module):
        def forward(self, x): seen.append((self.training, torch.is_grad_enabled())); return model(x)
    x, y = torch.randn(8, 6).double(), torch.arange(8) % 4
    box = Looks()
    small_fit(1, box, optim.SGD(model.parameters(), lr=.1), F.cross_entropy, [(x, y)]*2, [(x, y)])
    assert seen == [(True, True)]*2 + [(False, False)]
    assert all(p.grad is None for p in model.parameters())
