"""Which images a process takes in an epoch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


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
