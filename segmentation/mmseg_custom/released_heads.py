"""The released Cityscapes and Mapillary models have heads for 150 classes; their data has 19.

The configs build 19 outputs and say `released_head = dict(num_classes=150, trained=19, mode=...)`:

    trim     (the configs' setting) of a 150-way head in a checkpoint the first 19 rows are loaded.
             A pixel gets the best of the 19 classes.
    keep     the model is built with all 150 outputs. A pixel may get one of the 131 outputs that
             were never trained to win; it counts as missed. This is the published evaluation.
    refuse   a checkpoint must have 19 rows.

The scores of the 19 classes are the same in both; the results differ only where an untrained output
is the highest. A head whose 150 classes have names in the checkpoint (ADE20K) is never trimmed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

logger = logging.getLogger("mmseg.released_heads")

MODES = ("trim", "keep", "refuse")
_HEADS = ("decode_head", "auxiliary_head")
_ROWS = ("conv_seg.weight", "conv_seg.bias")


def prepare_config(cfg: Any) -> None:
    """Gives the heads of `cfg.model` the released class count if `released_head.mode` is "keep".

    Call it after the command line's options are merged and before the model is built.

    Raises:
        ValueError: an unknown mode.
    """
    released = cfg.get("released_head")
    if not released:
        return
    mode = released.get("mode", "trim")
    if mode not in MODES:
        raise ValueError(f"released_head.mode={mode!r} is none of {', '.join(MODES)}")
    if mode == "keep":
        for name in _HEADS:
            heads = cfg.model.get(name) or []
            for head in heads if isinstance(heads, (list, tuple)) else [heads]:
                head["num_classes"] = released["num_classes"]


def prepare_model(cfg: Any, model: nn.Module) -> None:
    """Lets `load_checkpoint` cut released heads for `model`: sets its `revise_weights`."""
    if cfg.get("released_head"):
        model.revise_weights = partial(trim_heads, released=dict(cfg.released_head))


def trim_heads(
    weights: Mapping[str, Tensor], meta: Mapping[str, Any], model: nn.Module, released: Any
) -> dict[str, Tensor]:
    """The weights of a checkpoint with the released heads cut to the model's classes.

    Args:
        weights: tensors by name, without the prefix of a wrapper.
        meta: `meta` of the checkpoint; `CLASSES` are the names it was trained for.
        model: the segmentor that is to get them.
        released: `cfg.released_head`, or None for no change.

    Returns:
        new mapping; `conv_seg` rows (num_classes, C, 1, 1) and biases (num_classes,) are cut if the
        file has `released.num_classes` of them, the model `released.trained`, and C fits.
    """
    weights = dict(weights)
    if not released or released.get("mode", "trim") != "trim":
        return weights
    count, wanted = released["num_classes"], model.state_dict()
    cut = []
    for name, value in weights.items():
        if not name.startswith(_HEADS) or not name.endswith(_ROWS) or name not in wanted:
            continue
        rows = len(wanted[name])
        fits = value.shape[1:] == wanted[name].shape[1:]
        if (len(value), rows) == (count, released["trained"]) and fits:
            cut.append((name, rows))
    if cut and len(meta.get("CLASSES") or ()) == count:
        logger.warning(
            "the %d classes of the checkpoint have names (%s, ...): it is a model for them, and "
            "its head is not cut",
            count,
            ", ".join(map(str, meta["CLASSES"][:3])),
        )
        return weights
    for name, rows in cut:
        weights[name] = weights[name][:rows].clone()
        logger.info("%s: the first %d of the released %d classes are loaded", name, rows, count)
    return weights
