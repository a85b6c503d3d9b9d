"minifast.check: outcomes, messages, time limit, what is put back, progress; on a small set of exercises made here"
import json, os, random, re, signal, subprocess, sys, threading, warnings
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import assert_same, randomness, root
from torch import nn, tensor

from minifast import check as machinery
from minifast.check import Wrong, check, exercise, exercises, expect, hint, is_stub, progress, raised, solution

SET = '''# Solutions: doubles
===
#| setup
import torch
===
## 00.e1 `double`
●○○ · 5 min (estimated) · 1 line

`double(x)`: two times `x`.
===
#| stub
def double(x): ...
===
#| answer: core.listify
def double(x): return x+x
===
#| helpers
numbers = 2, 3
===
#| test
def test(double):
    for x in numbers: expect('it is twice as much', lambda: double(x), 2*x)
    expect('tensors too', double(torch.ones(2, 3)), 2*torch.ones(2, 3))
===
#| slip: that is the square
#| - x+x
#| + x*x
===
#| slip: there is no such name,
#| so say
#| another
#| - return x+x
#| + y = x
#|     return y.a
===
### Hints
- What is two?
- Lesson 1
- `return ___`
===
## 00.e2 Two things
●●● · 7 min

A class and a number.
===
#| setup
import math
===
#| stub
class A: ...
b = ...
===
#| answer
class A:
    n = 3
    def f(self): return 1
b = 2
===
#| test
def test(A, b):
    expect('f is 1', A().f(), 1)
    expect('b is 2', b, 2)
'''

@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    "Exercises of our own, and progress of our own"
    cells = [(('code' if s[0] == '#' and s[1] == '|' else 'markdown'), s.strip('\n')) for s in SET.split('===\n')]
    nb = {'cells': [{'cell_type': k, 'source': s.splitlines(True)} for k, s in cells]}
    (tmp_path/'set').mkdir()
    (tmp_path/'set/00_core.ipynb').write_text(json.dumps(nb), encoding='utf-8')
    monkeypatch.setattr(machinery, '_folder', lambda: tmp_path/'set')
    monkeypatch.setenv('MINIFAST_PROGRESS', str(tmp_path/'progress.json'))
    machinery._of_slip.cache_clear()
    yield tmp_path
    machinery._of_slip.cache_clear()

def double(x): return x+x
def tried(f): return check('00.e1', f)
def kept(folder): return json.loads((folder/'progress.json').read_text())


# --- an exercise is read

def test_exercise():
    one, two = exercises()
    assert (one.id, one.level, one.minutes, one.measured, one.lines, one.lesson) == ('00.e1', '●○○', 5, 'estimated', '1 line', '00_core')
    assert one.text == '`double(x)`: two times `x`.' and one.names == ['double'] and one.library == 'core.listify'
    assert one.slips == [('that is the square', 'def double(x): return x*x'),
                         ('there is no such name, so say another', 'def double(x): y = x\n    return y.a')]
    assert one.hints == ['What is two?', 'Lesson 1', '`return ___`']
    assert (two.names, two.measured, two.lines, two.minutes) == (['A', 'b'], '', '', 7)
    assert two.setup == ['import torch', 'import math'] and one.setup == ['import torch']
    assert exercises('00') == exercises('00_core') == exercises() and exercises('01') == []

def test_a_changed_file_is_read_again(folder):
    p = folder/'set/00_core.ipynb'
    p.write_text(p.read_text().replace('two times', 'twice'))
    os.utime(p, (1, 1))
    assert exercise('00.e1').text == '`double(x)`: twice `x`.'

@pytest.mark.parametrize('old, new, says', [('x+x\\n#| + x*x', 'x-x\\n#| + x', "0 times 'x-x'"), ('#| slip: that', '#| slop: that', 'a cell that is none')])
def test_mistakes_in_a_set_are_named(old, new, says, folder):
    p = folder/'set/00_core.ipynb'
    s = json.loads(p.read_text())
    for c in s['cells']: c['source'] = ''.join(c['source']).replace(old.replace('\\n', '\n'), new.replace('\\n', '\n'))
    p.write_text(json.dumps(s))
    with pytest.raises(ValueError, match=says): machinery.read_exercises(p)


