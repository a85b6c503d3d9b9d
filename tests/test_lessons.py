"tests/lessons.py, perturb.py and depends.py: another machine is another machine, and what a cell depends on is found"
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

import lessons
from depends import kinds

here = Path(__file__).resolve().parent


# --- what a cell depends on

FIXED = ['x = torch.randn(3)', 'model.train()', 'model = get_model(data)', 'def go(): run.fit(1, learn)',
         'class A:\n    def fit(self): self.opt.step()', 'loss.backward()', 'step(3)', 't.step()', 'fit',
         'import time', 'print(time)', 'not python at all ,']
TRAINED = ['run.fit(1, learn)', 'fit(1)', 'opt.step()', 'learn.opt.step()', 'p -= lr*p.grad', 'p.sub_(lr*p.grad)',
           'for xb,yb in dl: loop.one_batch(xb, yb)', 'with torch.no_grad(): w -= w.grad', '(lambda: run.fit(1))()',
           'def go(): run.fit(1)\ngo()', 'def go(): run.fit(1)\ndef twice(): go()\ntwice()',
           'def go(): run.fit(1)\nres = [f() for f in (go, go)]', 'class A:\n    def go(self): run.fit(1)\nA().go()',
           'class A:\n    def __init__(self): run.fit(1)\nA()']
MEASURED = ['t = time.perf_counter()', '%timeit f()', 'timeit.timeit(f)', 'start = perf_counter()',
            'def took(f): return time.perf_counter()\nprint(took(f))']
NEXT = [   # (first cell, second cell, what the second is)
    ('run.fit(1, learn)', 'print(run.history)', 'trained'),
    ('run.fit(1, learn)', 'print(x_train.mean())', 'fixed'),
    ('run.fit(1, learn)', 'print(1)', 'fixed'),
    ('model = nn.Linear(2, 2)\nlearn = Learner(model, opt, loss, data)\nrun.fit(1, learn)', 'model(xb)', 'trained'),
    ('model = nn.Linear(2, 2)\nlearn = Learner(model, opt, loss, data)\nrun.fit(1, learn)', 'print(data)', 'fixed'),
    ('model = nn.Linear(2, 2)\nrun.fit(1, model)\nmodel = nn.Linear(2, 2)', 'model(xb)', 'fixed'),
    ('lr = .4\nrun.fit(1, get_learner(lr))', 'print(lr)', 'fixed'),
    ('import a\nrun.fit(1, a.learner())', 'print(a)', 'fixed'),
    ('def accuracy(seed): run.fit(1)\naccs = [accuracy(s) for s in range(3)]', 'best = max(accs)', 'trained'),
    ('accs = []\nfor s in range(3):\n    run.fit(1)\n    accs.append(run.loss)', 'print(accs)', 'trained'),
    ('accs = {}\nfor s in range(3): accs[s] = run.fit(1)', 'print(accs)', 'trained'),
    ('run.fit(1)\nlosses = run.losses\nshown = sum(losses)', 'def show(): print(shown)\nshow()', 'trained'),
    ('o = run.fit(1)', '[o for o in range(3)]', 'fixed'),
    ('o = run.fit(1)', 'def f(o): return o\nf(3)', 'fixed'),
    ('o = run.fit(1)', 'for o in range(3): print(o)', 'fixed'),
    ('o = run.fit(1)', 'with shows_error(ValueError): f(o)', 'trained'),
    ('a, b = run.fit(1), 2', 'print(b)', 'fixed'), ('a, b = run.fit(1), 2', 'print(a)', 'trained'),
    ('t = perf_counter()\nf()\ntook = perf_counter() - t', 'print(f"{took} ms")', 'measured')]

@pytest.mark.parametrize('src', FIXED)
def test_fixed(src): assert kinds([src]) == ['fixed']

@pytest.mark.parametrize('src', TRAINED)
def test_trained(src): assert kinds([src]) == ['trained']

