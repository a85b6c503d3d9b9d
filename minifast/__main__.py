"""`minifast train` trains on the packaged digits, `minifast lessons DEST` copies lessons,
`minifast exercises` lists what is done

Exit status: 0 done; 2 something that the user can mend, said in one line on stderr; 130 interrupted
(Ctrl-C); 141 nobody reads the output any more. Any other error keeps its traceback."""
import argparse
import contextlib
import errno
import io
import os
import sys
import tempfile
import textwrap
import time
import warnings
from functools import partial
from pathlib import Path

from minifast import __version__


FILTERS, EVERY = [8, 16, 48, 64], 12   # telemetry looks at every 12th batch
PARTS = {   # what a recipe is made of: name, what it is for, where it is taught
    'sgd': ('SGD', 'a step against the gradient of each batch', '04a_learner'),
    'adamw': ('AdamW', 'steps of its own for each weight, by how large its gradients have been',
              "PyTorch's; 05ba_lr_sweep looks at Adam"),
    'kaiming': ('Kaiming init', 'outputs of about the same size in every layer at the start',
                '06c_init'),
    'relu': ('GeneralRelu', 'a slope below 0, so no unit dies; lowered, so the mean is near 0',
             '06c_init'),
    'lsuv': ('LSUV', 'mean 0 and variance 1 in every layer, measured on one batch at first',
             '07a_lsuv'),
    'bn': ('batch norm', 'mean and variance of each channel are held, for higher rates',
           '07_batchnorm'),
    'rbn': ('running batch norm', 'the same with running averages, for small batches',
            '07_batchnorm'),
    'pool': ('max pooling', 'the largest of four outputs goes on, instead of each second one',
             "PyTorch's; 06ac_model_summary counts one"),
    'onecycle': ('one-cycle', 'the rate warms up, is high for long, and settles at the end',
                 '05c_anneal')}
# Parts and learning rate. `best` was chosen by the validation images, in 12 s of a core:
# .9910 ± .0010; and .9915 ± .0008 of the test images, at which three candidates were looked at
# (n = 5, seeds 1 to 5, an AMD EPYC)
RECIPES = {
    'best': ('adamw kaiming bn pool onecycle', .03),
    'plain': ('sgd', .4),
    'kaiming': ('sgd kaiming', .4),
    'relu': ('sgd kaiming relu', .4),
    'lsuv': ('sgd kaiming relu lsuv', .4),
    'onecycle': ('sgd kaiming onecycle', .8),
    'bn': ('sgd kaiming bn', .8),
    'rbn': ('sgd kaiming rbn', .4)}


class UserError(Exception): "What the user can mend, in one line"


def pooled(ni, nf, ks, **kw):
    "`conv_layer`, but after the first one max pooling halves height and width"
    from torch import nn
    from minifast.init import GeneralRelu, conv_layer
    if ni < 8: return conv_layer(ni, nf, ks, **kw)
    def act(): return nn.Sequential(nn.MaxPool2d(2), GeneralRelu())   # less to rectify
    return conv_layer(ni, nf, ks, stride=1, act=act, **kw)


def build(parts, nfs, data, lr, cbs, norm=None):
    "Learner and Runner for a CNN with `nfs` filters, made as the names in `parts` say"
    import torch
    from minifast.cnn import get_cnn_model, get_runner
    from minifast.init import conv_layer, init_cnn
    from minifast.lsuv import ConvLayer, get_batch, lsuv_init
    from minifast.norm import RunningBatchNorm
    from minifast.sched import ParamScheduler, combine_scheds, cos_1cycle_anneal
    kw = dict(leak=.1, sub=.4, maxv=6.) if 'relu' in parts else {}
    # PyTorch's batch norm does what lesson 07's does, but faster
    norms = {'bn': torch.nn.BatchNorm2d, 'rbn': RunningBatchNorm}
    norm = next((norms[k] for k in norms if k in parts), norm)
    if norm: kw['norm'] = norm
    layer = ConvLayer if 'lsuv' in parts else pooled if 'pool' in parts else conv_layer
    model = get_cnn_model(data, nfs, layer, **kw)
    if 'kaiming' in parts: init_cnn(model)
    if 'onecycle' in parts:
        sched = combine_scheds([.3, .7], cos_1cycle_anneal(lr/10, lr, lr/100))
        cbs = [*cbs, ParamScheduler('lr', sched)]
    # a pixel's channels side by side: the same sums, faster for convolutions of this size
    model.to(data.train_ds.x.device, memory_format=torch.channels_last)
    opt_func = partial(torch.optim.AdamW, foreach=True) if 'adamw' in parts else None
    learn, run = get_runner(model, data, lr, cbs, opt_func)
    if 'lsuv' in parts: lsuv_init(learn, get_batch(data.train_dl, run)[0])
    return learn, run


