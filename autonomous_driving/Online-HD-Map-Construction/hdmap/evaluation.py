"""Chamfer average precision of polylines (VectorMapNet, arXiv 2206.08920, section 4.1).

Lines are resampled to a point every 30 cm and compared by their Chamfer distance in the plane, so
neither the direction of a line nor the number of its vertices matters. A prediction is a hit when
the ground truth nearest to it lies within a threshold and no prediction with a higher score took
it. The average precision is the area under the curve of the whole data set; that of a class is the
mean over the thresholds, mAP the mean over the classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from ad_common.datasets.errors import DatasetError
from ad_common.metrics.average_precision import average_precision, precision_recall
from ad_common.metrics.distance import chamfer_distances
from ad_common.metrics.matching import match_nearest

from .tokens import CLASSES

THRESHOLDS = (0.5, 1.0, 1.5)  # metres
SPACING = 0.3  # metres between the points of a resampled line


@dataclass
class Lines:
    """Polylines of one frame, in metres in the ego frame; truth has no scores.

    Attributes:
        vectors: one (n, 2) or (n, 3) array per line; z is ignored.
        labels: index into `CLASSES` of each.
        scores: confidence of each.
    """

    vectors: Sequence[np.ndarray] = ()
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    scores: np.ndarray | None = None

    def of_class(self, label: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The lines of a class as (n, 2) arrays, and their scores (zeros for truth)."""
        chosen = np.flatnonzero(np.asarray(self.labels) == label)
        scores = np.zeros(len(self.vectors)) if self.scores is None else np.asarray(self.scores)
        return [np.asarray(self.vectors[i], dtype=float)[:, :2] for i in chosen], scores[chosen]


def resample(line: np.ndarray, spacing: float = SPACING) -> np.ndarray:
    """Points on a line every `spacing` metres from its start, and its end.

    Args:
        line: (n, 2) vertices in metres.
        spacing: in metres.

    Returns:
        (m, 2); a line of 10 m gives 35 points, one without length a single point.
    """
    edges = np.linalg.norm(np.diff(line, axis=0), axis=1)
    along = np.concatenate(([0.0], np.cumsum(edges)))  # (n,)
    at = np.append(np.arange(0.0, along[-1], spacing), along[-1])  # (m,)
    return np.stack([np.interp(at, along, line[:, axis]) for axis in (0, 1)], axis=-1)


def match_frame(
    predicted: Lines, truth: Lines, label: int, thresholds: Sequence[float] = THRESHOLDS
) -> tuple[np.ndarray, np.ndarray, int]:
    """Hits of one class in one frame.

    Returns:
        (num_pred,) scores, (len(thresholds), num_pred) whether each is a hit, number of true lines.
    """
    lines, scores = predicted.of_class(label)
    true_lines, _ = truth.of_class(label)
    hits = np.zeros((len(thresholds), len(lines)), dtype=bool)
    if lines and true_lines:
        distances = chamfer_distances(
            [resample(line) for line in true_lines], [resample(line) for line in lines]
        )  # (num_gt, num_pred)
        for i, threshold in enumerate(thresholds):
            hits[i] = match_nearest(distances, scores, threshold, inclusive=True) >= 0
    return scores, hits, len(true_lines)


def evaluate_lines(
    predicted: Mapping[str, Lines],
    truth: Mapping[str, Lines],
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict[str, float]:
    """Average precisions of a data set.

    Args:
        predicted: lines with scores by token; a frame that is missing has no predictions.
        truth: lines by token, of every frame.
        thresholds: largest Chamfer distances of a hit, in metres.

    Returns:
        "CLASS_AP@THRESHOLD", "CLASS_AP" (mean over the thresholds) and "mAP" (mean over the
        classes), in 0..1. A class that is nowhere in the truth counts 0.

    Raises:
        DatasetError: there are no frames, or a predicted frame is none of the data set.
    """
    if not truth:
        raise DatasetError("there is no frame to evaluate; check the annotation file")
    foreign = [token for token in predicted if token not in truth]
    if foreign:
        raise DatasetError(
            f"{len(foreign)} of {len(predicted)} predicted frames are none of the data set, the "
            f"first is {foreign[0]!r}; give the annotations of the split that was predicted"
        )
    metrics: dict[str, float] = {}
    nothing = Lines(scores=np.zeros(0))
    for label, name in enumerate(CLASSES):
        frames = [
            match_frame(predicted.get(token, nothing), lines, label, thresholds)
            for token, lines in truth.items()
        ]
        scores = np.concatenate([scores for scores, _, _ in frames])
        hits = np.concatenate([hits for _, hits, _ in frames], axis=1)
        num_gt = sum(count for _, _, count in frames)
        order = np.argsort(-scores, kind="stable")
        for threshold, hit in zip(thresholds, hits, strict=True):
            curve = precision_recall(hit[order], num_gt)
            metrics[f"{name}_AP@{threshold}"] = average_precision(*curve)
        metrics[f"{name}_AP"] = float(
            np.mean([metrics[f"{name}_AP@{threshold}"] for threshold in thresholds])
        )
    metrics["mAP"] = float(np.mean([metrics[f"{name}_AP"] for name in CLASSES]))
    return metrics


def table(metrics: Mapping[str, float], thresholds: Sequence[float] = THRESHOLDS) -> str:
    """The metrics as lines of text, in percent."""
    names = [f"AP@{threshold}" for threshold in thresholds]
    rows = [["class", *names, "AP"]]
    for name in CLASSES:
        rows.append([name, *(f"{100 * metrics[f'{name}_{key}']:.2f}" for key in (*names, "AP"))])
    rows.append(["mAP", *[""] * len(names), f"{100 * metrics['mAP']:.2f}"])
    return "\n".join(row[0].ljust(13) + "".join(cell.rjust(9) for cell in row[1:]) for row in rows)