# --- outcomes and messages

def test_passed(capsys, folder):
    r = tried(double)
    assert r.outcome == 'passed' and capsys.readouterr().out == r.message + '\n' and repr(r) == '<00.e1: passed>'
    assert kept(folder) == {'00.e1': {'outcome': 'passed', 'tries': 1}} and r._ipython_display_() is None

def test_wrong():
    r = tried(lambda x: x*3)
    assert r.outcome == 'wrong' and r.message == ('00.e1 wrong: it is twice as much\n  it gave   6\n  right is  4\n'
                                                  "More: hint('00.e1')")
    assert 'Likely cause: that is the square' in tried(lambda x: x**2).message
    assert 'is there a `return`?' in tried(lambda x: print(x)).message

def test_error():
    def double(x):
        y = x.nothing
        return y
    r = tried(double)
    assert r.outcome == 'error' and "AttributeError: 'int' object has no attribute 'nothing'" in r.message
    assert 'when it should hold: it is twice as much' in r.message and ': y = x.nothing' in r.message and 'cause' not in r.message

@pytest.mark.parametrize('exc', [ValueError('a\nb'), KeyError(), SystemExit(3), KeyboardInterrupt(), RecursionError(), AssertionError(), MemoryError(),
                                 StopIteration(), GeneratorExit(), Exception('x'*1000)], ids=repr)
def test_never_raises(exc):
    def double(x): raise exc
    r = tried(double)
    assert r.outcome == 'error' and type(exc).__name__ in r.message and len(r.message.split('\n')) <= 7
    assert max(map(len, r.message.split('\n'))) < 180

class Nasty:
    def __repr__(self): raise OSError
    def __eq__(self, other): raise OSError
class Long:
    def __repr__(self): return 'a\nb\n'*99

@pytest.mark.parametrize('got', [Nasty(), Long(), torch.randn(9, 9), np.ones(99), {'a': 1}, [1, 2], 'a\n'*20, None, tensor([1+2j]), torch.ones(2, 3).to_sparse()], ids=lambda o: type(o).__name__)
def test_any_result(got):
    r = tried(lambda x: got)
    assert r.outcome == 'wrong' and len(r.message.split('\n')) <= 7 and max(map(len, r.message.split('\n'))) < 180

@pytest.mark.parametrize('id, objs, says', [
    ('00.e9', [double], 'did you mean 00.e[12]'), ('nonsense', [double], r'progress\(\) lists them'), (None, [], 'no exercise None'), ([1], [], 'no exercise'),
    ('00.e1', [], r"takes 1 object, got 0: check\('00.e1', double\)"), ('00.e2', [1, 2, 3], 'takes 2 objects, got 3')])
def test_wrong_calls(id, objs, says, folder):
    r = check(id, *objs)
    assert r.outcome == 'error' and not (folder/'progress.json').exists()
    assert re.search(says, r.message)

@pytest.mark.parametrize('f', [..., lambda x: ..., lambda x: NotImplemented and ..., partial(lambda x, y: ..., 1)])
def test_not_attempted(f, folder):
    r = tried(f)
    assert r.outcome == 'not attempted' and 'double' in r.message and not (folder/'progress.json').exists()

def test_not_implemented():
    def double(x): raise NotImplementedError
    def later(x): return x+x if x == 2 else half(x)
    def half(x): raise NotImplementedError('later')
    assert tried(double).outcome == tried(later).outcome == 'not attempted'
    def by_torch(x): return nn.Module()(x)   # PyTorch raises NotImplementedError: there is no forward
    assert tried(by_torch).outcome == 'error'

def test_one_of_two_is_missing():
    class A:
        def f(self): return 1
    assert check('00.e2', A, ...).message.startswith('00.e2 not attempted: write b.')
    assert check('00.e2', A, 3).outcome == 'wrong' and check('00.e2', A, 2).outcome == 'passed'