def read(part):
    "What `get_data` gives; an error about its files is the user's to mend"
    from minifast.data import get_data
    try: return get_data(part)
    except (OSError, ValueError) as e: raise UserError(e) from e


def make_run(args):
    "Learner and Runner for `minifast train`: a CNN by a recipe, watched by telemetry"
    from minifast.cnn import BatchTransformXCallback, CudaCallback
    from minifast.core import default_device, set_seed
    from minifast.data import DataBunch, Dataset, get_dls, mnist_view, normalize_to
    from minifast.hook_callbacks import ActivationStats
    from minifast.losses import accuracy
    from minifast.runner import AvgStatsCallback, ProgressCallback
    from minifast.sched import Recorder
    set_seed(args.seed)
    device = getattr(args, 'device', None) or default_device()
    x_train, y_train, x_valid, y_valid = read('train')
    read('test')   # needed at the end, and wrong files should show before the training
    x_train, x_valid = normalize_to(x_train, x_valid)
    dls = get_dls(Dataset(x_train, y_train), Dataset(x_valid, y_valid), args.bs)
    data = DataBunch(*dls, c=10).to(device)
    cbs = [CudaCallback(device), BatchTransformXCallback(mnist_view), AvgStatsCallback(accuracy),
           Recorder(), ProgressCallback(), ActivationStats(every=EVERY)]
    return build(RECIPES[args.recipe][0].split(), FILTERS, data, args.lr, cbs)


def describe(recipe, lr):
    "The parts of a recipe, a line each: what it is for, and where it is taught"
    nfs = '-'.join(map(str, FILTERS))
    rows = [('convolutions', f'look at neighbouring pixels; {nfs} filters', '06_cuda_cnn'),
            *(PARTS[k] for k in RECIPES[recipe][0].split())]
    lines = [f'  {name:<18}  {what_for}: {where}' for name, what_for, where in rows]
    return '\n'.join([f'recipe {recipe!r}, learning rate {lr:g}:', *lines])


def test_accuracy(learn, device):
    "Share of the 10,000 test images that the model of `learn` names rightly"
    import torch

    from minifast.data import mnist_view, normalize
    from minifast.losses import accuracy
    x_train = read('train')[0]
    x, y = read('test')
    x = mnist_view(normalize(x, x_train.mean(), x_train.std()))
    learn.model.eval()
    with torch.no_grad():
        pred = torch.cat([learn.model(xb.to(device)).cpu() for xb in x.split(1000)])
    return accuracy(pred, y).item()


def out_files(out):
    "The files that a training writes: losses and rates, the layers, the diagnosis in words"
    return (out, out.with_name(f'{out.stem}-layers{out.suffix}'),
            out.with_name(f'{out.stem}-diagnosis.txt'))


def write(path, data):
    "Write the bytes `data` to the file `path`; where that fails, `path` is as it was before"
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as e: raise UserError(
        f'could not write {path} ({e.strerror or e}): make room, or name another place') from e
    finally:
        with contextlib.suppress(OSError): part.unlink()


