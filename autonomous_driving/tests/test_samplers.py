"""Parts of a data set for several processes: contiguous, whole, cut between scenes."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from ad_common.datasets.samplers import DistributedSampler, part_bounds


class Frames:
    """A data set of so many frames."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length


@pytest.mark.parametrize("length", [0, 1, 5, 8, 17])
@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_every_frame_comes_once_and_in_order(length: int, parts: int) -> None:
    samplers = [DistributedSampler(Frames(length), parts, rank) for rank in range(parts)]
    taken = [list(sampler) for sampler in samplers]
    assert [index for part in taken for index in part] == list(range(length))
    assert [len(sampler) for sampler in samplers] == [len(part) for part in taken]
    sizes = [len(part) for part in taken]
    assert max(sizes) - min(sizes) <= 1


def test_without_a_process_group_it_takes_all() -> None:
    assert list(DistributedSampler(Frames(4))) == [0, 1, 2, 3]


def test_scenes_stay_whole() -> None:
    dataset = Frames(20)
    dataset.sequence_starts = [0, 3, 8, 14]
    parts = [list(DistributedSampler(dataset, 2, rank)) for rank in range(2)]
    assert [part[0] for part in parts] == [0, 8]
    assert part_bounds(20, 2, dataset.sequence_starts) == [0, 8, 20]
    assert part_bounds(20, 3, dataset.sequence_starts) == [0, 8, 14, 20]


def test_fewer_scenes_than_processes_leave_some_without_frames() -> None:
    bounds = part_bounds(6, 4, [0])
    assert bounds[0] == 0 and bounds[-1] == 6
    assert sorted(b - a for a, b in itertools.pairwise(bounds)) == [0, 0, 0, 6]


def test_results_of_parts_make_the_whole_list(tmp_path, monkeypatch) -> None:
    """The files that two processes write, read by the first one."""
    from ad_common.apis import testing

    monkeypatch.setattr(testing, "dist", SimpleNamespace(barrier=lambda: None))
    monkeypatch.setattr(testing, "get_dist_info", lambda: (1, 2))
    assert testing.collect(["c"], tmp_path / "parts") is None
    monkeypatch.setattr(testing, "get_dist_info", lambda: (0, 2))
    assert testing.collect(["a", "b"], tmp_path / "parts") == ["a", "b", "c"]
    assert not (tmp_path / "parts").exists()
