"""The InternImage classifiers as timm models: the methods that timm and its scripts call.

They compute what the classes of `classifier.py` compute, under the same parameter names. timm asks
for another split of the work, though:

    forward_features    images -> the unpooled map (N, num_features, h, w)
    forward_head        that map -> (N, head_hidden_size) -> logits

With the convolutional head (T to XL) the map is the output of the last level (stride 32). With the
clip projector (H, G) it is the sum that the projector pools, of the last two levels (stride 16).
TorchScript and torch.fx are not supported; torch.compile and torch.export are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ops_dcnv3.functions import apply_head_conv

from .classifier import CLIP_CHANNELS, InternImageClassifier
from .flash_classifier import FlashInternImageClassifier
from .intern_image import check_choice, check_rate, init_linear_layers
from .intern_image_meta_former import (
    META_CHANNELS,
    SPATIAL_DIM,
    TEMPORAL_DIM,
    InternImageMetaFormer,
)
from .registry import load_pretrained

CONV_POOLS = ("avg", "max", "avgmax", "")
CLIP_POOLS = ("map", "")
OUTPUT_FORMATS = ("NCHW", "NHWC")


class TimmInterface:
    """What timm expects of a model; stands before a classifier class among the bases.

    Args:
        num_classes: number of logits; 0 for none.
        global_pool: 'avg', 'max' or 'avgmax' for the convolutional head, 'map' (attention pooling)
            for the clip projector; '' leaves the map unpooled, with `num_classes=0`. None for the
            first of these.
        output_stride: 32; dilated levels do not exist.
        drop_rate: dropout before the last Linear.
        proj_drop_rate: dropout after the stem and in the MLPs (the classifiers' own `drop_rate`).
        **arguments: those of the classifier.

    Raises:
        ValueError: an argument that is out of range or does not fit.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        global_pool: str | None = None,
        output_stride: int = 32,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        **arguments: Any,
    ) -> None:
        if output_stride != 32:
            raise ValueError(
                f"output_stride must be 32, got {output_stride}: the levels of InternImage have no "
                "dilated form. features_only=True gives the maps of stride 4, 8 and 16 too."
            )
        check_rate("drop_rate", drop_rate)
        super().__init__(num_classes=num_classes, drop_rate=proj_drop_rate, **arguments)
        self.drop_rate = drop_rate
        self.head_hidden_size = self.num_features
        self.num_features = CLIP_CHANNELS if self.use_clip_projector else self.level_channels[-1]
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**i, "module": f"levels.{i}"}
            for i, width in enumerate(self.level_channels)
        ]
        default = "map" if self.use_clip_projector else "avg"
        self._set_pool(default if global_pool is None else global_pool)

    # ------------------------------------------------------------------------------- forward
    def forward_features(self, images: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_features, h, w), stride 32 or 16 (clip projector)."""
        if self.use_clip_projector:
            self._check_clip_image(images)
        return self._join(self.forward_levels(images))

    def _join(self, maps: Sequence[Tensor]) -> Tensor:
        """The map that the head takes, of the maps (N, H_i, W_i, C_i) of all levels."""
        x = maps[-1].permute(0, 3, 1, 2)  # (N, C, H/32, W/32)
        if not self.use_clip_projector:
            return x
        return self.dcnv3_head_x4(x) + self.dcnv3_head_x3(maps[-2].permute(0, 3, 1, 2))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools the map of `forward_features` and classifies it.

        Args:
            x: (N, num_features, h, w).
            pre_logits: return the (N, head_hidden_size) input of the last Linear.
        """
        x = self._pool(x)
        return x if pre_logits else self.head(x)

    def _pool(self, x: Tensor) -> Tensor:
        if self.use_clip_projector:
            if self.global_pool:
                x = self.fc_norm(self.clip_projector(x.flatten(2).transpose(1, 2)))
        else:
            if self.conv_head is not None:
                x = apply_head_conv(self.conv_head, x)
            x = self.avgpool(x)
        return F.dropout(x, self.drop_rate, self.training)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_classes); pooled features without classes."""
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of levels, as they go to the next level.

        Args:
            x: images (N, in_chans, H, W).
            indices: levels; an int for the last so many, None for all.
            norm: no effect: every level ends with its own norms.
            stop_early: leave out the levels after the last of `indices`.
            output_fmt: 'NCHW' or 'NHWC', of the intermediates.
            intermediates_only: return the list alone.

        Returns:
            (final, [map of each index]); `final` is that of `forward_features`, or with
            `stop_early` the map of the last level that was computed.

        Raises:
            ValueError: an unknown `output_fmt`.
        """
        check_choice("output_fmt", str(getattr(output_fmt, "value", output_fmt)), OUTPUT_FORMATS)
        taken, last = feature_take_indices(len(self.levels), indices)
        stop = last + 1 if stop_early else len(self.levels)
        is_whole = stop == len(self.level_channels)
        if self.use_clip_projector and is_whole and not intermediates_only:
            self._check_clip_image(x)
        maps = self.forward_levels(x, stop)
        chosen = [maps[i] if output_fmt == "NHWC" else maps[i].permute(0, 3, 1, 2) for i in taken]
        if intermediates_only:
            return chosen
        return (self._join(maps) if is_whole else maps[-1].permute(0, 3, 1, 2)), chosen

    # ------------------------------------------------------------------------------ the head
    def get_classifier(self) -> nn.Module:
        """The last Linear; Identity without classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last Linear.

        Args:
            num_classes: number of logits; 0 for none.
            global_pool: as in the constructor; None leaves it as it is.
        """
        if num_classes < 0:
            raise ValueError(f"num_classes must be 0 or more, got {num_classes}.")
        self.num_classes = num_classes
        self._set_pool(self.global_pool if global_pool is None else global_pool)
        self.head = self._new_linear(self.head_hidden_size)

    def _new_linear(self, in_features: int) -> nn.Module:
        if self.num_classes == 0:
            return nn.Identity()
        linear = nn.Linear(in_features, self.num_classes)
        init_linear_layers(linear)
        return linear.to(self.patch_embed.conv1.weight)

    def _set_pool(self, global_pool: str) -> None:
        check_choice("global_pool", global_pool, self._pools())
        if global_pool == "" and self.num_classes:
            raise ValueError(
                f"global_pool='' leaves the map unpooled, which the Linear of num_classes="
                f"{self.num_classes} cannot take: use num_classes=0 with it."
            )
        self.global_pool = global_pool
        if not self.use_clip_projector:
            self.avgpool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))

    def _pools(self) -> tuple[str, ...]:
        return CLIP_POOLS if self.use_clip_projector else CONV_POOLS

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what the maps of these levels do not need.

        Args:
            indices: levels; an int for the last so many.
            prune_norm: no effect: the norms belong to the levels.
            prune_head: remove the head too.

        Returns:
            The levels, counted from the first.
        """
        taken, last = feature_take_indices(len(self.levels), indices)
        self.levels = self.levels[: last + 1]
        self.levels[-1].downsample = None
        if prune_head:
            self._remove_head()
        return taken

    def _remove_head(self) -> None:
        if self.use_clip_projector:
            self.use_clip_projector = False
            del self.dcnv3_head_x4, self.dcnv3_head_x3, self.clip_projector, self.fc_norm
        self.conv_head = None
        self.reset_classifier(0, "")

    # ------------------------------------------------------------------------------ training
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        for level in self.levels:
            level.with_cp = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay, besides vectors, which timm leaves out by itself."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort the parameters into layers, from the stem to the head.

        Blocks count as in `optimizer.py`: the norm at the end of a level and the downsampling after
        it go with the first block of the next level. The norms between the blocks of level 2 go
        with the block before them, the last level's norm with the head.

        Args:
            coarse: one layer per level instead of one per block.
        """
        if coarse:
            return {"stem": r"^patch_embed", "blocks": r"^levels\.(\d+)"}
        blocks: list[tuple[str, tuple[int, ...] | None]] = [
            (r"^levels\.(\d+)\.blocks\.(\d+)", None)
        ]
        for i, level in enumerate(self.levels):
            for k, block in enumerate(level.post_norm_block_ids):
                blocks.append((rf"^levels\.{i}\.post_norms\.{k}\.", (i, block)))
            if i + 1 < len(self.levels):
                blocks.append((rf"^levels\.{i}\.(?:norm|downsample)\.", (i + 1, 0)))
        return {"stem": r"^patch_embed", "blocks": blocks}

    def load_pretrained(self, path: str | Path) -> None:
        """Loads a released checkpoint; another head or first convolution is adapted."""
        load_pretrained(self, path, self.patch_embed.conv1.in_channels)


