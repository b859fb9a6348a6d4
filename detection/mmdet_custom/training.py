"""The training run of a detector, from built model and data sets to mmcv's runner.

mmdet's `train_detector` does the same for GPUs; its parts (data loaders, optimizer, evaluation
hooks, learning-rate scaling) are used here, and the run also works on the CPU, with several
processes too.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import mmdet.datasets.samplers.infinite_sampler as infinite_sampler
import torch
from mmcv import Config
from mmcv.runner import (
    HOOKS,
    OPTIMIZER_BUILDERS,
    OPTIMIZERS,
    BaseRunner,
    DistSamplerSeedHook,
    EpochBasedRunner,
    Fp16OptimizerHook,
    build_optimizer,
)
from mmcv_custom.distributed import wrap_model
from mmcv_custom.runner import SeedHook, StopAtInvalidLossHook, build_runner, resume_run
from mmcv_custom.runtime import naming_unknown_types
from mmdet.apis.train import auto_scale_lr
from mmdet.core import DistEvalHook, EvalHook
from mmdet.core.utils import sync_random_seed
from mmdet.datasets import build_dataloader, replace_ImageToTensor
from torch import nn
from torch.utils.data import DataLoader, Dataset

FP16_PATIENCE = 20  # losses in a row that are not finite; the loss scale halves at each of them


def draw_seeds_on_the_cpu() -> None:
    """mmdet's endless samplers agree on a seed by a GPU tensor, also where there is no GPU.

    Symptom: `RuntimeError: Found no NVIDIA driver` with `IterBasedRunner` and several processes.
    """
    if not torch.cuda.is_available():
        infinite_sampler.sync_random_seed = functools.partial(sync_random_seed, device="cpu")


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
        cfg: the config, with `device`, `gpu_ids`, `seed`, `work_dir` and `resume_from` filled in.
        distributed: there is a process group.
        logger: mmdet's.
        timestamp: name of the log files.
        meta: kept in every checkpoint.
    """
    draw_seeds_on_the_cpu()
    loaders = [build_train_loader(dataset, cfg, distributed) for dataset in datasets]
    model = wrap_model(
        model,
        cfg.device,
        distributed,
        gpu_id=cfg.gpu_ids[0],
        find_unused_parameters=cfg.get("find_unused_parameters", False),
    )
    auto_scale_lr(cfg, distributed, logger)
    with naming_unknown_types("the optimizer", OPTIMIZERS, OPTIMIZER_BUILDERS):
        optimizer = build_optimizer(model, cfg.optimizer)
    runner = build_runner(
        cfg.runner,
        model=model,
        optimizer=optimizer,
        work_dir=cfg.work_dir,
        logger=logger,
        meta=meta,
    )
    runner.timestamp = timestamp
    with naming_unknown_types("a hook", HOOKS):
        register_hooks(runner, cfg, distributed)
        if val_dataset is not None:
            register_evaluation(runner, val_dataset, cfg, distributed)
    if cfg.resume_from:
        resume_run(runner, cfg.resume_from)
    elif cfg.load_from:
        runner.load_checkpoint(cfg.load_from)
    runner.run(loaders, cfg.workflow)
    return runner


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


def register_hooks(runner: BaseRunner, cfg: Config, distributed: bool) -> None:
    """The hooks of the config, and this project's for seeds and for losses that are not finite."""
    optimizer_config = dict(cfg.get("optimizer_config") or {})
    fp16 = cfg.get("fp16")
    if fp16 is not None:
        optimizer_config = Fp16OptimizerHook(**optimizer_config, **fp16, distributed=distributed)
        half = True
    else:
        half = optimizer_config.get("amp") == "fp16"
    runner.register_training_hooks(
        cfg.lr_config,
        optimizer_config,
        cfg.checkpoint_config,
        cfg.log_config,
        cfg.get("momentum_config"),
        custom_hooks_config=cfg.get("custom_hooks"),
    )
    patience = FP16_PATIENCE if half else 1
    runner.register_hook(StopAtInvalidLossHook(patience), priority="HIGH")
    runner.register_hook(SeedHook(cfg.seed), priority="VERY_LOW")
    if distributed and isinstance(runner, EpochBasedRunner):
        runner.register_hook(DistSamplerSeedHook())


def register_evaluation(
    runner: BaseRunner, dataset: Dataset, cfg: Config, distributed: bool
) -> None:
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
    hook = DistEvalHook if distributed else EvalHook
    runner.register_hook(hook(loader, **evaluation), priority="LOW")


def batch_in_validation(cfg: Config) -> None:
    """Lets validation take several images at once, where the config asks for it."""
    if cfg.data.get("val_dataloader", {}).get("samples_per_gpu", 1) > 1:
        cfg.data.val.pipeline = replace_ImageToTensor(cfg.data.val.pipeline)
