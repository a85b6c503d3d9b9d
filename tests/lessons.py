"""Runs lessons as they stand, and as if on other machines.

    python tests/lessons.py                  every lesson in every variant: a table, passed or the cell that failed
    python tests/lessons.py 05c 06c          these lessons
    python tests/lessons.py 05c -v avx2 -v seeds3
    python tests/lessons.py --python py313=/path/to/python    in another Python, with its PyTorch and numpy
    python tests/lessons.py train            `minifast train` with five seeds in every rounding

A variant is another rounding (kernels for other processors, PyTorch's own in place of oneDNN's, two threads,
weights off by a millionth) or other seeds; see tests/perturb.py."""
import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copytree

import nbformat

root = Path(__file__).resolve().parents[1]
names = sorted(p.stem for p in (root/'nbs').glob('*.ipynb'))


# --- variants

AVX2 = dict(ATEN_CPU_CAPABILITY='avx2', ONEDNN_MAX_CPU_ISA='AVX2', MKL_CBWR='AVX2')
PLAIN = dict(ATEN_CPU_CAPABILITY='default', ONEDNN_MAX_CPU_ISA='SSE41', MKL_CBWR='COMPATIBLE')
NOISE, ONEDNN = dict(MINIFAST_NOISE='1'), dict(MINIFAST_ONEDNN='0')
THREADS = dict(OMP_NUM_THREADS='2', OMP_WAIT_POLICY='passive')   # else they wait by turning round on a busy machine
ROUNDING = {'noise': NOISE, 'avx2': AVX2, 'default': PLAIN, 'no oneDNN': ONEDNN, '2 threads': THREADS}