class TimmInternImage(TimmInterface, InternImageClassifier):
    """InternImage for timm."""


class TimmFlashInternImage(TimmInterface, FlashInternImageClassifier):
    """FlashInternImage for timm."""


class TimmInternImageMetaFormer(TimmInterface, InternImageMetaFormer):
    """InternImage with date and place for timm: both are zeros, that is unknown, if not given."""

    def build_head(self, act_layer: str) -> None:
        num_classes = self.num_classes
        self.num_classes = max(num_classes, 1)
        super().build_head(act_layer)
        self.num_classes = num_classes
        if num_classes == 0:
            self.head = self.meta_head = nn.Identity()

    def forward_head(
        self,
        x: Tensor,
        pre_logits: bool = False,
        temporal: Tensor | None = None,
        spatial: Tensor | None = None,
    ) -> Tensor:
        """As for InternImage, plus the logits of date (N, 4) and place (N, 3)."""
        features = self._pool(x)
        if pre_logits or not self.num_classes:
            return features
        return self.head(features) + self.meta_logits(
            x.new_zeros(x.shape[0], TEMPORAL_DIM) if temporal is None else temporal,
            x.new_zeros(x.shape[0], SPATIAL_DIM) if spatial is None else spatial,
        )

    def forward(
        self, images: Tensor, temporal: Tensor | None = None, spatial: Tensor | None = None
    ) -> Tensor:
        return self.forward_head(self.forward_features(images), False, temporal, spatial)

    def get_classifier(self) -> tuple[nn.Module, nn.Module]:
        return self.head, self.meta_head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        self.meta_head = self._new_linear(2 * META_CHANNELS)

    def _remove_head(self) -> None:
        super()._remove_head()
        del self.meta_head_1, self.meta_head_2, self.meta_norm, self.meta_head
