"minifast.data: MNIST read and checked, normalisation, datasets, loaders against PyTorch's, reshaping"
import gzip
import hashlib
import pickle
import struct
import sys
from importlib.resources import files

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import data as td

from helpers import exact, small
from minifast.data import (DataBunch, DataLoader, Dataset, get_data, get_dls, mnist_view, normalize,
                           normalize_to, view_tfm)

packaged = files('minifast')/'data'/'mnist'
kinds = [('train', 'train'), ('test', 't10k')]


def idx(a):
    "The bytes of an IDX file that holds the uint8 array `a`"
    return bytes([0, 0, 8, a.ndim]) + struct.pack(f'>{a.ndim}I', *a.shape) + a.tobytes()


def write(folder, prefix='t10k', n=12, ny=None, h=2, w=3, gz=True, labels=None, **raw):
    "A pair of small files; `images=` or `labels_raw=` replace the bytes before packing"
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n, h, w), dtype=np.uint8)
    y = np.array(list(range(n if ny is None else ny)) if labels is None else labels, int).astype(np.uint8)
    if labels is None: y %= 10
    for name, b in {f'{prefix}-images-idx3-ubyte': raw.get('images', idx(x)),
                    f'{prefix}-labels-idx1-ubyte': raw.get('labels_raw', idx(y))}.items():
        (folder/(f'{name}.gz' if gz else name)).write_bytes(gzip.compress(b) if gz else b)
    return x, y


@pytest.fixture(scope='module')
def mnist(): return get_data()


@pytest.fixture(scope='module')
def toy(): return Dataset(torch.arange(50.).view(25, 2), torch.arange(25))


@pytest.fixture(autouse=True)
def no_env(monkeypatch): monkeypatch.delenv('MINIFAST_DATA', raising=False)


# ---------------------------------------------------------------- get_data

def test_shapes_types_and_range(mnist):
    x, y, xv, yv = mnist
    assert x.shape == (50_000, 784) and y.shape == (50_000,)
    assert xv.shape == (10_000, 784) and yv.shape == (10_000,)
    assert x.dtype == xv.dtype == torch.float32 and y.dtype == yv.dtype == torch.int64
    assert x.min() == xv.min() == 0 and x.max() == xv.max() == 1
    assert y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4] and set(y.tolist()) == set(range(10))
    assert isinstance(mnist, tuple)
    assert all(o.is_contiguous() and o.device.type == 'cpu' for o in mnist)


def test_values_against_the_bytes(mnist):
    raw = gzip.decompress((packaged/'train-images-idx3-ubyte.gz').read_bytes())
    pixels = torch.tensor(np.frombuffer(raw, np.uint8, offset=16).reshape(60_000, 784))
    exact(torch.cat([mnist[0], mnist[2]]), pixels.float()/255)
    raw = gzip.decompress((packaged/'train-labels-idx1-ubyte.gz').read_bytes())
    exact(torch.cat([mnist[1], mnist[3]]), torch.tensor(list(raw[8:])))


def test_the_test_images():
    x, y = get_data('test')
    assert x.shape == (10_000, 784) and y[:5].tolist() == [7, 2, 1, 0, 4]


def test_tensors_are_new_and_writable():
    a, b = get_data('test'), get_data('test')
    a[0].fill_(7); a[1].fill_(7)
    exact(get_data('test'), b)
    x, _, xv, _ = mnist = get_data()
    # no part drags the other along
    for o in mnist: assert o.untyped_storage().nbytes() == o.numel()*o.element_size()
    x.fill_(3)
    assert xv.max() == 1


def test_the_packaged_files_are_the_canonical_ones():
    sums = {'train-images-idx3-ubyte': 'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db',
            'train-labels-idx1-ubyte': '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5',
            't10k-images-idx3-ubyte': '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7',
            't10k-labels-idx1-ubyte': 'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2'}
    for name, sha in sums.items():
        assert hashlib.sha256(gzip.decompress((packaged/f'{name}.gz').read_bytes())).hexdigest() == sha


@pytest.mark.parametrize('bad', ['valid', '', None, 3, '/tmp', packaged])
def test_unknown_part(bad):
    with pytest.raises(ValueError, match="part must be 'train' or 'test', got .*path="): get_data(bad)


