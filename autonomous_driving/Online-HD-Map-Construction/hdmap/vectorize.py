"""Pipeline step that makes normalised, simplified polylines of a frame's annotation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet.datasets.builder import PIPELINES
from shapely import LineString, clip_by_rect

from .tokens import CLASSES, ROI_SIZE, normalise

SLACK = 1e-3  # metres that a line may lie outside the region by rounding


@PIPELINES.register_module()
class VectorizeMap:
    """Sets `lines`: (label, (n, 2) vertices in the normalised frame) of all lines of a frame.

    Reads `annotation`, {class: lines}, where a line is (n, 2 or more) coordinates in metres in the
    ego frame. The height is dropped. Lines that leave the region are cut at its border (the
    published annotations are cut already). The order of classes is that of `CLASSES`,
    within a class that of the annotation.

    Args:
        roi_size: length (x) and width (y) of the region in metres.
        simplify: vertices nearer than this to the simplified line are taken out, in metres
            (Douglas-Peucker); 0 keeps all.

    Source: VectorMapNet, arXiv 2206.08920, section 3.3.
    """

    def __init__(self, roi_size: Sequence[float] = ROI_SIZE, simplify: float = 0.2) -> None:
        self.roi_size = (float(roi_size[0]), float(roi_size[1]))
        self.simplify = simplify

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Returns the results, or None for a frame without lines: mmdet's sign to take another."""
        results["lines"] = [
            (label, normalise(piece, self.roi_size))
            for label, name in enumerate(CLASSES)
            for line in results["annotation"].get(name, ())
            for piece in self._pieces(np.asarray(line, dtype=np.float64)[:, :2])
        ]
        return results if results["lines"] else None

    def _pieces(self, line: np.ndarray) -> list[np.ndarray]:
        """The parts of a line inside the region, simplified; (n, 2) in metres each."""
        half = np.asarray(self.roi_size) / 2
        shape = LineString(line)
        if (np.abs(line) > half + SLACK).any():
            shape = clip_by_rect(shape, *-half, *half)
        if self.simplify > 0:
            shape = shape.simplify(self.simplify)
        parts = getattr(shape, "geoms", [shape])
        return [np.array(part.coords) for part in parts if part.geom_type == "LineString" and part]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(roi_size={self.roi_size}, simplify={self.simplify})"
