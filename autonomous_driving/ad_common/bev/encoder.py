"""The BEV encoder of BEVFormer (arXiv 2203.17270, section 3.1): layers over a grid of queries."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER, TRANSFORMER_LAYER_SEQUENCE
from mmcv.cnn.bricks.transformer import BaseTransformerLayer, TransformerLayerSequence
from torch import Tensor

from .geometry import (
    SeenQueries,
    camera_matrices,
    image_sizes,
    project_to_cameras,
    reference_points_2d,
    reference_points_3d,
    seen_queries,
)

OPERATIONS = ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm")


@TRANSFORMER_LAYER.register_module()
class BEVFormerLayer(BaseTransformerLayer):
    """Temporal self-attention, spatial cross-attention, feed-forward network, with norms between.

    Args:
        attn_cfgs: Configs of the attentions, in the order of `operation_order`.
        feedforward_channels: Channels inside the feed-forward network.
        ffn_dropout: Its rate of dropout.
        operation_order: 'self_attn', 'cross_attn', 'norm', 'ffn'; pre-norm when it begins with
            'norm'.
        ffn_cfgs: Config of the feed-forward network, instead of the two arguments above.
        kwargs: `norm_cfg`, `init_cfg` as in mmcv's BaseTransformerLayer.
    """

    def __init__(
        self,
        attn_cfgs: Sequence[dict[str, Any]],
        feedforward_channels: int = 512,
        ffn_dropout: float = 0.0,
        operation_order: Sequence[str] = OPERATIONS,
        ffn_cfgs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if ffn_cfgs is None:
            ffn_cfgs = dict(
                type="FFN", feedforward_channels=feedforward_channels, ffn_drop=ffn_dropout
            )
        super().__init__(
            attn_cfgs=copy.deepcopy(attn_cfgs),
            ffn_cfgs=ffn_cfgs,
            operation_order=tuple(operation_order),
            batch_first=True,
            **kwargs,
        )

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        *,
        bev_pos: Tensor | None,
        history: Tensor | None,
        reference_points: Tensor,
        bev_shapes: Tensor,
        seen: SeenQueries,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
    ) -> Tensor:
        """Refine the queries.

        Args:
            query: (B, Q, C).
            value: (B, N, S, C), tokens of the cameras.
            bev_pos: (B, Q, C), positional encoding of the cells, used in the self-attention.
            history: (B * 2, Q, C) previous and current BEV of each sample, or None.
            reference_points: (B * 2, Q, 1, 2), where the queries look in those two.
            bev_shapes: (1, 2), height and width of the grid.
            seen: Which queries the cameras see.
            spatial_shapes: (levels, 2), heights and widths of the cameras' maps.
            level_start_index: (levels,).

        Returns:
            (B, Q, C)
        """
        attentions, norms, ffns = iter(self.attentions), iter(self.norms), iter(self.ffns)
        identity = query
        for operation in self.operation_order:
            kept = identity if self.pre_norm else None
            if operation == "norm":
                query = next(norms)(query)
                continue
            if operation == "self_attn":
                query = next(attentions)(
                    query,
                    value=history,
                    identity=kept,
                    query_pos=bev_pos,
                    reference_points=reference_points,
                    spatial_shapes=bev_shapes,
                    level_start_index=bev_shapes.new_zeros(1),
                )
            elif operation == "cross_attn":
                query = next(attentions)(
                    query,
                    None,
                    value,
                    identity=kept,
                    seen=seen,
                    spatial_shapes=spatial_shapes,
                    level_start_index=level_start_index,
                )
            else:
                query = next(ffns)(query, kept)
            identity = query
        return query


@TRANSFORMER_LAYER_SEQUENCE.register_module()
class BEVFormerEncoder(TransformerLayerSequence):
    """Layers that fill a BEV grid from the cameras and from the previous grid.

    Args:
        transformerlayers: Config of a layer, or a list of them.
        num_layers: Layers.
        pc_range: (x0, y0, z0, x1, y1, z1) of the grid in metres, in the ego frame.
        num_points_in_pillar: Heights per cell that are projected into the images.
        return_intermediate: Also give the results of the layers before the last one.
        legacy_shift_alias: Move the reference points in the current BEV by the motion of the car
            too, not only those in the previous BEV. The published occupancy model was trained so.
        init_cfg: See mmcv's BaseModule.
    """

    def __init__(
        self,
        transformerlayers: dict[str, Any] | list[dict[str, Any]],
        num_layers: int,
        pc_range: Sequence[float],
        num_points_in_pillar: int = 4,
        return_intermediate: bool = False,
        legacy_shift_alias: bool = False,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(transformerlayers, num_layers, init_cfg)
        if len(pc_range) != 6 or any(pc_range[i] >= pc_range[i + 3] for i in range(3)):
            raise ValueError(f"pc_range is {pc_range}; expected x0, y0, z0, x1, y1, z1 in metres")
        self.pc_range = tuple(float(limit) for limit in pc_range)
        self.num_points_in_pillar = num_points_in_pillar
        self.return_intermediate = return_intermediate
        self.legacy_shift_alias = legacy_shift_alias

    def look(
        self, query: Tensor, bev_h: int, bev_w: int, img_metas: Sequence[Mapping[str, Any]]
    ) -> SeenQueries:
        """Which cells each camera sees, and where; in float32 or better whatever the query is."""
        like = query.new_empty(0, dtype=torch.promote_types(query.dtype, torch.float32))
        points = reference_points_3d(bev_h, bev_w, self.pc_range, self.num_points_in_pillar, like)
        matrices = camera_matrices(img_metas)
        sizes = image_sizes(img_metas, matrices.shape[1])
        return seen_queries(
            *project_to_cameras(points, like.new_tensor(matrices), like.new_tensor(sizes))
        )

    def references(self, shift: Tensor, bev_h: int, bev_w: int, moved: Tensor) -> Tensor:
        """Where the queries look in the previous and the current BEV.

        Args:
            shift: (B, 2) as (x, y), see `geometry.bev_shift`.
            bev_h: Rows of the grid.
            bev_w: Columns of the grid.
            moved: (B, 2) bool, whether the shift counts for the previous and the current BEV.

        Returns:
            (B * 2, Q, 1, 2)
        """
        cells = reference_points_2d(bev_h, bev_w, shift)  # (Q, 2)
        shifts = torch.where(moved[..., None], shift[:, None], 0.0)  # (B, 2, 2)
        return (cells + shifts[:, :, None]).flatten(0, 1)[:, :, None]

    def forward(
        self,
        bev_query: Tensor,
        value: Tensor,
        *,
        bev_h: int,
        bev_w: int,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        img_metas: Sequence[Mapping[str, Any]],
        bev_pos: Tensor | None = None,
        prev_bev: Tensor | None = None,
        has_history: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """Fill the grid.

        Beside the previous BEV, the self-attention of every layer looks at the queries as they
        come into the first layer; published models were trained so. Without a previous BEV it
        looks at the layer's own queries.

        Args:
            bev_query: (B, Q, C) with Q = bev_h * bev_w.
            value: (B, N, S, C), tokens of all levels of N cameras.
            bev_h: Rows of the grid, along y.
            bev_w: Columns of the grid, along x.
            spatial_shapes: (levels, 2), heights and widths of the levels.
            level_start_index: (levels,), where they begin in S.
            img_metas: One per sample: `lidar2img`, `pad_shape` or `img_shape`, maybe `ego2lidar`.
            bev_pos: (B, Q, C), positional encoding.
            prev_bev: (B, Q, C), the BEV of the previous frame, turned to the current heading.
            has_history: (B,) bool, which samples of `prev_bev` count; all if None.
            shift: (B, 2), how far the car moved, see `geometry.bev_shift`; zeros if None.

        Returns:
            (B, Q, C), or (layers, B, Q, C) with return_intermediate.

        Raises:
            ValueError: Shapes that do not fit.
        """
        batch, queries, _ = bev_query.shape
        if queries != bev_h * bev_w:
            raise ValueError(f"bev_query has {queries} cells, but the grid is {bev_h} x {bev_w}")
        if prev_bev is not None and prev_bev.shape != bev_query.shape:
            raise ValueError(
                f"prev_bev has the shape {tuple(prev_bev.shape)}; expected that of the queries, "
                f"{tuple(bev_query.shape)}"
            )
        if len(img_metas) != batch:
            raise ValueError(f"got {len(img_metas)} img_metas for a batch of {batch}")
        seen = self.look(bev_query, bev_h, bev_w, img_metas)
        if shift is None:
            shift = seen.points.new_zeros(batch, 2)
        all_alike = prev_bev is None or has_history is None
        if all_alike:
            has_history = torch.full((batch,), prev_bev is not None, device=bev_query.device)
        if has_history.shape != (batch,):
            raise ValueError(
                f"has_history has the shape {tuple(has_history.shape)}, not {(batch,)}"
            )
        moved = torch.stack([has_history, torch.zeros_like(has_history)], 1)  # (B, 2)
        references = self.references(shift, bev_h, bev_w, moved | self.legacy_shift_alias)
        history = None if prev_bev is None else torch.stack([prev_bev, bev_query], 1)
        mixed = not all_alike and not bool(has_history.all())
        bev_shapes = spatial_shapes.new_tensor([[bev_h, bev_w]])

        results = []
        for layer in self.layers:
            given = history
            if mixed:  # samples without history look at themselves, as in a batch of their own
                own = torch.stack([bev_query, bev_query], 1)
                given = torch.where(has_history[:, None, None, None], history, own)
            bev_query = layer(
                bev_query,
                value,
                bev_pos=bev_pos,
                history=None if given is None else given.flatten(0, 1),
                reference_points=references,
                bev_shapes=bev_shapes,
                seen=seen,
                spatial_shapes=spatial_shapes,
                level_start_index=level_start_index,
            )
            results.append(bev_query)
        return torch.stack(results) if self.return_intermediate else bev_query
