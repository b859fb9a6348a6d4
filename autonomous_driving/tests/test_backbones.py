"""The trunks are mmdet backbones here too, with the options of the driving configs."""

from __future__ import annotations

import ad_common  # noqa: F401 - registers
import torch
from mmdet.models.builder import build_backbone


def test_internimage_gives_the_levels_of_the_config():
    config = dict(
        type="InternImage",
        core_op="DCNv3",
        channels=16,
        depths=[1, 1, 2, 1],
        groups=[1, 2, 4, 8],
        mlp_ratio=4.0,
        norm_layer="LN",
        layer_scale=1.0,
        offset_scale=1.0,
        post_norm=True,
        with_cp=True,
        out_indices=(1, 2, 3),
    )
    features = build_backbone(config)(torch.zeros(2, 3, 64, 96))
    assert [tuple(f.shape) for f in features] == [(2, 32, 8, 12), (2, 64, 4, 6), (2, 128, 2, 3)]
