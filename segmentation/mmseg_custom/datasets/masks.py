"""What can be wrong with one image and its mask: sizes, colours instead of indices, labels.

A mask is read as mmseg's `LoadAnnotations` reads it. With its default decoder (Pillow) a palette
PNG gives the palette indices, a grey PNG the grey values; with `imdecode_backend="cv2"` a palette
PNG gives colours, which is one of the things found here.
"""

from __future__ import annotations

import os.path as osp
from dataclasses import dataclass
from typing import Any

import mmcv
import numpy as np
from PIL import Image, UnidentifiedImageError

from .errors import DatasetError, listed

IGNORE = 255  # the label that no loss and no metric counts
_ROTATED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True)
class MaskRules:
    """What the masks of a data set may hold.

    Attributes:
        num_labels: number of classes that the files hold (before any label mapping).
        reduce_zero_label: label 0 is ignored and k stands for class k - 1.
        ignore_index: label that is ignored besides 255.
        backend: decoder of `LoadAnnotations` ("pillow" or "cv2").
    """

    num_labels: int
    reduce_zero_label: bool = False
    ignore_index: int = IGNORE
    backend: str = "pillow"

    @property
    def highest(self) -> int:
        """Highest label of a class, as written in the files."""
        return self.num_labels if self.reduce_zero_label else self.num_labels - 1

    def allowed(self) -> str:
        """The allowed values in words."""
        if self.reduce_zero_label:
            first = f"1..{self.highest}, and 0 and {IGNORE} for ignored pixels"
            return f"{first} (reduce_zero_label=True: label k is class k - 1)"
        ignored = {IGNORE, self.ignore_index}
        also = " and ".join(str(label) for label in sorted(ignored, reverse=True))
        return f"0..{self.highest}, and {also} for ignored pixels (reduce_zero_label=False)"

    def wrong(self, labels: np.ndarray) -> np.ndarray:
        """Those of the distinct labels that are not allowed."""
        ok = (labels >= 0) & (labels <= self.highest)
        return labels[~(ok | (labels == IGNORE) | (labels == self.ignore_index))]


def image_size(path: str) -> tuple[int, int, bool]:
    """Width and height as the loader sees them (EXIF rotation applied), and whether it rotates.

    Only the header is read.

    Raises:
        DatasetError: the file is missing or not an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            rotated = image.getexif().get(_ORIENTATION) in _ROTATED
    except FileNotFoundError as error:
        raise DatasetError(f"image {path} is missing") from error
    except (OSError, ValueError, UnidentifiedImageError) as error:
        raise DatasetError(
            f"image {path} cannot be read (corrupt, empty or not an image)"
        ) from error
    return (height, width, True) if rotated else (width, height, False)


def read_mask(path: str, backend: str = "pillow") -> tuple[np.ndarray, str]:
    """The values in a mask's file and its Pillow mode ("P" palette, "L" grey, "RGB", ...).

    Raises:
        DatasetError: the file is missing or cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            mode = image.mode
        with open(path, "rb") as file:
            array = mmcv.imfrombytes(file.read(), flag="unchanged", backend=backend)
        if array is None:
            raise ValueError("not decoded")
    except FileNotFoundError as error:
        raise DatasetError(f"mask {path} is missing") from error
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
        raise DatasetError(
            f"mask {path} cannot be read (corrupt, empty or not an image)"
        ) from error
    return two_dimensional(array), mode


def two_dimensional(array: np.ndarray) -> np.ndarray:
    """(H, W, 1) as (H, W). mmseg squeezes, which also loses a height or width of one pixel."""
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array


def check_pair(image: str, mask: str, rules: MaskRules) -> np.ndarray:
    """Checks one image and its mask; returns the distinct labels of the mask.

    Raises:
        DatasetError: names the file, what is wrong, and what to do.
    """
    width, height, rotated = image_size(image)
    labels, mode = read_mask(mask, rules.backend)
    if labels.ndim != 2:
        raise DatasetError(_coloured(mask, labels, mode, rules))
    if labels.shape != (height, width):
        why = " (the image has an EXIF rotation, the mask does not follow it)" if rotated else ""
        raise DatasetError(
            f"mask {mask} is {labels.shape[1]} x {labels.shape[0]} pixels but its image {image} is "
            f"{width} x {height}{why}: both must have one size; resize the mask with nearest "
            "neighbour, or pair the right files (same name, img_suffix, seg_map_suffix)"
        )
    found = np.unique(labels)
    wrong = rules.wrong(found)
    if len(wrong):
        raise DatasetError(_out_of_range(mask, labels, wrong, mode, rules))
    return found


def _coloured(mask: str, labels: np.ndarray, mode: str, rules: MaskRules) -> str:
    """The sentence for a mask with more than one channel."""
    start = f"mask {mask} has shape {labels.shape}, one label per pixel (height, width) is needed"
    if mode == "P":
        return (
            f"{start}: it is a palette PNG, which imdecode_backend={rules.backend!r} turns into "
            "colours; leave LoadAnnotations at imdecode_backend='pillow', which reads the indices"
        )
    return (
        f"{start}: it is a colour picture (mode {mode}); write the class index of every pixel into "
        "a one-channel PNG (tools/convert_datasets/colour_masks.py does it from a list of colours)"
    )


def _out_of_range(
    mask: str, labels: np.ndarray, wrong: np.ndarray, mode: str, rules: MaskRules
) -> str:
    """The sentence for labels that no class has."""
    count = int(np.isin(labels, wrong).sum())
    text = (
        f"mask {mask} holds label{'s' if len(wrong) > 1 else ''} {listed(wrong)} ({count} of "
        f"{labels.size} pixels); allowed are {rules.allowed()}"
    )
    if len(wrong) == 1 and not rules.reduce_zero_label and wrong[0] == rules.num_labels:
        text += "; if the labels count from 1, set reduce_zero_label=True in the data set and in "
        text += "LoadAnnotations"
    elif mask.lower().endswith((".jpg", ".jpeg")):
        text += "; JPEG changes the values of pixels, masks must be PNG"
    elif mode == "L" and len(wrong) > 1:
        text += (
            "; if the file was a palette or colour PNG that a program saved as grey, its values "
        )
        text += "are brightnesses: save the indices instead"
    elif int(wrong.max()) > IGNORE:
        text += "; the file has 16 bits per pixel, of which only 8 are read"
    return text


def pair_paths(leaf: Any, index: int) -> tuple[str, str | None]:
    """Paths of the image and of the mask (None without `ann_dir`) of sample `index`."""
    info = leaf.img_infos[index]
    image = osp.join(leaf.img_dir or "", info["filename"])
    if "ann" not in info:
        return image, None
    return image, osp.join(leaf.ann_dir or "", info["ann"]["seg_map"])
