"""GridMask: what it removes, when, and that a seed decides."""

from __future__ import annotations

import pytest
import torch
from ad_common.grid_mask import GridMask


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def runs(line: list[bool]) -> list[int]:
    """Lengths of the runs of equal values, without the cut ones at both ends."""
    lengths, start = [], 0
    for i in range(1, len(line) + 1):
        if i == len(line) or line[i] != line[start]:
            lengths.append(i - start)
            start = i
    return lengths[1:-1]


def test_mode_1_removes_equal_rectangles():
    several = 0
    for seed in range(20):
        stays = GridMask(mode=1).draw(40, 60, seeded(seed))
        removed_rows, removed_columns = (~stays).any(1), (~stays).any(0)
        assert torch.equal(~stays, removed_rows[:, None] & removed_columns)
        lengths = runs(removed_rows.tolist())
        several += len(lengths) > 2
        assert len(set(lengths[::2])) <= 1 and len(set(lengths[1::2])) <= 1
        if len(lengths) > 1:
            assert abs(lengths[0] - lengths[1]) <= 1  # ratio 0.5
    assert several >= 3


def test_mode_0_removes_the_rest():
    assert torch.equal(
        GridMask(mode=0).draw(30, 40, seeded(3)), ~GridMask(mode=1).draw(30, 40, seeded(3))
    )


def test_stripes_of_one_direction():
    rows = GridMask(use_w=False).draw(30, 40, seeded(1))
    assert torch.equal(rows, rows[:, :1].expand(-1, 40)) and 0 < rows.float().mean() < 1
    columns = GridMask(use_h=False).draw(30, 40, seeded(1))
    assert torch.equal(columns, columns[:1].expand(30, -1))


def test_the_ratio_is_the_share_of_the_stripes():
    for seed in range(10):
        mask = GridMask(use_w=False, ratio=0.25).draw(400, 4, seeded(seed))
        lengths = runs(mask[:, 0].tolist())
        if len(lengths) > 3:
            period = lengths[0] + lengths[1]
            assert min(lengths) == max(1, int(period * 0.25 + 0.5))


def test_a_turned_grid():
    turned = GridMask(rotate=90)
    assert any(
        not torch.equal(m, m.any(1)[:, None] & m.any(0))
        for m in (turned.draw(40, 40, seeded(s)) for s in range(5))
    )


def test_all_cameras_get_the_same_mask_and_the_rest_stays():
    images = torch.rand(6, 3, 32, 48, generator=seeded(0)) + 1
    masked = GridMask(mode=1).train()(images, seeded(4))
    stays = masked[0, 0] != 0
    assert 0 < stays.float().mean() < 1
    assert torch.equal(masked, images * stays)


def test_noise_instead_of_zeros():
    images = torch.full((2, 3, 32, 48), 9.0)
    masked = GridMask(offset=True).train()(images, seeded(4))
    stays = GridMask().draw(32, 48, _after_rand(4))
    assert (masked[:, :, stays] == 9).all()
    assert masked[:, :, ~stays].abs().max() <= 1 and masked[:, :, ~stays].std() > 0.3


def _after_rand(seed: int) -> torch.Generator:
    generator = seeded(seed)
    torch.rand((), generator=generator)
    return generator


def test_a_seed_decides():
    images = torch.ones(1, 3, 32, 48)
    mask = GridMask(mode=1).train()
    torch.manual_seed(5)
    first, second = mask(images), mask(images)
    torch.manual_seed(5)
    assert torch.equal(mask(images), first)
    assert not torch.equal(first, second)


def test_only_in_training_and_as_often_as_asked():
    images = torch.ones(1, 1, 16, 16)
    assert GridMask().eval()(images) is images
    mask = GridMask(prob=0.7).train()
    generator = seeded(0)
    share = sum(mask(images, generator) is not images for _ in range(500)) / 500
    assert 0.63 < share < 0.77
    assert GridMask(prob=0).train()(images) is images


def test_options_that_mean_nothing():
    with pytest.raises(ValueError, match="mode of GridMask is 2"):
        GridMask(mode=2)
    with pytest.raises(ValueError, match=r"prob in \[0, 1\].*got 1.5"):
        GridMask(prob=1.5)