def draw(run, out, title, found):
    "(file, bytes) of a picture of losses and rates, of one of the layers, and of the diagnosis"
    import matplotlib
    matplotlib.use('agg')
    from minifast.plot import get_grid
    losses, layers, words = out_files(out)
    fig, axs = get_grid(2, ncols=2, title=title)
    run.recorder.plot_loss(ax=axs[0])
    run.recorder.plot_lr(ax=axs[1])
    what = ', '.join(o.kind for o in found) or 'no layer looks ill'
    for path, fig in ((losses, fig), (layers, run.activation_stats.plot(what)[0].figure)):
        picture = io.BytesIO()
        fig.savefig(picture, dpi=120, format=path.suffix[1:].lower())
        yield path, picture.getvalue()
    yield words, f'{found}\n'.encode()


def report(args, learn, run, seconds):
    "Print and draw the test accuracy and how the layers are"
    acc = test_accuracy(learn, next(learn.model.parameters()).device)
    found = run.activation_stats.diagnose()
    print(f'test accuracy {acc:.4f} on 10,000 images '
          f'after {seconds:.1f} s of training, telemetry included', flush=True)
    title, kept = f'{acc:.2%} of the 10,000 test images right after {seconds:.1f} s', []
    try:
        for path, data in draw(run, args.out, title, found):
            write(path, data)
            kept.append(str(path))
    except UserError:
        print(f'\n{found}')   # else it would be lost
        raise
    except KeyboardInterrupt: raise KeyboardInterrupt(', '.join(kept)) from None
    losses, layers, words = out_files(args.out)
    print(f'losses and learning rates: {losses}\nwhat happened in every layer: {layers}')
    print(f'diagnosis, also in {words}:\n\n{found}')


def fit(args, learn, run):
    "Train; False if Ctrl-C has ended it"
    import torch
    lacks_room = getattr(torch, 'OutOfMemoryError', torch.cuda.OutOfMemoryError)
    try: run.fit(args.epochs, learn)
    except KeyboardInterrupt: return False
    except (lacks_room, MemoryError) as e: raise UserError(
        f'not enough memory for batches of {args.bs} images: try a smaller --bs') from e
    return True


def train(args):
    "Train by a recipe, and report"
    import torch
    torch.set_num_threads(args.threads)
    args.lr = getattr(args, 'lr', RECIPES[args.recipe][1])
    learn, run = make_run(args)
    n = sum(p.numel() for p in learn.model.parameters())
    x = learn.data.train_ds.x
    print(f'minifast {__version__}: a CNN with {n:,} parameters on {x.device}, '
          f'{len(x):,} images, {args.epochs} epochs, batch size {args.bs}, seed {args.seed}')
    print(describe(args.recipe, args.lr), flush=True)
    start = time.perf_counter()
    complete = fit(args, learn, run)
    seconds = time.perf_counter()-start
    if not run.n_iter: raise KeyboardInterrupt
    if not complete: print(
        f'\ninterrupted in epoch {run.epoch} after {run.n_iter} batches in all: what has been '
        'trained is tested and drawn (Ctrl-C once more ends that too)', flush=True)
    report(args, learn, run, seconds)
    return 0 if complete else 130


def lesson_files():
    "Folder and notebooks of the lessons and exercises: in the installed package, or beside it"
    here = Path(__file__).resolve().parent
    for folder in (here/'lessons', here.parent/'nbs'):
        found = [p for part in ('*.ipynb', 'exercises/*.ipynb') for p in sorted(folder.glob(part))]
        if found: return folder, found
    raise UserError('this installation holds no lessons: install minifast again')


def copy_lesson(nb, to):
    "Copy `nb` to `to`; False if another file is there already"
    try:
        to.parent.mkdir(exist_ok=True)
        if not to.exists(): write(to, nb.read_bytes())
        return to.is_file() and to.read_bytes() == nb.read_bytes()
    except OSError as e: raise UserError(
        f'could not read {to} ({e.strerror or e}): name another folder') from e


