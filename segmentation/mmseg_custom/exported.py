"""Label maps of an exported file against those of PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np

PIXELS = 0.999  # least part of the pixels with the same label


def comparable(data: dict[str, Any]) -> dict[str, Any]:
    """Inputs whose results stay at the size of the input.

    PyTorch resizes scores to the size of the photo, an exported file has only labels to resize:
    they differ at the borders of objects, which says nothing about the file.
    """
    height, width = data["img"][0].shape[-2:]
    for meta in data["img_metas"][0]:
        meta["ori_shape"] = (height, width, 3)
    return data


def compare(expected: np.ndarray, got: np.ndarray) -> tuple[str, bool]:
    """Whether two label maps (H, W) are the same in nearly all pixels.

    Returns:
        a sentence about the difference, and whether it is small enough.
    """
    same = float(np.mean(np.asarray(expected) == np.asarray(got)))
    verdict = "same" if same >= PIXELS else "DIFFERENT"
    height, width = np.shape(expected)
    return f"{verdict}: {same:.4%} of {width}x{height} labels agree", same >= PIXELS
