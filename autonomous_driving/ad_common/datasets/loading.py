"""Pipeline step that reads the images of all cameras of a frame."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
from mmdet.datasets.builder import PIPELINES

from .errors import DatasetError

FRAME_NAMES = ("token", "sample_idx", "sample_token", "timestamp")  # the first one that is there


def frame_name(results: Mapping[str, Any]) -> str:
    """What a message calls the frame."""
    for key in FRAME_NAMES:
        if results.get(key) is not None:
            return str(results[key])
    return "without a token"


def camera_name(results: Mapping[str, Any], index: int) -> str:
    """What a message calls a camera: its entry in `camera_names`, else its number."""
    names = results.get("camera_names")
    return str(names[index]) if names is not None and index < len(names) else f"number {index}"


def read_image(path: str | Path) -> np.ndarray:
    """An image as (H, W, 3) uint8 in BGR, as it is stored (no turning by EXIF).

    Raises:
        OSError: there is no such file or it is no image; the message says which of them.
    """
    try:
        image = mmcv.imread(str(path), flag="color_ignore_orientation", backend="cv2")
    except FileNotFoundError as error:
        raise FileNotFoundError("the file does not exist") from error
    except cv2.error as error:  # an empty file
        raise OSError("the file cannot be read as an image") from error
    if image is None:
        raise OSError("the file cannot be read as an image")
    return image


@PIPELINES.register_module(
    name=[
        "LoadMultiViewImageFromFiles",
        "CustomLoadMultiViewImageFromFiles",
        "LoadMultiViewImagesFromFiles",
    ]
)
class LoadMultiViewImageFromFiles:
    """Reads the images that `img_filename` lists, one per camera; they may differ in size.

    Sets `img`, a list of (H, W, 3) arrays in BGR, and their `img_shape`, `ori_shape`, `pad_shape`
    (lists of (H, W, 3)), `scale_factor` (per camera: width, height, width, height) and `filename`.
    A message about a broken image takes the names of frame and camera from `token` (or
    `sample_idx`, `timestamp`) and `camera_names`.

    Args:
        to_float32: float32 instead of uint8, values 0 to 255 either way.
        color_type: of published configs; three channels are read whatever it is.
    """

    def __init__(self, to_float32: bool = True, color_type: str = "unchanged") -> None:
        self.to_float32 = to_float32
        self.color_type = color_type

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Reads the images.

        Raises:
            DatasetError: one is missing or unreadable; names the file, the camera and the frame.
        """
        images = [self._read(results, i) for i in range(len(results["img_filename"]))]
        shapes = [image.shape for image in images]
        results.update(
            img=images,
            filename=list(results["img_filename"]),
            img_shape=shapes,
            ori_shape=list(shapes),
            pad_shape=list(shapes),
            scale_factor=[np.ones(4, dtype=np.float32) for _ in images],
        )
        return results

    def _read(self, results: Mapping[str, Any], index: int) -> np.ndarray:
        path = results["img_filename"][index]
        try:
            image = read_image(path)
        except OSError as error:
            raise DatasetError(
                f"image {path} of camera {camera_name(results, index)}, frame "
                f"{frame_name(results)}: {error}"
            ) from error
        return image.astype(np.float32) if self.to_float32 else image

    def __repr__(self) -> str:
        return f"{type(self).__name__}(to_float32={self.to_float32})"
