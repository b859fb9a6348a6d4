"""Models by name: ``create_model('internimage_t_1k_224', pretrained=True)``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models import adapt_input_conv
from torch import nn

from . import hub
from .build import MODEL_TYPES
from .flash_intern_image import FlashInternImage
from .intern_image import InternImage
from .released import list_models, model_arguments, released_model
from .safe_load import CheckpointError, load_file
from .weights import HEAD_NAMES, State, extract_state, load_weights

__all__ = ["create_model", "list_models"]

FIRST_CONV = "patch_embed.conv1.weight"
_HEAD_ARGUMENTS = ("num_classes", "cls_scale", "use_clip_projector")


def create_model(
    name: str,
    pretrained: bool = False,
    num_classes: int | None = None,
    in_chans: int = 3,
    features_only: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Builds a released model.

    Args:
        name: one of `list_models()`.
        pretrained: load the released weights, downloaded on first use (see `hub.checkpoint_path`).
        num_classes: width of the head; None for the released one, 0 for pooled features. With
            `pretrained` and another width the head is new, except that 1000 classes of a model of
            21841 are picked from its head.
        in_chans: channels of the images. With `pretrained` the first convolution is summed up or
            repeated to fit, as timm does it.
        features_only: build the trunk alone: called with images, it returns a list of (N, C_i, H_i,
            W_i) maps, one for each level of `out_indices` (default: all four).
        **kwargs: override arguments of the model's class, such as `drop_path_rate=0.2`,
            `with_cp=True` or `backend='cpp'`; with `features_only` also `frozen_stages` and
            `out_indices`, as in timm: levels, the negative ones from the end, or an int for the
            last so many.

    Returns:
        A model in training mode: :class:`InternImageClassifier` or the class of the name's family
        (images -> logits), or :class:`InternImage` with `features_only`.

    Raises:
        UnknownModelError: no such name; the message names the nearest.
        CheckpointError: the weights cannot be had or do not fit.
        ValueError, TypeError: an argument that the class refuses.
    """
    row = released_model(name)
    if "out_indices" in kwargs and not features_only:
        raise ValueError(
            f"out_indices={kwargs['out_indices']} chooses feature maps: it needs features_only=True"
        )
    arguments = {**model_arguments(name), "in_chans": in_chans, **kwargs}
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    path = hub.checkpoint_path(name) if pretrained else None
    if features_only:
        for key in _HEAD_ARGUMENTS:
            arguments.pop(key)
        if arguments.get("out_indices") is not None:
            arguments["out_indices"] = _levels(arguments["out_indices"], len(arguments["depths"]))
        model_class = FlashInternImage if row.model == "flash_intern_image" else InternImage
    else:
        model_class = MODEL_TYPES[row.model]
    model = model_class(**arguments)
    if path is not None:
        load_pretrained(model, path, in_chans)
    return model


def _levels(out_indices: int | Sequence[int], count: int) -> Sequence[int]:
    """The levels that timm's way of writing them means; the model checks that they exist."""
    if isinstance(out_indices, int):
        return range(count - out_indices, count)
    return [level + count if level < 0 else level for level in out_indices]


def load_pretrained(model: nn.Module, path: str | Path, in_chans: int = 3) -> None:
    """Loads a checkpoint into a model, all of it but a head for another number of classes.

    Args:
        in_chans: channels of the model's images; the first convolution is adapted to them.

    Raises:
        CheckpointError: weights other than the head's would stay random.
    """
    state = extract_state(load_file(path), str(path))
    report = load_weights(model, {"model": adapt_channels(state, in_chans)}, source=str(path))
    lost = [
        name for name in report.missing + report.resized if name.split(".")[0] not in HEAD_NAMES
    ]
    if lost:
        raise CheckpointError(
            f"{len(lost)} weights of the model are not in {path} or have another shape there "
            f"({', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}): the arguments differ from "
            "those that the checkpoint was trained with. Leave these arguments out, or build the "
            "model with pretrained=False and load what fits with models.weights.load_weights"
        )


def adapt_channels(state: State, in_chans: int) -> State:
    """The weights with the first convolution made for `in_chans` input channels."""
    return {
        key: adapt_input_conv(in_chans, value) if _is_first_conv(key, value, in_chans) else value
        for key, value in state.items()
    }


def _is_first_conv(key: str, value: torch.Tensor, in_chans: int) -> bool:
    return (key == FIRST_CONV or key.endswith(f".{FIRST_CONV}")) and value.shape[1] != in_chans
