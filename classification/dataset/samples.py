"""A list of images with labels, held compactly so that worker processes can share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .shard_store import ShardStore


class PackedStrings(Sequence):
    """A read-only list of strings in one byte buffer.

    A Python list of millions of strings is copied page by page into every forked worker, because
    reading a string changes its reference count; a buffer is not.
    """

    def __init__(self, strings: Sequence[str]):
        encoded = [s.encode("utf-8", "surrogateescape") for s in strings]
        self._ends = np.cumsum([0] + [len(e) for e in encoded], dtype=np.int64)
        self._buffer = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    @classmethod
    def from_arrays(cls, buffer: np.ndarray, ends: np.ndarray) -> PackedStrings:
        """The list whose `arrays` these are."""
        packed = cls([])
        packed._buffer, packed._ends = buffer, ends
        return packed

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All bytes (uint8), and where each string ends (N + 1 int64, from 0)."""
        return self._buffer, self._ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]
        begin, end = self._ends[index], self._ends[index + 1]
        return self._buffer[begin:end].tobytes().decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    Attributes:
        count: how many there are.
        names: one readable name per class, or None.
        index: class folder -> label, or None where labels come from a list.
    """

    count: int
    names: list[str] | None = None
    index: dict[str, int] | None = None


@dataclass(frozen=True)
class Samples:
    """One split of a data set.

    Attributes:
        paths: N files, members of zip archives as ``archive.zip@/inner/path``, or places in tar
            shards as `ShardStore` reads them.
        labels: (N,) int64.
        metadata: (N, 7) float32, four temporal and three spatial numbers per image, or None.
        shards: what holds the images of --dataset webdataset, else None.
    """

    paths: Sequence[str]
    labels: np.ndarray
    metadata: np.ndarray | None = None
    shards: ShardStore | None = None

    def __len__(self) -> int:
        return len(self.paths)
