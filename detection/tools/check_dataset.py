"""Look at the data of a config before training: python tools/check_dataset.py CONFIG [--images]

Builds the training, validation and test data and reports all that is wrong, not only the first
split's. With --images every image is opened too. Exit code 1 when something is wrong.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

import cv2
import mmdet_custom  # noqa: F401  registers the data sets
import numpy as np
from internimage.cli import ArgumentParser, run_program
from mmcv import Config
from mmcv_custom.config_checks import KeyValues
from mmcv_custom.runtime import load_config
from mmdet.utils import update_data_root
from mmdet_custom.datasets.checks import DatasetError, build_data
from mmdet_custom.datasets.image_checks import image_path
from mmdet_custom.datasets.splits import leaf_data_sets
from tqdm import tqdm

logger = logging.getLogger("mmdet.data")

SPLITS = ("train", "val", "test")
SHOWN = 20  # broken images that are named one by one


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = ArgumentParser("check_dataset.py", description="Check the data of a config")
    add = parser.add_argument
    add("config", help="config file")
    add("--splits", nargs="+", choices=SPLITS, default=list(SPLITS), help="default: all")
    add("--images", action="store_true", help="open every image")
    add("--cfg-options", nargs="+", action=KeyValues, help="key=value overrides of the config")
    return parser.parse_args(argv)


def fault_of_image(path: str, info: dict[str, Any]) -> str | None:
    """What is wrong with an image, or None."""
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    if image is None:
        return f"{path}: not an image, corrupt or cut off"
    height, width = image.shape[:2]
    given = (info.get("width", width), info.get("height", height))
    if given != (width, height):
        return f"{path}: is {width} x {height} pixels, the annotations say {given[0]} x {given[1]}"
    return None


def check_all_images(leaf: Any) -> list[str]:
    """Opens every image of a data set; returns what is wrong."""
    paths = [image_path(leaf, i) for i in range(len(leaf))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = tqdm(
            pool.map(fault_of_image, paths, leaf.data_infos), total=len(paths), desc="images"
        )
        return [fault for fault in faults if fault]


def check_split(cfg: Config, split: str, images: bool) -> list[str]:
    """Builds and checks one split; returns what is wrong."""
    try:
        dataset = build_data(cfg, cfg.data[split], {} if split == "train" else {"test_mode": True})
    except DatasetError as error:
        return [str(error)]
    faults: list[str] = []
    for leaf in leaf_data_sets(dataset):
        logger.info(
            "data.%s: %s, %d images, %d classes",
            *(split, leaf.ann_file, len(leaf), len(leaf.CLASSES)),
        )
        if images:
            faults += check_all_images(leaf)
    return faults


def run(args: argparse.Namespace) -> int:
    """Checks the wanted splits."""
    cfg = load_config(args.config, args.cfg_options, parts=("data",))
    update_data_root(cfg)
    wrong = 0
    done: list[Any] = []
    for split in args.splits:
        if cfg.data.get(split) is None or cfg.data[split] in done:
            continue  # val and test are often the same
        done.append(cfg.data[split])
        faults = check_split(cfg, split, args.images)
        wrong += len(faults)
        for fault in faults[:SHOWN]:
            logger.error("%s", fault)
        if len(faults) > SHOWN:
            logger.error("... and %d more in data.%s", len(faults) - SHOWN, split)
    if wrong:
        raise DatasetError(f"{wrong} faults found in the data of {args.config}")
    logger.info("nothing wrong found")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(run, parse_args()))
