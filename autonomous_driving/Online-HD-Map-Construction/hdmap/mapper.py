"""VectorMapNet (arXiv 2206.08920): online vectorised maps from the cameras around a car."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.builder import DETECTORS, build_backbone, build_head
from mmdet.models.detectors import BaseDetector
from torch import nn
from torchvision.models.resnet import BasicBlock


def bev_neck(
    in_channels: int = 128, mid_channels: int = 64, out_channels: int = 128, pool: bool = True
) -> nn.Sequential:
    """The first stages of a ResNet-18 on the map, then a projection.

    Args:
        in_channels: channels of the map.
        mid_channels: channels of the blocks.
        out_channels: channels of the result.
        pool: a quarter of the size; False leaves the pooling out: half the size.

    Returns:
        (B, in_channels, H, W) to (B, out_channels, H / 4, W / 4), rounded up.
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, mid_channels, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(mid_channels),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1) if pool else nn.Identity(),
        nn.Sequential(
            BasicBlock(mid_channels, mid_channels), BasicBlock(mid_channels, mid_channels)
        ),
        nn.Conv2d(mid_channels, out_channels, 1, bias=False),
    )


@DETECTORS.register_module()
class VectorMapNet(BaseDetector):
    """Images to map elements: encoder, bird's-eye-view neck, detector and generator.

    Args:
        backbone: config of `IPMEncoder`.
        head: config of `DGHead`.
        neck: arguments of `bev_neck`.
        train_cfg: for mmdet's builder; nothing is read.
        test_cfg: `max_points`, `top_p` and `seed` replace the head's.
        init_cfg: mmcv's way to name initial weights.
    """

    def __init__(
        self,
        backbone: dict,
        head: dict,
        neck: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.backbone = build_backbone(backbone)
        self.neck = bev_neck(**(neck or {}))
        self.head = build_head({**head, **(test_cfg or {})})

    def extract_feat(
        self, img: torch.Tensor, img_metas: Sequence[Mapping[str, Any]]
    ) -> torch.Tensor:
        """(B, N, 3, H, W) images to a (B, C, rows, columns) map."""
        return self.neck(self.backbone(img, img_metas))

    def forward_train(
        self,
        img: torch.Tensor,
        img_metas: Sequence[Mapping[str, Any]],
        polys: Sequence[Mapping[str, Any]],
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """Losses of a batch.

        Args:
            img: (B, N, 3, H, W).
            img_metas: per frame `lidar2img`, N matrices (4, 4) from the ego frame.
            polys: per frame the true lines, see `DGHead.forward_train`.

        Returns:
            Scalars whose plain sum is minimised.
        """
        return self.head.forward_train(self.extract_feat(img, img_metas), polys)

    def forward_test(
        self, img: torch.Tensor, img_metas: Sequence[Mapping[str, Any]], **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Lines of a batch: one dict per frame with token, vectors, scores and labels."""
        results = self.head.simple_test(self.extract_feat(img, img_metas))
        return [{"token": meta.get("token"), **result} for meta, result in zip(img_metas, results)]

    def simple_test(
        self, img: torch.Tensor, img_metas: Sequence[Mapping[str, Any]], **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Same as `forward_test`."""
        return self.forward_test(img, img_metas, **kwargs)

    def aug_test(self, imgs: Any, img_metas: Any, **kwargs: Any) -> list[dict[str, Any]]:
        """Not supported."""
        raise NotImplementedError("VectorMapNet has no test-time augmentation.")

    def _parse_losses(
        self, losses: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Sums all losses; mmdet sums those with 'loss' in their name, ours have other names."""
        marked = {f"loss {name}": value for name, value in losses.items()}
        loss, log_vars = super()._parse_losses(marked)
        return loss, {name.removeprefix("loss "): value for name, value in log_vars.items()}
