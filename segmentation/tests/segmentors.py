"""The tiny segmentors of configs.json, their images' metas, ground truth and inference modes."""

from __future__ import annotations

from typing import Any

import mmseg_custom  # noqa: F401
import recipe
import torch
from mmcv import ConfigDict
from mmseg.models import build_segmentor
from torch import Tensor, nn

SLIDE = {"mode": "slide", "crop_size": (96, 96), "stride": (64, 64)}


def config(name: str) -> ConfigDict:
    """The model config ``name`` of configs.json."""
    return ConfigDict(recipe.load_json("whole_models/configs.json")[name])


def build(name: str, **changes: Any) -> nn.Module:
    """The tiny model ``name`` with the recipe's weights, in the default dtype; in training mode."""
    model = build_segmentor(ConfigDict({**config(name), **changes}))
    return recipe.fill(model.to(torch.get_default_dtype()))


def metas(
    image: tuple[int, int] = (128, 160), original: tuple[int, int] = (102, 128), flip: bool = False
) -> list[dict[str, Any]]:
    """Two images of size ``image`` that were resized from ``original``."""
    meta = {
        "img_shape": (*image, 3),
        "ori_shape": (*original, 3),
        "pad_shape": (128, 160, 3),
        "scale_factor": 1.25,
        "flip": flip,
        "flip_direction": "horizontal" if flip else None,
        "filename": "image.png",
    }
    return [dict(meta), dict(meta)]


def targets() -> Tensor:
    """(2, 1, 128, 160) int64: labels 0..4 in squares of 16 pixels, and 255 along two borders."""
    return torch.from_numpy(
        recipe.load_arrays("whole_models/targets.npz")["gt_semantic_seg"]
    ).long()


def total(losses: dict[str, Tensor]) -> Tensor:
    """The sum of the entries that are losses, as mmseg's `_parse_losses`."""
    return sum(value.mean() for key, value in losses.items() if "loss" in key)
