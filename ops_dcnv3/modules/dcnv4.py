"""The DCNv4 layer: offsets and weights from one linear map of the input, then the operator.

DCNv4 (arXiv 2401.06197, section 3.1) drops DCNv3's softmax, so that the weights of a group's points
are unbounded, as those of a convolution are. It runs on DCNv3's kernels.
"""

from __future__ import annotations

import difflib
import inspect
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functions import apply_conv, apply_linear, choose_backend, dcnv4
from ..functions.registration import cast_for_autocast


class DCNv4(nn.Module):
    """Deformable convolution v4 as a layer on (N, H, W, C) maps or (N, H*W, C) tokens.

    The arguments, their defaults and the keys of the state dict are those of the package DCNv4.
    Limits of that package's kernels do not exist here: any kernel size, any channels per group,
    any batch size, CPU as well as GPU.

    Args:
        channels: input and output channels C, a multiple of `group`.
        kernel_size: side of the sampling grid.
        stride: must be 1: offsets are predicted on the input's own grid.
        pad: must be dilation * (kernel_size - 1) / 2 ("same").
        dilation: spacing of the sampling grid in pixels.
        group: number of groups G.
        offset_scale: multiplies offsets and grid.
        dw_kernel_size: side of a depthwise convolution before the linear map that predicts offsets
            and weights, odd; None for no such convolution.
        center_feature_scale: mix the undeformed features in, with a learned gate per group.
        remove_center: sample without the grid's centre point.
        output_bias: whether `output_proj` has a bias.
        without_pointwise: leave out `value_proj` and `output_proj`.
        backend: forces a backend of the operator; None chooses (see `ops_dcnv3.functions.dcnv3`).
        **unknown: refused.

    Raises:
        TypeError: an unknown keyword argument, naming the nearest known one.
        ValueError: an argument that is out of range, naming it and what to pass.

    State-dict keys: `offset_mask`, `value_proj`, `output_proj`, `offset_mask_dw` with
    `dw_kernel_size`, and `center_feature_scale_proj_*` with `center_feature_scale`.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        dw_kernel_size: int | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        output_bias: bool = True,
        without_pointwise: bool = False,
        backend: str | None = None,
        **unknown: object,
    ) -> None:
        super().__init__()
        _refuse_unknown(unknown)
        _check_arguments(channels, kernel_size, stride, pad, dilation, group, dw_kernel_size)
        if remove_center and kernel_size == 1:
            raise ValueError("remove_center with kernel_size=1 leaves no sampling point")
        if backend is not None:
            choose_backend("cpu" if backend == "cpp" else "cuda", backend)  # raises if not there
        self.channels = channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.pad = pad
        self.dilation = dilation
        self.group = group
        self.group_channels = channels // group
        self.offset_scale = offset_scale
        self.dw_kernel_size = dw_kernel_size
        self.center_feature_scale = center_feature_scale
        self.remove_center = bool(remove_center)
        self.without_pointwise = without_pointwise
        self.backend = backend

        values = group * (kernel_size**2 - int(self.remove_center)) * 3  # G*P*3
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.zeros(group, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(group))
        if dw_kernel_size is not None:
            self.offset_mask_dw = nn.Conv2d(
                channels,
                channels,
                dw_kernel_size,
                padding=(dw_kernel_size - 1) // 2,
                groups=channels,
            ).to(memory_format=torch.channels_last)  # as its input is
        self.offset_mask = nn.Linear(channels, math.ceil(values / 8) * 8)
        if not without_pointwise:
            self.value_proj = nn.Linear(channels, channels)
            self.output_proj = nn.Linear(channels, channels, bias=output_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero offsets and weights, so that the operator's first output is 0; Xavier projections.

        The depthwise convolution keeps PyTorch's initialisation.
        """
        nn.init.zeros_(self.offset_mask.weight)
        nn.init.zeros_(self.offset_mask.bias)
        if not self.without_pointwise:
            for linear in (self.value_proj, self.output_proj):
                nn.init.xavier_uniform_(linear.weight)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Applies the layer.

        Args:
            x: (N, H, W, C), or tokens (N, H*W, C) in row-major order.
            shape: (H, W) of tokens; None for a square map.

        Returns:
            A tensor of the shape of `x`.

        Raises:
            ValueError: another shape than that, or tokens that do not fill (H, W).
        """
        if x.dim() not in (3, 4) or x.shape[-1] != self.channels:
            hint = ""
            if x.dim() == 4 and x.shape[1] == self.channels:
                hint = "; this looks like NCHW: pass x.permute(0, 2, 3, 1)"
            raise ValueError(
                f"DCNv4 expects (N, H, W, {self.channels}) or (N, H*W, {self.channels}), "
                f"got {tuple(x.shape)}{hint}"
            )
        if x.dim() == 3:
            return self._forward_map(x.unflatten(1, _map_size(x.shape[1], shape))).flatten(1, 2)
        if shape is not None and tuple(shape) != tuple(x.shape[1:3]):
            raise ValueError(f"shape={tuple(shape)} contradicts x of shape {tuple(x.shape)}")
        return self._forward_map(x)

    def _forward_map(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        (x,) = cast_for_autocast(x)  # once for both branches
        value = x if self.without_pointwise else apply_linear(self.value_proj, x)
        features = x
        if self.dw_kernel_size is not None:
            features = apply_conv(self.offset_mask_dw, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        output = dcnv4(
            value,
            apply_linear(self.offset_mask, features),  # (N, H, W, G*P*3 and padding)
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
                output, self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias
            ).sigmoid()  # (N, H, W, G)
            by_group = (self.group, self.group_channels)
            output = output.unflatten(-1, by_group)  # (N, H, W, G, D)
            value = value.to(output.dtype).unflatten(-1, by_group)
            output = torch.lerp(output, value, gate.unsqueeze(-1)).flatten(-2)  # (N, H, W, C)
        return output if self.without_pointwise else apply_linear(self.output_proj, output)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, group={self.group}, "
            f"offset_scale={self.offset_scale}, remove_center={self.remove_center}, "
            f"backend={self.backend or 'auto'}"
        )


def _map_size(length: int, shape: tuple[int, int] | None) -> tuple[int, int]:
    """(H, W) of `length` tokens."""
    if shape is None:
        side = int(length**0.5 + 0.5)  # not math.isqrt, which torch.compile cannot trace
        if side * side != length:
            raise ValueError(
                f"DCNv4 takes tokens without a shape for a square map, and {length} tokens do not "
                "fill one; pass shape=(H, W)"
            )
        return side, side
    height, width = shape
    if height * width != length:
        raise ValueError(
            f"shape=({height}, {width}) has {height * width} pixels, x has {length} tokens"
        )
    return height, width


def _refuse_unknown(unknown: dict[str, object]) -> None:
    """Raises TypeError for keyword arguments that DCNv4 does not have."""
    known = [name for name in inspect.signature(DCNv4).parameters if name != "unknown"]
    for name in unknown:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TypeError(f"DCNv4 has no argument {name!r}{hint} (it has {', '.join(known)})")


def _check_arguments(
    channels: int,
    kernel_size: int,
    stride: int,
    pad: int,
    dilation: int,
    group: int,
    dw_kernel_size: int | None,
) -> None:
    """Raises ValueError for sizes that a layer which keeps height and width cannot have."""
    if group < 1 or channels % group:
        raise ValueError(f"channels must be a multiple of group, got {channels} and {group}")
    if kernel_size < 1:
        raise ValueError(f"kernel_size must be at least 1, got {kernel_size}")
    if dw_kernel_size is not None and (dw_kernel_size < 1 or dw_kernel_size % 2 == 0):
        raise ValueError(
            f"dw_kernel_size must be odd, or None for no depthwise convolution, got "
            f"{dw_kernel_size}: an even kernel has no centre, so the layer cannot keep the "
            "input's height and width"
        )
    if stride != 1 or 2 * pad != dilation * (kernel_size - 1):
        raise ValueError(
            "the layer predicts offsets on the input's own grid, so it needs stride=1 and "
            f"pad=dilation*(kernel_size-1)/2={dilation * (kernel_size - 1) / 2:g}, got "
            f"stride={stride} and pad={pad}; for other geometries call "
            "ops_dcnv3.functions.dcnv4 with an offset_mask of your own"
        )
