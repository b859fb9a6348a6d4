"""A folder with the shards that were fetched last, bounded in size, shared by all processes.

Processes agree through file locks, which end with their process, so a kill leaves nothing behind
that the next run does not clean up. A shard is opened for each image and closed again: whatever is
in the folder can be removed at any time to make room, and is fetched again if it is needed again.
(webdataset.cache serves its own streams: it looks at the limit every half minute, and two processes
that miss the same shard download it twice.)
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from .download import cannot_write, download
from .errors import DataError

WAIT = 600.0  # seconds that a process waits for room which other processes' downloads take up
_TRIES = 20  # times that a shard may be evicted between its arrival and the reading
_PART = ".part"


def default_folder() -> Path:
    """Where shards go when DATA.SHARD_CACHE is not set."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "internimage" / "shards"


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock on ``path``; yields False when it is taken and ``wait`` is False."""
    import fcntl  # not on Windows, where the other data sets are read all the same

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    held = False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        except BlockingIOError:
            pass
        yield held
    finally:
        if held:  # a worker forked meanwhile has the descriptor too: closing would not be enough
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


class ShardCache:
    """Files by URL.

    Args:
        folder: where they go; made if it is missing.
        limit: bytes that they may take up together.

    Raises:
        DataError: the folder cannot be written.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit
        try:
            (folder / "locks").mkdir(parents=True, exist_ok=True)
            with self._room():
                pass
        except OSError as error:
            raise cannot_write(folder, error) from error

    def path(self, url: str, version: str = "") -> Path:
        """Where a file is or will be; another ``version`` (sha256) is another file."""
        key = hashlib.sha256(f"{url}\n{version}".encode()).hexdigest()[:16]
        return self.folder / f"{key}-{url.rpartition('/')[2][-80:]}"

    def lock_of(self, path: Path) -> Path:
        return self.folder / "locks" / path.name

    def _room(self) -> contextlib.AbstractContextManager:
        return locked(self.folder / "locks" / "room")

    def fetch(self, url: str, size: int | None = None, sha256: str = "") -> Path:
        """The local file of ``url``, downloaded unless it is there.

        Raises:
            DataError: see `download`; or the file does not fit into the cache.
        """
        path = self.path(url, sha256)
        try:
            os.utime(path)  # it is used now: what is evicted is something else
            return path
        except FileNotFoundError:
            pass
        try:
            with locked(self.lock_of(path)):
                if not path.is_file():
                    self._download(url, path, size, sha256)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        return path

    def _download(self, url: str, path: Path, size: int | None, sha256: str) -> None:
        part = path.with_name(path.name + _PART)

        def reserve(count: int) -> None:
            self._make_room(url, count, part)

        try:
            download(url, part, size=size, sha256=sha256, reserve=reserve)
            with self._room():  # who adds up the sizes must find it under one of its names
                os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def read(self, url: str, size: int, sha256: str, offset: int, count: int) -> bytes:
        """``count`` bytes of a file from ``offset`` on; the file is fetched if need be."""
        path = self.path(url, sha256)
        for _ in range(_TRIES):
            try:
                with path.open("rb", buffering=0) as file:
                    os.utime(file.fileno())  # the order of eviction
                    return os.pread(file.fileno(), count, offset)
            except FileNotFoundError:
                self.fetch(url, size, sha256)
        raise DataError(
            f"{url} is removed from the cache {self.folder} as fast as it is fetched: raise "
            "DATA.SHARD_CACHE_GB"
        )

    # ---------------------------------------------------------------------------------- eviction
    def _make_room(self, url: str, need: int, part: Path) -> None:
        """Evict until ``need`` bytes are free, and take them: ``part`` becomes that long."""
        if need > self.limit:
            raise DataError(
                f"{url} has {need / 2**30:.2f} GiB, more than DATA.SHARD_CACHE_GB "
                f"{self.limit / 2**30:g}"
            )
        deadline = time.monotonic() + WAIT
        while True:
            with self._room():
                if self._evict(self.limit - need, part):
                    os.truncate(part, need)
                    return
            if time.monotonic() > deadline:
                raise DataError(
                    f"no room for {url} in the cache {self.folder}: downloads of other processes "
                    f"take up all of DATA.SHARD_CACHE_GB {self.limit / 2**30:g}"
                )
            time.sleep(0.2)

    def _evict(self, limit: int, own: Path) -> bool:
        """Remove the files used longest ago until at most ``limit`` bytes are left."""
        whole, total = [], 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if not entry.is_file() or entry.path == str(own):
                        continue
                    if entry.name.endswith(_PART) and self._is_left_over(Path(entry.path)):
                        continue
                    state = entry.stat()
                    total += state.st_size
                    if not entry.name.endswith(_PART):
                        whole.append((state.st_mtime_ns, state.st_size, entry.path))
        for _, size, path in sorted(whole):
            if total <= limit:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= size
        return total <= limit

    def _is_left_over(self, part: Path) -> bool:
        """Remove a download whose process is gone."""
        lock = self.lock_of(part.with_name(part.name.removesuffix(_PART)))
        with locked(lock, wait=False) as abandoned:
            if abandoned:
                part.unlink(missing_ok=True)
        return abandoned


class FetchAhead:
    """Fetches shards in a thread of the main process before the workers ask for them.

    A shard that cannot be fetched is left to the worker that needs it, which says so.
    """

    def __init__(self, cache: ShardCache):
        self._cache = cache
        self._wanted: list[tuple[str, int, str]] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def ask(self, shards: Sequence[tuple[str, int, str]]) -> None:
        """Fetch (url, size, sha256) one after the other; what was asked before is dropped."""
        with self._changed:
            self._wanted = list(shards)
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="fetch-ahead")
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted)
                shard = self._wanted.pop(0)
            with contextlib.suppress(DataError):
                self._cache.fetch(*shard)
