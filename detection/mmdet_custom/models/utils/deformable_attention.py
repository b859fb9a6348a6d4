"""mmcv's multi-scale deformable attention under automatic mixed precision.

mmcv's CUDA kernel takes float32 and float64 only, and half-precision sampling points would be off
by up to a cell on large maps. Under autocast the attention is therefore computed in float32; the
feed-forward networks around it, which do most of the work, stay in the autocast dtype.
"""

from __future__ import annotations

import torch
from mmcv.ops import MultiScaleDeformableAttention
from torch import Tensor, nn

__all__ = ["Float32Attention", "attend_in_float32"]


class Float32Attention(MultiScaleDeformableAttention):
    """`MultiScaleDeformableAttention`, computed in float32 under autocast."""

    def forward(self, query: Tensor, *args: object, **kwargs: object) -> Tensor:
        device = query.device.type
        if not torch.is_autocast_enabled(device):
            return super().forward(query, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            inputs = [widen(x) for x in (query, *args)]
            return super().forward(*inputs, **{name: widen(x) for name, x in kwargs.items()})


def widen(value: object) -> object:
    """A half-precision tensor in float32; anything else as it is."""
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


def attend_in_float32(model: nn.Module) -> None:
    """Gives every deformable attention below ``model`` the behaviour of `Float32Attention`.

    Configs name mmcv's class, whose registration must keep its meaning for others; so the class of
    the instances changes, not the registry. Weights and their names stay.
    """
    for module in model.modules():
        if type(module) is MultiScaleDeformableAttention:
            module.__class__ = Float32Attention