@pytest.mark.parametrize('gz', [True, False])
def test_other_data_of_the_same_form(tmp_path, gz):
    x, y = write(tmp_path, 'train', n=13, gz=gz)
    xt, yt, xv, yv = get_data(path=tmp_path, check=False)
    assert (len(xt), len(xv)) == (11, 2)                       # the last sixth, rounded down
    exact(torch.cat([xt, xv]), torch.tensor(x).view(13, 6).float()/255)
    exact(torch.cat([yt, yv]), torch.tensor(y).long())
    x, y = write(tmp_path, 't10k', n=7, gz=gz)
    xt, yt = get_data('test', str(tmp_path), check=False)
    exact((xt, yt), (torch.tensor(x).view(7, 6).float()/255, torch.tensor(y).long()))


@given(n=st.integers(6, 200))
@settings(max_examples=25, deadline=None)
def test_the_split_loses_nothing(n, tmp_path_factory):
    d = tmp_path_factory.mktemp('d')
    _, y = write(d, 'train', n=n)
    _, yt, _, yv = get_data(path=d, check=False)
    assert len(yv) == n//6 and torch.cat([yt, yv]).tolist() == y.tolist()


def test_true_mnist_unpacked_passes_the_check(tmp_path):
    for s in ('images-idx3', 'labels-idx1'):
        (tmp_path/f't10k-{s}-ubyte').write_bytes(gzip.decompress((packaged/f't10k-{s}-ubyte.gz').read_bytes()))
    exact(get_data('test', tmp_path), get_data('test'))