def test_a_class_of_values_beside_a_written_object():
    class A: n = 1
    assert check('00.e2', A, 2).outcome == 'error' and check('00.e2', A, ...).outcome == 'not attempted'

def test_long_lists_are_shown_where_they_differ():
    a = [f'event {i}' for i in range(50)]
    f = machinery.Failure('wrong', 'c', a[:40] + ['x'] + a[41:], a, 'w')
    lines = machinery._compared(f)
    assert lines[0].startswith("  it gave   ['…', 'event 38', 'event 39', 'x',") and max(map(len, lines)) < 110

def documented(x): "What it does"
def todo(x):
    "Later"
    raise NotImplementedError(f'later')   # noqa: F541
def returns(x): return ...
class Bare: pass
class WithOrder(list):
    _order: int = 3
class Todo:
    def f(self, x): ...
    @property
    def g(self): ...
    @staticmethod
    def h(): ...
class Partly:
    def f(self): ...
    def g(self): return self.n
class Borrows(list): pop2 = list.pop

@pytest.mark.parametrize('o', [..., documented, todo, returns, Bare, WithOrder, Todo])
def test_stubs(o): assert is_stub(o)
@pytest.mark.parametrize('o', [double, Partly, Borrows, list, len, print, 3, None, 'b', lambda: 5, lambda x: x, lambda: print(), nn.Linear, nn.Linear(1, 1), test_error,
                               partial(double, 1)], ids=repr)
def test_no_stubs(o): assert not is_stub(o)


# --- claims

@pytest.mark.parametrize('got, want', [
    (1, 1), (2., 2), (1+1e-6, 1.), (np.float32(.5), .5), (float('nan'), float('nan')), (True, True), (tensor(True), True), ((1, 2), [1, 2]), ([1, 2], (1, 2)),
    ({'a': tensor(1.)}, {'a': tensor(1.)}), (tensor([1, float('nan'), float('inf')]), tensor([1, float('nan'), float('inf')])), (tensor([1+1e-6]), tensor([1.])),
    (nn.Parameter(torch.ones(2)), torch.ones(2)), (np.ones(3), np.ones(3)), ('a', 'a'), (None, None), (int, int), (torch.ones(2, requires_grad=True), torch.ones(2))])
def test_like(got, want): expect('claim', got, want)

class Image(torch.Tensor): pass

@pytest.mark.parametrize('got, want, says', [
    (1, 2, '1 instead of 2'), (1.1, 1., 'off by 0.1'), (None, 1, 'return'), (tensor(1.), 1., 'a tensor came'), (1., tensor(1.), 'float came'), (True, 1., 'True or False came'),
    (torch.ones(3), torch.ones(3, 1), r'its shape is \(3,\), where \(3, 1\)'), (torch.ones(3).double(), torch.ones(3), 'its dtype is float64, where float32'),
    (torch.ones(3), torch.ones(3).as_subclass(Image), 'class is Tensor, not Image'), (torch.ones(3, device='meta'), torch.ones(3), 'its device is meta'), (torch.ones(3).to_sparse(), torch.ones(3), 'its layout is sparse_coo, where strided'),
    (tensor([[1., 2, 3], [4, 5, 9]]), tensor([[1., 2, 3], [4, 6, 6]]), r'worst at \[1, 2\]: 9 instead of 6 \(2 of 6 are'),
    (tensor([1., float('nan')]), tensor([1., 2.]), r'worst at \[1\]: nan instead of 2'), (tensor([float('inf'), 1]), tensor([-float('inf'), 1]), r'worst at \[0\]'),
    (tensor(3), tensor(5), 'off by -2'), (tensor(True), tensor(False), 'off by 1'), (None, KeyError, "None instead of <class 'KeyError'>"), ([1, 2], [1, 3], r'first at \[1\]: 2 instead of 3'),
    ([1, 2, 3], [1, 2], '3 items instead of 2'), (3, [1], 'int came, not a list'), ({'a': 1}, {'b': 1}, "keys are"), ({'a': 1}, {'a': 2}, "first at \\['a'\\]"),
    ([tensor([1.])], [tensor([2.])], r'first at \[0\]: worst at \[0\]'), (np.ones(2), np.ones(3), 'shape'), (torch.ones(2), np.ones(2), 'Tensor came'), ('a', 'b', "'a' instead of 'b'"),
    (torch.ones(0), torch.ones(0, 2), 'shape'), ([], [1], '0 items'), (tensor([True, False]), tensor([True, True]), r'worst at \[1\]')])
