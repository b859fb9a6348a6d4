"""Writing, pruning, finding and resuming training checkpoints.

A checkpoint is a dictionary of tensors and plain values: ``model``, ``optimizer``,
``lr_scheduler``, ``max_accuracy``, ``epoch``, ``config`` and, when in use, ``model_ema``,
``max_accuracy_ema``, ``amp``; ``class_names`` is a list or None.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import distributed
from models import weights
from models.safe_load import CheckpointError, load_file
from optimizer_state import auto_resume_hint, compare_schedule, load_optimizer, plain_state

__all__ = [
    "CheckpointError",
    "CheckpointWriter",
    "ResumePoint",
    "find_resumable",
    "load_file",
    "resume_training",
    "training_state",
    "unwrap",
]

logger = logging.getLogger(__name__)

TRAINING_KEYS = ("model", "optimizer", "lr_scheduler", "epoch")


@dataclass
class ResumePoint:
    """Where training goes on: first epoch to run and the best accuracies so far, in percent."""

    start_epoch: int = 0
    max_accuracy: float = 0.0
    max_accuracy_ema: float = 0.0


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def training_state(
    *,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: Any,
    epoch: int,
    config: dict[str, Any],
    point: ResumePoint,
    scaler: Any | None = None,
    ema: nn.Module | None = None,
    class_names: list[str] | None = None,
) -> dict[str, Any]:
    """Collect what a checkpoint holds. Call it on all ranks: ZeRO shards are gathered on rank 0.

    Args:
        model: the model, wrapped or not.
        epoch: the epoch just finished, from 0.
        config: plain dictionary of the configuration.
        point: best accuracies so far.
        ema: timm's ``ModelEmaV3``; its weights are stored under ``model_ema``.

    Returns:
        The checkpoint; on ranks other than 0 its optimizer entry is None under ZeRO.
    """
    if hasattr(optimizer, "consolidate_state_dict"):  # ZeroRedundancyOptimizer
        optimizer.consolidate_state_dict(to=0)
        optimizer_state = optimizer.state_dict() if distributed.is_main_process() else None
    else:
        optimizer_state = optimizer.state_dict()
    state = {
        "model": unwrap(model).state_dict(),
        "optimizer": optimizer_state,
        "lr_scheduler": plain_state(scheduler.state_dict()),
        "max_accuracy": float(point.max_accuracy),
        "epoch": int(epoch),
        "config": config,
        "class_names": list(class_names) if class_names is not None else None,
    }
    if ema is not None:
        state["model_ema"] = unwrap(ema.module).state_dict()
        state["max_accuracy_ema"] = float(point.max_accuracy_ema)
    if scaler is not None:
        state["amp"] = scaler.state_dict()
    return state


class CheckpointWriter:
    """Writes checkpoints of one run into its output folder; only rank 0 touches the disk.

    A file appears under its name only when it is complete: it is written beside it under a
    hidden temporary name, flushed to disk and renamed.
    """

    def __init__(self, output: str | Path, save_freq: int = 1, keep: int = 1) -> None:
        self.output = Path(output)
        self.save_freq = save_freq
        self.keep = keep
        if distributed.is_main_process():
            self.output.mkdir(parents=True, exist_ok=True)
            for stale in self.output.glob(".*.pth.tmp-*"):
                logger.info("removing the unfinished checkpoint %s", stale)
                with contextlib.suppress(OSError):
                    stale.unlink()

    def save(self, name: str, state: dict[str, Any]) -> Path:
        """Write ``<output>/<name>.pth``; call it on all ranks.

        Raises:
            CheckpointError: on all ranks, when the file cannot be written. Files that were there
                before are untouched.
        """
        path = self.output / f"{name}.pth"
        error = None
        if distributed.is_main_process():
            error = write_file(path, state)
        error = distributed.broadcast_object(error)
        if error:
            raise CheckpointError(error)
        logger.info("saved %s", path)
        return path

    def save_epoch(self, epoch: int, state: dict[str, Any]) -> Path:
        """Write ``ckpt_epoch_{epoch}.pth`` and drop the periodic one that is too old by then."""
        path = self.save(f"ckpt_epoch_{epoch}", state)
        if distributed.is_main_process():
            old = self.output / f"ckpt_epoch_{epoch - self.keep * self.save_freq}.pth"
            if old.exists():
                with contextlib.suppress(FileNotFoundError):
                    old.unlink()
                logger.info("removed %s (SAVE_CKPT_NUM %d)", old, self.keep)
        return path


def write_file(path: Path, state: dict[str, Any]) -> str | None:
    """Write a checkpoint completely or not at all; returns an error message or None."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        cause = error.__cause__ or error.__context__ or error
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        return (
            f"could not write {path}: {str(cause).splitlines()[0] if str(cause) else cause!r}; "
            f"{free / 2**20:.0f} MiB are free there. Earlier checkpoints in {path.parent} are "
            "untouched: make room or fix the permissions, then start the same command again"
        )
    return None


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def find_resumable(output: str | Path, needs: tuple[str, ...] = TRAINING_KEYS) -> Path | None:
    """The newest checkpoint in a folder that can be read and has the entries in ``needs``.

    Damaged or unusable files are named in a warning and skipped. Rank 0 decides for all.
    """
    found = None
    if distributed.is_main_process() and Path(output).is_dir():
        files = sorted(
            Path(output).glob("*.pth"), key=lambda file: (file.stat().st_mtime_ns, file.name)
        )
        for path in reversed(files):
            try:
                lacking = [key for key in needs if load_file(path).get(key) is None]
            except CheckpointError as error:
                logger.warning("auto-resume skips a damaged checkpoint: %s", error)
                continue
            if lacking:
                logger.warning("auto-resume skips %s: no %s in it", path, ", ".join(lacking))
                continue
            found = path
            break
    return distributed.broadcast_object(found)


