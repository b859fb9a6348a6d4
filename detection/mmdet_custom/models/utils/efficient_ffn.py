"""A feed-forward network whose hidden layer is computed in slices (DINO with InternImage-G).

The hidden units of a two-layer network do not see each other, so its output is a sum over slices:

    out = x + sum_i fc2_i(act(fc1_i(x))) + bias

which is the plain network with rearranged weights. With gradient checkpointing only one slice's
activations exist at a time: a quarter of the memory of the hidden layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from mmcv.cnn import build_activation_layer
from mmcv.cnn.bricks.drop import build_dropout
from mmcv.cnn.bricks.registry import FEEDFORWARD_NETWORK
from mmcv.runner import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["EfficientFFN"]

NUM_SLICES = 4


@FEEDFORWARD_NETWORK.register_module()
class EfficientFFN(BaseModule):
    """Two linear layers with an activation between them, hidden layer in 4 slices.

    Takes the arguments of mmcv's ``FFN``; the parameters have the names of the released DINO-G.

    Args:
        embed_dims: C, input and output width.
        feedforward_channels: hidden width, a multiple of 4.
        num_fcs: 2, the only number possible.
        act_cfg: activation, ``dict(type='ReLU', inplace=True)`` unless given.
        ffn_drop: dropout after the activation and after the sum.
        dropout_layer: config of a layer applied to the result before the identity is added.
        add_identity: add the input (or ``identity``) to the output.
        use_checkpoint: recompute every slice in the backward pass instead of storing it.
        init_cfg: of ``BaseModule``.

    Raises:
        ValueError: for widths that cannot be split or another ``num_fcs``.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        feedforward_channels: int = 1024,
        num_fcs: int = 2,
        act_cfg: Mapping[str, object] | None = None,
        ffn_drop: float = 0.0,
        dropout_layer: Mapping[str, object] | None = None,
        add_identity: bool = True,
        use_checkpoint: bool = False,
        init_cfg: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_fcs != 2:
            raise ValueError(f"EfficientFFN: num_fcs must be 2, got {num_fcs}")
        if feedforward_channels % NUM_SLICES:
            raise ValueError(
                f"EfficientFFN: feedforward_channels must be a multiple of {NUM_SLICES}, "
                f"got {feedforward_channels}"
            )
        self.embed_dims = embed_dims
        self.feedforward_channels = feedforward_channels
        self.add_identity = add_identity
        self.use_checkpoint = use_checkpoint
        self.activate = build_activation_layer(dict(act_cfg or {"type": "ReLU", "inplace": True}))
        width = feedforward_channels // NUM_SLICES
        for i in range(NUM_SLICES):
            setattr(self, f"fc1_{i}", nn.Linear(embed_dims, width))
        for i in range(NUM_SLICES):
            setattr(self, f"fc2_{i}", nn.Linear(width, embed_dims, bias=False))
        self.fc2_bias = nn.Parameter(torch.zeros(embed_dims))
        self.drop = nn.Dropout(ffn_drop)
        self.dropout_layer = build_dropout(dict(dropout_layer)) if dropout_layer else nn.Identity()

    def init_weights(self) -> None:
        """Xavier uniform with the fans of the unsliced layers; biases are left as they are."""
        bound = math.sqrt(6 / (self.embed_dims + self.feedforward_channels))
        for i in range(NUM_SLICES):
            for layer in (getattr(self, f"fc1_{i}"), getattr(self, f"fc2_{i}")):
                nn.init.uniform_(layer.weight, -bound, bound)

    def run_slice(self, x: Tensor, index: int) -> Tensor:
        """The share of one slice of the hidden layer: (..., C) -> (..., C)."""
        hidden = self.drop(self.activate(getattr(self, f"fc1_{index}")(x)))
        return getattr(self, f"fc2_{index}")(hidden)

    def forward(self, x: Tensor, identity: Tensor | None = None) -> Tensor:
        """(..., C) -> (..., C); ``identity`` replaces ``x`` in the shortcut."""
        recompute = self.use_checkpoint and torch.is_grad_enabled()
        out: Tensor | None = None
        for i in range(NUM_SLICES):
            if recompute:
                part = checkpoint(self.run_slice, x, i, use_reentrant=False)
            else:
                part = self.run_slice(x, i)
            out = part if out is None else out + part
        out = self.dropout_layer(self.drop(out + self.fc2_bias))
        if not self.add_identity:
            return out
        return (x if identity is None else identity) + out
