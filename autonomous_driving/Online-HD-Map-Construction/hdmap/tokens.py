"""A polyline as a sequence of tokens (VectorMapNet, arXiv 2206.08920, section 3.3).

Three frames are in use:

* metres: the ego frame, x forward and y left, within the region `roi_size` = (length, width);
* normalised: (metres + roi / 2) / (roi + 2), so a region's line lies in [0, roi / (roi + 2)];
* tokens: the cell of a canvas of `canvas_size` = (columns, rows) cells, counted from 1.

A sequence reads x1, y1, x2, y2, ..., 0. Token 0 ends a line.
"""

from collections.abc import Sequence

import numpy as np

STOP_TOKEN = 0
MARGIN = 2.0  # metres that normalisation adds to the region

CLASSES = ("ped_crossing", "divider", "boundary")
ROI_SIZE = (60.0, 30.0)  # metres: length (x), width (y)
CANVAS_SIZE = (200, 100)  # cells: columns (x), rows (y)


def vocabulary_size(canvas_size: Sequence[int]) -> int:
    """Number of tokens: the longer side of the canvas, and the stop token."""
    return int(max(canvas_size)) + 1


def normalise(points: np.ndarray, roi_size: Sequence[float]) -> np.ndarray:
    """Metres (..., 2) to the normalised frame (..., 2), float64."""
    roi = np.asarray(roi_size, dtype=np.float64)
    return (np.asarray(points, dtype=np.float64)[..., :2] + roi / 2) / (roi + MARGIN)


def denormalise(points: np.ndarray, roi_size: Sequence[float]) -> np.ndarray:
    """The inverse of `normalise`: (..., 2) normalised to metres."""
    roi = np.asarray(roi_size, dtype=np.float64)
    return np.asarray(points, dtype=np.float64) * (roi + MARGIN) - roi / 2


def tokenise(
    points: np.ndarray, canvas_size: Sequence[int], legacy_truncate: bool = False
) -> np.ndarray:
    """Normalised vertices to tokens.

    Args:
        points: (k, 2) normalised x, y; values outside [0, 1] are moved to the border.
        canvas_size: cells along x and along y.
        legacy_truncate: cut off the fraction of a cell instead of rounding. The published model was
            trained so; its lines lie on average half a cell (16 cm) behind and right of the truth.

    Returns:
        (2 k + 1,) int64: x1, y1, ..., xk, yk, 0.
    """
    cells = np.clip(np.asarray(points, dtype=np.float64), 0.0, 1.0)
    cells = cells * (np.asarray(canvas_size, dtype=np.float64) - 1)
    cells = np.floor(cells) if legacy_truncate else np.floor(cells + 0.5)
    return np.append(cells.astype(np.int64).reshape(-1) + 1, STOP_TOKEN)


def detokenise(tokens: np.ndarray, canvas_size: Sequence[int]) -> np.ndarray:
    """Tokens to normalised vertices.

    Args:
        tokens: (n,) tokens; everything from the first stop token on is ignored, and so is an x
            whose y is missing.
        canvas_size: cells along x and along y.

    Returns:
        (k, 2) float64, the middle of each cell.
    """
    tokens = np.asarray(tokens).reshape(-1)
    stops = np.flatnonzero(tokens == STOP_TOKEN)
    length = int(stops[0]) if len(stops) else len(tokens)
    vertices = tokens[: length - length % 2].reshape(-1, 2).astype(np.float64)
    return (vertices - 1) / (np.asarray(canvas_size, dtype=np.float64) - 1)
