"""What somebody gets who installs minifast without the repository: wheel and sdist, the wheel in an
environment of its own, its commands, and imports that change nothing."""
import ast, json, os, re, shutil, subprocess, sys, sysconfig, tarfile, zipfile
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from helpers import cfg, root
from lessons import run
from test_notebooks import said

version = cfg['version']
modules = sorted(p.stem for p in (root/'minifast').glob('[!_]*.py') if p.stem != 'all')
data = {f'minifast/data/mnist/{n}' for n in ('NOTICE.md', *(
    f'{part}-{what}-ubyte.gz' for part in ('train', 't10k') for what in ('images-idx3', 'labels-idx1')))}

def sh(*cmd, cwd, ok=True, **env):
    "Run `cmd` with nothing of this repository or of the calling shell in its way"
    clean = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'IN_TEST', 'MINIFAST_DATA')}
    clean.update(OMP_NUM_THREADS='1', **env)
    r = subprocess.run([str(c) for c in cmd], cwd=cwd, env=clean, capture_output=True)
    r.stdout, r.stderr = r.stdout.decode(), r.stderr.decode()   # text=True would make every \r a \n
    if ok: assert r.returncode == 0, f'{cmd}\n{r.stdout}\n{r.stderr}'
    return r

def pip(*args, cwd, **kw): return sh(sys.executable, '-m', 'pip', *args, cwd=cwd, **kw)


# --- wheel and sdist

@pytest.fixture(scope='module')
def source(tmp_path_factory):
    "The files that a clone would hold, and no others"
    src = tmp_path_factory.mktemp('source')
    r = sh('git', 'ls-files', '-co', '--exclude-standard', cwd=root, ok=False)
    if r.returncode: pytest.skip('not a git checkout')
    for f in (f for f in r.stdout.split('\n') if f and (root/f).is_file()):
        (src/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root/f, src/f)
    return src

@pytest.fixture(scope='module')
def dist(source, tmp_path_factory):
    "A wheel built by pip, and an sdist built with what pyproject.toml asks for"
    out, backend = tmp_path_factory.mktemp('dist'), tmp_path_factory.mktemp('backend')
    need = re.search(r'^requires = (\[.*\])', (source/'pyproject.toml').read_text(), re.M)[1]
    pip('install', '-q', '--target', backend, *ast.literal_eval(need), cwd=out)
    code = f'import setuptools.build_meta as b; b.build_sdist({str(out)!r})'
    sh(sys.executable, '-c', code, cwd=source, PYTHONPATH=str(backend))
    pip('wheel', '-q', '--no-deps', '-w', out, source, cwd=out)
    return out

@pytest.fixture(scope='module')
def wheel(dist): return next(dist.glob('*.whl'))

@pytest.fixture(scope='module')
def sdist(dist): return next(dist.glob('*.tar.gz'))

def test_wheel_holds_the_package_its_data_and_the_lessons(wheel, source):
    assert wheel.name == f'minifast-{version}-py3-none-any.whl'
    names = {n for n in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in n}
    where = {'*.ipynb': 'lessons', 'exercises/*.ipynb': 'lessons/exercises', 'solutions/*.ipynb': 'solutions'}
    nbs = [{f'minifast/{d}/{p.name}' for p in (source/'nbs').glob(o)} for o, d in where.items()]
    assert all(nbs) and names == {f'minifast/{p.name}' for p in source.glob('minifast/*.py')}.union(data, *nbs)

def test_data_in_the_wheel_is_whole(wheel):
    for n in data: assert zipfile.ZipFile(wheel).read(n) == (root/n).read_bytes()

def test_wheel_metadata(wheel):
    z = zipfile.ZipFile(wheel)
    info = f'minifast-{version}.dist-info'
    meta, entry = (z.read(f'{info}/{n}').decode() for n in ('METADATA', 'entry_points.txt'))
    needs = [f'Requires-Dist: {r}' for r in cfg['requirements'].split()]
    needs += [f'Version: {version}', f"Requires-Python: >={cfg['min_python']}", 'Provides-Extra: dev']
    for line in needs: assert f'\n{line}\n' in meta
    assert 'minifast = minifast.__main__:main' in entry and 'minifast = minifast._modidx:d' in entry
    licences = {n.split('/licenses/')[1] for n in z.namelist() if '/licenses/' in n}
    assert licences == {'LICENSE', 'minifast/data/mnist/NOTICE.md'}

