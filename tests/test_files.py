"files: folders of pictures, and archives that come whole or not at all, from servers on this machine"
import io
import multiprocessing
import sys
import tarfile
import threading
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minifast import files
from minifast.data import get_data
from minifast.files import URLs, Archive, get_files, get_image_files, mnist_folder, untar_data


# --- folders

def touch(path, *names):
    for o in names:
        (path/o).parent.mkdir(parents=True, exist_ok=True)
        (path/o).write_bytes(b'')

def names(path, found): return [f.relative_to(path).as_posix() for f in found]

def test_get_files(tmp_path):
    touch(tmp_path, 'b/2.jpg', 'b/1.JPG', 'a/c/3.png', 'a/4.txt', '5.jpg', '.hidden/6.jpg', 'b/.7.jpg')
    def found(*a, **kw): return names(tmp_path, get_files(tmp_path, *a, **kw))
    assert found() == ['5.jpg', 'a/4.txt', 'a/c/3.png', 'b/1.JPG', 'b/2.jpg']
    assert found('.jpg') == ['5.jpg', 'b/1.JPG', 'b/2.jpg'] and found(['.png', '.TXT']) == ['a/4.txt', 'a/c/3.png']
    assert found(recurse=False) == ['5.jpg'] and found(folders='a') == ['a/4.txt', 'a/c/3.png']
    assert found(folders=['a', 'b'], recurse=False) == ['a/4.txt', 'b/1.JPG', 'b/2.jpg'] and found('.gif') == []
    assert names(tmp_path, get_image_files(tmp_path)) == ['5.jpg', 'a/c/3.png', 'b/1.JPG', 'b/2.jpg']

def test_links_do_not_lead_out(tmp_path):
    touch(tmp_path, 'out/1.jpg', 'in/2.jpg')
    top = tmp_path/'in'
    (top/'file.jpg').symlink_to(tmp_path/'out/1.jpg')
    (top/'folder').symlink_to(tmp_path/'out')
    (top/'round').symlink_to(top)
    (top/'same.jpg').symlink_to(top/'2.jpg')
    (top/'gone.jpg').symlink_to(tmp_path/'nowhere.jpg')
    assert names(top, get_files(top)) == ['2.jpg', 'same.jpg']

@pytest.mark.parametrize('path, kw', [('none', {}), ('a/1.jpg', {}), ('.', dict(folders=['a', 'b']))])
def test_no_folder(tmp_path, path, kw):
    touch(tmp_path, 'a/1.jpg')
    with pytest.raises(NotADirectoryError, match='is not a folder'): get_files(tmp_path/path, **kw)

def test_mnist_folder(tmp_path):
    path = mnist_folder(tmp_path/'new'/'digits', 30, 12)
    assert sorted(o.name for o in path.iterdir()) == ['train', 'valid'] and list(path.parent.iterdir()) == [path]
    train = get_image_files(path/'train')
    x, y, _, yv = get_data()
    assert len(train) == 30 and len(get_image_files(path/'valid')) == 12
    assert {int(f.stem): int(f.parent.name) for f in train} == dict(enumerate(y[:30].tolist()))
    assert sorted(int(f.parent.name) for f in get_image_files(path/'valid')) == sorted(yv[:12].tolist())
    for f in train:
        with Image.open(f) as o: im, kind = np.asarray(o), o.format
        assert im.shape == (28, 28) and kind == 'JPEG'
        assert abs(im/255 - x[int(f.stem)].view(28, 28).numpy()).mean() < .03
    again = mnist_folder(tmp_path/'again', 30, 12)
    assert [f.read_bytes() for f in get_files(again)] == [f.read_bytes() for f in get_files(path)]

def test_mnist_folder_refuses(tmp_path):
    touch(tmp_path, 'mine/thesis.txt')
    with pytest.raises(FileExistsError, match='mine is there'): mnist_folder(tmp_path/'mine', 10, 10)
    assert names(tmp_path, get_files(tmp_path)) == ['mine/thesis.txt']
    for kw in (dict(n_train=9), dict(n_valid=10_001), dict(n_train=50_001)):
        with pytest.raises(ValueError, match=next(iter(kw))): mnist_folder(tmp_path/'new', **kw)
    assert not (tmp_path/'new').exists()

def test_a_break_leaves_nothing(tmp_path, monkeypatch):
    def breaks(folder, x, y):
        folder.mkdir(parents=True)
        raise KeyboardInterrupt
    monkeypatch.setattr(files, '_jpegs', breaks)
    with pytest.raises(KeyboardInterrupt): mnist_folder(tmp_path/'digits', 10, 10)
    assert list(tmp_path.iterdir()) == []