def seeds(k):
    "Other seeds, every second time together with another rounding"
    extra = list(ROUNDING.values())[k//2 % len(ROUNDING)] if k % 2 else {}
    return {**extra, 'MINIFAST_SEED_SHIFT': str(1000*k)}

VARIANTS = {'as it is': {}, **ROUNDING, **{f'seeds{k}': seeds(k) for k in range(1, 11)},
            'seeds+avx2': {**AVX2, 'MINIFAST_SEED_SHIFT': '1000'}}   # the one that every `make test` runs
RELEASE = [v for v in VARIANTS if v != 'seeds+avx2']


# --- one lesson in one variant

PERTURB = f"import runpy; runpy.run_path({str(Path(__file__).parent/'perturb.py')!r}, run_name='__main__')"
EXECUTE = '''
import sys, nbformat
from nbclient import NotebookClient
path, folder, kernel = sys.argv[1:]
nb = nbformat.read(path, 4)
for c in nb.cells:
    if c.cell_type == 'code': c.update(outputs=[], execution_count=None)
client = NotebookClient(nb, timeout=900, kernel_name=kernel, record_timing=False, allow_errors=True,
                        extra_arguments=['--log-level=40'], resources={'metadata': {'path': folder}})
try: client.execute()
except Exception as e: sys.exit(str(e))
finally: nbformat.write(nb, path)
'''

def kernel(python, folder):
    "The name of the kernel that runs `python`, described in `folder`"
    if python is None: return 'python3'
    at = folder/'kernels'/'other'
    at.mkdir(parents=True, exist_ok=True)
    argv = [str(python), '-m', 'ipykernel_launcher', '-f', '{connection_file}']
    (at/'kernel.json').write_text(json.dumps(dict(argv=argv, display_name='other', language='python')))
    return 'other'

def environment(variant, **more):
    "One thread, this tree's package, and what makes the variant"
    env = {k: v for k, v in os.environ.items() if k not in ('MPLBACKEND', 'IN_TEST')}   # agg shows nothing
    path = str(Path(sys.executable).parent) + os.pathsep + env['PATH']
    env.update(dict(OMP_NUM_THREADS='1', PYTHONPATH=str(root), PATH=path, **more), **variant)
    return {**env, 'MKL_NUM_THREADS': env['OMP_NUM_THREADS']}

def run(path, variant=None, python=None):
    "-> the notebook at `path` as a fresh kernel leaves it, what ended it early"
    own, variant = path.parent/f'.{path.stem}', variant or {}
    startup = own/'profile_default/startup'
    startup.mkdir(parents=True, exist_ok=True)
    (startup/'00.py').write_text(f'{PERTURB}; del runpy')
    env = environment(variant, IPYTHONDIR=str(own), JUPYTER_PATH=str(own))
    cmd = [sys.executable, '-c', EXECUTE, path, path.parent, kernel(python, own)]
    r = subprocess.run(cmd, env=env, capture_output=True, text=True)
    return nbformat.read(path, 4), r.stderr if r.returncode else ''

def failures(nb):
    "(cell, the error's last line) for each cell that ended in an error which it wasn't there to show"
    for i, c in enumerate(nb.cells):
        for o in c.get('outputs', []):
            if o.output_type == 'error' and 'raises-exception' not in c.metadata.get('tags', []):
                yield i, f'{o.ename}: {o.evalue}'.split('\n')[0]

class Runs:
    "Lessons on copies of the notebooks' folder, so many at a time"
    def __init__(self, folder, jobs=2):
        self.folder, self.pool = Path(folder), ThreadPoolExecutor(max_workers=jobs)
    def start(self, name, variant='as it is', python=None):
        "-> what will be (notebook, what ended it early, seconds)"
        return self.pool.submit(self._run, name, variant, python)
    def _run(self, name, variant, python):
        at = Path(tempfile.mkdtemp(dir=self.folder))/'nbs'
        copytree(root/'nbs', at, ignore=lambda *_: [f'{n}.ipynb' for n in names if n != name])
        start = time.time()
        return *run(at/f'{name}.ipynb', VARIANTS.get(variant, {}), python), time.time() - start
    def __enter__(self): return self
    def __exit__(self, *_): self.pool.shutdown(cancel_futures=True)


# --- the main command

LEAST = .985   # of the test images, by any seed on any machine

def train(variant='as it is', seed=1, python=None):
    "Run `minifast train` -> its test accuracy, what is wrong with what it did, seconds"
    variant, start = VARIANTS.get(variant, {}), time.time()
    args = ['train', '--device', 'cpu', '--seed', str(seed), '--threads', variant.get('OMP_NUM_THREADS', '1')]
    code = f"{PERTURB}; import sys; sys.argv[1:] = {args}; runpy.run_module('minifast', run_name='__main__')"
    with tempfile.TemporaryDirectory() as tmp:
        r = subprocess.run([python or sys.executable, '-c', code], env=environment(variant), cwd=tmp,
                           capture_output=True, text=True)
        made = sorted(p.suffix for p in Path(tmp).iterdir() if p.stat().st_size > 20)
    acc = re.search(r'test accuracy (0\.\d+)', r.stdout)
    acc = float(acc[1]) if acc else 0.
    wrong = [why for why, bad in [(r.stderr.strip().split('\n')[-1], r.returncode), (f'below {LEAST}', acc < LEAST),
                                  ('a layer looks ill', 'no layer looks ill' not in r.stdout),
                                  (f'made {made}', made != ['.png', '.png', '.txt'])] if bad]
    return acc, '; '.join(wrong), time.time() - start


# --- which machine this is

def machine():
    "One line: processor, PyTorch's kernels, threads, versions"
    import numpy
    import torch
    info = Path('/proc/cpuinfo')
    m = re.search(r'^model name\s*: (.*)', info.read_text(), re.M) if info.exists() else None
    cpu = m[1] if m else platform.processor() or platform.machine()
    return (f'{cpu}, {torch.backends.cpu.get_cpu_capability()} kernels, {os.cpu_count()} cores; '
            f'Python {platform.python_version()}, PyTorch {torch.__version__}, numpy {numpy.__version__}')


# --- lesson x variant

def verdict(nb, error):
    "'passed', or the cell that failed first and why"
    failed = list(failures(nb))
    if error: return f'broke off: {error.strip().splitlines()[-1]}'
    if not failed: return 'passed'
    (i, why), more = failed[0], f' (+{len(failed)-1})' if failed[1:] else ''
    return f'cell {i}{more} {why}'

def print_row(name, variant, seconds, said):
    print(f'{name:<22}{variant:<12}{seconds:5.0f} s  {said[:180]}', flush=True)
    return not said.startswith('passed')

def trainings(columns, jobs):
    "A line for each variant and seed of the main command -> (how many there were, how many failed)"
    found = []
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        todo = [(v, k, pool.submit(train, v, k, python)) for v, python in columns for k in range(1, 6)]
        for v, k, j in todo:
            acc, wrong, seconds = j.result()
            print_row(f'train --seed {k}', v, seconds, f'{wrong or "passed"}: test accuracy {acc:.4f}')
            found.append((acc, wrong))
    accs = [acc for acc, _ in found]
    print(f'test accuracy {min(accs):.4f} to {max(accs):.4f}, mean {sum(accs)/len(accs):.4f}, n = {len(accs)}')
    return len(found), sum(bool(wrong) for _, wrong in found)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('lessons', nargs='*', help='their numbers or names; all of them if none is given')
    p.add_argument('-v', '--variant', action='append', choices=VARIANTS, help='may be given several times')
    p.add_argument('-j', '--jobs', type=int, default=min(2, os.cpu_count()), help='lessons at a time')
    p.add_argument('--python', action='append', default=[], metavar='NAME=PATH',
                   help='an interpreter with ipykernel and what minifast requires; a column of its own')
    a = p.parse_args()
    wanted = {o: [n for n in names if o in (n, n.split('_')[0])] for o in a.lessons if o != 'train'}
    unknown = [o for o, found in wanted.items() if not found]
    if unknown: p.error(f'no lesson is {unknown[0]!r}: {", ".join(names)}')
    lessons = [n for n in names if not a.lessons or n in sum(wanted.values(), [])]
    pythons = dict(o.split('=', 1) for o in a.python)
    columns = [(v, None) for v in a.variant or ([] if pythons else RELEASE)] + list(pythons.items())
    print(f'{machine()}\n', flush=True)
    total = lost = 0
    with tempfile.TemporaryDirectory() as tmp, Runs(tmp, a.jobs) as runs:
        jobs = [(n, v, runs.start(n, v, python)) for n in lessons for v, python in columns]
        for n, v, j in jobs:
            nb, error, seconds = j.result()
            lost += print_row(n, v, seconds, verdict(nb, error))
            total += 1
    trained = [(v, python) for v, python in columns if 'seeds' not in v]   # its seeds are its own
    if trained and ('train' in a.lessons or not a.lessons):
        more = trainings(trained, a.jobs)
        total, lost = total + more[0], lost + more[1]
    print(f'\n{total - lost} passed, {lost} failed')
    return bool(lost)

if __name__ == '__main__': sys.exit(main())