def test_sdist_builds_the_same_wheel(sdist, wheel, tmp_path):
    pip('wheel', '-q', '--no-deps', '-w', tmp_path, sdist, cwd=tmp_path)
    a, b = ({i.filename: i.CRC for i in zipfile.ZipFile(w).infolist()} for w in (wheel, tmp_path/wheel.name))
    assert a == b

def test_sdist_holds_what_a_reader_wants(sdist):
    with tarfile.open(sdist) as t: names = {n.split('/', 1)[1] for n in t.getnames() if '/' in n}
    want = {'LICENSE', 'README.md', 'CHANGELOG.md', 'ERRATA.md', 'settings.ini', 'constraints.txt', *data}
    assert want <= names and not [n for n in names if re.match(r'tests|bench|\.|.*__pycache__', n)]


# --- the wheel, installed where the repository can't be seen

@pytest.fixture(scope='module')
def env(wheel, tmp_path_factory):
    "bin/ of a new environment with the wheel in it; what it needs is lent by the environment of the tests"
    home = tmp_path_factory.mktemp('env')
    sh(sys.executable, '-m', 'venv', '--without-pip', home, cwd=home)
    lib = sysconfig.get_path('purelib', vars=dict(base=str(home), platbase=str(home)))
    # a folder on the path, not a site: the .pth in it isn't read, and so the editable minifast isn't seen
    (Path(lib)/'lent.pth').write_text(sysconfig.get_path('purelib') + '\n')
    bin = home/('Scripts' if os.name == 'nt' else 'bin')
    pip('--python', bin/'python', 'install', '-q', '--ignore-installed', '--no-deps', wheel, cwd=home)
    return bin

def python(env, code, cwd, **kw): return sh(env/'python', '-c', code, cwd=cwd, **kw)

def test_requirements_are_met(env, wheel, tmp_path):
    "With constraints.txt held to, an installation of the wheel would change nothing"
    args = ['install', '--dry-run', '-c', root/'constraints.txt', wheel]
    r = pip('--python', env/'python', *args, cwd=tmp_path)
    assert re.findall('Would install (.*)', r.stdout) in ([], [f'minifast-{version}'])

def test_first_cell(env, tmp_path):
    code = 'import minifast; from minifast.all import *; print(*map(len, get_data()), minifast.__file__)'
    *sizes, file = python(env, code, tmp_path).stdout.split()
    assert Path(file).is_relative_to(env.parent) and sizes == ['50000', '50000', '10000', '10000']

def test_every_module_is_the_wheels(env, tmp_path):
    code = f'''import sys, {", ".join(f"minifast.{m}" for m in modules)}
print(*(m.__file__ for n, m in sys.modules.items() if n.startswith("minifast")), sep="\\n")'''
    files = python(env, code, tmp_path).stdout.split('\n')[:-1]
    assert len(files) == len(modules) + 1 and all(Path(f).is_relative_to(env.parent) for f in files)

@pytest.mark.parametrize('args, says', [
    (['--version'], [version]), (['--help'], ['train', 'lessons']), (['lessons', '--help'], ['DEST']),
    (['train', '--help'], ['--epochs', '--bs', '--lr', '--seed', '--device', '--out'])])
def test_commands_explain_themselves(args, says, env, tmp_path):
    for cmd in ([env/'minifast'], [env/'python', '-m', 'minifast']):
        r = sh(*cmd, *args, cwd=tmp_path)
        assert 'minifast' in r.stdout and all(s in r.stdout for s in says) and not r.stderr

@pytest.mark.parametrize('args', [
    'trian', 'lessons', 'train --epochs 0', 'train --bs -1', 'train --lr fast', 'train --device gpu',
    'train --out missing/x.png', 'train --out x.txt'])
def test_a_wrong_command_says_what_is_right(args, env, tmp_path):
    r = sh(env/'minifast', *args.split(), cwd=tmp_path, ok=False)
    assert r.returncode == 2 and r.stderr.startswith('minifast') and len(r.stderr.splitlines()) == 1 and not r.stdout

