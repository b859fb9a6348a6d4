"""Decoder of DINO (arXiv 2203.03605): reference boxes refined layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER_SEQUENCE
from mmdet.models.utils.transformer import DeformableDetrTransformerDecoder, inverse_sigmoid
from torch import Tensor, nn

from .query_denoising import BOX_EPS

__all__ = ["DinoTransformerDecoder", "encode_boxes", "refine_boxes"]


def encode_boxes(boxes: Tensor, num_feats: int, temperature: float = 10000.0) -> Tensor:
    """Sine encoding of boxes (DAB-DETR, arXiv 2201.12329, section 4.1).

    Args:
        boxes: (..., 4) as (cx, cy, w, h), relative to the image.
        num_feats: features per coordinate, even.
        temperature: of the geometric row of wavelengths.

    Returns:
        (..., 4 * num_feats), in the order cy, cx, w, h.
    """
    exponent = torch.arange(num_feats, device=boxes.device, dtype=boxes.dtype) // 2 * 2 / num_feats
    angle = boxes[..., None] * (2 * math.pi) / temperature**exponent  # (..., 4, num_feats)
    waves = torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-2)
    return waves[..., [1, 0, 2, 3], :].flatten(-2)


def refine_boxes(delta: Tensor, reference: Tensor) -> Tensor:
    """Moves reference boxes by ``delta`` before the sigmoid; at least in float32.

    Args:
        delta: (..., 4) output of a regression branch, in any precision.
        reference: (..., 4) boxes in [0, 1], float32 or float64; decides the precision.
    """
    return (delta.to(reference.dtype) + inverse_sigmoid(reference, eps=BOX_EPS)).sigmoid()


@TRANSFORMER_LAYER_SEQUENCE.register_module()
class DinoTransformerDecoder(DeformableDetrTransformerDecoder):
    """Deformable DETR's decoder with positional queries made from the boxes.

    A two-layer network turns the encoded reference box of a query into its positional query, anew
    in every layer. The reference of the next layer is detached; the returned boxes are not, so that
    a layer is also trained through the refinement of the layer after it ("look forward twice",
    section 3.5).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.return_intermediate:
            raise ValueError("DinoTransformerDecoder: return_intermediate must be True")
        width = self.embed_dims
        self.ref_point_head = nn.Sequential(
            nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        query: Tensor,
        *args: Any,
        reference_points: Tensor,
        valid_ratios: Tensor,
        reg_branches: Sequence[nn.Module],
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Runs the layers.

        Args:
            query: (Q, N, C) contents of the queries.
            *args: key and value of the layers, positional.
            reference_points: (N, Q, 4) boxes (cx, cy, w, h) in [0, 1].
            valid_ratios: (N, levels, 2) share of the padded map that the image covers, (x, y).
            reg_branches: one per layer (more are ignored).
            **kwargs: passed to the layers.

        Returns:
            (layers, Q, N, C) normalised states and (layers, N, Q, 4) refined boxes.
        """
        states, references = [], []
        ratios = valid_ratios.repeat(1, 1, 2)[:, None]  # (N, 1, levels, 4)
        for layer, reg_branch in zip(self.layers, reg_branches):
            scaled = reference_points[:, :, None] * ratios  # (N, Q, levels, 4)
            encoded = encode_boxes(scaled[:, :, 0], self.embed_dims // 2).to(query.dtype)
            query = layer(
                query,
                *args,
                query_pos=self.ref_point_head(encoded).transpose(0, 1),
                reference_points=scaled,
                **kwargs,
            )
            refined = refine_boxes(reg_branch(query.transpose(0, 1)), reference_points)
            reference_points = refined.detach()
            states.append(self.norm(query))
            references.append(refined)
        return torch.stack(states), torch.stack(references)
