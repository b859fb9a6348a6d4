"""Makes the model that a config describes."""

from __future__ import annotations

import ast
from typing import Any

from torch import nn

from .classifier import InternImageClassifier
from .flash_classifier import FlashInternImageClassifier
from .intern_image import check_choice
from .intern_image_meta_former import InternImageMetaFormer

MODEL_TYPES = {
    "intern_image": InternImageClassifier,
    "intern_image_meta_former": InternImageMetaFormer,
    "flash_intern_image": FlashInternImageClassifier,
}


def build_model(config: Any) -> nn.Module:
    """Builds the model of MODEL.TYPE with the options of MODEL and of its section.

    The section is MODEL.INTERN_IMAGE, or MODEL.FLASH_INTERN_IMAGE for `flash_intern_image`.

    Args:
        config: the tree of `config.py`.

    Returns:
        `intern_image`, `flash_intern_image`: called with images (N, 3, H, W);
        `intern_image_meta_former`: called with images, temporal (N, 4) and spatial (N, 3). All
        return (N, MODEL.NUM_CLASSES) logits.

    Raises:
        ValueError: an unknown MODEL.TYPE or an option that does not fit; the message names it.
    """
    model_type = config.MODEL.TYPE.lower()
    check_choice("MODEL.TYPE", model_type, MODEL_TYPES)
    return MODEL_TYPES[model_type](**model_arguments(config))


def model_arguments(config: Any) -> dict[str, Any]:
    """The keyword arguments of the model class, read from a config."""
    is_flash = config.MODEL.TYPE.lower() == "flash_intern_image"
    section = "FLASH_INTERN_IMAGE" if is_flash else "INTERN_IMAGE"
    options = config.MODEL[section]
    arguments = {
        "num_classes": config.MODEL.NUM_CLASSES,
        "drop_rate": config.MODEL.DROP_RATE,
        "drop_path_rate": config.MODEL.DROP_PATH_RATE,
        "drop_path_type": config.MODEL.DROP_PATH_TYPE,
        "with_cp": config.TRAIN.USE_CHECKPOINT,
        "core_op": options.CORE_OP,
        "backend": options.BACKEND or None,
        "channels": options.CHANNELS,
        "depths": options.DEPTHS,
        "groups": options.GROUPS,
        "mlp_ratio": options.MLP_RATIO,
        "act_layer": options.ACT_LAYER,
        "norm_layer": options.NORM_LAYER,
        "layer_scale": number_or_none(options.LAYER_SCALE, f"MODEL.{section}.LAYER_SCALE"),
        "offset_scale": options.OFFSET_SCALE,
        "post_norm": options.POST_NORM,
        "res_post_norm": options.RES_POST_NORM,
        "dw_kernel_size": options.DW_KERNEL_SIZE,
        "level2_post_norm": options.LEVEL2_POST_NORM,
        "level2_post_norm_block_ids": options.LEVEL2_POST_NORM_BLOCK_IDS,
        "center_feature_scale": options.CENTER_FEATURE_SCALE,
        "cls_scale": options.CLS_SCALE,
        "use_clip_projector": options.USE_CLIP_PROJECTOR,
    }
    if is_flash:
        arguments["dcn_output_bias"] = options.DCN_OUTPUT_BIAS
        arguments["mlp_fc2_bias"] = options.MLP_FC2_BIAS
    else:
        arguments["remove_center"] = options.REMOVE_CENTER
    return arguments


def number_or_none(value: float | str | None, key: str) -> float | None:
    """Reads a number that YAML may have left as text: 1e-5 and None are strings there."""
    if not isinstance(value, str):
        return value
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        parsed = value
    if parsed is not None and not isinstance(parsed, (int, float)):
        raise ValueError(f"{key} must be a number or None, got {value!r}.")
    return parsed
