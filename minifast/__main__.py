"The command line: `minifast train` trains on the packaged digits, `minifast lessons DEST` copies the lessons"
import argparse
import filecmp
import shutil
import sys
import time
from pathlib import Path

from minifast import __version__


def make_run(args):
    "Learner and Runner for `minifast train`: the CNN of lesson 06c, watched, under lesson 05c's one-cycle"
    from minifast.cnn import BatchTransformXCallback, CudaCallback
    from minifast.core import default_device, set_seed
    from minifast.data import DataBunch, Dataset, get_data, get_dls, mnist_view, normalize_to
    from minifast.hook_callbacks import ActivationStats
    from minifast.init import conv_layer, get_learn_run
    from minifast.losses import accuracy
    from minifast.runner import AvgStatsCallback, ProgressCallback
    from minifast.sched import ParamScheduler, Recorder, combine_scheds, cos_1cycle_anneal
    set_seed(args.seed)
    device = getattr(args, 'device', None) or default_device()
    x_train, y_train, x_valid, y_valid = get_data()
    x_train, x_valid = normalize_to(x_train, x_valid)
    data = DataBunch(*get_dls(Dataset(x_train, y_train), Dataset(x_valid, y_valid), args.bs), c=10).to(device)
    lrs = combine_scheds([.3, .7], cos_1cycle_anneal(args.lr/10, args.lr, args.lr/100))
    cbs = [CudaCallback(device), BatchTransformXCallback(mnist_view), AvgStatsCallback(accuracy), Recorder(),
           ParamScheduler('lr', lrs), ProgressCallback(), ActivationStats(every=4)]
    return get_learn_run([8, 16, 32, 64, 64], data, args.lr, conv_layer, cbs=cbs, leak=.1, sub=.4, maxv=6.)


def test_accuracy(learn, device):
    "Share of the 10,000 test images that the model of `learn` names rightly"
    import torch

    from minifast.data import get_data, mnist_view, normalize
    from minifast.losses import accuracy
    x_train = get_data()[0]
    x, y = get_data('test')
    x = mnist_view(normalize(x, x_train.mean(), x_train.std()))
    learn.model.eval()
    with torch.no_grad(): pred = torch.cat([learn.model(xb.to(device)).cpu() for xb in x.split(1000)])
    return accuracy(pred, y).item()


def draw(run, out, layers, title, found):
    "Write a picture of losses and learning rates to `out`, and one of what the layers did to `layers`"
    import matplotlib
    matplotlib.use('agg')
    from minifast.plot import get_grid
    fig, axs = get_grid(2, ncols=2, title=title)
    run.recorder.plot_loss(ax=axs[0])
    run.recorder.plot_lr(ax=axs[1])
    fig.savefig(out, dpi=120)
    run.activation_stats.plot(found)[0].figure.savefig(layers, dpi=120)


def train(args):
    "Train, then report the test accuracy and how the layers are, and draw both"
    import torch
    torch.set_num_threads(args.threads)
    learn, run = make_run(args)
    n, device = sum(p.numel() for p in learn.model.parameters()), learn.data.train_ds.x.device
    print(f'minifast {__version__}: a CNN with {n:,} parameters on {device}, '
          f'{len(learn.data.train_ds):,} images, {args.epochs} epochs, batch size {args.bs}, '
          f'one-cycle up to lr {args.lr:g}, seed {args.seed}', flush=True)
    start = time.perf_counter()
    try: run.fit(args.epochs, learn)
    except KeyboardInterrupt:
        print(f'\ninterrupted in epoch {run.epoch}; what has been trained is drawn', flush=True)
    seconds = time.perf_counter()-start
    if not run.n_iter: return 130
    acc = test_accuracy(learn, next(learn.model.parameters()).device)
    found = run.activation_stats.diagnose()
    layers = args.out.with_name(f'{args.out.stem}-layers{args.out.suffix}')
    words = args.out.with_name(f'{args.out.stem}-diagnosis.txt')
    draw(run, args.out, layers, f'{acc:.2%} of the 10,000 test images right after {seconds:.1f} s',
         f'{len(found)} of {len(run.activation_stats.dead)} layers look ill')
    words.write_text(f'{found}\n', encoding='utf-8')
    print(f'test accuracy {acc:.4f} on 10,000 images after {seconds:.1f} s of training, telemetry included')
    print(f'losses and learning rates: {args.out}\nwhat happened in every layer: {layers}')
    print(f'diagnosis, also in {words}:\n\n{found}')
    return 0 if run.epoch == args.epochs else 130


