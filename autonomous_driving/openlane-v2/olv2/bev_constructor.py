"""The bird's-eye-view map of one frame (BEVFormer, arXiv 2203.17270) as a neck of mmdet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ad_common.bev import BEVBuilder
from mmcv.cnn.bricks.transformer import build_positional_encoding
from mmdet.models.builder import NECKS
from torch import Tensor, nn


@NECKS.register_module()
class BEVFormerConstructer(BEVBuilder):
    """Learned queries of the map's cells, filled from the cameras.

    Args:
        pc_range: x, y, z minimum and maximum of the map, metres.
        bev_h: cells along y.
        bev_w: cells along x.
        positional_encoding: config of the encoding of the cells.
        **kwargs: arguments of `ad_common.bev.BEVBuilder`.
    """

    def __init__(
        self,
        pc_range: Sequence[float],
        bev_h: int,
        bev_w: int,
        positional_encoding: Mapping[str, Any],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.bev_h, self.bev_w = bev_h, bev_w
        x0, y0, _, x1, y1, _ = pc_range
        self.grid_length = ((y1 - y0) / bev_h, (x1 - x0) / bev_w)  # metres
        self.bev_embedding = nn.Embedding(bev_h * bev_w, self.embed_dims)
        self.positional_encoding = build_positional_encoding(dict(positional_encoding))

    def init_weights(self) -> None:
        """As `BEVBuilder`, and as mmcv wants the positional encoding."""
        super().init_weights()
        self.positional_encoding.init_weights()

    def forward(
        self,
        mlvl_feats: Sequence[Tensor],
        img_metas: Sequence[Mapping[str, Any]],
        prev_bev: Tensor | None = None,
    ) -> Tensor:
        """Builds the maps of a batch.

        Args:
            mlvl_feats: (B, N, C, h, w) per level.
            img_metas: see `BEVBuilder.get_bev_features`.
            prev_bev: (B, bev_h * bev_w, C) maps of the frames before, if there are any.

        Returns:
            (B, bev_h * bev_w, C), row by row; rows go along y, columns along x.
        """
        features = mlvl_feats[0]
        mask = torch.zeros(len(features), self.bev_h, self.bev_w, device=features.device)
        return self.get_bev_features(
            mlvl_feats,
            self.bev_embedding.weight.to(features.dtype),
            self.bev_h,
            self.bev_w,
            self.grid_length,
            bev_pos=self.positional_encoding(mask).to(features.dtype),
            prev_bev=prev_bev,
            img_metas=img_metas,
        )
