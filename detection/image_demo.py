"""Draw what a detector finds: ``python image_demo.py INPUT CONFIG CHECKPOINT``.

INPUT is an image, a folder (searched in all depths), a quoted glob pattern or a video.
``python image_demo.py INPUT --model NAME`` takes a released model; its weights are downloaded once.
Pictures go to the folder ``--out`` under the names of the images; ``--json FILE`` writes the
detections.
"""

from __future__ import annotations

import argparse
import glob
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import cv2
import mmdet_custom  # noqa: F401  (registers models and data sets)
import numpy as np
import torch
from internimage.cli import ArgumentParser, run_program
from internimage.released import UnknownModelError, list_models, released_model
from internimage.write_file import replacing
from mmcv import Config, DictAction
from mmcv_custom.checkpoint import load_checkpoint
from mmdet.apis import inference_detector
from mmdet.core.visualization import get_palette
from mmdet.datasets import DATASETS
from mmdet.models import build_detector
from torch import nn
from tqdm import tqdm

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
IMAGES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
CODECS = {".mp4": "mp4v", ".avi": "MJPG", ".mov": "mp4v", ".mkv": "mp4v"}
PALETTES = ("coco", "voc", "citys", "random")


@dataclass
class Job:
    """One file to read and where its picture goes."""

    source: Path
    target: Path

    @property
    def is_video(self) -> bool:
        return self.source.suffix.lower() in CODECS


