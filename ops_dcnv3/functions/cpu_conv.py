"""Channels-last convolutions that torch.compile leaves as they are, for inference on the CPU.

Where Inductor sees a convolution it chooses the layout of everything around it, and around those of
InternImage it chooses badly: the compiled model was a quarter slower than the same graph without
that choice (torch 2.11, `layout_optimization`). An operator of ours is opaque to it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .context import is_compiled_inference, is_untouched
from .registration import autocast_dtype, library

_SCHEMA = (
    "conv2d(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, "
    "int groups) -> Tensor"
)


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    result = torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return result.contiguous(memory_format=torch.channels_last)  # as the fake says


def _conv2d_fake(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: list[int]) -> Tensor:
    result = torch.conv2d(x, weight, bias, *geometry)
    return torch.empty_like(result, memory_format=torch.channels_last)


if hasattr(torch.library, "register_fake"):  # torch >= 2.4
    library.define(_SCHEMA)
    library.impl("conv2d", _conv2d, "CPU")
    torch.library.register_fake("ops_dcnv3::conv2d", _conv2d_fake, lib=library)


def _is_plain_conv(layer: nn.Module) -> bool:
    return (
        is_untouched(layer, nn.Conv2d)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def apply_conv(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)` of a convolution, (N, C, H, W) in channels-last memory in and out."""
    if not _is_plain_conv(layer) or not is_compiled_inference(x, layer.weight):
        return layer(x)
    weight, bias = layer.weight, layer.bias
    dtype = autocast_dtype("cpu")
    if dtype is not None and torch.float64 not in (x.dtype, weight.dtype):
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return torch.ops.ops_dcnv3.conv2d(
        x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups
    )


def apply_head_conv(layers: nn.Module, x: Tensor) -> Tensor:
    """`layers(x)` of an `nn.Sequential` that begins with a convolution."""
    if not is_untouched(layers, nn.Sequential):
        return layers(x)
    conv, *others = layers
    x = apply_conv(conv, x)
    for layer in others:
        x = layer(x)
    return x
