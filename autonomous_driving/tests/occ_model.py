"""A tiny BEVFormerOcc and made-up frames for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ad_common.synthetic import rig
from mmdet.models import build_detector
from occ.can_bus import with_pose
from torch import Tensor

DIM, BEV = 32, 10
RANGE = [-40.0, -40.0, -1.0, 40.0, 40.0, 5.4]
HEIGHT, WIDTH = 64, 96


def config(**head: Any) -> dict[str, Any]:
    """The model's config; `head` changes settings of the head."""
    spatial = dict(
        type="SpatialCrossAttention",
        embed_dims=DIM,
        num_cams=6,
        deformable_attention=dict(
            type="MSDeformableAttention3D", embed_dims=DIM, num_heads=4, num_points=4, num_levels=2
        ),
    )
    layer = dict(
        type="BEVFormerLayer",
        attn_cfgs=[dict(type="TemporalSelfAttention", embed_dims=DIM, num_heads=4), spatial],
        feedforward_channels=DIM,
    )
    encoder = dict(
        type="BEVFormerEncoder",
        num_layers=2,
        pc_range=RANGE,
        num_points_in_pillar=4,
        transformerlayers=layer,
    )
    transformer = dict(
        type="TransformerOcc",
        embed_dims=DIM,
        num_feature_levels=2,
        num_cams=6,
        out_dim=8,
        encoder=encoder,
    )
    settings = dict(
        type="BEVFormerOccHead",
        bev_h=BEV,
        bev_w=BEV,
        transformer=transformer,
        positional_encoding=dict(
            type="LearnedPositionalEncoding",
            num_feats=DIM // 2,
            row_num_embed=BEV,
            col_num_embed=BEV,
        ),
    )
    trunk = dict(type="InternImage", channels=16, depths=[1, 1, 2, 1], groups=[1, 2, 4, 8])
    return dict(
        type="BEVFormerOcc",
        use_grid_mask=True,
        img_backbone=dict(trunk, core_op="DCNv3", out_indices=(1, 2)),
        img_neck=dict(type="FPN", in_channels=[32, 64], out_channels=DIM, num_outs=2),
        pts_bbox_head={**settings, **head},
    )


def build(seed: int = 0, **head: Any) -> Any:
    """The model with random weights; the attention offsets too, which begin without a gradient."""
    torch.manual_seed(seed)
    model = build_detector(config(**head))
    model.pts_bbox_head.init_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
                parameter.normal_(std=0.05)
    return model


def frames(count: int, seed: int = 0, scene: str = "a") -> tuple[Tensor, list[dict[str, Any]]]:
    """Images (count, 6, 3, H, W) of a car that turns, and metas with absolute poses."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 6, 3, HEIGHT, WIDTH, generator=generator)
    cameras = rig.build(rig.NUSCENES, WIDTH / 1600)
    metas = []
    for i in range(count):
        yaw = 0.1 + 0.2 * i
        vector = np.r_[np.zeros(7), np.linspace(0, 1, 9) + 0.1 * i, 0, 0]
        rotation = [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        metas.append(
            dict(
                token=f"{scene}{i}",
                scene_token=scene,
                timestamp=100.0 + i / 2,
                lidar2img=[camera.ego2img for camera in cameras],
                pad_shape=[(HEIGHT, WIDTH, 3)] * 6,
                can_bus=with_pose(vector, rotation, [300 + 4.0 * i, 200 + 2.0 * i * seed, 0]),
            )
        )
    return images, metas
