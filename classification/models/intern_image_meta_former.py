"""InternImage for iNaturalist: the logits also use when and where a photograph was taken.

The extra layers follow MetaFormer (arXiv 2203.02751). The metadata of a photograph are two vectors:
`temporal` holds sine and cosine of the month and two zeros, `spatial` the place as a unit vector.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .classifier import InternImageClassifier
from .intern_image import init_linear_layers

TEMPORAL_DIM = 4
SPATIAL_DIM = 3
META_CHANNELS = 64


class ResidualNormBlock(nn.Module):
    """x + f(x), f = two times Linear, ReLU, LayerNorm, on (N, C) vectors."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_fn1 = nn.LayerNorm(channels)
        self.norm_fn2 = nn.LayerNorm(channels)
        self.w1 = nn.Linear(channels, channels)
        self.w2 = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_fn1(self.w1(x).relu())
        return x + self.norm_fn2(self.w2(y).relu())


def build_meta_head(in_channels: int) -> nn.Sequential:
    """Embeds one metadata vector: (N, in_channels) -> (N, 64)."""
    return nn.Sequential(
        nn.Linear(in_channels, META_CHANNELS),
        nn.ReLU(),
        nn.LayerNorm(META_CHANNELS),
        ResidualNormBlock(META_CHANNELS),
    )


class InternImageMetaFormer(InternImageClassifier):
    """InternImage with date and place: (images, temporal, spatial) -> (N, num_classes) logits.

    The logits are the sum of those of the image and those of the metadata. Arguments as for
    :class:`InternImageClassifier`, with `num_classes` at least 1.
    """

    def build_head(self, act_layer: str) -> None:
        if self.num_classes < 1:
            raise ValueError(
                f"The model with metadata adds up logits, so it needs num_classes of 1 or more, "
                f"got {self.num_classes}."
            )
        self.meta_head_1 = build_meta_head(TEMPORAL_DIM)
        self.meta_head_2 = build_meta_head(SPATIAL_DIM)
        self.meta_norm = nn.LayerNorm(2 * META_CHANNELS, eps=1e-6)
        self.meta_head = nn.Linear(2 * META_CHANNELS, self.num_classes)
        for module in (self.meta_head_1, self.meta_head_2, self.meta_head):
            init_linear_layers(module)
        super().build_head(act_layer)

    def forward(self, images: Tensor, temporal: Tensor, spatial: Tensor) -> Tensor:
        """Classifies photographs with their metadata.

        Args:
            images: (N, 3, H, W).
            temporal: (N, 4), the date; zeros if unknown.
            spatial: (N, 3), the place on the unit sphere; zeros if unknown.

        Returns:
            (N, num_classes) logits.

        Raises:
            ValueError: `temporal` or `spatial` has another shape.
        """
        return super().forward(images) + self.meta_logits(temporal, spatial)

    def meta_logits(self, temporal: Tensor, spatial: Tensor) -> Tensor:
        """(N, 4) date and (N, 3) place -> (N, num_classes): what they add to the logits."""
        for name, value, dim in (
            ("temporal", temporal, TEMPORAL_DIM),
            ("spatial", spatial, SPATIAL_DIM),
        ):
            if value.dim() != 2 or value.shape[1] != dim:
                raise ValueError(f"{name} must be (N, {dim}), got {tuple(value.shape)}.")
        meta = torch.cat([self.meta_head_1(temporal), self.meta_head_2(spatial)], dim=1)  # (N, 128)
        return self.meta_head(self.meta_norm(meta))
