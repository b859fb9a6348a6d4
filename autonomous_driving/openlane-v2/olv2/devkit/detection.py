"""Detection part of the OpenLane-V2 score: lanes by Fréchet distance, traffic elements by IoU.

Source: OpenLane-V2 (arXiv 2304.10440), section 4.1.
"""

from __future__ import annotations

import numpy as np
from ad_common.metrics.average_precision import average_precision, precision_recall
from ad_common.metrics.distance import box_iou, frechet_distances
from ad_common.metrics.matching import match_nearest

LANE_THRESHOLDS = (1.0, 2.0, 3.0)  # metres
ELEMENT_THRESHOLD = 0.75  # 1 - IoU
FAR = 1024.0


def lane_distances(gts: list[np.ndarray], preds: list[np.ndarray]) -> np.ndarray:
    """Fréchet distances in metres, made smaller for lanes far from the car.

    A lane whose nearest point is d metres away counts max(0.5, 1 - 0.005 d) of the distance. Pairs
    whose ends alone are further apart than every threshold get `FAR`: the Fréchet distance is at
    least that of the ends, so no hit is lost.

    Args:
        gts: (n, 3) points of each true lane, ego frame.
        preds: (m, 3) points of each predicted lane.

    Returns:
        (num_gt, num_pred).
    """
    distances = np.full((len(gts), len(preds)), FAR)
    if not distances.size:
        return distances
    nearest = np.array([np.linalg.norm(line, axis=1).min() for line in gts])
    relax = np.maximum(0.5, 1 - 0.005 * nearest)  # (G,)
    gt_ends, pred_ends = (np.array([line[[0, -1]] for line in lines]) for lines in (gts, preds))
    apart = np.linalg.norm(gt_ends[:, None] - pred_ends[None], axis=-1).max(axis=-1)
    rows, columns = np.nonzero(relax[:, None] * apart < max(LANE_THRESHOLDS))
    sizes = np.array([(len(gts[i]), len(preds[j])) for i, j in zip(rows, columns, strict=True)])
    for size in np.unique(sizes.reshape(-1, 2), axis=0):  # usually one: all lanes have 11 points
        same = (sizes == size).all(axis=1)
        a, b = rows[same], columns[same]
        lines_a = np.stack([gts[i] for i in a]).astype(np.float64)
        lines_b = np.stack([preds[j] for j in b]).astype(np.float64)
        distances[a, b] = frechet_distances(lines_a, lines_b) * relax[a]
    return distances


def element_distances(gts: np.ndarray, preds: np.ndarray) -> np.ndarray:
    """1 - IoU of boxes (k, 4) and (q, 4), x1 y1 x2 y2 in pixels of the front camera."""
    return 1 - box_iou(gts, preds)


class PooledPrecision:
    """Average precision at one threshold over the predictions of all frames."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.num_gt = 0
        self.hits: list[np.ndarray] = []
        self.scores: list[np.ndarray] = []

    def add(self, distances: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Counts a frame: (num_gt, num_pred) and (num_pred,); returns what `match_nearest` does."""
        matched = match_nearest(distances, scores, self.threshold)
        self.num_gt += len(distances)
        self.hits.append(matched >= 0)
        self.scores.append(np.asarray(scores, dtype=np.float64))
        return matched

    def value(self) -> float:
        """11-point average precision; 1 where there is nothing to find and nothing was found."""
        scores = np.concatenate([np.zeros(0), *self.scores])
        if not self.num_gt and not len(scores):
            return 1.0
        hits = np.concatenate([np.zeros(0, dtype=bool), *self.hits])
        order = np.argsort(-scores, kind="stable")
        return average_precision(*precision_recall(hits[order], self.num_gt), mode="11points")
