"""NYU Depth V2 (Silberman et al., ECCV 2012) with the 40 classes of Gupta et al. (CVPR 2013)."""

from __future__ import annotations

from typing import Any

from mmseg.datasets import DATASETS, CustomDataset

from .results import write_label_maps


def voc_colours(count: int) -> list[list[int]]:
    """The first colours of Pascal VOC's colour map, after black: (count, 3) RGB.

    Bits 0, 3, 6, ... of the index give the highest bits of red, bits 1, 4, ... those of green, and
    bits 2, 5, ... those of blue.
    """
    return [
        [
            sum((i >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
            for channel in range(3)
        ]
        for i in range(1, count + 1)
    ]


@DATASETS.register_module()
class NYUDepthV2Dataset(CustomDataset):
    """Images and masks `*.png`; label k in a mask is class k - 1, label 0 is ignored.

    Args:
        options: as for mmseg's CustomDataset; `split` names the list of images (train.txt).
    """

    CLASSES = (
        "wall",
        "floor",
        "cabinet",
        "bed",
        "chair",
        "sofa",
        "table",
        "door",
        "window",
        "bookshelf",
        "picture",
        "counter",
        "blinds",
        "desk",
        "shelves",
        "curtain",
        "dresser",
        "pillow",
        "mirror",
        "floor mat",
        "clothes",
        "ceiling",
        "books",
        "refridgerator",  # the spelling of the data set
        "television",
        "paper",
        "towel",
        "shower curtain",
        "box",
        "whiteboard",
        "person",
        "night stand",
        "toilet",
        "sink",
        "lamp",
        "bathtub",
        "bag",
        "otherstructure",
        "otherfurniture",
        "otherprop",
    )

    PALETTE = voc_colours(40)

    def __init__(self, **options: Any) -> None:
        defaults = {"img_suffix": ".png", "seg_map_suffix": ".png", "reduce_zero_label": True}
        super().__init__(**{**defaults, **options})

    format_results = write_label_maps
