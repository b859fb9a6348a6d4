"""How a model is distributed, stepped, saved and restored: the plain PyTorch way.

:class:`Backend` is what :mod:`training` asks for; it is DistributedDataParallel (or one process)
with the optimizer of :mod:`optimizer`, automatic mixed precision and checkpoints in single files.
Other ways derive from it and say what differs.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3, distribute_bn
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import distributed
import engine
from checkpoint import (
    TRAINING_KEYS,
    CheckpointWriter,
    ResumePoint,
    find_resumable,
    resume_training,
    training_state,
)
from config import amp_dtype, config_to_dict, is_typed
from logger import RunLog
from lr_scheduler import build_scheduler
from models.fetch import fetch
from models.safe_load import load_file
from optimizer import build_optimizer

logger = logging.getLogger(__name__)


def build_scaler(dtype: torch.dtype | None, device: torch.device) -> Any | None:
    """A gradient scaler for float16, else None."""
    if dtype is not torch.float16:
        return None
    if hasattr(torch, "amp") and hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device.type)
    return torch.cuda.amp.GradScaler()


def explain_float32(config: Any) -> None:
    """Say in the log that it is the configuration that asks for float32, and what changes it."""
    if config.AMP_OPT_LEVEL == "O0" and not is_typed(config, "AMP_OPT_LEVEL"):
        logger.info(
            "float32, as the configuration has AMP_OPT_LEVEL O0; --amp-dtype bfloat16 trains a "
            "large model in half of the memory"
        )


def wrap_model(model: nn.Module, config: Any, info: distributed.DistInfo, fp16: bool) -> nn.Module:
    """DistributedDataParallel for several processes, torch.compile when asked for."""
    if info.world_size > 1:
        device_ids = [info.device.index] if info.device.type == "cuda" else None
        model = DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)
        if fp16 and info.backend == "nccl":
            from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

            model.register_comm_hook(state=None, hook=default_hooks.fp16_compress_hook)
    return torch.compile(model) if config.COMPILE else model


class Backend:
    """One process or DistributedDataParallel.

    After :meth:`prepare`:

    * ``model`` is called with images and gives logits,
    * ``plain`` is the module without wrappers,
    * ``stepper`` computes and applies gradients (:class:`engine.Stepper`).

    Attributes:
        config: the frozen configuration of the run.
        info: this process among all of them.
        autocast_dtype: dtype of ``torch.autocast`` around the forward pass; None when there is
            none, or when the wrapped model does it itself.
        lockstep: every process has to call the model equally often, also in evaluation.
    """

    lockstep = False
    stepper: engine.Stepper

    def __init__(self, config: Any, info: distributed.DistInfo) -> None:
        self.config = config
        self.info = info
        self.autocast_dtype: torch.dtype | None = None
        self.model: nn.Module = nn.Identity()
        self.plain: nn.Module = nn.Identity()
        self.ema: Any | None = None
        self.scaler: Any | None = None

    def choose_precision(self) -> str:
        """Decide in which precision to train; returns what the log says about it.

        Raises:
            ConfigError: the precision is not available here.
        """
        self.autocast_dtype = amp_dtype(self.config, self.info.device)
        return f"autocast {self.autocast_dtype}" if self.autocast_dtype else "float32"

    def open_log(self, first_step: int) -> RunLog:
        """The files that take the run's numbers, from update ``first_step`` on."""
        return RunLog(self.config.OUTPUT, first_step, self.info.rank)

    # --------------------------------------------------------------------------- preparation
    def prepare(
        self,
        model: nn.Module,
        scaled: Any,
        steps: int,
        resume: str,
        class_names: list[str] | None = None,
    ) -> ResumePoint:
        """Make a model ready for training.

        Args:
            model: on the CPU, with the weights to start from.
            scaled: configuration with the learning rates of this number of images per update.
            steps: updates per epoch.
            resume: checkpoint to go on from, or ''.
            class_names: stored in checkpoints.

        Returns:
            The first epoch and the best accuracies so far.

        Raises:
            CheckpointError: the checkpoint does not belong to this model and set-up.
        """
        self.class_names = class_names
        self.plain = model.to(self.info.device)
        self.ema = self.build_ema(self.plain)
        self.optimizer = build_optimizer(scaled, self.plain)
        self.scheduler = build_scheduler(scaled, self.optimizer, steps)
        self.scaler = build_scaler(self.autocast_dtype, self.info.device)
        self.model = wrap_model(
            self.plain, self.config, self.info, self.autocast_dtype is torch.float16
        )
        self.stepper = engine.TorchStepper(
            self.model, self.optimizer, self.scheduler, scaler=self.scaler,
            clip_grad=self.config.TRAIN.CLIP_GRAD, ema=self.ema,
        )  # fmt: skip
        self.writer = CheckpointWriter(
            self.config.OUTPUT, self.config.SAVE_FREQ, self.config.SAVE_CKPT_NUM
        )
        if not resume:
            return ResumePoint(start_epoch=self.config.TRAIN.START_EPOCH)
        path = fetch(resume)
        return resume_training(
            load_file(path), source=str(path), model=self.plain, optimizer=self.optimizer,
            scheduler=self.scheduler, scaler=self.scaler, ema=self.ema,
            head_map=self.config.MODEL.HEAD_MAP,
        )  # fmt: skip

    def build_ema(self, model: nn.Module, foreach: bool = True) -> ModelEmaV3 | None:
        """The moving average of TRAIN.EMA, a second model; ``foreach`` updates it in one call."""
        if not self.config.TRAIN.EMA.ENABLE:
            return None
        decay = self.config.TRAIN.EMA.DECAY
        logger.info("moving average of the weights with decay %g", decay)
        return ModelEmaV3(model, decay=decay, foreach=foreach)

    def close(self) -> None:
        """Let go of model and optimizer while the process group is still there.

        A DistributedDataParallel that outlives it can block for ever as it is freed (PyTorch 2.11
        with gloo): it waits for a thread that waits for Python's lock.
        """
        self.model = self.plain = nn.Identity()
        for name in ("ema", "scaler", "stepper", "optimizer", "scheduler"):
            setattr(self, name, None)
        gc.collect()

    # ---------------------------------------------------------------------------- evaluation
    @property
    def has_ema(self) -> bool:
        return self.ema is not None

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model with the averaged weights, for the time of the context."""
        yield self.ema.module

    def average_statistics(self) -> None:
        """Average the running statistics of batch norm over the processes (collective)."""
        if self.info.world_size > 1:
            for model in (self.plain, self.ema.module) if self.ema else (self.plain,):
                distribute_bn(model, self.info.world_size, reduce=True)

    # --------------------------------------------------------------------------- checkpoints
    def state(self, epoch: int, point: ResumePoint) -> dict[str, Any]:
        """What a checkpoint holds (collective); see :func:`checkpoint.training_state`."""
        return training_state(
            model=self.plain, optimizer=self.optimizer, scheduler=self.scheduler, epoch=epoch,
            point=point, config=config_to_dict(self.config), scaler=self.scaler, ema=self.ema,
            class_names=self.class_names,
        )  # fmt: skip

    def save_epoch(self, epoch: int, point: ResumePoint) -> None:
        """Write the periodic checkpoint of a finished epoch (collective)."""
        self.writer.save_epoch(epoch, self.state(epoch, point))

    def save_best(self, epoch: int, point: ResumePoint, *, ema: bool = False) -> None:
        """Write the checkpoint with the best accuracy, or the best of the average (collective)."""
        name = "ckpt_epoch_ema_best" if ema else "ckpt_epoch_best"
        self.writer.save(name, self.state(epoch, point))

    def find_resumable(self) -> Path | None:
        """The newest checkpoint of this run that can be used (collective)."""
        return find_resumable(
            self.config.OUTPUT, ("model",) if self.config.EVAL_MODE else TRAINING_KEYS
        )

    def read(self, source: str) -> dict[str, Any]:
        """The entries of a checkpoint, for evaluation: ``model`` and what else is there."""
        return load_file(fetch(source))
