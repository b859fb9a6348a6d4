"""The lane decoder: queries look at the bird's-eye-view map around their reference points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmcv.cnn import xavier_init
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER, TRANSFORMER_LAYER_SEQUENCE
from mmcv.cnn.bricks.transformer import (
    BaseTransformerLayer,
    TransformerLayerSequence,
    build_transformer_layer_sequence,
)
from mmcv.ops import MultiScaleDeformableAttention
from mmcv.runner import BaseModule
from mmdet.models.utils.builder import TRANSFORMER
from mmdet.models.utils.transformer import inverse_sigmoid
from torch import Tensor, nn


@TRANSFORMER_LAYER.register_module()
class CustomDetrTransformerDecoderLayer(BaseTransformerLayer):
    """A decoder layer of DETR whose feed-forward part is configured by `ffn_cfgs`."""


@TRANSFORMER_LAYER_SEQUENCE.register_module()
class LaneDetectionTransformerDecoder(TransformerLayerSequence):
    """Decoder layers that attend around reference points in bird's eye view.

    Args:
        transformerlayers: config of the layers.
        num_layers: number of layers.
        return_intermediate: return the states of all layers, not only of the last one.
        init_cfg: as in mmcv's BaseModule.
    """

    def __init__(
        self,
        transformerlayers: Mapping[str, Any],
        num_layers: int,
        return_intermediate: bool = False,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(transformerlayers, num_layers, init_cfg)
        self.return_intermediate = return_intermediate

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        reg_branches: nn.ModuleList | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Runs the layers.

        Args:
            query: (Q, B, C) content of the queries.
            reference_points: (B, Q, 3) in [0, 1]: x, y, z over the range of the map.
            reg_branches: per layer the branch that predicts control points. With them, a layer's
                reference point is the mean of the control points that the layer before predicts;
                without, it stays where it was.
            **kwargs: arguments of the layers.

        Returns:
            states (layers, Q, B, C) and the reference points that each layer used
            (layers, B, Q, 3); one layer without `return_intermediate`.
        """
        states, references = [], []
        for index, layer in enumerate(self.layers):
            used = reference_points
            query = layer(query, reference_points=used[:, :, None, :2], **kwargs)  # (B, Q, 1, 2)
            if reg_branches is not None:
                points = reg_branches[index](query.transpose(0, 1)).unflatten(-1, (-1, 3))
                points = (points + inverse_sigmoid(used)[:, :, None]).sigmoid()  # (B, Q, 5, 3)
                reference_points = points.mean(dim=2).detach()
            states.append(query)
            references.append(used)
        if not self.return_intermediate:
            states, references = states[-1:], references[-1:]
        return torch.stack(states), torch.stack(references)


@TRANSFORMER.register_module()
class PerceptionTransformer(BaseModule):
    """Gives every query a reference point and runs the decoder on the bird's-eye-view map.

    Args:
        decoder: config of the decoder.
        embed_dims: channels of queries and map.
        init_cfg: as in mmcv's BaseModule.
    """

    def __init__(
        self,
        decoder: Mapping[str, Any],
        embed_dims: int = 256,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.decoder = build_transformer_layer_sequence(decoder)
        self.embed_dims = embed_dims
        self.reference_points = nn.Linear(embed_dims, 3)

    def init_weights(self) -> None:
        """Weights as in Deformable DETR."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.init_weights()
        xavier_init(self.reference_points, distribution="uniform", bias=0.0)

    def forward(
        self,
        bev: Tensor,
        query_embed: Tensor,
        bev_shape: tuple[int, int],
        reg_branches: nn.ModuleList | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decodes a batch.

        Args:
            bev: (B, H*W, C) map, row by row; rows go along y, columns along x.
            query_embed: (Q, 2C): position | content of the queries.
            bev_shape: (H, W).
            reg_branches: see `LaneDetectionTransformerDecoder.forward`.

        Returns:
            states (layers, B, Q, C) and reference points (layers, B, Q, 3) of each layer.
        """
        batch = len(bev)
        position, content = query_embed.split(self.embed_dims, dim=1)
        position = position[None].expand(batch, -1, -1)  # (B, Q, C)
        content = content[None].expand(batch, -1, -1)
        states, references = self.decoder(
            query=content.transpose(0, 1),
            key=None,
            value=bev.transpose(0, 1),
            query_pos=position.transpose(0, 1),
            reference_points=self.reference_points(position).sigmoid(),
            reg_branches=reg_branches,
            spatial_shapes=torch.tensor([bev_shape], device=bev.device),
            level_start_index=torch.zeros(1, dtype=torch.long, device=bev.device),
        )
        return states.transpose(1, 2), references
