"""What the DCNv3 layers call, in plain PyTorch, under the names of `ops_dcnv3.functions`.

Used where that package is not installed. The operator itself is in `reference_internimage.py`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .reference_internimage import (
    Geometry,
    cast_for_autocast,
    dcnv3_plain,
    offset_and_weights,
)

__all__ = [
    "apply_conv",
    "apply_head_conv",
    "apply_linear",
    "cast_for_autocast",
    "choose_backend",
    "dcnv3_fused",
    "dcnv4",
    "is_untouched",
    "linear",
]

linear = F.linear


def apply_conv(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`."""
    return layer(x)


def apply_head_conv(layers: nn.Module, x: Tensor) -> Tensor:
    """`layers(x)`."""
    return layers(x)


def apply_linear(layer: nn.Module, x: Tensor, gelu: bool = False) -> Tensor:
    """`layer(x)`, followed by the exact GELU if asked for."""
    x = layer(x)
    return F.gelu(x) if gelu else x


def is_untouched(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """False: without kernels there is no shorter way than to call every layer."""
    return False


def choose_backend(device_type: str, backend: str | None = None) -> str:
    """'pytorch', whatever the device.

    Raises:
        RuntimeError: another backend was asked for.
    """
    if backend not in (None, "pytorch"):
        raise RuntimeError(
            f"backend {backend!r} is one of the package ops_dcnv3, which is not installed here: "
            "install it, or leave backend out"
        )
    return "pytorch"


def dcnv3_fused(
    input: Tensor,
    offset_mask: Tensor,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    group: int,
    offset_scale: float,
    remove_center: bool,
    softmax: bool = True,
    interleaved: bool = False,
    backend: str | None = None,
) -> Tensor:
    """DCNv3 (arXiv 2211.05778, section 3.1) on offsets and masks that lie in one tensor.

    Args:
        input: (N, H, W, C), C a multiple of `group`.
        offset_mask: (N, Ho, Wo, L): group*P*2 offsets, (x, y) pairs in pixels, then group*P masks,
            then padding; `interleaved`, for each group its 2*P offsets and its P masks.
        kernel_size: side of the sampling grid; P is its square, less the centre if removed.
        stride: steps of the output pixels.
        padding: zeros around the image.
        dilation: spacing of the grid.
        group: G.
        offset_scale: factor on grid and offsets.
        remove_center: leave the grid's centre out.
        softmax: normalise the masks over the P points of a group.
        interleaved: the order of `offset_mask`.
        backend: None or 'pytorch'.

    Returns:
        (N, Ho, Wo, C).
    """
    choose_backend(input.device.type, backend)
    geometry = Geometry(
        *(kernel_size, kernel_size),
        *(stride, stride),
        *(padding, padding),
        *(dilation, dilation),
        group,
        input.shape[-1] // group,
        float(offset_scale),
        bool(remove_center),
    )
    input, offset_mask = cast_for_autocast(input, offset_mask)
    offset, mask = offset_and_weights(offset_mask, geometry, softmax, interleaved)
    return dcnv3_plain(input, offset, mask, geometry)


def dcnv4(input: Tensor, offset_mask: Tensor, **geometry: object) -> Tensor:
    """DCNv4 (arXiv 2401.06197, section 3.1): no softmax, interleaved."""
    return dcnv3_fused(input, offset_mask, softmax=False, interleaved=True, **geometry)
