"""What tests of the programs share: a tiny data set, and a tiny config of each head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import recipe
from launch import FOLDER, program, shell, test, train
from PIL import Image

__all__ = ["CLASSES", "FOLDER", "program", "shell", "test", "train", "write_config", "write_data"]

CLASSES = ("ground", "square", "bar", "dot", "rim")
SIZE = 64

CONFIG = """
model = {model}
norm = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="Resize", img_scale={scale}, ratio_range={ratios}),
    dict(type="RandomCrop", crop_size=(64, 64), cat_max_ratio=0.9),
    dict(type="RandomFlip", prob={flip}),
    dict(type="Normalize", **norm),
    dict(type="Pad", size=(64, 64), pad_val=0, seg_pad_val=255),
    dict(type="DefaultFormatBundle"),
    dict(type="Collect", keys=["img", "gt_semantic_seg"])]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="MultiScaleFlipAug", img_scale=(64, 64), flip=False, transforms=[
        dict(type="Resize", keep_ratio=True), dict(type="ResizeToMultiple", size_divisor=32),
        dict(type="RandomFlip"), dict(type="Normalize", **norm),
        dict(type="ImageToTensor", keys=["img"]), dict(type="Collect", keys=["img"])])]
common = dict(
    type="CustomDataset", classes=("ground", "square", "bar", "dot", "rim"), data_root="{folder}",
    img_suffix=".png", palette=[[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]])
val = dict(
    img_dir="images/validation", ann_dir="annotations/validation", pipeline=test_pipeline, **common)
data = dict(
    samples_per_gpu={batch}, workers_per_gpu=0,
    train=dict(
        img_dir="images/training", ann_dir="annotations/training", pipeline=train_pipeline,
        **common),
    val=val, test=val)
optimizer = dict(
    type="AdamW", lr=8e-3, weight_decay=0.05, constructor="CustomLayerDecayOptimizerConstructor",
    paramwise_cfg=dict(num_layers=5, layer_decay_rate=0.9, depths=[1, 1, 2, 1]))
optimizer_config = dict(grad_clip=dict(max_norm=5.0))
lr_config = dict(policy="poly", power=1.0, min_lr=1e-4, by_epoch=False)
runner = dict(type="IterBasedRunner", max_iters={iterations})
checkpoint_config = dict(by_epoch=False, interval=8)
evaluation = dict(interval=8, metric="mIoU", pre_eval=True, save_best="mIoU")
log_config = dict(
    interval=1,
    hooks=[
        dict(type="TextLoggerHook", by_epoch=False),
        dict(type="TensorboardLoggerHook", by_epoch=False)])
workflow = [("train", 1)]
dist_params = dict(backend="nccl")
log_level = "INFO"
load_from = None
resume_from = None
cudnn_benchmark = True
"""


def tiny_model(name: str, norm: str = "SyncBN") -> dict[str, Any]:
    """The tiny model `name` (upernet, segformer, mask2former) for `CLASSES`."""
    model = recipe.load_json("whole_models/configs.json")[name]
    if name.startswith("mask2former"):
        model["decode_head"]["num_queries"] = 10
        model["train_cfg"]["num_points"] = 128
    for part in ("decode_head", "auxiliary_head"):
        if "norm_cfg" in model.get(part, {}):
            more = {"num_groups": 8} if norm == "GN" else {"momentum": 0.5}  # of few iterations
            model[part]["norm_cfg"] = {"type": norm, "requires_grad": True, **more}
    return model


def write_config(
    path: Path, folder: Path, model: str = "upernet", norm: str = "SyncBN", **changes: Any
) -> str:
    """Writes `CONFIG` for the data set in `folder`; returns its path."""
    settings = {
        "folder": folder,
        "model": tiny_model(model, norm),
        "scale": (64, 64),
        "ratios": None,
        "flip": 0.0,
        "batch": 2,
        "iterations": 16,
        **changes,
    }
    text = CONFIG
    for key, value in settings.items():
        text = text.replace("{" + key + "}", str(value))
    path.write_text(text)
    return str(path)


def write_data(folder: Path, train: int, val: int, sizes: Any = ((SIZE, SIZE),)) -> Path:
    """Writes PNG images with bright objects on dark ground and their masks; rims are ignored.

    Args:
        sizes: (height, width) of the images, in turn.
    """
    for split, count, seed in (("training", train, 0), ("validation", val, 1)):
        draws = np.random.default_rng(seed)
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            height, width = sizes[index % len(sizes)]
            pixels = draws.integers(0, 60, (height, width, 3), dtype=np.uint8)
            labels = np.zeros((height, width), np.uint8)
            for label, (h, w) in enumerate(((32, 32), (20, 48), (24, 24)), start=1):
                h, w = min(h, height), min(w, width)
                top = int(draws.integers(0, height - h + 1))
                left = int(draws.integers(0, width - w + 1))
                pixels[top : top + h, left : left + w] = 90 + 50 * label
                labels[top : top + h, left : left + w] = label
            labels[:2] = 4
            pixels[:2] = 255
            labels[-1] = 255
            Image.fromarray(pixels).save(folder / "images" / split / f"{index}.png")
            Image.fromarray(labels).save(folder / "annotations" / split / f"{index}.png")
    return folder