def test_minifast_alone_says_what_can_be_done(env, tmp_path):
    for cmd in ([env/'minifast'], [env/'python', '-m', 'minifast']):
        r = sh(*cmd, cwd=tmp_path)
        assert len(r.stdout.splitlines()) == 6 and 'minifast train' in r.stdout and 'minifast lessons' in r.stdout and not r.stderr

def test_lessons_are_copied_and_never_overwritten(env, source, tmp_path):
    nbs = source/'nbs'
    lessons = {p.relative_to(nbs).as_posix(): p.read_bytes() for o in ('*.ipynb', 'exercises/*.ipynb') for p in nbs.glob(o)}
    dest = tmp_path/'a new'/'folder'
    r = sh(env/'minifast', 'lessons', dest, cwd=tmp_path)
    assert {p.relative_to(dest).as_posix(): p.read_bytes() for p in dest.rglob('*.ipynb')} == lessons
    mine, gone, *_ = sorted(lessons)
    (dest/mine).write_text('my own work')
    (dest/gone).unlink()
    r = sh(env/'minifast', 'lessons', dest, cwd=tmp_path)
    assert mine in r.stdout and gone not in r.stdout
    assert (dest/mine).read_text() == 'my own work' and (dest/gone).read_bytes() == lessons[gone]

def test_exercises_answer_and_are_listed(env, tmp_path):
    "An answer is checked without the repository, and the command knows of it"
    kept, code = str(tmp_path/'p.json'), '''
from minifast.all import *
def error_rate(pred, yb): return accuracy(pred, yb)
print(check('05b.e1', error_rate).outcome)
error_rate = lambda pred, yb: (pred.argmax(1) != yb).float().mean()
error_rate.__name__ = 'error_rate'
print(check('05b.e1', error_rate).outcome)'''
    r = sh(env/'python', '-c', code, cwd=tmp_path, MINIFAST_PROGRESS=kept)
    assert re.search('05b.e1 wrong.*^wrong$.*05b.e1 passed.*^passed$', r.stdout, re.M | re.S)
    r = sh(env/'minifast', 'exercises', '05b', cwd=tmp_path, MINIFAST_PROGRESS=kept)
    assert re.search('05b.e1 .* passed +error_rate', r.stdout)

def test_lessons_into_a_file(env, tmp_path):
    (tmp_path/'x').write_text('')
    r = sh(env/'minifast', 'lessons', 'x', cwd=tmp_path, ok=False)
    assert r.returncode == 2 and r.stderr.startswith('minifast: x is no folder') and len(r.stderr.splitlines()) == 1

def test_train_in_a_pipe(env, tmp_path):
    "One epoch in an empty folder: plain rows, the files that are announced, nothing on stderr"
    r = sh(env/'minifast', 'train', '--epochs', '1', cwd=tmp_path)
    assert not re.search('[\r\u2580-\u259f\x1b]', r.stdout) and not r.stderr
    out, layers, words = (tmp_path/f'minifast-train{o}' for o in ('.png', '-layers.png', '-diagnosis.txt'))
    assert set(tmp_path.iterdir()) == {out, layers, words}
    assert all(p.name in r.stdout for p in (out, layers, words))
    assert {p.read_bytes()[:4] for p in (out, layers)} == {b'\x89PNG'} and words.read_text() in r.stdout
    assert 'layers, 17 batches): no layer looks ill' in words.read_text()
    assert float(re.search(r'test accuracy (0\.\d+)', r.stdout)[1]) > .97
    assert all(o in r.stdout for o in ("recipe 'best'", 'batch norm', '07_batchnorm', '05c_anneal'))

def test_train_that_goes_wrong_says_where(env, tmp_path):
    r = sh(env/'minifast', 'train', '--recipe', 'plain', '--epochs', '1', '--lr', '1000', cwd=tmp_path)
    assert re.search(r'rate too high since iteration \d+', r.stdout) and not r.stderr
    assert len(list(tmp_path.iterdir())) == 3


# --- imports

