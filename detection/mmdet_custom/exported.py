"""Detections of an exported file against those of PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from mmdet.core.evaluation.bbox_overlaps import bbox_overlaps

SCORE = 0.3  # detections from here on are compared
SCORE_BOUND = 0.01  # accepted difference of scores
IOU_BOUND = 0.99  # least overlap of boxes, and of masks


class Detection(NamedTuple):
    """One detection: class, (x1, y1, x2, y2) in pixels, score, and (H, W) mask or None."""

    label: int
    box: np.ndarray
    score: float
    mask: np.ndarray | None


def detections(result: Any, threshold: float) -> list[Detection]:
    """What a result of mmdet has above a score."""
    boxes, masks = result if isinstance(result, tuple) else (result, None)
    return [
        Detection(
            label, row[:4], float(row[4]), None if masks is None else np.asarray(masks[label][i])
        )
        for label, rows in enumerate(boxes)
        for i, row in enumerate(np.asarray(rows, np.float64))
        if row[4] > threshold
    ]


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks; 1 for two empty ones."""
    union = np.logical_or(one, other).sum()
    return float(np.logical_and(one, other).sum() / union) if union else 1.0


def nearest(wanted: Detection, found: Sequence[Detection]) -> tuple[Detection | None, float]:
    """The detection of the same class with the largest overlap of boxes, and that overlap."""
    same = [other for other in found if other.label == wanted.label]
    if not same:
        return None, 0.0
    overlaps = bbox_overlaps(wanted.box[None], np.stack([other.box for other in same]))[0]
    best = int(overlaps.argmax())
    return same[best], float(overlaps[best])


def compare(expected: Any, got: Any) -> tuple[str, bool]:
    """Whether two results have the same detections above `SCORE`.

    Every detection of either must have one of its class in the other, with a box and a mask that
    overlap by `IOU_BOUND` and a score that differs by less than `SCORE_BOUND`.

    Returns:
        a sentence about the differences, and whether they are small enough.
    """
    counts, boxes, masks, scores, pixels = [], [1.0], [1.0], [0.0], [0.0]
    for one, other in ((expected, got), (got, expected)):
        strong = detections(one, SCORE)
        counts.append(len(strong))
        others = detections(other, SCORE - SCORE_BOUND)
        for wanted in strong:
            match, box_overlap = nearest(wanted, others)
            boxes.append(box_overlap)
            if match is None:
                continue
            scores.append(abs(match.score - wanted.score))
            pixels.append(float(np.abs(match.box - wanted.box).max()))
            if wanted.mask is not None:
                masks.append(overlap(wanted.mask, match.mask))
    agrees = min(boxes) >= IOU_BOUND and min(masks) >= IOU_BOUND and max(scores) <= SCORE_BOUND
    with_masks = isinstance(expected, tuple)
    text = (
        f"{counts[0]} detections above {SCORE} in PyTorch, {counts[1]} in the file; "
        f"{'same' if agrees else 'DIFFERENT'}: scores differ by at most {max(scores):.1e}, boxes "
        f"by {max(pixels):.1e} pixels (least overlap {min(boxes):.4f})"
        + (f", masks overlap by at least {min(masks):.4f}" if with_masks else "")
    )
    return text, agrees
