#!/usr/bin/env python3
"Makes README.md, and the pictures in it, from nbs/index.ipynb with the outputs that are stored there"
import argparse, base64, difflib, json, re, sys
from pathlib import Path

def fence(text, lang=''): return f'```{lang}\n{text.rstrip()}\n```'
def plain(s): return ''.join(s) if isinstance(s, list) else s

def from_root(md):
    "Links that hold in nbs/, as they must be beside README.md"
    def moved(m):
        if m[1][0] == '#': return m[0].lower()   # as GitHub spells a heading's address
        return m[0] if re.match(r'[a-z]+:|/', m[1]) else f'](nbs/{m[1]})'.replace('](nbs/../', '](')
    text = re.split(r'(```.*?```)', md, flags=re.S)   # every second part is fenced code
    text[::2] = [re.sub(r'\]\(([^)\s]+)\)', moved, s) for s in text[::2]]
    return ''.join(text)

def outputs(cell, pics):
    """Markdown of a cell's outputs; pictures are added to `pics`, under the name that the link gives them.
    The cell says in `#| fig-alt:` what a picture shows, for who can't see it"""
    alt = re.search(r'^#\|\s*fig-alt:\s*(.+)', plain(cell['source']), re.M)
    for o in cell['outputs']:
        data = o.get('data', {})
        if 'image/png' in data:
            if not alt: sys.exit('index.ipynb: a cell that draws says what it shows: #| fig-alt: …')
            name = f'nbs/images/index_{len(pics)+1}.png'
            pics[name] = base64.b64decode(plain(data['image/png']))
            yield f'![{alt[1]}]({name})'
        elif text := plain(o.get('text', data.get('text/plain', ''))).strip('\n'): yield fence(text)

def readme(nb):
    "-> the text of README.md, and its pictures as a dict from path to bytes"
    parts, pics = [], {}
    for cell in nb['cells']:
        src = plain(cell['source'])
        if cell['cell_type'] == 'markdown': parts.append(from_root(src))
        elif cell['cell_type'] == 'code' and not re.search(r'^#\|\s*hide\b', src, re.M):
            code = re.sub(r'^#\|.*\n?', '', src, flags=re.M).strip()
            parts += ([fence(code, 'python')] if code else []) + list(outputs(cell, pics))
    return '\n\n'.join(p.strip('\n') for p in parts) + '\n', pics

def main(root, check):
    text, pics = readme(json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8')))
    want = {'README.md': text.encode(), **pics}
    files = [*root.glob('README.md'), *root.glob('nbs/images/index_*.png')]
    have = {p.relative_to(root).as_posix(): p.read_bytes() for p in files}
    wrong = sorted(f for f in want.keys() | have.keys() if want.get(f) != have.get(f))
    if check and wrong:
        old, new = (d.get('README.md', b'').decode().splitlines() for d in (have, want))
        print('\n'.join(difflib.unified_diff(old, new, 'README.md', 'nbs/index.ipynb', lineterm='')))
        sys.exit(f'not what nbs/index.ipynb gives: {", ".join(wrong)}: run `make readme`')
    for f in [] if check else wrong:
        if f not in want: (root/f).unlink()
        else: (root/f).parent.mkdir(exist_ok=True); (root/f).write_bytes(want[f])

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--check', action='store_true', help='write nothing; show what differs and exit 1')
    p.add_argument('--root', type=Path, default=Path(__file__).resolve().parents[1], help='the repository')
    a = p.parse_args()
    main(a.root, a.check)
