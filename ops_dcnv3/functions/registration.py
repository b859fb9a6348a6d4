"""The operators of `torch.ops.ops_dcnv3` and their backwards, registered with torch.library.

    dcnv3         input, offset, mask
    dcnv3_fused   input and one tensor of offsets and masks, with the masks' softmax inside

The schemas, the fake (shape-only) implementations, autograd, autocast and the plain-PyTorch kernels
for every device are registered here, in Python, so the operators exist whether or not anything was
compiled. The compiled module adds kernels for the CPU and CUDA dispatch keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.utils.flop_counter
from torch import Tensor

from .geometry import (
    Geometry,
    check_dtypes,
    check_fused_shapes,
    check_geometry,
    check_shapes,
)
from .reference import (
    dcnv3_backward_reference,
    dcnv3_fused_backward_reference,
    dcnv3_fused_reference,
    dcnv3_reference,
)

_GEOMETRY = (
    "int kernel_h, int kernel_w, int stride_h, int stride_w, int pad_h, int pad_w, "
    "int dilation_h, int dilation_w, int group, int group_channels, float offset_scale, "
    "bool remove_center"
)


def check(input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> None:
    """All argument checks of one `dcnv3` call; see `geometry.py` for what is raised."""
    check_geometry(geometry)
    check_shapes(input, offset, mask, geometry)
    check_dtypes(input=input, offset=offset, mask=mask)


def check_fused(
    input: Tensor, offset_mask: Tensor, geometry: Geometry, softmax: bool, interleaved: bool
) -> None:
    """All argument checks of one `dcnv3_fused` call; see `geometry.py` for what is raised."""
    check_geometry(geometry)
    check_fused_shapes(input, offset_mask, geometry)
    check_dtypes(input=input, offset_mask=offset_mask)


class _Operator(NamedTuple):
    """What the two operators differ in. `options` follow the geometry in every signature."""

    name: str
    tensors: tuple[str, ...]
    options: tuple[str, ...]
    check: Callable[..., None]
    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, ...]]


OPERATORS = (
    _Operator(
        "dcnv3",
        ("input", "offset", "mask"),
        (),
        check,
        dcnv3_reference,
        dcnv3_backward_reference,
    ),
    _Operator(
        "dcnv3_fused",
        ("input", "offset_mask"),
        ("softmax", "interleaved"),
        check_fused,
        dcnv3_fused_reference,
        dcnv3_fused_backward_reference,
    ),
)

# Plain PyTorch by operator name: what torch.ops runs where nothing was compiled.
any_device_kernels: dict[str, Callable[..., Any]] = {}

# The compiled module only adds kernels, so the definitions must be made exactly once, here.
library = torch.library.Library("ops_dcnv3", "DEF")


def _unpack(arguments: tuple[Any, ...], tensors: int) -> tuple[tuple, Geometry, tuple]:
    """The arguments of a call in schema order as tensors, geometry and options."""
    numbers = arguments[tensors:]
    size = len(Geometry._fields)
    return arguments[:tensors], Geometry(*numbers[:size]), tuple(numbers[size:])


def _register_kernels(operator: _Operator) -> None:
    """Schemas, plain PyTorch for devices without a compiled kernel, and shapes only."""
    count = len(operator.tensors)

    def forward(*arguments: Any) -> Tensor:
        tensors, geometry, options = _unpack(arguments, count)
        operator.check(*tensors, geometry, *options)
        return operator.forward(*tensors, geometry, *options).contiguous()  # as the fake says

    def backward(*arguments: Any) -> tuple[Tensor, ...]:
        (grad_output, *tensors), geometry, options = _unpack(arguments, 1 + count)
        operator.check(*tensors, geometry, *options)
        gradients = operator.backward(grad_output, *tensors, geometry, *options)
        return tuple(gradient.contiguous() for gradient in gradients)

    def forward_fake(*arguments: Any) -> Tensor:
        tensors, geometry, options = _unpack(arguments, count)
        operator.check(*tensors, geometry, *options)
        batch, height, width, channels = tensors[0].shape
        return tensors[0].new_empty((batch, *geometry.output_size(height, width), channels))

    def backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(tensor.new_empty(tensor.shape) for tensor in arguments[1 : 1 + count])

    inputs = ", ".join(f"Tensor {name}" for name in operator.tensors)
    inputs += ", " + ", ".join((_GEOMETRY, *(f"bool {name}" for name in operator.options)))
    outputs = ", ".join(["Tensor"] * count)
    for name, schema, kernel, fake in (
        (operator.name, f"({inputs}) -> Tensor", forward, forward_fake),
        (
            f"{operator.name}_backward",
            f"(Tensor grad_output, {inputs}) -> ({outputs})",
            backward,
            backward_fake,
        ),
    ):
        library.define(name + schema)
        library.impl(name, kernel, "CompositeExplicitAutograd")
        any_device_kernels[name] = kernel
        if hasattr(torch.library, "register_fake"):  # torch >= 2.4
            torch.library.register_fake(f"ops_dcnv3::{name}", fake, lib=library)
        else:
            library.impl(name, fake, "Meta")


# --- autograd -------------------------------------------------------------------------------------


def _register_autograd(operator: _Operator) -> None:
    count = len(operator.tensors)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor | None) -> None:
        ctx.save_for_backward(*inputs[:count])
        ctx.arguments = inputs[count:]

    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        tensors = (grad_output, *ctx.saved_tensors)
        if torch.is_grad_enabled():  # create_graph=True: the reference can be differentiated again
            _, geometry, options = _unpack(ctx.arguments, 0)
            gradients = operator.backward(*tensors, geometry, *options)
        else:
            native = getattr(torch.ops.ops_dcnv3, f"{operator.name}_backward")
            gradients = native(*tensors, *ctx.arguments)
        return (*gradients, *([None] * len(ctx.arguments)))

    def refuse_backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(
            f"{operator.name}_backward (called by itself) has no derivative; for second "
            "derivatives take torch.autograd.grad(..., create_graph=True) of "
            f"ops_dcnv3.functions.{operator.name}"
        )

    if hasattr(torch.library, "register_autograd"):  # torch >= 2.4
        name = f"ops_dcnv3::{operator.name}"
        torch.library.register_autograd(name, backward, setup_context=setup_context, lib=library)
        torch.library.register_autograd(f"{name}_backward", refuse_backward, lib=library)
        return

    def forward(ctx: Any, *inputs: Any) -> Tensor:
        setup_context(ctx, inputs, None)
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(torch.ops.ops_dcnv3, operator.name)(*inputs)

    function = type(
        f"_{operator.name}",
        (torch.autograd.Function,),
        {"forward": staticmethod(forward), "backward": staticmethod(backward)},
    )
    library.impl(operator.name, function.apply, "Autograd")


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


def cast_for_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast, all tensors in the autocast dtype (float64 is left alone; integers are for
    the checks to refuse).

    The operator is bound by memory traffic and accumulates in float32 whatever the storage, so it
    belongs with the operators that run in the lower precision.
    """
    dtype = autocast_dtype(tensors[0].device.type)
    if dtype is None or any(
        tensor.dtype == torch.float64 or not tensor.is_floating_point() for tensor in tensors
    ):
        return tensors
    return tuple(tensor.to(dtype) for tensor in tensors)


