"""The sets of exercises: what is made from nbs/solutions is fresh, an unsolved notebook runs to its end, every
right answer passes, every slip fails with its own sentence, and every stub is not attempted."""
import importlib.util, json, re, subprocess, sys

import pytest
from helpers import root

from minifast import check as machinery
from minifast.check import check, exercises

every = exercises()
solutions = sorted((root/'nbs/solutions').glob('*.ipynb'))
made = sorted((root/'nbs/exercises').glob('*.ipynb'))
cases = [pytest.param(ex, o, id=f'{ex.id}-{i}') for ex in every for i, o in enumerate(ex.answers)]
slips = [pytest.param(ex, *o, id=f'{ex.id}-slip{i}') for ex in every for i, o in enumerate(ex.slips)]
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')   # a slip's __del__
def ids(o): return getattr(o, 'id', getattr(o, 'stem', None))

@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch): monkeypatch.setenv('MINIFAST_PROGRESS', str(tmp_path/'progress.json'))

def code_cells(path):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in cells if c['cell_type'] == 'code']

def run(path):
    "Execute the code cells of a notebook in a module of its own"
    names = {'__name__': 'unsolved'}
    for src in code_cells(path): exec(compile(src, str(path), 'exec'), names)


def test_fresh():
    r = subprocess.run([sys.executable, root/'.ci/exercises.py', '--check'], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr

def test_fresh_can_fail(tmp_path):
    "A stale notebook, one too many and a lesson with an old list are named, mended, and then all is fresh"
    for d in ('solutions', 'exercises', ''):
        (tmp_path/'nbs'/d).mkdir(exist_ok=True, parents=True)
        for p in (root/'nbs'/d).glob('03_*.ipynb'): (tmp_path/'nbs'/d/p.name).write_bytes(p.read_bytes())
    (tmp_path/'minifast').symlink_to(root/'minifast')
    def ci(*args): return subprocess.run([sys.executable, root/'.ci/exercises.py', '--root', tmp_path, *args], capture_output=True, text=True)
    assert ci('--check').returncode == 0
    for f in ('03_losses', 'exercises/03_losses'):
        p = tmp_path/f'nbs/{f}.ipynb'
        p.write_text(p.read_text(encoding='utf-8').replace('03.e3 ●●○', '03.e3 ●●●').replace('✓', ''), encoding='utf-8')
    p.write_text(p.read_text(encoding='utf-8') + ' ', encoding='utf-8')
    (tmp_path/'nbs/exercises/99_gone.ipynb').write_text('{}')
    r = ci('--check')
    assert r.returncode and all(f'{o}.ipynb' in r.stderr for o in ('nbs/03_losses', 'exercises/03_losses', 'exercises/99_gone'))
    assert ci().returncode == 0 and ci('--check').returncode == 0

def test_what_goes_from_a_lesson():
    "Stubs go, wherever they stand, and statements below the heading; what is no stub stays"
    spec = importlib.util.spec_from_file_location('made', root/'.ci/exercises.py')
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    found = exercises('03')
    def cell(kind, src): return dict(cell_type=kind, source=src.splitlines(True))
    cells = [cell('markdown', '| **Exercises** | some |'), cell('code', 'def my_cross_entropy(pred, yb): ...'), cell('markdown', 'Text.\n\n## Exercises\n\n| old |'),
             cell('code', '@deco\ndef topk_accuracy(pred):\n    "doc"\n    ...\nclass binary_cross_entropy: ...'), cell('markdown', 'And another:'),
             cell('code', 'home.cleanup()'), cell('code', 'def other(): ...'), cell('markdown', 'To read: much')]
    new = made.renewed(dict(cells=cells), found)['cells']
    assert [made.source(c) for c in new] == [made.card(found), 'Text.\n\n' + made.listed(found), 'home.cleanup()', 'def other(): ...', 'To read: much']
    assert made.renewed(dict(cells=new), found)['cells'] == new
    with pytest.raises(SystemExit, match='03_losses has no heading'): made.renewed(dict(cells=cells[:2]), found)

def test_every_lesson_with_exercises_has_its_set():
    have = {p.name for p in solutions}
    lessons = {p.name for p in (root/'nbs').glob('[0-9]*.ipynb') if '| **Exercises** |' in p.read_text(encoding='utf-8')}
    assert lessons == have

@pytest.mark.parametrize('path', made, ids=ids)
def test_unsolved_notebook_runs(path, capsys):
    run(path)
    n = sum(ex.lesson == path.stem for ex in every)
    assert capsys.readouterr().out.count(' not attempted: write ') == n > 0

@pytest.mark.parametrize('path', solutions, ids=ids)
def test_solutions_notebook(path):
    "It runs as a notebook does, and its lines can be read"
    run(path)
    assert max(len(s) for src in code_cells(path) for s in src.split('\n') if not s.startswith('#|')) <= 130

@pytest.mark.parametrize('ex', every, ids=ids)
def test_form(ex):
    number = ex.lesson.split('_')[0]
    assert re.match(rf'({number}|{number[:2]})\.[eq]\d+[a-z]?$', ex.id), 'the id of another lesson'
    assert sum(o.id == ex.id for o in every) == 1, 'an id that is there twice'
    assert len(ex.hints) == 3 and '___' in ex.hints[2], 'a question, where to look, a template with ___'
    assert ex.names and ex.check and ex.text and ex.minutes
    chosen = not re.search(r'^(def|class) ', ex.stub, re.M)   # a number or a letter can't be written in another style
    closed = ex.text.lower().startswith('closed book')
    assert len(ex.answers) >= (1 if chosen else 3), 'a right answer, and two in other styles'
    said = {s for s, _ in ex.slips}   # what can't be told apart by behaviour shares a sentence that names both
    assert len(said) >= (4 if (closed or '.q' in ex.id) and not chosen else 2)

@pytest.mark.parametrize('ex', every, ids=ids)
def test_stub(ex, capsys):
    assert check(ex.id, *ex.objects(ex.stub)).outcome == 'not attempted'

@pytest.mark.parametrize('ex, src', cases)
def test_right_answer(ex, src):
    r = check(ex.id, *ex.objects(src))
    assert r.outcome == 'passed', r.message

@pytest.mark.parametrize('ex, sentence, src', slips)
def test_slip(ex, sentence, src):
    r = check(ex.id, *ex.objects(src))
    assert r.outcome in ('wrong', 'error') and f'Likely cause: {sentence}\n' in r.message, r.message
    assert len(r.message.split('\n')) <= 7

def test_a_library_answer_is_shown(capsys):
    for ex in (o for o in every if o.library):
        machinery.solution(ex.id)
        assert f'# minifast.{ex.library}:\n' in capsys.readouterr().out
