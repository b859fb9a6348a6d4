"""Pipeline steps that make a batch's tensors of a frame, and frames that become a queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmcv.parallel import DataContainer
from mmdet.datasets.builder import PIPELINES
from mmdet.datasets.pipelines import Compose
from torch import Tensor

from .errors import DatasetError
from .loading import camera_name, frame_name

META_KEYS = (
    "filename",
    "camera_names",
    "ori_shape",
    "img_shape",
    "pad_shape",
    "scale_factor",
    "img_norm_cfg",
    "lidar2img",
    "ego2lidar",
    "can_bus",
    "token",
    "sample_idx",
    "timestamp",
    "scene_token",
    "prev_idx",
    "next_idx",
    "prev_bev_exists",
)


def stack_images(results: dict[str, Any]) -> Tensor:
    """The images of all cameras as one (N, 3, H, W) float32 tensor.

    Raises:
        DatasetError: they differ in size; names the frame and two cameras.
    """
    images = results["img"]
    for index, image in enumerate(images):
        if image.shape != images[0].shape:
            raise DatasetError(
                f"frame {frame_name(results)}: camera {camera_name(results, 0)} has an image of "
                f"{images[0].shape[0]}x{images[0].shape[1]} (height x width), camera "
                f"{camera_name(results, index)} one of {image.shape[0]}x{image.shape[1]}; resize "
                "or pad them to one size"
            )
    stacked = np.stack(images).transpose(0, 3, 1, 2)  # (N, 3, H, W)
    return torch.from_numpy(np.ascontiguousarray(stacked, dtype=np.float32))


@PIPELINES.register_module()
class DefaultFormatBundle3D:
    """Makes one tensor of the images; arrays named `gt_*` become tensors in lists, not stacked.

    Args:
        class_names: of published configs; nothing here depends on it.
        with_label: likewise.
    """

    def __init__(self, class_names: Sequence[str] = (), with_label: bool = True) -> None:
        self.class_names = class_names
        self.with_label = with_label

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        if "img" in results:
            results["img"] = DataContainer(stack_images(results), stack=True, pad_dims=None)
        for key, value in results.items():
            if key.startswith("gt_") and isinstance(value, np.ndarray):
                results[key] = DataContainer(torch.from_numpy(np.ascontiguousarray(value)))
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@PIPELINES.register_module(name=["CustomCollect3D", "Collect3D"])
class CustomCollect3D:
    """Keeps what the model takes, and puts what describes the frame into `img_metas`.

    Args:
        keys: what the model takes.
        meta_keys: what describes the frame, as far as it is there. Keys of published configs that
            no step sets are left out.
    """

    def __init__(self, keys: Sequence[str], meta_keys: Sequence[str] = META_KEYS) -> None:
        self.keys = tuple(keys)
        self.meta_keys = tuple(meta_keys)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Collects.

        Raises:
            DatasetError: a key is not there; no step before this one makes it.
        """
        missing = [key for key in self.keys if key not in results]
        if missing:
            raise DatasetError(
                f"frame {frame_name(results)}: nothing called {', '.join(missing)}; the pipeline "
                f"needs a step that makes it (there are {', '.join(sorted(results))})"
            )
        metas = {key: results[key] for key in self.meta_keys if key in results}
        return {
            "img_metas": DataContainer(metas, cpu_only=True),
            **{key: results[key] for key in self.keys},
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}(keys={self.keys}, meta_keys={self.meta_keys})"


@PIPELINES.register_module()
class MultiScaleFlipAug3D:
    """Runs steps and puts every result into a list, as published test pipelines have it.

    Args:
        transforms: the steps.
        others: of published configs (`img_scale`, `pts_scale_ratio`, `flip`); there is one scale
            and no flip.

    Raises:
        ValueError: a flip or more than one scale is asked for.
    """

    def __init__(self, transforms: Sequence[dict[str, Any]], **others: Any) -> None:
        ratios = others.get("pts_scale_ratio", 1)
        scales = others.get("img_scale")
        several = isinstance(ratios, (list, tuple)) and len(ratios) > 1
        several |= isinstance(scales, list) and len(scales) > 1
        if others.get("flip") or several:
            raise ValueError("MultiScaleFlipAug3D: flips and several scales are not supported")
        self.transforms = Compose(transforms)

    def __call__(self, results: dict[str, Any]) -> dict[str, list[Any]]:
        return {key: [value] for key, value in self.transforms(results).items()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(transforms={self.transforms})"


@PIPELINES.register_module(name=["LoadAnnotations3D", "ObjectRangeFilter", "ObjectNameFilter"])
class NoBoxes:
    """Does nothing: the place of steps on 3-D boxes, which no model here takes.

    Published configs have these steps; what they load is not collected.

    Args:
        others: theirs.
    """

    def __init__(self, **others: Any) -> None:
        self.others = others

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def join_queue(frames: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One sample of consecutive frames that have passed the pipeline, oldest first.

    Returns:
        the last frame, with the images of all as `img`, (queue, N, 3, H, W), and their `img_metas`
        as {position in the queue: metas}.

    Raises:
        DatasetError: the images of two frames differ in size or number.
    """
    shapes = {tuple(frame["img"].data.shape) for frame in frames}
    if len(shapes) > 1:
        names = [frame_name(frame["img_metas"].data) for frame in frames]
        raise DatasetError(
            f"frames {', '.join(names)} follow each other, but their images have different numbers "
            f"or sizes: {', '.join(map(str, sorted(shapes)))}"
        )
    joined = dict(frames[-1])
    images = torch.stack([frame["img"].data for frame in frames])  # (queue, N, 3, H, W)
    metas = {i: frame["img_metas"].data for i, frame in enumerate(frames)}
    joined["img"] = DataContainer(images, stack=True, pad_dims=None)
    joined["img_metas"] = DataContainer(metas, cpu_only=True)
    return joined
