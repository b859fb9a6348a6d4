"""A small rig of cameras and a small BEV encoder, for the tests of ad_common/bev."""

from __future__ import annotations

import numpy as np
import torch
from ad_common import bev, geometry
from mmcv.cnn.bricks.transformer import build_transformer_layer_sequence

FORWARD = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # a camera along x
RANGE = (-8.0, -4.0, -2.0, 8.0, 4.0, 2.0)
HEIGHT, WIDTH = 6, 12  # cells along y and x
IMAGE = (32, 48)  # height, width
STRIDES = (4, 8)
EMBED = 16


def camera(yaw: float, translation=(0.0, 0.0, 1.5), focal: float = 20.0) -> np.ndarray:
    """ego2img of a camera turned by `yaw` to the left, with the middle of the image as centre."""
    turn = geometry.quaternion_to_matrix([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])
    intrinsic = [[focal, 0, IMAGE[1] / 2], [0, focal, IMAGE[0] / 2], [0, 0, 1]]
    return geometry.ego_to_image(intrinsic, geometry.pose_matrix(turn @ FORWARD, translation))


def rig(cameras: int = 3, start: float = 0.0) -> list[np.ndarray]:
    return [camera(start + 2 * np.pi * i / cameras) for i in range(cameras)]


def meta(matrices=None, **more) -> dict:
    matrices = rig() if matrices is None else matrices
    return {
        "lidar2img": matrices,
        "pad_shape": [(*IMAGE, 3)] * len(matrices),
        "can_bus": np.zeros(18),
        **more,
    }


def encoder_config(layers: int = 2, dropout: float = 0.0, **more) -> dict:
    inside = dict(
        type="MSDeformableAttention3D",
        embed_dims=EMBED,
        num_heads=2,
        num_levels=len(STRIDES),
        num_points=4,
    )
    layer = dict(
        type="BEVFormerLayer",
        attn_cfgs=[
            dict(
                type="TemporalSelfAttention", embed_dims=EMBED, num_heads=2, num_levels=1, dropout=0
            ),
            dict(
                type="SpatialCrossAttention",
                embed_dims=EMBED,
                pc_range=RANGE,
                dropout=dropout,
                deformable_attention=inside,
            ),
        ],
        feedforward_channels=24,
        ffn_dropout=dropout,
        operation_order=("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
    )
    return dict(
        type="BEVFormerEncoder",
        num_layers=layers,
        pc_range=list(RANGE),
        num_points_in_pillar=2,
        transformerlayers=layer,
    ) | dict(more)


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights everywhere, so that zeros of the initialisation hide nothing; float64."""
    torch.manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.double().eval()


def encoder(seed: int = 0, **more) -> torch.nn.Module:
    return randomise(build_transformer_layer_sequence(encoder_config(**more)), seed)


def builder(seed: int = 0, cameras: int = 3, encoder_options=None, **more) -> bev.BEVBuilder:
    config = encoder_config(**(encoder_options or {}))
    model = bev.BEVBuilder(config, EMBED, len(STRIDES), cameras, **more)
    return randomise(model, seed)


def features(batch: int = 1, cameras: int = 3, seed: int = 1) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [
        torch.randn(
            batch, cameras, EMBED, IMAGE[0] // s, IMAGE[1] // s, generator=draw, dtype=torch.float64
        )
        for s in STRIDES
    ]


def normal(*shape: int, seed: int = 2) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)
