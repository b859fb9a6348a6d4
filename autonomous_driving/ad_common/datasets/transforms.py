"""Pipeline steps on the images of all cameras of a frame, and on what projects into them.

They work on a dictionary with `img`, a list of (H, W, 3) arrays, one per camera, and `lidar2img`, a
list of 4x4 matrices that take a point of the vehicle (or lidar) to pixels: [u*d, v*d, d, 1]. A step
that resizes images scales these matrices, and `cam_intrinsic` if it is there. Three lists keep the
sizes (H, W, 3):

    ori_shape   as stored
    img_shape   now, without padding
    pad_shape   now, with padding: the size that feature maps are spread over
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import mmcv
import numpy as np
from mmdet.datasets.builder import PIPELINES
from mmdet.datasets.pipelines import PhotoMetricDistortion

logger = logging.getLogger(__name__)

FRONT_BOXES = "gt_te"  # (k, 4) x1, y1, x2, y2 in pixels of the first camera
MATRICES = ("lidar2img", "cam_intrinsic")  # lists of matrices, 4x4 or 3x3, that end in pixels


def scale_matrices(results: dict[str, Any], scales: Sequence[tuple[float, float]]) -> None:
    """Scales what projects into the images: pixel (u, v) becomes (u * x, v * y).

    Args:
        results: of a pipeline; the matrices are replaced, not changed in place.
        scales: (x, y) per camera.
    """
    for key in MATRICES:
        if key in results:
            results[key] = [
                np.diag([x, y, *[1.0] * (len(matrix) - 2)]) @ matrix
                for matrix, (x, y) in zip(results[key], scales)
            ]


def resize_images(results: dict[str, Any], sizes: Sequence[tuple[int, int]]) -> None:
    """Resizes the image of every camera, with everything that depends on its size.

    Args:
        results: of a pipeline.
        sizes: (height, width) per camera.
    """
    scales = []
    images = []
    for image, (height, width) in zip(results["img"], sizes):
        scales.append((width / image.shape[1], height / image.shape[0]))
        images.append(mmcv.imresize(image, (width, height)))
    results["img"] = images
    results["img_shape"] = [image.shape for image in images]
    results["pad_shape"] = [image.shape for image in images]
    before = results.get("scale_factor") or [np.ones(4, dtype=np.float32)] * len(images)
    results["scale_factor"] = [
        old * np.array([x, y, x, y], dtype=np.float32) for old, (x, y) in zip(before, scales)
    ]
    scale_matrices(results, scales)
    if FRONT_BOXES in results:
        x, y = scales[0]
        boxes = np.asarray(results[FRONT_BOXES], dtype=np.float32)
        results[FRONT_BOXES] = boxes * np.array([x, y, x, y], dtype=np.float32)


@PIPELINES.register_module()
class PhotoMetricDistortionMultiViewImage(PhotoMetricDistortion):
    """mmdet's random brightness, contrast, saturation, hue and swap of channels, per camera.

    The images must be BGR with values 0 to 255: this step belongs before the normalisation. (A
    config that normalises first is run as it is; brightness and hue then are of another strength.)

    Args:
        brightness_delta: brightness is changed by up to so much.
        contrast_range: least and greatest factor of the contrast.
        saturation_range: least and greatest factor of the saturation.
        hue_delta: the hue is turned by up to so many degrees.
    """

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        parent = super().__call__
        results["img"] = [
            parent({"img": image, "img_fields": ["img"]})["img"] for image in results["img"]
        ]
        return results


@PIPELINES.register_module(name=["NormalizeMultiviewImage", "Normalize3D"])
class NormalizeMultiviewImage:
    """Subtracts the mean of every channel and divides by its standard deviation.

    Args:
        mean: per channel, of images with values 0 to 255, in the order after `to_rgb`.
        std: likewise.
        to_rgb: make RGB of BGR first.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], to_rgb: bool = True) -> None:
        self.mean = np.array(mean, dtype=np.float32)
        self.std = np.array(std, dtype=np.float32)
        self.to_rgb = to_rgb

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        results["img"] = [
            mmcv.imnormalize(image, self.mean, self.std, self.to_rgb) for image in results["img"]
        ]
        results["img_norm_cfg"] = {"mean": self.mean, "std": self.std, "to_rgb": self.to_rgb}
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(mean={self.mean}, std={self.std}, to_rgb={self.to_rgb})"