@pytest.mark.parametrize('src', MEASURED)
def test_measured(src): assert kinds([src]) == ['measured']

@pytest.mark.parametrize('first, second, kind', NEXT)
def test_what_follows(first, second, kind): assert kinds(['run = Runner()', first, second])[2] == kind


# --- another machine

def python(src, **env):
    "What `src` prints after perturb.py"
    code = f"import runpy; runpy.run_path({str(here/'perturb.py')!r}, run_name='__main__')\n{src}"
    env = {**os.environ, 'OMP_NUM_THREADS': '1', **env}
    r = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    return r.stdout.split()

SEEDED = '''
import random, numpy as np, torch
from minifast.core import set_seed
set_seed(42); print(random.random(), np.random.rand(), torch.rand(()).item())
print(torch.rand((), generator=torch.Generator().manual_seed(42)).item(), np.random.default_rng(42).random())
torch.manual_seed({}); print(torch.rand(()).item())'''

def test_seeds_are_shifted():
    plain, shifted = python(SEEDED.format(1042)), python(SEEDED.format(42), MINIFAST_SEED_SHIFT='1000')
    assert len(plain) == 6 and not set(plain[:5]) & set(shifted[:5]) and plain[5] == shifted[5]

LAYERS = '''
import torch; from torch import nn
torch.manual_seed(0); a = nn.Linear(30, 20); follows = torch.rand(()).item()
torch.manual_seed(0); b = nn.Linear(30, 20)
torch.manual_seed(0); w = torch.empty(20, 30).uniform_(-30**-.5, 30**-.5)
print((a.weight/w - 1).abs().max().item(), torch.equal(a.weight, b.weight), follows)
bn = nn.BatchNorm2d(3); print(torch.equal(bn.weight, torch.ones(3)), nn.Linear(2, 2, device='meta').weight.shape)'''

def test_noise():
    "By at most a millionth, the same for equal layers, nothing that is no random number, no number is used up"
    (off, same, follows, ones, *_), plain = python(LAYERS, MINIFAST_NOISE='1'), python(LAYERS)
    assert 3e-7 < float(off) < 1.2e-6 and float(plain[0]) < 2e-7
    assert same == plain[1] == 'True' and ones == 'True' and follows == plain[2]
    other = 'import torch; torch.manual_seed(0); print(torch.nn.Linear(3, 2).weight[0,0].item())'
    assert len({*python(other), *python(other, MINIFAST_NOISE='1'), *python(other, MINIFAST_NOISE='2')}) == 3

def test_onednn_is_off():
    src = 'import torch; print(torch._C._get_mkldnn_enabled())'
    assert python(src) == ['True'] and python(src, MINIFAST_ONEDNN='0') == ['False']

def test_variants():
    "Each rounding alone; ten other seeds; all that is run for a release is another than the rest"
    env = [tuple(sorted(lessons.VARIANTS[v].items())) for v in lessons.RELEASE]
    assert len(set(env)) == len(env) and env[0] == ()
    shifts = {lessons.VARIANTS[v].get('MINIFAST_SEED_SHIFT') for v in lessons.RELEASE} - {None}
    assert len(shifts) == 10 and set(lessons.ROUNDING) < set(lessons.RELEASE)


# --- a lesson in a kernel

def lesson(folder, *sources):
    nb = new_notebook(cells=[new_code_cell(s) for s in sources])
    nbformat.write(nb, folder/'x.ipynb')
    return folder/'x.ipynb'

def outputs(cell): return ''.join(o.get('text', '') for o in cell.outputs)

@pytest.mark.parametrize('last, failed', [
    ('1/1', []), ('1/0', [(2, 'ZeroDivisionError: division by zero')])])
