"`minifast train` trains on the packaged digits, `minifast lessons DEST` copies lessons"
import argparse
import filecmp
import shutil
import sys
import time
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


def make_run(args):
    "Learner and Runner for `minifast train`: a CNN by a recipe, watched by telemetry"
    from minifast.cnn import BatchTransformXCallback, CudaCallback
    from minifast.core import default_device, set_seed
    from minifast.data import DataBunch, Dataset, get_data, get_dls, mnist_view, normalize_to
    from minifast.hook_callbacks import ActivationStats
    from minifast.losses import accuracy
    from minifast.runner import AvgStatsCallback, ProgressCallback
    from minifast.sched import Recorder
    set_seed(args.seed)
    device = getattr(args, 'device', None) or default_device()
    x_train, y_train, x_valid, y_valid = get_data()
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

    from minifast.data import get_data, mnist_view, normalize
    from minifast.losses import accuracy
    x_train = get_data()[0]
    x, y = get_data('test')
    x = mnist_view(normalize(x, x_train.mean(), x_train.std()))
    learn.model.eval()
    with torch.no_grad():
        pred = torch.cat([learn.model(xb.to(device)).cpu() for xb in x.split(1000)])
    return accuracy(pred, y).item()


def draw(run, out, layers, title, found):
    "Write a picture of losses and rates to `out`, and one of the layers to `layers`"
    import matplotlib
    matplotlib.use('agg')
    from minifast.plot import get_grid
    fig, axs = get_grid(2, ncols=2, title=title)
    run.recorder.plot_loss(ax=axs[0])
    run.recorder.plot_lr(ax=axs[1])
    fig.savefig(out, dpi=120)
    run.activation_stats.plot(found)[0].figure.savefig(layers, dpi=120)


def report(args, learn, run, seconds):
    "Print and draw the test accuracy and how the layers are"
    acc = test_accuracy(learn, next(learn.model.parameters()).device)
    found = run.activation_stats.diagnose()
    layers = args.out.with_name(f'{args.out.stem}-layers{args.out.suffix}')
    words = args.out.with_name(f'{args.out.stem}-diagnosis.txt')
    draw(run, args.out, layers,
         f'{acc:.2%} of the 10,000 test images right after {seconds:.1f} s',
         f'{len(found)} of {len(run.activation_stats.dead)} layers look ill')
    words.write_text(f'{found}\n', encoding='utf-8')
    print(f'test accuracy {acc:.4f} on 10,000 images '
          f'after {seconds:.1f} s of training, telemetry included')
    print(f'losses and learning rates: {args.out}\nwhat happened in every layer: {layers}')
    print(f'diagnosis, also in {words}:\n\n{found}')


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
    try: run.fit(args.epochs, learn)
    except KeyboardInterrupt:
        print(f'\ninterrupted in epoch {run.epoch}; what has been trained is drawn', flush=True)
    seconds = time.perf_counter()-start
    if not run.n_iter: return 130
    report(args, learn, run, seconds)
    return 0 if run.epoch == args.epochs else 130


def lesson_files():
    "The lesson notebooks: in the installed package, or beside it in a clone"
    here = Path(__file__).resolve().parent
    for folder in (here/'lessons', here.parent/'nbs'):
        found = sorted(folder.glob('*.ipynb'))
        if found: return found
    raise SystemExit(
        'minifast: this installation holds no lessons: install minifast again')


def lessons(args):
    "Copy the lessons to a folder; a file that is there already and differs is kept"
    dest = args.dest
    if dest.exists() and not dest.is_dir():
        raise SystemExit(
            f'minifast: {dest} is a file: name a folder, new or old, for the lessons')
    dest.mkdir(parents=True, exist_ok=True)
    copied, kept = [], []
    for nb in lesson_files():
        to = dest/nb.name
        if to.exists() and not filecmp.cmp(nb, to, shallow=False): kept.append(nb.name)
        else: copied.append(shutil.copyfile(nb, to))
    print(f'{len(copied)} lesson notebooks of minifast {__version__} are in {dest}')
    if kept:
        print(f"kept, since they differ: {', '.join(kept)}: "
              'name another folder for fresh ones')
    print(f'start with: jupyter lab {dest/"index.ipynb"}')
    return 0


def count(s):
    "A whole number above 0"
    n = int(s) if s.isdecimal() else 0
    if n < 1: raise argparse.ArgumentTypeError(f'{s!r} is not a whole number above 0')
    return n


def rate(s):
    "A number above 0"
    try: x = float(s)
    except ValueError: x = 0.
    if not 0 < x < float('inf'):
        raise argparse.ArgumentTypeError(f'{s!r} is not a number above 0')
    return x


def device_name(s):
    "A device that PyTorch can put a tensor on"
    import torch
    try: return torch.empty(0, device=torch.device(s)).device
    except (RuntimeError, AssertionError, AttributeError) as e:
        why = str(e).splitlines()[0]
        raise argparse.ArgumentTypeError(
            f'{s!r} is no device of this machine ({why}): try cpu') from None


def out_file(s):
    "A picture's file name in a folder that exists"
    p = Path(s)
    if not p.parent.is_dir():
        raise argparse.ArgumentTypeError(f'the folder of {s!r} does not exist')
    if p.is_dir():
        raise argparse.ArgumentTypeError(f'{s!r} is a folder: name a file in it')
    if p.suffix.lower() not in ('.png', '.pdf', '.svg'):
        raise argparse.ArgumentTypeError(f'{s!r} should end in .png, .pdf or .svg')
    return p


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
    add('--epochs', type=count, default=2,
        help='passes over the 50,000 training images')
    add('--bs', type=count, default=256, help='images in a batch')
    add('--lr', type=rate, default=argparse.SUPPRESS,
        help="highest learning rate; else the recipe's")
    add('--seed', type=int, default=42, help='the same seed gives the same numbers')
    add('--device', type=device_name, default=argparse.SUPPRESS,
        help='cpu, cuda …; else the best there is')
    add('--threads', type=count, default=1,
        help='CPU threads; one is enough, and keeps the numbers the same')
    add('--out', type=out_file, default=Path('minifast-train.png'),
        help='file for the first picture, .png, .pdf or .svg; the others are put beside it')


def parser():
    "The commands and their options"
    p = argparse.ArgumentParser(
        'minifast', description='Deep learning from the foundations.')
    p.add_argument('--version', action='version', version=f'minifast {__version__}')
    sub = p.add_subparsers(title='commands', required=True, metavar='COMMAND')
    add_train(sub)
    what = 'copy the lessons of this version to a folder'
    le = sub.add_parser('lessons', help=what, description=(
        'Copy the lesson notebooks that fit the installed version to a folder. '
        'A file that is there already is never overwritten.'))
    le.add_argument('dest', type=Path, metavar='DEST', help='the folder; made if it does not exist')
    le.set_defaults(func=lessons)
    return p


def main(argv=None):
    "Run the command line `argv`; returns the exit code"
    args = parser().parse_args(argv)
    return args.func(args)


if __name__ == '__main__': sys.exit(main())
