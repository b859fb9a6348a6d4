"""The learning rate over a run, per optimizer step: warm-up, then cosine, linear or step decay."""

from __future__ import annotations

from typing import Any

import torch
from timm.scheduler import CosineLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler

from models.intern_image import check_choice

SCHEDULERS = ("cosine", "linear", "step")
LINEAR_END = 0.01


class LinearLRScheduler(Scheduler):
    """Warm-up, then a straight line from each group's learning rate to 1% of it.

    timm's polynomial schedule ends at one absolute value for all groups, this one at a share.

    Args:
        optimizer: its groups' `lr` are the values after the warm-up.
        t_initial: step at which 1% is reached.
        warmup_t: steps of warm-up.
        warmup_lr_init: learning rate at step 0, the same for all groups.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        t_initial: int,
        warmup_t: int = 0,
        warmup_lr_init: float = 0.0,
    ) -> None:
        super().__init__(optimizer, param_group_field="lr", t_in_epochs=False)
        self.t_initial = t_initial
        self.warmup_t = warmup_t
        self.warmup_lr_init = warmup_lr_init
        if warmup_t:
            self.update_groups(warmup_lr_init)

    def _get_lr(self, t: int) -> list[float]:
        if t < self.warmup_t:
            share = t / self.warmup_t
            return [
                self.warmup_lr_init + (base - self.warmup_lr_init) * share
                for base in self.base_values
            ]
        share = (t - self.warmup_t) / max(1, self.t_initial - self.warmup_t)
        factor = 1.0 - (1.0 - LINEAR_END) * min(1.0, share)
        return [base * factor for base in self.base_values]


def build_scheduler(
    config: Any, optimizer: torch.optim.Optimizer, iters_per_epoch: int
) -> Scheduler:
    """Builds the schedule of TRAIN.LR_SCHEDULER.

    The groups' learning rates are those after the warm-up; TRAIN.WARMUP_LR (at step 0) and
    TRAIN.MIN_LR (at the end of the cosine) are the same for all groups.

    Args:
        config: the tree of `config.py`.
        optimizer: of `build_optimizer`. Its learning rates are set to those of step 0.
        iters_per_epoch: optimizer steps per epoch.

    Returns:
        A scheduler of timm; call `step_update(n)` after the n-th optimizer step.

    Raises:
        ValueError: an unknown LR_SCHEDULER.NAME, or an epoch without a step.
    """
    train = config.TRAIN
    name = train.LR_SCHEDULER.NAME.lower()
    check_choice("TRAIN.LR_SCHEDULER.NAME", name, SCHEDULERS)
    if iters_per_epoch < 1:
        raise ValueError(
            f"An epoch needs at least one optimizer step, got iters_per_epoch={iters_per_epoch}: "
            "the training set is smaller than one batch (times TRAIN.ACCUMULATION_STEPS). Make "
            "DATA.BATCH_SIZE smaller."
        )
    total = train.EPOCHS * iters_per_epoch
    warmup: dict[str, Any] = {
        "warmup_t": train.WARMUP_EPOCHS * iters_per_epoch,
        "warmup_lr_init": train.WARMUP_LR,
    }
    if name == "cosine":
        return CosineLRScheduler(
            optimizer,
            t_initial=total,
            lr_min=train.MIN_LR,
            warmup_prefix=False,
            t_in_epochs=False,
            **warmup,
        )
    if name == "linear":
        return LinearLRScheduler(optimizer, t_initial=total, **warmup)
    return StepLRScheduler(
        optimizer,
        decay_t=train.LR_SCHEDULER.DECAY_EPOCHS * iters_per_epoch,
        decay_rate=train.LR_SCHEDULER.DECAY_RATE,
        warmup_prefix=True,  # DECAY_EPOCHS count from the end of the warm-up
        t_in_epochs=False,
        **warmup,
    )