def resume_training(
    checkpoint: Mapping[str, Any],
    *,
    source: str,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: Any,
    scaler: Any | None = None,
    ema: nn.Module | None = None,
    head_map: str = "",
) -> ResumePoint:
    """Restore everything that training needs; the checkpoint's own RNG is the epoch's seed.

    A file without optimizer state gives its weights only, and training starts at epoch 0.

    Args:
        checkpoint: what :func:`models.safe_load.load_file` returned.
        source: file name, for messages.
        model: unwrapped model.

    Raises:
        CheckpointError: the weights or the optimizer state do not belong to this model.
    """
    load_to_resume(checkpoint, source=source, model=model, ema=ema, head_map=head_map)
    return restore_progress(
        checkpoint, source=source, optimizer=optimizer, scheduler=scheduler, scaler=scaler
    )


def load_to_resume(
    checkpoint: Mapping[str, Any],
    *,
    source: str,
    model: nn.Module,
    ema: nn.Module | None = None,
    head_map: str = "",
) -> None:
    """The first half of :func:`resume_training`: weights and moving average."""
    report = weights.load_weights(model, checkpoint, source=source, head_map=head_map)
    load_ema(checkpoint, model, ema, head_map)
    if _lacking(checkpoint):
        return
    if report.new_head or report.resized or report.missing:
        raise CheckpointError(
            f"training cannot go on from {source}, its model differs ({report.summary()}). To "
            "start a new training from its weights use --pretrained instead of --resume"
            + auto_resume_hint(source)
        )


def restore_progress(
    checkpoint: Mapping[str, Any],
    *,
    source: str,
    optimizer: Optimizer,
    scheduler: Any,
    scaler: Any | None = None,
) -> ResumePoint:
    """The second half of :func:`resume_training`: optimizer, schedule, loss scale and epoch."""
    if lacking := _lacking(checkpoint):
        logger.warning(
            "%s has no %s: only its weights are used and training starts at epoch 0",
            source, ", ".join(lacking),
        )  # fmt: skip
        return ResumePoint()
    load_optimizer(optimizer, checkpoint["optimizer"], source)
    compare_schedule(scheduler, checkpoint["lr_scheduler"])
    if scaler is not None and checkpoint.get("amp"):
        scaler.load_state_dict(checkpoint["amp"])
    return resume_point(checkpoint, source)


def resume_point(checkpoint: Mapping[str, Any], source: str) -> ResumePoint:
    """Epoch and best accuracies of a checkpoint; says in the log where training goes on."""
    point = ResumePoint(
        start_epoch=int(checkpoint["epoch"]) + 1,
        max_accuracy=float(checkpoint.get("max_accuracy") or 0.0),
        max_accuracy_ema=float(checkpoint.get("max_accuracy_ema") or 0.0),
    )
    logger.info(
        "resumed %s (epoch %d): going on with epoch %d, max accuracy %.2f%%",
        source, checkpoint["epoch"], point.start_epoch, point.max_accuracy,
    )  # fmt: skip
    return point


def _lacking(checkpoint: Mapping[str, Any]) -> list[str]:
    return [key for key in TRAINING_KEYS if checkpoint.get(key) is None]


def load_ema(
    checkpoint: Mapping[str, Any], model: nn.Module, ema: nn.Module | None, head_map: str = ""
) -> None:
    """Fill the moving average from ``model_ema``, else from the model's present weights.

    Raises:
        CheckpointError: the average in the checkpoint is that of another model.
    """
    if ema is None:
        return
    ema.set(model)
    if not checkpoint.get("model_ema"):
        logger.info("the checkpoint has no moving average: it starts from the loaded weights")
        return
    weights.load_weights(
        unwrap(ema.module),
        {"model": checkpoint["model_ema"]},
        source="the moving average",
        head_map=head_map,
    )
