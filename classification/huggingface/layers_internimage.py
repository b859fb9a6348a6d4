"""The layers below the trunk: DCNv3 and DCNv4 from `ops_dcnv3` or in plain PyTorch, and two more.

`ops_dcnv3` brings compiled kernels for CPU and GPU. Without it the operator's definition in plain
PyTorch runs: the same numbers up to rounding, several times slower, with more memory.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

try:
    from ops_dcnv3.functions import apply_conv, apply_head_conv, apply_linear, is_untouched
    from ops_dcnv3.modules import DCNv3, DCNv4
except ImportError as error:  # not installed, or another package of that name
    from .dcnv3_internimage import DCNv3
    from .dcnv4_internimage import DCNv4
    from .plain_internimage import apply_conv, apply_head_conv, apply_linear, is_untouched

    logging.getLogger(__name__).warning(
        "InternImage runs its operator in plain PyTorch, several times slower than with the "
        "package ops_dcnv3 (%s)",
        error,
    )

__all__ = [
    "DCNv3",
    "DCNv4",
    "DropPath",
    "Mlp",
    "apply_conv",
    "apply_head_conv",
    "apply_linear",
    "is_untouched",
]


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, drops a residual branch per sample."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0.0:
            return x
        keep = 1.0 - self.drop_prob
        samples = torch.full((x.shape[0],) + (1,) * (x.dim() - 1), keep, device=x.device)
        return x * (samples.bernoulli() / keep).to(x.dtype)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"


class Mlp(nn.Module):
    """Two linear layers with an activation between them, on the last axis.

    Args:
        in_features: width of input and output.
        hidden_features: width between the layers.
        act_layer: class of the activation.
        bias: whether the first and the second layer have a bias.
        drop: dropout after each layer.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        act_layer: type[nn.Module] = nn.GELU,
        bias: tuple[bool, bool] = (True, True),
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features, bias=bias[0])
        self.act = act_layer()
        self.drop1 = nn.Dropout(drop)
        self.norm = nn.Identity()
        self.fc2 = nn.Linear(hidden_features, in_features, bias=bias[1])
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(self.act(self.fc1(x)))
        return self.drop2(self.fc2(self.norm(x)))
