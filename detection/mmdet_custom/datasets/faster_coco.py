"""COCO evaluation by faster-coco-eval: pycocotools' numbers, computed in C++.

Use it by the type of the data set, in a config or on the command line:
`--cfg-options data.test.type=FasterCocoDataset` (and `data.val.type` for training).
"""

from __future__ import annotations

from typing import Any

from mmdet.datasets import DATASETS, CocoDataset
from mmdet.datasets import coco as mmdet_coco
from pycocotools.cocoeval import COCOeval

from .errors import DatasetError


@DATASETS.register_module()
class FasterCocoDataset(CocoDataset):
    """CocoDataset whose `bbox`, `segm` and `proposal` metrics are computed by faster-coco-eval."""

    def evaluate_det_segm(self, *args: Any, **kwargs: Any) -> Any:
        """As CocoDataset's; mmdet's module holds the faster class while it runs.

        Raises:
            DatasetError: faster-coco-eval is not installed.
        """
        faster, usual = _faster_class(), mmdet_coco.COCOeval
        mmdet_coco.COCOeval = faster
        try:
            return super().evaluate_det_segm(*args, **kwargs)
        finally:
            mmdet_coco.COCOeval = usual


def _faster_class() -> type:
    """A COCOeval with the C++ matching and pycocotools' own summary."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise DatasetError(
            "FasterCocoDataset needs faster-coco-eval: pip install faster-coco-eval, or use "
            "type='CocoDataset'"
        ) from error

    class Faster(COCOeval_faster):
        def __init__(self, truth: Any, found: Any, metric: str) -> None:
            super().__init__(COCO(truth.dataset), COCO(found.dataset), metric)

        def summarize(self) -> None:
            # their own takes AP from the largest number of detections, pycocotools from 100
            COCOeval.summarize(self)

    return Faster
