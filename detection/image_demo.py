"""Draw what a detector finds: ``python image_demo.py INPUT CONFIG CHECKPOINT``.

INPUT is an image, a folder (searched in all depths), a quoted glob pattern or a video.
``python image_demo.py INPUT --model NAME`` takes a released model; its weights are downloaded once.
Pictures go to the folder ``--out`` under the names of the images; ``--json FILE`` writes the
detections.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import cv2
import mmdet_custom  # noqa: F401  (registers models and data sets)
import numpy as np
from internimage.cli import ArgumentParser, run_program
from internimage.write_file import replacing
from mmcv import Config
from mmcv_custom.checkpoint import load_checkpoint
from mmcv_custom.demo import (
    Job,
    add_arguments,
    check_arguments,
    find_jobs,
    place,
    process,
    read_config,
)
from mmdet.apis import inference_detector
from mmdet.core.visualization import get_palette
from mmdet.datasets import DATASETS
from mmdet.models import build_detector
from torch import nn

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
PALETTES = ("coco", "voc", "citys", "random")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of image_demo.py."""
    parser = ArgumentParser(
        "image_demo.py", description="Draw what a detector finds", allow_abbrev=False
    )
    add_arguments(parser, "detection")
    add = parser.add_argument
    add("--json", metavar="FILE", help="write the detections, one JSON object per image or frame")
    add("--palette", default="coco", choices=PALETTES, help="colours (default: coco)")
    add("--score-thr", type=float, default=0.3, metavar="P", help="least score (default: 0.3)")
    add("--async-test", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.async_test:
        parser.error("--async-test never did anything: leave it out")
    check_arguments(parser, args)
    if not 0 <= args.score_thr <= 1:
        parser.error(f"--score-thr must be between 0 and 1, got {args.score_thr}")
    return args


def class_names(checkpoint: dict[str, Any], config: Config, count: int) -> list[str]:
    """Names of the classes: from the checkpoint, the config, its data set, or 'class 0', ..."""
    found = checkpoint.get("meta", {}).get("CLASSES")
    test = config.data.test
    if not found and not isinstance(test.get("classes"), str):
        found = test.get("classes") or getattr(DATASETS.get(test.type), "CLASSES", None)
    names = [found] if isinstance(found, str) else list(found or [])
    if len(names) != count:
        if names:
            logger.warning("%d class names for %d classes: classes are numbered", len(names), count)
        names = [f"class {index}" for index in range(count)]
    return names


def num_classes(model: nn.Module) -> int:
    """Number of classes of a detector's box head."""
    head = model.roi_head.bbox_head if hasattr(model, "roi_head") else model.bbox_head
    return (head[-1] if isinstance(head, nn.ModuleList) else head).num_classes


def load_detector(args: argparse.Namespace) -> nn.Module:
    """Build the detector with its weights, ready for ``inference_detector``.

    Raises:
        UnknownModelError: no released detector has this name.
        CheckpointError: the weights cannot be had or belong to another model.
        ValueError: the config is not one of a detector.
    """
    config, weights = read_config(args, "detection", HERE)
    model = build_detector(config.model, test_cfg=config.get("test_cfg"))
    checkpoint = load_checkpoint(model, weights, map_location="cpu")
    model.CLASSES = class_names(checkpoint, config, num_classes(model))
    model.cfg = config
    return place(model, args.device)


def detect(model: nn.Module, image: np.ndarray) -> Any:
    """mmdet's result for an image: boxes per class, and with a mask head masks per class.

    Raises:
        ValueError: the image is too narrow for the config's test size.
    """
    try:
        return inference_detector(model, image)
    except cv2.error as error:
        height, width = image.shape[:2]
        raise ValueError(f"an image of {width}x{height} pixels cannot be resized") from error


def records(result: Any, names: Sequence[str], threshold: float) -> list[dict[str, Any]]:
    """Detections of a result as plain values, best first.

    Returns:
        For each its class name, label, score, box (x, y, width, height) in pixels, and with masks
        the run-length code of COCO.
    """
    from pycocotools import mask as coco_mask

    boxes, masks = result if isinstance(result, tuple) else (result, None)
    found = []
    for label, rows in enumerate(boxes):
        for index, (x1, y1, x2, y2, score) in enumerate(rows.tolist()):
            if score <= threshold:
                continue
            row = {
                "class": names[label],
                "label": label,
                "score": score,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
            if masks is not None:
                code = coco_mask.encode(np.asfortranarray(masks[label][index], np.uint8))
                row["segmentation"] = {"size": code["size"], "counts": code["counts"].decode()}
            found.append(row)
    return sorted(found, key=lambda row: -row["score"])


def draw(model: nn.Module, image: np.ndarray, result: Any, args: argparse.Namespace) -> np.ndarray:
    """The image with boxes, masks and names; lines and letters grow with it."""
    boxes = result[0] if isinstance(result, tuple) else result
    if not any((rows[:, 4] > args.score_thr).any() for rows in boxes):
        return image
    scale = min(image.shape[:2]) / 600
    colours = get_palette(args.palette, len(model.CLASSES))
    return model.show_result(
        image,
        result,
        score_thr=args.score_thr,
        bbox_color=colours,
        text_color=(230, 230, 230),
        mask_color=colours,
        thickness=max(1, round(2 * scale)),
        font_size=max(5, round(13 * scale)),
    )


def note(
    model: nn.Module,
    job: Job,
    image: np.ndarray,
    result: Any,
    args: argparse.Namespace,
    log: TextIO | None,
    frame: int | None = None,
) -> int:
    """Write the detections to the JSON file; returns their number."""
    found = records(result, model.CLASSES, args.score_thr)
    if log:
        row = {"image": str(job.source), "width": image.shape[1], "height": image.shape[0]}
        row.update({} if frame is None else {"frame": frame}, detections=found)
        log.write(json.dumps(row) + "\n")
    return len(found)


def draw_all(
    model: nn.Module, jobs: Sequence[Job], args: argparse.Namespace, log: TextIO | None
) -> int:
    """Draw all inputs; returns the exit code."""

    def draw_one(job: Job, image: np.ndarray, frame: int | None) -> tuple[np.ndarray, int]:
        result = detect(model, image)
        count = note(model, job, image, result, args, log, frame)
        return draw(model, image, result, args), count

    def describe(counts: list[int]) -> str:
        return f"{sum(counts) or 'no'} detection{'s' * (sum(counts) != 1)}"

    return process(jobs, draw_one, describe, print)


def run(args: argparse.Namespace) -> int:
    """Load, detect and draw; returns the exit code."""
    for name in ("mmcv", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    jobs = find_jobs(args.img, args.out)
    model = load_detector(args)
    try:
        get_palette(args.palette, len(model.CLASSES))
    except AssertionError:
        logger.warning(
            "--palette %s has too few colours for %d classes: random",
            args.palette,
            len(model.CLASSES),
        )
        args.palette = "random"
    if not args.json:
        return draw_all(model, jobs, args, None)
    with replacing(args.json) as temporary, temporary.open("w", encoding="utf-8") as log:
        return draw_all(model, jobs, args, log)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    return run_program(run, parse_args(argv), KeyError, TypeError)


if __name__ == "__main__":
    sys.exit(main())
