"""DCNv3 in plain PyTorch: the definition that every kernel is tested against.

Deformable convolution v3 (InternImage, arXiv 2211.05778, section 3.1, equation 2): each output
pixel sums, per group g, P modulated samples of the input taken at learned positions,

    out[p, g] = sum_t mask[p, g, t] * input_g(p_0 + (grid_t + offset[p, g, t]) * offset_scale)

with bilinear sampling and zeros outside the image. Axis names: see `geometry.py`.

Conventions that are easy to get wrong, and that released checkpoints depend on:

* Points run width-major: the outer loop is over kernel columns, the inner one over rows.
* `offset` holds (x, y) pairs in input pixels, before `offset_scale`.
* `offset_scale` scales the dilated grid around its centre too, not only the learned shift.
* A point outside the open box (-1, W) x (-1, H), or not a number, contributes nothing and gets no
  gradient.
* At an integer position the derivative is the right-sided one (between pixel n and n + 1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .geometry import Geometry, accumulation_dtype


class _Corner(NamedTuple):
    """One of the four pixels around each sampling point; every tensor is (N, G, Ho*Wo, P)."""

    index: Tensor  # flat pixel index y * W + x, clamped into the image
    valid: Tensor  # the pixel lies inside the image and the point in the open box
    weight: Tensor  # bilinear weight
    weight_dx: Tensor  # its derivative by the point's x, per pixel
    weight_dy: Tensor  # its derivative by the point's y, per pixel


def _grid(geometry: Geometry, like: Tensor) -> tuple[Tensor, Tensor]:
    """Undeformed (x, y) of the P kernel points in pixels from the window's first corner."""
    centre = (geometry.kernel_w // 2, geometry.kernel_h // 2)
    points = [
        (i * geometry.dilation_w, j * geometry.dilation_h)
        for i in range(geometry.kernel_w)
        for j in range(geometry.kernel_h)
        if not (geometry.remove_center and (i, j) == centre)
    ]
    xs = torch.tensor([x for x, _ in points], dtype=like.dtype, device=like.device)  # (P,)
    ys = torch.tensor([y for _, y in points], dtype=like.dtype, device=like.device)  # (P,)
    return xs, ys


def sampling_locations(
    offset: Tensor, height: int, width: int, geometry: Geometry
) -> tuple[Tensor, Tensor]:
    """Where each point samples the input.

    Args:
        offset: (N, Ho, Wo, G*P*2), pixels.
        height: input height H in pixels.
        width: input width W in pixels.
        geometry: the operator's arguments.

    Returns:
        x and y, each (N, Ho, Wo, G, P), in input pixels (pixel centres at integers).
    """
    scale = geometry.offset_scale
    out_h, out_w = geometry.output_size(height, width)
    offset = offset.unflatten(-1, (geometry.group, geometry.points, 2))  # (N, Ho, Wo, G, P, 2)
    grid_x, grid_y = _grid(geometry, offset)
    centre_x = (geometry.dilation_w * (geometry.kernel_w - 1)) // 2
    centre_y = (geometry.dilation_h * (geometry.kernel_h - 1)) // 2
    columns = torch.arange(out_w, device=offset.device, dtype=offset.dtype)
    rows = torch.arange(out_h, device=offset.device, dtype=offset.dtype)
    first_x = columns * geometry.stride_w + (centre_x - geometry.pad_w) - centre_x * scale  # (Wo,)
    first_y = rows * geometry.stride_h + (centre_y - geometry.pad_h) - centre_y * scale  # (Ho,)
    x = first_x[:, None, None] + (grid_x + offset[..., 0]) * scale  # (N, Ho, Wo, G, P)
    y = first_y[:, None, None, None] + (grid_y + offset[..., 1]) * scale  # (N, Ho, Wo, G, P)
    return x, y


def _corners(x: Tensor, y: Tensor, height: int, width: int) -> tuple[list[_Corner], Tensor]:
    """The four neighbours of every point, and which points lie in the open box."""
    inside = (x > -1) & (y > -1) & (x < width) & (y < height)  # False for NaN
    x = torch.where(inside, x, 0.0)
    y = torch.where(inside, y, 0.0)
    left, top = x.floor().detach(), y.floor().detach()
    right_share, bottom_share = x - left, y - top
    corners = []
    for down in (0, 1):
        for across in (0, 1):
            column, row = left + across, top + down
            valid = inside & (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
            share_x = right_share if across else 1 - right_share
            share_y = bottom_share if down else 1 - bottom_share
            sign_x, sign_y = (1 if across else -1), (1 if down else -1)
            corners.append(
                _Corner(index, valid, share_y * share_x, sign_x * share_y, sign_y * share_x)
            )
    return corners, inside


def _group_first(tensor: Tensor) -> Tensor:
    """(N, Ho, Wo, G, P) -> (N, G, Ho*Wo, P)."""
    return tensor.permute(0, 3, 1, 2, 4).flatten(2, 3)


def _pixels(tensor: Tensor, geometry: Geometry) -> Tensor:
    """(N, H, W, G*D) -> (N, G, H*W, D)."""
    split = tensor.unflatten(-1, (geometry.group, geometry.group_channels))  # (N, H, W, G, D)
    return split.permute(0, 3, 1, 2, 4).flatten(2, 3)  # (N, G, H*W, D)


def _gather(pixels: Tensor, corner: _Corner) -> Tensor:
    """Pixel values (N, G, H*W, D) at a corner of every point: (N, G, Ho*Wo, P, D)."""
    depth = pixels.shape[-1]
    index = corner.index.flatten(2).unsqueeze(-1)  # (N, G, Ho*Wo*P, 1)
    taken = torch.gather(pixels, 2, index.expand(-1, -1, -1, depth))  # (N, G, Ho*Wo*P, D)
    taken = taken.reshape(*corner.index.shape, depth)  # (N, G, Ho*Wo, P, D)
    return torch.where(corner.valid.unsqueeze(-1), taken, 0.0)


def prepare(
    input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor, list[_Corner], Tensor]:
    """Everything that forward and backward share, in the accumulation dtype, group first.

    Returns:
        Pixels (N, G, H*W, D), masks (N, G, Ho*Wo, P) with zeros for points outside the open box,
        the four corners of every point, and whether the point is inside, (N, G, Ho*Wo, P).
    """
    compute = accumulation_dtype(input.dtype)
    height, width = input.shape[1:3]
    x, y = sampling_locations(offset.to(compute), height, width, geometry)
    x, y = _group_first(x), _group_first(y)  # (N, G, Ho*Wo, P)
    corners, inside = _corners(x, y, height, width)
    mask = mask.to(compute).unflatten(-1, (geometry.group, geometry.points))  # (N, Ho, Wo, G, P)
    mask = torch.where(inside, _group_first(mask), 0.0)  # (N, G, Ho*Wo, P)
    return _pixels(input.to(compute), geometry), mask, corners, inside


def dcnv3_reference(input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> Tensor:
    """Forward pass; differentiable by autograd in all three tensors.

    Args:
        input: (N, H, W, C).
        offset: (N, Ho, Wo, G*P*2), pixels.
        mask: (N, Ho, Wo, G*P); used as it is (the module applies the softmax).
        geometry: the operator's arguments.

    Returns:
        (N, Ho, Wo, C) in the dtype of `input`; sums run in float32 (float64 for float64).
    """
    out_h, out_w = geometry.output_size(*input.shape[1:3])
    pixels, mask, corners, _ = prepare(input, offset, mask, geometry)
    samples = sum(c.weight.unsqueeze(-1) * _gather(pixels, c) for c in corners)
    output = (mask.unsqueeze(-1) * samples).sum(3)  # (N, G, Ho*Wo, D)
    output = output.unflatten(2, (out_h, out_w)).permute(0, 2, 3, 1, 4)  # (N, Ho, Wo, G, D)
    return output.flatten(3).to(input.dtype)  # (N, Ho, Wo, C)


def dcnv3_backward_reference(
    grad_output: Tensor, input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `dcnv3_reference`, written out.

    Args:
        grad_output: (N, Ho, Wo, C).
        input: (N, H, W, C).
        offset: (N, Ho, Wo, G*P*2), pixels.
        mask: (N, Ho, Wo, G*P).
        geometry: the operator's arguments.

    Returns:
        Gradients of input, offset and mask, in their shapes and dtypes.
    """
    batch, height, width, channels = input.shape
    out_h, out_w = grad_output.shape[1:3]
    pixels, mask_, corners, inside = prepare(input, offset, mask, geometry)
    top = _pixels(grad_output.to(pixels.dtype), geometry).unsqueeze(3)  # (N, G, Ho*Wo, 1, D)
    grad_pixels = torch.zeros_like(pixels)  # (N, G, H*W, D)
    grad_mask = torch.zeros_like(mask_)  # (N, G, Ho*Wo, P)
    grad_x, grad_y = torch.zeros_like(mask_), torch.zeros_like(mask_)
    for corner in corners:
        dot = (top * _gather(pixels, corner)).sum(-1)  # (N, G, Ho*Wo, P)
        grad_mask += corner.weight * dot
        grad_x += corner.weight_dx * dot
        grad_y += corner.weight_dy * dot
        share = (corner.weight * mask_).unsqueeze(-1)  # (N, G, Ho*Wo, P, 1)
        spread = torch.where(corner.valid.unsqueeze(-1), share * top, 0.0)  # no NaN of `top` either
        spread = spread.flatten(2, 3)  # (N, G, Ho*Wo*P, D)
        index = corner.index.flatten(2).unsqueeze(-1).expand(-1, -1, -1, spread.shape[-1])
        grad_pixels = grad_pixels.scatter_add(2, index, spread)
    scaled = mask_ * geometry.offset_scale
    grad_offset = torch.stack((grad_x * scaled, grad_y * scaled), -1)  # (N, G, Ho*Wo, P, 2)
    grad_offset = torch.where(inside.unsqueeze(-1), grad_offset, 0.0)
    grad_mask = torch.where(inside, grad_mask, 0.0)

    def pixel_first(gradient: Tensor) -> Tensor:
        """(N, G, Ho*Wo, P, ...) -> (N, Ho, Wo, G*P*...)."""
        gradient = gradient.transpose(1, 2).flatten(2)  # (N, Ho*Wo, G*P*...)
        return gradient.unflatten(1, (out_h, out_w))

    grad_input = grad_pixels.transpose(1, 2).reshape(batch, height, width, channels)
    return (
        grad_input.to(input.dtype),
        pixel_first(grad_offset).to(offset.dtype),
        pixel_first(grad_mask).to(mask.dtype),
    )


# --- offsets and masks in one tensor --------------------------------------------------------------


def split_offset_mask(
    offset_mask: Tensor, geometry: Geometry, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """Offsets (N, Ho, Wo, G*P*2) and masks (N, Ho, Wo, G*P) out of one tensor.

    Args:
        offset_mask: (N, Ho, Wo, L), L >= G*P*3: all offsets, then all masks; or, `interleaved`,
            for each group its 2 * P offsets and then its P masks. The rest is padding.
        geometry: the operator's arguments.
        interleaved: which of the two orders.
    """
    group, points = geometry.group, geometry.points
    offset_mask = offset_mask[..., : 3 * group * points]
    if not interleaved:
        return offset_mask.split((2 * group * points, group * points), -1)
    by_group = offset_mask.unflatten(-1, (group, 3 * points))
    offset, mask = by_group.split((2 * points, points), -1)  # (N, Ho, Wo, G, 2*P), (.., G, P)
    return offset.flatten(-2), mask.flatten(-2)


def join_offset_mask(
    offset: Tensor, mask: Tensor, geometry: Geometry, interleaved: bool, last: int
) -> Tensor:
    """The inverse of `split_offset_mask`, with zeros up to `last` entries per pixel."""
    if interleaved:
        by_group = [tensor.unflatten(-1, (geometry.group, -1)) for tensor in (offset, mask)]
        joined = torch.cat(by_group, -1).flatten(-2)  # (N, Ho, Wo, G*P*3)
    else:
        joined = torch.cat((offset, mask), -1)  # (N, Ho, Wo, G*P*3)
    return torch.nn.functional.pad(joined, (0, last - joined.shape[-1]))


def _normalise(mask: Tensor, geometry: Geometry) -> Tensor:
    """Softmax over the points of a group, in the accumulation dtype: (N, Ho, Wo, G*P)."""
    logits = mask.to(accumulation_dtype(mask.dtype)).unflatten(-1, (geometry.group, -1))
    return logits.softmax(-1).flatten(-2)


def offset_and_weights(
    offset_mask: Tensor, geometry: Geometry, softmax: bool, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """Offsets and final masks out of the one tensor of `dcnv3_fused`."""
    offset, mask = split_offset_mask(offset_mask, geometry, interleaved)
    return offset, _normalise(mask, geometry) if softmax else mask


def dcnv3_fused_reference(
    input: Tensor, offset_mask: Tensor, geometry: Geometry, softmax: bool, interleaved: bool
) -> Tensor:
    """`dcnv3_reference` with offsets and masks in one tensor; differentiable by autograd.

    Args:
        input: (N, H, W, C).
        offset_mask: (N, Ho, Wo, L), see `split_offset_mask`.
        geometry: the operator's arguments.
        softmax: the masks are logits: normalise them over the P points of each group.
        interleaved: the order of `offset_mask`.

    Returns:
        (N, Ho, Wo, C) in the dtype of `input`.
    """
    offset, mask = offset_and_weights(offset_mask, geometry, softmax, interleaved)
    return dcnv3_reference(input, offset, mask, geometry)


def dcnv3_fused_backward_reference(
    grad_output: Tensor,
    input: Tensor,
    offset_mask: Tensor,
    geometry: Geometry,
    softmax: bool,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `dcnv3_fused_reference` by `input` and `offset_mask`, written out."""
    offset, mask = offset_and_weights(offset_mask, geometry, softmax, interleaved)
    grad_input, grad_offset, grad_mask = dcnv3_backward_reference(
        grad_output, input, offset, mask, geometry
    )
    if softmax:
        weight = mask.unflatten(-1, (geometry.group, -1))  # (N, Ho, Wo, G, P)
        grad = grad_mask.unflatten(-1, (geometry.group, -1))
        grad_mask = (weight * (grad - (weight * grad).sum(-1, keepdim=True))).flatten(-2)
    grad_offset_mask = join_offset_mask(
        grad_offset, grad_mask.to(offset.dtype), geometry, interleaved, offset_mask.shape[-1]
    )
    return grad_input, grad_offset_mask
