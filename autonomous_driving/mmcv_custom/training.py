"""The training run of every task, from model, data loaders and evaluation to mmcv's runner."""

from __future__ import annotations

import logging
from typing import Any

from mmcv import Config
from mmcv.runner import (
    HOOKS,
    OPTIMIZER_BUILDERS,
    OPTIMIZERS,
    BaseRunner,
    DistSamplerSeedHook,
    EpochBasedRunner,
    Fp16OptimizerHook,
    Hook,
    build_optimizer,
)
from torch import nn
from torch.utils.data import DataLoader

from .distributed import wrap_model
from .runner import SeedHook, StopAtInvalidLossHook, build_runner, resume_run
from .runtime import naming_unknown_types

FP16_PATIENCE = 20  # losses in a row that are not finite; the loss scale halves at each of them


def run_training(
    model: nn.Module,
    loaders: list[DataLoader],
    evaluation: Hook | None,
    cfg: Config,
    *,
    distributed: bool,
    logger: logging.Logger,
    timestamp: str,
    meta: dict[str, Any],
) -> BaseRunner:
    """Trains; returns the runner when it has finished.

    Args:
        model: with its weights set.
        loaders: one per entry of `cfg.workflow`.
        evaluation: the task's evaluation hook; None for no evaluation.
        cfg: the config, with `device`, `gpu_ids`, `seed`, `work_dir` and `resume_from` filled in.
        distributed: there is a process group.
        logger: that of the task's library.
        timestamp: name of the log files.
        meta: kept in every checkpoint.
    """
    model = wrap_model(
        model,
        cfg.device,
        distributed,
        gpu_id=cfg.gpu_ids[0],
        find_unused_parameters=cfg.get("find_unused_parameters", False),
    )
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
    if evaluation is not None:
        runner.register_hook(evaluation, priority="LOW")
    if cfg.resume_from:
        resume_run(runner, cfg.resume_from)
    elif cfg.load_from:
        runner.load_checkpoint(cfg.load_from)
    runner.run(loaders, cfg.workflow)
    return runner


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
