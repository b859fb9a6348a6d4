"""mmcv's deformable attention in ONNX files, for maps of any size; needs mmdeploy."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmdeploy.core import FUNCTION_REWRITER
from torch import Tensor

ATTEND = "mmcv.ops.multi_scale_deform_attn.multi_scale_deformable_attn_pytorch"


def replace(name: str, function: Any) -> None:
    """Makes `function` the export's version of the function `name`, instead of mmdeploy's."""
    FUNCTION_REWRITER._registry._rewrite_records.pop(name, None)
    FUNCTION_REWRITER.register_rewriter(name)(function)


def attend(_: Any, value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """`multi_scale_deformable_attn_pytorch`, with sizes that are read when the graph runs.

    Args:
        value: (N, S, heads, C), the tokens of all levels.
        shapes: (levels, 2) their heights and widths.
        locations: (N, Q, heads, levels, points, 2) as (x, y) in [0, 1].
        weights: (N, Q, heads, levels, points).

    Returns:
        (N, Q, heads * C)
    """
    heads, width = value.shape[2:]
    levels = weights.shape[3]
    grids = (
        (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)
    )  # (levels, N*heads, Q, P, 2)
    tokens = value.permute(0, 2, 3, 1).flatten(0, 1)  # (N * heads, C, S)
    areas = shapes[:, 0] * shapes[:, 1]
    ends = areas.cumsum(0)
    sampled = []
    for level in range(int(levels)):
        end, area = ends[level], areas[level]
        part = tokens[:, :, end - area : end]
        part = part.reshape(-1, int(width), shapes[level, 0], shapes[level, 1])
        sampled.append(
            F.grid_sample(part, grids[level], "bilinear", "zeros", align_corners=False)
        )  # (N * heads, C, Q, points)
    samples = torch.cat(sampled, -1)  # (N * heads, C, Q, levels * points)
    weights = weights.transpose(1, 2).flatten(0, 1).flatten(2)[:, None]
    output = (samples * weights).sum(-1)  # (N * heads, C, Q)
    output = output.reshape(value.shape[0], int(heads) * int(width), locations.shape[1])
    return output.transpose(1, 2)


replace(ATTEND, attend)
