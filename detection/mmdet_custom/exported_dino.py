"""DINO in ONNX files, for images of any size; needs mmdeploy.

The model's own code asks the traced image for its sizes, which makes them constants of the file.
Here the same is computed from sizes that are read when the file runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv_custom.exported_attention import replace
from mmdet.core import bbox_cxcywh_to_xyxy
from torch import Tensor

from .models.utils.dino_transformer import Tokens

HEAD = "mmdet_custom.models.dense_heads.dino_head.DINOHead"
TRANSFORMER = "mmdet_custom.models.utils.dino_transformer.DinoTransformer"


def centres(count: Tensor) -> Tensor:
    """0.5, 1.5, ... of `count` cells."""
    return torch.arange(count).float() + 0.5


def make_masks(
    _: Any, self: Any, mlvl_feats: Sequence[Tensor], img_metas: Sequence[Mapping[str, Any]]
) -> list[Tensor]:
    """`DINOHead.make_masks`; all images of a batch have the size of the largest."""
    height, width = img_metas[0]["batch_input_shape"].unbind()
    rows, columns = img_metas[0]["img_shape"].unbind()
    below, beside = torch.arange(height) >= rows, torch.arange(width) >= columns
    mask = (below[:, None] | beside).float()[None, None].to(mlvl_feats[0])
    mask = mask.expand(mlvl_feats[0].shape[0], -1, -1, -1)
    return [F.interpolate(mask, feat.shape[-2:])[:, 0] > 0.5 for feat in mlvl_feats]


def flatten(
    _: Any, self: Any, feats: Sequence[Tensor], masks: Sequence[Tensor], positions: Sequence[Tensor]
) -> Tokens:
    """`DinoTransformer.flatten`."""
    shapes = torch.stack([torch._shape_as_tensor(feat)[-2:] for feat in feats])
    shapes = shapes.to(feats[0].device)
    sizes = shapes[:, 0] * shapes[:, 1]
    positions = [
        (position + embed[:, None, None]).flatten(2)
        for position, embed in zip(positions, self.level_embeds)
    ]
    return Tokens(
        torch.cat([feat.flatten(2) for feat in feats], 2).permute(2, 0, 1),
        torch.cat(positions, 2).permute(2, 0, 1),
        torch.cat([mask.flatten(1) for mask in masks], 1),
        shapes,
        sizes.cumsum(0) - sizes,
        torch.stack([self.get_valid_ratio(mask) for mask in masks], 1),
    )


def grid(shapes: Tensor, level: int, ratios: Tensor) -> Tensor:
    """(N, H * W, 2) centres (x, y) of a level's cells, as parts of the image without padding.

    Args:
        shapes: (levels, 2) height, width.
        ratios: (N, levels, 2) part of the map that shows the image, (x, y).
    """
    height, width = shapes[level].unbind()
    y = centres(height)[:, None].expand(-1, width).reshape(-1).to(ratios)
    x = centres(width)[None].expand(height, -1).reshape(-1).to(ratios)
    return torch.stack(
        (x / (ratios[:, level, :1] * width), y / (ratios[:, level, 1:] * height)), -1
    )


def get_reference_points(
    _: Any, spatial_shapes: Tensor, valid_ratios: Tensor, device: Any = None
) -> Tensor:
    """`DeformableDetrTransformer.get_reference_points`: (N, S, levels, 2)."""
    levels = range(int(valid_ratios.shape[1]))
    points = torch.cat([grid(spatial_shapes, level, valid_ratios) for level in levels], 1)
    return points[:, :, None] * valid_ratios[:, None]


def gen_encoder_output_proposals(
    _: Any, self: Any, memory: Tensor, padding: Tensor, shapes: Tensor
) -> tuple[Tensor, Tensor]:
    """`DeformableDetrTransformer.gen_encoder_output_proposals`.

    Args:
        memory: (N, S, C).
        padding: (N, S) true on padding.
        shapes: (levels, 2) height, width.

    Returns:
        (N, S, C) memory and (N, S, 4) boxes before the sigmoid.
    """
    boxes = []
    ends = (shapes[:, 0] * shapes[:, 1]).cumsum(0)
    for level in range(self.num_feature_levels):
        height, width = shapes[level].unbind()
        start = ends[level] - height * width
        free = (~padding[:, start : ends[level]]).float().reshape(-1, height, width)
        rows, columns = free[:, :, 0].sum(1), free[:, 0].sum(1)
        ratios = torch.stack((columns / width, rows / height), -1)[:, None]  # (N, 1, 2)
        centre = grid(shapes[level : level + 1], 0, ratios)
        size = torch.full_like(centre, 0.05 * 2**level)
        boxes.append(torch.cat((centre, size), -1))
    box = torch.cat(boxes, 1)
    inside = ((box > 0.01) & (box < 0.99)).all(-1, keepdim=True) & ~padding[..., None]
    infinity = torch.full_like(box, float("inf"))
    box = torch.where(inside, torch.log(box / (1 - box)), infinity)
    memory = torch.where(inside, memory, torch.zeros_like(memory))
    return self.enc_output_norm(self.enc_output(memory)), box


def num_queries(_: Any, self: Any, num_tokens: Any) -> Tensor:
    """`DinoTransformer.num_queries`."""
    return torch.minimum(torch.tensor(self.two_stage_num_proposals), torch.as_tensor(num_tokens))


def simple_test_bboxes(
    _: Any, self: Any, feats: Sequence[Tensor], img_metas: Any, rescale: bool = False
) -> tuple[Tensor, Tensor]:
    """`DINOHead.simple_test_bboxes`: (N, K, 5) corners and score, best first, and (N, K) labels."""
    scores, boxes, *_rest = self(feats, img_metas)
    scores, boxes = scores[-1].sigmoid().flatten(1), boxes[-1]
    limit = (self.test_cfg or {}).get("max_per_img", self.num_query)
    scores, order = scores.topk(limit, dim=1)
    rows = (order // self.num_classes)[..., None].expand(-1, -1, 4)
    boxes = bbox_cxcywh_to_xyxy(boxes.gather(1, rows))
    size = img_metas[0]["img_shape"].flip(0).repeat(2).to(boxes)  # width, height, width, height
    boxes = torch.minimum((boxes * size).clamp(min=0), size)
    return torch.cat((boxes, scores[..., None]), -1), order % self.num_classes


replace(f"{HEAD}.make_masks", make_masks)
replace(f"{HEAD}.simple_test_bboxes", simple_test_bboxes)
replace(f"{TRANSFORMER}.flatten", flatten)
replace(f"{TRANSFORMER}.num_queries", num_queries)
replace(f"{TRANSFORMER}.get_reference_points", get_reference_points)
replace(f"{TRANSFORMER}.gen_encoder_output_proposals", gen_encoder_output_proposals)
