"""The channel mapper behind a composite backbone (CBNet, arXiv 2107.00420).

In training both backbones are supervised, so both go through the (shared) neck; at test time only
the lead backbone does. In a configuration it stands in a list, `neck=[dict(...)]`, as in the
released ones: mmcv builds a `Sequential` of it, and its keys begin with `neck.0.`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.models.builder import NECKS
from mmdet.models.necks import ChannelMapper
from torch import Tensor

Maps = tuple[Tensor, ...]


@NECKS.register_module()
class CBChannelMapper(ChannelMapper):
    """mmdet's ChannelMapper over the features of several backbones.

    Args:
        cb_idx: the backbone whose features are used at test time.
        **mapper: arguments of :class:`mmdet.models.necks.ChannelMapper`.
    """

    def __init__(self, *args: Any, cb_idx: int = 1, **mapper: Any) -> None:
        super().__init__(*args, **mapper)
        self.cb_idx = cb_idx

    def forward(self, inputs: Sequence[Sequence[Tensor]]) -> list[Maps] | Maps:
        """Features per backbone -> in training the maps per backbone, else those of `cb_idx`."""
        if self.training:
            return [super(CBChannelMapper, self).forward(maps) for maps in inputs]
        return super().forward(inputs[self.cb_idx])