def lessons(args):
    "Copy the lessons to a folder; a file that is there already and differs is kept"
    dest, (folder, found) = args.dest, lesson_files()
    try: dest.mkdir(parents=True, exist_ok=True)
    except OSError as e: raise UserError(
        f'{dest} is no folder and could not be made one ({e.strerror or e}): name a folder, new '
        'or old, for the lessons') from e
    there, kept = [], []
    try:
        for nb in found:
            name = nb.relative_to(folder).as_posix()
            (there if copy_lesson(nb, dest/name) else kept).append(name)
    except KeyboardInterrupt: raise KeyboardInterrupt(f'{len(there)} lessons in {dest}') from None
    n = sum('/' in name for name in there)
    print(f'{len(there)-n} lesson notebooks of minifast {__version__} are in {dest}, '
          f'and {n} with exercises in {dest/"exercises"}')
    if kept:
        print(f"kept, since they differ: {', '.join(kept)}: "
              'name another folder for fresh ones')
    print(f'start with: jupyter lab {dest/"index.ipynb"}')
    return 0


def list_exercises(args):
    "Print the exercises, of one lesson or of all, and which are done"
    from minifast.check import exercises, progress
    known = {ex.lesson.split('_')[0]: ex.lesson for ex in exercises()}
    if args.lesson not in ('', *known, *known.values()): raise UserError(
        f"no lesson {args.lesson!r} has exercises: choose from {', '.join(known)}")
    progress(args.lesson)
    return 0


def overview(args):
    "What can be done. That was the question, so nothing is wrong, and the exit status is 0"
    print(f"""minifast {__version__}, deep learning from the foundations
  minifast train           train a network on the packaged digits, in about 12 s of a core
  minifast train --help    its recipes and options
  minifast lessons DEST    copy the lessons to the folder DEST, to read and run them in Jupyter
  minifast exercises       list the exercises, and which of them you have done
  minifast --help          all this in more words""")
    return 0


def whole(lowest, highest):
    "A converter to whole numbers from `lowest` to `highest`"
    def convert(s):
        try: n = int(s)
        except ValueError: n = lowest-1
        if lowest <= n <= highest: return n
        raise argparse.ArgumentTypeError(
            f'{s!r} is not a whole number from {lowest} to {highest:,}')
    return convert


def rate(s):
    "A number above 0"
    try: x = float(s)
    except ValueError: x = 0.
    if not 0 < x < float('inf'):
        raise argparse.ArgumentTypeError(f'{s!r} is not a number above 0')
    return x


def device_name(s):
    "A device on which PyTorch can compute"
    import torch
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            x = torch.ones(1, device=torch.device(s)) + 1
        if x.item() == 2: return x.device   # one on `meta` has no value
    except (RuntimeError, AssertionError, AttributeError, ImportError) as e:
        why = textwrap.shorten(str(e) or type(e).__name__, 100, placeholder='…')
    raise argparse.ArgumentTypeError(f'{s!r} is no device of this machine ({why}): try cpu')


def out_file(s):
    "A picture's file name in a folder that can be written to"
    p = Path(s)
    if not p.parent.is_dir():
        raise argparse.ArgumentTypeError(f'the folder of {s!r} does not exist')
    if p.is_dir():
        raise argparse.ArgumentTypeError(f'{s!r} is a folder: name a file in it')
    if p.suffix.lower() not in ('.png', '.pdf', '.svg'):
        raise argparse.ArgumentTypeError(f'{s!r} should end in .png, .pdf or .svg')
    for o in out_files(p):
        if o.is_dir(): raise argparse.ArgumentTypeError(
            f'{str(o)!r}, which would be written too, is a folder: name another file')
    try:
        with tempfile.TemporaryFile(dir=p.parent): return p
    except OSError as e: raise argparse.ArgumentTypeError(
        f'nothing can be written beside {s!r} ({e.strerror or e}): name another folder') from None


