"""CrowdHuman's metrics: AP and MR^-2 (arXiv 1805.00123, section 4.1), JI (arXiv 2003.09163).

Boxes are x1, y1, x2, y2 in pixels. A region to ignore is a box inside which detections count
neither as right nor as wrong: a detection that fits no person is left out when at least half of its
own area lies in one such region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mmdet.core.evaluation.bbox_overlaps import bbox_overlaps
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

# nine points from 10^-2 to 10^0, evenly spaced in the logarithm (Dollar et al., PAMI 2012)
FPPI_POINTS = 10.0 ** np.linspace(-2, 0, 9)
JI_THRESHOLDS = np.arange(0, 1, 0.05)  # confidence thresholds tried for the best JI


@dataclass(frozen=True)
class Scene:
    """Detections and annotations of one image.

    Attributes:
        detections: (D, 5), boxes and scores.
        people: (G, 4), the boxes to find.
        ignored: (I, 4), regions to ignore.
    """

    detections: np.ndarray
    people: np.ndarray
    ignored: np.ndarray

    def sorted(self) -> np.ndarray:
        """The detections, best first."""
        return self.detections[np.argsort(-self.detections[:, 4], kind="stable")]


@dataclass(frozen=True)
class Curve:
    """Counts at falling confidence thresholds, one entry per detection that counts.

    Attributes:
        right: true positives so far, (D,).
        wrong: false positives so far, (D,).
        people: annotated people.
        images: images.
    """

    right: np.ndarray
    wrong: np.ndarray
    people: int
    images: int

    @property
    def recall(self) -> np.ndarray:
        """Found people / all people."""
        return self.right / max(self.people, 1)

    @property
    def precision(self) -> np.ndarray:
        """Right detections / detections."""
        return self.right / np.maximum(self.right + self.wrong, 1)


def curve(scenes: Sequence[Scene], iou_thr: float = 0.5) -> Curve:
    """Sorts the detections of all images by score after matching each image's.

    The best detection chooses first, and takes the free person it overlaps most, by at least
    ``iou_thr``.
    """
    scores, right = [], []
    for scene in scenes:
        detections = scene.sorted()
        hits = _greedy(detections[:, :4], scene.people, iou_thr)
        counts = hits | ~_in_ignored(detections[:, :4], scene.ignored, iou_thr)
        scores.append(detections[counts, 4])
        right.append(hits[counts])
    order = np.argsort(-np.concatenate(scores or [np.zeros(0)]), kind="stable")
    hits = np.concatenate(right or [np.zeros(0, bool)])[order]
    people = sum(len(scene.people) for scene in scenes)
    return Curve(np.cumsum(hits), np.cumsum(~hits), people, len(scenes))


def average_precision(counts: Curve) -> float:
    """Area below precision over recall, straight lines between the points (no interpolation)."""
    if not len(counts.right):
        return 0.0
    recall = np.concatenate([[0.0], counts.recall])
    precision = np.concatenate([counts.precision[:1], counts.precision])
    return float(((precision[1:] + precision[:-1]) / 2 * np.diff(recall)).sum())


def log_average_miss_rate(counts: Curve) -> float:
    """MR^-2: geometric mean of the miss rate at nine rates of false positives per image.

    At each, the miss rate is that of the first threshold with so many false positives, or of the
    lowest one where there are never so many. 0 is best.
    """
    if not len(counts.right):
        return 1.0
    fppi = counts.wrong / max(counts.images, 1)
    missed = 1 - counts.recall
    # a hair below, as 0.01 false positives per image may be a sum of rounded numbers
    at = np.searchsorted(fppi, FPPI_POINTS - 1e-9).clip(max=len(fppi) - 1)
    return float(np.exp(np.log(np.maximum(missed[at], 1e-10)).mean()))


def jaccard_index(
    scenes: Sequence[Scene], iou_thr: float = 0.5, thresholds: np.ndarray = JI_THRESHOLDS
) -> tuple[float, float]:
    """JI: pairs / (detections + people - pairs) per image, at the best confidence threshold.

    Pairs are those of the largest one-to-one matching with an IoU of at least ``iou_thr``. An image
    without people and detections counts as 1.

    Returns:
        (JI, the threshold it was reached at).
    """
    best = (0.0, float(thresholds[0]))
    graphs = [_graph(scene, iou_thr) for scene in scenes]
    for threshold in thresholds:
        values = [_jaccard(*graph, threshold) for graph in graphs]
        mean = float(np.mean(values)) if values else 0.0
        if mean > best[0]:
            best = (mean, float(threshold))
    return best


def _graph(scene: Scene, iou_thr: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (D,), which detections lie in ignored regions (D,), who could be whom (D, G)."""
    detections = scene.sorted()
    boxes = detections[:, :4]
    fits = bbox_overlaps(boxes, scene.people) >= iou_thr
    return detections[:, 4], _in_ignored(boxes, scene.ignored, iou_thr), fits


def _jaccard(
    scores: np.ndarray, in_ignored: np.ndarray, fits: np.ndarray, threshold: float
) -> float:
    kept = int(np.searchsorted(-scores, -threshold, side="right"))  # the scores fall
    people = fits.shape[1]
    partner = np.full(kept, -1)
    if kept and people:
        partner = maximum_bipartite_matching(csr_matrix(fits[:kept]), perm_type="column")
    pairs = int((partner >= 0).sum())
    counted = pairs + int((~in_ignored[:kept] & (partner < 0)).sum())
    union = counted + people - pairs
    return pairs / union if union else 1.0


def _greedy(boxes: np.ndarray, people: np.ndarray, iou_thr: float) -> np.ndarray:
    """Which of the sorted detections find a person, (D,)."""
    found = np.zeros(len(boxes), dtype=bool)
    if not len(people):
        return found
    overlaps = bbox_overlaps(boxes, people)
    for i, row in enumerate(overlaps):
        person = int(row.argmax())
        if row[person] >= iou_thr:
            found[i] = True
            overlaps[i + 1 :, person] = -1  # taken
    return found


def _in_ignored(boxes: np.ndarray, ignored: np.ndarray, thr: float) -> np.ndarray:
    """Which detections lie by at least `thr` of their own area in a region to ignore, (D,)."""
    if not len(ignored) or not len(boxes):
        return np.zeros(len(boxes), dtype=bool)
    return (bbox_overlaps(boxes, ignored, mode="iof") >= thr).any(1)
