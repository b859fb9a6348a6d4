"""Merging the detections of several scales and flips of the same image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.ops import batched_nms
from mmdet.core import bbox_mapping_back
from torch import Tensor

__all__ = ["merge_augmented"]

DEFAULT_NMS = {"type": "nms", "iou_threshold": 0.7}

Detections = tuple[Tensor, Tensor]


def merge_augmented(
    runs: Sequence[Sequence[Detections]],
    img_metas: Sequence[Sequence[Mapping[str, Any]]],
    test_cfg: Mapping[str, Any],
    rescale: bool,
) -> list[Detections]:
    """Maps the boxes of all runs back, removes duplicates per class, keeps the best.

    A DETR needs no suppression in one run, but the same object appears once per run.

    Args:
        runs: per augmentation, per image: (n, 5) corners in pixels of the augmented image and
            score, (n,) labels.
        img_metas: likewise: ``img_shape``, ``scale_factor``, ``flip``, ``flip_direction``.
        test_cfg: ``max_per_img`` and ``nms``, by default IoU 0.7.
        rescale: give pixels of the original image instead of the first augmentation's.

    Returns:
        Per image (n, 5) and (n,), best first.
    """
    merged = []
    for image in range(len(runs[0])):
        boxes, scores, labels = [], [], []
        for run, metas in zip(runs, img_metas):
            detections, run_labels = run[image]
            meta = metas[image]
            boxes.append(
                bbox_mapping_back(
                    detections[:, :4],
                    meta["img_shape"],
                    meta["scale_factor"],
                    meta["flip"],
                    meta.get("flip_direction") or "horizontal",
                )
            )
            scores.append(detections[:, 4])
            labels.append(run_labels)
        all_labels = torch.cat(labels)
        kept, indices = batched_nms(
            torch.cat(boxes), torch.cat(scores), all_labels, dict(test_cfg.get("nms", DEFAULT_NMS))
        )
        limit = test_cfg.get("max_per_img", len(kept))
        kept, kept_labels = kept[:limit], all_labels[indices][:limit]
        if not rescale:
            scale = kept.new_tensor(img_metas[0][image]["scale_factor"])
            kept = torch.cat((kept[:, :4] * scale, kept[:, 4:]), dim=1)
        merged.append((kept, kept_labels))
    return merged