# --- a server that can misbehave

def tgz(*members):
    "The bytes of an archive of (name, bytes) or TarInfo"
    f = io.BytesIO()
    with tarfile.open(fileobj=f, mode='w:gz') as tar:
        for m in members:
            data = b'' if isinstance(m, tarfile.TarInfo) else m[1]
            if not isinstance(m, tarfile.TarInfo):
                m = tarfile.TarInfo(m[0])
                m.size = len(data)
            tar.addfile(m, io.BytesIO(data))
    return f.getvalue()

def special(name, kind, link=''):
    m = tarfile.TarInfo(name)
    m.type, m.linkname = kind, link
    return m

NOISE = np.random.default_rng(0).bytes(700_000)   # so that it can't be packed
GOOD = tgz(('pics/a/1.jpg', NOISE[:350_000]), ('pics/b/2.jpg', NOISE[350_000:]))

@contextmanager
def serving(body=GOOD, ranges=True, cut=(), kind='application/gzip', status=200, length=True, delay=0):
    "A server of `body`: (address, log). `cut`: for each request in turn after how many bytes it hangs up"
    log, cuts = [], list(cut)
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *a): pass
        def do_GET(self):
            asked = self.headers.get('Range')
            log.append(asked)
            threading.Event().wait(delay)
            start = int(asked[6:-1]) if asked and ranges else 0
            data = body[start:]
            self.send_response(206 if start else status)
            self.send_header('Content-Type', kind)
            if length: self.send_header('Content-Length', str(len(data)))
            self.end_headers()
            n = cuts.pop(0) if cuts else None
            self.wfile.write(data[:n])
            self.close_connection = True
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f'http://127.0.0.1:{server.server_port}/pics.tgz', log
    finally:
        server.shutdown()
        server.server_close()

def archive(url, body=GOOD): return Archive(url, len(body), sha256(body).hexdigest())

def whole(folder):
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in get_files(folder)} == {
        'a/1.jpg': NOISE[:350_000], 'b/2.jpg': NOISE[350_000:]}

def visible(dest): return sorted(o.name for o in dest.glob('*') if o.name[0] != '.')

def test_untar_data(tmp_path):
    with serving() as (url, log):
        got = untar_data(archive(url), tmp_path/'new')
        assert got == tmp_path/'new/pics' and whole(got) and log == ['bytes=0-']
        assert untar_data(archive(url), tmp_path/'new') == got and len(log) == 1
        assert visible(tmp_path/'new') == ['pics', 'pics.tgz']

def test_two_folders_in_an_archive(tmp_path):
    body = tgz(('a/1.jpg', NOISE[:350_000]), ('b/2.jpg', NOISE[350_000:]))
    with serving(body) as (url, _): assert whole(untar_data(archive(url, body), tmp_path))

def test_a_cut_transfer_goes_on(tmp_path):
    with serving(cut=[300_000]) as (url, log): assert whole(untar_data(archive(url), tmp_path))
    assert log == ['bytes=0-', 'bytes=262144-']

def test_cut_again_and_again(tmp_path):
    with serving(cut=[2**18, 2**18]) as (url, log):
        with pytest.raises(ConnectionError, match='524,288 of .* bytes came'): untar_data(archive(url), tmp_path)
        assert visible(tmp_path) == ['pics.tgz.part']
        assert whole(untar_data(archive(url), tmp_path)) and log[-1] == 'bytes=524288-'

def test_a_server_that_ignores_range(tmp_path):
    with serving(cut=[300_000], ranges=False) as (url, log): assert whole(untar_data(archive(url), tmp_path))
    assert log == ['bytes=0-', 'bytes=262144-']

def test_no_length(tmp_path):
    with serving(length=False) as (url, _): assert whole(untar_data(archive(url), tmp_path))

@pytest.mark.parametrize('kw, says', [
    (dict(kind='text/html; charset=utf-8', body=b'<h1>not found</h1>'), 'a web page came'),
    (dict(status=404), '404'), (dict(status=503), '503'),
    (dict(body=GOOD + b'!'), 'are offered, not'), (dict(body=GOOD + b'!'*500_000, length=False), 'bytes came'),
    (dict(body=bytes(len(GOOD))), 'hash')])