class _ListModels(argparse.Action):
    """``--list-models``: prints the released detectors and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        for row in map(released_model, list_models(task="detection")):
            metrics = ", ".join(f"{key} {value}" for key, value in row.metrics.items())
            print(f"{row.name:52}  {row.dataset:12}  {metrics}".rstrip())
        parser.exit()


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of image_demo.py."""
    parser = ArgumentParser(
        "image_demo.py", description="Draw what a detector finds", allow_abbrev=False
    )
    add = parser.add_argument
    add("img", metavar="INPUT", help="image, folder, glob pattern or video")
    add("config", nargs="?", metavar="CONFIG", help="config file")
    add("checkpoint", nargs="?", metavar="CHECKPOINT", help="path, address or released model")
    add("--model", metavar="NAME", help="released detector instead of CONFIG and CHECKPOINT")
    add("--list-models", action=_ListModels, nargs=0, help="list the names and stop")
    add(
        "--out",
        default="demo",
        metavar="PATH",
        help="folder for the pictures, or for one input a file (default: demo)",
    )
    add("--json", metavar="FILE", help="write the detections, one JSON object per image or frame")
    add("--device", default="auto", help="auto | cpu | cuda | cuda:N (default: auto)")
    add("--palette", default="coco", choices=PALETTES, help="colours (default: coco)")
    add("--score-thr", type=float, default=0.3, metavar="P", help="least score (default: 0.3)")
    add("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="override CONFIG")
    add("--async-test", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.async_test:
        parser.error("--async-test never did anything: leave it out")
    if args.model and args.config:
        parser.error(f"--model {args.model} has its configuration: leave {args.config} out")
    if not args.model and not args.checkpoint:
        parser.error("which model? Give CONFIG CHECKPOINT, or --model NAME (see --list-models)")
    if not 0 <= args.score_thr <= 1:
        parser.error(f"--score-thr must be between 0 and 1, got {args.score_thr}")
    return args


def find_jobs(text: str, out: str) -> list[Job]:
    """The images and videos behind a path or pattern, each with the file to write.

    Raises:
        ValueError: there is none, two would be written to the same file, or an input would be
            overwritten.
    """
    path, target = Path(text), Path(out)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        known = [p for p in files if p.suffix.lower() in IMAGES]
        if not known:
            raise ValueError(f"{text}: no image in this folder ({', '.join(sorted(IMAGES))})")
        skipped = [str(p.relative_to(path)) for p in files if p not in set(known)]
        if skipped:
            names = ", ".join(skipped[:3]) + (", ..." if len(skipped) > 3 else "")
            logger.info("%s: skipped %d that are no images: %s", text, len(skipped), names)
        pairs = [(p, p.relative_to(path)) for p in known]
    else:
        files = (
            [path] if path.is_file() else [Path(p) for p in sorted(glob.glob(text, recursive=True))]
        )
        pairs = [(p, Path(p.name)) for p in files if p.is_file()]
        if not pairs:
            raise ValueError(
                f"{text}: no such file, folder or match (working directory {Path.cwd()})"
            )
    to_file = (
        len(pairs) == 1 and target.suffix.lower() in (*IMAGES, *CODECS) and not target.is_dir()
    )
    jobs = [Job(source, target if to_file else target / name) for source, name in pairs]
    taken: dict[Path, Path] = {}
    for job in jobs:
        if to_file and job.is_video != (target.suffix.lower() in CODECS):
            kind = "a video" if job.is_video else "an image"
            raise ValueError(f"--out {out}: the input is {kind}, this is the name of another kind")
        other = taken.setdefault(job.target.resolve(), job.source)
        if other != job.source:
            raise ValueError(f"{other} and {job.source} would both be written to {job.target}")
        if job.target.resolve() == job.source.resolve():
            raise ValueError(f"{job.source} would be overwritten: name another --out")
    return jobs


def resolve_device(text: str) -> torch.device:
    """``auto``: the first GPU if there is one, else the CPU.

    Raises:
        ValueError: no such device.
    """
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise ValueError(f"--device takes auto, cpu, cuda or cuda:N, got {text!r}") from error
    if device.type == "cuda" and not (device.index or 0) < torch.cuda.device_count():
        raise ValueError(f"--device {text}: {torch.cuda.device_count()} GPUs are visible")
    return device


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
    path, weights = args.config, args.checkpoint
    if args.model:
        row = released_model(args.model)
        if row.task != "detection":
            raise UnknownModelError(f"{args.model} is a {row.task} model: use {row.task}/")
        path, weights = HERE / row.config, args.model
    config = Config.fromfile(path)
    if args.cfg_options:
        config.merge_from_dict(args.cfg_options)
    if "model" not in config or not isinstance(config.get("data", {}).get("test"), dict):
        raise ValueError(f"{path} needs model and data.test: it is not the config of a detector")
    config.model.train_cfg = None
    model = build_detector(config.model, test_cfg=config.get("test_cfg"))
    checkpoint = load_checkpoint(model, str(weights), map_location="cpu")
    model.CLASSES = class_names(checkpoint, config, num_classes(model))
    model.cfg = config
    return model.to(resolve_device(args.device)).eval()


def read_image(path: Path) -> np.ndarray:
    """The image as (H, W, 3) BGR.

    Raises:
        ValueError: it cannot be read.
    """
    data = np.fromfile(path, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise ValueError(f"{path}: not an image that can be read")
    return image


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


def process_image(model: nn.Module, job: Job, args: argparse.Namespace, log: TextIO | None) -> int:
    """Write the picture of an image; returns the number of detections."""
    image = read_image(job.source)
    result = detect(model, image)
    with replacing(job.target) as temporary:
        if not cv2.imwrite(str(temporary), draw(model, image, result, args)):
            raise OSError(f"{job.target} cannot be written as {job.target.suffix}")
    return note(model, job, image, result, args, log)


def frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """The frames of a video, (H, W, 3) BGR."""
    while True:
        there, frame = video.read()
        if not there:
            return
        yield frame


def process_video(model: nn.Module, job: Job, args: argparse.Namespace, log: TextIO | None) -> int:
    """Write the video with drawings, whole or not at all; returns the number of detections."""
    video = cv2.VideoCapture(str(job.source))
    size = tuple(
        int(video.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
    )
    if not video.isOpened() or min(size) < 1:
        raise ValueError(f"{job.source}: not a video that can be read")
    codec = cv2.VideoWriter_fourcc(*CODECS[job.target.suffix.lower()])
    count, number = 0, -1
    with replacing(job.target) as temporary:
        writer = cv2.VideoWriter(str(temporary), codec, video.get(cv2.CAP_PROP_FPS) or 25, size)
        if not writer.isOpened():
            raise OSError(f"{job.target}: OpenCV cannot write such videos here; try --out x.avi")
        total = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) or None
        shown = tqdm(frames(video), total=total, desc=job.source.name, disable=None)
        for number, frame in enumerate(shown):
            result = detect(model, frame)
            writer.write(draw(model, frame, result, args))
            count += note(model, job, frame, result, args, log, number)
        writer.release()
        if number < 0:
            raise ValueError(f"{job.source}: the video has no frame that can be read")
    return count


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


def process(
    model: nn.Module, jobs: Sequence[Job], args: argparse.Namespace, log: TextIO | None
) -> int:
    """Draw all inputs; one that cannot be read does not stop the others. Returns the exit code."""
    failed = 0
    for job in jobs:
        try:
            found = (process_video if job.is_video else process_image)(model, job, args, log)
        except ValueError as error:
            text = str(error)
            logger.error("%s", text if str(job.source) in text else f"{job.source}: {text}")
            failed += 1
            continue
        print(f"{job.source} -> {job.target}: {found or 'no'} detection{'s' * (found != 1)}")
    if failed and len(jobs) > 1:
        logger.error("%d of %d inputs could not be read", failed, len(jobs))
    return int(failed > 0)


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
        return process(model, jobs, args, None)
    with replacing(args.json) as temporary, temporary.open("w", encoding="utf-8") as log:
        return process(model, jobs, args, log)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    return run_program(run, parse_args(argv), KeyError, TypeError)


if __name__ == "__main__":
    sys.exit(main())
