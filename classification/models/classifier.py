"""InternImage with a classification head (arXiv 2211.05778, section 4.1)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ops_dcnv3.functions import apply_head_conv

from .clip_projector import AttentionPool
from .intern_image import ACT_LAYERS, InternImage, build_norm, init_linear_layers

CLIP_CHANNELS = 1024
CLIP_HEADS = 16
CLIP_OUT_CHANNELS = 768


class InternImageClassifier(InternImage):
    """InternImage for image classification: (N, 3, H, W) images -> (N, num_classes) logits.

    Two heads:

    * the default one (T to XL): a 1x1 convolution to `cls_scale` times the channels, BatchNorm,
      activation, mean over the map, Linear;
    * `use_clip_projector` (H and G): the last map, enlarged twice by pixel shuffle, plus the map
      before it, both projected to 1024 channels; attention pooling to 768; LayerNorm; Linear.

    Args:
        num_classes: number of logits; 0 for none: `forward` returns the pooled features.
        cls_scale: width of the default head over the width of the last level.
        use_clip_projector: the second head.
        **trunk: arguments of :class:`InternImage`.

    Raises:
        ValueError: an argument that is out of range, or a combination that no model can have.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        cls_scale: float = 1.5,
        use_clip_projector: bool = False,
        **trunk: Any,
    ) -> None:
        if num_classes < 0:
            raise ValueError(
                f"num_classes must be 0 (features instead of logits) or more, got {num_classes}."
            )
        if use_clip_projector:
            check_clip_projector(**trunk)
        elif cls_scale <= 0:
            raise ValueError(f"cls_scale must be above 0, got {cls_scale}.")
        super().__init__(**trunk)
        self.num_classes = num_classes
        self.cls_scale = cls_scale
        self.use_clip_projector = use_clip_projector
        self.build_head(trunk.get("act_layer", "GELU"))

    def build_head(self, act_layer: str) -> None:
        """Adds the layers after the trunk, in the order of the original's state dict."""
        channels = self.level_channels[-1]
        if self.use_clip_projector:
            self.num_features = CLIP_OUT_CHANNELS
            self.dcnv3_head_x4 = nn.Sequential(
                nn.Conv2d(channels, CLIP_CHANNELS * 4, 1), nn.PixelShuffle(2)
            )
            self.dcnv3_head_x3 = nn.Conv2d(channels // 2, CLIP_CHANNELS, 1)
            self.clip_projector = AttentionPool(CLIP_CHANNELS, CLIP_HEADS, CLIP_OUT_CHANNELS)
            self.fc_norm = build_norm(CLIP_OUT_CHANNELS, "LN")
            init_linear_layers(self.clip_projector)
        else:
            self.num_features = int(channels * self.cls_scale)
            self.conv_head = nn.Sequential(
                nn.Conv2d(channels, self.num_features, 1, bias=False),
                build_norm(
                    self.num_features, "BN", channels_first_in=True, channels_first_out=True
                ),
                ACT_LAYERS[act_layer](),
            )
            self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.head = (
            nn.Linear(self.num_features, self.num_classes) if self.num_classes else nn.Identity()
        )
        init_linear_layers(self.head)

    def forward_features_seq_out(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> the (N, H_i, W_i, C_i) map of every level before its downsampling."""
        return self.forward_levels(images)

    def forward_features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, num_features): all but the last Linear.

        Raises:
            ValueError: an image size that the clip projector cannot take.
        """
        if self.use_clip_projector:
            self._check_clip_image(images)
        maps = self.forward_levels(images)
        x = maps[-1].permute(0, 3, 1, 2)  # (N, C, H/32, W/32)
        if not self.use_clip_projector:
            return self.avgpool(apply_head_conv(self.conv_head, x)).flatten(1)
        fine = self.dcnv3_head_x3(maps[-2].permute(0, 3, 1, 2))  # (N, 1024, H/16, W/16)
        x = self.dcnv3_head_x4(x) + fine
        return self.fc_norm(self.clip_projector(x.flatten(2).transpose(1, 2)))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, num_classes); (N, num_features) when num_classes is 0."""
        return self.head(self.forward_features(images))

    def _check_clip_image(self, images: Tensor) -> None:
        """The last map, enlarged twice, must have the size of the map before it."""
        stride = 2 ** (len(self.depths) + 1)
        height, width = images.shape[-2:]
        if any(-(-size // (stride // 2)) % 2 for size in (height, width)):
            raise ValueError(
                f"A model with the clip projector (use_clip_projector=True) cannot take images of "
                f"{height}x{width} pixels: the last two feature maps would not fit together. "
                f"Resize or pad to multiples of {stride}."
            )


def check_clip_projector(**trunk: Any) -> None:
    """Raises ValueError for trunk arguments that the clip projector cannot follow."""
    if trunk.get("norm_layer", "LN") != "LN":
        raise ValueError(
            "use_clip_projector=True normalises tokens one by one, which needs norm_layer='LN', "
            f"got norm_layer={trunk['norm_layer']!r}."
        )
    if len(trunk.get("depths", (0, 0))) < 2:
        raise ValueError(
            "use_clip_projector=True combines the last two levels, but "
            f"depths={list(trunk['depths'])} has one."
        )
