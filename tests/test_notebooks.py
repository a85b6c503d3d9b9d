"""Every notebook runs from top to bottom in a fresh kernel and says what its committed outputs say; and its
assertions hold as if on another machine (`--robust`: on fifteen).

What depends on a training, or on a clock, isn't compared by its digits: `tests/depends.py` finds out which
cells these are, by following names. Such a cell has to run, to say something where it did, and to draw as many
pictures. Everything else is compared strictly: words and whole numbers exactly, and so are numbers with a
point, but that the last of four digits or more may be rounded the other way, and that what is too small for
float32 to tell from zero is only that. In a table whose header ends in `seconds` the last column is left out."""
import base64
import re
import struct

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

import lessons
from depends import kinds
from lessons import RELEASE, failures, names, root


# --- what a cell says

TINY = 1e-5   # differences below it are float32's rounding
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

def unit(s):
    "What the last digit of `s` counts"
    digits, _, power = s.lower().partition('e')
    return 10.**(int(power or 0) - len(digits.partition('.')[2]))

def same_number(a, b):
    "Is it the same number, printed where the arithmetic may round in another way?"
    x, y = float(a), float(b)
    if x == y or max(abs(x), abs(y)) < TINY: return True
    shown = len(re.sub(r'e.*|\D', '', a.lower()).lstrip('0'))
    return shown >= 4 and unit(a) == unit(b) and abs(x - y) < 1.5*unit(a)

def differences(want, got):
    "-> what in the text `got` isn't what `want` says, or None"
    want, got = without_seconds(want), without_seconds(got)
    a, b = (NUMBER.sub('#', t).split() for t in (want, got))
    if a != b:
        i = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
        was, now = (' '.join(t[max(i-3, 0):i+5]) for t in (a, b))
        return f'was {was!r}, is {now!r} (# is a number)'
    for x, y in zip(NUMBER.findall(want), NUMBER.findall(got)):
        if not same_number(x, y): return f'was {x}, is {y}'

def compare(want, got):
    "-> a line for each cell of the notebook `got`, just run, that doesn't say what it says in `want`"
    code = [(i, a, b) for i, (a, b) in enumerate(zip(want.cells, got.cells)) if a.cell_type == 'code']
    for (i, a, b), kind in zip(code, kinds([a.source for _, a, _ in code])):
        (text, pics, _), (new_text, new_pics, bad) = said(a), said(b)
        if bad and 'raises-exception' not in a.metadata.get('tags', []): yield f'cell {i}: {bad[0]}'
        if len(pics) != len(new_pics): yield f'cell {i}: had {len(pics)} pictures, has {len(new_pics)}'
        if kind != 'fixed':
            if bool(text.strip()) != bool(new_text.strip()): yield f'cell {i}: said {text!r}, says {new_text!r}'
            continue
        if d := differences(text, new_text): yield f'cell {i}: {d}'
        for p, q in zip(pics, new_pics):   # the size follows the labels, and they the numbers
            if any(abs(m - n) > .1*m for m, n in zip(p, q)): yield f'cell {i}: a picture of {p} is now {q}'


# --- the notebooks as they are, and as if on other machines; two at a time

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    with lessons.Runs(tmp_path_factory.mktemp('runs')) as runs: yield runs

def pytest_generate_tests(metafunc):
    if 'variant' in metafunc.fixturenames:
        every = metafunc.config.getoption('--robust')
        metafunc.parametrize('variant', RELEASE[1:] if every else ['seeds+avx2'])

@pytest.fixture(scope='module')
def jobs(runs, request):
    "(lesson, variant) -> what will have become of it; all that this session asks for, started at once"
    wanted = [(i.callspec.params['name'], i.callspec.params.get('variant', 'as it is'))
              for i in request.session.items if 'jobs' in getattr(i, 'fixturenames', ())]
    return {(n, v): runs.start(n, v) for n, v in wanted}

@pytest.mark.parametrize('name', names)
def test_notebook(name, jobs):
    new, error, _ = jobs[name, 'as it is'].result()
    wrong = [error] if error else list(compare(nbformat.read(root/f'nbs/{name}.ipynb', 4), new))
    if wrong: pytest.fail('\n'.join(wrong), pytrace=False)

@pytest.mark.parametrize('name', names)
def test_on_another_machine(name, variant, jobs):
    new, error, _ = jobs[name, variant].result()
    wrong = [error] if error else [f'cell {i}: {why}' for i, why in failures(new)]
    if wrong: pytest.fail('\n'.join(wrong), pytrace=False)


# --- the comparison itself

SAME = [('', ''), ('loss 0.5123', 'loss 0.5124'), ('1e-06', '2.3e-7'), ('[1., 2.5]', '[1.,  2.5]'),
        ('-0.0000012', '0.0'), ('ok  98\n', 'ok 98'), ('nan', 'nan'), ('1.234e-3', '1.235e-3'), ('0.9999', '1.0000'),
        ('epoch  loss  seconds\n0  0.31  1.2\n1  0.2  12.7', 'epoch loss seconds\n0 0.31 9\n1 0.2 1'),
        ('| norm | loss | seconds |\n| bn | 0.31 | 1.2 |', '| norm | loss | seconds |\n| bn | 0.31 | 7.3 |')]
OTHER = [('ok', 'OK'), ('98 batches', '97 batches'), ('loss 0.512', 'loss 0.513'), ('0.5123', '0.5125'), ('0.5123', '0.512'),
         ('0.5123', '0.6123'), ('1.234e-3', '1.234e-4'), ('0.01', '0.02'), ('0.0512', '0.0513'), ('0.5', ''), ('', 'x'),
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
    (book(src='run.fit(1)'), book(ERROR), 'broken'),
    (book(text('loss 0.5'), src='run.fit(1)'), book(src='run.fit(1)'), 'said'),
    (book(pic(5, 3), src='run.fit(1)'), book(src='run.fit(1)'), 'had 1 pictures')])
def test_compare_says(want, got, says): assert any(says in d for d in compare(want, got))

@pytest.mark.parametrize('want, got', [
    (book(text('a 1\n')), book(text('a '), text('1'), text('\n'))), (book(pic(50, 30)), book(pic(51, 29))),
    (book(text('3 ms'), src='t = time.perf_counter()'), book(text('9 ms'))),
    (book(text('loss 0.5'), src='run.fit(1, learn)'), book(text('loss 0.7'))),
    (book(pic(50, 30), src='run.fit(1, learn)'), book(pic(90, 30))),
    (book(text('n seconds\n0 1.2\n1 1.3\n')), book(text('n seconds\n0 1.2'), text('\n1 1.9'), text('\n'))),
    (book(tags=['raises-exception']), book(ERROR))])
def test_compare_is_content(want, got): assert not list(compare(want, got))