def test_something_else_comes(tmp_path, kw, says):
    with serving(**kw) as (url, _):
        with pytest.raises(ConnectionError, match=says) as e: untar_data(archive(url), tmp_path)
    for o in (url, str(tmp_path/'pics'), str(tmp_path/'pics.tgz'), f'{len(GOOD):,}', 'by hand'): assert o in str(e.value)
    assert not (tmp_path/'pics').exists() and not (tmp_path/'pics.tgz').exists()
    with serving() as (url, _): assert whole(untar_data(archive(url), tmp_path))

def test_offline(tmp_path):
    with serving() as (url, _): gone = archive(url)
    with pytest.raises(ConnectionError, match="can't be reached.*by hand"): untar_data(gone, tmp_path)
    (tmp_path/'pics.tgz').write_bytes(b'another file')
    with pytest.raises(ConnectionError, match='which is there, but has another SHA-256'): untar_data(gone, tmp_path)
    assert (tmp_path/'pics.tgz').read_bytes() == b'another file'
    (tmp_path/'pics.tgz').write_bytes(GOOD)
    assert whole(untar_data(gone, tmp_path))

def test_part_of_another_archive(tmp_path):
    (tmp_path/'pics.tgz.part').write_bytes(bytes(len(GOOD) + 1))
    with serving() as (url, _): assert whole(untar_data(archive(url), tmp_path))
    other = tmp_path/'other'
    other.mkdir()
    (other/'pics.tgz.part').write_bytes(bytes(300_000))   # the hash finds it; the second try begins anew
    with serving() as (url, log): assert whole(untar_data(archive(url), other)) and log == ['bytes=300000-', 'bytes=0-']

BAD = {'..': tgz(('a/1.jpg', b'1'), ('../out.txt', b'1')), 'absolute': tgz(('/minifast-out.txt', b'1')),
       'drive': tgz(('C:\\out.txt', b'1')),
       'link': tgz(special('a', tarfile.SYMTYPE, '/etc')), 'link up': tgz(special('a/b', tarfile.SYMTYPE, '../../..')),
       'hard link': tgz(special('a', tarfile.LNKTYPE, '/etc/hostname')),
       'through a link': tgz(special('a', tarfile.SYMTYPE, '..'), ('a/out.txt', b'1')),
       'fifo': tgz(special('a', tarfile.FIFOTYPE)), 'device': tgz(special('a', tarfile.CHRTYPE)),
       'bomb': tgz(('a', bytes(30_000_000))), 'many': tgz(*[(f'a/{i}', b'') for i in range(60_000)]),
       'not an archive': NOISE, 'half': GOOD[:len(GOOD)//2]}

@pytest.mark.parametrize('body', BAD.values(), ids=BAD)
def test_refused(tmp_path, body):
    dest = tmp_path/'in/dest'
    with serving(body) as (url, _):
        with pytest.raises(ValueError, match='pics.tgz'): untar_data(archive(url, body), dest)
    assert visible(dest) == ['pics.tgz'] and [o.name for o in dest.glob('.*')] == ['.pics.tgz.lock']
    assert visible(tmp_path) == ['in'] and visible(tmp_path/'in') == ['dest'] and not Path('/minifast-out.txt').exists()

def test_left_by_a_killed_process(tmp_path):
    touch(tmp_path, '.unpacking-pics-x1y2/whole/pics/a/1.jpg')
    with serving() as (url, _): assert whole(untar_data(archive(url), tmp_path))
    assert not list(tmp_path.glob('.unpacking*'))

@pytest.mark.parametrize('what', ['https://x.org/a.tgz', ('https://x.org/a.tgz', 1, 'f')])
def test_not_known_beforehand(what):
    with pytest.raises(TypeError, match='give one of URLs'): untar_data(what)

def test_without_pooch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pooch', None)
    with serving() as (url, _):
        with pytest.raises(ImportError, match=r"pip install 'minifast\[files\]'"): untar_data(archive(url), tmp_path)

def test_two_processes_get_it_whole(tmp_path):
    ctx = multiprocessing.get_context('spawn')
    with serving(delay=.5) as (url, log), ctx.Pool(2) as pool:
        got = pool.map(partial(untar_data, dest=tmp_path), [archive(url)]*2, chunksize=1)
    assert got == [tmp_path/'pics']*2 and whole(got[0]) and len(log) == 1

def test_urls():
    known = [o for k, o in vars(URLs).items() if k.isupper()]
    assert known and all(o.url.startswith('https://') and o.size > 0 and len(o.sha256) == 64 for o in known)
