"""What tests of train.py and test.py share: a tiny data set and config; runs, see `launch`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from launch import FOLDER as DETECTION
from launch import forget_loggers, program, shell, test, train
from PIL import Image

__all__ = [
    "CLASSES",
    "DETECTION",
    "forget_loggers",
    "program",
    "shell",
    "test",
    "train",
    "write_config",
    "write_data",
]

CLASSES = ("square", "bar", "dot")
SIZE = 64

CONFIG = """
custom_imports = None
model = dict(
    type="MaskRCNN",
    backbone=dict(
        type="InternImage", channels=16, depths=[1, 1, 1, 1], groups=[1, 2, 4, 8], mlp_ratio=1.0,
        layer_scale=1.0, drop_path_rate={drop_path}),
    neck=dict(type="FPN", in_channels=[16, 32, 64, 128], out_channels=16, num_outs=4),
    rpn_head=dict(
        type="RPNHead", in_channels=16, feat_channels=16,
        anchor_generator=dict(
            type="AnchorGenerator", scales=[4], ratios=[1.0], strides=[4, 8, 16, 32]),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True),
        loss_bbox=dict(type="L1Loss")),
    roi_head=dict(
        type="StandardRoIHead",
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor", out_channels=16, featmap_strides=[4, 8],
            roi_layer=dict(type="RoIAlign", output_size=5, sampling_ratio=1)),
        bbox_head=dict(
            type="Shared2FCBBoxHead", in_channels=16, fc_out_channels=32, roi_feat_size=5,
            num_classes=3, bbox_coder=dict(
                type="DeltaXYWHBBoxCoder", target_stds=[0.1, 0.1, 0.2, 0.2]),
            loss_cls=dict(type="CrossEntropyLoss"), loss_bbox=dict(type="L1Loss")),
        mask_roi_extractor=dict(
            type="SingleRoIExtractor", out_channels=16, featmap_strides=[4, 8],
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=1)),
        mask_head=dict(
            type="FCNMaskHead", num_convs=1, in_channels=16, conv_out_channels=16, num_classes=3,
            loss_mask=dict(type="CrossEntropyLoss", use_mask=True))),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.3),
            sampler=dict(
                type="RandomSampler", num={samples}, pos_fraction=0.5, add_gt_as_proposals=False),
            allowed_border=-1, pos_weight=-1),
        rpn_proposal=dict(
            nms_pre=60, max_per_img=20, min_bbox_size=0,
            nms=dict(type="nms", iou_threshold={nms})),
        rcnn=dict(
            assigner=dict(
                type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5),
            sampler=dict(
                type="RandomSampler", num={samples}, pos_fraction=0.5, add_gt_as_proposals=True),
            mask_size=14, pos_weight=-1)),
    test_cfg=dict(
        rpn=dict(nms_pre=60, max_per_img=20, min_bbox_size=0,
                 nms=dict(type="nms", iou_threshold=0.7)),
        rcnn=dict(
            score_thr=0.01, nms=dict(type="nms", iou_threshold=0.5), max_per_img=10,
            mask_thr_binary=0.5)))
norm = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", img_scale=(64, 64), keep_ratio=True),
    dict(type="RandomFlip", flip_ratio={flip}),
    dict(type="Normalize", **norm),
    dict(type="Pad", size_divisor=32),
    dict(type="DefaultFormatBundle"),
    dict(type="Collect", keys=["img", "gt_bboxes", "gt_labels", "gt_masks"])]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="MultiScaleFlipAug", img_scale=(64, 64), flip=False, transforms=[
        dict(type="Resize", keep_ratio=True), dict(type="RandomFlip"),
        dict(type="Normalize", **norm), dict(type="Pad", size_divisor=32),
        dict(type="ImageToTensor", keys=["img"]), dict(type="Collect", keys=["img"])])]
common = dict(type="CocoDataset", classes=("square", "bar", "dot"))
data = dict(
    samples_per_gpu={batch}, workers_per_gpu=0,
    train=dict(ann_file="{folder}/train.json", img_prefix="{folder}/train/",
               pipeline=train_pipeline, **common),
    val=dict(ann_file="{folder}/val.json", img_prefix="{folder}/val/",
             pipeline=test_pipeline, **common),
    test=dict(ann_file="{folder}/val.json", img_prefix="{folder}/val/",
              pipeline=test_pipeline, **common))
optimizer = dict(
    type="AdamW", lr=2e-3, weight_decay=0.05, constructor="CustomLayerDecayOptimizerConstructor",
    paramwise_cfg=dict(num_layers=4, layer_decay_rate=0.9, depths=[1, 1, 1, 1]))
optimizer_config = dict(grad_clip=dict(max_norm=5.0))
lr_config = dict(policy="step", step=[100])
runner = dict(type="EpochBasedRunner", max_epochs=2)
checkpoint_config = dict(interval=1)
evaluation = dict(interval=2, metric=["bbox", "segm"], save_best="auto")
log_config = dict(
    interval=1, hooks=[dict(type="TextLoggerHook"), dict(type="TensorboardLoggerHook")])
custom_hooks = [
    dict(type="NumClassCheckHook"),
    dict(type="ExpMomentumEMAHook", total_iter=4, momentum=0.1, priority=49)]
auto_scale_lr = dict(enable=False, base_batch_size=4)
workflow = [("train", 1)]
dist_params = dict(backend="nccl")
log_level = "INFO"
load_from = None
resume_from = None
"""


def write_config(path: Path, folder: Path, **changes: Any) -> str:
    """Writes `CONFIG` for the data set in `folder`; returns its path."""
    settings = {"drop_path": 0.1, "samples": 32, "nms": 0.7, "flip": 0.5, "batch": 2, **changes}
    text = CONFIG.replace("{folder}", str(folder))
    for key, value in settings.items():
        text = text.replace("{" + key + "}", str(value))
    path.write_text(text)
    return str(path)


def write_data(folder: Path, train: int, val: int) -> Path:
    """Writes PNG images of 64 pixels with two bright objects each, and their COCO json."""
    for split, count, seed in (("train", train, 0), ("val", val, 1)):
        draws = np.random.default_rng(seed)
        images, annotations = [], []
        (folder / split).mkdir(parents=True)
        for index in range(count):
            pixels = draws.integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8)
            for half in range(2):
                category = int(draws.integers(0, 3))
                width, height = ((20, 20), (24, 10), (12, 12))[category]
                left = int(draws.integers(0, SIZE // 2 - width + 1)) + half * SIZE // 2
                top = int(draws.integers(0, SIZE - height + 1))
                pixels[top : top + height, left : left + width] = 120 + 50 * category
                right, bottom = left + width, top + height
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index,
                        "category_id": category + 1,
                        "bbox": [left, top, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                    }
                )
            name = f"{index}.png"
            Image.fromarray(pixels).save(folder / split / name)
            images.append({"id": index, "file_name": name, "width": SIZE, "height": SIZE})
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
        content = {
            "info": {},
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder
