"""Pipeline steps of OpenLane-V2: the upright front view, lanes as curves, the batch's tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ad_common.datasets.errors import DatasetError, nearest
from ad_common.datasets.formatting import stack_images
from ad_common.datasets.loading import frame_name
from ad_common.datasets.transforms import resize_images
from mmcv.parallel import DataContainer
from mmdet.datasets.builder import PIPELINES

from . import bezier

METHODS = ("bezier_Endpointfixed",)
TARGETS = {  # name: dtype of the tensor
    "gt_lc": torch.float32,
    "gt_lc_labels": torch.int64,
    "gt_te": torch.float32,
    "gt_te_labels": torch.int64,
    "gt_topology_lclc": torch.float32,
    "gt_topology_lcte": torch.float32,
}


@PIPELINES.register_module()
class ResizeFrontView:
    """Squashes the upright image of the front camera to the size of the others.

    Its projection matrix and the boxes of the traffic elements follow.
    """

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Resizes the first image.

        Raises:
            DatasetError: the other images differ in size.
        """
        sizes = [image.shape[:2] for image in results["img"]]
        if len(set(sizes[1:])) > 1:
            found = ", ".join(f"{h}x{w}" for h, w in sizes)
            raise DatasetError(
                f"frame {frame_name(results)}: the images behind the first have different sizes "
                f"(height x width {found}); ResizeFrontView needs one"
            )
        resize_images(results, [sizes[-1]] * len(sizes))
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@PIPELINES.register_module()
class CustomParameterizeLane:
    """Replaces the points of every lane by the control points of a Bezier curve.

    Args:
        method: "bezier_Endpointfixed": the ends are kept, the points between fitted.
        n_control: number of control points.

    Raises:
        ValueError: unknown method, or fewer than two control points.
    """

    def __init__(self, method: str = METHODS[0], n_control: int = 5) -> None:
        if method not in METHODS:
            raise ValueError(
                f"method {method!r}{nearest(method, METHODS)}; use one of {', '.join(METHODS)}"
            )
        if n_control < 2:
            raise ValueError(f"n_control={n_control}: a curve has at least two control points")
        self.method = method
        self.n_control = n_control

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """`gt_lc`: list of (n, 3) -> (number of lanes, n_control * 3) float32.

        Raises:
            DatasetError: a lane is not a list of points.
        """
        try:
            curves = [bezier.fit(lane, self.n_control) for lane in results["gt_lc"]]
        except ValueError as error:
            raise DatasetError(f"frame {frame_name(results)}: {error}") from error
        results["gt_lc"] = np.array(curves, dtype=np.float32).reshape(-1, self.n_control * 3)
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(method={self.method!r}, n_control={self.n_control})"


@PIPELINES.register_module()
class CustomDefaultFormatBundle:
    """Makes one tensor of the images, and a tensor of every target (not stacked in a batch)."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Formats.

        Raises:
            DatasetError: the images differ in size, or the lanes are no curves yet.
        """
        if isinstance(results.get("gt_lc"), list):
            raise DatasetError(
                f"frame {frame_name(results)}: the lanes still are lists of points; put "
                "CustomParameterizeLane before CustomDefaultFormatBundle"
            )
        results["img"] = DataContainer(stack_images(results), stack=True, pad_dims=None)
        for name, dtype in TARGETS.items():
            if name in results:
                results[name] = DataContainer(torch.as_tensor(results[name], dtype=dtype))
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
