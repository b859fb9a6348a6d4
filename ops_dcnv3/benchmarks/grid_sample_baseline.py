"""DCNv3 through `torch.nn.functional.grid_sample`: what the benchmarks compare with.

It is how the operator is usually written without a kernel: pad the input, build every sampling
position as normalised coordinates, sample all points of all groups with one `grid_sample`, multiply
by the masks and sum. The samples are stored once per point, nine times the output for a 3 x 3
kernel. At integer positions its offset gradient may be the left-sided one, because the positions
are normalised and scaled back in floating point; otherwise it agrees with `functions/reference.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ops_dcnv3.functions import Geometry


def _kernel_grid(geometry: Geometry, like: Tensor) -> Tensor:
    """Undeformed positions (P, 2) as (x, y) around the window's centre, in pixels, scaled."""
    xs = torch.arange(geometry.kernel_w, device=like.device) * geometry.dilation_w
    ys = torch.arange(geometry.kernel_h, device=like.device) * geometry.dilation_h
    xs = xs - geometry.dilation_w * (geometry.kernel_w - 1) // 2
    ys = ys - geometry.dilation_h * (geometry.kernel_h - 1) // 2
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="ij"), -1).flatten(0, 1)  # (P, 2)
    if geometry.remove_center:
        centre = geometry.kernel_w // 2 * geometry.kernel_h + geometry.kernel_h // 2
        grid = torch.cat((grid[:centre], grid[centre + 1 :]))
    return grid.to(like.dtype) * geometry.offset_scale


def _window_centres(geometry: Geometry, height: int, width: int, like: Tensor) -> Tensor:
    """Centres (Ho, Wo, 2) of the windows as (x, y), in pixels of the padded input."""
    out_h, out_w = geometry.output_size(height, width)
    xs = torch.arange(out_w, device=like.device) * geometry.stride_w
    ys = torch.arange(out_h, device=like.device) * geometry.stride_h
    xs = xs + geometry.dilation_w * (geometry.kernel_w - 1) // 2
    ys = ys + geometry.dilation_h * (geometry.kernel_h - 1) // 2
    ys, xs = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack((xs, ys), -1).to(like.dtype)


def grid_sample_dcnv3(input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> Tensor:
    """DCNv3 as one `grid_sample`; differentiable by autograd.

    Args:
        input: (N, H, W, C).
        offset: (N, Ho, Wo, G*P*2), pixels.
        mask: (N, Ho, Wo, G*P).
        geometry: the operator's arguments.

    Returns:
        (N, Ho, Wo, C) in the dtype of `input`, in which everything is computed.
    """
    batch, height, width, channels = input.shape
    out_h, out_w = offset.shape[1:3]
    group, points, depth = geometry.group, geometry.points, geometry.group_channels
    pad_h, pad_w = geometry.pad_h, geometry.pad_w
    padded = F.pad(input, (0, 0, pad_w, pad_w, pad_h, pad_h))
    size = padded.new_tensor((width + 2 * pad_w, height + 2 * pad_h))

    shift = offset.unflatten(-1, (group, points, 2)) * geometry.offset_scale
    centres = _window_centres(geometry, height, width, input)[:, :, None, None]
    positions = centres + _kernel_grid(geometry, input) + shift  # (N, Ho, Wo, G, P, 2)
    normalised = (2 * positions + 1) / size - 1
    grid = normalised.permute(0, 3, 1, 2, 4, 5).reshape(batch * group, out_h * out_w, points, 2)

    images = padded.flatten(1, 2).transpose(1, 2)  # (N, C, H*W)
    images = images.reshape(batch * group, depth, height + 2 * pad_h, width + 2 * pad_w)
    samples = F.grid_sample(
        images, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )  # (N*G, D, Ho*Wo, P)
    weights = mask.flatten(1, 2).transpose(1, 2)  # (N, G*P, Ho*Wo)
    weights = weights.reshape(batch * group, 1, points, out_h * out_w).transpose(2, 3)
    output = (samples * weights).sum(-1).view(batch, channels, out_h * out_w)
    return output.transpose(1, 2).reshape(batch, out_h, out_w, channels).contiguous()
