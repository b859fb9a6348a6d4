"""Reading images out of tar shards, here or on a server, by their place in the shard."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import IO

import numpy as np

from .errors import DataError
from .shard_cache import FetchAhead, ShardCache
from .tar_index import TarIndex

_PLACE = re.compile(r"(.+?)@(\d+)\+(\d+)/", re.DOTALL)


class ShardPaths(Sequence):
    """The images of an index as strings ``<shard>@<offset>+<size>/<member>``, made when asked for.

    Args:
        urls: path or URL of each shard of the index.
    """

    def __init__(self, index: TarIndex, urls: Sequence[str], ends: np.ndarray):
        self._index, self._urls, self._ends = index, urls, ends

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> str:
        i = range(len(self))[i]
        index = self._index
        url = self._urls[int(np.searchsorted(self._ends, i, side="right"))]
        return f"{url}@{index.offsets[i]}+{index.sizes[i]}/{index.names[i]}"


@lru_cache(maxsize=64)
def _opened(path: str) -> IO[bytes]:
    """A shard that stays open; `os.pread` does not move it, so forked workers can share it."""
    return open(path, "rb", buffering=0)


class ShardStore:
    """The shards of one split.

    Args:
        index: what lies where.
        urls: path or URL of each shard.
        cache: where shards of a server go; None when the shards are files.
    """

    def __init__(self, index: TarIndex, urls: Sequence[str], cache: ShardCache | None = None):
        self.shards, self.urls, self.cache = index.shards, list(urls), cache
        self.ends = np.cumsum([shard.samples for shard in index.shards])  # images up to each shard
        self.paths = ShardPaths(index, self.urls, self.ends)
        self._number = {url: i for i, url in enumerate(self.urls)}

    def read(self, path: str) -> bytes:
        """The bytes of one of `paths`.

        Raises:
            OSError, EOFError: the bytes are not there.
            DataError: a shard is missing or cannot be fetched.
        """
        found = _PLACE.match(path)
        url, offset, count = found[1], int(found[2]), int(found[3])
        if self.cache is None:
            try:
                file = _opened(url)
            except FileNotFoundError:
                raise DataError(f"shard {url} has been removed") from None
            data = os.pread(file.fileno(), count, offset)
        else:
            shard = self.shards[self._number[url]]
            data = self.cache.read(url, shard.bytes, shard.sha256, offset, count)
        if len(data) < count:
            raise EOFError(f"{count} bytes at {offset} are not there, the shard has become shorter")
        return data

    @staticmethod
    def size(path: str) -> int:
        """The number of bytes that `read` returns, without reading them."""
        return int(_PLACE.match(path)[3])

    def check_room(self, window: int, processes: int) -> None:
        """Check that the shards in use at one time fit into the cache.

        Args:
            window: shards that a process mixes.
            processes: how many use this cache at once.

        Raises:
            DataError: they do not; they would be fetched anew for almost every image.
        """
        if self.cache is None:
            return
        sizes = sorted((shard.bytes for shard in self.shards), reverse=True)
        need = sum(sizes[: (window + 2) * processes])  # one that ends, one that is fetched ahead
        if need > self.cache.limit:
            raise DataError(
                f"{processes} process(es) that mix {window} shards each need a cache of "
                f"{need / 2**30:.3g} GiB: raise DATA.SHARD_CACHE_GB {self.cache.limit / 2**30:g}, "
                "or lower DATA.SHARD_WINDOW"
            )

    def fetch_ahead(self) -> FetchAhead | None:
        """What fetches shards in the background, None where nothing is to be fetched."""
        return FetchAhead(self.cache) if self.cache is not None else None

    def remote(self, number: int) -> tuple[str, int, str]:
        """(url, size, sha256) of a shard."""
        shard = self.shards[number]
        return self.urls[number], shard.bytes, shard.sha256
