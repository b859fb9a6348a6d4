"""The Triton kernels as operators: block sizes, launches, registration.

    dcnv3_triton, dcnv3_fused_triton   always Triton, on any device that it supports
    dcnv3, dcnv3_fused                 Triton on CUDA tensors, where no CUDA kernels are compiled

Triton itself is imported by the first launch. With TRITON_INTERPRET=1 in the environment before
that, the kernels run in Triton's interpreter, on CPU tensors too: slow, and for tests.

grad_input is summed with atomic additions, whose order varies from run to run. Under
`torch.use_deterministic_algorithms(True)` the backward pass runs in plain PyTorch instead: slower
and with more memory, but the same bits every time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import registration
from .backends import extension, has_kernel, is_triton_interpreted
from .geometry import Geometry, accumulation_dtype

INDEX_LIMIT = 2**31 - 2**20  # room for the rows and channels past the end of the last block


class _Layout(NamedTuple):
    """Steps, in elements, from one output pixel and one group to the next."""

    offset_pixel: int
    offset_group: int
    mask_pixel: int
    mask_group: int


class Blocks(NamedTuple):
    """Tile of one program, and its size in warps."""

    rows: int
    channels: int
    points: int
    num_warps: int


def _next_power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def choose_blocks(
    rows: int, geometry: Geometry, dtype: torch.dtype, backward: bool, interpreted: bool
) -> Blocks:
    """Tile sizes: 16 sums per thread for 4 warps; half as many backward, or where rows are few.

    A tile holds at most 64 channels of a group. The softmax's backward pass keeps one number per
    row and point, which limits the rows of very large kernels.
    """
    channels = min(_next_power_of_two(geometry.group_channels), 64)
    points = _next_power_of_two(geometry.points)
    if interpreted:  # a program costs the same whatever its size
        limit = 2**18 // max(channels, points)
        return Blocks(min(_next_power_of_two(rows), max(limit, 1)), channels, points, 4)
    few = rows * channels < 2**20
    numbers = 1024 if backward or few or dtype == torch.float64 else 2048
    block = max(1, min(numbers // channels, 8192 // points, 128))
    return Blocks(block, channels, points, max(1, min(4, block * channels // 256)))


def _launch(
    kernel_name: str,
    tensors: tuple[Tensor, ...],
    input: Tensor,
    layout: _Layout,
    geometry: Geometry,
    softmax: bool,
) -> None:
    """Runs a kernel over all output pixels and groups."""
    from . import triton_kernels

    batch, height, width, _ = input.shape
    out_height, out_width = geometry.output_size(height, width)
    rows = batch * out_height * out_width * geometry.group
    if rows == 0:
        return
    backward = kernel_name == "backward_kernel"
    blocks = choose_blocks(rows, geometry, input.dtype, backward, is_triton_interpreted())
    programs = -(-rows // blocks.rows)
    if not backward:  # which takes the channels in turns
        programs *= -(-geometry.group_channels // blocks.channels)
    options = {"BLOCK_POINTS": blocks.points} if backward else {}
    elements = max(tensor.numel() for tensor in tensors)
    language = triton_kernels.tl
    on_gpu = input.device.type == "cuda"
    with torch.cuda.device(input.device) if on_gpu else contextlib.nullcontext():
        getattr(triton_kernels, kernel_name)[(programs,)](
            *tensors,
            rows,
            height,
            width,
            out_height * out_width,
            out_width,
            geometry.group,
            *layout,
            *geometry[:8],
            geometry.group_channels,
            geometry.offset_scale,
            int(geometry.remove_center),
            softmax and geometry.points > 0,
            language.float64 if input.dtype == torch.float64 else language.float32,
            elements > INDEX_LIMIT,
            blocks.rows,
            blocks.channels,
            num_warps=blocks.num_warps,
            **options,
        )


def _check_grad_output(grad_output: Tensor, input: Tensor, geometry: Geometry) -> None:
    batch, height, width, channels = input.shape
    expected = (batch, *geometry.output_size(height, width), channels)
    if tuple(grad_output.shape) != expected:
        raise ValueError(
            f"dcnv3: grad_output must be (N, Ho, Wo, C) = {expected}, "
            f"got {tuple(grad_output.shape)}"
        )
    if grad_output.dtype != input.dtype or grad_output.device != input.device:
        raise TypeError(
            f"dcnv3: grad_output must be {input.dtype} on {input.device} like input, "
            f"got {grad_output.dtype} on {grad_output.device}"
        )


def _forward(
    input: Tensor, offset: Tensor, mask: Tensor, layout: _Layout, geometry: Geometry, softmax: bool
) -> Tensor:
    input = input.contiguous()
    batch, height, width, channels = input.shape
    output = input.new_empty((batch, *geometry.output_size(height, width), channels))
    tensors = (input, offset, mask, output)
    _launch("forward_kernel", tensors, input, layout, geometry, softmax)
    return output


def _backward(
    grad_output: Tensor,
    input: Tensor,
    points: tuple[Tensor, Tensor],
    grad_points: tuple[Tensor, Tensor],
    layout: _Layout,
    geometry: Geometry,
    softmax: bool,
) -> Tensor:
    """Fills `grad_points`, the gradients of offsets and masks, and returns that of the input."""
    _check_grad_output(grad_output, input, geometry)
    input, grad_output = input.contiguous(), grad_output.contiguous()
    sums = torch.zeros(input.shape, dtype=accumulation_dtype(input.dtype), device=input.device)
    tensors = (grad_output, input, *points, sums, *grad_points)
    _launch("backward_kernel", tensors, input, layout, geometry, softmax)
    return sums.to(input.dtype)


def _separate(geometry: Geometry) -> _Layout:
    per_pixel = geometry.group * geometry.points
    return _Layout(2 * per_pixel, 2 * geometry.points, per_pixel, geometry.points)


def _fused(geometry: Geometry, last: int, interleaved: bool) -> tuple[_Layout, int]:
    """The layout of `offset_mask`, and where its first mask lies."""
    points = geometry.points
    if interleaved:
        return _Layout(last, 3 * points, last, 3 * points), 2 * points
    return _Layout(last, 2 * points, last, points), 2 * geometry.group * points


def forward(input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> Tensor:
    """`dcnv3_reference` by the Triton kernel; without gradients."""
    layout = _separate(geometry)
    return _forward(input, offset.contiguous(), mask.contiguous(), layout, geometry, False)


def backward(
    grad_output: Tensor, input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    """`dcnv3_backward_reference` by the Triton kernel."""
    points = offset.contiguous(), mask.contiguous()
    gradients = torch.empty_like(points[0]), torch.empty_like(points[1])
    layout = _separate(geometry)
    grad_input = _backward(grad_output, input, points, gradients, layout, geometry, False)
    return grad_input, *gradients


def fused_forward(
    input: Tensor, offset_mask: Tensor, geometry: Geometry, softmax: bool, interleaved: bool
) -> Tensor:
    """`dcnv3_fused_reference` by the Triton kernel; without gradients."""
    layout, first_mask = _fused(geometry, offset_mask.shape[-1], interleaved)
    numbers = offset_mask.contiguous().view(-1)
    return _forward(input, numbers, numbers[first_mask:], layout, geometry, softmax)


def fused_backward(
    grad_output: Tensor,
    input: Tensor,
    offset_mask: Tensor,
    geometry: Geometry,
    softmax: bool,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    """`dcnv3_fused_backward_reference` by the Triton kernel."""
    last = offset_mask.shape[-1]
    layout, first_mask = _fused(geometry, last, interleaved)
    numbers = offset_mask.contiguous().view(-1)
    has_padding = last > 3 * geometry.group * geometry.points
    gradient = torch.zeros_like(numbers) if has_padding else torch.empty_like(numbers)
    points = numbers, numbers[first_mask:]
    grad_points = gradient, gradient[first_mask:]
    grad_input = _backward(grad_output, input, points, grad_points, layout, geometry, softmax)
    return grad_input, gradient.view(offset_mask.shape)


# --- registration ---------------------------------------------------------------------------------


def _backward_or_reference(kernel: Callable[..., Any], reference: Callable[..., Any]):
    """Plain PyTorch where autograd follows the backward pass, or the result must not vary."""

    def run(*arguments: Any) -> tuple[Tensor, ...]:
        followed = torch.is_grad_enabled() and any(
            isinstance(argument, Tensor) and argument.requires_grad for argument in arguments
        )
        if followed or torch.are_deterministic_algorithms_enabled():
            return reference(*arguments)
        return kernel(*arguments)

    return run


def _on_cuda(name: str) -> Callable[..., Any]:
    """The CUDA kernel of an operator: Triton if it works here, else plain PyTorch."""
    triton_name = name.replace("_backward", "") + "_triton"
    triton_name += "_backward" if name.endswith("_backward") else ""
    kernels = registration.any_device_kernels

    def run(*arguments: Any) -> Any:
        return kernels[triton_name if has_kernel("triton") else name](*arguments)

    return run


_is_default = extension is None or not extension.cuda_architectures


def _register() -> None:
    launches = {
        "dcnv3": (forward, backward),
        "dcnv3_fused": (fused_forward, fused_backward),
    }
    for operator in registration.OPERATORS:
        run_forward, run_backward = launches[operator.name]
        registration.register(
            operator._replace(
                name=f"{operator.name}_triton",
                forward=run_forward,
                backward=_backward_or_reference(run_backward, operator.backward),
            )
        )
        if _is_default:
            for name in (operator.name, f"{operator.name}_backward"):
                registration.library.impl(name, _on_cuda(name), "CUDA")


_register()


def _operator(name: str, input: Tensor) -> Callable[..., Tensor]:
    """The operator that runs Triton; the general one if it does, so that graphs stay portable."""
    is_general = _is_default and input.device.type == "cuda"
    return getattr(torch.ops.ops_dcnv3, name if is_general else f"{name}_triton")


def triton_dcnv3(input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> Tensor:
    """`dcnv3_reference` by the Triton kernels; differentiable."""
    return _operator("dcnv3", input)(input, offset, mask, *geometry)


def triton_dcnv3_fused(
    input: Tensor, offset_mask: Tensor, geometry: Geometry, softmax: bool, interleaved: bool
) -> Tensor:
    """`dcnv3_fused_reference` by the Triton kernels; differentiable."""
    operator = _operator("dcnv3_fused", input)
    return operator(input, offset_mask, *geometry, softmax, interleaved)
