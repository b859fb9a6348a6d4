"""The released classification models in timm's registry.

Importing this package is enough: `timm.create_model('internimage_t_1k_224', pretrained=True)`,
`timm.list_models('internimage*')`. Weights come through `hub.py`, verified, and not through timm's
own loader, which would have to unpickle the configuration that released files carry.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from timm.models._pretrained import PretrainedCfg
from torch import nn

from . import hub
from .registry import FIRST_CONV
from .released import ReleasedModel, list_models, model_arguments, released_model
from .timm_interface import TimmFlashInternImage, TimmInternImage, TimmInternImageMetaFormer

__all__: list[str] = []

CLASSES = {
    "intern_image": TimmInternImage,
    "intern_image_meta_former": TimmInternImageMetaFormer,
    "flash_intern_image": TimmFlashInternImage,
}
# Of the training recipe, not of the model: timm's scripts and users set these themselves.
RECIPE = ("num_classes", "drop_rate", "drop_path_rate", "with_cp")
SOURCES = ("file", "url", "state_dict", "hf_hub_id", "source")

default_cfgs: dict[str, Any] = {}


def register(row: ReleasedModel) -> None:
    """Adds a row to timm's registry, unless a model of that name is there already."""
    if is_model(row.name):
        return
    default_cfgs.update(generate_default_cfgs({row.name: pretrained_cfg(row)}))
    globals()[row.name] = register_model(_entry_point(row.name))


def pretrained_cfg(row: ReleasedModel) -> dict[str, Any]:
    """timm's description of a model and its weights."""
    is_clip = row.arguments.get("use_clip_projector", False)
    side = -(-row.input_size // (16 if is_clip else 32))
    is_meta = row.model == "intern_image_meta_former"
    is_flash = row.model == "flash_intern_image"
    return {
        "url": row.url or "",
        "hf_hub_id": row.hub_repo,
        "hf_hub_filename": row.hub_file,
        "num_classes": row.num_classes,
        "input_size": (3, row.input_size, row.input_size),
        "pool_size": (side, side),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "first_conv": FIRST_CONV.removesuffix(".weight"),
        "classifier": ("head", "meta_head") if is_meta else "head",
        "paper_ids": "arXiv:2401.06197" if is_flash else "arXiv:2211.05778",
    }


def _entry_point(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(name, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{name}; arguments of timm.create_model."
    return create


def _create(
    name: str,
    pretrained: bool,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> nn.Module:
    if kwargs.get("feature_cls", "getter") != "getter":
        raise ValueError(
            f"feature_cls={kwargs['feature_cls']!r} does not work with InternImage, whose levels "
            "are channels-last inside: leave it out, which is 'getter'."
        )
    overlay = dict(pretrained_cfg_overlay or {})
    has_source = isinstance(pretrained_cfg, (dict, PretrainedCfg)) or any(
        overlay.get(key) for key in SOURCES
    )
    if pretrained and not has_source:
        overlay["file"] = str(hub.checkpoint_path(name, cache_dir))
    if overlay.get("url") and not overlay.get("hf_hub_id"):
        overlay["hf_hub_id"] = None  # or timm would prefer the released file to this address
    if overlay.get("file") or overlay.get("url"):
        overlay["custom_load"] = True  # TimmInterface.load_pretrained
    arguments = {k: v for k, v in model_arguments(name).items() if k not in RECIPE}
    if cache_dir is not None and has_source:
        kwargs["cache_dir"] = cache_dir  # timm 1.0.9 does not know it
    return build_model_with_cfg(
        CLASSES[released_model(name).model],
        name,
        pretrained,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=overlay,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**arguments, **kwargs},
    )


for _name in list_models():
    register(released_model(_name))
