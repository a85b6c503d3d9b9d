"""The recipes of `minifast train`: each part is really there, and is explained; the package's test trains by them.
What goes wrong on the command line is one line and an exit status; a real fault keeps its traceback"""
import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from helpers import root
import minifast.__main__ as command
from minifast.__main__ import PARTS, RECIPES, build, describe, main, parser, pooled
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


# ---------------------------------------------------------------- every way in: what the user can mend

@pytest.fixture
def small(monkeypatch, tmp_path):
    "In an empty folder, with few images and without a surrounding MINIFAST_DATA"
    monkeypatch.delenv('MINIFAST_DATA', raising=False)
    monkeypatch.chdir(tmp_path)
    x, y, x_valid, y_valid = get_data()
    sets = {'train': (x[:256], y[:256], x_valid[:64], y_valid[:64]), 'test': (x_valid[64:128], y_valid[64:128])}
    monkeypatch.setattr(command, 'read', sets.__getitem__)
    yield tmp_path
    plt.close('all')

OUT = {'minifast-train.png', 'minifast-train-layers.png', 'minifast-train-diagnosis.txt'}
TRAIN = ['train', '--recipe', 'plain', '--bs', '32', '--epochs', '2', '--device', 'cpu']

def names(folder): return {p.name for p in folder.iterdir()}

def status(args):
    "What `main` returns, or the status that argparse exits with"
    try: return main(args)
    except SystemExit as e: return e.code

def one_line(capsys, says):
    "What went to stderr is one line that fits `says`, and nothing went to stdout"
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1 and err.endswith('\n') and re.search(says, err), err

def test_alone_it_says_what_can_be_done(capsys):
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 6 and not err
    assert all(o in out for o in ('minifast train ', 'minifast train --help', 'minifast lessons DEST', 'minifast exercises', 'minifast --help'))

WRONG = [('trian', "'trian'.*train.*lessons"), ('lessons', 'DEST'), ('train --foo', '--foo'), ('train --recipe x', 'best.*plain'),
         ('train --epochs 0', "--epochs: '0' is not a whole number from 1"), ('train --epochs 1.5', "'1.5'"),
         ('train --bs -1', "--bs: '-1'"), ('train --bs 99999999999999999999', '1,000,000,000'), ('train --lr fast', "'fast'.*above 0"),
         ('train --lr nan', "'nan'"), ('train --lr 1e999', "'1e999'"), ('train --lr', '--lr'), ('train --seed -1', 'from 0 to 4,294,967,295'),
         ('train --seed x', "'x'"), ('train --threads 99999', '1,024'), ('train --out x.txt', '.png, .pdf or .svg'),
         ('train --out no/x.png', 'folder of .*does not exist'), ('train --out x.png', "'x-layers.png'.* is a folder"),
         ('train --out folder.png', 'is a folder: name a file'), ('train --out file/x.png', 'does not exist')]

@pytest.mark.parametrize('args, says', WRONG, ids=[o for o, _ in WRONG])
def test_wrong_arguments_are_one_line(args, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for o in ('x-layers.png', 'folder.png'): (tmp_path/o).mkdir()
    (tmp_path/'file').touch()
    assert status(args.split()) == 2
    one_line(capsys, f'^minifast.*{says}.*--help')

@pytest.mark.parametrize('device', ['gpu', 'cuda:99', 'meta', 'mkldnn', 'hpu', 'xla', '', '-1', 'CPU'])
def test_devices_that_cannot_compute(device, capsys):
    assert status(['train', f'--device={device}']) == 2
    one_line(capsys, f"{device!r} is no device of this machine .*try cpu")

@pytest.mark.parametrize('out', ['/proc/x.png', '/dev/fd/x.png'])
@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='no such folder here')
def test_a_folder_that_cannot_be_written_to(out, capsys):
    assert status(['train', '--out', out]) == 2
    one_line(capsys, 'nothing can be written beside.*: name another folder')

def damaged(folder):
    for o in ('train-images-idx3', 'train-labels-idx1', 't10k-images-idx3', 't10k-labels-idx1'):
        (folder/f'{o}-ubyte').write_bytes(b'no numbers')

