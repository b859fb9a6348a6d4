"""From the feature maps of the cameras to BEV features: what occupancy and lanes share.

`BEVBuilder` is the part of BEVFormer's transformer (arXiv 2203.17270) around the encoder:
embeddings of cameras and levels, the car's motion, and the alignment of the previous BEV.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmcv.cnn.bricks.transformer import build_transformer_layer_sequence
from mmcv.runner import BaseModule
from torch import Tensor, nn

from .attention import MSDeformableAttention3D, SpatialCrossAttention, TemporalSelfAttention
from .deformable import CustomMSDeformableAttention
from .geometry import CAN_BUS_SIZE, bev_shift, can_bus_of, rotate_bev

DEFORMABLE = (
    CustomMSDeformableAttention,
    MSDeformableAttention3D,
    SpatialCrossAttention,
    TemporalSelfAttention,
)


class BEVBuilder(BaseModule):
    """Base of TransformerOcc and BEVFormerConstructer.

    Args:
        encoder: Config of the BEVFormerEncoder.
        embed_dims: Channels C.
        num_feature_levels: Feature levels of a camera.
        num_cams: Cameras.
        rotate_prev_bev: Turn the previous BEV by the car's change of heading.
        use_shift: Move the previous BEV by the car's motion.
        use_can_bus: Add an embedding of the car's motion to the queries.
        can_bus_norm: Normalise that embedding.
        use_cams_embeds: Add an embedding of its camera to each feature.
        rotate_center: Cell borders (x, y) where the car stands; the middle of the grid if None.
        legacy_shift_axes: See `geometry.bev_shift`; the published occupancy model needs it.
        init_cfg: See mmcv's BaseModule.
    """

    def __init__(
        self,
        encoder: dict[str, Any],
        embed_dims: int = 256,
        num_feature_levels: int = 4,
        num_cams: int = 6,
        rotate_prev_bev: bool = True,
        use_shift: bool = True,
        use_can_bus: bool = True,
        can_bus_norm: bool = True,
        use_cams_embeds: bool = True,
        rotate_center: Sequence[float] | None = None,
        legacy_shift_axes: bool = False,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        self.encoder = build_transformer_layer_sequence(encoder)
        if self.encoder.embed_dims != embed_dims:
            raise ValueError(
                f"embed_dims is {embed_dims}, but the encoder has {self.encoder.embed_dims}"
            )
        self.embed_dims = embed_dims
        self.num_feature_levels = num_feature_levels
        self.num_cams = num_cams
        self.rotate_prev_bev = rotate_prev_bev
        self.use_shift = use_shift
        self.use_can_bus = use_can_bus
        self.use_cams_embeds = use_cams_embeds
        self.rotate_center = rotate_center
        self.legacy_shift_axes = legacy_shift_axes
        self.level_embeds = nn.Parameter(torch.empty(num_feature_levels, embed_dims))
        if use_cams_embeds:
            self.cams_embeds = nn.Parameter(torch.empty(num_cams, embed_dims))
        if use_can_bus:
            self.can_bus_mlp = nn.Sequential(
                nn.Linear(CAN_BUS_SIZE, embed_dims // 2),
                nn.ReLU(),
                nn.Linear(embed_dims // 2, embed_dims),
                nn.ReLU(),
            )
            if can_bus_norm:
                self.can_bus_mlp.add_module("norm", nn.LayerNorm(embed_dims))
        self.init_embeddings()

    def init_embeddings(self) -> None:
        """Normal embeddings of levels and cameras."""
        nn.init.normal_(self.level_embeds)
        if self.use_cams_embeds:
            nn.init.normal_(self.cams_embeds)

    def init_weights(self) -> None:
        """Xavier-uniform matrices; deformable attention and embeddings as they want it."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, DEFORMABLE):
                module.init_weights()
        self.init_embeddings()

    def flatten_features(self, mlvl_feats: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of the feature maps, with the embeddings of their camera and level.

        Args:
            mlvl_feats: One (B, N, C, h, w) per level.

        Returns:
            Tokens (B, N, S, C), heights and widths (levels, 2), starts of the levels (levels,).
        """
        if len(mlvl_feats) != self.num_feature_levels:
            raise ValueError(
                f"got {len(mlvl_feats)} feature levels; num_feature_levels is "
                f"{self.num_feature_levels}"
            )
        tokens, sizes = [], []
        for level, maps in enumerate(mlvl_feats):
            if maps.ndim != 5 or maps.shape[2] != self.embed_dims:
                raise ValueError(
                    f"feature level {level} has the shape {tuple(maps.shape)}; expected (samples, "
                    f"cameras, {self.embed_dims}, height, width)"
                )
            if self.use_cams_embeds and maps.shape[1] != self.num_cams:
                raise ValueError(f"got {maps.shape[1]} cameras; num_cams is {self.num_cams}")
            embedding = self.level_embeds[level]
            if self.use_cams_embeds:
                embedding = self.cams_embeds[:, None] + embedding  # (N, 1, C)
            tokens.append(maps.flatten(3).transpose(2, 3) + embedding.to(maps.dtype))
            sizes.append(maps.shape[3:])
        shapes = torch.tensor(sizes, device=mlvl_feats[0].device)
        starts = np.cumsum([0] + [height * width for height, width in sizes[:-1]])
        return torch.cat(tokens, 2), shapes, torch.tensor(starts, device=shapes.device)

    def get_bev_features(
        self,
        mlvl_feats: Sequence[Tensor],
        bev_queries: Tensor,
        bev_h: int,
        bev_w: int,
        grid_length: tuple[float, float],
        bev_pos: Tensor | None = None,
        prev_bev: Tensor | None = None,
        img_metas: Sequence[Mapping[str, Any]] = (),
        has_history: Tensor | None = None,
    ) -> Tensor:
        """BEV features of a batch.

        Args:
            mlvl_feats: One (B, N, C, h, w) per level.
            bev_queries: (bev_h * bev_w, C), the learned queries.
            bev_h: Rows of the grid, along y.
            bev_w: Columns of the grid, along x.
            grid_length: Height (along y) and width (along x) of a cell in metres.
            bev_pos: (B, C, bev_h, bev_w), positional encoding.
            prev_bev: (B, bev_h * bev_w, C), what this gave for the previous frame.
            img_metas: One per sample: `lidar2img`, `pad_shape` or `img_shape`, `can_bus` (unless
                all that uses it is off), maybe `ego2lidar`.
            has_history: (B,) bool, which samples of `prev_bev` count; all if None.

        Returns:
            (B, bev_h * bev_w, C)

        Raises:
            ValueError: Shapes that do not fit, or metas that lack something.
        """
        tokens, shapes, starts = self.flatten_features(mlvl_feats)
        if bev_queries.shape != (bev_h * bev_w, self.embed_dims):
            raise ValueError(
                f"bev_queries have the shape {tuple(bev_queries.shape)}; expected "
                f"{(bev_h * bev_w, self.embed_dims)}"
            )
        queries = bev_queries.expand(len(tokens), -1, -1)
        rotates = self.rotate_prev_bev and prev_bev is not None
        shift = None
        if self.use_can_bus or self.use_shift or rotates:
            can_bus = can_bus_of(img_metas)
            if self.use_shift:
                moved = bev_shift(can_bus, grid_length, bev_h, bev_w, self.legacy_shift_axes)
                exact = torch.promote_types(queries.dtype, torch.float32)
                shift = torch.as_tensor(moved, dtype=exact, device=queries.device)
            if rotates:
                prev_bev = rotate_bev(prev_bev, can_bus[:, -1], bev_h, bev_w, self.rotate_center)
            if self.use_can_bus:
                motion = torch.as_tensor(can_bus).to(self.can_bus_mlp[0].weight)
                queries = queries + self.can_bus_mlp(motion)[:, None]
        return self.encoder(
            queries,
            tokens,
            bev_h=bev_h,
            bev_w=bev_w,
            spatial_shapes=shapes,
            level_start_index=starts,
            img_metas=img_metas,
            bev_pos=None if bev_pos is None else bev_pos.flatten(2).transpose(1, 2),
            prev_bev=prev_bev,
            has_history=has_history,
            shift=shift,
        )
