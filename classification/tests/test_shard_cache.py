"""Fetching shards from a server: broken connections, wrong files, the bounded cache."""

import contextlib
import hashlib
import multiprocessing
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from image_folders import decode
from shard_sets import FileServer, make_shards, tar_settings

from dataset import DataError, build_loader
from dataset import download as download_module
from dataset import shard_cache as cache_module
from dataset.download import NotOnServer, download
from dataset.shard_cache import FetchAhead, ShardCache, default_folder, locked

DATA = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(download_module, "PAUSE", 0)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "web").mkdir()
    server = FileServer(tmp_path / "web")
    yield server
    server.shutdown()


def put(server, name, data=DATA):
    path = server.folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(data)
    return f"{server.url}/{name}"


# ---------------------------------------------------------------------------------- downloading
@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_connection_is_taken_up_again(server, tmp_path, ranges):
    url = put(server, "a.tar")
    server.ranges = ranges
    server.faults["a.tar"] = [("cut", 300_000), 503, ("cut", 100_000), ("cut", 0)]
    reserved = []
    download(url, tmp_path / "a", size=len(DATA), sha256=SHA256, reserve=reserved.append)
    assert (tmp_path / "a").read_bytes() == DATA
    wanted = [None, *(["bytes=300000-"] * 2), *(["bytes=400000-"] * 2)]
    if not ranges:  # every answer begins anew
        wanted = [None, "bytes=300000-", "bytes=300000-", "bytes=100000-", None]
    assert [header for _, header in server.requests] == wanted
    assert set(reserved) == {len(DATA)}


@pytest.mark.parametrize(
    "faults, message, requests",
    [
        ([404], "HTTP 404 Not Found", 1),
        ([403], "HTTP 403 Forbidden", 1),
        ([503] * 9, "8 attempts failed, the last with: HTTP 503 Service Unavailable", 8),
        ([("cut", 10)] * 9, r"8 attempts .*: the connection was cut after 80 of 1048576 bytes", 8),
    ],
)
def test_what_cannot_be_downloaded_is_named(server, tmp_path, faults, message, requests):
    url = put(server, "a.tar")
    server.faults["a.tar"] = faults
    with pytest.raises(DataError, match=f"{url} cannot be downloaded[:,] {message}") as caught:
        download(url, tmp_path / "a")
    assert len(server.requests) == requests
    assert isinstance(caught.value, NotOnServer) == ("HTTP 40" in message)


