"""The training run of a detector: data loaders and evaluation for `mmcv_custom.training`."""

from __future__ import annotations

import logging
from typing import Any

from mmcv import Config
from mmcv.runner import BaseRunner, DistEvalHook, EvalHook, Hook
from mmcv_custom.runtime import naming_unknown_types
from mmcv_custom.training import run_training
from mmdet.apis.train import auto_scale_lr
from mmdet.core.utils import sync_random_seed
from mmdet.datasets import build_dataloader
from mmdet.datasets.samplers import class_aware_sampler, distributed_sampler, infinite_sampler
from torch import nn
from torch.utils.data import DataLoader, Dataset

from .testing import build_test_loader, test_model

GREATER = ("mAP", "AP", "mIoU", "IoU", "F-Score", "fscore", "DET", "TOP", "Score", "OLS", "acc")
NOT_OPTIONS = ("pipeline",)  # of a published config's `evaluation`; data.val has its own


def draw_seeds_on_the_cpu() -> None:
    """mmdet's samplers agree on a seed by a GPU tensor, also where a run uses no GPU."""

    def on_the_cpu(seed: int | None = None, device: str = "cpu") -> int:
        return sync_random_seed(seed, "cpu")

    for module in (class_aware_sampler, distributed_sampler, infinite_sampler):
        module.sync_random_seed = on_the_cpu


def train_detector(
    model: nn.Module,
    datasets: list[Dataset],
    val_dataset: Dataset | None,
    cfg: Config,
    *,
    distributed: bool,
    logger: logging.Logger,
    timestamp: str,
    meta: dict[str, Any],
) -> BaseRunner:
    """Trains; returns the runner when it has finished.

    Args:
        model: a detector with its weights set.
        datasets: one data set per entry of `cfg.workflow`.
        val_dataset: evaluated while training; None for no evaluation.
        cfg, distributed, logger, timestamp, meta: as for `run_training`.
    """
    if cfg.device == "cpu":
        draw_seeds_on_the_cpu()
    loaders = [build_train_loader(dataset, cfg, distributed) for dataset in datasets]
    auto_scale_lr(cfg, distributed, logger)
    evaluation = None
    if val_dataset is not None:
        with naming_unknown_types("evaluation"):
            evaluation = build_evaluation(val_dataset, cfg, distributed)
    return run_training(
        model,
        loaders,
        evaluation,
        cfg,
        distributed=distributed,
        logger=logger,
        timestamp=timestamp,
        meta=meta,
    )


def build_train_loader(dataset: Dataset, cfg: Config, distributed: bool) -> DataLoader:
    """mmdet's shuffled loader of a training data set."""
    options = {
        "samples_per_gpu": 1,
        "workers_per_gpu": 2,
        "num_gpus": 1,
        "dist": distributed,
        "seed": cfg.seed,
        "runner_type": cfg.runner.type,
        "persistent_workers": False,
        **cfg.data.get("train_dataloader", {}),
    }
    return build_dataloader(dataset, **options)


def build_evaluation(dataset: Dataset, cfg: Config, distributed: bool) -> Hook:
    """mmcv's evaluation hook with the test loop of `testing`; greater metrics are better."""
    loader = build_test_loader(dataset, cfg, "val")
    settings = {k: v for k, v in cfg.get("evaluation", {}).items() if k not in NOT_OPTIONS}
    settings["by_epoch"] = cfg.runner.type != "IterBasedRunner"
    settings.setdefault("greater_keys", list(GREATER))
    settings["test_fn"] = test_model
    if not distributed:
        return EvalHook(loader, **settings)
    if cfg.device == "cpu":
        settings["gpu_collect"] = False
    return DistEvalHook(loader, **settings)
