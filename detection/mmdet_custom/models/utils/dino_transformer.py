"""Transformer of DINO (arXiv 2203.03605): encoder, query selection, decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmdet.models.utils.builder import TRANSFORMER
from mmdet.models.utils.transformer import DeformableDetrTransformer
from torch import Tensor, nn

from .deformable_attention import attend_in_float32
from .efficient_ffn import EfficientFFN
from .query_denoising import DenoisingQueries

__all__ = ["DinoTransformer", "TransformerOutput"]


class TransformerOutput(NamedTuple):
    """States and boxes of one pass; Q queries, denoising ones first.

    Attributes:
        states: (layers, N, Q, C) normalised states of the decoder.
        references: (layers + 1, N, Q, 4) boxes in [0, 1]: initial ones, then those of each layer.
        topk_score: (N, K, classes) logits of the selected encoder tokens.
        topk_anchor: (N, K, 4) their boxes (cx, cy, w, h) in [0, 1].
        topk_indices: (N, K) token numbers, levels concatenated, finest first.
    """

    states: Tensor
    references: Tensor
    topk_score: Tensor
    topk_anchor: Tensor
    topk_indices: Tensor


class Tokens(NamedTuple):
    """The maps of all levels as one row of S tokens."""

    features: Tensor  # (S, N, C)
    positions: Tensor  # (S, N, C)
    padding: Tensor  # (N, S) bool
    spatial_shapes: Tensor  # (levels, 2) height, width
    level_start_index: Tensor  # (levels,)
    valid_ratios: Tensor  # (N, levels, 2) x, y


@TRANSFORMER.register_module()
class DinoTransformer(DeformableDetrTransformer):
    """Deformable DETR's transformer with DINO's mixed query selection (section 3.4).

    The boxes of the queries come from the best encoder tokens, their contents are learned.

    Args:
        **kwargs: those of ``DeformableDetrTransformer``. ``two_stage_num_proposals`` is the number
            of learned contents; ``as_two_stage`` must be true.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"as_two_stage": True, **kwargs})
        attend_in_float32(self)

    def init_layers(self) -> None:
        """Makes what encoder and decoder do not have, in the order of the released checkpoints."""
        if not self.as_two_stage:
            raise ValueError("DinoTransformer: as_two_stage must be True; DINO selects its queries")
        self.level_embeds = nn.Parameter(torch.zeros(self.num_feature_levels, self.embed_dims))
        self.enc_output = nn.Linear(self.embed_dims, self.embed_dims)
        self.enc_output_norm = nn.LayerNorm(self.embed_dims)
        self.query_embed = nn.Embedding(self.two_stage_num_proposals, self.embed_dims)

    def init_weights(self) -> None:
        """As Deformable DETR; a sliced feed-forward network starts like a plain one."""
        super().init_weights()
        for module in self.modules():
            if isinstance(module, EfficientFFN):
                module.init_weights()

    def num_queries(self, num_tokens: int) -> int:
        """Matching queries for images of ``num_tokens`` tokens: never more than tokens.

        A small image has fewer tokens than the model has queries; the surplus ones then stay
        unused.
        """
        return min(self.two_stage_num_proposals, num_tokens)

    def flatten(
        self, feats: Sequence[Tensor], masks: Sequence[Tensor], positions: Sequence[Tensor]
    ) -> Tokens:
        """Concatenates the levels; each (N, C, H, W), masks (N, H, W) true on padding.

        Raises:
            ValueError: when the neck gives another number of levels than the transformer has.
        """
        if len(feats) != self.num_feature_levels:
            raise ValueError(
                f"DinoTransformer: num_feature_levels is {self.num_feature_levels} but the neck "
                f"gives {len(feats)} levels; set it to the neck's num_outs"
            )
        shapes = torch.tensor([feat.shape[-2:] for feat in feats], device=feats[0].device)
        sizes = shapes.prod(1)
        positions = [
            position + embed[:, None, None] for position, embed in zip(positions, self.level_embeds)
        ]
        return Tokens(
            torch.cat([feat.flatten(2) for feat in feats], 2).permute(2, 0, 1),
            torch.cat([position.flatten(2) for position in positions], 2).permute(2, 0, 1),
            torch.cat([mask.flatten(1) for mask in masks], 1),
            shapes,
            sizes.cumsum(0) - sizes,
            torch.stack([self.get_valid_ratio(mask) for mask in masks], 1),
        )

    def encode(self, tokens: Tokens) -> Tensor:
        """Runs the encoder: (S, N, C)."""
        return self.encoder(
            query=tokens.features,
            key=None,
            value=None,
            query_pos=tokens.positions,
            query_key_padding_mask=tokens.padding,
            spatial_shapes=tokens.spatial_shapes,
            reference_points=self.get_reference_points(
                tokens.spatial_shapes, tokens.valid_ratios, device=tokens.features.device
            ),
            level_start_index=tokens.level_start_index,
            valid_ratios=tokens.valid_ratios,
        )

    def select(
        self, memory: Tensor, tokens: Tokens, cls_branch: nn.Module, reg_branch: nn.Module
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Best encoder tokens by their highest class score.

        Returns:
            (N, K, classes) logits, (N, K, 4) boxes before the sigmoid (float32 or more), (N, K)
            token numbers.
        """
        memory, proposals = self.gen_encoder_output_proposals(
            memory.transpose(0, 1), tokens.padding, tokens.spatial_shapes
        )
        scores = cls_branch(memory)
        boxes = reg_branch(memory) + proposals
        count = self.num_queries(scores.shape[1])
        indices = scores.max(-1).values.topk(count, dim=1).indices
        rows = indices[..., None]
        return (
            scores.gather(1, rows.expand(-1, -1, scores.shape[-1])),
            boxes.gather(1, rows.expand(-1, -1, 4)),
            indices,
        )

    def forward(
        self,
        mlvl_feats: Sequence[Tensor],
        mlvl_masks: Sequence[Tensor],
        mlvl_pos_embeds: Sequence[Tensor],
        reg_branches: nn.ModuleList,
        cls_branches: nn.ModuleList,
        denoising: DenoisingQueries | None = None,
    ) -> TransformerOutput:
        """Maps of all levels to states and boxes of all decoder layers.

        Args:
            mlvl_feats: per level (N, C, H, W), finest first.
            mlvl_masks: per level (N, H, W), true on padding.
            mlvl_pos_embeds: per level (N, C, H, W).
            reg_branches: one per decoder layer, and one for the encoder.
            cls_branches: likewise.
            denoising: queries put in front of the matching ones.
        """
        tokens = self.flatten(mlvl_feats, mlvl_masks, mlvl_pos_embeds)
        memory = self.encode(tokens)
        last = self.decoder.num_layers
        score, box, indices = self.select(memory, tokens, cls_branches[last], reg_branches[last])
        anchor = box.sigmoid()

        batch, count = indices.shape
        query = self.query_embed.weight[:count].expand(batch, -1, -1)
        reference, attn_mask = box.detach(), None
        if denoising is not None:
            query = torch.cat((denoising.label_query, query), dim=1)
            reference = torch.cat((denoising.bbox_query, reference), dim=1)
            attn_mask = denoising.attn_mask
        reference = reference.sigmoid()
        states, refined = self.decoder(
            query=query.transpose(0, 1),
            key=None,
            value=memory,
            attn_masks=[attn_mask, None],
            key_padding_mask=tokens.padding,
            reference_points=reference,
            spatial_shapes=tokens.spatial_shapes,
            level_start_index=tokens.level_start_index,
            valid_ratios=tokens.valid_ratios,
            reg_branches=reg_branches,
        )
        references = torch.cat((reference[None], refined))
        return TransformerOutput(states.transpose(1, 2), references, score, anchor, indices)
