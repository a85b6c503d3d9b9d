"""What the course of 2019 printed, with ours beside it, and the lessons' recipes against each other.

    python bench/reproduce.py [--only figures|ablation] [--seeds 5]
    python bench/reproduce.py --quick --out FOLDER
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2 python bench/reproduce.py --other avx2

Writes reproduce.md and reproduce.png. Each training is kept as a line of reproduce.jsonl as soon as it is
done, so a run that was broken off goes on from there; two at once, one with --only figures and one with
--only ablation, share the file. --other NAME trains the figures once more, with whatever kernels this
process has, into reproduce-NAME.jsonl: where that changes a verdict, the table says so. All of it takes
about an hour of one core; --quick (a few images, two seeds) shows in half a minute that everything runs,
its numbers say nothing. Lesson 19 needs Imagenette-160 for its figures: --imagenette FOLDER (as untar_data
gives it) takes it; else its rows say what digits from mnist_folder give."""
import argparse
import contextlib
import io
import json
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import nn

from minifast import scratch
from minifast.__main__ import PARTS, RECIPES, build
from minifast.core import set_seed
from minifast.cnn import BatchTransformXCallback
from minifast.data import DataBunch, Dataset, get_data, get_dls, mnist_view, normalize_to
from minifast.files import mnist_folder
from minifast.hook_callbacks import ActivationStats
from minifast.hooks import Hooks, children
from minifast.init import init_cnn
from minifast.losses import accuracy
from minifast.lsuv import get_batch
from minifast.norm import BatchNorm
from minifast.norms import InstanceNorm, LayerNorm
from minifast.plot import COLORS, get_grid
from minifast.runner import AvgStatsCallback
from minifast.sched import ParamScheduler, combine_scheds, sched_cos, sched_lin

SMALL, LARGE = (8, 16, 32, 32), (8, 16, 32, 64, 64)   # filters: the nets of lesson 06 and of lesson 07
LOST = .2   # validation accuracy below which a training counts as lost
SCHEDS = {   # phases as shares of the training, and their schedules
    'cos .2 1 .1': ([.5, .5], [sched_cos(.2, 1.), sched_cos(1., .1)]),
    'lin .6 2 .1': ([.3, .7], [sched_lin(.6, 2.), sched_lin(2., .1)]),
    'lin 1 .2': ([1.], [sched_lin(1., .2)])}
NORMS = {'BatchNorm': BatchNorm, 'InstanceNorm': InstanceNorm, 'LayerNorm': lambda nf: LayerNorm()}


@dataclass(frozen=True)
class Training:
    "What defines a training apart from its seed; `parts` are those of `minifast train`"
    parts: str
    lr: float
    epochs: int = 1
    nfs: tuple = LARGE
    bs: int = 512
    sched: str = ''
    norm: str = ''
    init: str = ''   # 'uniform': Kaiming's uniform form

    def key(self, seed, args): return json.dumps([asdict(self), seed, args.n, args.epochs])


@dataclass(frozen=True)
class Figure:
    "A row of the table: what was printed, and the training, or the function of a seed, that gives ours"
    lesson: str
    setup: str
    printed: str
    ours: object = None
    epochs: int = 0      # how many of the training's are shown; 0: all
    shows: Callable = None   # the note of a run -> text; None: losses and accuracies
    why: str = ''

    def short(self): return self.setup if len(self.setup) < 49 else self.setup[:48] + '…'


# --- one run, which gives a note: {'epochs': [[training loss, accuracy, validation loss, accuracy], …], …}

@cache
def load(n, bs):
    x_train, y_train, x_valid, y_valid = get_data()
    x_train, x_valid = normalize_to(x_train, x_valid)
    train, valid = Dataset(x_train[:n], y_train[:n]), Dataset(x_valid[:n], y_valid[:n])
    return DataBunch(*get_dls(train, valid, bs), c=10)


