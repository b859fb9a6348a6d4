"""Which ground truth each prediction is counted for: greedy, by score, only the nearest one."""

from __future__ import annotations

import numpy as np


def match_nearest(
    distances: np.ndarray, scores: np.ndarray, threshold: float, inclusive: bool = False
) -> np.ndarray:
    """Ground truth that each prediction is a hit for.

    A prediction can only be a hit for the ground truth nearest to it. They are visited by
    descending score (equal scores: in their order); the first one within the threshold takes the
    ground truth, and later ones are false positives.

    Args:
        distances: (num_gt, num_pred).
        scores: (num_pred,).
        threshold: largest distance of a hit.
        inclusive: whether a distance equal to the threshold is a hit.

    Returns:
        (num_pred,) index of the ground truth, -1 for a false positive.

    Raises:
        ValueError: the numbers of predictions differ.
    """
    distances, scores = np.asarray(distances), np.asarray(scores)
    if distances.ndim != 2 or scores.shape != distances.shape[1:]:
        raise ValueError(
            f"distances of shape {distances.shape} with scores of shape {scores.shape}: expected "
            "(num_gt, num_pred) and (num_pred,)"
        )
    matched = np.full(len(scores), -1, dtype=np.int64)
    if not distances.size:
        return matched
    nearest = distances.argmin(axis=0)
    smallest = distances[nearest, np.arange(len(scores))]
    close = smallest <= threshold if inclusive else smallest < threshold
    order = np.argsort(-scores, kind="stable")
    order = order[close[order]]
    hit, first = np.unique(nearest[order], return_index=True)
    matched[order[first]] = hit
    return matched