def test_environment_variable(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setenv('MINIFAST_DATA', str(tmp_path))
    assert len(get_data('test', check=False)[0]) == 12
    with pytest.raises(ValueError, match='SHA-256.*check=False.*MINIFAST_DATA'): get_data('test')
    other = tmp_path/'other'; other.mkdir(); write(other, n=8)
    assert len(get_data('test', other, check=False)[0]) == 8    # the argument wins
    monkeypatch.setenv('MINIFAST_DATA', str(tmp_path/'nowhere'))
    with pytest.raises(NotADirectoryError, match='nowhere is not a folder.*unset'): get_data()
    monkeypatch.setenv('MINIFAST_DATA', '')
    assert len(get_data('test')[0]) == 10_000                  # an empty one is none


def test_home_is_expanded(tmp_path, monkeypatch):
    (tmp_path/'mnist').mkdir(); write(tmp_path/'mnist')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert len(get_data('test', '~/mnist', check=False)[0]) == 12


def test_missing_folder_file_and_a_file_as_folder(tmp_path):
    with pytest.raises(NotADirectoryError, match='nope is not a folder: give another path'):
        get_data(path=tmp_path/'nope')
    (tmp_path/'file').write_text('x')
    with pytest.raises(NotADirectoryError, match='file is not a folder'): get_data(path=tmp_path/'file')
    write(tmp_path)
    with pytest.raises(FileNotFoundError, match='neither train-images-idx3-ubyte.gz nor train-images-idx3'):
        get_data(path=tmp_path)
    (tmp_path/'t10k-labels-idx1-ubyte.gz').unlink()
    with pytest.raises(FileNotFoundError, match='t10k-labels-idx1-ubyte'):
        get_data('test', tmp_path, check=False)


def spoil_gzip(f): f.write_bytes(f.read_bytes()[:-20])


def spoil_crc(f): b = bytearray(f.read_bytes()); b[-6] ^= 255; f.write_bytes(b)


def spoil_body(f): b = bytearray(f.read_bytes()); b[len(b)//2] ^= 255; f.write_bytes(b)


def spoil_deflate(f): b = bytearray(f.read_bytes()); b[10] = 255; f.write_bytes(b)


def not_gzip(f): f.write_bytes(b'<html>404 not found</html>')


def empty(f): f.write_bytes(b'')


@pytest.mark.parametrize('name', ['images-idx3', 'labels-idx1'])
@pytest.mark.parametrize('spoil', [spoil_gzip, spoil_crc, spoil_body, spoil_deflate, not_gzip, empty])
@pytest.mark.parametrize('check', [True, False])
def test_damaged_gzip_names_the_file(tmp_path, name, spoil, check):
    write(tmp_path)
    spoil(tmp_path/f't10k-{name}-ubyte.gz')
    with pytest.raises(ValueError, match=f't10k-{name}-ubyte.gz is damaged.*give another path, or none'):
        get_data('test', tmp_path, check)


good = idx(np.zeros((12, 2, 3), np.uint8))


@pytest.mark.parametrize('b', [b'', b'\0\0\x08', idx(np.zeros((12, 2), np.uint8)), good[:-1], good + b'x',
                               good[:9], b'\0\0\x0d' + good[3:], good[:4] + b'\xff'*12 + b'x'], ids=range(8))
@pytest.mark.parametrize('gz', [True, False])
def test_wrong_idx_names_the_file(tmp_path, b, gz):
    write(tmp_path, images=b, gz=gz)
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte.* isn't an IDX file"):
        get_data('test', tmp_path, check=False)


def test_the_header_of_labels_is_no_header_of_images(tmp_path):
    write(tmp_path, images=idx(np.zeros(12, np.uint8)))
    with pytest.raises(ValueError, match='begins with 00 00 08 01, not with 00 00 08 03 and 3 sizes'):
        get_data('test', tmp_path, check=False)


def test_images_and_labels_of_different_number(tmp_path):
    write(tmp_path, n=12, ny=11)
    for check in (True, False):
        with pytest.raises(ValueError, match='images-idx3-ubyte.gz has 12 images, .*ubyte.gz has 11 labels'):
            get_data('test', tmp_path, check)


def test_labels_above_nine_and_too_few(tmp_path):
    write(tmp_path, labels=[0]*11 + [10])
    with pytest.raises(ValueError, match='labels-idx1-ubyte.gz has a label 10, allowed are 0 to 9'):
        get_data('test', tmp_path, check=False)
    for n in (0, 5):
        write(tmp_path, 'train', n=n)
        with pytest.raises(ValueError, match=f'has {n} images, the least is 6'):
            get_data(path=tmp_path, check=False)


def test_one_changed_bit_is_found(tmp_path):
    for s in ('images-idx3', 'labels-idx1'):
        (tmp_path/f't10k-{s}-ubyte').write_bytes(gzip.decompress((packaged/f't10k-{s}-ubyte.gz').read_bytes()))
    for s, at in (('images-idx3', 5000), ('labels-idx1', 100)):
        f = tmp_path/f't10k-{s}-ubyte'
        good = f.read_bytes()
        b = bytearray(good); b[at] ^= 1
        f.write_bytes(b)
        with pytest.raises(ValueError, match=f"t10k-{s}-ubyte isn't MNIST's .*check=False"):
            get_data('test', tmp_path)
        assert len(get_data('test', tmp_path, check=False)[0]) == 10_000
        f.write_bytes(good)


def test_unreadable_file(tmp_path, monkeypatch):
    write(tmp_path)

    def denied(self): raise PermissionError(13, 'Permission denied', str(self))
    monkeypatch.setattr(type(tmp_path), 'read_bytes', denied)
    with pytest.raises(ValueError, match='t10k-images-idx3-ubyte.gz.*Permission denied.*give another path'):
        get_data('test', tmp_path, check=False)


def test_a_damaged_package_says_reinstall(tmp_path, monkeypatch):
    import minifast.data
    (tmp_path/'data'/'mnist').mkdir(parents=True)
    write(tmp_path/'data'/'mnist')
    monkeypatch.setattr(minifast.data, 'files', lambda name: tmp_path)
    with pytest.raises(ValueError, match='t10k-images-idx3-ubyte.gz.*reinstall minifast'): get_data('test')
    with pytest.raises(FileNotFoundError, match='train-images.*reinstall minifast'): get_data()


@pytest.mark.parametrize('part, n_parts, n_images', [('train', 2, 60_000), ('test', 1, 10_000)])
def test_what_makes_it_quick(part, n_parts, n_images, monkeypatch):
    "Each file is read, unpacked and summed up once, each part divided at one go, and no image is touched alone"
    calls = []
    def count(owner, name, was):
        monkeypatch.setattr(owner, name, lambda *args, **kw: (calls.append(name), was(*args, **kw))[1])
    for owner, name in ((gzip, 'decompress'), (hashlib, 'sha256'), (np, 'true_divide')): count(owner, name, getattr(owner, name))
    n = []
    sys.setprofile(lambda frame, event, arg: n.append(1) if event in ('call', 'c_call') else None)
    try: get_data(part)
    finally: sys.setprofile(None)
    assert calls == ['decompress']*2 + ['sha256']*2 + ['true_divide']*n_parts
    assert len(n) < n_images/3   # 70 where gzip unpacks in C, thousands in Python 3.10


# ---------------------------------------------------------------- normalize

def test_normalize_broadcasts_and_leaves_its_input():
    x = torch.randn(20, 3)*5 + 2
    before = x.clone()
    exact(normalize(x, 2., 5.), (x - 2)/5)
    exact(normalize(x, x.mean(0), x.std(0)), (x - x.mean(0))/x.std(0))
    exact(normalize(x, np.float64(2), 5), (x - 2)/5)
    exact(x, before)
    x.requires_grad_()
    normalize(x, 1., 4.).sum().backward()
    exact(x.grad, torch.full_like(x, .25))


@pytest.mark.parametrize('s', [0, 0., -1., float('nan'), torch.tensor(0.), torch.tensor([1., 0., 2.])])
def test_normalize_refuses(s):
    with pytest.raises(ValueError, match='standard deviation must be above 0, got'):
        normalize(torch.ones(2, 3), 0, s)


def test_normalize_to_uses_the_training_statistics(mnist):
    a, b = normalize_to(mnist[0], mnist[2])
    assert abs(a.mean()) < 1e-5 and abs(a.std() - 1) < 1e-5
    assert abs(b.mean() + .0059) < 1e-4                         # not 0
    exact(b, (mnist[2] - mnist[0].mean())/mnist[0].std())


def test_normalize_to_refuses():
    with pytest.raises(TypeError, match='train must be floats, got torch.uint8'):
        normalize_to(torch.zeros(3, 2, dtype=torch.uint8), torch.zeros(3, 2))
    with pytest.raises(ValueError, match='above 0'): normalize_to(torch.full((5, 2), .25), torch.zeros(3, 2))


# ---------------------------------------------------------------- Dataset

def test_dataset(toy):
    x, y = toy[3]
    assert x.tolist() == [6, 7] and y == 3 and len(toy) == 25 and repr(toy) == 'Dataset (25 items)'
    exact(toy[[1, 4]], (toy.x[[1, 4]], toy.y[[1, 4]]))
    assert Dataset([1, 2], 'ab')[1] == (2, 'b')
    with pytest.raises(ValueError, match='one length, got 3 and 2'): Dataset(torch.zeros(3), torch.zeros(2))


def test_dataset_to_gives_another(toy):
    new = toy.to('meta')
    assert new.x.is_meta and new.y.is_meta and not toy.x.is_meta and len(new) == 25


# ---------------------------------------------------------------- DataLoader

def ys(dl): return [yb.tolist() for xb, yb in dl]


def flat(dl): return [o for b in ys(dl) for o in b]


@given(n=st.integers(1, 60), bs=st.integers(1, 70), shuffle=st.booleans(), drop_last=st.booleans())
@settings(max_examples=150, deadline=None)
def test_batches_partition_the_dataset(n, bs, shuffle, drop_last):
    x, y = torch.randn(n, 3), torch.arange(n)
    make = lambda: DataLoader(Dataset(x, y), bs, shuffle=shuffle, drop_last=drop_last)
    if drop_last and n < bs:
        with pytest.raises(ValueError, match='no batch'): make()
        return
    dl, theirs = make(), td.DataLoader(td.TensorDataset(x, y), bs, drop_last=drop_last)
    batches = list(dl)
    assert len(batches) == len(dl) == len(theirs)
    assert [len(yb) for xb, yb in batches] == [len(yb) for xb, yb in theirs]
    seen = torch.cat([yb for xb, yb in batches])
    assert len(seen.unique()) == len(seen) == (n//bs*bs if drop_last else n)
    for xb, yb in batches: exact(xb, x[yb])                     # pairs stay together
    if not shuffle:
        for (xb, yb), (xt, yt) in zip(batches, theirs, strict=True): exact((xb, yb), (xt, yt))


def test_keeps_shape_and_type():
    ds = Dataset(torch.randn(9, 1, 4, 5).double(), torch.randn(9, 2))
    for shuffle in (False, True):
        xb, yb = next(iter(DataLoader(ds, 4, shuffle)))
        assert xb.shape == (4, 1, 4, 5) and xb.dtype == torch.float64 and yb.shape == (4, 2)


def test_every_epoch_has_another_order(toy):
    dl = DataLoader(toy, 4, shuffle=True)
    a, b = flat(dl), flat(dl)
    assert a != b and a != sorted(a) and sorted(a) == sorted(b) == list(range(25))
    dl = DataLoader(toy, 4)
    assert flat(dl) == flat(dl) == list(range(25))


def test_drop_last_drops_other_items_each_time(toy):
    dl = DataLoader(toy, 24, shuffle=True, drop_last=True)
    assert len({(set(range(25)) - set(flat(dl))).pop() for _ in range(30)}) > 5


def test_order_from_the_global_generator(toy):
    dl = DataLoader(toy, 4, shuffle=True)
    torch.manual_seed(3); a = flat(dl)
    torch.manual_seed(3); b = flat(dl)
    assert a == b
    state = torch.get_rng_state()
    flat(DataLoader(toy, 4))
    exact(torch.get_rng_state(), state)                         # in order: nothing is drawn


def test_order_from_a_generator(toy):
    make = lambda: DataLoader(toy, 4, shuffle=True, generator=torch.Generator().manual_seed(5))
    a, state = make(), torch.get_rng_state()
    two = [flat(a), flat(a)]
    exact(torch.get_rng_state(), state)                         # the global one isn't touched
    torch.randn(7)
    b = make()
    assert [flat(b), flat(b)] == two and two[0] != two[1]
    g = torch.Generator().manual_seed(5)
    dl = DataLoader(toy, 4, shuffle=True, generator=g)
    assert dl.generator is g and flat(dl) == two[0] == torch.randperm(25, generator=g.manual_seed(5)).tolist()


def test_two_iterations_at_once(toy):
    dl = DataLoader(toy, 10, shuffle=True)
    for a, b in zip(dl, dl): assert a[1].tolist() != b[1].tolist()
    it = iter(dl)
    next(it)
    assert len(list(it)) == 2 and len(list(dl)) == 3


def test_attributes_and_both_spellings(toy):
    dl = DataLoader(toy, batch_size=8, shuffle=True)
    assert dl.dataset is toy and dl.bs == 8 and dl.generator is None and len(dl) == 4
    assert 'Dataset (25 items)' in repr(dl) and 'bs 8' in repr(dl) and '0x' not in repr(dl)
    assert type(DataLoader(toy, np.int64(8)).bs) is int
    with pytest.raises(TypeError, match='bs 4 and batch_size 8: give one'): DataLoader(toy, 4, batch_size=8)


@pytest.mark.parametrize('bs', [0, -3, 64., .5, '64', None, True, [3]])
def test_bad_batch_sizes(toy, bs):
    with pytest.raises(ValueError, match='bs must be a whole number above 0, got'): DataLoader(toy, bs)


def test_empty_datasets():
    for ds in (Dataset(torch.zeros(0, 2), torch.zeros(0)), []):
        with pytest.raises(ValueError, match='0 items, bs 4.*no batch'): DataLoader(ds, 4)


@pytest.mark.parametrize('k', ['num_worker', 'batchsize', 'dataset', 'samplers'])
def test_unknown_keywords(toy, k):
    with pytest.raises(TypeError, match=f'no {k!r}, only bs, shuffle, .*num_workers.*collate_fn'):
        DataLoader(toy, 4, **{k: 1})


def test_in_order_batches_share_memory_and_shuffled_ones_do_not():
    ds = Dataset(torch.ones(10, 2), torch.arange(10))
    for xb, yb in DataLoader(ds, 4, shuffle=True): xb.zero_()
    assert ds.x.sum() == 20
    xb, yb = next(iter(DataLoader(ds, 4)))
    assert xb.data_ptr() == ds.x.data_ptr()


class Plus(Dataset):
    "Changes what an item is"
    def __getitem__(self, i): return self.x[i] + 100, self.y[i]


class Half(Dataset):
    "Changes how many there are"
    def __len__(self): return len(self.x)//2


class Named(Dataset):
    "Changes neither"
    def about(self): return 'named'


def test_subclasses_keep_their_meaning(toy):
    xb, yb = next(iter(DataLoader(Plus(toy.x, toy.y), 4)))
    exact(xb, toy.x[:4] + 100)
    assert flat(DataLoader(Half(toy.x, toy.y), 5)) == list(range(12))
    assert not isinstance(DataLoader(Named(toy.x, toy.y), 4).loader, td.DataLoader)


@pytest.mark.parametrize('make', [lambda t: Plus(t.x, t.y), lambda t: td.TensorDataset(t.x, t.y),
                                  lambda t: list(zip(t.x, t.y)),
                                  lambda t: Dataset(t.x.numpy(), t.y.tolist())])
@pytest.mark.parametrize('drop_last', [False, True])
def test_other_datasets_go_through_pytorch(toy, make, drop_last):
    ds = make(toy)
    ours, theirs = DataLoader(ds, 4, drop_last=drop_last), td.DataLoader(ds, 4, drop_last=drop_last)
    assert isinstance(ours.loader, td.DataLoader) and len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True): exact(list(a), list(b))
    g = lambda: torch.Generator().manual_seed(1)
    a, b = DataLoader(ds, 4, shuffle=True, generator=g()), td.DataLoader(ds, 4, shuffle=True, generator=g())
    assert flat(a) == flat(b) != list(range(25))


def test_keywords_are_handed_on(toy):
    dl = DataLoader(toy, 4, collate_fn=lambda items: (len(items), items[0][1]))
    assert next(iter(dl)) == (4, 0)
    assert flat(DataLoader(toy, 2, sampler=[3, 1, 2])) == [3, 1, 2]
    plain = DataLoader(toy, 4, collate_fn=None, timeout=0, pin_memory=False)   # all as they are anyway
    assert not isinstance(plain.loader, td.DataLoader)
    with pytest.raises(ValueError, match='sampler'): DataLoader(toy, 4, shuffle=True, sampler=[1, 2])


# ---------------------------------------------------------------- samplers

def spread(ds, rank=0): return td.DistributedSampler(ds, num_replicas=2, rank=rank, seed=3)

@pytest.mark.parametrize('plus', [False, True])
@pytest.mark.parametrize('rank', [0, 1])
def test_a_sampler_for_the_training(toy, rank, plus):
    "It gives the order, validation has its own; the same batches as PyTorch's loader gives"
    ds = Plus(toy.x, toy.y) if plus else toy
    train, valid = get_dls(ds, toy, 4, sampler=(sampler := spread(ds, rank)))
    theirs = td.DataLoader(ds, 4, sampler=spread(ds, rank))
    assert train.sampler is sampler and flat(valid) == list(range(25)) and valid.bs == 8 and len(train) == len(theirs) == 4
    for epoch in range(2):
        sampler.set_epoch(epoch)
        theirs.sampler.set_epoch(epoch)
        for a, b in zip(train, theirs, strict=True): exact(list(a), list(b))
    assert ys(train) == ys(theirs) != (sampler.set_epoch(5), ys(train))[1]

def test_samplers_of_every_kind(toy):
    g = torch.Generator().manual_seed(0)
    for sampler, n in ((td.WeightedRandomSampler([1.]*25, 9, generator=g), 9), (td.SubsetRandomSampler([3, 1, 2]), 3),
                       (td.RandomSampler(toy, replacement=True, num_samples=50), 50), ([4, 4, 0], 3), (range(5, 8), 3),
                       (torch.tensor([7, 8]), 2), (np.arange(3), 3)):
        train, valid = get_dls(toy, toy, 4, sampler=sampler)
        assert len(flat(train)) == n and len(train) == -(-n//4) and train.sampler is sampler and len(flat(valid)) == 25
    assert flat(get_dls(toy, toy, 2, sampler=[4, 4, 0])[0]) == [4, 4, 0]
    assert ys(get_dls(toy, toy, 2, sampler=[4, 4, 0], drop_last=True)[0]) == [[4, 4]]
    assert DataLoader(toy, 4).sampler is None and DataLoader(toy, 4).batch_sampler is None

def test_batch_samplers(toy):
    "They make the training batches, and `bs` is for validation"
    train, valid = get_dls(toy, toy, 4, batch_sampler=(batches := [[1, 2, 3], [7]]))
    assert ys(train) == batches and train.batch_sampler is batches and train.bs is None
    assert valid.bs == 8 and flat(valid) == list(range(25))
    inner = spread(toy)
    train, valid = get_dls(toy, toy, 4, batch_sampler=td.BatchSampler(inner, 5, drop_last=True))
    assert train.bs == 5 and [len(b) for b in ys(train)] == [5, 5] and train.batch_sampler.sampler is inner
    assert ys(DataLoader(toy, batch_sampler=[[3, 1]])) == [[3, 1]]

def test_what_else_is_given_goes_through(toy):
    g = torch.Generator()
    train, valid = get_dls(toy, toy, 4, sampler=[1, 2], generator=g, collate_fn=len, num_workers=0)
    assert train.generator is train.loader.generator is g and valid.generator is None
    assert list(train) == [2] and list(valid) == [8, 8, 8, 1]

@pytest.mark.parametrize('kw, error, says', [
    (lambda ds: dict(sampler=td.RandomSampler(range(9))), ValueError, 'sampler is made for 9 items, but there are 25'),
    (lambda ds: dict(sampler=spread(range(9))), ValueError, 'sampler is made for 9 items'),
    (lambda ds: dict(batch_sampler=td.BatchSampler(spread(range(9)), 3, True)), ValueError, 'batch_sampler is made for 9 items'),
    (lambda ds: dict(sampler=td.BatchSampler(spread(ds), 3, True)), TypeError, 'BatchSampler is no sampler: pass it as batch_sampler='),
    (lambda ds: dict(batch_sampler=spread(ds)), TypeError, 'DistributedSampler is no batch_sampler: pass it as sampler='),
    (lambda ds: dict(sampler=td.RandomSampler), TypeError, '__iter__ and __len__, got RandomSampler'),
    (lambda ds: dict(sampler=3), TypeError, '__iter__ and __len__, got int'),
    (lambda ds: dict(sampler=iter([1])), TypeError, '__iter__ and __len__, got list_iterator'),
    (lambda ds: dict(batch_sampler=lambda: 0), TypeError, '__iter__ and __len__, got function'),
    (lambda ds: dict(sampler=[]), ValueError, 'no batch'),
    (lambda ds: dict(sampler=[1], batch_sampler=[[1]]), ValueError, 'decides by itself about sampler: leave out'),
    (lambda ds: dict(batch_sampler=[[1]], drop_last=True), ValueError, 'decides by itself about drop_last')])
def test_samplers_that_do_not_fit(toy, kw, error, says):
    with pytest.raises(error, match=says): get_dls(toy, toy, 4, **kw(toy))

@pytest.mark.parametrize('kw, says', [(dict(bs=4), 'bs'), (dict(batch_size=4), 'bs'), (dict(shuffle=True), 'shuffle'),
                                      (dict(bs=4, shuffle=True, drop_last=True), 'bs, shuffle, drop_last')])
def test_a_batch_sampler_leaves_nothing_to_say(toy, kw, says):
    with pytest.raises(ValueError, match=f'a batch_sampler decides by itself about {says}: leave out'):
        DataLoader(toy, batch_sampler=[[1]], **kw)


class Stream(td.IterableDataset):
    "A dataset without a length"
    def __iter__(self): return iter(range(5))


def test_iterable_datasets():
    assert [b.tolist() for b in DataLoader(Stream(), 2)] == [[0, 1], [2, 3], [4]]


@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')   # Python 3.12 and later
def test_workers(toy):
    dl = DataLoader(Plus(toy.x, toy.y), 4, num_workers=2)
    assert flat(dl) == list(range(25))
    exact(next(iter(dl))[0], toy.x[:4] + 100)
    dl = DataLoader(toy, 10, shuffle=True, num_workers=1)        # tensors too, when asked for
    assert sorted(flat(dl)) == list(range(25)) and isinstance(dl.loader, td.DataLoader)


def test_loader_to(toy):
    dl = DataLoader(toy, 4, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(1))
    new = dl.to('meta')
    assert new.generator is dl.generator and len(new) == len(dl) == 6 and not dl.dataset.x.is_meta
    assert all(xb.is_meta and yb.is_meta for xb, yb in new)
    for other in (DataLoader(Plus(toy.x, toy.y), 4), DataLoader(toy, 4, collate_fn=list)):
        with pytest.raises(TypeError, match='move each batch'): other.to('meta')


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_on_the_gpu(toy):
    order = flat(DataLoader(toy, 4, shuffle=True, generator=torch.Generator().manual_seed(1)))
    dl = DataLoader(toy, 4, shuffle=True, generator=torch.Generator().manual_seed(1)).to('cuda')
    assert all(b.is_cuda for b in next(iter(dl)))
    dl.generator.manual_seed(1)
    assert flat(dl) == order
    dl = DataLoader(toy.to('cuda'), 4, shuffle=True, generator=torch.Generator('cuda').manual_seed(1))
    assert sorted(flat(dl)) == list(range(25))


def test_pickle_and_copy(toy):
    from copy import deepcopy
    for dl in (DataLoader(toy, 4), DataLoader(td.TensorDataset(toy.x, toy.y), 4)):
        for new in (deepcopy(dl), pickle.loads(pickle.dumps(dl))): assert flat(new) == list(range(25))


# ---------------------------------------------------------------- the small loader of lesson 04

def test_the_small_loader(toy):
    "The batches of the exported one to the last bit, from the same seed, but for one epoch only"
    loader, dl = small('04_data', 'small_loader'), DataLoader(toy, 4, shuffle=True)
    torch.manual_seed(3)
    mine = [list(loader(toy.x, toy.y, 4)) for epoch in range(2)]
    torch.manual_seed(3)
    ours = [list(dl) for epoch in range(2)]
    for a, b in zip(sum(mine, []), sum(ours, []), strict=True): exact(list(a), list(b))
    assert ys(ours[0]) != ys(ours[1])
    once = loader(toy.x, toy.y, 4)
    assert len(list(once)) == len(list(dl)) == len(list(dl)) == 7 and not list(once)


# ---------------------------------------------------------------- get_dls, DataBunch

def test_get_dls(toy):
    train, valid = get_dls(toy, Dataset(torch.zeros(9, 2), torch.arange(9)), 4)
    assert (train.bs, valid.bs) == (4, 8) and flat(train) != list(range(25)) and flat(valid) == list(range(9))
    g = torch.Generator().manual_seed(1)
    train, valid = get_dls(toy, Dataset(torch.zeros(9, 2), torch.arange(9)), 6, drop_last=True, generator=g)
    assert len(train) == 4 and flat(valid) == list(range(9))    # validation loses nothing
    assert train.generator is g and valid.generator is None
    train, valid = get_dls(toy, toy, 4, collate_fn=len)
    assert list(train) == [4]*6 + [1] and list(valid) == [8, 8, 8, 1]
    with pytest.raises(ValueError, match='bs must be'): get_dls(toy, toy, 0)
    with pytest.raises(ValueError, match='0 items'): get_dls(toy, Dataset([], []), 4)


@given(n=st.integers(1, 40), bs=st.integers(1, 45))
@settings(max_examples=50, deadline=None)
def test_validation_is_complete(n, bs):
    ds = Dataset(torch.zeros(n, 1), torch.arange(n))
    train, valid = get_dls(ds, ds, bs)
    assert flat(valid) == sorted(flat(train)) == list(range(n))


@pytest.mark.parametrize('c', [10, torch.tensor(10), np.int64(10), torch.arange(10).max() + 1])
def test_databunch_c_is_a_plain_int(toy, c):
    data = DataBunch(*get_dls(toy, toy, 4), c)
    assert type(data.c) is int and data.c == 10 and data.train_ds is data.valid_ds is toy
    assert 'c 10' in repr(data) and '0x' not in repr(data)


@pytest.mark.parametrize('c', [0, -1, 2.5, 'ten', torch.tensor(2.5)])
def test_databunch_refuses(toy, c):
    with pytest.raises(ValueError, match='c must be a whole number above 0'):
        DataBunch(*get_dls(toy, toy, 4), c)


def test_databunch_without_validation(toy):
    data = DataBunch(DataLoader(toy, 4), None, 25)
    moved = data.to('meta')
    assert moved.valid_dl is None and moved.c == 25 and moved.train_dl.dataset.x.is_meta


def test_databunch_to(toy):
    data = DataBunch(*get_dls(toy, toy, 4), 25)
    new = data.to('meta')
    assert new.c == 25 and new.train_ds.x.is_meta and next(iter(new.valid_dl))[1].is_meta
    assert not data.train_ds.x.is_meta
    assert DataBunch([1], [2]).c is None


# ---------------------------------------------------------------- view_tfm

def test_view_tfm():
    x = torch.randn(6, 24)
    for size in ((2, 3, 4), (24,), (-1,), (4, -1), (1, 24)):
        exact(view_tfm(*size)(x), x.reshape(6, *size))
    exact(view_tfm()(torch.arange(3.)), torch.arange(3.))
    exact(view_tfm(24)(x.t().contiguous().t()), x)              # not contiguous
    assert view_tfm(2, 12)(x[:1]).shape == (1, 2, 12) and repr(view_tfm(1, 28, 28)) == 'view_tfm(1, 28, 28)'


def test_mnist_view():
    x = torch.randn(5, 784)
    exact(mnist_view(x), x.view(5, 1, 28, 28))
    assert mnist_view(x).data_ptr() == x.data_ptr()
    with pytest.raises(ValueError, match=r'items of shape \(783,\).*multiply to 783'): mnist_view(x[:, 1:])


def test_view_tfm_pickles():
    x = torch.randn(2, 12)
    exact(pickle.loads(pickle.dumps(view_tfm(3, 4)))(x), x.view(2, 3, 4))
    assert pickle.loads(pickle.dumps(mnist_view)) is mnist_view
    assert b'mnist_view' in pickle.dumps(mnist_view)


@pytest.mark.parametrize('x, kind', [(torch.tensor(3.), 'Tensor'), ([torch.zeros(4)], 'list'), (None, 'NoneType'),
                                     ({'image': torch.zeros(2, 4)}, 'dict'), ('ab', 'str'), ((torch.zeros(2, 4),)*2, 'tuple')])
def test_view_tfm_takes_batches(x, kind):
    with pytest.raises(TypeError, match=rf'view_tfm\(2, 2\) takes a batch, a tensor \(bs,…\), got {kind}:'): view_tfm(2, 2)(x)
    exact(view_tfm(2, 2)(torch.zeros(0, 4)), torch.zeros(0, 2, 2))


@pytest.mark.parametrize('size', [(5, 5), (23,), (7, -1), (-1, -1)])
def test_view_tfm_refuses_what_does_not_fit(size):
    with pytest.raises(ValueError, match=r"doesn't fit items of shape \(24,\): .* multiply to 24"):
        view_tfm(*size)(torch.zeros(6, 24))


@pytest.mark.parametrize('size', [((1, 28, 28),), (28., 28), ('28',), (None,)])
def test_view_tfm_refuses_what_is_no_number(size):
    with pytest.raises(TypeError, match='sizes must be whole numbers'): view_tfm(*size)
