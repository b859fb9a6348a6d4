"""The public functions, and the names that code written for the original package calls."""

from __future__ import annotations

import torch
from torch import Tensor

from . import registration
from .backends import choose_backend, is_forced
from .context import is_exporting, is_transformed
from .geometry import Geometry
from .pytorch_inference import dcnv3_plain
from .reference import offset_and_weights
from .triton_backend import triton_dcnv3, triton_dcnv3_fused


def _pair(value: int | tuple[int, int], name: str) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    is_pair = isinstance(value, (tuple, list)) and len(value) == 2
    if not is_pair or not all(isinstance(item, int) for item in value):
        raise ValueError(f"dcnv3: {name} must be an int or a pair (height, width), got {value!r}")
    return value[0], value[1]


def _geometry(
    input: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    dilation: int | tuple[int, int],
    group: int,
    offset_scale: float,
    remove_center: bool,
) -> Geometry:
    if not isinstance(group, int) or group < 1:
        raise ValueError(f"dcnv3: group must be an int of at least 1, got {group!r}")
    if input.dim() == 4 and input.shape[-1] % group:
        raise ValueError(
            f"dcnv3: the channels of input must be a multiple of group={group}, "
            f"got shape {tuple(input.shape)} (channels last)"
        )
    return Geometry(
        *_pair(kernel_size, "kernel_size"),
        *_pair(stride, "stride"),
        *_pair(padding, "padding"),
        *_pair(dilation, "dilation"),
        group,
        input.shape[-1] // group if input.dim() else 0,
        float(offset_scale),
        bool(remove_center),
    )


