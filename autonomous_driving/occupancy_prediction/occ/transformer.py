"""TransformerOcc: BEVFormer's encoder (arXiv 2203.17270) and a decoder from pillars to voxels."""

from __future__ import annotations

from typing import Any

from ad_common.bev import BEVBuilder
from mmcv.cnn import ConvModule
from mmdet.models.utils.builder import TRANSFORMER
from torch import Tensor, nn


@TRANSFORMER.register_module()
class TransformerOcc(BEVBuilder):
    """BEV features of the cameras, and class scores of the voxels on every BEV cell.

    The C channels of a cell are read as C / pillar_h features of pillar_h voxels; two 3-D
    convolutions and a classifier per voxel follow.

    Args:
        pillar_h: voxels on a cell.
        num_classes: classes of a voxel, free among them.
        out_dim: channels of the convolutions.
        norm_cfg_3d: norm of the convolutions.
        norm_cfg: of published configs; nothing here has a 2-D norm.
        use_3d: must be true; published configs choose this decoder with it.
        use_conv: must be false; likewise.
        **builder: arguments of `BEVBuilder`.

    Raises:
        ValueError: another decoder is asked for, or channels that pillars cannot share.
    """

    def __init__(
        self,
        pillar_h: int = 16,
        num_classes: int = 18,
        out_dim: int = 32,
        norm_cfg_3d: dict[str, Any] | None = None,
        norm_cfg: dict[str, Any] | None = None,
        use_3d: bool = True,
        use_conv: bool = False,
        **builder: Any,
    ) -> None:
        super().__init__(**builder)
        if not use_3d or use_conv:
            raise ValueError(
                f"use_3d={use_3d}, use_conv={use_conv}: there is only the decoder of 3-D "
                "convolutions, use_3d=True and use_conv=False"
            )
        if self.embed_dims % pillar_h:
            raise ValueError(
                f"embed_dims {self.embed_dims} must be a multiple of pillar_h {pillar_h}"
            )
        self.pillar_h = pillar_h
        widths = (self.embed_dims // pillar_h, out_dim, out_dim)
        self.decoder = nn.Sequential(
            *(
                ConvModule(
                    widths[i],
                    widths[i + 1],
                    kernel_size=3,
                    padding=1,
                    bias=False,
                    conv_cfg=dict(type="Conv3d"),
                    norm_cfg=norm_cfg_3d or dict(type="BN3d"),
                )
                for i in range(2)
            )
        )
        self.predicter = nn.Sequential(
            nn.Linear(out_dim, out_dim * 2), nn.Softplus(), nn.Linear(out_dim * 2, num_classes)
        )

    def decode(self, bev: Tensor, bev_h: int, bev_w: int) -> Tensor:
        """Class scores of all voxels.

        Args:
            bev: (B, bev_h * bev_w, C) of `get_bev_features`.
            bev_h: cells along y.
            bev_w: cells along x.

        Returns:
            (B, bev_w, bev_h, pillar_h, num_classes), indexed [x, y, z].
        """
        maps = bev.transpose(1, 2).unflatten(1, (-1, self.pillar_h))  # (B, C / Z, Z, H * W)
        voxels = self.decoder(maps.unflatten(3, (bev_h, bev_w)))  # (B, D, Z, Y, X)
        return self.predicter(voxels.permute(0, 4, 3, 2, 1))
