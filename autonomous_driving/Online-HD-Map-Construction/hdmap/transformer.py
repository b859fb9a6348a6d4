"""The detector's transformer: Deformable DETR (arXiv 2010.04159) without an encoder.

Its memory is the bird's-eye-view map itself, one level; the reference points of the decoder do not
move from layer to layer.
"""

from __future__ import annotations

from typing import Any

import torch
from mmcv.cnn import xavier_init
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER_SEQUENCE
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.utils.builder import TRANSFORMER
from mmdet.models.utils.transformer import DeformableDetrTransformerDecoder, Transformer
from torch import nn


@TRANSFORMER_LAYER_SEQUENCE.register_module()
class PlaceHolderEncoder(nn.Module):
    """Stands in an encoder's place and returns what it is given."""

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        self.embed_dims = embed_dims

    def forward(self, query: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Returns `query` as it is."""
        return query


@TRANSFORMER_LAYER_SEQUENCE.register_module()
class DeformableDetrTransformerDecoder_(DeformableDetrTransformerDecoder):
    """mmdet's decoder with the outputs of all layers and fixed reference points."""

    def __init__(self, *args: Any, return_intermediate: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, return_intermediate=return_intermediate, **kwargs)


@TRANSFORMER.register_module()
class DeformableDetrTransformer_(Transformer):
    """Queries look at a bird's-eye-view map through deformable attention.

    Args:
        encoder: config of the encoder: `PlaceHolderEncoder`.
        decoder: config of the decoder: `DeformableDetrTransformerDecoder_`.
        init_cfg: mmcv's way to name initial weights.
    """

    def __init__(self, encoder: dict, decoder: dict, init_cfg: dict | None = None) -> None:
        super().__init__(encoder=encoder, decoder=decoder, init_cfg=init_cfg)
        # Part of the published weights. It would be added to the encoder's positions: no effect.
        self.level_embeds = nn.Parameter(torch.zeros(1, self.embed_dims), requires_grad=False)
        self.reference_points_embed = nn.Linear(self.embed_dims, 2)

    def init_weights(self) -> None:
        """Xavier weights; the deformable attention and the reference points as Deformable DETR."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.init_weights()
        xavier_init(self.reference_points_embed, distribution="uniform", bias=0.0)
        self._is_init = True

    def forward(
        self, bev: torch.Tensor, query_embed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs the decoder.

        Args:
            bev: (B, C, H, W) map.
            query_embed: (Q, 2 C): position, then content, of every query.

        Returns:
            The states (layers, B, Q, C), and the reference points (B, Q, 2) in [0, 1] as x, y.
        """
        batch, _, height, width = bev.shape
        memory = self.encoder(query=bev.flatten(2).permute(2, 0, 1))  # (H W, B, C)
        position, content = query_embed.split(self.embed_dims, dim=1)
        position = position.unsqueeze(1).expand(-1, batch, -1)  # (Q, B, C)
        content = content.unsqueeze(1).expand(-1, batch, -1)
        references = self.reference_points_embed(position).sigmoid().transpose(0, 1)
        states, _ = self.decoder(
            query=content,
            key=None,
            value=memory,
            query_pos=position,
            reference_points=references,
            valid_ratios=references.new_ones(batch, 1, 2),
            spatial_shapes=torch.tensor([[height, width]], device=bev.device),
            level_start_index=torch.zeros(1, dtype=torch.long, device=bev.device),
        )
        return states.transpose(1, 2), references
