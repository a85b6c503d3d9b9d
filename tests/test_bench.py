"bench/reproduce.py: a run on a subset goes through, goes on where it was broken off; the committed table is its own"
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from helpers import root

bench = root/'bench'

def reproduce(*args, ok=True):
    r = subprocess.run([sys.executable, bench/'reproduce.py', *map(str, args)], capture_output=True, text=True,
                       env={**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg'})
    assert not ok or r.returncode == 0, r.stdout + r.stderr
    return r

@pytest.fixture(scope='module')
def quick(tmp_path_factory):
    out = tmp_path_factory.mktemp('quick')
    return out, reproduce('--quick', '--out', out)

def test_a_quick_run_fills_every_row(quick):
    out, r = quick
    text = (out/'reproduce.md').read_text(encoding='utf-8')
    committed = (bench/'reproduce.md').read_text(encoding='utf-8')
    def first(text): return [[c.strip() for c in o.split('|')[1:4]] for o in text.splitlines() if o[:2] == '| ']
    def figures(text): return [o for o in first(text) if o[0][:2] in ('06', '07', '19', 'ho')]
    assert figures(text) == figures(committed) and len(figures(text)) > 30
    assert [o[0] for o in first(text)] == [o[0] for o in first(committed)]
    assert 'n = 2 seeds, 600 training images' in text and '9,408 · 128 · 36,864 · 18,981 | 9,408' in text
    assert (out/'reproduce.png').read_bytes()[:4] == b'\x89PNG'

def test_it_goes_on_where_it_was_broken_off(quick, tmp_path):
    "The second half of the notes is gone, and the last line is half a line"
    notes = (quick[0]/'reproduce.jsonl').read_text().splitlines()
    n, store = len(notes) - 3, tmp_path/'reproduce.jsonl'
    store.write_text('\n'.join(notes[:n] + [notes[n][:40]]))
    r = reproduce('--quick', '--out', tmp_path)
    after = store.read_text().splitlines()
    assert len(after) == len(notes) + 1 and after[:n] == notes[:n] and r.stdout.count(', seed ') == 3
    def key(line): return json.loads(line)[0]
    assert [key(o) for o in after[n+1:]] == [key(o) for o in notes[n:]]
    r = reproduce('--quick', '--out', tmp_path)
    assert ', seed ' not in r.stdout and store.read_text().splitlines() == after

def test_the_committed_table_is_what_the_committed_notes_say(tmp_path):
    for p in bench.glob('reproduce*.jsonl'): shutil.copy(p, tmp_path)
    r = reproduce('--out', tmp_path)
    assert ', seed ' not in r.stdout and 'not explained' not in r.stdout
    for name in ('reproduce.jsonl', 'reproduce.md'):
        assert (tmp_path/name).read_bytes() == (bench/name).read_bytes()

def test_a_verdict_that_other_kernels_change_is_said(quick, tmp_path):
    "All notes of other kernels a little better or worse than printed, so that verdicts change"
    for acc in (0, 1):
        shutil.copy(quick[0]/'reproduce.jsonl', tmp_path)
        notes = [json.loads(o) for o in (quick[0]/'reproduce.jsonl').read_text().splitlines()]
        for _, note in notes:
            for epoch in note.get('epochs', []): epoch[3] = acc
        lines = [json.dumps([key, {**note, 'machine': 'Another'}]) for key, note in notes]
        (tmp_path/'reproduce-some.jsonl').write_text('\n'.join(lines))
        r = reproduce('--quick', '--out', tmp_path)
        text = (tmp_path/'reproduce.md').read_text(encoding='utf-8')
        assert ', seed ' not in r.stdout and 'but for batches of two, on Another.' in text
        says = ['With SOME kernels .000 ± .000, which is lower.', 'With SOME kernels 1.000 ± .000, which is not lower.']
        assert says[1-acc] not in text and (acc == 0 or says[acc] in text)

def test_other_kernels_have_a_file_of_their_own(tmp_path):
    reproduce('--quick', '--out', tmp_path, '--other', 'some')
    assert [p.name for p in tmp_path.iterdir()] == ['reproduce-some.jsonl']
    notes = [json.loads(o)[1] for o in (tmp_path/'reproduce-some.jsonl').read_text().splitlines()]
    assert len(notes) > 20 and all(' with ' in o['machine'] for o in notes)

def test_the_words_under_the_recipes_are_true():
    "Means of the second committed table, as its text compares them"
    rows = [o.split('|') for o in (bench/'reproduce.md').read_text(encoding='utf-8').splitlines() if '|' in o]
    found = {o[1].strip(): [tuple(map(float, re.findall(r'\.\d{4}', c))) for c in o[4:6]]
             for o in rows if len(o) == 8}
    one, eight = ({k: v[i][0] for k, v in found.items() if v[i]} for i in (0, 1))
    assert one['plain'] < .5 < .85 < one['kaiming'] < one['relu'] and found['relu'][0][1] < .005
    assert abs(one['lsuv'] - one['relu']) < .005 and abs(eight['lsuv'] - eight['relu']) < .002
    assert eight['kaiming'] - eight['plain'] < .01
    constant = ('plain', 'kaiming', 'relu', 'lsuv')
    assert abs(eight['bn'] - eight['onecycle']) < .002 and one['bn'] > max(one[k] for k in constant)
    assert min(eight['bn'], eight['onecycle']) > max(eight[k] for k in constant)
    assert max(one, key=one.get) == max(eight, key=eight.get) == 'bn, one-cycle'
    assert eight['onecycle'] > eight['kaiming'] and one['onecycle'] < one['kaiming']

def test_quick_spares_the_real_table(tmp_path):
    r = reproduce('--quick', ok=False)
    assert r.returncode == 2 and '--out FOLDER' in r.stderr
    r = reproduce('--seeds', '1', '--out', tmp_path, ok=False)
    assert r.returncode == 2 and 'two or more' in r.stderr and not list(tmp_path.iterdir())

def test_mean_and_sd_keep_sign_and_count_nan(monkeypatch):
    monkeypatch.syspath_prepend(bench)
    from reproduce import pm
    assert pm([-.25, -.35]) == '-.300 ± .071' and pm([-1e-9, 1e-9]) == '.000 ± .000'
    assert pm([.5, float('nan'), .7]) == '.600 ± .141 (nan in 1 of 3)' and pm([float('nan')]) == 'nan'
