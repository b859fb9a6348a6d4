"""Inverse perspective mapping: the features of cameras on horizontal planes.

VectorMapNet (arXiv 2206.08920), section 3.2: planes at some heights are projected into the
cameras, and each point takes the mean of what the cameras that see it have there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import project_to_cameras, seen_queries

NEAREST_DEPTH = 1e-9  # metres


def plane_points(
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    heights: Sequence[float],
    size: tuple[int, int],
) -> Tensor:
    """Points of horizontal planes, both ends of the ranges included.

    Args:
        x_range: First and last x in metres, ahead.
        y_range: First and last y in metres, to the left.
        heights: The z of each plane in metres.
        size: Points along y (rows) and along x (columns).

    Returns:
        (planes, rows, columns, 3) float32, as (x, y, z).
    """
    rows, columns = size
    z, y, x = torch.meshgrid(
        torch.tensor(heights, dtype=torch.float32),
        torch.linspace(*y_range, rows),
        torch.linspace(*x_range, columns),
        indexing="ij",
    )
    return torch.stack([x, y, z], -1)


def sample_cameras(
    features: Tensor, points: Tensor, ego2img: Tensor, image_size: tuple[int, int] | Tensor
) -> tuple[Tensor, Tensor]:
    """Mean features of the cameras that see each point; zeros where none does.

    For each camera only the points that it sees are sampled.

    Args:
        features: (B, N, C, h, w), maps that cover the whole padded images.
        points: (..., 3) in metres, the same for all samples.
        ego2img: (B, N, 4, 4), projection matrices to pixels of the padded images.
        image_size: Height and width of the padded images, or those of each camera, (B, N, 2).

    Returns:
        The means (B, C, ...), and the number of cameras that see each point (B, ...).

    Raises:
        ValueError: The shapes do not fit.
    """
    if features.ndim != 5 or ego2img.shape != (*features.shape[:2], 4, 4):
        raise ValueError(
            f"features {tuple(features.shape)} and ego2img {tuple(ego2img.shape)} do not fit; "
            "expected (samples, cameras, C, h, w) and (samples, cameras, 4, 4)"
        )
    batch, cameras, channels = features.shape[:3]
    exact = torch.promote_types(features.dtype, torch.float32)
    matrices = ego2img.to(features.device, exact)
    sizes = torch.as_tensor(image_size, device=features.device, dtype=exact).flip(-1)
    flat = points.reshape(-1, 1, 3).to(features.device, exact)  # (P, 1, 3)
    places, seen = project_to_cameras(
        flat, matrices, sizes.expand(batch, cameras, 2), NEAREST_DEPTH
    )
    entries = seen_queries(places, seen)
    grid = (2 * entries.points - 1).transpose(1, 2)  # (B * N, 1, L, 2)
    sampled = F.grid_sample(features.flatten(0, 1).to(exact), grid, align_corners=False)
    found = sampled.squeeze(2).transpose(1, 2)[entries.row, entries.column]  # (K, C)
    total = found.new_zeros(batch * len(flat), channels).index_add(0, entries.query, found)
    mean = (total / entries.cameras).to(features.dtype).unflatten(0, (batch, -1)).transpose(1, 2)
    shape = points.shape[:-1]
    return mean.reshape(batch, channels, *shape), seen.sum(1).view(batch, *shape)