WATCH = '''
import json, random, sys
net = []
sys.addaudithook(lambda e, args: net.append(e) if e in ('socket.connect', 'socket.getaddrinfo') else 0)
import matplotlib, numpy, torch
def state(): return dict(
    threads=[torch.get_num_threads(), torch.get_num_interop_threads()], dtype=str(torch.get_default_dtype()),
    grad=torch.is_grad_enabled(), torch=torch.get_rng_state().tolist(), numpy=str(numpy.random.get_state()),
    python=random.getstate(), rc=dict(matplotlib.rcParams), path=list(sys.path),
    exact=torch.are_deterministic_algorithms_enabled(), cudnn=torch.backends.cudnn.deterministic)
was = state()
import MODULE
now = state()
heavy = {'matplotlib.pyplot', 'fastprogress', 'IPython'} & set(sys.modules)
print(json.dumps([k for k in was if was[k] != now[k]] + net + sorted(heavy)))
'''
def changes(env, module, cwd): return json.loads(python(env, WATCH.replace('MODULE', module), cwd).stdout)

@pytest.mark.parametrize('module', ['minifast', *(f'minifast.{m}' for m in modules)])
def test_import_changes_nothing(module, env, tmp_path):
    "Threads, random states, rcParams are as before; no pyplot, nothing went to the network or to a file"
    assert changes(env, module, tmp_path) == [] and not list(tmp_path.iterdir())

BAD = '''import matplotlib.pyplot, numpy, random, socket, torch
random.random(); numpy.random.rand(); torch.rand(1); torch.set_num_threads(3)
matplotlib.rcParams['lines.linewidth'] = 9
try: socket.create_connection(('localhost', 9), .1)
except OSError: pass
'''
def test_the_watch_sees(tmp_path, env):
    (tmp_path/'bad.py').write_text(BAD)
    seen = changes(env, 'bad', tmp_path)
    assert {'threads', 'torch', 'numpy', 'python', 'rc', 'socket.connect', 'matplotlib.pyplot'} <= set(seen)

def test_import_minifast_alone_brings_in_no_torch(env, tmp_path):
    code = 'import sys, minifast; print(*{"torch", "numpy", "matplotlib", "fastprogress"} & set(sys.modules))'
    assert not python(env, code, tmp_path).stdout.strip()


# --- bars with fastprogress as it is here and with the newer one, which is what Colab has

FIT = '''
import fastprogress, torch, minifast
from minifast.all import *
x, y = torch.randn(64, 4), torch.randint(0, 2, (64,))
data = DataBunch(*get_dls(Dataset(x, y), Dataset(x, y), 16), c=2)
set_seed(42)
learn = create_learner(partial(get_model, lr=.1, nh=5), cross_entropy, data)
run = Runner([AvgStatsCallback(accuracy), Recorder(), ProgressCallback(WHERE)])
run.fit(3, learn)
assert len(run.recorder.losses) == 12
print(fastprogress.__version__, fastprogress.__file__, minifast.__file__, sep='\\n')
'''

@pytest.fixture(scope='module')
def newer(tmp_path_factory):
    "A folder with fastprogress 1.1 and what it needs"
    to = tmp_path_factory.mktemp('newer')
    r = pip('install', '-q', '--target', to, 'fastprogress>=1.1', cwd=to, ok=False)
    if r.returncode: pytest.skip(f'fastprogress 1.1 is not to be had: {r.stderr.strip()[-200:]}')
    return to

@pytest.mark.parametrize('where', ['', 'terminal', 'notebook'])
@pytest.mark.parametrize('version', ['as it is', 'newer'])
def test_bars(where, version, env, request, tmp_path):
    folder = str(request.getfixturevalue('newer')) if version == 'newer' else ''
    if where == 'notebook':   # bars need a kernel
        lib = next(p for p in env.parent.rglob('lent.pth')).parent
        nb = new_notebook(cells=[new_code_cell(FIT.replace('WHERE', ''))])
        nbformat.write(nb, tmp_path/'x.ipynb')
        nb, error = run(tmp_path/'x.ipynb', dict(PYTHONPATH=f'{folder}{os.pathsep}{lib}'))
        out, _, bad = said(nb.cells[0])
        assert not error and not bad and 'train_loss' in str([o.get('data') for o in nb.cells[0].outputs])
    else:
        out = python(env, FIT.replace('WHERE', repr(where)), tmp_path, PYTHONPATH=folder).stdout
        assert 'train_loss' in out and ('\r' in out) == (where == 'terminal')
    found, file, mine = out.split('\n')[-4:-1]
    assert Path(mine).is_relative_to(env.parent)
    assert not folder or found >= '1.1' and Path(file).is_relative_to(folder)
