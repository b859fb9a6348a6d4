"""The training loop, shared by the plain, DeepSpeed and Accelerate programs.

The loop knows nothing about how gradients are computed and applied: that is a :class:`Stepper`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import distributed
from checkpoint import unwrap
from logger import Meter, Progress, RunLog, format_seconds, memory_mb
from nonfinite import NonFiniteError, bad_gradients, diagnose

logger = logging.getLogger(__name__)


def seed_everything(seed: int, epoch: int = 0, rank: int = 0) -> None:
    """Seed torch, numpy and random from (seed, epoch, rank).

    Done at the start of every epoch, so a resumed run continues with the numbers that an
    uninterrupted one would have drawn.
    """
    words = np.random.SeedSequence([seed & 0xFFFFFFFF, epoch, rank]).generate_state(3)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))
    random.seed(int(words[2]))


def build_criterion(mixup: bool, label_smoothing: float) -> nn.Module:
    """Loss for soft targets (mixup or cutmix in any form), smoothed labels or plain labels."""
    if mixup:
        return SoftTargetCrossEntropy()
    if label_smoothing > 0:
        return LabelSmoothingCrossEntropy(smoothing=label_smoothing)
    return nn.CrossEntropyLoss()


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    """``torch.autocast`` for ``dtype``, or nothing for float32 (None)."""
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def split_batch(
    batch: Sequence[Any], device: torch.device
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Move ``(images or (images, ...), targets)`` to the device; inputs become a tuple."""
    inputs, targets = batch
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    moved = tuple(item.to(device, non_blocking=True) for item in inputs)
    return moved, targets.to(device, non_blocking=True)


class Stepper(Protocol):
    """How one training program computes gradients and applies them."""

    def context(self, sync: bool) -> contextlib.AbstractContextManager:
        """Around forward and backward; ``sync`` is False while gradients only accumulate."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of ``loss``."""

    def update(self, step: int) -> float:
        """Apply the gradients as update number ``step`` (from 0); returns their norm."""

    def learning_rate(self) -> float:
        """Learning rate of the first parameter group."""


