"""The test run of a detector: mmdet's loops on CPU or GPU, painted results, scales and flips."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
import torch
from matplotlib import pyplot
from mmcv import Config
from mmcv.image import tensor2imgs
from mmcv_custom.distributed import shared_folder
from mmcv_custom.runtime import ConfigError, naming_full_disks
from mmdet.apis import multi_gpu_test, single_gpu_test
from mmdet.datasets import CocoDataset, OpenImagesDataset, XMLDataset, replace_ImageToTensor
from torch import nn
from torch.utils.data import DataLoader, Dataset

from .datasets.crowd_human import CROWD_METRICS, CrowdHumanDataset
from .datasets.splits import leaf_data_sets

logger = logging.getLogger(__name__)

COCO_METRICS = ("bbox", "segm", "proposal", "proposal_fast")
METRICS = (  # the first kind that fits
    (CrowdHumanDataset, (*COCO_METRICS, *CROWD_METRICS)),
    (CocoDataset, COCO_METRICS),
    (OpenImagesDataset, ("mAP",)),
    (XMLDataset, ("mAP", "recall")),
)
TTA_FACTORS = (0.5, 1.0, 1.5)


class Painter:
    """Paints results onto the images that a model sees; a forward hook of the wrapped model.

    Args:
        folder: where the pictures go, under the names of the images; None for nowhere.
        show: show each in a window.
        threshold: lowest score that is painted.
        dataset: gives the colours of the classes.

    Raises:
        ConfigError: `show` without a screen.
    """

    def __init__(self, folder: str | None, show: bool, threshold: float, dataset: Dataset) -> None:
        self.folder = folder
        self.show = show
        self.threshold = threshold
        self.palette = getattr(dataset, "PALETTE", None)
        if show and pyplot.get_backend().lower() == "agg":
            raise ConfigError("--show needs a screen; --show-dir FOLDER writes the pictures")
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)

    def __call__(self, model: nn.Module, _: Any, inputs: dict[str, Any], results: Any) -> None:
        images = inputs["img"][0]
        images = images if isinstance(images, torch.Tensor) else images.data[0]
        metas = inputs["img_metas"][0].data[0]
        for image, meta, result in zip(
            tensor2imgs(images, **metas[0]["img_norm_cfg"]), metas, results
        ):
            height, width = meta["img_shape"][:2]
            size = meta["ori_shape"][1::-1]
            picture = mmcv.imresize(image[:height, :width], size)
            out = str(Path(self.folder) / meta["ori_filename"]) if self.folder else None
            with naming_full_disks(out):
                model.module.show_result(
                    picture,
                    result,
                    bbox_color=self.palette,
                    text_color=self.palette,
                    mask_color=self.palette,
                    show=self.show,
                    out_file=out,
                    score_thr=self.threshold,
                )


def test_model(
    model: nn.Module,
    loader: DataLoader,
    *,
    distributed: bool,
    tmpdir: str | None = None,
    parent: str = ".",
    gpu_collect: bool = False,
    painter: Painter | None = None,
) -> list[Any] | None:
    """mmdet's results of every image in order; None on all processes but the first.

    Args:
        model: in its wrapper.
        tmpdir: folder that all processes see, for collecting results; deleted afterwards.
        parent: without `tmpdir`, a new folder below this one.
        gpu_collect: collect over the GPUs instead.
        painter: paints the results.
    """
    if painter is not None:
        model.register_forward_hook(painter, with_kwargs=True)
    if not distributed:
        return single_gpu_test(model, loader)
    if gpu_collect and not next(model.parameters()).is_cuda:
        logger.warning("--gpu-collect: the run uses no GPU; results are collected by files")
        gpu_collect = False
    if not gpu_collect:
        tmpdir = tmpdir or shared_folder(parent)
    return multi_gpu_test(model, loader, tmpdir=tmpdir, gpu_collect=gpu_collect)


def check_metrics(
    names: Sequence[str], dataset: Dataset, model: nn.Module, what: str = "--eval"
) -> None:
    """Raises ConfigError for a metric that data set or model do not have, before the run.

    Args:
        names: the metrics.
        dataset: that they are computed on.
        model: the detector.
        what: where they were given.
    """
    leaf = next(leaf_data_sets(dataset))
    known = next((metrics for kind, metrics in METRICS if isinstance(leaf, kind)), None)
    for name in names:
        if known is not None and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{what} {name}: {type(leaf).__name__} has {', '.join(known)}{hint}")
    if "segm" in names and not getattr(model, "with_mask", True):
        raise ConfigError(f"{what} segm: {type(model).__name__} predicts no masks; use bbox")


def check_format(dataset: Dataset) -> None:
    """Raises ConfigError where --format-only has nothing to write, before the test runs."""
    if not isinstance(dataset, CocoDataset):
        raise ConfigError(
            f"--format-only: {type(dataset).__name__} has no files for a server; --out writes the "
            "results as .pkl, and tools/voc_results.py makes the files of VOC's server from that"
        )


def test_data(cfg: Config) -> list[Any]:
    """The test data sets of a config; several are concatenated by mmdet."""
    return cfg.data.test if isinstance(cfg.data.test, list) else [cfg.data.test]


def use_tta(cfg: Config) -> None:
    """Turns on several scales and flips in the test pipeline.

    The scales are `cfg.tta_scales` if there are any, else `TTA_FACTORS` times the test scale;
    every one with and without a horizontal flip.

    Raises:
        ConfigError: the pipeline has no MultiScaleFlipAug.
    """
    for data in test_data(cfg):
        steps = [step for step in data.get("pipeline", []) if step["type"] == "MultiScaleFlipAug"]
        if not steps:
            raise ConfigError("--tta needs a MultiScaleFlipAug in data.test.pipeline")
        scale = steps[0].get("img_scale")
        if isinstance(scale, list) and not isinstance(scale[0], (list, tuple)):
            scale = tuple(scale)
        scales = cfg.get("tta_scales")
        if scales is None and isinstance(scale, list):
            scales = scale
        elif scales is None and scale is not None:
            scales = [tuple(int(side * factor) for side in scale) for factor in TTA_FACTORS]
        if scales is None:
            raise ConfigError("--tta: MultiScaleFlipAug has no img_scale; set tta_scales")
        steps[0].img_scale = [tuple(one) for one in scales]
        steps[0].flip = True
        steps[0].setdefault("flip_direction", "horizontal")
        logger.info("test-time augmentation: scales %s, each also flipped", steps[0].img_scale)
    if (cfg.data.get("test_dataloader") or {}).get("samples_per_gpu", 1) > 1:
        cfg.data.test_dataloader.samples_per_gpu = 1  # mmdet augments one image at a time


def batch_in_test(cfg: Config) -> None:
    """Lets the test take several images at once, where the config asks for it."""
    if (cfg.data.get("test_dataloader") or {}).get("samples_per_gpu", 1) > 1:
        for data in test_data(cfg):
            data.pipeline = replace_ImageToTensor(data.pipeline)
