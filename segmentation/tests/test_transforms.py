"""ToMask and MapillaryHack."""

from __future__ import annotations

import mmseg_custom  # noqa: F401
import numpy as np
import pytest
import torch
from mmcv.parallel import DataContainer, collate
from mmcv.utils import build_from_cfg
from mmseg.datasets.builder import PIPELINES
from mmseg.datasets.pipelines import Compose
from mmseg.datasets.pipelines.formatting import DefaultFormatBundle
from mmseg_custom.datasets.transforms import MAPILLARY_TO_CITYSCAPES, MapillaryHack, ToMask


def sample(labels):
    labels = np.asarray(labels, np.uint8)
    image = np.zeros((*labels.shape, 3), np.uint8)
    return dict(img=image, gt_semantic_seg=labels, seg_fields=["gt_semantic_seg"])


def test_one_mask_per_class():
    results = ToMask()(sample([[3, 3, 0], [255, 7, 3]]))
    assert results["gt_labels"].data.tolist() == [0, 3, 7]
    assert results["gt_labels"].data.dtype == torch.int64
    masks = results["gt_masks"].data
    assert masks.dtype == torch.uint8
    assert masks.tolist() == [
        [[0, 0, 1], [0, 0, 0]],
        [[1, 1, 0], [0, 0, 1]],
        [[0, 0, 0], [0, 1, 0]],
    ]


def test_only_ignored_pixels_give_no_mask():
    results = ToMask()(sample(np.full((4, 5), 255)))
    assert results["gt_labels"].data.shape == (0,)
    assert results["gt_masks"].data.shape == (0, 4, 5)


def test_another_ignore_index():
    results = ToMask(ignore_index=0)(sample([[0, 1]]))
    assert results["gt_labels"].data.tolist() == [1]


def test_mmsegs_bundle_follows_unchanged():
    """Upstream replaces DefaultFormatBundle for the masks' sake; here it stays mmseg's."""
    assert PIPELINES.get("DefaultFormatBundle") is DefaultFormatBundle
    keys = ["img", "gt_semantic_seg", "gt_masks", "gt_labels"]
    steps = [
        dict(type="ToMask"),
        dict(type="DefaultFormatBundle"),
        dict(type="Collect", keys=keys, meta_keys=[]),
    ]
    pipeline = Compose(steps)
    batch = collate([pipeline(sample([[0, 1], [1, 1]])), pipeline(sample([[255, 2], [2, 255]]))], 2)
    assert all(isinstance(batch[key], DataContainer) for key in keys)
    assert batch["img"].data[0].shape == (2, 3, 2, 2)
    assert batch["gt_semantic_seg"].data[0].shape == (2, 1, 2, 2)
    assert [len(labels) for labels in batch["gt_labels"].data[0]] == [2, 1]
    assert [masks.shape for masks in batch["gt_masks"].data[0]] == [(2, 2, 2), (1, 2, 2)]


def test_mapillary_ids():
    results = MapillaryHack()(sample([np.arange(256)]))
    mapped = results["gt_semantic_seg"][0]
    assert mapped.dtype == np.uint8
    for source in range(256):
        assert mapped[source] == MAPILLARY_TO_CITYSCAPES.get(source, 255)


@pytest.mark.parametrize("name", ["ToMask", "MapillaryHack"])
def test_registered_and_printable(name):
    step = build_from_cfg(dict(type=name), PIPELINES)
    assert repr(step).startswith(f"{name}(")