class TorchStepper:
    """Plain PyTorch: optimizer, schedule, optional loss scaling, clipping and moving average.

    Args:
        model: may be wrapped in DistributedDataParallel and torch.compile.
        scaler: a GradScaler for float16, else None.
        clip_grad: largest gradient norm; None or 0 leaves gradients alone (the norm is still
            computed, for the log).
        ema: timm's ``ModelEmaV3``, updated after each optimizer step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        *,
        scaler: Any | None = None,
        clip_grad: float | None = None,
        ema: nn.Module | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.scaler = scaler
        self.clip_grad = float(clip_grad) if clip_grad else math.inf
        self.ema = ema
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer.zero_grad(set_to_none=True)

    def context(self, sync: bool) -> contextlib.AbstractContextManager:
        wrapped = getattr(self.model, "_orig_mod", self.model)
        if not sync and isinstance(wrapped, DistributedDataParallel):
            return wrapped.no_sync()
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def update(self, step: int) -> float:
        self.scheduler.step_update(step)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_grad)
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # if sharded
        if self.scaler is None:
            if not math.isfinite(norm):
                raise NonFiniteError(
                    f"the gradient norm is {norm} although the loss is finite: "
                    f"{bad_gradients(unwrap(self.model))}. Lower TRAIN.BASE_LR"
                )
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(unwrap(self.model))
        return norm

    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])


def updates_per_epoch(batches: int, accumulation: int) -> int:
    """Optimizer updates of an epoch; a last, smaller group of batches is also applied."""
    return math.ceil(batches / max(1, accumulation))


def train_one_epoch(
    model: nn.Module,
    loader: Any,
    criterion: nn.Module,
    stepper: Stepper,
    *,
    epoch: int,
    epochs: int,
    device: torch.device,
    amp: torch.dtype | None = None,
    mixup_fn: Any | None = None,
    accumulation: int = 1,
    print_freq: int = 10,
    run_log: RunLog | None = None,
) -> float:
    """Train for one epoch.

    Args:
        loader: yields ``(images (N, 3, H, W), targets (N,))`` or ``((images, ...), targets)``.
        accumulation: batches per optimizer update; their losses are averaged.
        amp: autocast dtype, None for float32.

    Returns:
        Mean loss over this process's samples.

    Raises:
        NonFiniteError: on all ranks, when the loss or (without loss scaling) the gradient norm of
            any of them is not finite; nothing has been applied for that batch.
    """
    model.train()
    rank, world = distributed.get_rank(), distributed.get_world_size()
    batches, accumulation = len(loader), max(1, accumulation)
    steps = updates_per_epoch(batches, accumulation)
    loss_meter, norm_meter, time_meter, model_meter = Meter(), Meter(), Meter(), Meter()
    progress = Progress(batches, f"epoch {epoch}/{epochs}", print_freq, rank)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    begin, before = time.perf_counter(), time.perf_counter()
    norm, step = math.nan, epoch * steps
    for index, batch in enumerate(loader):
        inputs, targets = split_batch(batch, device)
        started = time.perf_counter()
        if mixup_fn is not None:
            images, targets = mixup_fn(inputs[0], targets)
            inputs = (images, *inputs[1:])
        last = (index + 1) % accumulation == 0 or index + 1 == batches
        group = min(accumulation, batches - index // accumulation * accumulation)
        with stepper.context(sync=last):
            with autocast(device, amp):
                loss = criterion(model(*inputs), targets)
            stepper.backward(loss / group)
        value = loss.item()
        _stop_if_not_finite(value, model, inputs, device, amp, epoch, index)
        if last:
            step = epoch * steps + index // accumulation
            try:
                norm = stepper.update(step)
            except NonFiniteError as error:
                raise NonFiniteError(f"epoch {epoch}, iteration {index}: {error}") from error
            if math.isfinite(norm):  # else the gradient scaler has left this update out
                norm_meter.update(norm)
        now = time.perf_counter()
        loss_meter.update(value, targets.shape[0])
        time_meter.update(now - before)
        model_meter.update(now - started)
        speed = targets.shape[0] * world / max(now - before, 1e-9)
        before = now
        if progress.bar is None and not progress.due(index):
            continue
        lr, eta, memory = stepper.learning_rate(), progress.eta(index), memory_mb(device)
        line = (
            f"Train: [{epoch}/{epochs}][{index}/{batches}]\t"
            f"eta {format_seconds(eta)}\tlr {lr:.6f}\t"
            f"time {time_meter.value:.4f} ({time_meter.average:.4f})\t"
            f"model_time {model_meter.value:.4f} ({model_meter.average:.4f})\t"
            f"loss {value:.4f} ({loss_meter.average:.4f})\t"
            f"grad_norm {norm:.4f} ({norm_meter.recent_average:.4f}/"
            f"{norm_meter.recent_variance:.4f})\t"
            f"images/s {speed:.1f}\tmem {memory:.0f}MB"
        )
        short = f"loss {loss_meter.average:.4f} lr {lr:.2e} norm {norm:.2f} {speed:.0f} img/s" + (
            f" {memory:.0f}MB" if memory else ""
        )
        progress.update(index, line, short)
        if run_log is not None and progress.due(index):
            record = {
                "epoch": epoch, "iter": index, "iters": batches, "lr": lr, "loss": value,
                "loss_avg": loss_meter.average, "grad_norm": norm, "images_per_s": speed,
                "time": time_meter.value, "mem_mb": memory, "eta_s": eta,
            }  # fmt: skip
            run_log.train(step, record)
    progress.close()
    logger.info(
        "EPOCH %d training takes %s, mean loss %.4f",
        epoch, format_seconds(time.perf_counter() - begin), loss_meter.average,
    )  # fmt: skip
    return loss_meter.average


def _stop_if_not_finite(
    value: float,
    model: nn.Module,
    inputs: Sequence[torch.Tensor],
    device: torch.device,
    amp: torch.dtype | None,
    epoch: int,
    index: int,
) -> None:
    bad = not math.isfinite(value)
    if not distributed.any_process(bad, device):
        return
    with autocast(device, amp):  # on all processes: with sharded weights they need each other
        finding = diagnose(unwrap(model), inputs)
    findings = enumerate(distributed.gather_objects((value, finding if bad else None)))
    told = [f"rank {rank}: loss {loss}, {text}" for rank, (loss, text) in findings if text]
    raise NonFiniteError(
        f"training stopped at epoch {epoch}, iteration {index}: the loss is not finite. "
        + "; ".join(told)
    )
