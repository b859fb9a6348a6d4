"""The plain-PyTorch backend without gradients on the CPU, as an `embedding_bag`.

`reference.py` writes every sample of every point to memory before it sums them. `embedding_bag`
with weights is just that sum: a pixel of a group is an embedding, an output pixel of a group is a
bag of 4 * P of them. Several times faster, and the memory is that of the indices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .context import is_plain_inference
from .geometry import Geometry
from .reference import dcnv3_reference, prepare

CHUNK = 1 << 19  # entries of bags at a time, if an image has fewer: megabytes of indices


def _chunk(input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> Tensor:
    """(N, H, W, C) -> (N, Ho*Wo, G, D) in the accumulation dtype."""
    pixels, mask, corners, _ = prepare(input, offset, mask, geometry)
    batch, groups, size, depth = pixels.shape
    first = (
        torch.arange(batch * groups, device=pixels.device).view(batch, groups, 1, 1) * size
    )  # rows of the table
    rows = torch.cat([corner.index + first for corner in corners], -1)  # (N, G, Ho*Wo, 4*P)
    weights = [torch.where(corner.valid, corner.weight * mask, 0.0) for corner in corners]
    bags = F.embedding_bag(
        rows.flatten(0, 2),
        pixels.reshape(-1, depth),
        per_sample_weights=torch.cat(weights, -1).flatten(0, 2),
        mode="sum",
    )  # (N*G*Ho*Wo, D)
    return bags.view(batch, groups, -1, depth).transpose(1, 2)


def dcnv3_plain(input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> Tensor:
    """`dcnv3_reference`, by a shorter way where no gradient is wanted; equal up to rounding.

    A pixel that is not a number or infinite has weight 0 in bags that do not sample it, which does
    not silence it: such results are computed by the reference.
    """
    if not is_plain_inference(input, offset, mask) or 0 in (input.numel(), mask.numel()):
        return dcnv3_reference(input, offset, mask, geometry)
    images = max(1, CHUNK // (4 * mask[0].numel()))
    chunks = zip(input.split(images), offset.split(images), mask.split(images))
    output = torch.cat([_chunk(*tensors, geometry) for tensors in chunks])  # (N, Ho*Wo, G, D)
    if not output.isfinite().all():
        return dcnv3_reference(input, offset, mask, geometry)
    return output.reshape(*mask.shape[:3], input.shape[-1]).to(input.dtype)
