"""Which images a process takes in an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Sampler

if TYPE_CHECKING:
    from .shard_store import ShardStore


class ShardSampler(Sampler[int]):
    """Shuffles within the images that this process holds in memory.

    The split is dealt out as ``index % num_shards``; the processes that hold the same shard (one
    per node) take turns within it. Every image is taken at most once per epoch, all processes take
    equally many, and the order depends on (seed, epoch) alone.

    Args:
        length: images in the split.
        shard: the shard that this process holds.
        num_shards: number of shards.
        part: which of the processes that hold this shard this is.
        num_parts: how many processes hold it.
        seed: seed of the order.
    """

    def __init__(
        self,
        length: int,
        shard: int,
        num_shards: int,
        part: int = 0,
        num_parts: int = 1,
        seed: int = 0,
    ):
        self.length, self.seed, self.epoch = length, seed, 0
        self.shard, self.num_shards = shard, num_shards
        self.part, self.num_parts = part, num_parts

    def set_epoch(self, epoch: int) -> None:
        """Choose the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // (self.num_shards * self.num_parts)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        held = torch.arange(self.shard, self.length, self.num_shards)
        order = held[torch.randperm(len(held), generator=generator)]
        return iter(order[self.part :: self.num_parts][: len(self)].tolist())


class TarSampler(Sampler[int]):
    """The order of images in tar shards: few shards at a time, mixed.

    The shards of an epoch are put in random order, and the images of each shard too. The line of
    all images is cut into one piece per process, equally long in training (images that are left
    over change with the epoch). Within its piece a process mixes images over a window of
    ``window`` shards that moves on steadily: shard i of the piece gives its images, at random,
    while the window's centre is less than half a window away. A piece of at most ``window`` shards
    is mixed as a whole. Each shard is needed for one stretch of the epoch only.

    The order depends on (seed, epoch, number of processes) alone. Validation takes the shards as
    they are, without anything left over.

    Args:
        store: the shards.
        window: how many shards are mixed.
        rank: this process.
        size: number of processes.
        seed: seed of the order.
        shuffle: training; else validation.
    """

    AHEAD = 2  # shards fetched before their first image is needed

    def __init__(
        self,
        store: ShardStore,
        window: int,
        rank: int = 0,
        size: int = 1,
        *,
        seed: int = 0,
        shuffle: bool = True,
    ):
        self.store, self.window, self.rank, self.size = store, window, rank, size
        self.seed, self.shuffle, self.epoch = seed & 0xFFFFFFFFFFFFFFFF, shuffle, 0
        self._ahead = store.fetch_ahead()
        total = int(store.ends[-1])
        if shuffle:
            share = total // size
            self._piece = rank * share, (rank + 1) * share
        else:
            self._piece = total * rank // size, total * (rank + 1) // size

    def set_epoch(self, epoch: int) -> None:
        """Choose the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._piece[1] - self._piece[0]

    def __iter__(self) -> Iterator[int]:
        order = self._mixed() if self.shuffle else np.arange(*self._piece)
        shards = np.searchsorted(self.store.ends, order, side="right")
        starts = np.full(len(self.store.ends), -1)
        starts[shards[::-1]] = np.arange(len(shards))[::-1]  # where each shard comes in
        starts = np.sort(starts[starts >= 0])
        for step, begin in enumerate(starts):
            if self._ahead is not None:
                coming = shards[starts[step : step + 1 + self.AHEAD]]
                self._ahead.ask([self.store.remote(number) for number in coming])
            end = starts[step + 1] if step + 1 < len(starts) else len(order)
            yield from order[begin:end].tolist()

    def _mixed(self) -> np.ndarray:
        key = self.seed, self.epoch
        ends = self.store.ends
        counts = np.diff(ends, prepend=0)
        line = np.random.default_rng([*key, 0]).permutation(len(ends))  # all shards
        behind = np.cumsum(counts[line])
        first, last = np.searchsorted(behind, np.subtract(self._piece, (0, 1)), side="right")
        pieces = []
        for place in range(first, last + 1) if len(self) else ():
            shard = line[place]
            images = np.random.default_rng([*key, 1, shard]).permutation(counts[shard])
            before = behind[place] - counts[shard]  # images in the line before this shard
            mine = images[max(0, self._piece[0] - before) : self._piece[1] - before]
            pieces.append(mine + ends[shard] - counts[shard])
        if not pieces:
            return np.empty(0, np.int64)
        position = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
        spread = np.random.default_rng([*key, 2, self.rank]).random(len(position)) - 0.5
        if self.window < len(pieces):
            time = np.abs(position + self.window * spread + 0.5)  # folded back at both ends
            time = len(pieces) - np.abs(len(pieces) - time)
        else:
            time = spread
        return np.concatenate(pieces)[np.argsort(time, kind="stable")]
