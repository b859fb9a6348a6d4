"""The optimizer of a run: one parameter group per parameter, with its own learning rate and decay.

Checkpoints of the original implementation hold one group per parameter too, in the order of
``model.named_parameters()``, so their optimizer states load.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from models.intern_image import check_choice

logger = logging.getLogger(__name__)

OPTIMIZERS = ("adamw", "sgd")
DCN_PARAMETERS = ("offset", "center_feature_scale_proj")
BLOCK = re.compile(r"levels\.(\d+)\.blocks\.(\d+)\.")
BETWEEN_LEVELS = re.compile(r"levels\.(\d+)\.(?:downsample|norm)\.")


def build_optimizer(
    config: Any,
    model: nn.Module,
    *,
    merge: bool = False,
    fused: bool | None = None,
    share: bool = True,
) -> torch.optim.Optimizer:
    """Builds the optimizer of TRAIN.OPTIMIZER for all parameters of a model.

    Weight decay leaves out vectors and names ending in `.bias`. With TRAIN.LR_LAYER_DECAY the
    learning rate falls from the last block to the first (see `layer_decay_scales`), and
    OPTIMIZER.DCN_LR_MUL multiplies that of DCNv3's offsets and gates; without layer decay
    DCN_LR_MUL has no effect, which the recipes in `configs/without_lr_decay` rely on.
    OPTIMIZER.FREEZE_BACKBONE lists levels that are not trained; they keep their groups.

    Args:
        config: the tree of `config.py`. TRAIN.BASE_LR is used as it is.
        model: best given unwrapped, as the groups carry the parameters' names.
        merge: one group per learning rate and weight decay, see `merge_groups`.
        fused: passed on to AdamW.
        share: False where something else shards the state: OPTIMIZER.USE_ZERO is not looked at.

    Returns:
        AdamW or SGD (Nesterov) of torch; with OPTIMIZER.USE_ZERO, and torch.distributed started,
        its state is shared out over the processes by ZeroRedundancyOptimizer.

    Raises:
        ValueError: an unknown OPTIMIZER.NAME, or FREEZE_BACKBONE names a level that is not there.
    """
    settings = config.TRAIN.OPTIMIZER
    name = settings.NAME.lower()
    check_choice("TRAIN.OPTIMIZER.NAME", name, OPTIMIZERS)
    freeze_levels(model, settings.FREEZE_BACKBONE or ())
    groups = parameter_groups(config, model)
    if merge:
        groups = merge_groups(groups)
    if name == "adamw":
        optimizer_class = torch.optim.AdamW
        arguments = {"eps": settings.EPS, "betas": tuple(settings.BETAS), "fused": fused}
    else:
        optimizer_class = torch.optim.SGD
        arguments = {"momentum": settings.MOMENTUM, "nesterov": True}
    arguments |= {"lr": config.TRAIN.BASE_LR, "weight_decay": config.TRAIN.WEIGHT_DECAY}
    if settings.USE_ZERO and share:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            from torch.distributed.optim import ZeroRedundancyOptimizer

            return ZeroRedundancyOptimizer(groups, optimizer_class=optimizer_class, **arguments)
        logger.info("TRAIN.OPTIMIZER.USE_ZERO has nothing to share out: this is the only process.")
    return optimizer_class(groups, **arguments)


def parameter_groups(config: Any, model: nn.Module) -> list[dict[str, Any]]:
    """One group per parameter: params, name, lr and weight_decay."""
    train = config.TRAIN
    dcn_lr_mul = train.OPTIMIZER.DCN_LR_MUL
    names = [name for name, _ in model.named_parameters()]
    scales: dict[str, float] = {}
    if train.LR_LAYER_DECAY:
        scales = layer_decay_scales(names, train.LR_LAYER_DECAY_RATIO)
        if dcn_lr_mul is not None:
            for name in names:
                if any(part in name for part in DCN_PARAMETERS):
                    scales[name] *= dcn_lr_mul
    elif dcn_lr_mul is not None:
        logger.warning(
            "TRAIN.OPTIMIZER.DCN_LR_MUL=%s has no effect without TRAIN.LR_LAYER_DECAY.", dcn_lr_mul
        )
    return [
        {
            "params": [parameter],
            "name": name,
            "lr": train.BASE_LR * scales.get(name, 1.0),
            "weight_decay": (
                0.0 if parameter.dim() == 1 or name.endswith(".bias") else train.WEIGHT_DECAY
            ),
        }
        for name, parameter in model.named_parameters()
    ]


def merge_groups(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups joined by learning rate and weight decay, without frozen parameters.

    ZeRO makes one flat buffer of each group, so few large ones are faster.

    Args:
        groups: of `parameter_groups`.

    Returns:
        Groups with params, names (list), lr and weight_decay, in order of first appearance.
    """
    merged: dict[tuple[float, float], dict[str, Any]] = {}
    for group in groups:
        (parameter,) = group["params"]
        if not parameter.requires_grad:
            continue
        key = group["lr"], group["weight_decay"]
        new = {"params": [], "names": [], "lr": key[0], "weight_decay": key[1]}
        target = merged.setdefault(key, new)
        target["params"].append(parameter)
        target["names"].append(group["name"])
    return list(merged.values())


def layer_decay_scales(names: Iterable[str], ratio: float) -> dict[str, float]:
    """Factor on the learning rate of each parameter: ratio**k, k blocks before the last block.

    The stem goes with the first block; the norm at the end of a level and the downsampling after it
    go with the first block of the next level. Everything else has factor 1: the head, the norm at
    the end of the last level, and the `post_norms` inside level 2 (as in the original recipes).

    Args:
        names: parameter names of an InternImage.
        ratio: TRAIN.LR_LAYER_DECAY_RATIO.

    Returns:
        {name: factor}.
    """
    names = list(names)
    blocks = {match_ids(match) for name in names if (match := BLOCK.search(name))}
    block_scale = {block: ratio**k for k, block in enumerate(sorted(blocks, reverse=True))}
    scales = {}
    for name in names:
        block = (-1, -1)  # no block has this id: factor 1
        if "patch_embed." in name:
            block = (0, 0)
        elif match := BLOCK.search(name):
            block = match_ids(match)
        elif match := BETWEEN_LEVELS.search(name):
            block = (int(match[1]) + 1, 0)
        scales[name] = block_scale.get(block, 1.0)
    return scales


def match_ids(match: re.Match[str]) -> tuple[int, int]:
    """(level, block) of a match of BLOCK."""
    return int(match[1]), int(match[2])


def freeze_levels(model: nn.Module, levels: Iterable[int]) -> None:
    """Turns off the gradients of whole levels, with their norm and downsampling."""
    for level in levels:
        prefix = f"levels.{level}."
        parameters = [p for name, p in model.named_parameters() if prefix in name]
        if not parameters:
            raise ValueError(
                f"TRAIN.OPTIMIZER.FREEZE_BACKBONE names level {level}, but the model has no "
                f"parameters called {prefix}*; levels count from 0."
            )
        for parameter in parameters:
            parameter.requires_grad_(False)
