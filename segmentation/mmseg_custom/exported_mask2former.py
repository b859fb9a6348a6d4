"""Mask2Former's pixel decoder in ONNX files, for images of any size; needs mmdeploy.

mmdet's code asks the traced image for its sizes, which makes them constants of the file. Here the
same is computed from sizes that are read when the file runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv_custom.exported_attention import replace
from torch import Tensor

DECODER = "mmdet.models.plugins.msdeformattn_pixel_decoder.MSDeformAttnPixelDecoder.forward"


def centres(shape: Tensor) -> Tensor:
    """(H * W, 2) centres (x, y) of the cells of a map of (height, width), in [0, 1]."""
    height, width = shape.unbind()
    y = (torch.arange(height).float() + 0.5) / height
    x = (torch.arange(width).float() + 0.5) / width
    both = (x[None].expand(height, -1).reshape(-1), y[:, None].expand(-1, width).reshape(-1))
    return torch.stack(both, -1)


def forward(_: Any, self: Any, feats: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """`MSDeformAttnPixelDecoder.forward`.

    Args:
        feats: maps of the backbone (N, C_i, H_i, W_i), finest first.

    Returns:
        (N, C, H_0, W_0) embedding of every pixel, and the maps for the decoder, coarsest first.
    """
    batch = feats[0].shape[0]
    inner = feats[: -self.num_encoder_levels - 1 : -1]  # coarsest first
    tokens, positions, shapes = [], [], []
    for level, feat in enumerate(inner):
        mask = torch.zeros_like(feat[:, 0], dtype=torch.bool)
        position = self.postional_encoding(mask) + self.level_encoding.weight[level].view(
            1, -1, 1, 1
        )
        tokens.append(self.input_convs[level](feat).flatten(2).permute(2, 0, 1))
        positions.append(position.flatten(2).permute(2, 0, 1))
        shapes.append(torch._shape_as_tensor(feat)[-2:])
    query = torch.cat(tokens)  # (S, N, C)
    points = torch.cat([centres(shape) for shape in shapes]).to(query)
    points = points[None, :, None].expand(batch, -1, self.num_encoder_levels, -1)
    table = torch.stack(shapes).to(query.device)
    ends = (table[:, 0] * table[:, 1]).cumsum(0)
    memory = self.encoder(
        query=query,
        key=None,
        value=None,
        query_pos=torch.cat(positions),
        key_pos=None,
        attn_masks=None,
        key_padding_mask=None,
        query_key_padding_mask=None,
        spatial_shapes=table,
        reference_points=points,
        level_start_index=torch.cat((ends.new_zeros(1), ends[:-1])),
        valid_radios=None,
    ).permute(1, 2, 0)  # (N, C, S)
    outs = []
    for level, end in enumerate(ends.unbind()):
        height, width = table[level].unbind()
        part = memory[:, :, end - height * width : end]
        outs.append(part.reshape(batch, memory.shape[1], height, width))
    finer = range(self.num_input_levels - self.num_encoder_levels)
    for index in reversed(finer):
        lateral = self.lateral_convs[index](feats[index])
        coarse = F.interpolate(outs[-1], lateral.shape[-2:], mode="bilinear", align_corners=False)
        outs.append(self.output_convs[index](lateral + coarse))
    return self.mask_feature(outs[-1]), outs[: self.num_outs]


replace(DECODER, forward)