def test_run(last, failed, tmp_path):
    "One thread, the notebook's own folder, pictures inline; a cell that fails is found, and the rest runs all the same"
    env = 'import os, matplotlib.pyplot as plt\nprint(os.environ["OMP_NUM_THREADS"], os.getcwd(), sorted(globals())[:0])'
    nb, error = lessons.run(lesson(tmp_path, env, 'plt.plot([1]);', last, 'print(3)'))
    assert outputs(nb.cells[0]) == f'1 {tmp_path} []\n' and outputs(nb.cells[3]) == '3\n' and not error
    assert any('image/png' in o.get('data', {}) for o in nb.cells[1].outputs)
    assert list(lessons.failures(nb)) == failed

def test_a_kernel_that_dies_is_said(tmp_path):
    nb, error = lessons.run(lesson(tmp_path, 'import os; os._exit(1)'))
    assert error and 'broke off' in lessons.verdict(nb, error)

SEED = 'import torch; torch.manual_seed(42)\nassert torch.initial_seed() == 42, "another seed"'
ROUND = '''from torch import nn; torch.manual_seed(0); a = nn.Linear(3, 3).weight
torch.manual_seed(0); b = torch.empty(3, 3).uniform_(-3**-.5, 3**-.5); assert torch.equal(a, b), "rounding"'''
KERNELS = 'print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), torch._C._get_mkldnn_enabled())'

@pytest.mark.parametrize('variant, failed, says', [
    ('as it is', [], ['1', 'True']), ('noise', ['rounding'], ['1', 'True']), ('2 threads', [], ['2', 'True']),
    ('no oneDNN', [], ['1', 'False']), ('default', [], ['1', 'True']), ('seeds2', ['another seed'], ['1', 'True'])])
def test_a_variant_can_fail(variant, failed, says, tmp_path):
    "A claim that holds for one seed only fails with another; one that rests on the last bit fails with noise"
    nb, _ = lessons.run(lesson(tmp_path, SEED, ROUND, KERNELS), lessons.VARIANTS[variant])
    assert [why for _, why in lessons.failures(nb)] == [f'AssertionError: {o}' for o in failed]
    kernels, *rest = outputs(nb.cells[2]).split()
    assert rest == says and (kernels == 'DEFAULT' or variant != 'default')
    assert lessons.verdict(nb, '').startswith(f'cell {variant != "seeds2":d} Assert' if failed else 'passed')

def test_another_python(tmp_path):
    nb, error = lessons.run(lesson(tmp_path, 'import sys; print(sys.executable)'), python=sys.executable)
    assert not error and outputs(nb.cells[0]).strip() == sys.executable

def test_the_table(tmp_path, monkeypatch, capsys):
    "A line for each lesson and variant, and an exit status that says whether one failed"
    (tmp_path/'nbs').mkdir()
    nb = new_notebook(cells=[new_code_cell(SEED)])
    nbformat.write(nb, tmp_path/'nbs/00_a.ipynb')
    monkeypatch.setattr(lessons, 'root', tmp_path)
    monkeypatch.setattr(lessons, 'names', ['00_a'])
    monkeypatch.setattr(sys, 'argv', ['lessons.py', '00', '-v', 'as it is', '-v', 'seeds1'])
    assert lessons.main()
    said = capsys.readouterr().out
    assert 'PyTorch' in said and '1 passed, 1 failed' in said
    assert 'passed' in said.splitlines()[2] and 'cell 0 AssertionError: another seed' in said.splitlines()[3]
    monkeypatch.setattr(sys, 'argv', ['lessons.py', '17'])
    with pytest.raises(SystemExit): lessons.main()
    assert "no lesson is '17'" in capsys.readouterr().err

@pytest.mark.parametrize('least, says', [(.5, ''), (.9999, 'below 0.9999')])
def test_the_main_command(least, says, monkeypatch):
    "Its accuracy is read, its files are there; too low an accuracy fails"
    monkeypatch.setattr(lessons, 'LEAST', least)
    acc, wrong, _ = lessons.train('noise', 3)
    assert .97 < acc < 1 and wrong == says
