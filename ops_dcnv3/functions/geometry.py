"""Sizes and checks of the DCNv3 operator that every backend shares.

The axes are named once here and mean the same everywhere in the package:

    N       batch
    H, W    input height and width (pixels)
    Ho, Wo  output height and width (pixels)
    G       group
    D       group_channels; the input has C = G * D channels, channel index g * D + d
    P       sampling points of one output pixel and group: kernel_h * kernel_w - remove_center
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FLOATING_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Geometry(NamedTuple):
    """The integer and float arguments of one DCNv3 call, in the operator's schema order."""

    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int
    group: int
    group_channels: int
    offset_scale: float
    remove_center: bool

    @property
    def points(self) -> int:
        """Sampling points P of one output pixel and group."""
        return self.kernel_h * self.kernel_w - int(self.remove_center)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Output (Ho, Wo) for an input of `height` x `width` pixels."""
        return (
            (height + 2 * self.pad_h - (self.dilation_h * (self.kernel_h - 1) + 1)) // self.stride_h
            + 1,
            (width + 2 * self.pad_w - (self.dilation_w * (self.kernel_w - 1) + 1)) // self.stride_w
            + 1,
        )


def check_geometry(geometry: Geometry) -> None:
    """Raises ValueError if an argument has no meaning, whatever the tensors are."""
    at_least = {
        "kernel_h": 1,
        "kernel_w": 1,
        "stride_h": 1,
        "stride_w": 1,
        "pad_h": 0,
        "pad_w": 0,
        "dilation_h": 1,
        "dilation_w": 1,
        "group": 1,
        "group_channels": 1,
    }
    for name, lowest in at_least.items():
        value = getattr(geometry, name)
        if value < lowest:
            raise ValueError(f"dcnv3: {name} must be at least {lowest}, got {value}")


def _check_tensors(named: dict[str, Tensor]) -> None:
    """Checks rank, dtype and device of the tensors of one call, `input` among them."""
    device = named["input"].device
    for name, tensor in named.items():
        if tensor.dim() != 4:
            hint = " (channels last)" if name == "input" else ""
            raise ValueError(
                f"dcnv3: {name} must have 4 dimensions{hint}, "
                f"got {tensor.dim()} with shape {tuple(tensor.shape)}"
            )
        if tensor.dtype not in FLOATING_DTYPES:
            raise TypeError(
                f"dcnv3: {name} must be float64, float32, float16 or bfloat16, got {tensor.dtype}"
            )
        if tensor.device != device:
            raise ValueError(
                f"dcnv3: {name} is on {tensor.device} and input on {device}; "
                "move all tensors to one device"
            )


def _check_input(input: Tensor, geometry: Geometry) -> tuple[int, int, int]:
    """Checks the channels and the size of `input`; returns (N, Ho, Wo)."""
    batch, height, width, channels = input.shape
    expected_channels = geometry.group * geometry.group_channels
    if channels != expected_channels:
        message = (
            f"dcnv3: input must be (N, H, W, group * group_channels) with "
            f"{geometry.group} * {geometry.group_channels} = {expected_channels} channels, "
            f"got shape {tuple(input.shape)}"
        )
        if input.shape[1] == expected_channels:
            message += "; this looks like NCHW: pass input.permute(0, 2, 3, 1)"
        raise ValueError(message)
    out_h, out_w = geometry.output_size(height, width)
    if height < 1 or width < 1 or out_h < 1 or out_w < 1:
        raise ValueError(
            f"dcnv3: an input of {height} x {width} pixels with kernel "
            f"{geometry.kernel_h} x {geometry.kernel_w}, padding {geometry.pad_h}, "
            f"{geometry.pad_w} and dilation {geometry.dilation_h}, {geometry.dilation_w} has no "
            f"output pixel (Ho, Wo = {out_h}, {out_w}); enlarge the input or the padding"
        )
    return batch, out_h, out_w


def check_shapes(input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> None:
    """Checks the three tensors of `dcnv3` against each other and against the geometry.

    Raises:
        TypeError: a tensor is not floating point (float64, float32, float16, bfloat16).
        ValueError: a wrong rank, size, or tensors on different devices. The message names the
            argument, what was got and what was expected.
    """
    _check_tensors({"input": input, "offset": offset, "mask": mask})
    pixels = _check_input(input, geometry)
    per_pixel = geometry.group * geometry.points
    for name, tensor, last, meaning in (
        ("offset", offset, 2 * per_pixel, "group * P * 2"),
        ("mask", mask, per_pixel, "group * P"),
    ):
        expected = (*pixels, last)
        if tuple(tensor.shape) != expected:
            raise ValueError(
                f"dcnv3: {name} must be (N, Ho, Wo, {meaning}) = {expected} with "
                f"P = kernel_h * kernel_w - remove_center = {geometry.points}, "
                f"got {tuple(tensor.shape)}"
            )


def check_fused_shapes(input: Tensor, offset_mask: Tensor, geometry: Geometry) -> None:
    """Checks the two tensors of `dcnv3_fused`; raises like `check_shapes`."""
    _check_tensors({"input": input, "offset_mask": offset_mask})
    pixels = _check_input(input, geometry)
    needed = 3 * geometry.group * geometry.points
    if tuple(offset_mask.shape[:3]) != pixels or offset_mask.shape[-1] < needed:
        raise ValueError(
            f"dcnv3: offset_mask must be (N, Ho, Wo, group * P * 3 or more) = {(*pixels, needed)} "
            f"or more with P = kernel_h * kernel_w - remove_center = {geometry.points}, "
            f"got {tuple(offset_mask.shape)}"
        )


def check_dtypes(**tensors: Tensor) -> None:
    """Raises TypeError if the named tensors are not of one dtype."""
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        *first, last = tensors
        raise TypeError(
            f"dcnv3: {', '.join(first)} and {last} must have one dtype, got "
            f"{', '.join(str(tensor.dtype) for tensor in tensors.values())}; "
            "convert them with .to(input.dtype)"
        )


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64; everything narrower computes in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