def test_unlike(got, want, says):
    with pytest.raises(Wrong) as e: expect('claim', got, want)
    assert re.search(says, e.value.worst), e.value.worst

def test_yes_or_no():
    expect('claim', 1 < 2)
    with pytest.raises(Wrong): expect('claim', 1 > 2)
    with pytest.raises(Wrong): expect('claim', torch.ones(2))

def test_raised():
    assert raised(lambda: 1/0) is ZeroDivisionError and raised(lambda: 1) is None
    with pytest.raises(KeyError) as e: expect('it works', lambda: {}['a'], 1)
    assert e.value.claim == 'it works'


# --- all is as before

def test_all_is_put_back(capsys):
    def double(x):
        torch.manual_seed(1), random.seed(1), np.random.seed(1)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        nn.modules.module.register_module_forward_hook(print)
        warnings.simplefilter('error')
        warnings.warn('not seen')
        plt.figure()
        plt.show()
        print('not seen'), print('not seen', file=sys.stderr)
        return x+x
    fig = plt.figure()
    assert_same(randomness(), randomness())   # imports what sets filters of its own
    before = randomness(), torch.is_grad_enabled(), torch.get_default_dtype(), warnings.filters[:], plt.get_fignums(), plt.show, sys.stdout, sys.stderr
    for f in (double, lambda x: double(x)*3):
        capsys.readouterr()
        r = tried(f)
        assert r.outcome != 'passed'   # warnings are errors then, or it is wrong
        now = torch.is_grad_enabled(), torch.get_default_dtype(), warnings.filters[:], plt.get_fignums(), plt.show, sys.stdout, sys.stderr
        assert before[1:] == now and not nn.modules.module._global_forward_hooks and plt.gcf() is fig
        assert_same(before[0], randomness())
        assert 'not seen' not in capsys.readouterr().out.replace(r.message, '')
    plt.close(fig)

def test_modes_of_a_model_that_is_handed_in():
    m = nn.Sequential(nn.Dropout(), nn.Linear(2, 2))
    m[0].eval()
    with machinery._as_before([m]): m.train(), m[1].eval()
    assert [o.training for o in m.modules()] == [True, False, True]

def test_every_check_starts_from_the_same_seed():
    found = []
    def double(x):
        found.append((torch.rand(1).item(), random.random(), np.random.rand()))
        return x+x
    tried(double), tried(double)
    assert found[0] == found[3]


# --- time

def endless(x):
    while True: pass
def stubborn(x):
    while True:
        try: return endless(x)
        except Exception: pass

@pytest.mark.parametrize('way', ['alarm', 'thread'])
@pytest.mark.parametrize('f', [endless, stubborn])
def test_endless(f, way, monkeypatch):
    monkeypatch.setattr(machinery, 'LIMIT', .2)
    if way == 'thread': monkeypatch.delattr(signal, 'setitimer')
    before = signal.getsignal(signal.SIGALRM)
    r = tried(f)
    assert r.outcome == 'error' and "it didn't end within 0.2 s" in r.message and 'restart' not in r.message
    if f is endless: assert "while True: pass" in r.message
    assert signal.getsignal(signal.SIGALRM) == before
    if way == 'alarm': assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert tried(double).outcome == 'passed'

def test_in_another_thread():
    found = []
    t = threading.Thread(target=lambda: found.extend([tried(double).outcome, tried(lambda x: x).outcome]))
    t.start(), t.join()
    assert found == ['passed', 'wrong']


# --- hints, solutions, progress

