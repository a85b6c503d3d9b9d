"""Every notebook runs from top to bottom in a fresh kernel and says what its committed outputs say.

A training run differs a little from one processor to another: numbers with a point or an exponent agree
within a tolerance, whole numbers and words exactly. Pictures are there, and as large. A cell with the comment
`# timing` or `# chaotic` (a training at so high a rate that a rounding error grows until it shows) has only to
run; a table whose header ends in `seconds` is compared without its last column."""
import base64, os, re, shutil, struct, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

root = Path(__file__).resolve().parents[1]
names = sorted(p.stem for p in (root/'nbs').glob('*.ipynb'))
rtol, atol = 5e-2, 2e-2


# --- what a cell says

NUMBER = re.compile(r'(?<![\w.])[-+]?(?:\d*\.\d+(?:e[-+]?\d+)?|\d+e[-+]?\d+|\d+\.(?=[],)]))', re.I)

def without_seconds(text):
    "Drop the last column of a table whose header ends in `seconds`; a table ends with an empty line"
    lines, timed = [], False
    for line in text.split('\n'):
        if re.search(r'\bseconds\W*$', line): timed = True
        elif not line.strip(): timed = False
        elif timed: line = re.sub(r'[\d.:]+\s*\|?\s*$', '', line)
        lines.append(line)
    return '\n'.join(lines)

def said(cell):
    "-> all text of a cell, the (width, height) of each of its pictures, what stands on stderr or is an error"
    text, pics, bad = '', [], []
    for o in cell.outputs:
        data = o.get('data', {})
        if o.output_type == 'error' or o.get('name') == 'stderr': bad.append(o.get('text') or o.evalue)
        elif png := data.get('image/png'): pics.append(struct.unpack('>2I', base64.b64decode(png)[16:24]))
        else: text += o.text if o.output_type == 'stream' else f"\n{data.get('text/plain', '')}\n"
    return text, pics, bad

def differences(want, got):
    "-> what in the text `got` isn't what `want` says, or None"
    want, got = without_seconds(want), without_seconds(got)
    a, b = (NUMBER.sub('#', t).split() for t in (want, got))
    if a != b:
        i = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
        was, now = (' '.join(t[max(i-3, 0):i+5]) for t in (a, b))
        return f'was {was!r}, is {now!r} (# is a number)'
    for x, y in zip(NUMBER.findall(want), NUMBER.findall(got)):
        if abs(float(x) - float(y)) > atol + rtol*max(abs(float(x)), abs(float(y))): return f'was {x}, is {y}'

def compare(want, got):
    "-> a line for each cell of the notebook `got`, just run, that doesn't say what it says in `want`"
    for i, (a, b) in enumerate(zip(want.cells, got.cells)):
        if a.cell_type != 'code': continue
        (text, pics, _), (new_text, new_pics, bad) = said(a), said(b)
        if bad and 'raises-exception' not in a.metadata.get('tags', []): yield f'cell {i}: {bad[0]}'
        if re.search(r'#\s*(timing|chaotic)\b', a.source): continue
        if d := differences(text, new_text): yield f'cell {i}: {d}'
        if len(pics) != len(new_pics): yield f'cell {i}: had {len(pics)} pictures, has {len(new_pics)}'
        for p, q in zip(pics, new_pics):   # the size follows the labels, and they the numbers
            if any(abs(m - n) > .1*m for m, n in zip(p, q)): yield f'cell {i}: a picture of {p} is now {q}'


# --- the notebooks as they are, two at a time

EXECUTE = '''
import sys, nbformat
from nbclient import NotebookClient
path, folder = sys.argv[1:]
nb = nbformat.read(path, 4)
for c in nb.cells:
    if c.cell_type == 'code': c.update(outputs=[], execution_count=None)
client = NotebookClient(nb, timeout=600, kernel_name='python3', record_timing=False,
                        extra_arguments=['--log-level=40'],
                        resources={'metadata': {'path': folder}})
try: client.execute()
except Exception as e: sys.exit(str(e))
finally: nbformat.write(nb, path)
'''

def run(path):
    "-> the notebook at `path` as a fresh kernel leaves it, the error that ended it early"
    env = {k: v for k, v in os.environ.items() if k not in ('MPLBACKEND', 'IN_TEST')}   # agg shows nothing
    env.update(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', IPYTHONDIR=str(path.parent/'.ipython'),
               PATH=str(Path(sys.executable).parent) + os.pathsep + env['PATH'])
    cmd = [sys.executable, '-c', EXECUTE, path, path.parent]
    r = subprocess.run(cmd, env=env, capture_output=True, text=True)
    return nbformat.read(path, 4), r.stderr if r.returncode else ''

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "name -> (the notebook as it was committed, what will have become of it)"
    nbs = shutil.copytree(root/'nbs', tmp_path_factory.mktemp('run')/'nbs')
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count())) as pool:
        jobs = {n: (nbformat.read(p, 4), pool.submit(run, p)) for n in names for p in [nbs/f'{n}.ipynb']}
        yield jobs
        for _, j in jobs.values(): j.cancel()

