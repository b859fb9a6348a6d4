"""Images as a network sees them, beside the pixels to draw."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset.decode import DECODE_ERRORS, decode_image
from extract_feature import feature_transform
from model_source import Source

logger = logging.getLogger(__name__)


@dataclass
class Picture:
    """One image.

    Attributes:
        path: the file.
        tensor: (1, 3, H, W), normalised, on the device of the model.
        pixels: (H, W, 3), uint8: the same, to look at.
    """

    path: Path
    tensor: Tensor
    pixels: np.ndarray

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


def denormalise(tensor: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(1, 3, H, W), normalised -> (H, W, 3), uint8."""
    mean_, std_ = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    image = (tensor[0].cpu() * std_ + mean_).clamp(0, 1) * 255
    return image.round().to(torch.uint8).permute(1, 2, 0).numpy()


def read_pictures(source: Source, paths: Sequence[Path], crop: bool, most: int) -> list[Picture]:
    """Reads images; those that cannot be read are named and skipped.

    Args:
        source: the model, whose configuration gives size and normalisation.
        paths: image files.
        crop: cut the centre square; else only the short side is made the configuration's size.
        most: how many are read; a warning says so if there are more.

    Raises:
        ValueError: none of the files could be read.
    """
    transform = feature_transform(source.config, crop)
    found = []
    for path in paths:
        if len(found) == most:
            logger.warning("the first %d of %d images are used", most, len(paths))
            break
        try:
            tensor = transform(decode_image(path))[None].to(source.device)
        except DECODE_ERRORS as error:
            logger.warning("skipping unreadable image %s: %s", path, error)
            continue
        pixels = denormalise(tensor, source.config.AUG.MEAN, source.config.AUG.STD)
        found.append(Picture(path, tensor, pixels))
    if not found:
        raise ValueError(f"none of the {len(paths)} files could be read")
    return found


def check_level(source: Source, level: int) -> None:
    """Raises ValueError unless the model has this level."""
    count = len(source.model.levels)
    if not 0 <= level < count:
        raise ValueError(f"no level {level}: the model has the levels 0 to {count - 1}")


def level_stride(level: int) -> int:
    """Image pixels per pixel of a level's map.

    Every convolution of stride 2 has a 3x3 kernel and a padding of 1, so pixel (r, c) of the map
    lies over pixel (r * stride, c * stride) of the image.
    """
    return 4 * 2**level
