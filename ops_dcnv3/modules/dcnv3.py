"""The DCNv3 layer: offsets and masks from a depthwise convolution, then the operator.

InternImage (arXiv 2211.05778), section 3.1: weights shared among the points of a group (the
pointwise `input_proj` / `output_proj` pair), several groups, and modulation normalised by a softmax
over the points of a group.
"""

from __future__ import annotations

import difflib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functions import (
    apply_head_conv,
    apply_linear,
    choose_backend,
    dcnv3_fused,
    is_untouched,
    linear,
)
from ..functions.registration import cast_for_autocast

PRODUCT_COLUMNS = 8  # matrix products slow down where the width is no multiple of this


class ToChannelsLast(nn.Module):
    """(N, C, H, W) -> (N, H, W, C), without copying."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


_ACTIVATIONS = {"GELU": nn.GELU, "ReLU": nn.ReLU, "SiLU": nn.SiLU}
_NORMS = ("LN", "BN")


def _choose(name: str, known: object, argument: str) -> str:
    names = list(known)
    if name in names:
        return name
    by_lower = {known_name.lower(): known_name for known_name in names}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.3)
    hint = f"; did you mean {by_lower[near[0]]!r}?" if near else ""
    raise ValueError(f"unknown {argument} {name!r}{hint} (one of {', '.join(names)})")


def _norm_after_conv(channels: int, norm_layer: str) -> nn.Sequential:
    """Norm between (N, C, H, W) and (N, H, W, C); its index fixes the state_dict keys."""
    if _choose(norm_layer, _NORMS, "norm_layer") == "LN":
        return nn.Sequential(ToChannelsLast(), nn.LayerNorm(channels, eps=1e-6))
    return nn.Sequential(nn.BatchNorm2d(channels), ToChannelsLast())


class DCNv3(nn.Module):
    """Deformable convolution v3 as a drop-in layer on (N, H, W, C) tensors.

    Args:
        channels: input and output channels C, a multiple of `group`.
        kernel_size: side of the sampling grid, odd.
        dw_kernel_size: side of the depthwise convolution that predicts offsets and masks, odd;
            None takes `kernel_size`.
        stride: must be 1: offsets are predicted on the input's own grid.
        pad: must be dilation * (kernel_size - 1) / 2 ("same").
        dilation: spacing of the sampling grid in pixels.
        group: number of groups; 16 channels per group in InternImage-T to -XL.
        offset_scale: multiplies offsets and grid.
        act_layer: 'GELU', 'ReLU' or 'SiLU', after the depthwise convolution.
        norm_layer: 'LN' or 'BN', after the depthwise convolution.
        center_feature_scale: mix the undeformed features in, with a learned gate per group.
        remove_center: sample without the grid's centre point.
        backend: forces a backend of the operator; None chooses (see `ops_dcnv3.functions.dcnv3`).

    Raises:
        ValueError: an argument that is out of range, naming it and what to pass.

    State-dict keys are those of the released checkpoints: `dw_conv`, `offset`, `mask`,
    `input_proj`, `output_proj` and, with `center_feature_scale`, `center_feature_scale_proj_*`.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        dw_kernel_size: int | None = None,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        center_feature_scale: bool = False,
        remove_center: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if group < 1 or channels % group:
            raise ValueError(f"channels must be a multiple of group, got {channels} and {group}")
        dw_kernel_size = kernel_size if dw_kernel_size is None else dw_kernel_size
        for name, size in (("kernel_size", kernel_size), ("dw_kernel_size", dw_kernel_size)):
            if size < 1 or size % 2 == 0:
                raise ValueError(
                    f"{name} must be odd, got {size}: an even kernel has no centre, so the "
                    "layer cannot keep the input's height and width"
                )
        if remove_center and kernel_size == 1:
            raise ValueError("remove_center with kernel_size=1 leaves no sampling point")
        if stride != 1 or 2 * pad != dilation * (kernel_size - 1):
            raise ValueError(
                "the layer predicts offsets on the input's own grid, so it needs stride=1 and "
                f"pad=dilation*(kernel_size-1)/2={dilation * (kernel_size - 1) // 2}, "
                f"got stride={stride} and pad={pad}; for other geometries call "
                "ops_dcnv3.functions.dcnv3 with offsets of your own"
            )
        if backend is not None:
            choose_backend("cpu" if backend == "cpp" else "cuda", backend)  # raises if not there
        self.channels = channels
        self.kernel_size = kernel_size
        self.dw_kernel_size = dw_kernel_size
        self.stride = stride
        self.pad = pad
        self.dilation = dilation
        self.group = group
        self.group_channels = channels // group
        self.offset_scale = offset_scale
        self.center_feature_scale = center_feature_scale
        self.remove_center = bool(remove_center)
        self.backend = backend

        points = group * (kernel_size**2 - int(self.remove_center))  # G * P
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.zeros(group, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(group))
        self.dw_conv = nn.Sequential(
            nn.Conv2d(
                channels,
                channels,
                dw_kernel_size,
                padding=(dw_kernel_size - 1) // 2,
                groups=channels,
            ),
            _norm_after_conv(channels, norm_layer),
            _ACTIVATIONS[_choose(act_layer, _ACTIVATIONS, "act_layer")](),
        )
        self.offset = nn.Linear(channels, points * 2)
        self.mask = nn.Linear(channels, points)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.reset_parameters()
        self.to(memory_format=torch.channels_last)  # the depthwise weights; the input is that, too

    def reset_parameters(self) -> None:
        """Zero offsets and equal masks (an ordinary convolution's grid), Xavier projections."""
        for layer in (self.offset, self.mask):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.input_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer.

        Args:
            x: (N, H, W, C), channels last.

        Returns:
            (N, H, W, C).
        """
        if x.dim() != 4 or x.shape[-1] != self.channels:
            hint = ""
            if x.dim() == 4 and x.shape[1] == self.channels:
                hint = "; this looks like NCHW: pass x.permute(0, 2, 3, 1)"
            raise ValueError(
                f"DCNv3 expects (N, H, W, {self.channels}), got {tuple(x.shape)}{hint}"
            )
        (x,) = cast_for_autocast(x)  # once for both branches
        value = apply_linear(self.input_proj, x)
        features = apply_head_conv(self.dw_conv, x.permute(0, 3, 1, 2))  # (N, H, W, C)
        output = dcnv3_fused(
            value,
            self._offset_and_mask(features),
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.pad,
            dilation=self.dilation,
            group=self.group,
            offset_scale=self.offset_scale,
            remove_center=self.remove_center,
            backend=self.backend,
        )
        if self.center_feature_scale:
            gate = F.linear(
                features, self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias
            ).sigmoid()  # (N, H, W, G)
            by_group = (self.group, self.group_channels)
            output, value = output.unflatten(-1, by_group), value.unflatten(-1, by_group)
            output = torch.lerp(output, value, gate.unsqueeze(-1)).flatten(-2)  # (N, H, W, C)
        return apply_linear(self.output_proj, output)

    def _offset_and_mask(self, features: Tensor) -> Tensor:
        """Offsets and mask logits in one tensor: (N, H, W, C) -> (N, H, W, G*P*3 + padding).

        One matrix product with the weights of both layers, which stay apart as parameters. Where
        somebody has replaced or hooked a layer (adapters, quantisation, partitioned parameters),
        the layers are called.
        """
        layers = (self.offset, self.mask)
        if not all(is_untouched(layer, nn.Linear) for layer in layers):
            return torch.cat([layer(features) for layer in layers], -1)
        width = sum(layer.out_features for layer in layers)
        padding = -width % PRODUCT_COLUMNS
        weight = torch.cat([layer.weight for layer in layers])
        bias = torch.cat([layer.bias for layer in layers])
        if padding:
            weight, bias = F.pad(weight, (0, 0, 0, padding)), F.pad(bias, (0, padding))
        return linear(features, weight, bias)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, group={self.group}, "
            f"offset_scale={self.offset_scale}, remove_center={self.remove_center}, "
            f"backend={self.backend or 'auto'}"
        )


class DCNv3_pytorch(DCNv3):
    """`DCNv3` on the plain-PyTorch backend."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        if kwargs.setdefault("backend", "pytorch") != "pytorch":
            raise ValueError(f"DCNv3_pytorch has backend 'pytorch', got {kwargs['backend']!r}")
        super().__init__(*args, **kwargs)
