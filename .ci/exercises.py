#!/usr/bin/env python3
"""Makes from nbs/solutions what learners see: the notebooks in nbs/exercises and, in each lesson, the cell
`## Exercises` and the row **Exercises** of its card. minifast/check.py reads nbs/solutions itself."""
import argparse, ast, json, re, sys
from pathlib import Path

def md(id, src): return dict(cell_type='markdown', id=id, metadata={}, source=src.splitlines(True))
def code(id, src):
    return dict(md(id, src), cell_type='code', outputs=[], execution_count=None)

def text(nb):   # as nbdev writes one
    return (json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + '\n').encode()

def source(cell): return ''.join(cell['source'])
def minutes(ex): return f'{ex.minutes} min' + (f' ({ex.measured})' if ex.measured else '')

def exercise_cells(ex, shared):
    "Its statement, what it needs besides, the stub, and the check"
    id = re.sub(r'\W', '-', ex.id)
    line = ' · '.join(o for o in (ex.level, minutes(ex), ex.lines) if o)
    yield md(f'{id}-text', f'## {ex.id} {ex.title}\n{line}\n\n{ex.text}')
    for i, src in enumerate(ex.setup[shared:]): yield code(f'{id}-setup{i}', src)
    yield code(f'{id}-stub', ex.stub)
    yield code(f'{id}-check', f"check('{ex.id}', {', '.join(ex.names)})"
               f"\n# hint('{ex.id}')\n# solution('{ex.id}')")

def notebook(found, lesson):
    "The notebook in which the exercises `found` of a lesson are done"
    name, cells = found[0].lesson, lesson['cells']
    title = re.search(r'^# +(.+)', source(cells[0]), re.M)[1]
    badge = re.search(r'\[!\[Open In Colab\].*', '\n'.join(map(source, cells)))[0]
    intro = f"""# Exercises: {title}
> To [{name}](../{name}.ipynb). Write in place of the dots, run the cell, then the `check` below it.

A check says what fails and why. `hint` has three hints, one at a time. `solution` shows an answer.
`progress()` lists all exercises.

{badge.replace(f'/nbs/{name}', f'/nbs/exercises/{name}')}"""
    install = next(c for c in cells if 'pip' in source(c) and 'hide' in source(c))
    shared = min(len(ex.setup) for ex in found)
    names = 'from minifast.check import check, hint, progress, solution'
    setup = '\n'.join([names, *found[0].setup[:shared]])
    made = [md('intro', intro), code('install', source(install)), code('setup', setup)]
    for ex in found: made += exercise_cells(ex, shared)
    made.append(code('progress', f"progress('{name.split('_')[0]}')"))
    kernel = dict(display_name='python3', language='python', name='python3')
    return dict(cells=made, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)

def row(ex):
    "The first paragraph of the statement, in a table of the lesson"
    first = ' '.join(ex.text.split('\n\n')[0].split()).replace('](../', '](').replace('|', '\\|')
    return f'| {ex.id} | {ex.level} | {minutes(ex)} | {first} |'

def listed(found):
    "The cell `## Exercises` of the lesson"
    name, rows = found[0].lesson, map(row, found)
    return '\n'.join([f'## Exercises\n\nWrite them in [exercises/{name}](exercises/{name}.ipynb), where '
                      '[`check`](98_check.ipynb) answers.\n', '| id | difficulty | time | what to write |',
                      '|---|---|---|---|', *rows])

def card(found):
    "The row of the lesson's card"
    if len(found) > 6:
        times = sorted(ex.minutes for ex in found)
        return f'| **Exercises** | {len(found)}, of {times[0]} to {times[-1]} minutes each |'
    same = len({ex.measured for ex in found}) == 1
    each = [f'{ex.id} {ex.level} ' + (f'{ex.minutes} min' if same else minutes(ex)) for ex in found]
    note = f' ({found[0].measured})' if same and found[0].measured else ''
    return f'| **Exercises** | {" · ".join(each)}{note} |'

SECTION = re.compile(r'^## Exercises?\n.*?(?=^## |\Z)', re.M | re.S)

def only_stubs(src, names):
    "Does a cell hold nothing but `def f(): ...` and `class A: ...` of exercises?"
    try: body = ast.parse(src).body
    except SyntaxError: return False
    ends = [o.body[-1] if hasattr(o, 'body') and getattr(o, 'name', '') in names else o for o in body]
    dots = [isinstance(o, ast.Expr) and getattr(o.value, 'value', 0) is ... for o in ends]
    return bool(dots) and all(dots)

def renewed(lesson, found):
    """The lesson with its card and its list of exercises renewed. Stubs go, and so does the text that stood
    below the list, up to the next heading, `To read` or `Next`."""
    cells, inside, names = [], False, {n for ex in found for n in ex.names}
    for c in lesson['cells']:
        src = source(c)
        if c['cell_type'] == 'code':
            if not only_stubs(src, names): cells.append(c)
            continue
        if SECTION.search(src):
            src, inside = SECTION.sub(lambda m: listed(found) + '\n\n', src).rstrip(), True
        elif re.match('#|To read|Next:', src): inside = False
        elif inside: continue
        src = re.sub(r'^\| \*\*Exercises\*\* \|.*$', lambda m: card(found), src, flags=re.M)
        cells.append(dict(c, source=src.splitlines(True)))
    if not any(SECTION.search(source(c)) for c in cells):
        sys.exit(f'{found[0].lesson} has no heading ## Exercises')
    return dict(lesson, cells=cells)

def made(root):
    "path -> bytes of all that is made from nbs/solutions"
    sys.path.insert(0, str(root))
    from minifast.check import read_exercises
    want = {}
    for p in sorted((root/'nbs/solutions').glob('*.ipynb')):
        lesson = json.loads((root/'nbs'/p.name).read_text(encoding='utf-8'))
        found = read_exercises(p)
        want[f'nbs/exercises/{p.name}'] = text(notebook(found, lesson))
        want[f'nbs/{p.name}'] = text(renewed(lesson, found))
    return want

def main(root, check):
    want = made(root)
    have = {p.relative_to(root).as_posix() for p in (root/'nbs/exercises').glob('*.ipynb')}
    stale = {f for f, b in want.items() if not (root/f).exists() or (root/f).read_bytes() != b}
    stale = sorted(stale | have - want.keys())
    if check and stale: sys.exit(f'not what nbs/solutions gives: {", ".join(stale)}: run `make exercises`')
    for f in [] if check else stale:
        if f in want: (root/f).parent.mkdir(exist_ok=True); (root/f).write_bytes(want[f])
        else: (root/f).unlink()

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--check', action='store_true', help='write nothing; say what differs and exit 1')
    p.add_argument('--root', type=Path, default=Path(__file__).resolve().parents[1], help='the repository')
    a = p.parse_args()
    main(a.root, a.check)