def moments(hook, mod, inp, outp): return outp.mean().item(), outp.std().item()


def look(model, xb):
    "Mean and standard deviation of what each convolution block gives"
    blocks = [m for m in children(model) if list(m.parameters()) and not isinstance(m, nn.Linear)]
    with Hooks(blocks, moments) as hooks, torch.no_grad(): model(xb)
    return [h.stored for h in hooks]


def train(t, seed, args):
    data, cbs = load(args.n, t.bs), [BatchTransformXCallback(mnist_view), AvgStatsCallback(accuracy)]
    if t.sched: cbs.append(ParamScheduler('lr', combine_scheds(*SCHEDS[t.sched])))
    if t.nfs == SMALL: cbs.append(ActivationStats(lambda m: [children(m)[3]], hists=False, near=.5))
    set_seed(seed)
    learn, run = build(t.parts.split(), list(t.nfs), data, t.lr, cbs, NORMS.get(t.norm))
    if t.init: init_cnn(learn.model, uniform=True)
    run.logger = lambda row: None
    xb = get_batch(data.train_dl, run)[0]
    try: note, start = {'before': look(learn.model, xb)}, time.process_time()
    except ValueError as e: return {'refused': str(e)}
    run.fit(min(t.epochs, args.epochs), learn)
    names = [f'{part}_{o}' for part in ('train', 'valid') for o in ('loss', 'accuracy')]
    note.update(epochs=[[row[k] for k in names] for row in run.avg_stats.history],
                seconds=time.process_time() - start)
    if t.nfs == SMALL:
        n = len(data.train_dl)
        note['near'] = run.activation_stats.near_zero[0, n//2:n].mean().item()
    return note


def first_layer(seed, args):
    "The first block's output on a batch, with PyTorch's init and with Kaiming's on the same random numbers"
    found = {}
    for name, parts in (('default', 'sgd'), ('Kaiming', 'sgd kaiming')):
        data = load(args.n, 512)
        set_seed(seed)
        learn, run = build(parts.split(), list(SMALL), data, .4, [BatchTransformXCallback(mnist_view)])
        found[name] = look(learn.model, get_batch(data.train_dl, run)[0])[0]
    return found


def counts(seed, args):
    "Parameters of four layers"
    convs = [nn.Conv2d(ni, 64, ks, bias=False) for ni, ks in ((3, 7), (64, 3))]
    layers = convs[0], nn.BatchNorm2d(64), convs[1], nn.Linear(512, 37)
    return {'counts': [sum(p.numel() for p in m.parameters()) for m in layers]}


# --- lesson 19: the chapter's trainings, on its pictures or on digits

TMP = tempfile.TemporaryDirectory()


@cache
def pictures(imagenette, n):
    "(name, Dataset of training, of validation)"
    parts = ('train', 'val') if imagenette else ('train', 'valid')
    path = Path(imagenette or mnist_folder(Path(TMP.name)/f'digits{n}', n, n//4))
    train = scratch.Dataset(path/parts[0])
    return train, scratch.Dataset(path/parts[1], train.classes)


def chapter(seed, imagenette, n, epochs):
    train, valid = pictures(imagenette, n)
    set_seed(seed)
    dls = scratch.DataLoaders(scratch.DataLoader(train, 128, shuffle=True), scratch.DataLoader(valid, 256))
    xb, _ = next(iter(dls.train))
    stats = xb.mean((0, 1, 2)), xb.std((0, 1, 2))
    note, x, start = {'files': [len(train), len(valid)]}, xb, time.process_time()
    note['stats'] = [o.tolist() for o in stats]
    for k, schedule in (('one', []), ('eight', [scratch.OneCycle(.1)])):
        model, results = scratch.simple_cnn(), scratch.TrackResults()
        x, note['start'] = scratch.Normalize(stats)(xb), []
        for layer in model.layers[:4]:
            x = layer(x)
            note['start'].append([x.mean().item(), x.std().item()])
        cbs = [scratch.SetupLearnerCB(scratch.Normalize(stats), torch.device('cpu')), results, *schedule]
        with contextlib.redirect_stdout(io.StringIO()):
            scratch.Learner(model, dls, scratch.cross_entropy, .1, cbs).fit(epochs if schedule else 1)
        rows = [o[2:] for o in results.history]
        note[k] = [[*a, *b] for a, b in zip(rows[::2], rows[1::2])]
    return {**note, 'took': time.process_time() - start}


def mnist_folder_19(seed, args): return chapter(seed, None, min(2000, args.n), min(8, args.epochs))
def imagenette_19(seed, args): return chapter(seed, args.imagenette, None, min(8, args.epochs))


def shown_chapter(get):
    "A function of notes: what `get` finds in each, and which pictures it comes from"
    def show(notes):
        n, valid = notes[0]['files']
        digits = f"Imagenette-160 isn't here; {n:,} + {valid:,} digits of mnist_folder:<br>"
        data = '' if n == 9469 else digits
        return data + get(notes)
    return show


def shown_rows(k, *at):
    return shown_chapter(lambda notes: '<br>'.join(show_epochs([n[k][i] for n in notes]) for i in at))


def shown_pairs(k):
    "Means, then standard deviations, of each channel or layer"
    def pairs(note): return note[k] if k == 'stats' else list(zip(*note[k]))
    return shown_chapter(lambda notes: '<br>'.join(
        f'{what} ' + ', '.join(pm(o) for o in zip(*(pairs(n)[i] for n in notes)))
        for i, what in enumerate(('means', 'stds'))))


# --- the figures: what was printed in 2019, one run each, and what gives ours

PLAIN, HOOKED = Training('sgd', .4, 3, SMALL), Training('sgd', .5, 1, SMALL)
KAIMING = Training('sgd kaiming', .9, 2, SMALL)
COSINE = Training('sgd kaiming', 1., 8, SMALL, sched='cos .2 1 .1')
HOT, LSUV = Training('sgd kaiming', .6, 2), Training('sgd kaiming lsuv', .6, 2)
BN, RBN = Training('sgd kaiming bn', 1., 3), Training('sgd kaiming rbn', .4, bs=32)


def pm(vals, digits=3):
    "mean ± sd, with no zero before the point; nan and inf are counted, and left out of the rest"
    vals = torch.as_tensor(vals, dtype=torch.float64)
    ok = vals[vals.isfinite()]
    if not len(ok): return 'nan'
    def text(v):
        v = round(v.item(), digits) + 0.   # so that -0.0 is 0
        return f'{v:.1e}' if abs(v) >= 1e5 else re.sub(r'^(-?)0\.', r'\1.', f'{v:.{digits}f}')
    lost = f' (nan in {len(vals) - len(ok)} of {len(vals)})' if len(ok) < len(vals) else ''
    return ' ± '.join(map(text, (ok.mean(), ok.std()))) + lost


def shown_moments(get):
    "A function of notes: mean and standard deviation of the layers that `get` finds in one"
    def shows(notes):
        rows = zip(*[get(o) for o in notes])
        return '<br>'.join(f'{pm([r[0] for r in row])}, {pm([r[1] for r in row])}' for row in rows)
    return shows


def shown_near(notes): return f"{pm([o['near'] for o in notes])} (last block, second half of the epoch)"
def shown_counts(notes): return ' · '.join(f'{n:,}' for n in notes[0]['counts'])


FIGURES = [
    Figure('06', 'CNN 8-16-32-32, SGD lr .4, 1 epoch, CPU', '1.783/.378 → .689/.774; 5.87 s', PLAIN, 1),
    Figure('06', 'the same on a GPU, 3 epochs', '1.803/.368 → .503/.860; .388/.886 → .205/.941; '
           '.176/.948 → .158/.954; 5.41 s', PLAIN),
    Figure('06', 'refactored, lr .4, 3 epochs', '1.906/.340 → .743/.748; .444/.859 → .203/.941; '
           '.198/.940 → .139/.961', PLAIN,
           why='The same training as in the row above (.954): our mean lies between the two.'),
    Figure('06', 'SequentialModel, lr .9, 2 epochs', '2.111/.243 → 1.292/.501; .648/.793 → .184/.944',
           Training('sgd', .9, 2, SMALL),
           why='Each run leaves the plateau at its own time, or not at all.'),
    Figure('06', 'global-list hooks, lr .5, 1 epoch', '2.256/.184 → 2.001/.319', HOOKED),
    Figure('06', 'Hook class, lr .5, 1 epoch', '1.624/.440 → .898/.735', HOOKED),
    Figure('06', "first layer's output on one batch, default init: mean, std", '.192, .383', first_layer,
           shows=shown_moments(lambda o: [o['default']])),
    Figure('06', 'the same with Kaiming init', '.470, .926', first_layer,
           shows=shown_moments(lambda o: [o['Kaiming']])),
    Figure('06', 'Kaiming normal, lr .9, 2 epochs', '1.312/.553 → .217/.936; .192/.940 → .146/.957', KAIMING),
    Figure('06', 'Kaiming, histograms, lr .9, 1 epoch', '1.273/.578 → .311/.904', KAIMING, 1,
           why='After one epoch at this rate a run has left the plateau or not: .185 to .948.'),
    Figure('06', 'share near zero in late layers there, by the two lowest bars of 40', 'over .90', KAIMING,
           shows=shown_near),
    Figure('06', 'GeneralRelu(leak .1, sub .4, maxv 6), Kaiming, lr .9, 1 epoch', '.547/.828 → .151/.957',
           Training('sgd kaiming relu', .9, 1, SMALL)),
    Figure('06', 'plain ReLU, 8 epochs, cosine .2→1→.1, Kaiming normal', 'last epoch .034/.990 → .060/.983',
           COSINE, -1, why='The rate of 1 in the middle loses one run.'),
    Figure('06', 'the same, Kaiming uniform', 'last epoch .034/.990 → .063/.982',
           replace(COSINE, init='uniform'), -1, why='By .002: one seed of the five gets there.'),
    Figure('07', '8-16-32-64-64 without norm, lr .4, 2 epochs',
           '1.024/.673 → .244/.926; .163/.950 → .101/.970', Training('sgd kaiming', .4, 2)),
    Figure('07', 'own BatchNorm, lr .9, 1 epoch', '.265/.919 → .164/.952',
           Training('sgd kaiming', .9, norm='BatchNorm')),
    Figure('07', 'own BatchNorm, lr 1, 3 epochs', '.278/.911 → .191/.939; .090/.971 → .092/.972; '
           '.061/.981 → .100/.971', Training('sgd kaiming', 1., 3, norm='BatchNorm')),
    Figure('07', 'nn.BatchNorm2d, lr 1, 3 epochs', '.271/.921 → .155/.950; .079/.976 → .075/.978; '
           '.057/.982 → .067/.981', BN),
    Figure('07', 'the same, 8 epochs, linear .6→2→.1 (30/70)', 'last epoch .019/.995 → .044/.988',
           replace(BN, epochs=8, sched='lin .6 2 .1'), -1),
    Figure('07', 'LayerNorm, lr .8, 3 epochs', 'nan from the first epoch on (validation .099)',
           Training('sgd kaiming', .8, 3, norm='LayerNorm'), why='The rate: at half of it it trains (07b).'),
    Figure('07', 'InstanceNorm, lr .1, 3 epochs', 'nan from the first epoch on (validation .099)',
           Training('sgd kaiming', .1, 3, norm='InstanceNorm'), why='07b shows why.'),
    Figure('07', 'nn.BatchNorm2d at bs 2, lr .4, 1 epoch', '2.356/.165 → 2867.7/.260; 93 s',
           replace(RBN, parts='sgd kaiming bn', bs=2), why='Statistics of two images: 07.'),
    Figure('07', 'RunningBatchNorm, bs 2, lr .4, 1 epoch', '.158/.951 → .099/.973', replace(RBN, bs=2),
           why='What was printed fits bs 32, which is the next row.'),
    Figure('07', 'the same at bs 32, which is what the printed 18 s suggest', '.158/.951 → .099/.973', RBN),
    Figure('07', 'RunningBatchNorm, bs 32, lr linear 1→.2, 1 epoch', '.157/.952 → .092/.982; 18.2 s',
           replace(RBN, sched='lin 1 .2'), why='By .003: one seed of the five gets there.'),
    Figure('07a', '8-16-32-64-64, lr .6, 2 epochs, before LSUV',
           '1.736/.398 → 1.687/.565; .357/.888 → .132/.959', HOT),
    Figure('07a', "the five layers' mean, std before LSUV",
           '.381, .691; .357, .651; .283, .536; .249, .426; .160, .247', HOT,
           shows=shown_moments(lambda o: o['before'])),
    Figure('07a', 'after LSUV (2019: mean first, then std)',
           '.171, 1.0; .089, 1.0; .150, 1.0; .158, 1.0; .311, 1.0', LSUV,
           shows=shown_moments(lambda o: o['before'])),
    Figure('07a', 'training after LSUV, lr .6, 2 epochs',
           '.424/.863 → .146/.955; .129/.961 → .092/.973; 4.61 s', LSUV,
           why='Too hot a rate for a net of unit variance: 07a.'),
    Figure('19', 'Imagenette-160: 13,394 files, 9,469 + 3,925; 74 training batches of 128 at 64×64; '
           'channel means and stds of one batch', 'means .470 .465 .438; stds .276 .275 .296',
           mnist_folder_19, shows=shown_pairs('stats')),
    Figure('19', "simple_cnn's four conv outputs at the start: mean, std",
           '.531, .911; .480, .873; .415, .750; .441, .726', mnist_folder_19, shows=shown_pairs('start')),
    Figure('19', 'Learner.fit(1), lr .1', '2.124/.236 → 2.206/.214', mnist_folder_19,
           shows=shown_rows('one', 0)),
    Figure('19', 'OneCycle(.1), 8 epochs: first, last', '2.260/.161 → 2.205/.220; 1.536/.477 → 1.580/.468',
           mnist_folder_19, shows=shown_rows('eight', 0, -1)),
    Figure('hooks', "model_summary's parameter counts", '9,408 · 128 · 36,864 · 18,981', counts,
           shows=shown_counts),
]


# --- the ablation: each recipe of `minifast train` on lesson 07's net, at the rate that is best for it

RATES, TUNING = (.05, .1, .2, .4, .8, 1.6, 3.2), (100, 101)
ABLATION = {k: v[0] for k, v in RECIPES.items() if k != 'best'} | {'bn, one-cycle': 'sgd kaiming bn onecycle'}


def best_rate(parts, store, args):
    "The rate whose mean validation accuracy after one epoch is highest, by seeds that are not used again"
    def mean(lr): return statistics.fmean(final(o) for o in store.notes(Training(parts, lr), TUNING, args))
    return max(RATES[-3:] if args.quick else RATES, key=mean)


# --- the store

def final(note): return note['epochs'][-1][3]


class Store:
    "Notes by training and seed, a line of JSON each; what another process adds meanwhile is seen"
    def __init__(self, path): self.path = path
    def read(self):
        lines = self.path.read_text(encoding='utf-8').splitlines() if self.path.exists() else []
        found = {}
        for o in lines:
            try: found.update([json.loads(o)])
            except (ValueError, TypeError): pass   # a line that was broken off
        return found
    def write(self, key, note):
        with self.path.open('a+', encoding='utf-8') as f:
            if f.tell() and not self.path.read_text(encoding='utf-8').endswith('\n'): f.write('\n')
            f.write(json.dumps([key, note]) + '\n')
    def note(self, what, seed, args):
        "The note of a training, or of a function of the seed; it is made if there is none"
        key = what.key(seed, args) if isinstance(what, Training) else f'{what.__name__} {seed} {args.n}'
        found = self.read()
        if key in found: return found[key]
        note = train(what, seed, args) if isinstance(what, Training) else what(seed, args)
        note.update(torch=torch.__version__, python=platform.python_version(), machine=processor())
        self.write(key, note)
        last = f" {final(note):.4f} after {note['seconds']:.1f} s" if 'epochs' in note else ''
        print(f'{what}, seed {seed}{last}' if last else key, flush=True)
        return note
    def notes(self, what, seeds, args): return [self.note(what, s, args) for s in seeds]


# --- table and picture

def show_epochs(rows):
    "`rows`: a list over seeds of [training loss, accuracy, validation loss, accuracy]"
    tl, ta, vl, va = zip(*rows)
    return f'{pm(tl)} / {pm(ta)} → {pm(vl)} / {pm(va)}'


def ours(fig, notes):
    "Text for the table, and the validation accuracies at the end where there are some"
    if fig.shows: return fig.shows(notes), None
    if 'refused' in notes[0]: return f"refused: {notes[0]['refused']}", None
    runs = [n['epochs'][-1:] if fig.epochs < 0 else n['epochs'][:fig.epochs or None] for n in notes]
    accs = torch.tensor([r[-1][3] for r in runs], dtype=torch.float64)
    text = '<br>'.join(show_epochs(rows) for rows in zip(*runs))
    lost = int((accs < LOST).sum())
    seconds = statistics.median(n['seconds']/len(n['epochs'])*len(r) for n, r in zip(notes, runs))
    return f'{text}<br>{seconds:.1f} s' + (f'; {lost} of {len(accs)} lost' if lost else ''), accs


def printed_accuracy(fig): return float(re.findall(r'/(\.\d+)', fig.printed)[-1])


def is_lower(fig, accs): return accs is not None and '/' in fig.printed and (
    accs.mean() + accs.std() < printed_accuracy(fig))


HEAD = """# What the course of 2019 printed, and ours

Made by `python bench/reproduce.py`; every single run is in [reproduce.jsonl](reproduce.jsonl). {what}
Losses and accuracies: training loss / accuracy → validation loss / accuracy, mean ± standard deviation over
the seeds, a line for each epoch. What was printed is one run each, unseeded, on a GPU of 2019. A training is
counted as lost if its validation accuracy is below .2. Seconds: what was printed is wall time; ours is
processor time of one core, the median, for the epochs that are shown. *Lower* marks rows where the printed
accuracy is more than a standard deviation above our mean.

![Ours and theirs; the recipes](reproduce.png)

## Figures

| lesson | set-up | printed in 2019 | ours | |
|---|---|---|---|---|
"""
ABLATION_HEAD = """
## The recipes against each other

The net of lesson 07 (8-16-32-64-64 filters), batch size 512, all training images. Each recipe at the rate of
{rates} that is best for it after one epoch, by the seeds {tuning}, and the same rate for eight epochs; the
table's seeds are others. Validation accuracy, mean ± standard deviation (trainings lost).

| recipe | parts | rate | one epoch | eight epochs | CPU seconds an epoch |
|---|---|---|---|---|---|
"""

WORDS = """
After one epoch it is the start that decides: PyTorch's own init has hardly left the plateau, Kaiming's
has, and with GeneralRelu the seeds agree. LSUV on top of both changes nothing that can be seen here: at
five layers there is little left to mend. After eight epochs the plain net has nearly caught up. Batch
norm at a constant rate and one-cycle without a norm end level, both above every constant rate without a
norm; together they are the best of all, after one epoch too. The first epoch alone doesn't suit one-cycle
without a norm: much of it is spent at rates that this net doesn't always survive.
"""


def others(args):
    "The stores of --other, by name"
    return {p.stem.split('-', 1)[1]: Store(p) for p in sorted(args.out.glob('reproduce-*.jsonl'))}


def depends(fig, lower, args):
    "In words: on which other kernels the verdict `lower` would be another"
    for name, store in others(args).items():
        notes = [store.read().get(fig.ours.key(s, args)) for s in args.seeds]
        if None in notes: continue
        accs = ours(fig, notes)[1]
        if is_lower(fig, accs) != lower:
            yield f"With {name.upper()} kernels {pm(accs)}, which {'is not' if lower else 'is'} lower."


def figures(store, args):
    "Rows of the table, and (figure, accuracies) for the picture"
    rows, points = [], []
    for fig in FIGURES:
        what = imagenette_19 if args.imagenette and fig.ours is mnist_folder_19 else fig.ours
        notes = store.notes(what, args.seeds, args)
        text, accs = ours(fig, notes)
        lower = is_lower(fig, accs)
        if lower and not fig.why and not args.quick: print(f'lower, and not explained: {fig.setup}: {text}')
        why = [f'*Lower.* {fig.why}' if lower else fig.why]
        if accs is not None: why += depends(fig, lower, args)
        why = ' '.join(filter(None, why))
        rows.append(f'| {fig.lesson} | {fig.setup} | {fig.printed.replace("; ", "<br>")} | {text} | {why} |')
        if accs is not None: points.append((fig, accs))
    return '\n'.join(rows), points


def train_others(args):
    "The figures that show accuracies, once more; not at batches of two, which take an hour"
    store = Store(args.out/f'reproduce-{args.other}.jsonl')
    for fig in FIGURES:
        if isinstance(fig.ours, Training) and not fig.shows and fig.ours.bs > 2:
            store.notes(fig.ours, args.seeds, args)


def show_accs(accs):
    lost = int((accs < LOST).sum())
    return pm(accs, 4) + (f' ({lost} of {len(accs)})' if lost else '')


def ablation(store, args):
    "Rows of the second table, and (recipe, accuracies after one epoch, after eight) for the picture"
    rows, points = [], []
    for name, parts in ABLATION.items():
        lr = best_rate(parts, store, args)
        runs = [store.notes(Training(parts, lr, n), args.seeds, args) for n in (1, 8)]
        one, eight = (torch.tensor([final(o) for o in r], dtype=torch.float64) for r in runs)
        seconds = statistics.median(o['seconds']/len(o['epochs']) for o in runs[1])
        words = ', '.join(PARTS[k][0] for k in parts.split())
        rows.append(f'| {name} | {words} | {lr:g} | {show_accs(one)} | {show_accs(eight)} | {seconds:.1f} |')
        points.append((name, one, eight))
    return '\n'.join(rows), points


def dots(ax, y, accs, color, label):
    ax.plot(1 - accs, [y]*len(accs), '.', color=color, alpha=.5, label=label)
    ax.plot(1 - accs.mean(), y, '|', color=color, ms=14)


def finish(ax, names, legend, **kw):
    "Rows named, accuracy on an axis that is logarithmic in the share of errors"
    errors = [.9, .5, .2, .1, .05, .02, .01]
    ax.set(xscale='log', yticks=[-i for i in range(len(names))], yticklabels=names, **kw)
    ax.set_xticks(errors, [f'{1-e:g}' for e in errors])
    ax.set_xticks([], minor=True)
    ax.set_xlim(.95, .008)
    ax.tick_params(labelsize='small')
    ax.grid(axis='x', alpha=.3)
    ax.legend(loc=legend, fontsize='small')


def draw(figs, recipes, path):
    "Validation accuracies: printed and ours on the left, the recipes on the right"
    fig, (left, right) = get_grid(2, ncols=2, figsize=(13, 7))
    for i, (o, accs) in enumerate(figs):
        dots(left, -i, accs, COLORS['train'], None if i else 'ours, each seed; bar: mean')
        if '/' in o.printed: left.plot(1 - printed_accuracy(o), -i, 'x', color=COLORS['valid'],
                                       label=None if i else 'printed in 2019, one run')
    for i, (name, one, eight) in enumerate(recipes):
        dots(right, -i - .15, one, COLORS['baseline'], None if i else 'one epoch')
        dots(right, -i + .15, eight, COLORS['train'], None if i else 'eight epochs')
    x = 'validation accuracy at the end'
    finish(left, [f'{o.lesson} {o.short()}' for o, _ in figs], 'upper right', xlabel=x, ylabel='set-up',
           title='What was printed, and what more seeds give')
    finish(right, [n for n, *_ in recipes], 'lower left', xlabel=x, ylabel='recipe',
           title='The recipes, each at the rate that is best for it')
    fig.savefig(path, dpi=90)


def processor():
    "The processor's name and the kernels that PyTorch uses on it"
    info = Path('/proc/cpuinfo')
    name = re.search(r'^model name\s*: (.*)', info.read_text(), re.M) if info.exists() else None
    kernels = torch.backends.cpu.get_cpu_capability()
    return f"{name[1] if name else platform.machine()} with {kernels} kernels"


def where(store, args):
    "In words: what the notes were measured with"
    def all_of(k, store): return ', '.join(sorted({o[k] for o in store.read().values()}))
    again = [all_of('machine', o) for o in others(args).values()]
    on = f" *Lower* was looked at once more, but for batches of two, on {', '.join(again)}."
    return (f"{all_of('machine', store)}, one thread, PyTorch {all_of('torch', store)}, "
            f"Python {all_of('python', store)}.{on if again else ''}")


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', choices=['figures', 'ablation'], help='train for one part, and write nothing')
    p.add_argument('--other', metavar='NAME', help='the figures once more, into reproduce-NAME.jsonl')
    p.add_argument('--seeds', type=int, default=5, help='how many, from 1 on (default 5)')
    p.add_argument('--out', type=Path, default=Path(__file__).parent, help='folder of the three files')
    p.add_argument('--imagenette', metavar='FOLDER', help='Imagenette-160, for lesson 19')
    p.add_argument('--quick', action='store_true', help='600 images, an epoch, 2 seeds; needs another --out')
    args = p.parse_args()
    if args.quick and args.out.resolve() == Path(__file__).resolve().parent:
        p.error('--quick would overwrite the real table: give a folder, --out FOLDER')
    if args.seeds < 2: p.error(f'--seeds {args.seeds}: a standard deviation needs two or more')
    args.n, args.epochs, args.seeds = (600, 1, 2) if args.quick else (50_000, 8, args.seeds)
    args.seeds = range(1, args.seeds + 1)
    return args


def main():
    args = options()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.other: return train_others(args)
    store = Store(args.out/'reproduce.jsonl')
    first, figs = figures(store, args) if args.only != 'ablation' else ('', [])
    second, recipes = ablation(store, args) if args.only != 'figures' else ('', [])
    if args.only: return
    what = f'n = {len(args.seeds)} seeds, {min(args.n, 50_000):,} training images, ' + where(store, args)
    rates, tuning = ', '.join(f'{r:g}' for r in RATES), ' and '.join(map(str, TUNING))
    head, recipes_head = HEAD.format(what=what), ABLATION_HEAD.format(rates=rates, tuning=tuning)
    text = f'{head}{first}\n{recipes_head}{second}\n{WORDS}'
    (args.out/'reproduce.md').write_text(text, encoding='utf-8')
    draw(figs, recipes, args.out/'reproduce.png')
    print(f'written: {args.out/"reproduce.md"} and {args.out/"reproduce.png"}')


if __name__ == '__main__': main()
