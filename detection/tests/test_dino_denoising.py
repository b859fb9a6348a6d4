"""Denoising queries: what they contain, who may look at whom, and that nothing leaks."""

from __future__ import annotations

from typing import Any

import mmdet_custom  # noqa: F401  registers the models
import pytest
import recipe
import torch
from mmdet_custom.models.utils import CdnQueryGenerator
from mmdet_custom.models.utils.query_denoising import (
    attention_mask,
    build_dn_generator,
    normalise,
)
from torch import Tensor, nn

CPU = torch.device("cpu")
NO_BOXES = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))


def generator(label: float = 0.5, box: float = 1.0, queries: int = 12) -> CdnQueryGenerator:
    return CdnQueryGenerator(
        {"label": label, "box": box}, {"dynamic": True, "num_dn_queries": queries}
    )


def embedding(num_classes: int = 5) -> nn.Embedding:
    """Class k is embedded as the constant k + 1, so that contents can be read."""
    values = torch.arange(1.0, num_classes + 1)[:, None].repeat(1, 8)
    return nn.Embedding.from_pretrained(values)


def draw(gen: CdnQueryGenerator, counts: list[int], matching: int = 7, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    corners = [torch.rand(n, 2) * 40 for n in counts]
    boxes = [torch.cat((c, c + 10 + torch.rand_like(c) * 40), 1) for c in corners]
    labels = [torch.arange(n) % 5 for n in counts]
    metas = [recipe.single_meta(100, 100) for _ in counts]
    return boxes, labels, gen(boxes, labels, metas, embedding(), matching)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("pad_size", [0, 6, 30])
@pytest.mark.parametrize("matching", [1, 9])
def test_mask_hides_copies_from_matching_queries_and_groups_from_each_other(
    groups: int, pad_size: int, matching: int
) -> None:
    mask = attention_mask(pad_size, matching, groups, CPU)
    assert mask.shape == (pad_size + matching, pad_size + matching)
    assert mask.dtype == torch.bool
    assert mask[pad_size:, :pad_size].all()
    assert not mask[:, pad_size:].any()
    assert not mask.diagonal().any()
    copies = mask[:pad_size, :pad_size]
    assert torch.equal(copies, copies.T)
    width = pad_size // groups
    for g in range(groups):
        own = copies[g * width : (g + 1) * width]
        assert own.sum() == width * (pad_size - width)


def test_positive_copies_stay_within_half_a_box_and_negative_ones_leave_it() -> None:
    boxes, _, queries = draw(generator(label=0, queries=300), [3, 1])
    assert queries.num_groups == 100
    assert queries.pad_size == 600
    copies = queries.bbox_query.sigmoid().view(2, 100, 2, 3, 4)
    for image, corners in enumerate(boxes):
        count = len(corners)
        noised = copies[image, :, :, :count]
        half = torch.cat(
            (noised[..., :2] - noised[..., 2:] / 2, noised[..., :2] + noised[..., 2:] / 2), -1
        )
        true = corners / 100
        sides = (true[:, 2:] - true[:, :2]).repeat(1, 2) / 2
        moved = (half - true).abs() / sides
        inside = (half > 0.003) & (half < 0.997)  # not clamped to the image, nor by the sigmoid
        crossed = (noised[..., 2:] < 0.003).any(-1, keepdim=True)
        valid = inside & ~crossed
        assert (moved[:, 0][valid[:, 0]] <= 1 + 1e-3).all()
        assert (moved[:, 1][valid[:, 1]] >= 1 - 1e-3).all()
        assert (moved[:, 1][valid[:, 1]] <= 2 + 1e-3).all()
    assert not queries.bbox_query.view(2, 100, 2, 3, 4)[1, :, :, 1:].any()  # padding


def test_labels_change_with_half_the_configured_probability() -> None:
    torch.manual_seed(0)
    labels = torch.arange(5).repeat(4000)
    drawn = generator(label=1.0).noise_labels(labels, 5)
    changed = (drawn != labels).float().mean().item()
    assert changed == pytest.approx(0.5 * 4 / 5, abs=0.02)  # one draw in five hits the old class
    assert drawn.unique().tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(generator(label=0).noise_labels(labels, 5), labels)


def test_no_noise_gives_the_boxes_back() -> None:
    boxes, _, queries = draw(generator(label=0, box=0), [2])
    expected = normalise(boxes[0], recipe.single_meta(100, 100))
    torch.testing.assert_close(queries.bbox_query[0].sigmoid().view(-1, 2, 4)[3], expected)


def test_positive_indices_name_the_copies_of_each_box() -> None:
    _, labels, queries = draw(generator(label=0), [3, 2])
    for image in range(2):
        positions, origin = queries.positive_indices(len(labels[image]), CPU)
        assert len(positions) == queries.num_groups * len(labels[image])
        contents = queries.label_query[image, positions, 0] - 1
        assert torch.equal(contents, labels[image][origin].float())


@pytest.mark.parametrize(
    ("counts", "groups", "pad_size"),
    [([3, 2], 4, 24), ([40, 1], 1, 80), ([0, 3], 4, 24), ([0, 0], 12, 0)],
)
def test_number_of_groups(counts: list[int], groups: int, pad_size: int) -> None:
    _, _, queries = draw(generator(), counts)
    assert (queries.num_groups, queries.pad_size) == (groups, pad_size)
    assert queries.attn_mask.shape == (pad_size + 7, pad_size + 7)


def matching_outputs(model: nn.Module, boxes: Tensor, seed: int) -> list[Tensor]:
    head = model.bbox_head
    torch.manual_seed(seed)
    metas = [recipe.single_meta(64, 96)]
    feats = model.extract_feat(recipe.images(1, 64, 96))
    denoising = head.make_denoising(feats, metas, [boxes], [torch.arange(len(boxes))])
    scores, corners, enc_scores, enc_boxes = head(feats, metas, denoising)
    start = denoising.pad_size
    return [scores[:, :, start:], corners[:, :, start:], enc_scores, enc_boxes]


def test_ground_truth_cannot_reach_the_matching_queries() -> None:
    with recipe.float64(), torch.no_grad():
        model = recipe.build_detector("dino").train()
        one = matching_outputs(model, torch.tensor([[5.0, 5, 50, 60], [20, 10, 90, 30]]), seed=0)
        other = matching_outputs(model, torch.tensor([[1.0, 2, 3, 60]]), seed=5)
        for a, b in zip(one, other):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_groups_cannot_reach_each_other() -> None:
    with recipe.float64(), torch.no_grad():
        model = recipe.build_detector("dino").train()
        head = model.bbox_head
        metas = [recipe.single_meta(64, 96)]
        feats = model.extract_feat(recipe.images(1, 64, 96))
        boxes, labels = torch.tensor([[5.0, 5, 50, 60], [20, 10, 90, 30]]), torch.tensor([0, 3])
        denoising = head.make_denoising(feats, metas, [boxes], [labels])
        width = denoising.pad_size // denoising.num_groups
        before = head(feats, metas, denoising)[0]
        denoising.label_query[:, :width] += 1
        after = head(feats, metas, denoising)[0]
        torch.testing.assert_close(after[:, :, width:], before[:, :, width:], rtol=0, atol=1e-12)
        assert (after[:, :, :width] - before[:, :, :width]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("cfg", "error", "message"),
    [
        ({"type": "DnQueryGenerator"}, KeyError, "only one is 'CdnQueryGenerator'"),
        ({"with_rp_noise": True}, TypeError, "with_rp_noise"),
        ({"noise_scale": {"lable": 0.5}}, TypeError, "did you mean 'label'"),
        ({"noise_scale": {"label": 3}}, ValueError, r"label must be within \[0, 2\]"),
        ({"group_cfg": {"dynamic": False}}, ValueError, "num_groups must be an integer >= 1"),
        ({"group_cfg": {"num_dn_queries": 0}}, ValueError, "num_dn_queries must be an integer"),
    ],
)
def test_refused_settings(cfg: dict[str, Any], error: type[Exception], message: str) -> None:
    defaults = {"noise_scale": {"label": 0.5}, "group_cfg": {"num_dn_queries": 10}}
    with pytest.raises(error, match=message):
        build_dn_generator({**defaults, **cfg})


def test_fixed_number_of_groups() -> None:
    gen = CdnQueryGenerator({}, {"dynamic": False, "num_groups": 3})
    assert [gen.num_groups(count) for count in (0, 1, 50)] == [3, 3, 3]
