"""Sampling of multi-scale deformable attention, and the attention of DETR decoders on a BEV map.

Deformable DETR (arXiv 2010.04159), section 4.1. On a GPU the kernel of mmcv-full does the work;
elsewhere, and where mmcv was compiled without CUDA, `sample_levels` does it with grid_sample.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.registry import ATTENTION
from mmcv.ops import MultiScaleDeformableAttention, get_compiling_cuda_version
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
from torch import Tensor, nn

HAS_KERNEL = get_compiling_cuda_version() != "not available"


def deformable_sampling(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    locations: Tensor,
    weights: Tensor,
    im2col_step: int = 64,
) -> Tensor:
    """Weighted sums of bilinear samples of several feature maps; zeros outside of the maps.

    Half precision computes in float32: a location needs more than the 11 bits of float16.

    Args:
        value: (B, S, heads, C), the tokens of all levels one after the other.
        spatial_shapes: (levels, 2), height and width of each level.
        level_start_index: (levels,), where each level begins in S.
        locations: (B, Q, heads, levels, points, 2) as (x, y), in [0, 1] inside the maps.
        weights: (B, Q, heads, levels, points).
        im2col_step: The most samples of the batch that the kernel takes at once.

    Returns:
        (B, Q, heads * C) of the type of `value`.
    """
    exact = torch.promote_types(value.dtype, torch.float32)
    maps, locations, weights = value.to(exact), locations.to(exact), weights.to(exact)
    if value.is_cuda and HAS_KERNEL:
        batch = len(value)
        step = next(n for n in range(min(batch, im2col_step), 0, -1) if batch % n == 0)
        output = MultiScaleDeformableAttnFunction.apply(
            maps.contiguous(),
            spatial_shapes,
            level_start_index,
            locations.contiguous(),
            weights.contiguous(),
            step,
        )
    else:
        output = sample_levels(maps, spatial_shapes, locations, weights)
    return output.to(value.dtype)


def sample_levels(
    value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    """`deformable_sampling` in plain PyTorch, adding level after level to save memory."""
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    # the queries come last: grid_sample and the sum over the points are fastest along them
    grids = (2 * locations - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
    # (levels, B * heads, points, Q, 2)
    weights = weights.permute(3, 0, 2, 4, 1).flatten(1, 2)[:, :, None]
    # (levels, B * heads, 1, points, Q)
    tokens = value.permute(0, 2, 3, 1).reshape(batch * heads, channels, -1)  # (B * heads, C, S)
    output = value.new_zeros(())
    start = 0
    for grid, weight, (height, width) in zip(grids, weights, spatial_shapes.tolist(), strict=True):
        level = tokens[:, :, start : start + height * width].unflatten(2, (height, width))
        sampled = F.grid_sample(level, grid, "bilinear", "zeros", align_corners=False)
        output = output + (sampled * weight).sum(2)  # (B * heads, C, Q)
        start += height * width
    return output.reshape(batch, heads * channels, queries).transpose(1, 2)


def check_tokens(value: Tensor, spatial_shapes: Tensor) -> None:
    """Raises a ValueError when the tokens of `value` (.., S, C) are not those of the levels.

    On a GPU nothing is checked, since reading the sizes would wait for the device.
    """
    if spatial_shapes.is_cuda:
        return
    expected = int(spatial_shapes.prod(1).sum())
    if value.shape[-2] != expected:
        raise ValueError(
            f"value has {value.shape[-2]} tokens, but levels of the sizes (height, width) "
            f"{spatial_shapes.tolist()} have {expected}"
        )


def check_heads(embed_dims: int, num_heads: int) -> None:
    """Raises a ValueError when the channels do not divide among the heads."""
    if embed_dims % num_heads:
        raise ValueError(f"embed_dims {embed_dims} must be divisible by num_heads {num_heads}")


def init_offsets(layer: nn.Linear, heads: int, maps: int, points: int) -> None:
    """Offsets start independent of the query: a direction per head, i + 1 pixels for point i."""
    nn.init.zeros_(layer.weight)
    angles = torch.arange(heads) * (2 * math.pi / heads)
    direction = torch.stack([angles.cos(), angles.sin()], -1)
    direction = direction / direction.abs().amax(-1, keepdim=True)  # (heads, 2)
    length = torch.arange(1, points + 1)[:, None]  # (points, 1)
    start = (direction[:, None, None] * length).expand(heads, maps, points, 2)
    with torch.no_grad():
        layer.bias.copy_(start.reshape(-1))


def init_linear(*layers: nn.Linear) -> None:
    """Xavier-uniform weights and zero biases."""
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)


@ATTENTION.register_module()
class CustomMSDeformableAttention(MultiScaleDeformableAttention):
    """mmcv's MultiScaleDeformableAttention under the name that lane decoders use.

    The same arguments, parameters and results. Under autocast it computes in float32.
    """

    def forward(self, query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """See mmcv's class; `query` is (Q, B, C), or (B, Q, C) with batch_first."""
        device = query.device.type
        if not torch.is_autocast_enabled(device):
            return super().forward(query, *args, **kwargs)
        inputs = [to_full(item) for item in args]
        named = {name: to_full(item) for name, item in kwargs.items()}
        with torch.autocast(device, enabled=False):
            return super().forward(to_full(query), *inputs, **named).to(query.dtype)


def to_full(item: Any) -> Any:
    """A tensor of half precision as float32; anything else as it is."""
    half = (torch.float16, torch.bfloat16)
    return item.float() if isinstance(item, Tensor) and item.dtype in half else item
