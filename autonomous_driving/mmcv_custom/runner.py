"""mmcv's runners, with checkpoints that are whole and resuming that goes on exactly."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path
from typing import Any

from internimage.safe_load import CheckpointError
from mmcv.runner import HOOKS, RUNNERS, BaseRunner, Hook, IterBasedRunner, get_dist_info

from .checkpoint import (
    load_checkpoint,
    move_into_place,
    point_latest,
    read_meta,
    remove_leftovers,
)
from .distributed import agree
from .runtime import ConfigError, reseed

logger = logging.getLogger(__name__)


def build_runner(cfg: dict[str, Any], **arguments: Any) -> BaseRunner:
    """The runner of a config (`EpochBasedRunner`, ...) with `Resumable`'s checkpoints.

    Args:
        cfg: `type` and the arguments of the runner.
        arguments: model, optimizer, work_dir, logger, meta.

    Raises:
        ConfigError: mmcv has no such runner.
    """
    cfg = dict(cfg)
    name = cfg.pop("type")
    runner_class = RUNNERS.get(name)
    if runner_class is None:
        near = difflib.get_close_matches(name, RUNNERS.module_dict, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"runner.type {name!r} is not a runner of mmcv{hint}")
    resumable = type(runner_class.__name__, (Resumable, runner_class), {})
    return resumable(**arguments, **cfg)


class Resumable:
    """Mixin of an mmcv runner: writes whole checkpoints and resumes from them.

    Other than mmcv's `resume`, this one runs no Python text from the checkpoint, also works
    without a GPU, keeps the best score in iteration-based runs and does not repeat the last
    iteration of those.
    """

    def save_checkpoint(
        self,
        out_dir: str,
        filename_tmpl: str | None = None,
        save_optimizer: bool = True,
        meta: dict[str, Any] | None = None,
        create_symlink: bool = True,
    ) -> None:
        """As mmcv's; the file gets its name when it is complete.

        Raises:
            OSError: it cannot be written; the message names it. Nothing is left behind.
        """
        by_iter = isinstance(self, IterBasedRunner)
        template = filename_tmpl or ("iter_{}.pth" if by_iter else "epoch_{}.pth")
        name = template.format((self.iter if by_iter else self.epoch) + 1)
        temporary = Path(out_dir) / f".tmp-{name}"
        progress = {"iters_done": self.iter + by_iter, "world_size": self.world_size}
        try:
            super().save_checkpoint(
                out_dir,
                filename_tmpl=temporary.name,
                save_optimizer=save_optimizer,
                meta={**(meta or {}), **progress},
                create_symlink=False,
            )
            move_into_place(temporary, Path(out_dir) / name)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            reason = error.strerror or error
            raise OSError(
                f"checkpoint {Path(out_dir) / name} cannot be written: {reason}"
            ) from error
        if create_symlink:
            point_latest(out_dir, name)

    def load_checkpoint(
        self, filename: str, map_location: Any = "cpu", strict: bool = False, **_: Any
    ) -> dict[str, Any]:
        """As `mmcv_custom.checkpoint.load_checkpoint` into the runner's model."""
        return load_checkpoint(self.model, filename, map_location, strict)

    def resume(
        self, checkpoint: str, resume_optimizer: bool = True, map_location: Any = "cpu"
    ) -> None:
        """Weights, optimizer, progress and what hooks keep (best score, loss scale) of a run.

        Raises:
            CheckpointError: of another model or optimizer, or without a run's progress.
        """
        loaded = self.load_checkpoint(checkpoint, map_location, strict=True)
        meta = loaded["meta"]
        if "epoch" not in meta or "optimizer" not in loaded:
            raise CheckpointError(
                f"{checkpoint} holds weights, but no state of a run to resume; start from it with "
                f"--cfg-options load_from={checkpoint}"
            )
        self._epoch = meta["epoch"]
        self._iter = meta.get("iters_done", meta["iter"])
        before = meta.get("world_size", self.world_size)
        if before != self.world_size:
            self._iter = self._iter * before // self.world_size
            self.logger.warning("resumed with %d processes instead of %d", self.world_size, before)
        if isinstance(self, IterBasedRunner):
            self._inner_iter = self._iter
        kept = {**meta, **best_so_far(self.work_dir, meta)}
        self.meta = {**(self.meta or {}), **{k: kept[k] for k in ("hook_msgs", "amp") if k in kept}}
        self.meta.setdefault("hook_msgs", {})
        if resume_optimizer:
            try:
                check_kind(self.optimizer, loaded["optimizer"])
                self.optimizer.load_state_dict(loaded["optimizer"])
            except (ValueError, KeyError) as error:
                raise CheckpointError(
                    f"{checkpoint} has the state of another optimizer ({error}); resume with the "
                    "config of that run, or start from its weights with --cfg-options load_from="
                ) from error
        self.logger.info("resumed %s: epoch %d, iteration %d", checkpoint, self.epoch, self.iter)

    def run(self, data_loaders: list[Any], workflow: list[Any], **kwargs: Any) -> None:
        """As mmcv's."""
        self.data_loaders = data_loaders  # for SeedHook
        if get_dist_info()[0] == 0 and self.work_dir:
            remove_leftovers(self.work_dir)
        super().run(data_loaders, workflow, **kwargs)


