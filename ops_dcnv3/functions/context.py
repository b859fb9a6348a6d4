"""What surrounds a call: a graph that is being captured, a transform, autograd, or nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

is_compiling = getattr(torch.compiler, "is_compiling", lambda: False)  # torch >= 2.3


def is_transformed(*tensors: Tensor) -> bool:
    """Whether torch.func or forward-mode differentiation follows one of the tensors.

    Custom operators would lose the tangents of the latter without a word.
    """
    if is_compiling():  # a graph sees neither
        return False
    return any(
        torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        or forward_ad.unpack_dual(tensor).tangent is not None
        for tensor in tensors
    )


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_untouched(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the layer is just PyTorch's `kind`, so that its parameters may be used without it.

    Not so where somebody has replaced or hooked it: adapters, quantisation, partitioned or
    offloaded parameters, feature extraction.
    """
    return (
        type(layer) is kind
        and "forward" not in vars(layer)
        and not any(getattr(layer, hooks) for hooks in _HOOKS)
        and not any(getattr(nn.modules.module, f"_global{hooks}") for hooks in _HOOKS)
    )


def is_exporting() -> bool:
    """Whether torch.export captures a graph; False where it cannot be told (before torch 2.7)."""
    return bool(getattr(torch.compiler, "_is_exporting_flag", False))


def is_compiled_inference(*tensors: Tensor) -> bool:
    """Whether torch.compile captures a computation on CPU tensors that wants no gradients."""
    # The flag and not torch.compiler.is_exporting(), which torch.compile takes for true. Before
    # torch 2.7 there is neither, and the graph may be one that leaves this machine.
    return (
        is_compiling()
        and not getattr(torch.compiler, "_is_exporting_flag", True)
        and not torch.is_grad_enabled()
        and all(tensor.device.type == "cpu" for tensor in tensors)
    )


def is_plain_inference(*tensors: Tensor) -> bool:
    """Whether CPU tensors are computed and nobody watches: no autograd, graph, dispatch mode or
    transform.

    Only then may a function take a way that autograd and the tools do not know.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    if is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack():
        return False
    return all(
        tensor.device.type == "cpu" and type(tensor) in (Tensor, nn.Parameter) for tensor in tensors
    ) and not is_transformed(*tensors)