def lesson_files():
    "The lesson notebooks: in the installed package, or beside it in a clone of the repository"
    here = Path(__file__).resolve().parent
    for folder in (here/'lessons', here.parent/'nbs'):
        found = sorted(folder.glob('*.ipynb'))
        if found: return found
    raise SystemExit('minifast: this installation holds no lessons: install minifast again')


def lessons(args):
    "Copy the lessons to a folder; a file that is there already and differs is kept"
    dest = args.dest
    if dest.exists() and not dest.is_dir():
        raise SystemExit(f'minifast: {dest} is a file: name a folder, new or old, for the lessons')
    dest.mkdir(parents=True, exist_ok=True)
    copied, kept = [], []
    for nb in lesson_files():
        to = dest/nb.name
        if to.exists() and not filecmp.cmp(nb, to, shallow=False): kept.append(nb.name)
        else: copied.append(shutil.copyfile(nb, to))
    print(f'{len(copied)} lesson notebooks of minifast {__version__} are in {dest}')
    if kept: print(f"kept, since they differ: {', '.join(kept)}: name another folder for fresh ones")
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
    if not 0 < x < float('inf'): raise argparse.ArgumentTypeError(f'{s!r} is not a number above 0')
    return x


def device_name(s):
    "A device that PyTorch can put a tensor on"
    import torch
    try: return torch.empty(0, device=torch.device(s)).device
    except (RuntimeError, AssertionError, AttributeError) as e:
        why = str(e).splitlines()[0]
        raise argparse.ArgumentTypeError(f'{s!r} is no device of this machine ({why}): try cpu') from None


def out_file(s):
    "A picture's file name in a folder that exists"
    p = Path(s)
    if not p.parent.is_dir(): raise argparse.ArgumentTypeError(f'the folder of {s!r} does not exist')
    if p.is_dir(): raise argparse.ArgumentTypeError(f'{s!r} is a folder: name a file in it')
    if p.suffix.lower() not in ('.png', '.pdf', '.svg'):
        raise argparse.ArgumentTypeError(f'{s!r} should end in .png, .pdf or .svg')
    return p


def parser():
    "The commands and their options"
    p = argparse.ArgumentParser('minifast', description='Deep learning from the foundations.')
    p.add_argument('--version', action='version', version=f'minifast {__version__}')
    sub = p.add_subparsers(title='commands', required=True, metavar='COMMAND')
    fmt = dict(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    t = sub.add_parser('train', help='train a network on the packaged MNIST', **fmt, description=(
        "Train the lessons' CNN on the packaged MNIST: a table of losses and accuracies while it runs, then "
        'the accuracy on the 10,000 test images, a picture of losses and learning rates (--out), one of what '
        'happened in every layer (…-layers), and what looks ill in words (…-diagnosis.txt).'))
    t.add_argument('--epochs', type=count, default=4, help='passes over the 50,000 training images')
    t.add_argument('--bs', type=count, default=128, help='images in a batch')
    t.add_argument('--lr', type=rate, default=.4, help='highest learning rate of the one-cycle schedule')
    t.add_argument('--seed', type=int, default=42, help='the same seed gives the same numbers')
    t.add_argument('--device', type=device_name, default=argparse.SUPPRESS,
                   help='cpu, cuda, mps, …; the best there is if not given')
    t.add_argument('--threads', type=count, default=1,
                   help='CPU threads; one is enough here, and keeps the numbers the same')
    t.add_argument('--out', type=out_file, default=Path('minifast-train.png'),
                   help='file for the first picture, .png, .pdf or .svg; the others are put beside it')
    t.set_defaults(func=train)
    le = sub.add_parser('lessons', help='copy the lessons of this version to a folder', description=(
        'Copy the lesson notebooks that fit the installed version to a folder. A file that is there already '
        'is never overwritten.'))
    le.add_argument('dest', type=Path, metavar='DEST', help='the folder; made if it does not exist')
    le.set_defaults(func=lessons)
    return p


def main(argv=None):
    "Run the command line `argv`; returns the exit code"
    args = parser().parse_args(argv)
    return args.func(args)


if __name__ == '__main__': sys.exit(main())
