"""A feed-forward layer with gradient checkpointing: `with_cp=True` in `ffn_cfgs`."""

from __future__ import annotations

from typing import Any

import torch
from mmcv.cnn.bricks.registry import FEEDFORWARD_NETWORK
from mmcv.cnn.bricks.transformer import FFN
from torch import Tensor
from torch.utils.checkpoint import checkpoint


@FEEDFORWARD_NETWORK.register_module()
class CheckpointedFFN(FFN):
    """mmcv's FFN that is recomputed in the backward pass instead of keeping its activations."""

    def forward(self, x: Tensor, identity: Tensor | None = None) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x, identity)
        return checkpoint(super().forward, x, identity, use_reentrant=False)


def use_checkpointed_ffn(config: Any) -> None:
    """Turns every `ffn_cfgs` with `with_cp=True` in ``config`` into a CheckpointedFFN, in place.

    mmcv's FFN takes no such option and would ignore it.
    """
    if isinstance(config, (list, tuple)):
        for item in config:
            use_checkpointed_ffn(item)
    elif isinstance(config, dict):
        ffn = config.get("ffn_cfgs")
        for options in ffn if isinstance(ffn, (list, tuple)) else [ffn]:
            is_plain = isinstance(options, dict) and options.get("type", "FFN") == "FFN"
            if is_plain and options.pop("with_cp", False):
                options["type"] = "CheckpointedFFN"
        for item in config.values():
            use_checkpointed_ffn(item)
