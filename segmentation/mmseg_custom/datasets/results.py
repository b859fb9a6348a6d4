"""Predictions as PNG files, for data sets whose mmseg class cannot write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from internimage.write_file import replacing
from mmseg.datasets import CustomDataset
from PIL import Image


def write_label_maps(
    dataset: CustomDataset,
    results: Sequence[np.ndarray],
    imgfile_prefix: str,
    indices: Sequence[int] | None = None,
    **_: Any,
) -> list[str]:
    """Writes label maps in the numbering of the data set's own masks (`format_results` of mmseg).

    Args:
        dataset: data set of the images.
        results: (H, W) class of every pixel, one per image.
        imgfile_prefix: folder of the files; the folders below `img_dir` are made again.
        indices: which images of the data set they are. Default: all.

    Returns:
        paths of the files.
    """
    paths = []
    for result, index in zip(results, range(len(dataset)) if indices is None else indices):
        name = Path(dataset.img_infos[index]["filename"])
        path = Path(imgfile_prefix) / name.with_suffix(".png")
        labels = np.asarray(result) + int(dataset.reduce_zero_label)
        with replacing(path) as temporary:
            Image.fromarray(labels.astype(np.uint8)).save(temporary)
        paths.append(str(path))
    return paths
