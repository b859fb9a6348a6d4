"""Pipeline steps that make a model's targets of polylines: boxes, tokens, weights.

A line becomes a box, which the detector finds, and a sequence of tokens, which the generator writes
(VectorMapNet, arXiv 2206.08920, sections 3.2 and 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ad_common.datasets.formatting import stack_images
from mmcv.parallel import DataContainer
from mmdet.datasets.builder import PIPELINES

from .tokens import CANVAS_SIZE, CLASSES, tokenise

BORDER = 0.1  # canvas pixels that a box of the detector keeps from the border
LEAST_BUFFER = 1e-4  # of a side that is a little too short, normalised
BOUNDARY = CLASSES.index("boundary")


def line_box(line: np.ndarray, threshold: float) -> np.ndarray:
    """The bounds of a line; a side shorter than `threshold` is widened to it.

    Args:
        line: (n, 2) normalised vertices.
        threshold: least side, normalised.

    Returns:
        (4,) x1, y1, x2, y2 within [0, 1].
    """
    low, high = line.min(axis=0), line.max(axis=0)
    side = high - low
    buffer = np.where(side < threshold, np.maximum((threshold - side) / 2, LEAST_BUFFER), 0.0)
    return np.clip(np.concatenate([low - buffer, high + buffer]), 0.0, 1.0)


def sequence_weights(line: np.ndarray, canvas_size: Sequence[int], by_length: bool) -> np.ndarray:
    """Weights of the tokens of a line in the generator's loss.

    Args:
        line: (n, 2) normalised vertices.
        canvas_size: the lengths of edges are measured in its pixels, which are nearly square.
        by_length: a vertex weighs as much as the edges at it are long, so that a long boundary is
            not governed by the many vertices of its bends. The vertices sum up to 1, x and y have
            half of it each; the stop token weighs as much as a token does on average, 1 / (2 n).
            Otherwise every token weighs 1 / (2 n + 1).

    Returns:
        (2 n + 1,) float32, for x1, y1, ..., stop.
    """
    n = len(line)
    pixels = line * (np.asarray(canvas_size) - 1)
    edges = np.linalg.norm(np.diff(pixels, axis=0), axis=1)  # (n - 1,)
    if not by_length or not edges.sum() > 0:
        return np.full(2 * n + 1, 1 / (2 * n + 1), dtype=np.float32)
    vertices = np.append(edges, 0.0) + np.append(0.0, edges)  # (n,)
    tokens = (vertices / vertices.sum() / 2).repeat(2)
    return np.append(tokens, 1 / (2 * n)).astype(np.float32)


@PIPELINES.register_module()
class PolygonizeLocalMapBbox:
    """Sets `polys`, the targets of a frame's `lines` (see `VectorizeMap`), as a dictionary.

    det_label (n,) int64, det_bbox (n, 4) float32
        class and box for the detector; x1, y1, x2, y2 in canvas pixels, off the border.
    gen_label (n,) int64, gen_bbox (n, 4) int64
        the same for the generator, whose boxes are whole pixels counted from 0.
    sequences, gen_weight
        per line the tokens (2 k + 1,) int64 and their weights in the loss, float32.

    Args:
        canvas_size: columns (x) and rows (y) of the canvas.
        threshold: least side of a box, normalised.
        weight_by_length: classes whose vertices weigh by the length of their edges.
        legacy_truncate: cut tokens off instead of rounding them, as in the published model.
    """

    def __init__(
        self,
        canvas_size: Sequence[int] = CANVAS_SIZE,
        threshold: float = 4 / 200,
        weight_by_length: Sequence[int] = (BOUNDARY,),
        legacy_truncate: bool = False,
    ) -> None:
        self.canvas_size = (int(canvas_size[0]), int(canvas_size[1]))
        self.threshold = threshold
        self.weight_by_length = tuple(weight_by_length)
        self.legacy_truncate = legacy_truncate

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        lines = results["lines"]
        labels = np.array([label for label, _ in lines], dtype=np.int64)
        boxes = np.array([line_box(line, self.threshold) for _, line in lines]).reshape(-1, 4)
        canvas = np.array([*self.canvas_size, *self.canvas_size], dtype=np.float64)
        results["polys"] = {
            "det_label": labels,
            "det_bbox": np.clip(boxes * canvas, BORDER, canvas - BORDER).astype(np.float32),
            "gen_label": labels.copy(),
            "gen_bbox": self._cells(boxes.reshape(-1, 2))[:-1].reshape(-1, 4) - 1,
            "sequences": [self._cells(line) for _, line in lines],
            "gen_weight": [
                sequence_weights(line, self.canvas_size, label in self.weight_by_length)
                for label, line in lines
            ],
        }
        return results

    def _cells(self, points: np.ndarray) -> np.ndarray:
        return tokenise(points, self.canvas_size, self.legacy_truncate)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(canvas_size={self.canvas_size}, threshold={self.threshold})"


@PIPELINES.register_module()
class FormatBundleMap:
    """Makes one (N, 3, H, W) tensor of the images, and tensors of `polys`.

    mmcv moves no dictionaries between devices: `polys` stays on the CPU, and the model gets a list
    with the dictionary of every frame.
    """

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        if "img" in results:
            results["img"] = DataContainer(stack_images(results), stack=True)
        if "polys" in results:
            results["polys"] = DataContainer(
                {key: as_tensors(value) for key, value in results["polys"].items()}, cpu_only=True
            )
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def as_tensors(value: np.ndarray | list[np.ndarray]) -> Any:
    """A tensor of an array, a list of tensors of a list."""
    if isinstance(value, list):
        return [torch.from_numpy(array) for array in value]
    return torch.from_numpy(value)
