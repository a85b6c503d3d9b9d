"What `import minifast` costs beside `import torch`: fresh processes, interleaved, medians, ratios"
import argparse, subprocess, sys, time
from pathlib import Path
from statistics import median

import minifast

HOME = Path(minifast.__file__).parent
PARTS = sorted(f'minifast.{p.stem}' for p in HOME.glob('[!_]*.py') if p.stem != 'all')
WHAT = {'torch': 'import torch', 'minifast': 'import minifast', 'torch, minifast': 'import torch, minifast',
        'each module': 'import ' + ', '.join(PARTS), 'minifast.all': 'import minifast.all'}

def seconds(code):
    "Seconds that a fresh interpreter takes for `code`"
    start = time.perf_counter()
    subprocess.run([sys.executable, '-c', code], check=True)
    return time.perf_counter() - start

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('-n', type=int, default=9, help='runs of each')
    n = p.parse_args().n
    for code in WHAT.values(): seconds(code)   # the files are in the page cache from here on
    runs = [{k: seconds(code) for k, code in {'python': 'pass', **WHAT}.items()} for _ in range(n)]
    print(f'{"":20}{"median s":>10}{"/ torch":>10}{"low":>8}{"high":>8}   {n} interleaved runs')
    for k in runs[0]:
        ratio = sorted(r[k]/r['torch'] for r in runs)
        print(f'{k:20}{median(r[k] for r in runs):10.3f}{median(ratio):10.3f}{ratio[0]:8.3f}{ratio[-1]:8.3f}')

if __name__ == '__main__': main()
