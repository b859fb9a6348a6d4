"""Transforms that the configs use besides mmseg's: masks per class, Mapillary as Cityscapes."""

from __future__ import annotations

import numpy as np
import torch
from mmcv.parallel import DataContainer
from mmseg.datasets import PIPELINES, CityscapesDataset

# Mapillary Vistas 1.2 -> Cityscapes; what is not named here is ignored
MAPILLARY_TO_CITYSCAPES = {
    13: 0,  # Road
    24: 0,  # Lane Marking - General
    41: 0,  # Manhole
    2: 1,  # Curb
    15: 1,  # Sidewalk
    17: 2,  # Building
    6: 3,  # Wall
    3: 4,  # Fence
    45: 5,  # Pole
    47: 5,  # Utility Pole
    48: 6,  # Traffic Light
    50: 7,  # Traffic Sign (Front)
    30: 8,  # Vegetation
    29: 9,  # Terrain
    27: 10,  # Sky
    19: 11,  # Person
    20: 12,  # Bicyclist
    21: 12,  # Motorcyclist
    22: 12,  # Other Rider
    55: 13,  # Car
    61: 14,  # Truck
    54: 15,  # Bus
    58: 16,  # On Rails
    57: 17,  # Motorcycle
    52: 18,  # Bicycle
}


@PIPELINES.register_module()
class ToMask:
    """One binary mask for every class that occurs in the label map.

    Comes after all transforms that move pixels. Adds `gt_labels` (n,) int64, ascending, and
    `gt_masks` (n, H, W) uint8, both in a DataContainer: they are complete as they are, so that
    mmseg's DefaultFormatBundle can follow unchanged.

    Args:
        ignore_index: label that gets no mask.
    """

    def __init__(self, ignore_index: int = 255) -> None:
        self.ignore_index = ignore_index

    def __call__(self, results: dict) -> dict:
        semantic = results["gt_semantic_seg"]  # (H, W) uint8
        labels = np.flatnonzero(np.bincount(semantic.ravel()))
        labels = labels[labels != self.ignore_index]
        masks = (semantic == labels[:, None, None]).astype(np.uint8)  # (n, H, W)
        results["gt_labels"] = DataContainer(torch.from_numpy(labels.astype(np.int64)))
        results["gt_masks"] = DataContainer(torch.from_numpy(masks))
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(ignore_index={self.ignore_index})"


@PIPELINES.register_module()
class MapillaryHack:
    """Mapillary's 66 classes become the 19 of Cityscapes; all others, and 255, are ignored.

    (In the original implementation ids above 65, and so the ignored 255, become class 0, road.)
    """

    CLASSES = CityscapesDataset.CLASSES
    PALETTE = CityscapesDataset.PALETTE

    def __init__(self) -> None:
        self.table = np.full(256, 255, np.uint8)
        for source, target in MAPILLARY_TO_CITYSCAPES.items():
            self.table[source] = target

    def __call__(self, results: dict) -> dict:
        results["gt_semantic_seg"] = self.table[results["gt_semantic_seg"]]
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
