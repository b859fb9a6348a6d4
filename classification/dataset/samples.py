"""A list of images with labels, held compactly so that worker processes can share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


class PackedStrings(Sequence):
    """A read-only list of strings in one byte buffer.

    A Python list of millions of strings is copied page by page into every forked worker, because
    reading a string changes its reference count; a buffer is not.
    """

    def __init__(self, strings: Sequence[str]):
        encoded = [s.encode("utf-8", "surrogateescape") for s in strings]
        self._ends = np.cumsum([0] + [len(e) for e in encoded], dtype=np.int64)
        self._buffer = np.frombuffer(b"".join(encoded), dtype=np.uint8)

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
        paths: N files, or members of zip archives as ``archive.zip@/inner/path``.
        labels: (N,) int64.
        metadata: (N, 7) float32, four temporal and three spatial numbers per image, or None.
    """

    paths: PackedStrings
    labels: np.ndarray
    metadata: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)