def test_hints(capsys, folder):
    for i in range(4): hint('00.e1')
    out = capsys.readouterr().out
    assert [s for s in out.split('\n') if s.startswith('Hint')] == ['Hint 1 of 3: What is two?', 'Hint 2 of 3: Lesson 1', *['Hint 3 of 3: `return ___`']*2]
    assert out.count("solution('00.e1')") == 2 and kept(folder) == {'00.e1': {'hints': 3}}
    hint('00.e9'), solution('nonsense'), hint('00.e2')
    assert 'did you mean' in capsys.readouterr().out

def test_solution(capsys):
    solution('00.e1')
    assert 'return x+x\n\n# minifast.core.listify:\ndef listify(' in capsys.readouterr().out
    solution('00.e2')
    assert 'class A' in capsys.readouterr().out

def test_what_is_passed_stays_passed(folder, capsys):
    tried(lambda x: x), tried(double), tried(lambda x: x), tried(...)
    assert kept(folder) == {'00.e1': {'outcome': 'passed', 'tries': 3}}
    check('00.e2', Partly, 2)
    capsys.readouterr()
    progress()
    assert capsys.readouterr().out == ('00.e1    ●○○    5 min  passed        double\n00.e2    ●●●    7 min  wrong         Two things\n'
                                       '1 of 2 passed; all take about 12 minutes\n')

@pytest.mark.parametrize('text', ['', '{', '[]', '{"00.e1": 3}', 'null', '\x00\xff', '"a"'])
def test_a_damaged_file_is_set_aside(text, folder):
    for i in (1, 2):
        (folder/'progress.json').write_bytes(text.encode('latin-1'))
        assert tried(double).outcome == 'passed' and kept(folder)['00.e1']['outcome'] == 'passed'
        assert (folder/f'progress-damaged-{i}.json').read_bytes() == text.encode('latin-1')

def test_odd_entries_are_left_alone(folder):
    (folder/'progress.json').write_text('{"00.e1": {"tries": "many"}, "99.x": {"outcome": "passed"}}')
    tried(double), progress()
    assert kept(folder) == {'00.e1': {'outcome': 'passed', 'tries': 1}, '99.x': {'outcome': 'passed'}}

@pytest.mark.parametrize('where', ['a folder', 'below a file', '/proc/x/y.json', 'n'*300])
def test_progress_that_can_not_be_kept(where, folder, monkeypatch, capsys):
    (folder/'a folder').mkdir(), (folder/'file').write_text('')
    monkeypatch.setenv('MINIFAST_PROGRESS', str(folder/where.replace('below a file', 'file/x.json')))
    r = tried(double)
    assert r.outcome == 'passed' and 'progress is not kept' in r.message
    hint('00.e1'), progress()
    assert not [p for p in folder.rglob('*.part')]

def test_a_full_disk_leaves_the_old_file(folder, monkeypatch):
    tried(double)
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'replace', full)
    assert 'No space left' in tried(double).message and kept(folder)['00.e1']['tries'] == 1
    assert {p.name for p in folder.iterdir()} == {'set', 'progress.json'}

def test_it_is_found_in_the_home_folder(monkeypatch, folder):
    monkeypatch.delenv('MINIFAST_PROGRESS')
    monkeypatch.setenv('HOME', str(folder/'home'))
    tried(double)
    assert (folder/'home/.minifast/progress.json').exists()

def test_a_terminal_that_knows_ascii_only(folder):
    code = "from minifast.check import check, progress, hint; progress('03'); hint('03.e3'); check('03.e3', lambda p, y: p.sum())"
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=folder,
                       env={**os.environ, 'PYTHONIOENCODING': 'ascii', 'PYTHONPATH': str(root)})
    assert r.returncode == 0 and '???' in r.stdout and not r.stderr, r.stderr

def test_the_import_is_light():
    r = subprocess.run([sys.executable, '-c', 'import sys, minifast.check; print({"torch", "numpy", "matplotlib", "IPython"} & set(sys.modules))'],
                       capture_output=True, text=True, cwd=root)
    assert r.stdout == 'set()\n', r.stderr
