"""A config in the words of data/configs.json."""

from __future__ import annotations

import json
from typing import Any

from mmcv import Config


def plain(value: Any) -> Any:
    """Tuples as lists and ConfigDicts as dicts, as json has them."""
    return json.loads(json.dumps(value))


def settings(step: dict, keys: tuple[str, ...]) -> str:
    """`(key=value, ...)` of the keys that are set."""
    parts = [f"{key}={words(key, step[key])}" for key in keys if key in step]
    return f"({', '.join(parts)})" if parts else ""


def words(key: str, value: Any) -> str:
    value = plain(value)
    if key == "img_scale" and isinstance(value[0], list) and len(value) > 4:
        return f"{value[0]}..{value[-1]} ({len(value)} values)"
    return str(value)


def pipeline_words(steps: list[dict]) -> str:
    """A pipeline in the notation of data/configs.json."""
    shown = []
    for step in steps:
        kind = step["type"]
        keys: tuple[str, ...] = ()
        if kind == "LoadAnnotations":
            keys = ("with_mask",)
        elif kind in ("Resize", "MultiScaleFlipAug"):
            keys = ("img_scale", "multiscale_mode", "override", "keep_ratio", "flip")
        elif kind == "RandomFlip":
            keys = ("flip_ratio",)
        elif kind == "RandomCrop":
            keys = ("crop_type", "crop_size")
        elif kind == "Pad":
            keys = ("size_divisor",)
        text = kind + settings(step, keys)
        if "policies" in step:
            text += "{" + " | ".join(pipeline_words(policy) for policy in step["policies"]) + "}"
        if "transforms" in step:
            text += "[" + pipeline_words(step["transforms"]) + "]"
        shown.append(text)
    return " > ".join(shown)


def data_words(data: dict) -> str:
    if data["type"] == "ClassBalancedDataset":
        inner = data_words(data["dataset"])
        return f"ClassBalancedDataset(oversample_thr={data['oversample_thr']}) of {inner}"
    if data["type"] == "RepeatDataset":
        return f"RepeatDataset(times={data['times']}) of {data_words(data['dataset'])}"
    many = isinstance(data["ann_file"], list)
    count = f"x{len(data['ann_file'])} anns " if many else ""
    return f"{data['type']} {count}{data['ann_file']} {data['img_prefix']}"


def leaf(data: dict) -> dict:
    while "dataset" in data:
        data = data["dataset"]
    return data


def head_words(model: dict) -> str:
    if "bbox_head" in model:
        head = model["bbox_head"]
        kinds = " ".join(f"{k}={head[k]}" for k in ("num_classes", "num_query", "in_channels"))
        return f"bbox_head: {head['type']} {kinds}"
    rpn, roi = model["rpn_head"], model["roi_head"]
    boxes = roi["bbox_head"]
    box = boxes[0] if isinstance(boxes, list) else boxes
    norm = f", norm={box['norm_cfg']['type']}" if "norm_cfg" in box else ""
    mask = roi.get("mask_head")
    return (
        f"rpn_head: {rpn['type']} in_channels={rpn['in_channels']} "
        f"feat_channels={rpn['feat_channels']}; roi_head: {roi['type']} bbox={box['type']}"
        f"(nc={box['num_classes']}, cls_agnostic={box['reg_class_agnostic']}, "
        f"loss_bbox={box['loss_bbox']['type']}{norm})"
        + (f" mask={mask['type']} nc={mask['num_classes']}" if mask else "")
    )


def rate_words(optimizer: dict) -> str:
    rates = optimizer["paramwise_cfg"]
    if "constructor" not in optimizer:
        return f"default constructor, {json.dumps(plain(rates))}"
    assert optimizer["constructor"] == "CustomLayerDecayOptimizerConstructor"
    offset = rates.get("offset_lr_scale")
    tail = f", offset_lr_scale={offset}" if offset else ""
    return f"LD({rates['num_layers']}, {rates['layer_decay_rate']}, {rates['depths']}{tail})"


def describe(cfg: Config) -> dict[str, Any]:
    """The settings of a config in the form of data/configs.json."""
    model, data = plain(cfg.model), plain(cfg.data)
    neck = model["neck"][0] if isinstance(model["neck"], list) else model["neck"]
    backbone = dict(model["backbone"])
    weights = backbone.pop("init_cfg", None)
    return {
        "detector": model["type"],
        "backbone": backbone,
        "pretrained": weights["checkpoint"] if weights else None,
        "load_from": cfg.get("load_from"),
        "neck": ", ".join(
            str(neck[key]) for key in ("type", "in_channels", "out_channels", "num_outs")
        ),
        "head": head_words(model),
        "train_data": data_words(data["train"]),
        "test_data": data_words(data["test"]),
        "batch": data["samples_per_gpu"],
        "workers": data["workers_per_gpu"],
        "runner": cfg.runner.type,
        "length": cfg.runner.get("max_epochs", cfg.runner.get("max_iters")),
        "lr": cfg.optimizer.lr,
        "weight_decay": cfg.optimizer.weight_decay,
        "rates": rate_words(plain(cfg.optimizer)),
        "grad_clip": str(plain(cfg.optimizer_config.grad_clip)),
        "lr_config": ", ".join(f"{k}={v}" for k, v in plain(cfg.lr_config).items()),
        "train_pipeline": pipeline_words(leaf(data["train"])["pipeline"]),
        "test_pipeline": pipeline_words(data["test"]["pipeline"]),
        "test_cfg": model["test_cfg"],
        "evaluation": plain(cfg.evaluation),
        "checkpoint": plain(cfg.checkpoint_config),
    }