def _register_autocast(operator: _Operator, key: str) -> None:
    count = len(operator.tensors)
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def autocast(*arguments: Any) -> Tensor:
        tensors = cast_for_autocast(*arguments[:count])
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return getattr(torch.ops.ops_dcnv3, operator.name)(*tensors, *arguments[count:])

    library.impl(operator.name, autocast, key)


# --- counting operations (torch.utils.flop_counter) -----------------------------------------------


def _register_flops(operator: _Operator) -> None:
    """Two operations per multiply-add, in terms of samples: one per point and channel.

    Forward: four multiply-adds for the interpolation of a sample and one for its mask. Backward:
    four products with the gradient and four weighted sums.
    """
    count = len(operator.tensors)

    def samples(shapes: tuple[Any, ...], numbers: tuple[Any, ...]) -> int:
        geometry = Geometry(*numbers[: len(Geometry._fields)])
        batch, out_h, out_w, _ = shapes[-1]  # offsets, masks or both
        return batch * out_h * out_w * geometry.points * geometry.group * geometry.group_channels

    def forward(*arguments: Any, **_: Any) -> int:
        return 2 * 5 * samples(arguments[:count], arguments[count:])

    def backward(*arguments: Any, **_: Any) -> int:
        return 2 * 8 * samples(arguments[: 1 + count], arguments[1 + count :])

    register = torch.utils.flop_counter.register_flop_formula
    register(getattr(torch.ops.ops_dcnv3, operator.name))(forward)
    register(getattr(torch.ops.ops_dcnv3, f"{operator.name}_backward"))(backward)


def register(operator: _Operator) -> None:
    """Everything that torch.ops knows about one operator and its backward."""
    _register_kernels(operator)
    _register_autograd(operator)
    _register_autocast(operator, "AutocastCPU")
    _register_autocast(operator, "AutocastCUDA")
    if hasattr(torch.utils.flop_counter, "register_flop_formula"):  # torch >= 2.2
        _register_flops(operator)


for _operator in OPERATORS:
    register(_operator)
