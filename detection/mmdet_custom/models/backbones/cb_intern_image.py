"""CBInternImage: two InternImage trunks in a row (composite backbone, CBNet, arXiv 2107.00420).

The first trunk (the assisting one) runs as usual. The second (the lead) starts from the first
one's stem, and every one of its levels gets, added to its input, what the first trunk found at this
level and all deeper ones ("dense higher-level composition"):

    lead input of level i += gamma_i * sum over j >= i of upsample(linear_ij(output j of trunk 0))

linear_ii is the identity, the others are 1x1 convolutions to the channels of level i, `upsample`
is nearest-neighbour to the size of level i. The gates gamma_i start at zero, so at first the lead
trunk does what a trunk alone would do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.runner import BaseModule
from mmdet.models.builder import BACKBONES
from torch import Tensor, nn

from .intern_image import InternImage as Trunk
from .registration import Pretrainable

_NEW = re.compile(r"cb_linears\.|cb_modules\.\d+\.gamma\d+$")
ALL_LEVELS = (0, 1, 2, 3)


class LeadTrunk(Trunk):
    """A trunk without stem whose levels also take the gated features of another trunk."""

    def __init__(self, first_gate: float, round_gates: bool, **trunk: Any) -> None:
        super().__init__(**trunk)
        self.round_gates = round_gates
        self.patch_embed = nn.Identity()
        for i, width in enumerate(self.level_channels):
            self.register_parameter(f"gamma{i}", nn.Parameter(torch.full((width,), first_gate)))

    def gate(self, level: int) -> Tensor:
        """(C_i,) the gate of a level, by default rounded to float16."""
        gamma = getattr(self, f"gamma{level}")
        return gamma.half().to(gamma.dtype) if self.round_gates else gamma


def run_levels(trunk: Trunk, x: Tensor, feeds: Sequence[Tensor] | None = None) -> list[Tensor]:
    """All levels' outputs, channels-last.

    Args:
        x: (N, H_0, W_0, C_0), the output of a stem.
        feeds: for every level (N, H_i, W_i, C_i), added to its input behind the trunk's gate.
    """
    outputs: list[Tensor] = []
    for i, level in enumerate(trunk.levels):
        if i > 0:
            x = trunk.levels[i - 1].downsample(x)
        if feeds is not None:
            x = x + trunk.gate(i) * feeds[i]
        x = level(x)  # (N, H_i, W_i, C_i)
        outputs.append(x)
    return outputs


@BACKBONES.register_module()
class CBInternImage(Pretrainable, BaseModule):
    """Two chained trunks: (N, 3, H, W) images -> [features of trunk 0, features of trunk 1].

    Both lists hold (N, C_i, H_i, W_i) maps of the levels `out_indices[1]`.

    Args:
        out_indices: the levels of each trunk. Both lists are cut to those of the second, as in the
            original; `out_indices[0]` must contain them.
        cb_zero_init: start the gates at zero, as all released models did; False: at one.
        round_gates: round the gates to float16 where they are used. The original does so in every
            precision, and the released weights were trained with it; their gradients are rounded
            with them. False for gates in the precision of the model.
        pretrained, init_cfg: a checkpoint of a single trunk starts both trunks, as the paper
            proposes; one of a composite is loaded as it is.
        **trunk: arguments of both trunks, see :class:`.intern_image.InternImage`.

    Raises:
        ValueError, TypeError: as the trunk; or `out_indices` is not two lists of levels.
    """

    def __init__(
        self,
        *,
        out_indices: Sequence[Sequence[int]] = (ALL_LEVELS, ALL_LEVELS),
        cb_zero_init: bool = True,
        round_gates: bool = True,
        pretrained: str | None = None,
        init_cfg: Any = None,
        **trunk: Any,
    ) -> None:
        super().__init__(pretrained=pretrained, init_cfg=init_cfg)
        nested = all(isinstance(indices, Sequence) for indices in out_indices)
        if not nested or len(out_indices) != 2 or not set(out_indices[1]) <= set(out_indices[0]):
            raise ValueError(
                "out_indices of CBInternImage must be two lists of levels, the second contained in "
                f"the first, such as [[0, 1, 2, 3], [1, 2, 3]]; got {out_indices!r}"
            )
        first = Trunk(**trunk, out_indices=out_indices[0])
        first_gate = 0.0 if cb_zero_init else 1.0
        lead = LeadTrunk(first_gate, round_gates, **trunk, out_indices=out_indices[1])
        self.cb_modules = nn.ModuleList([first, lead])
        self.channels, self.depths, self.groups = first.channels, first.depths, first.groups
        self.level_channels = widths = first.level_channels
        self.out_indices = lead.out_indices
        self.cb_linears = nn.ModuleList(
            nn.ModuleList(
                nn.Identity() if j == i else nn.Conv2d(widths[j], widths[i], 1)
                for j in range(i, len(widths))
            )
            for i in range(len(widths))
        )

    def forward(self, images: Tensor) -> list[list[Tensor]]:
        """(N, 3, H, W), any size -> two lists of (N, C_i, H_i, W_i)."""
        first, lead = self.cb_modules
        stem = first.pos_drop(first.patch_embed(images))  # (N, H/4, W/4, C)
        features = run_levels(first, stem)
        outputs = [features, run_levels(lead, stem, self.feeds(features))]
        return [
            [maps[i].permute(0, 3, 1, 2).contiguous() for i in self.out_indices] for maps in outputs
        ]

    def feeds(self, features: Sequence[Tensor]) -> list[Tensor]:
        """What each level of the lead trunk is given, channels-last (the sum in the header)."""
        maps = [x.permute(0, 3, 1, 2) for x in features]  # (N, C_i, H_i, W_i)
        feeds = []
        for i, linears in enumerate(self.cb_linears):
            size = maps[i].shape[2:]
            feed = maps[i]
            for linear, deeper in zip(linears[1:], maps[i + 1 :], strict=True):
                feed = feed + F.interpolate(linear(deeper), size=size, mode="nearest")
            feeds.append(feed.permute(0, 2, 3, 1))  # (N, H_i, W_i, C_i)
        return feeds

    def spread_pretrained(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a single trunk, given to both; those of a composite are returned as is."""
        if any(key.startswith("cb_modules.") for key in state):
            return state
        own = self.state_dict().keys()
        spread = {}
        for key, value in state.items():
            names = [name for i in range(2) if (name := f"cb_modules.{i}.{key}") in own]
            spread |= dict.fromkeys(names or [key], value)
        return spread

    def may_lack(self, key: str) -> bool:
        """Whether the checkpoint of a single trunk cannot have this weight."""
        return _NEW.match(key) is not None
