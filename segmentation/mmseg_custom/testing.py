"""The test run of a segmentor: one pass that evaluates, paints, writes and keeps its results."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from internimage.write_file import replacing
from mmcv import Config
from mmcv.engine import collect_results_cpu, collect_results_gpu
from mmcv.runner import get_dist_info
from mmcv_custom.distributed import shared_folder
from mmcv_custom.runtime import ConfigError
from mmseg.datasets import CustomDataset
from torch import nn
from torch.utils.data import DataLoader, Dataset

from .datasets.errors import nearest
from .datasets.splits import leaf_configs, leaf_data_sets
from .overlay import colours, paint

logger = logging.getLogger(__name__)

MODES = ("whole", "slide")  # of test_cfg
METRICS = ("mIoU", "mDice", "mFscore")
RATIOS = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]  # scales of --aug-test, each also flipped

# What is done with the label maps (H, W) of a batch: (maps, indices) -> one value per image.
Action = Callable[[list[np.ndarray], list[int]], list[Any]]


def use_aug_test(cfg: Config) -> None:
    """Turns on several scales and flips in the test pipeline.

    Raises:
        ConfigError: the pipeline has no MultiScaleFlipAug.
    """
    for path, data in leaf_configs(cfg.data.test, "data.test"):
        steps = [step for step in data.get("pipeline", []) if step["type"] == "MultiScaleFlipAug"]
        if not steps:
            raise ConfigError(f"--aug-test needs a MultiScaleFlipAug in {path}.pipeline")
        steps[0].update(img_ratios=RATIOS, flip=True)
    logger.info("test-time augmentation: scales %s, each also flipped", RATIOS)


def check_inference(cfg: Config) -> None:
    """Raises ConfigError for a `test_cfg` that no image could be tested with.

    mmseg reads it at the first image, and then fails without words.
    """
    settings = cfg.model.get("test_cfg") or cfg.get("test_cfg") or {}
    mode = settings.get("mode")
    if mode not in MODES:
        raise ConfigError(f"model.test_cfg.mode={mode!r} is none of {', '.join(MODES)}")
    if mode == "whole":
        return
    pairs = {}
    for key in ("crop_size", "stride"):
        pairs[key] = value = settings.get(key)
        numbers = value if isinstance(value, (list, tuple)) else ()
        if len(numbers) != 2 or not all(type(v) is int and v > 0 for v in numbers):
            raise ConfigError(
                f"model.test_cfg.{key}={value!r}: sliding windows need height and width in pixels, "
                f"for example model.test_cfg.{key}={'512,512' if key == 'crop_size' else '341,341'}"
            )
    if any(step > size for step, size in zip(pairs["stride"], pairs["crop_size"])):
        raise ConfigError(
            f"model.test_cfg.stride={pairs['stride']} is larger than crop_size="
            f"{pairs['crop_size']}: the windows would leave gaps"
        )


def check_metrics(names: Sequence[str], dataset: Dataset, what: str = "--eval") -> None:
    """Raises ConfigError for a metric that the data set does not have, before the run.

    Args:
        names: the metrics.
        dataset: that they are computed on.
        what: where they were given.
    """
    leaf = next(leaf_data_sets(dataset))
    known = list(METRICS)
    if hasattr(leaf, "_evaluate_cityscapes"):
        known.append("cityscapes")
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{what} {name}: {type(leaf).__name__} has {', '.join(known)}{nearest(name, known)}"
            )


def test_model(
    model: nn.Module,
    loader: DataLoader,
    actions: list[Action],
    *,
    distributed: bool,
    tmpdir: str | None = None,
    parent: str = ".",
    gpu_collect: bool = False,
) -> list[tuple[Any, ...]] | None:
    """What every action gave for every image in order; None on all processes but the first.

    Args:
        model: in its wrapper.
        actions: called with every batch in the process that has it.
        tmpdir: folder that all processes see, for collecting; deleted afterwards.
        parent: without `tmpdir`, a new folder below this one.
        gpu_collect: collect over the GPUs instead.
    """
    model.eval()
    results: list[tuple[Any, ...]] = []
    rank, world_size = get_dist_info()
    progress = mmcv.ProgressBar(len(loader.dataset)) if rank == 0 else None
    for indices, data in zip(loader.batch_sampler, loader):
        with torch.no_grad():
            maps = model(return_loss=False, rescale=True, **data)
        results.extend(zip(*(action(maps, indices) for action in actions)))
        if progress is not None:
            progress.update(min(len(maps) * world_size, progress.task_num - progress.completed))
    if not distributed:
        return results
    if gpu_collect and not next(model.parameters()).is_cuda:
        logger.warning("--gpu-collect: the run uses no GPU; results are collected by files")
        gpu_collect = False
    if gpu_collect:
        return collect_results_gpu(results, len(loader.dataset))
    return collect_results_cpu(results, len(loader.dataset), tmpdir or shared_folder(parent))


test_model.__test__ = False  # not a test of pytest's


def place(dataset: Dataset, index: int) -> tuple[CustomDataset, dict[str, Any]]:
    """The data set inside wrappers that has image `index`, and what it knows of that image."""
    if hasattr(dataset, "get_dataset_idx_and_sample_idx"):
        number, index = dataset.get_dataset_idx_and_sample_idx(index)
        return place(dataset.datasets[number], index)
    return dataset, dataset.img_infos[index]


class Painter:
    """Paints label maps onto the images, which are read again from their files.

    Args:
        dataset: gives the images and the colours.
        folder: where the pictures go, under the names of the images; None for nowhere.
        show: show each in a window.
        opacity: share of the colours, 0 to 1.

    Raises:
        ConfigError: `show` without a screen.
    """

    def __init__(self, dataset: Dataset, folder: str | None, show: bool, opacity: float) -> None:
        self.dataset = dataset
        self.folder = folder
        self.show = show
        self.opacity = opacity
        if show and not has_screen():
            raise ConfigError("--show needs a screen; --show-dir FOLDER writes the pictures")

    def __call__(self, maps: list[np.ndarray], indices: list[int]) -> list[None]:
        for labels, index in zip(maps, indices):
            leaf, info = place(self.dataset, index)
            client = mmcv.FileClient(**leaf.file_client_args)
            path = info["filename"]
            if leaf.img_dir is not None:
                path = client.join_path(leaf.img_dir, path)
            image = mmcv.imfrombytes(client.get(path))
            palette = colours(self.dataset.PALETTE, len(self.dataset.CLASSES))
            picture = paint(image, np.asarray(labels), palette, self.opacity)
            if self.show:
                mmcv.imshow(picture, info["filename"])
            if self.folder:
                write_image(Path(self.folder) / info["filename"], picture)
        return [None] * len(maps)


class Formatter:
    """Writes label maps in the data set's own format, or else as grey PNG files of its labels.

    Args:
        dataset: its class may have `format_results`, with the options below.
        options: `imgfile_prefix`, the folder, and more of `format_results`.
    """

    def __init__(self, dataset: Dataset, options: dict[str, Any]) -> None:
        self.dataset = dataset
        self.options = options

    def __call__(self, maps: list[np.ndarray], indices: list[int]) -> list[str]:
        leaf = next(leaf_data_sets(self.dataset))
        if type(leaf).format_results is not CustomDataset.format_results:
            return self.dataset.format_results(maps, indices=indices, **self.options)
        return [self.write(labels, index) for labels, index in zip(maps, indices)]

    def write(self, labels: np.ndarray, index: int) -> str:
        """Labels as they are in the files of the data set: with `reduce_zero_label`, from 1."""
        leaf, info = place(self.dataset, index)
        path = Path(self.options["imgfile_prefix"]) / Path(info["filename"]).with_suffix(".png")
        write_image(path, (np.asarray(labels) + int(leaf.reduce_zero_label)).astype(np.uint8))
        return str(path)


def has_screen() -> bool:
    """Whether OpenCV can open a window."""
    return sys.platform != "linux" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def keep_maps(maps: list[np.ndarray], indices: list[int]) -> list[np.ndarray]:
    """The label maps in the smallest type, for --out."""
    return [labels.astype(np.uint8 if labels.max() < 256 else np.int16) for labels in maps]


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes an image whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as temporary:
        if not cv2.imwrite(str(temporary), image):
            raise OSError(f"{path} cannot be written as {path.suffix}")
