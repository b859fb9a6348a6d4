"""F-score of 3-D lanes as curves over x, whatever their direction.

Every lane is read at whole metres of x in front of and behind the car. Lanes are paired by the
cheapest assignment; a pair is a hit when three quarters of a lane run close to the other one.

Source: Persformer/OpenLane (arXiv 2203.11089), section 5; OpenLane-V2 (arXiv 2304.10440).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

SAMPLES = np.arange(-50.0, 50.0)  # metres ahead
CLOSE = 1.5  # metres; also the distance where only one of two lanes is there
PART = 0.75  # of a lane's samples that must be close


class LaneFScore:
    """Counts lanes over the frames of a data set."""

    def __init__(self) -> None:
        self.num_gt = self.num_pred = self.found = self.right = 0

    def add(self, gts: list[np.ndarray], preds: list[np.ndarray]) -> None:
        """Counts one frame.

        Args:
            gts: (n, 3) points in metres, ego frame, x ahead, of each lane.
            preds: likewise.
        """
        gt_yz, gt_there = _sample_all(gts)
        pred_yz, pred_there = _sample_all(preds)
        self.num_gt += len(gt_yz)
        self.num_pred += len(pred_yz)
        if not len(gt_yz) or not len(pred_yz):
            return
        distances = np.linalg.norm(gt_yz[:, None] - pred_yz[None], axis=-1)  # (G, P, 100)
        both = gt_there[:, None] & pred_there[None]
        either = gt_there[:, None] | pred_there[None]
        distances = np.where(both, distances, np.where(either, CLOSE, 0.0))
        total = distances.sum(axis=-1)
        cost = np.where((total > 0) & (total < 1), 1, total.astype(np.int64))  # (G, P)
        rows, columns = linear_sum_assignment(cost)
        cheap = cost[rows, columns] < CLOSE * len(SAMPLES)
        rows, columns = rows[cheap], columns[cheap]
        close = (both & (distances < CLOSE))[rows, columns].sum(axis=-1)
        self.found += int((close / gt_there[rows].sum(axis=-1) >= PART).sum())
        self.right += int((close / pred_there[columns].sum(axis=-1) >= PART).sum())

    def value(self) -> float:
        """The harmonic mean of recall and precision; 0 where nothing is right."""
        if not self.found or not self.right:
            return 0.0
        recall, precision = self.found / self.num_gt, self.right / self.num_pred
        return 2 * recall * precision / (recall + precision)


def _sample_all(lanes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """y and z (L, 100, 2) of the lanes that have a sample pair, and where they are (L, 100)."""
    sampled = [_sample(np.asarray(lane, dtype=np.float64)) for lane in lanes if _in_range(lane)]
    sampled = [(yz, there) for yz, there in sampled if there.sum() > 1]
    if not sampled:
        return np.zeros((0, len(SAMPLES), 2)), np.zeros((0, len(SAMPLES)), dtype=bool)
    return tuple(np.stack(part) for part in zip(*sampled, strict=True))


def _in_range(lane: np.ndarray) -> bool:
    return len(lane) > 1 and lane[0][0] < SAMPLES[-1] and lane[-1][0] > SAMPLES[0]


def _sample(lane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lane = lane[np.argsort(lane[:, 0], kind="stable")]
    x, yz = lane[:, 0], lane[:, 1:]
    there = (x[0] <= SAMPLES) & (x[-1] >= SAMPLES)
    right = np.searchsorted(x, SAMPLES).clip(1, len(x) - 1)
    left = right - 1
    step = x[right] - x[left]
    share = np.divide(SAMPLES - x[left], step, out=np.zeros_like(step), where=step > 0)
    return yz[left] + share[:, None] * (yz[right] - yz[left]), there
