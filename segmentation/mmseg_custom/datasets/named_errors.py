"""Loading steps that name the file they fail on, wrapped around mmseg's own.

mmseg says "'NoneType' object has no attribute 'shape'" of a corrupt image, and a label out of range
ends in an assertion inside a CUDA kernel.
"""

from __future__ import annotations

import os.path as osp
from typing import Any

import cv2
import numpy as np
from mmseg.datasets.pipelines import LoadAnnotations, LoadImageFromFile

from .errors import DatasetError
from .masks import IGNORE, MaskRules, check_pair, image_size


class _Named:
    """One of mmseg's loading steps; everything but the call is the step's own."""

    def __init__(self, step: Any) -> None:
        self.step = step

    def __getattr__(self, name: str) -> Any:
        if name == "step":  # asked for while unpickling, before it is there
            raise AttributeError(name)
        return getattr(self.step, name)

    def __repr__(self) -> str:
        return repr(self.step)


class NamedImage(_Named):
    """`LoadImageFromFile` with errors that name the file."""

    def __call__(self, results: dict) -> dict:
        path = osp.join(results.get("img_prefix") or "", results["img_info"]["filename"])
        try:
            return self.step(results)
        except FileNotFoundError as error:
            raise DatasetError(f"image {path} is missing") from error
        except (OSError, ValueError, AttributeError, TypeError, SyntaxError, cv2.error) as error:
            # the decoder gives None for what it cannot read, and mmseg then asks for its shape
            raise DatasetError(
                f"image {path} cannot be read (corrupt, empty or not an image): replace it or take "
                "it out; tools/check_dataset.py CONFIG --all lists all of them"
            ) from error


class NamedMask(_Named):
    """`LoadAnnotations` with errors that name the file, and a look at size and labels.

    Args:
        step: mmseg's `LoadAnnotations`.
        rules: what the files may hold.
        num_classes: classes after loading; labels at or above it, besides ignored ones, are wrong.
    """

    def __init__(self, step: LoadAnnotations, rules: MaskRules, num_classes: int) -> None:
        super().__init__(step)
        self.rules = rules
        self.num_classes = num_classes

    def __call__(self, results: dict) -> dict:
        path = osp.join(results.get("seg_prefix") or "", results["ann_info"]["seg_map"])
        try:
            results = self.step(results)
        except FileNotFoundError as error:
            raise DatasetError(
                f"mask {path} is missing; ann_dir and seg_map_suffix must lead to the masks"
            ) from error
        except (OSError, ValueError, AttributeError, TypeError, SyntaxError, cv2.error) as error:
            raise DatasetError(
                f"mask {path} cannot be read (corrupt, empty or not an image): replace it or take "
                "it out; tools/check_dataset.py CONFIG --all lists all of them"
            ) from error
        labels = results["gt_semantic_seg"]
        if labels.ndim < 2:  # mmseg has squeezed a height or width of one pixel away
            width, height, _ = image_size(path)
            if labels.size == width * height:  # else it has colours
                results["gt_semantic_seg"] = labels.reshape(height, width)
        if not self._fits(results):
            image = results.get("filename")
            if image is not None:
                check_pair(image, path, self.rules)  # says what is wrong with the file
            raise DatasetError(f"mask {path}: labels other than {self.rules.allowed()}")
        return results

    def _fits(self, results: dict) -> bool:
        labels = results["gt_semantic_seg"]  # (H, W) uint8
        if labels.ndim != 2:
            return False
        if "img_shape" in results and results["img_shape"][:2] != labels.shape:
            return False
        counts = cv2.calcHist([np.ascontiguousarray(labels)], [0], None, [256], [0, 256]).ravel()
        counts[[IGNORE, self.rules.ignore_index]] = 0
        return not counts[self.num_classes :].any()


def name_broken_files(leaf: Any, rules: MaskRules) -> None:
    """Makes the loading steps of a data set name the file that they cannot use."""
    steps = getattr(leaf.pipeline, "transforms", [])
    for i, step in enumerate(steps):
        if type(step) is LoadImageFromFile:
            steps[i] = NamedImage(step)
        elif type(step) is LoadAnnotations:
            steps[i] = NamedMask(step, rules, len(leaf.CLASSES))
    if type(leaf.gt_seg_map_loader) is LoadAnnotations:
        # reads for the evaluation, before mmseg's metric subtracts 1 (reduce_zero_label)
        most = len(leaf.CLASSES) + int(rules.reduce_zero_label)
        leaf.gt_seg_map_loader = NamedMask(leaf.gt_seg_map_loader, rules, most)