@pytest.mark.parametrize('make, says', [
    (None, 'is not a folder'), (Path.touch, 'is not a folder'), (Path.mkdir, 'holds neither train-images'),
    (lambda p: (p.mkdir(), damaged(p)), "train-images-idx3-ubyte is damaged or isn't an IDX file")])
def test_wrong_data(make, says, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv('MINIFAST_DATA', str(tmp_path/'data'))
    monkeypatch.chdir(tmp_path)
    if make: make(tmp_path/'data')
    before = names(tmp_path)
    assert main(['train']) == 2
    one_line(capsys, f'^minifast: .*data.*{says}.*correct MINIFAST_DATA or unset it')
    assert names(tmp_path) == before

def test_test_images_that_are_missing_show_before_the_training(capsys, tmp_path, monkeypatch):
    for p in (root/'minifast'/'data'/'mnist').glob('train-*'): os.symlink(p, tmp_path/p.name)
    monkeypatch.setenv('MINIFAST_DATA', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(['train']) == 2
    one_line(capsys, 'holds neither t10k-images')

def test_a_real_fault_keeps_its_traceback(small, monkeypatch):
    def breaks(self): raise ZeroDivisionError('a fault of ours')
    monkeypatch.setattr(Recorder, 'after_batch', breaks)
    with pytest.raises(ZeroDivisionError): main(TRAIN)
    monkeypatch.setattr(Recorder, 'after_batch', lambda self: open('no such file'))
    with pytest.raises(FileNotFoundError): main(TRAIN)

@pytest.mark.parametrize('error', [torch.cuda.OutOfMemoryError('CUDA out of memory'), MemoryError()], ids=repr)
def test_too_little_memory(error, small, capsys, monkeypatch):
    def breaks(*args, **kw): raise error
    monkeypatch.setattr(nn.Conv2d, 'forward', breaks)
    assert main(TRAIN) == 2
    assert capsys.readouterr().err == 'minifast: not enough memory for batches of 32 images: try a smaller --bs\n'
    assert not names(small)

def test_all_is_well(small, capsys):
    assert main(TRAIN) == 0
    out, err = capsys.readouterr()
    assert names(small) == OUT and not err and 'interrupted' not in out
    assert (small/'minifast-train-diagnosis.txt').read_text() in out
    for suffix, start in (('.svg', b'<?xml'), ('.PNG', b'\x89PNG')):
        assert main([*TRAIN, '--out', f'x{suffix}']) == 0
        assert all((small/f'{o}{suffix}').read_bytes().startswith(start) for o in ('x', 'x-layers'))


# ---------------------------------------------------------------- interrupted

def interrupt_at(n, monkeypatch, what=torch.optim.SGD, how='step'):
    "Ctrl-C at the `n`-th call"
    calls, was = [], getattr(what, how)
    def act(self, *args, **kw):
        calls.append(1)
        if len(calls) == n: raise KeyboardInterrupt
        return was(self, *args, **kw)
    monkeypatch.setattr(what, how, act)

@pytest.mark.parametrize('n, epoch', [(2, 0), (5, 0), (8, 0), (12, 1), (16, 1)])
def test_interrupted_in_training(n, epoch, small, capsys, monkeypatch):
    interrupt_at(n, monkeypatch)
    assert main(TRAIN) == 130
    out, err = capsys.readouterr()
    assert f'interrupted in epoch {epoch} after {n-1} batches in all: what has been trained is tested and drawn' in out
    assert names(small) == OUT and all(o in out for o in OUT) and 'test accuracy' in out and not err

@pytest.mark.parametrize('at', ['before', 'at once'])
def test_interrupted_before_anything_is_trained(at, small, capsys, monkeypatch):
    if at == 'at once': interrupt_at(1, monkeypatch)
    else: interrupt_at(1, monkeypatch, DataBunch, 'to')
    assert main(TRAIN) == 130
    assert capsys.readouterr().err == 'minifast: interrupted, and kept: nothing\n' and not names(small)

@pytest.mark.parametrize('n, kept', [(1, 'nothing'), (2, 'minifast-train.png'), (3, 'minifast-train.png, minifast-train-layers.png')])
def test_interrupted_while_it_reports(n, kept, small, capsys, monkeypatch):
    interrupt_at(n, monkeypatch, Path, 'write_bytes')
    assert main(TRAIN) == 130
    assert capsys.readouterr().err == f'minifast: interrupted, and kept: {kept}\n'
    assert names(small) == set(kept.split(', ')) - {'nothing'}   # no half of a file either


# ---------------------------------------------------------------- lessons

def test_lessons_and_those_that_differ(tmp_path, capsys):
    dest = tmp_path/'a'/'b'
    want, exercises = ({p.name: p.read_bytes() for p in (root/'nbs').glob(o)} for o in ('*.ipynb', 'exercises/*.ipynb'))
    for _ in range(2):   # the second time all are there already
        assert main(['lessons', str(dest)]) == 0
        assert {p.name: p.read_bytes() for p in dest.iterdir() if p.is_file()} == want
        assert {p.name: p.read_bytes() for p in (dest/'exercises').iterdir()} == exercises
        out = capsys.readouterr().out
        assert f'{len(want)} lesson notebooks' in out and f'{len(exercises)} with exercises' in out
    (dest/'exercises'/'03_losses.ipynb').write_text('my answer')
    (tmp_path/'a'/'b'/'00_core.ipynb').write_text('mine')
    (tmp_path/'a'/'b'/'index.ipynb').unlink()
    (tmp_path/'a'/'b'/'index.ipynb').mkdir()
    assert main(['lessons', str(tmp_path/'a'/'b')]) == 0
    out = capsys.readouterr().out
    assert f'{len(want)-2} lesson' in out and 'kept, since they differ: 00_core.ipynb, index.ipynb, exercises/03_losses.ipynb' in out
    assert (dest/'exercises'/'03_losses.ipynb').read_text() == 'my answer'
    assert (tmp_path/'a'/'b'/'00_core.ipynb').read_text() == 'mine'

def test_lessons_into_their_own_folder(capsys):
    assert main(['lessons', str(root/'nbs')]) == 0 and 'kept' not in capsys.readouterr().out

@pytest.mark.parametrize('dest', ['file', 'file/x', '/proc/x', 'n'*300, 'dangling'])
def test_lessons_into_what_is_no_folder(dest, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'file').write_text('mine')
    (tmp_path/'dangling').symlink_to('nowhere')
    assert main(['lessons', dest]) == 2
    one_line(capsys, f'^minifast: {dest} is no folder and could not be made one .*name a folder, new or old')
    assert names(tmp_path) == {'file', 'dangling'} and (tmp_path/'file').read_text() == 'mine'

def test_interrupted_lessons(tmp_path, capsys, monkeypatch):
    interrupt_at(3, monkeypatch, Path, 'write_bytes')
    assert main(['lessons', str(tmp_path)]) == 130
    assert capsys.readouterr().err == f'minifast: interrupted, and kept: 2 lessons in {tmp_path}\n'
    assert len(names(tmp_path)) == 2

def test_exercises_are_listed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('MINIFAST_PROGRESS', str(tmp_path/'p.json'))
    assert main(['exercises']) == 0
    every = capsys.readouterr().out.splitlines()
    assert main(['exercises', '05b']) == 0
    some = capsys.readouterr().out.splitlines()
    assert set(some[:-1]) < set(every) and all('open' in o and o.startswith('05b.') for o in some[:-1])
    assert main(['exercises', '05']) == 2
    one_line(capsys, "no lesson '05' has exercises: choose from 0")


# ---------------------------------------------------------------- full disks, closed and broken pipes

def no_room(monkeypatch, at):
    "The disk is full from the `at`-th file on, in its middle"
    n, was = [], Path.write_bytes
    def write_bytes(self, data):
        n.append(1)
        if len(n) < at: return was(self, data)
        was(self, data[:len(data)//2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(Path, 'write_bytes', write_bytes)

@pytest.mark.parametrize('at, left', [(1, 'minifast-train.png'), (2, 'minifast-train-layers.png'), (3, 'minifast-train-diagnosis.txt')])
def test_a_full_disk_after_the_training(at, left, small, capsys, monkeypatch):
    "What was found is printed all the same, and an older file isn't damaged"
    (small/left).write_text('older')
    no_room(monkeypatch, at)
    assert main(TRAIN) == 2
    out, err = capsys.readouterr()
    assert err == f'minifast: could not write {left} (No space left on device): make room, or name another place\n'
    assert re.search('test accuracy.*\n\n.*(iteration|layer)', out) and (small/left).read_text() == 'older'
    assert not [o for o in names(small) if o not in OUT] and len(names(small)) == at

def test_a_full_disk_while_lessons_are_copied(tmp_path, capsys, monkeypatch):
    "Half a lesson would count as one that differs, and be kept for ever"
    with monkeypatch.context() as m:
        no_room(m, 4)
        assert main(['lessons', str(tmp_path)]) == 2
        one_line(capsys, 'could not write .*No space left on device.*make room')
        assert len(names(tmp_path)) == 3
    assert main(['lessons', str(tmp_path)]) == 0 and 'kept' not in capsys.readouterr().out

def shell(cmd, cwd, **env):
    return subprocess.run(['bash', '-c', cmd.replace('minifast', f'"{sys.executable}" -m minifast')], cwd=cwd, capture_output=True,
                          text=True, env={**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1', **env})

bash = pytest.mark.skipif(os.name == 'nt', reason='pipes of a Unix shell')

@bash
@pytest.mark.parametrize('cmd, rcs', [('minifast | true', '141 0'), ('minifast lessons new | true', '141 0'), ('minifast | head -1', '0 0'),
                                      ('minifast train --help | head -1', '0 0')])
def test_nobody_reads_on(cmd, rcs, tmp_path):
    "The text of these fits into the pipe, so that `head` is quick enough or not: 141, or 0"
    r = shell(f'{cmd}; echo "${{PIPESTATUS[@]}}"', tmp_path)
    assert not r.stderr and r.stdout.splitlines()[-1] in {rcs, '141 0', '0 0'}

@bash
def test_training_for_somebody_who_reads_one_line(tmp_path):
    r = shell('minifast train --recipe plain --epochs 99 --device cpu | head -1; echo "${PIPESTATUS[@]}"', tmp_path)
    assert not r.stderr and r.stdout.splitlines()[-1] == '141 0' and r.stdout.startswith('minifast ') and not names(tmp_path)

@bash
@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')
def test_output_into_a_full_disk(tmp_path):
    r = shell('minifast > /dev/full; echo $?', tmp_path)
    assert r.stdout == '2\n' and r.stderr == 'minifast: what was printed could not be written (No space left on device)\n'

@bash
def test_output_closed_or_of_few_characters(tmp_path):
    r = shell('minifast >&-; echo $?; minifast nonsense 2>&-; echo $?', tmp_path)
    assert (r.stdout, r.stderr) == ('0\n2\n', '')
    r = shell('minifast train --help', tmp_path, PYTHONIOENCODING='ascii')
    assert r.returncode == 0 and not r.stderr and 'cpu, cuda ?' in r.stdout

@bash
def test_a_real_ctrl_c(tmp_path):
    "Once the training has begun; what was trained is kept"
    cmd = [sys.executable, '-u', '-m', 'minifast', 'train', '--recipe', 'plain', '--epochs', '9', '--device', 'cpu']
    env = {**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'}
    def heed(): signal.signal(signal.SIGINT, signal.SIG_DFL)   # a shell's background job ignores it, and so its children
    p = subprocess.Popen(cmd, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    while 'train_loss' not in (line := p.stdout.readline()): assert line
    p.send_signal(signal.SIGINT)
    out, err = p.communicate()
    assert p.returncode == 130 and not err and 'what has been trained is tested and drawn' in out and names(tmp_path) == OUT
