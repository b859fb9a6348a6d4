"""Backends whose checkpoints are folders: DeepSpeed and Accelerate."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from backend import Backend
from checkpoint import CheckpointError, ResumePoint, resume_point, write_file
from config import config_to_dict
from folder_checkpoint import RUN_FILE, FolderWriter, find_folder, resolve_folder
from models.safe_load import load_file
from optimizer_state import compare_schedule, keep_settings, plain_state
from zero_checkpoint import EMA_FILE, read_checkpoint

logger = logging.getLogger(__name__)


class FolderBackend(Backend):
    """Writes ``epoch{n}/``, ``best/`` and ``best_ema/``, and goes on from them.

    A folder holds the files of :meth:`write_engine` and, readable with ``weights_only=True``,
    ``additional_state.pth`` (epoch, accuracies, configuration) and ``model_ema.pth``.
    """

    stage = 0  # of ZeRO
    link = ""  # a symbolic link to the newest folder

    def write_engine(self, folder: Path, entries: dict[str, Any]) -> None:
        """Write weights and optimizer into a folder (collective)."""
        raise NotImplementedError

    def load_engine(self, folder: Path) -> None:
        """Load weights and optimizer from a folder (collective)."""
        raise NotImplementedError

    def ema_state(self, keep: bool) -> dict[str, torch.Tensor]:
        """The whole moving average on the CPU (collective), where ``keep`` is true."""
        raise NotImplementedError

    def load_ema(self, state: dict[str, torch.Tensor] | None) -> None:
        """Take a whole moving average; None starts it from the weights."""
        raise NotImplementedError

    def begin(self, resume: str) -> ResumePoint:
        """The end of :meth:`prepare`: where to write, and what to go on from."""
        self.writer = FolderWriter(
            self.config.OUTPUT, self.config.SAVE_FREQ, self.config.SAVE_CKPT_NUM, self.link
        )
        if not resume:
            return ResumePoint(start_epoch=self.config.TRAIN.START_EPOCH)
        return self.resume(resume)

    def entries(self, epoch: int, point: ResumePoint) -> dict[str, Any]:
        """What a checkpoint holds besides weights and optimizer."""
        return {
            "custom_lr_scheduler": plain_state(self.scheduler.state_dict()),
            "max_accuracy": float(point.max_accuracy),
            "max_accuracy_ema": float(point.max_accuracy_ema),
            "epoch": int(epoch),
            "config": config_to_dict(self.config),
            "class_names": self.class_names,
            "world_size": self.info.world_size,
            "zero_stage": self.stage,
        }

    def write(self, folder: Path, epoch: int, point: ResumePoint) -> None:
        """Write everything into an existing folder (collective)."""
        entries = self.entries(epoch, point)
        self.write_engine(folder, entries)
        keep = self.info.rank == 0
        files = {RUN_FILE: entries}
        if self.ema is not None:
            files[EMA_FILE] = self.ema_state(keep)
        for name, content in files.items() if keep else ():
            problem = write_file(folder / name, content)
            if problem:
                raise OSError(problem)

    def save_epoch(self, epoch: int, point: ResumePoint) -> None:
        self.writer.save_epoch(epoch, lambda folder: self.write(folder, epoch, point))

    def save_best(self, epoch: int, point: ResumePoint, *, ema: bool = False) -> None:
        name = "best_ema" if ema else "best"
        self.writer.save(name, lambda folder: self.write(folder, epoch, point))

    def find_resumable(self) -> Path | None:
        return find_folder(self.config.OUTPUT)

    def read(self, source: str) -> dict[str, Any]:
        return read_checkpoint(source)

    def resume(self, source: str) -> ResumePoint:
        """Go on from a checkpoint folder (collective).

        Raises:
            CheckpointError: it was written by another set-up.
        """
        if Path(source).is_file() or source.startswith(("http://", "https://")):
            raise CheckpointError(
                f"{source} is a single file, from which this program cannot go on: --pretrained "
                "takes its weights and starts a new training; --resume needs a folder such as "
                "OUTPUT/epoch3"
            )
        folder = resolve_folder(source)
        entries = load_file(folder / RUN_FILE)
        for key, now, flag in (
            ("world_size", self.info.world_size, "processes"),
            ("zero_stage", self.stage, "ZeRO stage"),
        ):
            if entries[key] != now and (self.stage or entries["zero_stage"]):
                raise CheckpointError(
                    f"{folder} was written with {flag} {entries[key]}, this run has {now}: use the "
                    "same, or take its weights: python main_deepspeed.py --to-pth "
                    f"{folder} weights.pth, then --pretrained weights.pth"
                )
        present = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.optimizer.param_groups
        ]
        try:
            self.load_engine(folder)
        except (RuntimeError, ValueError, KeyError, AssertionError) as error:
            raise CheckpointError(
                f"training cannot go on from {folder}: {error}. Use the model and optimizer it "
                "was saved with, or take its weights with --to-pth and --pretrained"
            ) from error
        keep_settings(self.optimizer, present)
        compare_schedule(self.scheduler, entries["custom_lr_scheduler"])
        if self.ema is not None:
            found = (folder / EMA_FILE).is_file()
            if not found:
                logger.info("the checkpoint has no moving average: it starts from the weights")
            self.load_ema(load_file(folder / EMA_FILE) if found else None)
        return resume_point(entries, str(folder))
