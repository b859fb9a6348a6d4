"""Topology part of the OpenLane-V2 score: average precision of the neighbours of every vertex.

Two definitions are in use. Both put the predicted edges between the predictions that hit a ground
truth, and treat the edges of a missed ground truth as wrong:

- "v1.0" (published results of 2023): missed means "not found with the confidence of one of ten
  recall levels", averaged over the levels; wrong edges have confidence 1.
- "v1.1" (now official): missed means not found at all; wrong edges come after all predicted ones.

Source: OpenLane-V2 (arXiv 2304.10440), section 4.2, equation 2.
"""

from __future__ import annotations

import numpy as np

VERSIONS = ("v1.0", "v1.1")
EDGE = 0.5  # a predicted edge has more confidence than this
LAST = EDGE + np.finfo(np.float32).eps  # confidence of an edge that ranks after all others
LEVELS = np.arange(10, 101, 10) / 100  # of recall


def vertex_precisions(gt: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """Average precision of the neighbours of every row.

    Args:
        gt: (n, m) 0 or 1.
        pred: (n, m) confidence of every edge.

    Returns:
        (n,): sum of the precision at every right neighbour over the number of true ones; where
        there is no true neighbour, 1 without a predicted one and else 0.
    """
    order = np.argsort(-pred, axis=1, kind="stable")
    shown = np.take_along_axis(pred, order, axis=1) > EDGE
    hits = np.take_along_axis(gt, order, axis=1).astype(bool) & shown
    precision = hits.cumsum(axis=1) / np.arange(1, gt.shape[1] + 1)
    num_gt = (gt != 0).sum(axis=1)
    found = (precision * hits).sum(axis=1) / np.maximum(num_gt, 1)
    return np.where(num_gt > 0, found, ~shown.any(axis=1))


def ordered_as_gt(
    pred: np.ndarray, rows: np.ndarray, columns: np.ndarray, gt: np.ndarray, wrong: float
) -> np.ndarray:
    """Predicted edges between the ground truths.

    Args:
        pred: (p, q) confidences between predictions.
        rows: (n,) prediction of each ground truth, -1 if missed.
        columns: (m,) likewise.
        gt: (n, m) true edges.
        wrong: confidence of the edges that a missed ground truth does not have.

    Returns:
        (n, m).
    """
    edges = (1.0 - gt) * wrong
    i, j = np.nonzero(rows >= 0)[0], np.nonzero(columns >= 0)[0]
    edges[np.ix_(i, j)] = pred[np.ix_(rows[i], columns[j])]
    return edges


def found_by(matched: np.ndarray, num_gt: int) -> np.ndarray:
    """(num_gt,) prediction of each ground truth, -1 if none, from what `match_nearest` returns."""
    found = np.full(num_gt, -1, dtype=np.int64)
    hits = np.nonzero(matched >= 0)[0]
    found[matched[hits]] = hits
    return found


def found_at_levels(matched: np.ndarray, scores: np.ndarray, num_gt: int) -> np.ndarray:
    """`found_by` with the confidence of each of the ten recall levels: (10, num_gt).

    The levels are percentiles of the frame's list of recalls after each prediction (the closest
    observation, as numpy before 2.1 rounds it), taken at the last prediction of that recall.
    """
    found = found_by(matched, num_gt)
    if not len(scores):
        return np.tile(found, (len(LEVELS), 1))
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(matched[order] >= 0)
    position = len(hits) * LEVELS - 1 - 0.5
    before = np.floor(position)
    exact = (position == before) & (before % 2 == 0)
    index = np.where(exact, before, before + 1).clip(0).astype(np.int64)
    last = np.searchsorted(hits, hits[index], side="right") - 1
    lowest = scores[order][last]  # (10,)
    return np.where((found >= 0) & (scores[found] >= lowest[:, None]), found, -1)


class TopologyPrecision:
    """Mean over the vertices of both sides, the frames and the thresholds.

    Args:
        version: "v1.0" or "v1.1".
    """

    def __init__(self, version: str) -> None:
        self.version = version
        self.total = 0.0
        self.count = 0

    def add(
        self,
        gt: np.ndarray,
        pred: np.ndarray,
        rows: tuple[np.ndarray, np.ndarray],
        columns: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """Counts a frame at one threshold; one without vertices on a side is left out.

        Args:
            gt: (n, m) 0 or 1.
            pred: (p, q) confidences.
            rows: what `match_nearest` returned for the vertices of the rows, and their scores (p,).
            columns: likewise (q,).
        """
        if not gt.size:
            return
        if self.version == "v1.1":
            pairs = [(found_by(rows[0], gt.shape[0]), found_by(columns[0], gt.shape[1]))]
            counts, wrong = np.ones(1), LAST
        else:
            levels = [
                found_at_levels(*side, num)
                for side, num in zip((rows, columns), gt.shape, strict=True)
            ]
            both, counts = np.unique(np.hstack(levels), axis=0, return_counts=True)
            pairs = [np.split(line, [gt.shape[0]]) for line in both]
            wrong = 1.0
        for (of_rows, of_columns), count in zip(pairs, counts, strict=True):
            edges = ordered_as_gt(pred, of_rows, of_columns, gt, wrong)
            total = vertex_precisions(gt, edges).sum() + vertex_precisions(gt.T, edges.T).sum()
            self.total += float(total * count)
            self.count += int(count) * sum(gt.shape)

    def value(self) -> float:
        """The mean; 0 where no frame has a vertex on both sides."""
        return self.total / self.count if self.count else 0.0