def dcnv3(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_size: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    group: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Deformable convolution v3 (InternImage, arXiv 2211.05778, section 3.1, equation 2).

    Each output pixel sums P modulated, bilinearly interpolated samples per group; outside the image
    the input is zero. `functions/reference.py` is the definition.

    Args:
        input: (N, H, W, C), channels last, C a multiple of `group`.
        offset: (N, Ho, Wo, group*P*2), (x, y) pairs in input pixels before `offset_scale`;
            P = kernel_h * kernel_w - remove_center, points in width-major order.
        mask: (N, Ho, Wo, group*P), the weight of each point. It is used as it is: apply a softmax
            over P beforehand for the behaviour of InternImage, or call `dcnv3_fused`.
        kernel_size: (height, width) or one int.
        stride: (height, width) or one int, at least 1.
        padding: (height, width) or one int, at least 0.
        dilation: (height, width) or one int, at least 1.
        group: number of groups G; each has C / G channels and its own points.
        offset_scale: multiplies the offsets and the dilated grid around its centre.
        remove_center: leave out the point (kernel_h // 2, kernel_w // 2).
        backend: 'cpp', 'cuda', 'triton' or 'pytorch'; None takes the environment variable
            OPS_DCNV3_BACKEND or else the fastest that is there. Transforms of torch.func and
            forward-mode differentiation take 'pytorch', the only one that supports them.

    Returns:
        (N, Ho, Wo, C), with Ho = (H + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 and
        Wo likewise. float16 and bfloat16 accumulate in float32.

    Raises:
        ValueError: a wrong rank, size, geometry, device or backend name.
        TypeError: a dtype that is not floating point, or three different ones.
        RuntimeError: the requested backend was not compiled here, or the argument `backend` asks
            for a compiled one inside a transform of torch.func or forward-mode differentiation.

    Example:
        >>> x = torch.randn(1, 8, 8, 32)
        >>> offset = torch.zeros(1, 8, 8, 2 * 9 * 2)
        >>> mask = torch.full((1, 8, 8, 2 * 9), 1 / 9)
        >>> dcnv3(x, offset, mask, group=2).shape
        torch.Size([1, 8, 8, 32])
    """
    geometry = _geometry(
        input, kernel_size, stride, padding, dilation, group, offset_scale, remove_center
    )
    return _call(input, offset, mask, geometry, backend)


def dcnv3_fused(
    input: Tensor,
    offset_mask: Tensor,
    kernel_size: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    group: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    softmax: bool = True,
    interleaved: bool = False,
    backend: str | None = None,
) -> Tensor:
    """`dcnv3` on offsets and masks that lie in one tensor, with the masks' softmax inside.

    One matrix product then predicts both, and the softmax over P values, which by itself costs
    more than the operator, disappears in it (forward and backward).

    Args:
        input: (N, H, W, C), channels last, C a multiple of `group`.
        offset_mask: (N, Ho, Wo, L): group*P*2 offsets as in `dcnv3`, then group*P masks. With
            `interleaved` the order is DCNv4's: for each group its P*2 offsets and then its P masks.
            L is group*P*3 or more: what follows is padding, which is not read (matrix products
            like a multiple of 8).
        kernel_size: (height, width) or one int.
        stride: (height, width) or one int, at least 1.
        padding: (height, width) or one int, at least 0.
        dilation: (height, width) or one int, at least 1.
        group: number of groups G; each has C / G channels and its own points.
        offset_scale: multiplies the offsets and the dilated grid around its centre.
        remove_center: leave out the point (kernel_h // 2, kernel_w // 2).
        softmax: the masks are logits, normalised over the P points of a group (InternImage);
            False takes them as they are (DCNv4).
        interleaved: the order of `offset_mask`.
        backend: as in `dcnv3`.

    Returns:
        (N, Ho, Wo, C), as `dcnv3`.

    Raises:
        ValueError, TypeError, RuntimeError: as `dcnv3`.
    """
    geometry = _geometry(
        input, kernel_size, stride, padding, dilation, group, offset_scale, remove_center
    )
    options = (bool(softmax), bool(interleaved))
    input, offset_mask = registration.cast_for_autocast(input, offset_mask)
    registration.check_fused(input, offset_mask, geometry, *options)
    chosen = _choose(backend, input, offset_mask)
    if chosen == "pytorch":
        offset, mask = offset_and_weights(offset_mask, geometry, *options)
        return dcnv3_plain(input, offset, mask, geometry)
    if chosen == "triton":
        return triton_dcnv3_fused(input, offset_mask, geometry, *options)
    return torch.ops.ops_dcnv3.dcnv3_fused(input, offset_mask, *geometry, *options)


def _choose(backend: str | None, *tensors: Tensor) -> str:
    """The backend of a call; plain PyTorch inside transforms that custom operators do not know.

    A graph that torch.export captures names the operator also where nothing was compiled: it may
    run elsewhere, and the operator has plain-PyTorch kernels, too.
    """
    chosen = choose_backend(tensors[0].device.type, backend)
    if chosen == "pytorch" and is_exporting() and not is_forced(backend):
        return "operator"
    if chosen == "pytorch" or not is_transformed(*tensors):
        return chosen
    if backend is not None:
        raise RuntimeError(
            f"dcnv3: backend {backend!r} supports neither the transforms of torch.func (vmap, "
            "grad, jvp, ...) nor forward-mode differentiation; pass backend='pytorch' or None"
        )
    return "pytorch"


def _call(
    input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry, backend: str | None
) -> Tensor:
    """Checks, then the operator (compiled kernels) or plain PyTorch."""
    input, offset, mask = registration.cast_for_autocast(input, offset, mask)
    registration.check(input, offset, mask, geometry)
    chosen = _choose(backend, input, offset, mask)
    if chosen == "pytorch":
        return dcnv3_plain(input, offset, mask, geometry)
    if chosen == "triton":
        return triton_dcnv3(input, offset, mask, geometry)
    return torch.ops.ops_dcnv3.dcnv3(input, offset, mask, *geometry)


def dcnv3_core_pytorch(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float,
    remove_center: bool | int = False,
) -> Tensor:
    """`dcnv3` in plain PyTorch under the original package's name and argument order.

    Unlike the original fallback it follows the kernels in every case: different paddings per axis,
    even and non-square kernels with `remove_center`, right-sided offset gradients at integer
    positions, and all floating-point dtypes.
    """
    geometry = Geometry(
        kernel_h,
        kernel_w,
        stride_h,
        stride_w,
        pad_h,
        pad_w,
        dilation_h,
        dilation_w,
        group,
        group_channels,
        float(offset_scale),
        bool(remove_center),
    )
    return _call(input, offset, mask, geometry, "pytorch")


class DCNv3Function:
    """`DCNv3Function.apply(...)` under the original package's name and argument order."""

    @staticmethod
    def apply(
        input: Tensor,
        offset: Tensor,
        mask: Tensor,
        kernel_h: int,
        kernel_w: int,
        stride_h: int,
        stride_w: int,
        pad_h: int,
        pad_w: int,
        dilation_h: int,
        dilation_w: int,
        group: int,
        group_channels: int,
        offset_scale: float,
        im2col_step: int = 256,
        remove_center: bool | int = False,
    ) -> Tensor:
        """Runs `dcnv3` with the fastest backend.

        `im2col_step` is accepted and has no effect: there is no limit on the batch size. Arguments,
        result and errors are otherwise those of `dcnv3`.
        """
        geometry = Geometry(
            kernel_h,
            kernel_w,
            stride_h,
            stride_w,
            pad_h,
            pad_w,
            dilation_h,
            dilation_w,
            group,
            group_channels,
            float(offset_scale),
            bool(remove_center),
        )
        return _call(input, offset, mask, geometry, None)
