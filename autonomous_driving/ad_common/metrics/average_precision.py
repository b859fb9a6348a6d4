"""Average precision from a curve of recall and precision."""

from __future__ import annotations

import numpy as np

MODES = ("area", "11points")


def average_precision(recall: np.ndarray, precision: np.ndarray, mode: str = "area") -> float:
    """The area under the curve made monotone, or its mean over eleven recalls.

    Args:
        recall: (n,) after each prediction in order of falling score; may be empty.
        precision: (n,).
        mode: "area" (all points, as VOC 2010) or "11points" (the largest precision at a recall
            of at least 0, 0.1, ... 1, as VOC 2007).

    Raises:
        ValueError: the shapes differ, or the mode is unknown.
    """
    recall = np.asarray(recall, dtype=np.float64)
    precision = np.asarray(precision, dtype=np.float64)
    if recall.ndim != 1 or recall.shape != precision.shape:
        raise ValueError(
            f"recall of shape {recall.shape} with precision of shape {precision.shape}: expected "
            "(n,) for both"
        )
    if mode == "area":
        recall = np.concatenate(([0.0], recall, [1.0]))
        precision = np.concatenate(([0.0], precision, [0.0]))
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        return float((np.diff(recall) * envelope[1:]).sum())
    if mode == "11points":
        if not len(recall):
            return 0.0
        levels = np.arange(11) / 10  # 0.1 + 0.2 would give 0.30000000000000004
        reached = recall[None] >= levels[:, None]  # (11, n)
        return float(np.where(reached, precision[None], 0).max(axis=1).mean())
    raise ValueError(f"mode {mode!r} of average precision: use one of {', '.join(MODES)}")


def precision_recall(hits: np.ndarray, num_gt: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision after each prediction.

    Args:
        hits: (n,) whether each is a hit, in order of falling score.
        num_gt: number of ground truths; with 0 the recall stays 0.

    Returns:
        (n,) recall, (n,) precision.
    """
    true = np.cumsum(np.asarray(hits, dtype=np.float64))
    return true / max(num_gt, np.finfo(np.float64).eps), true / np.arange(1, len(true) + 1)
