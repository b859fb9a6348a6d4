"""The attentions of BEVFormer (arXiv 2203.17270): over the previous BEV, and over the cameras.

Both are multi-scale deformable attention; all tensors are batch first.
"""

from __future__ import annotations

from typing import Any

import torch
from mmcv.cnn.bricks.registry import ATTENTION
from mmcv.cnn.bricks.transformer import build_attention
from mmcv.runner import BaseModule
from torch import Tensor, nn

from .deformable import check_heads, check_tokens, deformable_sampling, init_linear, init_offsets
from .geometry import SeenQueries


def sizes_xy(spatial_shapes: Tensor) -> Tensor:
    """(levels, 2) heights and widths as widths and heights, (levels, 1, 2)."""
    return spatial_shapes.flip(-1)[:, None]


@ATTENTION.register_module()
class TemporalSelfAttention(BaseModule):
    """Attention of each BEV query to the previous BEV and to the current queries (section 3.4).

    Offsets and weights are predicted from the previous BEV at the query's cell together with the
    query. The results on the two maps are averaged. Without history the queries take its place.

    Args:
        embed_dims: Channels C.
        num_heads: Heads.
        num_levels: Feature levels of a BEV map; only 1 makes sense.
        num_points: Points per head and map.
        num_bev_queue: Maps: 2, the previous and the current one.
        im2col_step: Samples per call of the kernel.
        dropout: Rate of the dropout on the result.
        batch_first: Must be true.
        init_cfg: See mmcv's BaseModule.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 1,
        num_points: int = 4,
        num_bev_queue: int = 2,
        im2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = True,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        check_heads(embed_dims, num_heads)
        check_batch_first(batch_first)
        if num_bev_queue != 2:
            raise ValueError(
                f"num_bev_queue is {num_bev_queue}; it must be 2, previous and current"
            )
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.num_bev_queue = num_bev_queue
        self.im2col_step = im2col_step
        samples = num_bev_queue * num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dims * num_bev_queue, samples * 2)
        self.attention_weights = nn.Linear(embed_dims * num_bev_queue, samples)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = nn.Dropout(dropout)
        self.init_weights()

    def init_weights(self) -> None:
        """Offsets around the query's cell, equal weights."""
        maps = self.num_bev_queue * self.num_levels
        init_offsets(self.sampling_offsets, self.num_heads, maps, self.num_points)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        init_linear(self.value_proj, self.output_proj)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, C).
            key: Not used.
            value: (B * 2, Q, C), previous and current BEV of sample 0, of sample 1, ...; without it
                the query is both.
            identity: (B, Q, C) added to the result; `query` if None.
            query_pos: (B, Q, C) added to the query.
            reference_points: (B * 2, Q, levels, 2) as (x, y) in [0, 1], ordered as `value`.
            spatial_shapes: (levels, 2) heights and widths.
            level_start_index: (levels,).
            kwargs: Arguments of other attentions, not used.

        Returns:
            (B, Q, C)
        """
        identity = query if identity is None else identity
        batch, queries, _ = query.shape
        maps, heads, levels, points = (
            self.num_bev_queue,
            self.num_heads,
            self.num_levels,
            self.num_points,
        )
        if value is None:
            previous = query
            value = self.value_proj(query).repeat_interleave(maps, 0)
        else:
            if value.shape != (batch * maps, queries, self.embed_dims):
                raise ValueError(
                    f"value has the shape {tuple(value.shape)}; expected previous and current BEV "
                    f"of each sample, {(batch * maps, queries, self.embed_dims)}"
                )
            previous = value[::maps]
            value = self.value_proj(value)
        check_tokens(value, spatial_shapes)
        if query_pos is not None:
            query = query + query_pos
        both = torch.cat([previous, query], -1)  # (B, Q, 2 * C)

        offsets = self.sampling_offsets(both).view(batch, queries, heads, maps, levels, points, 2)
        weights = self.attention_weights(both).view(batch, queries, heads, maps, levels * points)
        weights = weights.softmax(-1).transpose(2, 3).transpose(1, 2)
        weights = weights.reshape(batch * maps, queries, heads, levels, points)
        offsets = offsets.permute(0, 3, 1, 2, 4, 5, 6).flatten(0, 1)
        locations = reference_points[:, :, None, :, None] + offsets / sizes_xy(spatial_shapes)
        # (B * 2, Q, heads, levels, points, 2)
        output = deformable_sampling(
            value.unflatten(-1, (heads, -1)),
            spatial_shapes,
            level_start_index,
            locations,
            weights,
            self.im2col_step,
        )
        output = output.unflatten(0, (batch, maps)).mean(1)  # (B, Q, C)
        return self.dropout(self.output_proj(output)) + identity


@ATTENTION.register_module()
class MSDeformableAttention3D(BaseModule):
    """Deformable attention around the projected points of pillars (section 3.3).

    The sampling points are dealt out to the D points of a pillar in turn: point i belongs to
    pillar point i modulo D. There is no output projection; SpatialCrossAttention has it.

    Args:
        embed_dims: Channels C.
        num_heads: Heads.
        num_levels: Feature levels of a camera.
        num_points: Points per head and level, a multiple of the points of a pillar.
        im2col_step: Samples per call of the kernel.
        batch_first: Must be true.
        init_cfg: See mmcv's BaseModule.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 8,
        im2col_step: int = 64,
        batch_first: bool = True,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        check_heads(embed_dims, num_heads)
        check_batch_first(batch_first)
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.im2col_step = im2col_step
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dims, samples * 2)
        self.attention_weights = nn.Linear(embed_dims, samples)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.init_weights()

    def init_weights(self) -> None:
        """Offsets around the projected points, equal weights."""
        init_offsets(self.sampling_offsets, self.num_heads, self.num_levels, self.num_points)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        init_linear(self.value_proj)

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        reference_points: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, C).
            value: (B, S, C), the tokens of all levels.
            reference_points: (B, Q, D, 2) as (u, v) in [0, 1].
            spatial_shapes: (levels, 2) heights and widths.
            level_start_index: (levels,).

        Returns:
            (B, Q, C)
        """
        batch, queries, _ = query.shape
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        depth = reference_points.shape[2]
        if points % depth:
            raise ValueError(
                f"num_points {points} must be a multiple of the {depth} points of a pillar "
                "(num_points_in_pillar)"
            )
        check_levels(spatial_shapes, levels)
        check_tokens(value, spatial_shapes)
        value = self.value_proj(value).unflatten(-1, (heads, -1))
        offsets = self.sampling_offsets(query).view(batch, queries, heads, levels, points, 2)
        weights = self.attention_weights(query).view(batch, queries, heads, levels * points)
        weights = weights.softmax(-1).view(batch, queries, heads, levels, points)
        offsets = offsets / sizes_xy(spatial_shapes)
        offsets = offsets.unflatten(4, (points // depth, depth))
        locations = reference_points[:, :, None, None, None] + offsets
        # (B, Q, heads, levels, points / D, D, 2)
        return deformable_sampling(
            value,
            spatial_shapes,
            level_start_index,
            locations.flatten(4, 5),
            weights,
            self.im2col_step,
        )


@ATTENTION.register_module()
class SpatialCrossAttention(BaseModule):
    """Attention of each BEV query to the images of the cameras that see its pillar (section 3.3).

    For each sample and camera only the queries that it sees are gathered (padded to the most of
    any camera), attended and added back; the sum is divided by the number of cameras.

    Args:
        embed_dims: Channels C.
        num_cams: Cameras; the images may be of any number, it is kept for configs.
        pc_range: Kept for configs; the encoder does the projection.
        dropout: Rate of the dropout on the result.
        deformable_attention: Config of the attention inside.
        batch_first: Must be true.
        init_cfg: See mmcv's BaseModule.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_cams: int = 6,
        pc_range: Any = None,
        dropout: float = 0.1,
        deformable_attention: dict[str, Any] | None = None,
        batch_first: bool = True,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        check_batch_first(batch_first)
        if deformable_attention is None:
            deformable_attention = dict(type="MSDeformableAttention3D", embed_dims=embed_dims)
        self.embed_dims = embed_dims
        self.deformable_attention = build_attention(deformable_attention)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = nn.Dropout(dropout)
        init_linear(self.output_proj)

    def init_weights(self) -> None:
        """As the constructor does."""
        self.deformable_attention.init_weights()
        init_linear(self.output_proj)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        *,
        seen: SeenQueries,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        **kwargs: Any,
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, C).
            key: Not used.
            value: (B, N, S, C), the tokens of all levels of N cameras.
            identity: (B, Q, C) added to the result; `query` if None.
            query_pos: (B, Q, C) added to the query.
            seen: Which queries the cameras see, and where.
            spatial_shapes: (levels, 2) heights and widths.
            level_start_index: (levels,).
            kwargs: Arguments of other attentions, not used.

        Returns:
            (B, Q, C)
        """
        identity = query if identity is None else identity
        if query_pos is not None:
            query = query + query_pos
        batch, queries, channels = query.shape
        if value.ndim != 4 or value.shape[0] * value.shape[1] != len(seen.index):
            raise ValueError(
                f"value has the shape {tuple(value.shape)}; expected (samples, cameras, tokens, "
                f"channels) with samples * cameras = {len(seen.index)}"
            )
        output = self.deformable_attention(
            query.reshape(-1, channels)[seen.index],  # (B * N, L, C)
            value.flatten(0, 1),
            reference_points=seen.points,
            spatial_shapes=spatial_shapes,
            level_start_index=level_start_index,
        )
        found = output[seen.row, seen.column]  # (K, C)
        total = found.new_zeros(batch * queries, channels).index_add(0, seen.query, found)
        mean = (total / seen.cameras).view(batch, queries, channels)
        return self.dropout(self.output_proj(mean)) + identity


def check_batch_first(batch_first: bool) -> None:
    """Raises a ValueError unless true."""
    if not batch_first:
        raise ValueError("BEV attention is batch first: leave batch_first out or set it to True")


def check_levels(spatial_shapes: Tensor, levels: int) -> None:
    """Raises a ValueError when there are more or fewer levels than the module was built for."""
    if len(spatial_shapes) != levels:
        raise ValueError(
            f"got {len(spatial_shapes)} feature levels, but num_levels of the attention is {levels}"
        )
