"""The training run of a detector: data loaders and evaluation for `mmcv_custom.training`.

mmdet's `train_detector` does the same for GPUs; its parts (data loaders, evaluation hooks,
learning-rate scaling) are used here, and the run also works on the CPU, with several processes too.
"""

from __future__ import annotations

import logging
from typing import Any

from mmcv import Config
from mmcv.runner import BaseRunner, Hook
from mmcv_custom.runtime import naming_unknown_types
from mmcv_custom.training import run_training
from mmdet.apis.train import auto_scale_lr
from mmdet.core import DistEvalHook, EvalHook
from mmdet.core.utils import sync_random_seed
from mmdet.datasets import build_dataloader, replace_ImageToTensor
from mmdet.datasets.samplers import class_aware_sampler, distributed_sampler, infinite_sampler
from torch import nn
from torch.utils.data import DataLoader, Dataset


def draw_seeds_on_the_cpu() -> None:
    """mmdet's samplers agree on a seed by a GPU tensor, also where a run uses no GPU.

    Symptom: `RuntimeError: Found no NVIDIA driver` with `IterBasedRunner` and several processes.
    """

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
    """mmdet's loader of one training data set, with its defaults."""
    options = {
        "samples_per_gpu": 2,
        "workers_per_gpu": 2,
        "num_gpus": len(cfg.gpu_ids),
        "dist": distributed,
        "seed": cfg.seed,
        "runner_type": cfg.runner.type,
        "persistent_workers": False,
        **cfg.data.get("train_dataloader", {}),
    }
    return build_dataloader(dataset, **options)


def build_evaluation(dataset: Dataset, cfg: Config, distributed: bool) -> Hook:
    """mmdet's evaluation hook for `dataset`."""
    options = {
        "samples_per_gpu": 1,
        "workers_per_gpu": 2,
        "dist": distributed,
        "shuffle": False,
        "persistent_workers": False,
        **cfg.data.get("val_dataloader", {}),
    }
    loader = build_dataloader(dataset, **options)
    evaluation = {**cfg.get("evaluation", {}), "by_epoch": cfg.runner.type != "IterBasedRunner"}
    if not distributed:
        return EvalHook(loader, **evaluation)
    if cfg.device == "cpu":
        evaluation["gpu_collect"] = False
    return DistEvalHook(loader, **evaluation)


def batch_in_validation(cfg: Config) -> None:
    """Lets validation take several images at once, where the config asks for it."""
    if cfg.data.get("val_dataloader", {}).get("samples_per_gpu", 1) > 1:
        cfg.data.val.pipeline = replace_ImageToTensor(cfg.data.val.pipeline)