def add_train(sub):
    "`train` and its options"
    def names(recipe): return ', '.join(PARTS[o][0] for o in RECIPES[recipe][0].split())
    made_of = '; '.join(f'{k}: {names(k)}' for k in RECIPES)
    t = sub.add_parser('train', help='train a network on the packaged MNIST', description=(
        'Train a CNN on the packaged MNIST: a table of losses and accuracies while it runs, then '
        'the accuracy on the 10,000 test images, a picture of losses and learning rates (--out), '
        'one of what happened in every layer (…-layers), and what looks ill in words '
        '(…-diagnosis.txt).'), formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    t.set_defaults(func=train)
    add = t.add_argument
    add('--recipe', choices=RECIPES, default='best',
        help=f'what the training is made of; {made_of}')
    count = whole(1, 10**9)
    add('--epochs', type=count, default=2,
        help='passes over the 50,000 training images')
    add('--bs', type=count, default=256, help='images in a batch')
    add('--lr', type=rate, default=argparse.SUPPRESS,
        help="highest learning rate; else the recipe's")
    add('--seed', type=whole(0, 2**32-1), default=42, help='the same seed gives the same numbers')
    add('--device', type=device_name, default=argparse.SUPPRESS,
        help='cpu, cuda …; else the best there is')
    add('--threads', type=whole(1, 1024), default=1,
        help='CPU threads; one is enough, and keeps the numbers the same')
    add('--out', type=out_file, default='minifast-train.png',
        help='file for the first picture, .png, .pdf or .svg; the others are put beside it')


def say(line):
    "Write `line` to stderr, if there is one"
    if sys.stderr is not None: print(line, file=sys.stderr)


class Parser(argparse.ArgumentParser):
    "Says what is wrong in one line"
    def error(self, message):
        say(f'{self.prog}: {message}; {self.prog} --help says what can be given')
        sys.exit(2)


def parser():
    "The commands and their options"
    p = Parser('minifast', description='Deep learning from the foundations.')
    p.add_argument('--version', action='version', version=f'minifast {__version__}')
    p.set_defaults(func=overview)
    sub = p.add_subparsers(title='commands', metavar='COMMAND')
    add_train(sub)
    what = 'copy the lessons of this version to a folder'
    le = sub.add_parser('lessons', help=what, description=(
        'Copy the lesson notebooks that fit the installed version to a folder. '
        'A file that is there already is never overwritten.'))
    le.add_argument('dest', type=Path, metavar='DEST', help='the folder; made if it does not exist')
    le.set_defaults(func=lessons)
    what = 'list the exercises and which of them you have done'
    ex = sub.add_parser('exercises', help=what, description=(
        'List the exercises of all lessons or of one: id, difficulty, minutes, state, title. '
        'They are done in the notebooks of the folder exercises, by `check`.'))
    ex.add_argument('lesson', nargs='?', default='', metavar='LESSON', help='its number, as 05b')
    ex.set_defaults(func=list_exercises)
    return p


def run_command(argv):
    "Do what `argv` says; what was printed has arrived when this ends, or is an error"
    try:
        args = parser().parse_args(argv)
        return args.func(args)
    finally:
        if sys.stdout is not None: sys.stdout.flush()


def fail(message, status):
    "Say what went wrong; returns `status`"
    say(f'minifast: {message}')
    return status


def main(argv=None):
    "Run the command line `argv`; returns the exit status"
    for o in (sys.stdout, sys.stderr):   # a `?` where the encoding has no `…`, rather than no text
        if hasattr(o, 'reconfigure'): o.reconfigure(errors='replace')
    try: return run_command(argv)
    except UserError as e: return fail(e, 2)
    except KeyboardInterrupt as e: return fail(f'interrupted, and kept: {str(e) or "nothing"}', 130)
    except BrokenPipeError: status = 141   # as after SIGPIPE: `minifast train | head -1`
    except OSError as e:
        if e.filename is not None or e.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT): raise
        status = fail(f'what was printed could not be written ({e.strerror})', 2)
    # what is still in the buffer has nowhere to go, and would be an error at the exit
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


if __name__ == '__main__': sys.exit(main())
