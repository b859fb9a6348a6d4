"""What image_demo.py of every task shares: finding the inputs, reading them, writing pictures."""

from __future__ import annotations

import argparse
import glob
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from internimage.cli import ArgumentParser
from internimage.released import UnknownModelError, list_models, released_model
from internimage.write_file import replacing
from mmcv import Config
from torch import nn
from tqdm import tqdm

from .config_checks import KeyValues
from .distributed import check_operators
from .runtime import load_config

logger = logging.getLogger(__name__)

IMAGES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
CODECS = {".mp4": "mp4v", ".avi": "MJPG", ".mov": "mp4v", ".mkv": "mp4v"}

# (input, image (H, W, 3) BGR, number of the frame or None) -> (its picture, what was found)
Draw = Callable[["Job", np.ndarray, "int | None"], tuple[np.ndarray, Any]]


@dataclass
class Job:
    """One file to read and where its picture goes.

    Attributes:
        source: image or video.
        target: file to write.
        below: name of `target`, with the folders that it has below the folder --out.
    """

    source: Path
    target: Path
    below: Path

    @property
    def is_video(self) -> bool:
        return self.source.suffix.lower() in CODECS


def add_arguments(parser: ArgumentParser, task: str) -> None:
    """The flags of every image_demo.py; `task` as in the table of released models."""
    add = parser.add_argument
    add("img", metavar="INPUT", help="image, folder, glob pattern or video")
    add("config", nargs="?", metavar="CONFIG", help="config file")
    add("checkpoint", nargs="?", metavar="CHECKPOINT", help="path, address or released model")
    add("--model", metavar="NAME", help="released model instead of CONFIG and CHECKPOINT")
    add("--list-models", action=_ListModels, nargs=0, const=task, help="list the names and stop")
    add(
        "--out",
        default="demo",
        metavar="PATH",
        help="folder for the pictures, or for one input a file (default: demo)",
    )
    add("--device", default="auto", help="auto | cpu | cuda | cuda:N (default: auto)")
    add("--cfg-options", nargs="+", action=KeyValues, metavar="KEY=VALUE", help="override CONFIG")


class _ListModels(argparse.Action):
    """``--list-models``: prints the released models of a task and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        for row in map(released_model, list_models(task=self.const)):
            metrics = ", ".join(f"{key} {value}" for key, value in row.metrics.items())
            sys.stdout.write(f"{row.name:52}  {row.dataset:12}  {metrics}".rstrip() + "\n")
        parser.exit()


def check_arguments(parser: ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program with 2 unless exactly one model is named."""
    if args.model and args.config:
        parser.error(f"--model {args.model} has its configuration: leave {args.config} out")
    if not args.model and not args.checkpoint:
        parser.error("which model? Give CONFIG CHECKPOINT, or --model NAME (see --list-models)")


def read_config(args: argparse.Namespace, task: str, folder: Path) -> tuple[Config, str]:
    """The config, and where the weights are: a path, an address or the name of a released model.

    Args:
        task: as in the table of released models.
        folder: of the task; its configs are below it.

    Raises:
        UnknownModelError: no released model of this task has the name of --model.
        ValueError: the config has no model or no test data.
    """
    path, weights = args.config, args.checkpoint
    if args.model:
        row = released_model(args.model)
        if row.task != task:
            raise UnknownModelError(f"{args.model} is a {row.task} model: use {row.task}/")
        path, weights = folder / row.config, args.model
    config = load_config(str(path), args.cfg_options)
    if "model" not in config or not isinstance(config.get("data", {}).get("test"), dict):
        raise ValueError(f"{path} needs model and data.test: it is no config of {task}")
    config.model.train_cfg = None
    return config, str(weights)


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
    jobs = [
        Job(source, target, Path(target.name)) if to_file else Job(source, target / name, name)
        for source, name in pairs
    ]
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


def place(model: nn.Module, device: str) -> nn.Module:
    """The model on a device (see `resolve_device`), in evaluation mode.

    Raises:
        ValueError: no such device.
        LaunchError: it is a GPU, and mmcv was compiled without CUDA.
    """
    chosen = resolve_device(device)
    if chosen.type == "cuda":
        check_operators(model)
    return model.to(chosen).eval()


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


def frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """The frames of a video, (H, W, 3) BGR."""
    while True:
        there, frame = video.read()
        if not there:
            return
        yield frame


def process(
    jobs: Sequence[Job],
    draw: Draw,
    describe: Callable[[list[Any]], str],
    tell: Callable[[str], Any],
) -> int:
    """Draws all inputs; one that cannot be read does not stop the others.

    Args:
        draw: makes the picture of an image or frame; pictures of a video have one size.
        describe: says what was found in all frames of an input.
        tell: gets a line for every input.

    Returns:
        the exit code.
    """
    failed = 0
    for job in jobs:
        try:
            found = (process_video if job.is_video else process_image)(job, draw)
        except ValueError as error:
            text = str(error)
            logger.error("%s", text if str(job.source) in text else f"{job.source}: {text}")
            failed += 1
            continue
        tell(f"{job.source} -> {job.target}: {describe(found)}")
    if failed and len(jobs) > 1:
        logger.error("%d of %d inputs could not be read", failed, len(jobs))
    return int(failed > 0)


def process_image(job: Job, draw: Draw) -> list[Any]:
    """Writes the picture of an image; returns what was found, as the only entry."""
    picture, found = draw(job, read_image(job.source), None)
    with replacing(job.target) as temporary:
        if not cv2.imwrite(str(temporary), picture):
            raise OSError(f"{job.target} cannot be written as {job.target.suffix}")
    return [found]


def process_video(job: Job, draw: Draw) -> list[Any]:
    """Writes the video with drawings, whole or not at all; returns what was found in each frame."""
    video = cv2.VideoCapture(str(job.source))
    if not video.isOpened():
        raise ValueError(f"{job.source}: not a video that can be read")
    codec = cv2.VideoWriter_fourcc(*CODECS[job.target.suffix.lower()])
    total = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) or None
    rate = video.get(cv2.CAP_PROP_FPS) or 25
    found: list[Any] = []
    writer = None
    with replacing(job.target) as temporary:
        shown = tqdm(frames(video), total=total, desc=job.source.name, disable=None)
        for number, frame in enumerate(shown):
            picture, one = draw(job, frame, number)
            if writer is None:
                writer = cv2.VideoWriter(str(temporary), codec, rate, picture.shape[1::-1])
                if not writer.isOpened():
                    raise OSError(f"{job.target}: OpenCV cannot write such videos; try --out x.avi")
            writer.write(picture)
            found.append(one)
        if writer is None:
            raise ValueError(f"{job.source}: not a video that can be read, it has no frame")
        writer.release()
    return found
