"""The weight and input recipe gives the values that its definition states."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import recipe
import torch


def test_recipe_weights_have_the_stated_values():
    key = "backbone.patch_embed.conv1.weight"
    assert zlib.crc32(key.encode()) == 1373569919
    first = recipe.weight_of(key, (8, 3, 3, 3)).flatten()[:4].tolist()
    stated = [0.058313265442848206, 0.31676971912384033, -0.04485171660780907, 0.30240049958229065]
    assert first == stated

    key = "patch_embed.conv1.weight"
    assert zlib.crc32(key.encode()) == 1493194088
    first = recipe.weight_of(key, (8, 3, 3, 3)).flatten()[:4].tolist()
    stated = [0.08769246190786362, 0.2895832061767578, 0.1302395612001419, -0.0376204177737236]
    assert first == stated


def test_recipe_images_have_the_stated_values():
    images = recipe.images()
    assert images.shape == (2, 3, 128, 160)
    assert images.flatten()[:4].tolist() == [
        -2.426504135131836,
        -2.646963596343994,
        -0.8930652737617493,
        -2.2551581859588623,
    ]
    assert images.sum().item() == pytest.approx(6493.692008793345, abs=1e-8)


def test_recipe_targets_are_ellipses_inside_their_boxes():
    targets = recipe.targets()
    assert [boxes.tolist() for boxes in targets["gt_bboxes"]] == [
        [[12, 10, 70, 64], [50, 40, 140, 120], [90, 6, 150, 50]],
        [[20, 24, 100, 90], [60, 10, 130, 60]],
    ]
    assert [labels.tolist() for labels in targets["gt_labels"]] == [[0, 3, 4], [2, 1]]
    for boxes, masks in zip(targets["gt_bboxes"], targets["gt_masks"], strict=True):
        for (x1, y1, x2, y2), mask in zip(boxes.tolist(), masks.masks, strict=True):
            y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
            u = (x - (x1 + x2) / 2) / ((x2 - x1) / 2)
            v = (y - (y1 + y2) / 2) / ((y2 - y1) / 2)
            np.testing.assert_array_equal(mask, u**2 + v**2 <= 1)


def test_recipe_restores_the_default_dtype():
    with recipe.float64():
        assert torch.get_default_dtype() == torch.float64
    assert torch.get_default_dtype() == torch.float32


def test_recipe_comparison_notices_every_kind_of_difference():
    values = torch.arange(12.0)
    recipe.assert_close({"a": values}, {"a@5": np.float32([0, 5, 10])}, atol=0)
    for actual, message in (
        ({}, "a is missing"),
        ({"a": values[:9]}, "shape"),
        ({"a": values + 1e-3}, "differs"),
        ({"a": values * float("nan")}, "differs"),
    ):
        with pytest.raises(AssertionError, match=message):
            recipe.assert_close(actual, {"a@5": np.float32([0, 5, 10])}, atol=1e-5)
