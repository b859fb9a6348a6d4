"""Which frames a process takes in a test: contiguous parts. In training they are mmdet's groups."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

from mmcv.runner import get_dist_info
from torch.utils.data import Dataset, Sampler


def part_bounds(length: int, parts: int, starts: Sequence[int] | None = None) -> list[int]:
    """Where to cut a list into contiguous parts of nearly the same length.

    Args:
        length: of the list.
        parts: how many.
        starts: positions where a part may begin, for example the first frames of scenes; None for
            anywhere. A part may be empty where there are fewer of them than parts.

    Returns:
        parts + 1 positions, from 0 to `length`; part i is [bounds[i], bounds[i + 1]).
    """
    even = [length * part // parts for part in range(parts + 1)]
    if starts is None:
        return even
    allowed = sorted({0, *starts, length})

    def nearest(position: int) -> int:
        right = bisect.bisect_left(allowed, position)
        return min(allowed[max(right - 1, 0) : right + 1], key=lambda one: abs(one - position))

    return [nearest(position) for position in even]


class DistributedSampler(Sampler[int]):
    """A contiguous part of the data set for every process, in order, each frame exactly once.

    So every process sees whole stretches of video. A data set with `sequence_starts`, the positions
    of the first frames of its scenes, is cut only there: a model that carries something from frame
    to frame then computes with several processes what it computes with one.

    Args:
        dataset: what is sampled.
        num_replicas: number of processes; None: those of the process group.
        rank: this process; None: that of the process group.
    """

    def __init__(
        self, dataset: Dataset, num_replicas: int | None = None, rank: int | None = None
    ) -> None:
        own_rank, size = get_dist_info()
        rank = own_rank if rank is None else rank
        bounds = part_bounds(
            len(dataset), num_replicas or size, getattr(dataset, "sequence_starts", None)
        )
        self.indices = range(bounds[rank], bounds[rank + 1])

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


SAMPLERS = {  # settings of published configs, and the only sampler that each may name
    "shuffler_sampler": "DistributedGroupSampler",
    "nonshuffler_sampler": "DistributedSampler",
}
