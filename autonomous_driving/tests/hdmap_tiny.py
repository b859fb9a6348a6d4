"""A VectorMapNet of 0.2 M parameters, random cameras and random lines, for the tests."""

from __future__ import annotations

from typing import Any

import hdmap  # noqa: F401 - registers the parts
import numpy as np
import torch
from hdmap.tokens import tokenise
from mmdet.models import build_detector

CANVAS = (40, 20)
CAMERAS = 2


def det_net(**changes: Any) -> dict[str, Any]:
    """Config of a small detector."""
    attention = dict(embed_dims=16, num_heads=2)
    config = dict(
        type="MapElementDetector",
        in_channels=16,
        num_query=6,
        canvas_size=CANVAS,
        max_lines=5,
        transformer=dict(
            type="DeformableDetrTransformer_",
            encoder=dict(type="PlaceHolderEncoder", embed_dims=16),
            decoder=dict(
                type="DeformableDetrTransformerDecoder_",
                num_layers=2,
                transformerlayers=dict(
                    type="BaseTransformerLayer",
                    attn_cfgs=[
                        dict(type="MultiheadAttention", **attention),
                        dict(type="MultiScaleDeformableAttention", num_levels=1, **attention),
                    ],
                    ffn_cfgs=dict(type="FFN", embed_dims=16, feedforward_channels=32),
                    operation_order=("norm", "self_attn", "norm", "cross_attn", "norm", "ffn"),
                ),
            ),
        ),
        assigner=dict(
            type="HungarianLinesAssigner",
            cost=dict(
                type="MapQueriesCost",
                cls_cost=dict(type="FocalLossCost", weight=2.0),
                reg_cost=dict(type="BBoxCostC", weight=0.1),
                iou_cost=dict(type="IoUCostC", iou_mode="giou", weight=1.0),
            ),
        ),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
        loss_reg=dict(type="LinesLoss", loss_weight=0.1, beta=0.5),
    )
    return {**config, **changes}


def gen_net(**changes: Any) -> dict[str, Any]:
    """Config of a small generator."""
    decoder = dict(num_layers=2, embed_dims=16, num_heads=2, feedforward_dims=32, dropout=0.1)
    config = dict(
        type="PolylineGenerator",
        in_channels=16,
        canvas_size=CANVAS,
        decoder=decoder,
        max_positions=20,
    )
    return {**config, **changes}


def mapper(seed: int = 0, **head: Any) -> torch.nn.Module:
    """A small VectorMapNet in evaluation mode, its residual weights away from 0."""
    torch.manual_seed(seed)
    backbone = dict(
        type="IPMEncoder",
        img_backbone=dict(
            type="InternImage",
            channels=16,
            depths=[1, 1, 2, 1],
            groups=[1, 2, 4, 8],
            mlp_ratio=2.0,
            layer_scale=1.0,
            post_norm=True,
        ),
        img_neck=dict(type="FPN", in_channels=[16, 32, 64, 128], out_channels=16, num_outs=4),
        in_channels=16,
        out_channels=16,
        num_groups=4,
        heights=(0.0, 1.0),
        grid_size=CANVAS,
        num_cams=CAMERAS,
    )
    dg_head = dict(type="DGHead", det_net=det_net(), gen_net=gen_net(), max_points=6)
    model = build_detector(
        dict(
            type="VectorMapNet",
            backbone=backbone,
            neck=dict(in_channels=16, mid_channels=16, out_channels=16),
            head={**dg_head, "augmentation": dict(p=0.3, scale=0.05), **head},
        )
    )
    model.head.det_net.init_weights()
    wake(model.head.gen_net)
    return model.eval()


def wake(generator: torch.nn.Module) -> None:
    """Gives the residual branches, which start at 0, a say, and the logits a spread."""
    for name, parameter in generator.named_parameters():
        if "res_weight" in name:
            torch.nn.init.constant_(parameter, 0.7)
        elif name.startswith("_project_to_logits"):
            parameter.data *= 4


def looking(yaw: float) -> np.ndarray:
    """(4, 4) projection of a camera of 64 x 96 pixels, 1.5 m above the ego frame, turned by yaw."""
    forward = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    right, down = np.array([np.sin(yaw), -np.cos(yaw), 0.0]), np.array([0.0, 0.0, -1.0])
    extrinsic = np.eye(4)
    extrinsic[:3, :3] = np.stack([right, down, forward])
    extrinsic[:3, 3] = -extrinsic[:3, :3] @ [0.0, 0.0, 1.5]
    intrinsic = np.eye(4)
    intrinsic[:2, :3] = [[50.0, 0.0, 48.0], [0.0, 50.0, 32.0]]
    return intrinsic @ extrinsic


def frames(count: int, seed: int = 0) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Random images (count, cameras, 3, 64, 96) and the frames' metas."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, CAMERAS, 3, 64, 96, generator=generator)
    metas = [
        {"token": f"frame{i}", "lidar2img": [looking(0.3 * i), looking(np.pi + 0.3 * i)]}
        for i in range(count)
    ]
    return images, metas


def polys(lengths: list[int], seed: int = 0) -> dict[str, Any]:
    """Targets of a frame with random lines of so many vertices each."""
    rng = np.random.default_rng(seed)
    lines = [rng.uniform(0.05, 0.95, (length, 2)) for length in lengths]
    bounds = [np.concatenate([line.min(0), line.max(0)]) for line in lines]
    boxes = torch.tensor(np.array(bounds), dtype=torch.float32).reshape(-1, 4)
    canvas = torch.tensor(CANVAS * 2)
    labels = torch.tensor(rng.integers(0, 3, len(lines)), dtype=torch.long)
    sequences = [torch.from_numpy(tokenise(line, CANVAS)) for line in lines]
    return {
        "det_label": labels,
        "det_bbox": boxes * canvas,
        "gen_label": labels.clone(),
        "gen_bbox": (boxes * (canvas - 1)).round().long(),
        "sequences": sequences,
        "gen_weight": [torch.full((len(s),), 1 / len(s)) for s in sequences],
    }