def check_kind(optimizer: Any, state: dict[str, Any]) -> None:
    """Raises ValueError when `state` is that of another kind of optimizer; torch does not look."""
    own, saved = optimizer.param_groups[0], state["param_groups"][0]
    for key in ("betas", "momentum", "alpha"):
        if (key in own) != (key in saved):
            name = type(optimizer).__name__
            raise ValueError(f"{key} is only in {'that of ' + name if key in own else 'the file'}")


def best_so_far(work_dir: str | None, meta: dict[str, Any]) -> dict[str, Any]:
    """`hook_msgs` with the best score up to a checkpoint.

    A checkpoint is written before its own evaluation, whose score is only in the best checkpoint.
    """

    def newest() -> dict[str, Any]:
        for path in Path(work_dir or ".").glob("best_*.pth"):
            try:
                best = read_meta(path)
            except CheckpointError:
                continue
            if best.get("iters_done", 0) == meta.get("iters_done", -1) and "hook_msgs" in best:
                return {"hook_msgs": {**meta.get("hook_msgs", {}), **best["hook_msgs"]}}
        return {}

    return agree(newest() if get_dist_info()[0] == 0 else None)


def resume_run(runner: BaseRunner, checkpoint: str) -> None:
    """Resumes now, or, with an EMA hook, when that hook has made the buffers for its averages."""
    for hook in runner.hooks:
        if hasattr(hook, "_swap_ema_parameters") and hasattr(hook, "checkpoint"):
            hook.checkpoint = checkpoint
            return
    runner.resume(checkpoint)


@HOOKS.register_module()
class SeedHook(Hook):
    """Makes a resumed run draw the random numbers and images that an uninterrupted one would.

    Runs by epochs are seeded at the start of every epoch, so that they are the same to the last
    bit on one machine. Runs by iterations go on in the same order of images; their augmentations
    and dropped paths are others.

    Args:
        seed: of this process.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_run(self, runner: BaseRunner) -> None:
        if isinstance(runner, IterBasedRunner) and runner.iter > 0:
            reseed(self.seed, runner.iter)
            for loader in runner.data_loaders:
                skip_batches(loader.batch_sampler, runner.iter)

    def before_train_epoch(self, runner: BaseRunner) -> None:
        reseed(self.seed, runner.epoch)


def skip_batches(batch_sampler: Any, count: int) -> None:
    """Advances one of mmdet's endless batch samplers, without loading an image."""
    batches = iter(batch_sampler)
    for _ in range(count):
        next(batches)
    batches.close()
    for waiting in getattr(batch_sampler, "buffer_per_group", {}).values():
        if len(waiting) >= batch_sampler.batch_size:
            waiting.clear()  # the last batch that was drawn; it is cleared when the next one is


@HOOKS.register_module()
class StopAtInvalidLossHook(Hook):
    """Ends a run whose loss is NaN or infinite, before the optimizer spoils the weights.

    Args:
        patience: so many such losses in a row are one too many; fp16 needs some at the start.
    """

    def __init__(self, patience: int = 1) -> None:
        self.patience = patience
        self.seen = 0

    def after_train_iter(self, runner: BaseRunner) -> None:
        losses = runner.outputs["log_vars"]
        loss = losses["loss"]  # averaged over the processes: all of them stop
        if loss == loss and abs(loss) != float("inf"):
            self.seen = 0
            return
        self.seen += 1
        if self.seen >= self.patience:
            terms = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
            raise ValueError(
                f"the loss is not finite in epoch {runner.epoch + 1}, iteration {runner.iter + 1} "
                f"({terms}). Lower optimizer.lr, clip gradients (optimizer_config.grad_clip), look "
                "at the data of this batch, or train without --amp fp16; --auto-resume goes on "
                "from the last checkpoint"
            )
