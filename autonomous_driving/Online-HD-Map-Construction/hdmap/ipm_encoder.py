"""Camera images to a map seen from above by inverse perspective mapping (VectorMapNet, 3.1).

Four horizontal planes around the ground are laid over the region. Every cell of a plane reads the
image features at the pixel that it projects to; a convolution makes one map of the planes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ad_common.bev.ipm import plane_points, sample_cameras
from mmcv.runner import BaseModule
from mmdet.models.builder import BACKBONES, build_backbone, build_neck
from torch import nn

from .tokens import CANVAS_SIZE, ROI_SIZE


class UpsampleBlock(nn.Module):
    """3x3 convolution, group norm, ReLU, twice the size."""

    def __init__(self, in_channels: int, out_channels: int, num_groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.gn = nn.GroupNorm(num_groups, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C', 2 H, 2 W)."""
        x = self.gn(self.conv(x)).relu()
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class Upsample(nn.Module):
    """Brings a pyramid to the size of its finest level and sums it.

    Args:
        num_levels: levels, each half as large as the one before.
        channels: of every level.
        num_groups: of the group norms.
    """

    def __init__(self, num_levels: int, channels: int, num_groups: int = 32) -> None:
        super().__init__()
        self.fscale = nn.ModuleList(
            nn.Sequential(*(UpsampleBlock(channels, channels, num_groups) for _ in range(level)))
            for level in range(num_levels)
        )

    def forward(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Levels (N, C, H / 2^i, W / 2^i) to (N, C, H, W)."""
        return sum(scale(level) for scale, level in zip(self.fscale, levels))


@BACKBONES.register_module()
class IPMEncoder(BaseModule):
    """Images of the cameras around the car to a bird's-eye-view map.

    Args:
        img_backbone: config of the image backbone.
        img_neck: config of a pyramid with equal channels; None for a backbone that ends in one.
        in_channels: channels of the pyramid.
        out_channels: channels of the map.
        num_levels: levels of the pyramid, at strides 4, 8, 16, ...
        num_groups: groups of the norms that bring the levels together.
        heights: z of the planes in metres.
        roi_size: length (x) and width (y) of the region in metres.
        grid_size: cells of the map along x and y.
        num_cams: cameras of a frame.
        init_cfg: mmcv's way to name initial weights.
    """

    def __init__(
        self,
        img_backbone: dict,
        img_neck: dict | None = None,
        in_channels: int = 128,
        out_channels: int = 128,
        num_levels: int = 4,
        num_groups: int = 32,
        heights: Sequence[float] = (-1.1, 0.0, 0.5, 1.1),
        roi_size: Sequence[float] = ROI_SIZE,
        grid_size: Sequence[int] = CANVAS_SIZE,
        num_cams: int = 7,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.num_cams = num_cams
        self.img_backbone = build_backbone(img_backbone)
        self.img_neck = None if img_neck is None else build_neck(img_neck)
        self.upsample = Upsample(num_levels, in_channels, num_groups)
        (half_x, half_y), (columns, rows) = np.asarray(roi_size) / 2, grid_size
        planes = plane_points((-half_x, half_x), (-half_y, half_y), heights, (rows, columns))
        self.register_buffer("bev_planes", planes)  # (planes, rows, columns, 3)
        self.outconvs = nn.Conv2d(len(heights) * (in_channels + 3), out_channels, 3, padding=1)
        # Part of the published weights; nothing reads it.
        self.masked_embeds = nn.Embedding(num_cams, out_channels).requires_grad_(False)

    def extract_img_feat(self, img: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) images to (N, C, H / 4, W / 4) features.

        Raises:
            ValueError: the images' sides are no multiples of the coarsest stride.
        """
        stride = 2 ** (len(self.upsample.fscale) + 1)
        if img.shape[-2] % stride or img.shape[-1] % stride:
            raise ValueError(
                f"Images of {img.shape[-2]} x {img.shape[-1]} pixels: both sides must be multiples "
                f"of {stride}. Set size_divisor={stride} in PadMultiViewImages."
            )
        features = self.img_backbone(img)
        if self.img_neck is not None:
            features = self.img_neck(features)
        return self.upsample(features)

    def forward(self, img: torch.Tensor, img_metas: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """Makes the map.

        Args:
            img: (B, N, 3, H, W) normalised, padded images.
            img_metas: per frame `lidar2img`: N matrices (4, 4), ego frame to pixels of `img`.

        Returns:
            (B, C, cells along y, cells along x).

        Raises:
            ValueError: the number of cameras or matrices is not `num_cams`.
        """
        batch, cameras = img.shape[:2]
        matrices = np.stack([np.asarray(meta["lidar2img"], dtype=np.float64) for meta in img_metas])
        if cameras != self.num_cams or matrices.shape[1] != cameras:
            raise ValueError(
                f"The model has {self.num_cams} cameras; the frame has {cameras} images and "
                f"{matrices.shape[1]} matrices in lidar2img. Set num_cams or complete the data."
            )
        features = self.extract_img_feat(img.flatten(0, 1))
        sampled, _ = sample_cameras(  # (B, C, planes, rows, columns)
            features.unflatten(0, (batch, cameras)),
            self.bev_planes,
            torch.from_numpy(matrices),
            tuple(img.shape[-2:]),
        )
        places = self.bev_planes.permute(3, 0, 1, 2).to(sampled)  # goes with the features
        volume = torch.cat([sampled, places.expand(batch, -1, -1, -1, -1)], dim=1)
        return self.outconvs(volume.flatten(1, 2))
