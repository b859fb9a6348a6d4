"""Restoring the state of an optimizer and of a schedule, and saying clearly when it cannot be."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from models.safe_load import CheckpointError

logger = logging.getLogger(__name__)


def auto_resume_hint(source: str) -> str:
    """End of a message: how to leave the experiment of ``source`` alone."""
    return (
        f". If {Path(source).parent} holds another experiment, choose another --output or set "
        "TRAIN.AUTO_RESUME False"
    )


def plain_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a state that are plain values."""
    plain = (int, float, str, bool, list, tuple, dict, type(None))
    return {key: value for key, value in state.items() if isinstance(value, plain)}


def load_optimizer(optimizer: Optimizer, saved: Mapping[str, Any], source: str) -> None:
    """Load a state into an optimizer whose settings (learning rate, weight decay...) stay.

    Args:
        saved: its ``state_dict()``.
        source: file name, for messages.

    Raises:
        CheckpointError: the state belongs to other parameters or to another optimizer.
    """
    groups, old = optimizer.param_groups, saved["param_groups"]
    problem = None
    names = [group.get("name") for group in groups]
    old_names = [group.get("name") for group in old]
    sizes = [len(group["params"]) for group in groups]
    old_sizes = [len(group["params"]) for group in old]
    if sizes != old_sizes:
        problem = (
            f"{sum(old_sizes)} parameters in {len(old)} groups, now {sum(sizes)} in {len(groups)}"
        )
    elif None not in names + old_names and [*map(_bare, names)] != [*map(_bare, old_names)]:
        first = next(i for i, pair in enumerate(zip(names, old_names, strict=True))
                     if _bare(pair[0]) != _bare(pair[1]))  # fmt: skip
        problem = f"its parameter {first} is {old_names[first]}, now {names[first]}"
    else:
        problem = _state_problem(groups, old, saved["state"])
    if problem is None:
        present = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        try:
            optimizer.load_state_dict(saved)
            keep_settings(optimizer, present)
            return
        except (ValueError, KeyError, RuntimeError) as error:
            problem = str(error)
    raise CheckpointError(
        f"the optimizer state of {source} belongs to another set-up: {problem}. Use the optimizer "
        "and model settings it was saved with, or --pretrained to take only its weights and start "
        "a new schedule" + auto_resume_hint(source)
    )


def keep_settings(optimizer: Optimizer, present: list[dict[str, Any]]) -> None:
    """The settings of this run go on, not those that the checkpoint's groups carry."""
    differing: dict[str, None] = {}
    for group, settings in zip(optimizer.param_groups, present, strict=True):
        for key in ("weight_decay", "betas", "eps", "momentum"):
            if key in settings and settings[key] != group.get(key):
                differing[f"{key} {group.get(key)} -> {settings[key]}"] = None
        group.update(settings)
    if differing:
        logger.warning(
            "optimizer settings differ from the checkpoint's, the present ones are used: %s",
            ", ".join(differing),
        )


def _bare(name: str) -> str:
    return name.removeprefix("module.")


def _state_problem(groups: list[dict], old: list[dict], state: Mapping[int, Any]) -> str | None:
    for group, old_group in zip(groups, old, strict=True):
        for parameter, index in zip(group["params"], old_group["params"], strict=True):
            for key, value in state.get(index, {}).items():
                if (
                    isinstance(value, torch.Tensor)
                    and value.dim() > 0
                    and value.shape != parameter.shape
                ):
                    name = old_group.get("name", index)
                    shapes = f"{tuple(value.shape)}, the parameter {tuple(parameter.shape)}"
                    return f"{key} of {name} has shape {shapes}"
        extra = set(old_group) ^ set(group)
        if extra & {"betas", "momentum"}:
            return f"it was saved by another optimizer ({', '.join(sorted(extra))} differ)"
    return None


def compare_schedule(scheduler: Any, saved: Mapping[str, Any]) -> None:
    """The schedule is a function of the update count, so the present settings just go on."""
    now = plain_state(scheduler.state_dict())
    differing = [
        f"{key} {saved[key]} -> {value}"
        for key, value in now.items()
        if key in saved and not isinstance(value, (list, dict)) and saved[key] != value
        and key not in ("metric",)
    ]  # fmt: skip
    if differing:
        logger.warning(
            "the learning rate schedule differs from the checkpoint's, the present one is used: %s",
            ", ".join(differing),
        )