def test_no_server(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(DataError, match=f"http://127.0.0.1:{port}/a.tar .*[Rr]efused.*start the "):
        download(f"http://127.0.0.1:{port}/a.tar", tmp_path / "a")


def test_a_wrong_file_is_not_kept(server, tmp_path):
    url = put(server, "a.tar")
    with pytest.raises(DataError, match=f"has {len(DATA)} bytes, the index of the shards says 7"):
        download(url, tmp_path / "a", size=7)
    assert len(server.requests) == 1
    cache = ShardCache(tmp_path / "cache", 10 << 20)
    with pytest.raises(DataError, match=f"sha256 is {SHA256}, the index .* says abc"):
        cache.fetch(url, len(DATA), "abc")
    assert [path.name for path in cache.folder.iterdir()] == ["locks"]


def test_other_schemes_are_webdatasets(tmp_path, monkeypatch):
    import webdataset

    def opened(url, mode, bufsize):
        assert url == "bucket://x/a.tar"
        return open(tmp_path / "source", "rb")

    (tmp_path / "source").write_bytes(DATA)
    monkeypatch.setitem(webdataset.gopen_schemes, "bucket", opened)
    download("bucket://x/a.tar", tmp_path / "a", size=len(DATA), sha256=SHA256)
    assert (tmp_path / "a").read_bytes() == DATA
    with pytest.raises(DataError, match="1048576 of 1048577 bytes"):
        download("bucket://x/a.tar", tmp_path / "a", size=len(DATA) + 1)
    with pytest.raises(DataError, match="1048576 bytes came instead of 7"):
        download("bucket://x/a.tar", tmp_path / "a", size=7)
    with pytest.raises(DataError, match="no gopen handler"):
        download("nowhere://x/a.tar", tmp_path / "a")
    mark = tmp_path / "mark"
    with pytest.raises(DataError, match="commands are not run"):
        download(f"pipe:touch {mark} #://x", tmp_path / "a")
    assert not mark.exists()


def test_a_full_disk_is_not_tried_again(server):
    url = put(server, "a.tar")
    with pytest.raises(DataError, match=r"is on a full disk .*DATA\.SHARD_CACHE DIR"):
        download(url, Path("/dev/full"))
    assert len(server.requests) == 1


# ------------------------------------------------------------------------------------- the cache
def used(folder):
    """Bytes of all files, while nothing is evicted or begun."""
    sizes = {}
    with locked(folder / "locks" / "room"):
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # a finished download was renamed
                if path.is_file():
                    sizes[path.stat().st_ino] = path.stat().st_size
    return sum(sizes.values())


def test_the_cache_keeps_what_was_used_last_within_its_limit(server, tmp_path):
    cache = ShardCache(tmp_path / "cache", 3 * len(DATA))
    urls = [put(server, f"{i}.tar", bytes([i]) + DATA[1:]) for i in range(5)]

    def read(i):
        time.sleep(0.01)  # a file system's clock is coarse
        assert cache.read(urls[i], len(DATA), "", 0, 2) == bytes([i, 1])
        assert used(cache.folder) <= cache.limit

    for i in (0, 1, 2, 0, 3, 0, 4):
        read(i)
    held = [i for i in range(5) if cache.path(urls[i]).is_file()]
    assert held == [0, 3, 4] and len(server.requests) == 5
    read(1)
    assert not cache.path(urls[3]).is_file() and len(server.requests) == 6


def test_what_does_not_fit_is_said(server, tmp_path, monkeypatch):
    url = put(server, "a.tar")
    with pytest.raises(DataError, match=f"{url} has 0.00 GiB, more than DATA.SHARD_CACHE_GB"):
        ShardCache(tmp_path / "cache", len(DATA) - 1).fetch(url)
    # another process's download takes up the room
    monkeypatch.setattr(cache_module, "WAIT", 0.3)
    cache = ShardCache(tmp_path / "cache", len(DATA))
    other = cache.path("http://x/b.tar")
    part = other.with_name(other.name + ".part")
    part.write_bytes(b"x")
    with locked(cache.lock_of(other)), pytest.raises(DataError, match="no room for"):
        cache.fetch(url)
    assert part.exists()
    cache.fetch(url)  # that process is gone: what it left behind is removed
    assert not part.exists() and cache.path(url).is_file()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/cache cannot be written .*DATA\.SHARD_CACHE DIR"):
        ShardCache(tmp_path / "file" / "cache", 1)


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "internimage" / "shards"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/x")
    assert str(default_folder()) == "/home/x/.cache/internimage/shards"


def _fetch(folder, url, queue):
    queue.put(ShardCache(folder, 10 << 20).fetch(url, len(DATA), SHA256).read_bytes() == DATA)


def test_processes_download_a_shard_once(server, tmp_path):
    url = put(server, "a.tar")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [
        context.Process(target=_fetch, args=(tmp_path / "cache", url, queue)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    assert [queue.get(timeout=20) for _ in processes] == [True] * 4
    for process in processes:
        process.join()
    assert len(server.requests) == 1


def test_a_lock_is_given_back_although_a_forked_process_lives(tmp_path):
    context = multiprocessing.get_context("fork")
    with locked(tmp_path / "lock") as held:
        assert held
        child = context.Process(target=time.sleep, args=(30,))
        child.start()
        with locked(tmp_path / "lock", wait=False) as second:
            assert not second
    with locked(tmp_path / "lock", wait=False) as again:
        assert again
    child.kill()
    child.join()


def test_a_shard_removed_while_it_is_wanted_is_fetched_again(server, tmp_path, monkeypatch):
    url = put(server, "a.tar")
    cache = ShardCache(tmp_path / "cache", 10 << 20)
    fetch, left = cache.fetch, [2]

    def unlucky(*args):
        path = fetch(*args)
        if left[0]:
            left[0] -= 1
            path.unlink()

    monkeypatch.setattr(cache, "fetch", unlucky)
    assert cache.read(url, len(DATA), SHA256, 5, 3) == b"\5\6\7"
    assert len(server.requests) == 3
    left[0] = 99
    cache.path(url, SHA256).unlink()
    with pytest.raises(DataError, match="as fast as it is fetched: raise DATA.SHARD_CACHE_GB"):
        cache.read(url, len(DATA), SHA256, 5, 3)


def test_fetching_ahead_drops_what_is_no_longer_wanted(tmp_path):
    class Slow:
        def __init__(self):
            self.fetched, self.go, self.busy = [], threading.Event(), threading.Event()

        def fetch(self, *shard):
            self.busy.set()
            assert self.go.wait(10)
            self.fetched.append(shard)
            if shard == ("c",):
                raise DataError("not there")

    cache = Slow()
    ahead = FetchAhead(cache)
    ahead.ask([("a",), ("b",)])
    assert cache.busy.wait(10)
    ahead.ask([("c",), ("d",)])
    cache.go.set()
    deadline = time.monotonic() + 10
    while len(cache.fetched) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert cache.fetched == [("a",), ("c",), ("d",)]  # the worker that needs c reports it


# ------------------------------------------------------------------------------------- together
def test_training_from_a_server_within_a_small_cache(tmp_path):
    root = make_shards(tmp_path, train=20, per_shard=4)  # 15 shards
    server = FileServer(root)
    size = (root / "train/shard-000000.tar").stat().st_size
    limit = 5 * size
    opts = ("DATA.SHARD_CACHE_GB", limit / 2**30, "DATA.NUM_WORKERS", 2, "DATA.SHARD_WINDOW", 2)
    loaders = build_loader(tar_settings(tmp_path, server.url, *opts))
    folder, most = tmp_path / "cache", 0
    for epoch in range(2):
        loaders.set_epoch(epoch)
        seen = []
        for images, _ in loaders.train:
            seen += decode(images)
            most = max(most, used(folder))
        assert sorted(seen) == [(c, n) for c in range(3) for n in range(20)]
    assert size < most <= limit
    server.shutdown()


def test_a_cache_too_small_for_the_window_is_refused(tmp_path):
    root = make_shards(tmp_path, train=20, per_shard=4)
    server = FileServer(root)
    size = (root / "train/shard-000000.tar").stat().st_size
    opts = ("DATA.SHARD_CACHE_GB", 7.5 * size / 2**30, "DATA.SHARD_WINDOW")
    assert build_loader(tar_settings(tmp_path, server.url, *opts, 5))
    message = r"1 process\(es\) that mix 6 shards each need a cache of .*raise .*SHARD_CACHE_GB"
    with pytest.raises(DataError, match=message):
        build_loader(tar_settings(tmp_path, server.url, *opts, 6))
    assert build_loader(tar_settings(tmp_path, root, *opts, 6))  # files need no cache
    server.shutdown()


def test_shards_from_a_server_need_no_webdataset(tmp_path, monkeypatch):
    server = FileServer(make_shards(tmp_path))
    monkeypatch.setitem(sys.modules, "webdataset", None)
    assert build_loader(tar_settings(tmp_path, server.url)).num_classes == 3
    server.shutdown()
