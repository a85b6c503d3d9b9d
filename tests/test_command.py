"The recipes of `minifast train`: each part is really there, and is explained; the package's test trains by them"
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from helpers import root
from minifast.__main__ import PARTS, RECIPES, build, describe, parser, pooled
from minifast.cnn import BatchTransformXCallback
from minifast.core import set_seed
from minifast.data import DataBunch, Dataset, get_data, get_dls, mnist_view, normalize_to
from minifast.init import GeneralRelu
from minifast.lsuv import ConvLayer, get_batch
from minifast.norm import RunningBatchNorm
from minifast.sched import Recorder

@pytest.fixture(scope='module')
def data():
    x, y, x_valid, y_valid = get_data()
    x, x_valid = normalize_to(x, x_valid)
    return DataBunch(*get_dls(Dataset(x[:512], y[:512]), Dataset(x_valid[:512], y_valid[:512]), 64), c=10)

def made(parts, data, lr=.1, nfs=(8, 16, 24)):
    set_seed(1)
    return build(parts.split(), list(nfs), data, lr, [BatchTransformXCallback(mnist_view), Recorder()])

def kinds(learn): return [type(m) for m in learn.model.modules()]


@pytest.mark.parametrize('name', RECIPES)
def test_every_recipe_trains_and_can_be_repeated(name, data):
    parts, lr = RECIPES[name]
    def trained():
        learn, run = made(parts, data, min(lr, .1))
        run.logger = lambda row: None
        run.fit(1, learn)
        return run.recorder.losses, learn.model.state_dict()
    (losses, state), again = trained(), trained()
    assert len(losses) == 8 and torch.tensor(losses).isfinite().all()
    assert_close((losses, state), again, rtol=0, atol=0)

def test_plain_is_pytorch_alone(data):
    learn, run = made('sgd', data)
    assert not {nn.BatchNorm2d, RunningBatchNorm, nn.MaxPool2d, ConvLayer} & set(kinds(learn))
    assert isinstance(learn.opt, torch.optim.SGD) and {o.leak for o in learn.model.modules()
                                                       if isinstance(o, GeneralRelu)} == {None}
    set_seed(1)
    first = nn.Conv2d(1, 8, 5)
    assert_close(learn.model[0][0].weight, first.weight)

@pytest.mark.parametrize('part, kind', [('bn', nn.BatchNorm2d), ('rbn', RunningBatchNorm)])
def test_norms(part, kind, data):
    learn, _ = made(f'sgd {part}', data)
    assert kinds(learn).count(kind) == 3 and not any(o.bias is not None for o in learn.model.modules()
                                                     if isinstance(o, nn.Conv2d))

def test_kaiming_gives_the_sizes_that_it_promises(data):
    "Lesson 06c: std √(2/fan_in) before a rectifier, where PyTorch's own is √(1/(3 fan_in))"
    for parts, want in (('sgd', (1/3)**.5), ('sgd kaiming', 2**.5)):
        conv = made(parts, data, nfs=(8, 32, 64))[0].model[2][0]
        assert abs(conv.weight.std()*(32*9)**.5 - want) < .05
        assert bool(conv.bias.abs().sum()) == (parts == 'sgd')

def test_relu(data):
    relus = [o for o in made('sgd relu', data)[0].model.modules() if isinstance(o, GeneralRelu)]
    assert [(o.leak, o.sub, o.maxv) for o in relus] == [(.1, .4, 6.)]*3

def test_lsuv_holds_on_a_batch(data):
    learn, run = made('sgd kaiming relu lsuv', data)
    assert kinds(learn).count(ConvLayer) == 3
    x = get_batch(data.train_dl, run)[0]   # of all batches nearly the same
    for m in learn.model[:3]:
        x = m(x)
        assert abs(x.mean()) < .1 and abs(x.std() - 1) < .1

def test_pool_halves_where_the_stride_did(data):
    x = torch.randn(2, 8, 13, 14)
    assert pooled(8, 16, 3, norm=nn.BatchNorm2d)(x).shape == (2, 16, 6, 7)
    block = pooled(8, 16, 3)
    assert block[0].stride == (1, 1)
    want = nn.functional.max_pool2d(block[0](x).relu(), 2)
    assert_close(block(x), want)
    assert pooled(1, 8, 5)[0].stride == (2, 2)
    assert kinds(made('sgd pool', data)[0]).count(nn.MaxPool2d) == 2

def test_adamw_and_onecycle(data):
    learn, run = made('adamw onecycle', data, lr=.02)
    run.logger = lambda row: None
    run.fit(1, learn)
    lrs = torch.tensor(run.recorder.lrs).flatten()
    assert isinstance(learn.opt, torch.optim.AdamW) and lrs[0] < .01 < .018 < lrs.max() <= .02 and lrs[-1] < .002
    learn, run = made('sgd', data)
    run.fit(1, learn)
    assert set(torch.tensor(run.recorder.lrs).flatten().tolist()) == {torch.tensor(.1).item()}

def test_channels_last_gives_the_same(data):
    learn, run = made('sgd kaiming bn pool', data)
    x = get_batch(data.train_dl, run)[0]
    assert learn.model[0](x).is_contiguous(memory_format=torch.channels_last)
    y = learn.model(x)
    assert_close(learn.model.to(memory_format=torch.contiguous_format)(x.contiguous()), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', RECIPES)
def test_every_part_says_what_for_and_where(name):
    parts = RECIPES[name][0].split()
    text = describe(name, .5)
    assert f'{name!r}, learning rate 0.5' in text and len(text.splitlines()) == 2 + len(parts)
    for line, key in zip(text.splitlines()[2:], parts):
        what, _, where = PARTS[key]
        assert line.startswith(f'  {what} ') and line.endswith(where) and len(line) <= 140
        [lesson] = [w for w in where.split() if (root/'nbs'/f'{w}.ipynb').exists()]
        assert lesson and len([w for w in where.split() if w[0].isdigit()]) == 1

def test_help_and_errors(capsys):
    assert parser().parse_args(['train']).recipe == 'best'
    with pytest.raises(SystemExit): parser().parse_args(['train', '--recipe', 'batchnorm'])
    err = capsys.readouterr().err
    assert 'batchnorm' in err and all(k in err for k in RECIPES)
    with pytest.raises(SystemExit): parser().parse_args(['train', '--help'])
    out = ''.join(capsys.readouterr().out.split())
    for k, v in RECIPES.items():
        assert f"{k}:{','.join(PARTS[o][0] for o in v[0].split())}".replace(' ', '') in out
