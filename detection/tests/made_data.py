"""A small data set for the tests of checks, with a config, that a test may break before use."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import mini_data
import mmdet_custom  # noqa: F401
from mmcv import Config
from mmdet_custom.datasets.checks import build_data

NAMES = ("cat", "dog", "horse")
CONFIG = Path(__file__).parents[1] / "configs" / "coco" / "mask_rcnn_internimage_t_fpn_1x_coco.py"


class Made:
    """A data set of three images that a test may break before it is built."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = [f"{i}.jpg" for i in range(3)]
        self.content = mini_data.coco_json(NAMES, self.files, labels=(0, 2))
        for name in self.files:
            mini_data.picture(folder / "images" / name)
        self.json = folder / "own.json"

    def cfg(self, **settings: Any) -> Config:
        """The Mask R-CNN config for three classes, with this data."""
        mini_data.write_json(self.json, self.content)
        cfg = Config.fromfile(str(CONFIG))
        cfg.model.roi_head.bbox_head.num_classes = 3
        cfg.model.roi_head.mask_head.num_classes = 3
        for split in ("train", "val", "test"):
            pipeline = cfg.data[split].pipeline
            step = pipeline[2] if split == "train" else pipeline[1]
            step.img_scale = (96, 96)
            cfg.data[split].update(
                classes=NAMES, ann_file=str(self.json), img_prefix=str(self.folder / "images")
            )
            cfg.data[split].update(copy.deepcopy(settings))
        return cfg

    def build(self, split: str = "train", **settings: Any) -> Any:
        cfg = self.cfg(**settings)
        return build_data(cfg, cfg.data[split], None if split == "train" else dict(test_mode=True))
