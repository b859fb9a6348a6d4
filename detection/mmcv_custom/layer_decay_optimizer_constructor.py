"""Layer-wise learning rates for InternImage in mmcv's optimizers (rule of BEiT, arXiv 2106.08254).

A parameter of layer k, counted from the stem (0) to the heads (num_layers + 1), is trained with

    lr = base_lr * layer_decay_rate ** (num_layers + 1 - k)

Layer 0 is the stem. Block j of level i is layer 1 + depths[0] + ... + depths[i-1] + j. The
downsampling and the last norm of a level belong to the first block of the next level, the last norm
of the last level to the first block of its own. Everything else is layer num_layers + 1.

Without options these are the rules that the released models were trained with, oddities included.
Each option of `FIXES` replaces one oddity; a recipe that uses it is no longer the published one.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from mmcv.runner import OPTIMIZER_BUILDERS, DefaultOptimizerConstructor
from torch import nn

logger = logging.getLogger(__name__)

# parts of a name that put a parameter into layer 0, with the smallest learning rate
EMBEDDINGS = re.compile(
    r"level_embeds|^decode_head\.(mask_embed|cls_embed|level_embed|query_embed)\b"
)
NO_WEIGHT_DECAY = ("norm", "relative_position", "sampling_offsets")
OFFSETS = ("sampling_offsets", "reference_points")
DCN_OFFSETS = re.compile(r"\.dcn\.offset(_mask)?(_dw)?\.")
FIXES = (
    "level2_post_norm_block_ids",
    "decay_composite_backbone",
    "embeddings_with_heads",
    "scale_dcn_offsets",
    "no_weight_decay_by_shape",
)


@dataclass(frozen=True)
class LayerDecay:
    """`paramwise_cfg` of `CustomLayerDecayOptimizerConstructor`.

    Attributes:
        num_layers: blocks of the trunk, the sum of `depths`.
        layer_decay_rate: factor per layer, 0 < rate <= 1.
        depths: blocks per level of the trunk.
        backbone_small_lr: a tenth of the learning rate for every layer that is decayed.
        dino_head: a tenth of it for `sampling_offsets` and `reference_points` of deformable
            attention; goes before `offset_lr_scale`.
        offset_lr_scale: another factor for them.
        backbone_name: attribute of the model that holds the trunk. Default: `backbone`, or
            `img_backbone` in a model that has this one only.
        level2_post_norm_block_ids: fix. The trunk's option of this name; puts norm k of
            `levels.2.post_norms` into the layer of its block. Default: into that of block k.
        decay_composite_backbone: fix. The trunks inside CBInternImage (`backbone.cb_modules.*`) are
            decayed as a single trunk is. Default: they train with the full learning rate.
        embeddings_with_heads: fix. Embeddings of levels, queries, classes and masks train with the
            full learning rate. Default: with that of the stem, the smallest.
        scale_dcn_offsets: fix. `offset_lr_scale` holds for offsets of DCNv3 too. Default: only
            for those of deformable attention.
        no_weight_decay_by_shape: fix. Only parameters of one dimension and biases have no weight
            decay. Default: also all whose name contains one of `NO_WEIGHT_DECAY`.
    """

    num_layers: int
    layer_decay_rate: float
    depths: Sequence[int]
    backbone_small_lr: bool = False
    dino_head: bool = False
    offset_lr_scale: float = 1.0
    backbone_name: str = "backbone"
    level2_post_norm_block_ids: Sequence[int] = field(default=())
    decay_composite_backbone: bool = False
    embeddings_with_heads: bool = False
    scale_dcn_offsets: bool = False
    no_weight_decay_by_shape: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.layer_decay_rate <= 1:
            raise ValueError(
                f"paramwise_cfg.layer_decay_rate must be in (0, 1], got {self.layer_decay_rate}"
            )
        if self.num_layers != sum(self.depths):
            raise ValueError(
                f"paramwise_cfg.num_layers={self.num_layers} must be the sum of depths="
                f"{list(self.depths)}, which is {sum(self.depths)}"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LayerDecay:
        """Checks the keys of a `paramwise_cfg`.

        Raises:
            ValueError: an unknown or missing key, or a value out of range.
        """
        known = [one.name for one in fields(cls)]
        for key in config:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                raise ValueError(f"optimizer.paramwise_cfg has an unknown key {key!r}; {hint}")
        missing = [k for k in ("num_layers", "layer_decay_rate", "depths") if k not in config]
        if missing:
            raise ValueError(f"optimizer.paramwise_cfg lacks {', '.join(missing)}")
        return cls(**config)

    @property
    def last(self) -> int:
        """The layer of heads."""
        return self.num_layers + 1

    def layer(self, name: str) -> int:
        """Layer of a parameter, 0 to `last`.

        Raises:
            ValueError: a block that `depths` does not have.
        """
        if not self.embeddings_with_heads and EMBEDDINGS.search(name):
            return 0
        prefix, _, rest = name.partition(f"{self.backbone_name}.")
        if prefix:
            return self.last
        if self.decay_composite_backbone:
            rest = re.sub(r"^cb_modules\.\d+\.", "", rest)
        if rest.startswith("patch_embed"):
            return 0
        match = re.match(r"levels\.(\d+)\.(\w+)(?:\.(\d+))?", rest)
        if match is None:
            return self.last
        level, part = int(match[1]), match[2]
        if level >= len(self.depths):
            raise self._not_the_model(name)
        first = 1 + sum(self.depths[:level])
        if part in ("blocks", "post_norms"):
            block = int(match[3])
            if part == "post_norms" and self.level2_post_norm_block_ids:
                block = self.level2_post_norm_block_ids[block]
            if block >= self.depths[level]:
                raise self._not_the_model(name)
            return first + block
        if part in ("downsample", "norm"):
            return first if level == len(self.depths) - 1 else first + self.depths[level]
        return self.last

    def _not_the_model(self, name: str) -> ValueError:
        return ValueError(
            f"optimizer.paramwise_cfg.depths={list(self.depths)} is not the model's: it has the "
            f"parameter {name}"
        )

    def factor(self, name: str) -> tuple[float, str]:
        """(learning rate over the base learning rate, ending of the group's name)."""
        layer = self.layer(name)
        scale = self.layer_decay_rate ** (self.last - layer)
        if self.backbone_small_lr and scale < 1:
            scale *= 0.1
        if any(part in name for part in OFFSETS):
            if self.dino_head:
                return scale * 0.1, "_0.1x"
            return scale * self.offset_lr_scale, "_offset_lr_scale"
        if self.scale_dcn_offsets and DCN_OFFSETS.search(name):
            return scale * self.offset_lr_scale, "_offset_lr_scale"
        return scale, ""

    def has_weight_decay(self, name: str, dimensions: int) -> bool:
        """Whether a parameter is pulled towards 0."""
        if dimensions == 1 or name.endswith(".bias"):
            return False
        return self.no_weight_decay_by_shape or not any(part in name for part in NO_WEIGHT_DECAY)


@OPTIMIZER_BUILDERS.register_module()
class CustomLayerDecayOptimizerConstructor(DefaultOptimizerConstructor):
    """Builds an optimizer with one group of parameters per layer, with and without weight decay.

    In a config:

        optimizer = dict(
            type="AdamW", lr=1e-4, weight_decay=0.05,
            constructor="CustomLayerDecayOptimizerConstructor",
            paramwise_cfg=dict(num_layers=30, layer_decay_rate=0.94, depths=[4, 4, 18, 4]))

    The keys of `paramwise_cfg` are the attributes of `LayerDecay`.
    """

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, **_: Any) -> None:
        """Fills `params` with groups `layer_K_decay` and `layer_K_no_decay`, in the model's order.

        Raises:
            ValueError: `paramwise_cfg` is wrong or does not fit the model.
        """
        settings = dict(self.paramwise_cfg)
        if hasattr(module, "img_backbone") and not hasattr(module, "backbone"):
            settings.setdefault("backbone_name", "img_backbone")
        rule = LayerDecay.from_config(settings)
        groups: dict[str, dict[str, Any]] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            decays = rule.has_weight_decay(name, parameter.ndim)
            scale, ending = rule.factor(name)
            key = f"layer_{rule.layer(name)}_{'decay' if decays else 'no_decay'}{ending}"
            if key not in groups:
                groups[key] = {
                    "params": [],
                    "param_names": [],
                    "group_name": key,
                    "lr_scale": scale,
                    "lr": scale * self.base_lr,
                    "weight_decay": (self.base_wd or 0.0) if decays else 0.0,
                }
            groups[key]["params"].append(parameter)
            groups[key]["param_names"].append(name)
        params.extend(groups.values())
        used = [name for name in FIXES if getattr(rule, name)]
        logger.info(
            "layer decay %s over %d layers: %d groups of parameters, learning rates %.3g to %.3g%s",
            rule.layer_decay_rate,
            rule.num_layers,
            len(groups),
            min(group["lr"] for group in groups.values()),
            max(group["lr"] for group in groups.values()),
            f"; not the published rules: {', '.join(used)}" if used else "",
        )