@pytest.mark.parametrize('name', names)
def test_notebook(name, runs):
    old, job = runs[name]
    new, error = job.result()
    wrong = [error] if error else list(compare(old, new))
    if wrong: pytest.fail('\n'.join(wrong), pytrace=False)


# --- the comparison itself

SAME = [('', ''), ('loss 0.512', 'loss 0.523'), ('1e-05', '2.3e-5'), ('[1., 2.5]', '[1.01,  2.5]'),
        ('-0.01', '0.005'), ('ok  98\n', 'ok 98'), ('nan', 'nan'), ('12.0', '12.5'),
        ('epoch  loss  seconds\n0  0.31  1.2\n1  0.2  12.7', 'epoch loss seconds\n0 0.31 9\n1 0.2 1'),
        ('| norm | loss | seconds |\n| bn | 0.31 | 1.2 |', '| norm | loss | seconds |\n| bn | 0.31 | 7.3 |')]
OTHER = [('ok', 'OK'), ('98 batches', '97 batches'), ('loss 0.512', 'loss 0.612'), ('0.5', ''), ('', 'x'),
         ('1.5 2.5', '1.5'), ('-0.5', '0.5'), ('12.5', '13.5'), ('98.', '97.'), ('1.0', '1'), ('nan', '0.1'),
         ('conv2d', 'conv3d'), ('0.5', 'inf'), ('2.13.0+cpu', '1.13.0+cpu'), ('(50, 784)', '(50, 785)'),
         ('1e-3', '1e-1'), ('epoch loss\n0 1.2', 'epoch loss\n0 9.9'), ('a, b', 'b, a'), ('x1', 'x2'),
         ('epoch seconds\n0 1.2\n\n7', 'epoch seconds\n0 1.2\n\n8'), ('n seconds\n0 1.2', 'n seconds\n1 1.2'),
         ('it took 3 seconds\n\n4.5', 'it took 3 seconds\n\n9.5')]

@pytest.mark.parametrize('a, b', SAME)
def test_same(a, b): assert not differences(a, b) and not differences(b, a)

@pytest.mark.parametrize('a, b', OTHER)
def test_other(a, b): assert differences(a, b) and differences(b, a)

def png(w, h): return base64.b64encode(bytes(16) + struct.pack('>2I', w, h)).decode()
def text(s, name='stdout'): return new_output('stream', name=name, text=s)
def pic(w, h): return new_output('display_data', data={'image/png': png(w, h), 'text/plain': '<Figure>'})
def book(*outs, src='x', tags=()):
    return new_notebook(cells=[new_code_cell(src, outputs=list(outs), metadata=dict(tags=list(tags)))])

ERROR = new_output('error', ename='ValueError', evalue='broken')

@pytest.mark.parametrize('want, got, says', [
    (book(text('a')), book(), 'was'), (book(), book(text('a')), 'is'),
    (book(text('a'), text('b')), book(text('a')), 'was'),
    (book(pic(500, 300)), book(), 'had 1 pictures, has 0'), (book(), book(pic(500, 300)), 'had 0'),
    (book(pic(500, 300)), book(pic(500, 340)), 'is now (500, 340)'),
    (book(text('a')), book(text('a'), text('UserWarning', 'stderr')), 'UserWarning'),
    (book(src='# timing'), book(ERROR), 'broken')])
def test_compare_says(want, got, says): assert any(says in d for d in compare(want, got))

@pytest.mark.parametrize('want, got', [
    (book(text('a 1\n')), book(text('a '), text('1'), text('\n'))), (book(pic(50, 30)), book(pic(51, 29))),
    (book(text('3 ms'), src='# timing: differs from run to run'), book(text('9 ms'))),
    (book(text('n seconds\n0 1.2\n1 1.3\n')), book(text('n seconds\n0 1.2'), text('\n1 1.9'), text('\n'))),
    (book(tags=['raises-exception']), book(ERROR))])
def test_compare_is_content(want, got): assert not list(compare(want, got))

@pytest.mark.parametrize('last, says', [
    ('1/1', ''), ('1/0', 'ZeroDivisionError'), ('import sys; print("no", file=sys.stderr)', 'no')])
def test_run(last, says, tmp_path):
    "One thread, the notebook's own folder, pictures inline; a cell that fails and a word on stderr are found"
    env = 'import os, matplotlib.pyplot as plt\nprint(os.environ["OMP_NUM_THREADS"], os.getcwd())'
    nb = new_notebook(cells=[new_code_cell(s) for s in (env, 'plt.plot([1]);', last)])
    nbformat.write(nb, tmp_path/'x.ipynb')
    nb, error = run(tmp_path/'x.ipynb')
    assert said(nb.cells[0])[0] == f'1 {tmp_path}\n' and len(said(nb.cells[1])[1]) == 1
    found = error + ''.join(said(nb.cells[2])[2])
    assert says in found and bool(says) == bool(found)
