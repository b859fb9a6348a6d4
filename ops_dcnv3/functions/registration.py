"""The operator `torch.ops.ops_dcnv3.dcnv3` and its backward, registered with torch.library.

The schema, the fake (shape-only) implementation, autograd, autocast and the plain-PyTorch kernel
for every device are registered here, in Python, so the operator exists whether or not anything
was compiled. The compiled module adds kernels for the CPU and CUDA dispatch keys.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.utils.flop_counter
from torch import Tensor

from .geometry import Geometry, check_dtypes, check_geometry, check_shapes
from .reference import dcnv3_backward_reference, dcnv3_reference

_ARGUMENTS = (
    "int kernel_h, int kernel_w, int stride_h, int stride_w, int pad_h, int pad_w, "
    "int dilation_h, int dilation_w, int group, int group_channels, float offset_scale, "
    "bool remove_center"
)

# The compiled module only adds kernels, so the definition must be made exactly once, here.
library = torch.library.Library("ops_dcnv3", "DEF")
library.define(f"dcnv3(Tensor input, Tensor offset, Tensor mask, {_ARGUMENTS}) -> Tensor")
library.define(
    "dcnv3_backward(Tensor grad_output, Tensor input, Tensor offset, Tensor mask, "
    f"{_ARGUMENTS}) -> (Tensor, Tensor, Tensor)"
)


def check(input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> None:
    """All argument checks of one call; see `geometry.py` for what is raised."""
    check_geometry(geometry)
    check_shapes(input, offset, mask, geometry)
    check_dtypes(input, offset, mask)


# --- plain PyTorch, for devices without a compiled kernel -----------------------------------------


def _forward_any_device(input: Tensor, offset: Tensor, mask: Tensor, *arguments: Any) -> Tensor:
    geometry = Geometry(*arguments)
    check(input, offset, mask, geometry)
    return dcnv3_reference(input, offset, mask, geometry).contiguous()  # as the fake says


def _backward_any_device(
    grad_output: Tensor, input: Tensor, offset: Tensor, mask: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    geometry = Geometry(*arguments)
    check(input, offset, mask, geometry)
    gradients = dcnv3_backward_reference(grad_output, input, offset, mask, geometry)
    return tuple(gradient.contiguous() for gradient in gradients)


library.impl("dcnv3", _forward_any_device, "CompositeExplicitAutograd")
library.impl("dcnv3_backward", _backward_any_device, "CompositeExplicitAutograd")


# --- shapes only (torch.compile, torch.export, meta tensors) --------------------------------------


def _forward_fake(input: Tensor, offset: Tensor, mask: Tensor, *arguments: Any) -> Tensor:
    geometry = Geometry(*arguments)
    check(input, offset, mask, geometry)
    batch, height, width, channels = input.shape
    return input.new_empty((batch, *geometry.output_size(height, width), channels))


def _backward_fake(
    grad_output: Tensor, input: Tensor, offset: Tensor, mask: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        input.new_empty(input.shape),
        offset.new_empty(offset.shape),
        mask.new_empty(mask.shape),
    )


for _name, _fake in (("dcnv3", _forward_fake), ("dcnv3_backward", _backward_fake)):
    if hasattr(torch.library, "register_fake"):  # torch >= 2.4
        torch.library.register_fake(f"ops_dcnv3::{_name}", _fake, lib=library)
    else:
        library.impl(_name, _fake, "Meta")


# --- autograd -------------------------------------------------------------------------------------


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, offset, mask, *arguments = inputs
    ctx.save_for_backward(input, offset, mask)
    ctx.arguments = arguments


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    tensors = (grad_output, *ctx.saved_tensors)
    if torch.is_grad_enabled():  # create_graph=True: autograd can differentiate the reference again
        gradients = dcnv3_backward_reference(*tensors, Geometry(*ctx.arguments))
    else:
        gradients = torch.ops.ops_dcnv3.dcnv3_backward(*tensors, *ctx.arguments)
    return (*gradients, *([None] * len(ctx.arguments)))


def _refuse_backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
    raise RuntimeError(
        "dcnv3_backward (called by itself) has no derivative; for second derivatives take "
        "torch.autograd.grad(..., create_graph=True) of ops_dcnv3.functions.dcnv3"
    )


if hasattr(torch.library, "register_autograd"):  # torch >= 2.4
    torch.library.register_autograd(
        "ops_dcnv3::dcnv3", _backward, setup_context=_setup_context, lib=library
    )
    torch.library.register_autograd("ops_dcnv3::dcnv3_backward", _refuse_backward, lib=library)
else:

    class _Autograd(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Tensor:
            _setup_context(ctx, inputs, None)
            with torch._C._AutoDispatchBelowAutograd():
                return torch.ops.ops_dcnv3.dcnv3(*inputs)

        backward = staticmethod(_backward)

    library.impl("dcnv3", _Autograd.apply, "Autograd")


# --- autocast -------------------------------------------------------------------------------------


_NEW_AUTOCAST_API = hasattr(torch, "get_autocast_dtype")  # torch >= 2.4


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype that torch.autocast asks for on `device_type`, or None outside autocast."""
    if device_type not in ("cpu", "cuda"):
        return None
    if _NEW_AUTOCAST_API:
        enabled = torch.is_autocast_enabled(device_type)
        return torch.get_autocast_dtype(device_type) if enabled else None
    if device_type == "cuda":
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
    return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None


def cast_for_autocast(input: Tensor, offset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Under autocast, all three tensors in the autocast dtype (float64 is left alone; integers are
    for the checks to refuse).

    The operator is bound by memory traffic and accumulates in float32 whatever the storage, so it
    belongs with the operators that run in the lower precision.
    """
    dtype = autocast_dtype(input.device.type)
    tensors = (input, offset, mask)
    if dtype is None or any(
        tensor.dtype == torch.float64 or not tensor.is_floating_point() for tensor in tensors
    ):
        return tensors
    return input.to(dtype), offset.to(dtype), mask.to(dtype)


def _register_autocast(device_type: str, key: str) -> None:
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def autocast(input: Tensor, offset: Tensor, mask: Tensor, *arguments: Any) -> Tensor:
        tensors = cast_for_autocast(input, offset, mask)
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return torch.ops.ops_dcnv3.dcnv3(*tensors, *arguments)

    library.impl("dcnv3", autocast, key)


_register_autocast("cpu", "AutocastCPU")
_register_autocast("cuda", "AutocastCUDA")


# --- counting operations (torch.utils.flop_counter) -----------------------------------------------


def _forward_flops(input_shape, offset_shape, mask_shape, *arguments, **_: Any) -> int:
    """Two per multiply-add: four for the interpolation of a sample and one for its mask."""
    batch, out_h, out_w, modulated = mask_shape  # G * P masks
    group_channels = Geometry(*arguments).group_channels
    return 2 * 5 * batch * out_h * out_w * modulated * group_channels


def _backward_flops(grad_shape, input_shape, offset_shape, mask_shape, *arguments, **_: Any) -> int:
    """Per sample and channel: four products with the gradient and four weighted sums."""
    batch, out_h, out_w, modulated = mask_shape  # G * P masks
    group_channels = Geometry(*arguments).group_channels
    return 2 * 8 * batch * out_h * out_w * modulated * group_channels


if hasattr(torch.utils.flop_counter, "register_flop_formula"):  # torch >= 2.2
    _register_flops = torch.utils.flop_counter.register_flop_formula
    _register_flops(torch.ops.ops_dcnv3.dcnv3)(_forward_flops)
    _register_flops(torch.ops.ops_dcnv3.dcnv3_backward)(_backward_flops)
