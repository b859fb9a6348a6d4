"""Metrics of Occ3D-nuScenes (arXiv 2304.14365, section 5): mIoU over visible voxels, F-score.

The mIoU sums one confusion matrix over all frames. The F-score compares occupied against empty,
frame by frame.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .classes import CLASSES, FREE, NUM_CLASSES, VOXEL_SIZE

F_THRESHOLD = 0.4  # metres


class OccupancyMIoU:
    """IoU of every class, summed over frames; only voxels that the mask shows count.

    The class `free` is not in the mean, but a free voxel predicted as occupied is a false positive
    of that class, and the reverse a false negative.

    Attributes:
        confusion: (18, 18) counts, rows: labels, columns: predictions.
    """

    def __init__(self) -> None:
        self.confusion = np.zeros((NUM_CLASSES, NUM_CLASSES), dtype=np.int64)

    def add(self, prediction: np.ndarray, label: np.ndarray, mask: np.ndarray | None) -> None:
        """Adds a frame.

        Args:
            prediction: (X, Y, Z) classes 0..17.
            label: (X, Y, Z) classes; voxels with another value do not count.
            mask: (X, Y, Z) voxels that count (`mask_camera`); None for all.

        Raises:
            ValueError: shapes differ, or a prediction is not a class.
        """
        check_frame(prediction, label, mask)
        counts = (label >= 0) & (label < NUM_CLASSES)
        if mask is not None:
            counts &= mask.astype(bool)
        pairs = label[counts].astype(np.int64) * NUM_CLASSES + prediction[counts]
        self.confusion += np.bincount(pairs, minlength=NUM_CLASSES**2).reshape(
            NUM_CLASSES, NUM_CLASSES
        )

    def iou(self) -> np.ndarray:
        """(18,) IoU in percent; NaN for a class with neither labels nor predictions."""
        hits = self.confusion.diagonal()
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        return 100.0 * np.where(union > 0, hits / np.maximum(union, 1), np.nan)

    def miou(self) -> float:
        """Mean over the present classes but `free`, in percent; NaN when there are none."""
        occupied = self.iou()[:FREE]
        present = occupied[~np.isnan(occupied)]
        return float(present.mean()) if len(present) else float("nan")

    def summary(self) -> dict[str, float]:
        """`mIoU` and `IoU/<class>` for the 17 occupied classes, in percent."""
        per_class = zip(CLASSES[:FREE], self.iou()[:FREE], strict=True)
        return {"mIoU": self.miou(), **{f"IoU/{name}": float(iou) for name, iou in per_class}}


class OccupancyFScore:
    """Mean over frames of the harmonic mean of accuracy and completeness.

    Accuracy: the share of predicted occupied voxels with an occupied label not farther than 0.4 m;
    completeness: the reverse. Neighbours across a face are 0.4 m apart. With voxel centres in
    floating point most of these distances come out just below 0.4, so the published numbers count
    a neighbour as hit; here distances are counted in voxels, and a neighbour always is.
    """

    def __init__(self, threshold: float = F_THRESHOLD) -> None:
        self.ball = ball(threshold / VOXEL_SIZE)
        self.scores: list[float] = []

    def add(self, prediction: np.ndarray, label: np.ndarray, mask: np.ndarray | None) -> float:
        """Adds a frame and returns its score; arguments as in `OccupancyMIoU.add`."""
        check_frame(prediction, label, mask)
        seen = np.ones(label.shape, bool) if mask is None else mask.astype(bool)
        predicted = seen & (prediction != FREE)
        real = seen & (label != FREE) & (label < NUM_CLASSES)
        score = 0.0
        if predicted.any() and real.any():
            accuracy = ndimage.binary_dilation(real, self.ball)[predicted].mean()
            completeness = ndimage.binary_dilation(predicted, self.ball)[real].mean()
            score = min(2.0 / (1.0 / (accuracy + 1e-8) + 1.0 / (completeness + 1e-8)), 1.0)
        self.scores.append(float(score))
        return self.scores[-1]

    def mean(self) -> float:
        """Mean of the frames, in percent; NaN without frames."""
        return 100.0 * float(np.mean(self.scores)) if self.scores else float("nan")


def ball(radius: float) -> np.ndarray:
    """Boolean cube with the voxels whose centre is at most `radius` voxels from the middle one."""
    reach = int(radius + 1e-6)
    steps = np.arange(-reach, reach + 1)
    x, y, z = np.meshgrid(steps, steps, steps, indexing="ij")
    return x**2 + y**2 + z**2 <= (radius + 1e-6) ** 2


def check_frame(prediction: np.ndarray, label: np.ndarray, mask: np.ndarray | None) -> None:
    """Raises ValueError when a prediction cannot be compared with its labels."""
    if prediction.shape != label.shape or (mask is not None and mask.shape != label.shape):
        raise ValueError(
            f"prediction {prediction.shape}, label {label.shape} and mask "
            f"{None if mask is None else mask.shape} must have the same shape"
        )
    if prediction.dtype.kind not in "iu":
        raise ValueError(f"predictions must be integer classes, got {prediction.dtype}")
    if prediction.size and (prediction.min() < 0 or prediction.max() >= NUM_CLASSES):
        raise ValueError(
            f"predicted classes must be 0..{NUM_CLASSES - 1}, got {prediction.min()} to "
            f"{prediction.max()}"
        )
