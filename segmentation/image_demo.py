"""Paint what a segmentor sees: ``python image_demo.py INPUT CONFIG CHECKPOINT``.

INPUT is an image, a folder (searched in all depths), a quoted glob pattern or a video.
``python image_demo.py INPUT --model NAME`` takes a released model; its weights are downloaded once.
Pictures go to the folder ``--out`` under the names of the images, with a legend of the classes that
occur below each; ``--labels FOLDER`` also writes the class of every pixel, as grey PNG files.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import mmseg_custom  # noqa: F401  (registers models and data sets)
import numpy as np
import torch
from internimage.cli import ArgumentParser, run_program
from mmcv.parallel import collate, scatter
from mmcv_custom.batch_norm import use_local_batch_norm
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
from mmseg.core.evaluation import get_palette
from mmseg.datasets import DATASETS
from mmseg.datasets.pipelines import Compose
from mmseg.models import build_segmentor
from mmseg_custom.overlay import colours, legend, paint
from mmseg_custom.released_heads import prepare_config, prepare_model
from mmseg_custom.testing import check_inference, write_image
from torch import nn

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
PALETTES = ("ade20k", "cityscapes", "cocostuff")
MOST_NAMED = 8  # classes in the line that is printed for an input


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of image_demo.py."""
    parser = ArgumentParser(
        "image_demo.py", description="Paint what a segmentor sees", allow_abbrev=False
    )
    add_arguments(parser, "segmentation")
    add = parser.add_argument
    add("--palette", choices=PALETTES, help="colours (default: the checkpoint's or data set's)")
    add("--opacity", type=float, default=0.5, metavar="P", help="of the colours (default: 0.5)")
    add("--no-legend", action="store_true", help="only the image, in its own size")
    add("--labels", metavar="FOLDER", help="also write the classes, one grey PNG file per image")
    args = parser.parse_args(argv)
    check_arguments(parser, args)
    if not 0 < args.opacity <= 1:
        parser.error(f"--opacity must be above 0 and at most 1, got {args.opacity}")
    return args


def class_meta(checkpoint: dict[str, Any], config: Any, count: int) -> tuple[list[str], Any]:
    """Names and colours of the classes: from the checkpoint, the config, or its data set."""
    meta = checkpoint.get("meta", {})
    names, palette = meta.get("CLASSES"), meta.get("PALETTE")
    test = config.data.test
    kind = DATASETS.get(test.type)
    if not names:
        own = test.get("classes")
        names = own if own and not isinstance(own, str) else getattr(kind, "CLASSES", None)
        palette = test.get("palette") or (None if own else getattr(kind, "PALETTE", None))
    names = [str(name) for name in names or []]
    if len(names) < count:
        if names:
            logger.warning("%d class names for %d classes: the rest is numbered", len(names), count)
        names += [f"class {index}" for index in range(len(names), count)]
    return names[:count], palette


def load_segmentor(args: argparse.Namespace) -> nn.Module:
    """Build the segmentor with its weights, ready for `segment`.

    Raises:
        UnknownModelError: no released segmentor has this name.
        CheckpointError: the weights cannot be had or belong to another model.
        ValueError: the config is not one of a segmentor.
    """
    config, weights = read_config(args, "segmentation", HERE)
    check_inference(config)
    prepare_config(config)
    if config.model.get("backbone") is not None:
        config.model.backbone.init_cfg = None  # the checkpoint holds the backbone
    model = build_segmentor(config.model, test_cfg=config.get("test_cfg"))
    prepare_model(config, model)
    checkpoint = load_checkpoint(model, weights, map_location="cpu")
    names, palette = class_meta(checkpoint, config, model.decode_head.num_classes)
    if args.palette:
        palette = get_palette(args.palette)
    model.CLASSES, model.PALETTE = names, colours(palette, len(names))
    pipeline = config.data.test.pipeline
    model.pipeline = Compose([step for step in pipeline if step.type != "LoadImageFromFile"])
    use_local_batch_norm(model)
    return place(model, args.device)


def segment(model: nn.Module, image: np.ndarray) -> np.ndarray:
    """Class of every pixel, (H, W), of an image (H, W, 3) BGR.

    Raises:
        ValueError: the image is too narrow for the config's test size.
    """
    data = {"img": image, "filename": None, "ori_filename": None, "img_fields": ["img"]}
    data.update(img_shape=image.shape, ori_shape=image.shape, pad_shape=image.shape)
    data.update(scale_factor=1.0, flip=False)
    try:
        batch = collate([model.pipeline(data)], samples_per_gpu=1)
    except cv2.error as error:
        height, width = image.shape[:2]
        raise ValueError(f"an image of {width}x{height} pixels cannot be resized") from error
    device = next(model.parameters()).device
    if device.type == "cuda":
        batch = scatter(batch, [device])[0]
    else:
        batch["img_metas"] = [metas.data[0] for metas in batch["img_metas"]]
    with torch.no_grad():
        return np.asarray(model(return_loss=False, rescale=True, **batch)[0])


def draw(
    model: nn.Module, image: np.ndarray, labels: np.ndarray, args: argparse.Namespace, lines: int
) -> np.ndarray:
    """The painted image, above its legend; `lines` of the legend, 0 for as many as it takes."""
    picture = paint(image, labels, model.PALETTE, args.opacity)
    if args.no_legend:
        return picture
    strip = legend(labels, model.CLASSES, model.PALETTE, image.shape[1], lines)
    return np.concatenate([picture, strip])


def check_label_names(jobs: Sequence[Job]) -> None:
    """Raises ValueError when the labels of two inputs (a.png and a.jpg) have one name."""
    taken: dict[Path, Path] = {}
    for job in jobs:
        name = job.below.with_suffix(".png")
        if (other := taken.setdefault(name, job.source)) != job.source:
            raise ValueError(f"--labels: {other} and {job.source} would both be written to {name}")


def run(args: argparse.Namespace) -> int:
    """Load, segment and paint; returns the exit code."""
    logging.getLogger("mmcv").setLevel(logging.WARNING)
    jobs = find_jobs(args.img, args.out)
    if args.labels:
        check_label_names(jobs)
    model = load_segmentor(args)

    def draw_one(job: Job, image: np.ndarray, frame: int | None) -> tuple[np.ndarray, np.ndarray]:
        labels = segment(model, image)
        if args.labels:
            name = job.target.stem + ("" if frame is None else f"_{frame:06d}")
            path = Path(args.labels) / job.below.with_name(f"{name}.png")
            write_image(path, labels.astype(np.uint8))
        counts = np.bincount(labels.ravel(), minlength=len(model.CLASSES))
        return draw(model, image, labels, args, 0 if frame is None else 2), counts

    def describe(counts: list[np.ndarray]) -> str:
        total = np.sum(counts, axis=0)
        order = [i for i in np.argsort(-total, kind="stable") if total[i]]
        shares = [f"{model.CLASSES[i]} {total[i] / total.sum():.1%}" for i in order[:MOST_NAMED]]
        return ", ".join(shares) + (", ..." if len(order) > MOST_NAMED else "")

    return process(jobs, draw_one, describe, print)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    return run_program(run, parse_args(argv), KeyError, TypeError)


if __name__ == "__main__":
    sys.exit(main())
