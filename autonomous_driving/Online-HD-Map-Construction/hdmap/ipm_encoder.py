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
from mmcv.runner import BaseModule
from mmdet.models.builder import BACKBONES, build_backbone, build_neck
from torch import nn

from .tokens import CANVAS_SIZE, ROI_SIZE

MIN_DEPTH = 1e-9  # metres in front of a camera


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


def plane_grid(
    roi_size: Sequence[float], grid_size: Sequence[int], heights: Sequence[float]
) -> torch.Tensor:
    """Points of horizontal planes, the borders of the region included.

    Args:
        roi_size: length (x) and width (y) of the region in metres, centred on the ego car.
        grid_size: points along x and y.
        heights: z of each plane in metres.

    Returns:
        (planes, points along y, points along x, 3): x, y, z.
    """
    x = torch.linspace(-roi_size[0] / 2, roi_size[0] / 2, grid_size[0])
    y = torch.linspace(-roi_size[1] / 2, roi_size[1] / 2, grid_size[1])
    z, y, x = torch.meshgrid(torch.tensor(tuple(heights), dtype=x.dtype), y, x, indexing="ij")
    return torch.stack([x, y, z], dim=-1)


def sample_cameras(
    features: torch.Tensor, points: torch.Tensor, matrices: torch.Tensor, image_size: Sequence[int]
) -> torch.Tensor:
    """Mean of the image features that points project to, over the cameras that see them.

    Args:
        features: (B, N, C, h, w) of N cameras.
        points: (P, 3) x, y, z in metres.
        matrices: (B, N, 4, 4): [u d, v d, d, 1] = M [x, y, z, 1], u and v in pixels of the images.
        image_size: height and width of the images that the features cover, padding included.

    Returns:
        (B, C, P); 0 where no camera looks.
    """
    height, width = image_size
    ones = torch.ones_like(points[:, :1])
    homogeneous = torch.cat([points, ones], dim=1)  # (P, 4)
    size = points.new_tensor([width, height])
    total, count = 0.0, 0.0
    for camera in range(features.shape[1]):
        projected = homogeneous @ matrices[:, camera].transpose(1, 2)  # (B, P, 4)
        depth = projected[..., 2:3]
        pixel = projected[..., :2] / depth.clamp(min=MIN_DEPTH)
        grid = pixel / size * 2 - 1
        seen = (depth > MIN_DEPTH) & (grid.abs() < 1).all(dim=-1, keepdim=True)  # (B, P, 1)
        grid = torch.where(seen, grid, torch.full_like(grid, 2.0)).to(features)  # outside reads 0
        values = F.grid_sample(features[:, camera], grid[:, :, None], align_corners=False)
        # A seen point near the border mixes with zeros of the padding, an unseen one is 0.
        far = (grid.abs() > 1).any(dim=-1)[:, None]
        total = total + values.squeeze(-1).masked_fill(far, 0.0)  # (B, C, P)
        count = count + seen.squeeze(-1)
    return total / count.clamp(min=1)[:, None].to(features)


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
        self.register_buffer("bev_planes", plane_grid(roi_size, grid_size, heights))
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
            img_metas: per frame `lidar2img`: N matrices (4, 4) from the ego frame to pixels of `img`.

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
        planes, rows, columns, _ = self.bev_planes.shape
        points = self.bev_planes.flatten(0, 2)
        projection = torch.from_numpy(matrices).to(points)
        sampled = sample_cameras(
            features.unflatten(0, (batch, cameras)), points, projection, img.shape[-2:]
        )
        # The point's own coordinates go with its features: (B, C + 3, planes, rows, columns).
        points = points.T.to(sampled).expand(batch, -1, -1)
        volume = torch.cat([sampled, points], dim=1).unflatten(2, (planes, rows, columns))
        return self.outconvs(volume.flatten(1, 2))
