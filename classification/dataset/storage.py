"""Where bytes come from: files, members of zip archives, tar shards, memory."""

from __future__ import annotations

import os
import threading
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .errors import DataError
from .shard_store import ShardStore

MARK = ".zip@/"  # archive.zip@/inner/path
READ_ERRORS = (OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def split_zip_path(path: str) -> tuple[str, str] | None:
    """('archive.zip', 'inner/path') for ``archive.zip@/inner/path``, None for a plain file."""
    archive, mark, inner = path.partition(MARK)
    return (archive + ".zip", inner) if mark else None


def open_zip(path: str | Path) -> zipfile.ZipFile:
    """Open an archive for reading.

    Raises:
        DataError: it is missing or not a readable zip file.
    """
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise DataError(f"zip archive {path} does not exist") from None
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(
            f"zip archive {path} cannot be read ({error}): is it complete? "
            f"'python -m zipfile -t {path}' tests it"
        ) from error


class Reader:
    """Reads plain files and zip members; every process opens its own archive handles, lazily.

    Args:
        shards: paths are places in these tar shards.
    """

    def __init__(self, shards: ShardStore | None = None) -> None:
        self._shards = shards
        self._reset()

    def _reset(self) -> None:
        self._archives: dict[str, zipfile.ZipFile] = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def __reduce__(self) -> tuple:
        return Reader, (self._shards,)  # handles and locks stay in their process

    def _archive(self, path: str) -> zipfile.ZipFile:
        if self._pid != os.getpid():  # forked: handles share the parent's file position
            self._reset()
        with self._lock:
            if path not in self._archives:
                self._archives[path] = open_zip(path)
            return self._archives[path]

    def read(self, path: str) -> bytes:
        """The bytes of a file or member; raises one of READ_ERRORS or DataError."""
        if self._shards is not None:
            return self._shards.read(path)
        parts = split_zip_path(path)
        if parts is None:
            return Path(path).read_bytes()
        return self._archive(parts[0]).read(parts[1])

    def size(self, path: str) -> int:
        """The number of bytes that `read` returns, without reading them."""
        if self._shards is not None:
            return self._shards.size(path)
        parts = split_zip_path(path)
        if parts is None:
            return os.stat(path).st_size
        return self._archive(parts[0]).getinfo(parts[1]).file_size


def available_memory() -> int | None:
    """Bytes of memory that can be taken without swapping, None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


class ByteCache:
    """The undecoded bytes of the images ``shard::num_shards``, in one buffer shared with workers.

    Args:
        reader: source.
        paths: all N images of the split.
        shard: which of the ``num_shards`` interleaved parts to hold.
        copies: how many processes of this machine hold a part, for the memory check.
        option: what asked for the cache, named in errors.
        progress: show a progress bar.

    Raises:
        DataError: the bytes do not fit into memory.
    """

    def __init__(
        self,
        reader: Reader,
        paths: Sequence[str],
        shard: int = 0,
        num_shards: int = 1,
        *,
        copies: int = 1,
        option: str = "the cache",
        progress: bool = False,
    ):
        self.shard, self.num_shards = shard, num_shards
        held = [paths[i] for i in range(shard, len(paths), num_shards)]
        with ThreadPoolExecutor(8) as pool:
            sizes = list(pool.map(lambda path: _size_or_zero(reader, path), held))
            need, free = sum(sizes), available_memory()
            if free is not None and need * copies > free:
                raise DataError(
                    f"{option} would hold {need * copies / 2**30:.1f} GiB of images in memory, "
                    f"{free / 2**30:.1f} GiB are available: turn it off "
                    "(--opts DATA.IMG_ON_MEMORY False, or --cache-mode no with --zip)"
                )
            self._ends = np.cumsum([0, *sizes], dtype=np.int64)
            self._buffer = np.empty(need, dtype=np.uint8)
            jobs = pool.map(lambda i: self._fill(reader, held[i], i), range(len(held)))
            for _ in tqdm(jobs, option, len(held), unit="img", disable=not progress, leave=False):
                pass

    def _fill(self, reader: Reader, path: str, i: int) -> None:
        begin, end = self._ends[i], self._ends[i + 1]
        if begin == end:
            return
        try:
            data = reader.read(path)
        except READ_ERRORS:
            data = b""  # decoding fails later and is counted as a corrupt image
        data = data[: end - begin].ljust(end - begin, b"\0")
        self._buffer[begin:end] = np.frombuffer(data, dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def get(self, index: int) -> bytes | None:
        """The bytes of image ``index`` of the whole split, None when this part does not hold it."""
        if index % self.num_shards != self.shard:
            return None
        i = index // self.num_shards
        return self._buffer[self._ends[i] : self._ends[i + 1]].tobytes()


def _size_or_zero(reader: Reader, path: str) -> int:
    try:
        return reader.size(path)
    except READ_ERRORS:
        return 0
