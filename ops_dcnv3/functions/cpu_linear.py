"""Linear layers for inference on the CPU, with bias and GELU inside the matrix product.

PyTorch's own path copies the bias into the result before it multiplies, and GELU reads and writes
the result once more. In InternImage these passes cost as much as the sampling does. oneDNN, which
PyTorch ships, has all three in one call. The results agree up to rounding. Wherever that call does
not apply (gradients, GPUs, exported graphs, other dtypes), the ordinary functions run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .context import is_compiled_inference, is_plain_inference, is_untouched
from .registration import autocast_dtype, library


def _find_pointwise() -> Callable[..., Tensor] | None:
    """oneDNN's linear layer with what follows it, or None in a PyTorch without it."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_pointwise = _find_pointwise()


def _supported_dtypes() -> tuple[torch.dtype, ...]:
    if getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)():
        return torch.float32, torch.bfloat16
    return (torch.float32,)


_CASTABLE = (torch.float32, torch.float16, torch.bfloat16)  # autocast leaves float64 alone
_dtypes = _supported_dtypes() if _pointwise is not None else ()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    if not x.numel():
        return x.new_empty((*x.shape[:-1], weight.shape[0]))
    then = ("gelu", [], "none") if gelu else ("none", [], "")
    return _pointwise(x, weight, bias, *then)


def _product_fake(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


# For graphs of torch.compile, which takes oneDNN's call only with constant weights.
if hasattr(torch.library, "register_fake"):  # torch >= 2.4
    library.define("linear(Tensor x, Tensor weight, Tensor? bias, bool gelu) -> Tensor")
    library.impl("linear", _product, "CPU")
    torch.library.register_fake("ops_dcnv3::linear", _product_fake, lib=library)


def _find_product(*tensors: Tensor) -> Callable[..., Tensor] | None:
    """What multiplies in this place, or None: the ordinary functions."""
    if _pointwise is None or not torch.backends.mkldnn.enabled:
        return None
    if is_compiled_inference(*tensors):
        return torch.ops.ops_dcnv3.linear
    return _product if is_plain_inference(*tensors) else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """`torch.nn.functional.linear`, followed by the exact GELU if asked for.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,), or None.
        gelu: apply x * Phi(x) to the result.

    Returns:
        (..., out); under autocast in its dtype.
    """
    tensors = (x, weight) if bias is None else (x, weight, bias)
    product = _find_product(*tensors)
    dtype = autocast_dtype("cpu") or x.dtype
    if product and dtype in _dtypes and all(tensor.dtype in _CASTABLE for tensor in tensors):
        if autocast_dtype("cpu") is not None:
            tensors = tuple(tensor.to(dtype) for tensor in tensors)
        if all(tensor.dtype == dtype for tensor in tensors):
            x, weight, *biases = tensors
            return product(x, weight, biases[0] if biases else None, gelu)
    result = F.linear(x, weight, bias)
    return F.gelu(result) if gelu else result


def apply_linear(layer: nn.Module, x: Tensor, gelu: bool = False) -> Tensor:
    """`layer(x)`, followed by GELU if asked for, through `linear` where that is the same."""
    if is_untouched(layer, nn.Linear):
        return linear(x, layer.weight, layer.bias, gelu)
    result = layer(x)
    return F.gelu(result) if gelu else result
