"""A very small ROAD_BEVFormer and made-up frames for its tests."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ad_common  # noqa: F401 - registers
import numpy as np
import olv2  # noqa: F401 - registers
import torch
from ad_common.geometry import intrinsic_4x4, inverse_pose, pose_matrix
from mmcv import Config
from mmdet.models import build_detector
from olv2.detector import ROAD_BEVFormer

CONFIGS = Path(__file__).resolve().parents[1] / "openlane-v2" / "configs"
SIZE = (64, 64)  # height and width of the images
YAWS = (0, 45, -45, 150, -150, 95, -95)  # of the seven cameras, degrees
FOCAL = dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25)
CAMERA_TO_EGO = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], dtype=float)  # looking ahead


def small_model(seed: int = 0, **options: Any) -> ROAD_BEVFormer:
    """The model of the nano config with random weights; options like "bbox_head.num_query"."""
    torch.manual_seed(seed)
    config = Config.fromfile(CONFIGS / "toy" / "olv2_nano.py")
    config.merge_from_dict({f"model.{name}": value for name, value in options.items()})
    detector = build_detector(config.model)
    for name, module in detector.named_children():
        if name != "img_backbone":
            module.init_weights()
    return detector


def meta(seed: int = 0) -> dict[str, Any]:
    """Calibration of a frame: seven cameras 1.5 m over the ground, 60 degrees wide."""
    rng = np.random.default_rng(seed)
    intrinsic = intrinsic_4x4(np.array([[55.0, 0, 32], [0, 55, 32], [0, 0, 1]]))
    matrices = []
    for yaw in np.deg2rad(YAWS):
        turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        pose = pose_matrix(turn @ CAMERA_TO_EGO, np.array([0, 0, 1.5]))
        matrices.append(intrinsic @ inverse_pose(pose))
    return dict(
        lidar2img=matrices,
        can_bus=rng.normal(size=18),
        img_shape=[(*SIZE, 3)] * 7,
        pad_shape=[(*SIZE, 3)] * 7,
        scale_factor=np.array([0.5, 0.25, 0.5, 0.25], dtype=np.float32),
    )


def batch_of(lanes: list[int], boxes: list[int], seed: int = 0) -> dict[str, Any]:
    """Images and annotations with so many lanes and traffic elements per frame."""
    rng = np.random.default_rng(seed)
    batch: dict[str, Any] = {
        "img": torch.tensor(rng.normal(size=(len(lanes), 7, 3, *SIZE)), dtype=torch.float32),
        "img_metas": [meta(seed + i) for i in range(len(lanes))],
        **{key: [] for key in ANNOTATIONS},
    }
    for n, k in zip(lanes, boxes):
        starts = rng.uniform([-40, -20, -1], [20, 20, 1], size=(n, 1, 3))
        steps = np.linspace(0, 1, 5)[None, :, None] * rng.uniform(5, 20, size=(n, 1, 3)) * [1, 0, 0]
        corner = rng.uniform(0, 30, size=(k, 2))
        batch["gt_lc"].append(torch.tensor(starts + steps).float().reshape(n, 15))
        batch["gt_lc_labels"].append(torch.zeros(n, dtype=torch.long))
        batch["gt_te"].append(torch.tensor(np.concatenate([corner, corner + 20], 1)).float())
        batch["gt_te_labels"].append(torch.tensor(rng.integers(0, 13, k)))
        batch["gt_topology_lclc"].append(torch.tensor(rng.integers(0, 2, (n, n))))
        batch["gt_topology_lcte"].append(torch.tensor(rng.integers(0, 2, (n, k))))
    return batch


ANNOTATIONS = (
    "gt_lc",
    "gt_lc_labels",
    "gt_te",
    "gt_te_labels",
    "gt_topology_lclc",
    "gt_topology_lcte",
)


def focal(logit: float, target: int, alpha: float = 0.25) -> float:
    """Focal loss (arXiv 1708.02002, equation 5, gamma 2) of one logit."""
    p = 1 / (1 + math.exp(-logit))
    if target:
        return -alpha * (1 - p) ** 2 * math.log(p)
    return -(1 - alpha) * p**2 * math.log(1 - p)
