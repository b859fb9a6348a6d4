"""CrowdHuman (arXiv 1805.00123) as a COCO-format data set with one class and its own metrics."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.utils import print_log
from mmdet.datasets import DATASETS, CocoDataset

from .crowd_metrics import (
    Scene,
    average_precision,
    curve,
    jaccard_index,
    log_average_miss_rate,
)

CROWD_METRICS = ("AP", "MR", "JI")


@DATASETS.register_module()
class CrowdHumanDataset(CocoDataset):
    """People in crowds; `tools/create_crowd_anno.py` writes the json from the published files.

    `iscrowd` marks regions to ignore: reflections, crowds too dense to annotate, other figures.
    """

    CLASSES = ("person",)
    PALETTE = [(220, 20, 60)]  # noqa: RUF012 - as mmdet declares it

    def evaluate(
        self,
        results: Sequence[Any],
        metric: str | Sequence[str] = "bbox",
        logger: logging.Logger | str | None = None,
        iou_thr: float = 0.5,
        **kwargs: Any,
    ) -> OrderedDict[str, float]:
        """COCO's metrics and CrowdHuman's.

        Args:
            results: per image a list with one array (N, 5), or a tuple of it and masks.
            metric: `bbox` gives COCO's numbers and all of CrowdHuman's; `AP`, `MR` (the
                log-average miss rate MR^-2) and `JI` give one; the others are CocoDataset's.
            logger: where the numbers are printed.
            iou_thr: IoU from which a detection fits a person.
            kwargs: for `CocoDataset.evaluate`.

        Returns:
            `bbox_mAP`, ... of COCO, then `AP`, `MR`, `JI` and `JI_threshold` as fractions. For MR
            less is better: `evaluation=dict(save_best='MR', rule='less')`.
        """
        metrics = [metric] if isinstance(metric, str) else list(metric)
        coco = [name for name in metrics if name not in CROWD_METRICS]
        found: OrderedDict[str, float] = OrderedDict()
        if coco:
            found.update(super().evaluate(results, coco, logger=logger, **kwargs))
            if "bbox" in coco and not found:  # nothing detected; save_best needs its key
                found["bbox_mAP"] = 0.0
        own = CROWD_METRICS if "bbox" in metrics else [m for m in metrics if m in CROWD_METRICS]
        if own:
            found.update(self._evaluate_crowd(results, own, iou_thr))
            shown = ", ".join(f"{key} {found[key]:.4f}" for key in own)
            print_log(f"CrowdHuman at IoU {iou_thr}: {shown}", logger=logger)
        return found

    def _evaluate_crowd(
        self, results: Sequence[Any], metrics: Sequence[str], iou_thr: float
    ) -> dict[str, float]:
        if len(results) != len(self):
            raise ValueError(f"{len(results)} results for a data set of {len(self)} images")
        scenes = [self._scene(i, result) for i, result in enumerate(results)]
        found = {}
        counts = curve(scenes, iou_thr)
        if "AP" in metrics:
            found["AP"] = average_precision(counts)
        if "MR" in metrics:
            found["MR"] = log_average_miss_rate(counts)
        if "JI" in metrics:
            found["JI"], found["JI_threshold"] = jaccard_index(scenes, iou_thr)
        return found

    def _scene(self, index: int, result: Any) -> Scene:
        """One image; the annotated boxes as they are, also where they reach out of the image."""
        boxes = result[0] if isinstance(result, tuple) else result
        ids = self.coco.get_ann_ids(img_ids=[self.data_infos[index]["id"]])
        rows = [row for row in self.coco.load_anns(ids) if min(row["bbox"][2:]) > 0]
        corners = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        skip = np.array(
            [
                bool(row.get("iscrowd") or row.get("ignore"))
                or row["category_id"] not in self.cat_ids
                for row in rows
            ],
            dtype=bool,
        )
        detections = np.asarray(boxes[0], dtype=np.float64).reshape(-1, 5)
        return Scene(detections, corners[~skip], corners[skip])