@PIPELINES.register_module()
class ResizeMultiViewImages:
    """Resizes the images of all cameras to one size, or by one factor.

    Args:
        size: (height, width) in pixels.
        scale: factor; give this or `size`.
        change_intrinsics: scale the projection along. Without it points no longer meet the pixels
            that they belong to.

    Raises:
        ValueError: neither or both of `size` and `scale` are given.
    """

    def __init__(
        self,
        size: tuple[int, int] | None = None,
        scale: float | None = None,
        change_intrinsics: bool = True,
    ) -> None:
        if (size is None) == (scale is None):
            raise ValueError(f"give one of size and scale, got size={size}, scale={scale}")
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.scale = scale
        self.change_intrinsics = change_intrinsics

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        kept = {key: results[key] for key in MATRICES if key in results}
        resize_images(results, [self._size(image) for image in results["img"]])
        if not self.change_intrinsics:
            results.update(kept)
        return results

    def _size(self, image: np.ndarray) -> tuple[int, int]:
        return self.size or scaled_size(image, self.scale)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size}, scale={self.scale})"


@PIPELINES.register_module()
class RandomScaleImageMultiViewImage:
    """Resizes the images of all cameras by one factor, drawn from a list.

    Args:
        scales: the factors; one alone is always taken.
    """

    def __init__(self, scales: Sequence[float]) -> None:
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales must be positive factors, got {list(scales)}")
        self.scales = tuple(scales)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        scale = self.scales[np.random.randint(len(self.scales))]
        resize_images(results, [scaled_size(image, scale) for image in results["img"]])
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(scales={self.scales})"


def scaled_size(image: np.ndarray, scale: float) -> tuple[int, int]:
    """(height, width) of an image times a factor, rounded down, at least 1."""
    return max(int(image.shape[0] * scale), 1), max(int(image.shape[1] * scale), 1)


@PIPELINES.register_module(
    name=["PadMultiViewImage", "CustomPadMultiViewImage", "PadMultiViewImages"]
)
class PadMultiViewImage:
    """Pads the images of all cameras at the right and the bottom.

    Args:
        size: (height, width) afterwards.
        size_divisor: pad to the next multiples of it instead.
        pad_val: value of the new pixels.
        change_intrinsics: legacy, for the published VectorMapNet checkpoint only. Scales the
            projection by padded over original size, although padding stretches nothing; points
            then land too far right and down. That model was trained so.

    Raises:
        ValueError: neither or both of `size` and `size_divisor` are given.
    """

    def __init__(
        self,
        size: tuple[int, int] | None = None,
        size_divisor: int | None = None,
        pad_val: float = 0,
        change_intrinsics: bool = False,
    ) -> None:
        if (size is None) == (size_divisor is None):
            raise ValueError(
                f"give one of size and size_divisor, got size={size}, size_divisor={size_divisor}"
            )
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.size_divisor = size_divisor
        self.pad_val = (pad_val,) * 3  # OpenCV gives a single number to the first channel only
        self.change_intrinsics = change_intrinsics
        if change_intrinsics:
            logger.warning(
                "change_intrinsics of the padding step stretches the projection; it fits only the "
                "published VectorMapNet checkpoint, leave it out for a new training"
            )

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Pads.

        Raises:
            ValueError: an image is larger than `size`.
        """
        before = results["img"]
        padded = [self._pad(image) for image in before]
        results["img"] = padded
        results["img_shape"] = [image.shape for image in before]
        results["pad_shape"] = [image.shape for image in padded]
        if self.change_intrinsics:
            scales = [
                (new.shape[1] / old.shape[1], new.shape[0] / old.shape[0])
                for old, new in zip(before, padded)
            ]
            scale_matrices(results, scales)
        return results

    def _pad(self, image: np.ndarray) -> np.ndarray:
        if self.size is None:
            return mmcv.impad_to_multiple(image, self.size_divisor, pad_val=self.pad_val)
        if image.shape[0] > self.size[0] or image.shape[1] > self.size[1]:
            raise ValueError(
                f"an image of {image.shape[0]}x{image.shape[1]} (height x width) cannot be padded "
                f"to {self.size[0]}x{self.size[1]}: resize it before, or pad to a larger size"
            )
        return mmcv.impad(image, shape=self.size, pad_val=self.pad_val)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size}, size_divisor={self.size_divisor})"
