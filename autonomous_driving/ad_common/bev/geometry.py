"""Geometry of a BEV grid: its points, what cameras see of it, and how it moves with the car.

BEVFormer (arXiv 2203.17270), sections 3.3 and 3.4. The grid lies in the ego frame (x ahead, y to
the left, z up, in metres). Its columns run along x and its rows along y; cell (row, column) is
query `row * width + column`. Normalised grid coordinates are (x, y) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import rotate

NEAREST_DEPTH = 1e-5  # metres; points closer to the camera plane, or behind it, are not seen
CAN_BUS_SIZE = 18


def reference_points_2d(height: int, width: int, like: Tensor) -> Tensor:
    """The centres of the cells, normalised: (height * width, 2) as (x, y), as `like` is."""
    y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
    x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid_x, grid_y], -1).flatten(0, 1)  # (H * W, 2)


def reference_points_3d(
    height: int, width: int, pc_range: Sequence[float], heights: int, like: Tensor
) -> Tensor:
    """Points on a pillar over every cell.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        pc_range: (x0, y0, z0, x1, y1, z1) in metres.
        heights: Points per pillar; they are spread evenly from half a metre over the lowest to
            half a metre under the highest z.
        like: A tensor with the type and device of the result.

    Returns:
        (height * width, heights, 3) as (x, y, z) in metres.
    """
    x0, y0, z0, x1, y1, z1 = pc_range
    cells = reference_points_2d(height, width, like)
    xy = cells * cells.new_tensor([x1 - x0, y1 - y0]) + cells.new_tensor([x0, y0])
    z = torch.linspace(z0 + 0.5, z1 - 0.5, heights, device=like.device, dtype=like.dtype)
    xy = xy[:, None].expand(-1, heights, -1)
    return torch.cat([xy, z[None, :, None].expand(len(xy), -1, 1)], -1)  # (H * W, heights, 3)


def camera_matrices(img_metas: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The projections from the frame of the BEV to the images of a batch.

    Args:
        img_metas: One per sample, with `lidar2img`, a list of (4, 4) matrices, one per camera.
            Where there is `ego2lidar`, (4, 4), it is applied first; without it `lidar2img` starts
            in the ego frame already.

    Returns:
        (B, N, 4, 4) float64, `lidar2img @ ego2lidar`.

    Raises:
        ValueError: A sample has no matrices, or they have another shape or another number.
    """
    matrices = []
    for sample, meta in enumerate(img_metas):
        if "lidar2img" not in meta:
            raise ValueError(f"img_metas of sample {sample} lack lidar2img, one 4x4 per camera")
        given = np.asarray(meta["lidar2img"], dtype=np.float64)
        if given.ndim != 3 or given.shape[1:] != (4, 4):
            raise ValueError(
                f"lidar2img of sample {sample} has the shape {given.shape}; expected (N, 4, 4)"
            )
        if meta.get("ego2lidar") is not None:
            ego2lidar = np.asarray(meta["ego2lidar"], dtype=np.float64)
            if ego2lidar.shape != (4, 4):
                raise ValueError(
                    f"ego2lidar of sample {sample} has the shape {ego2lidar.shape}; expected (4, 4)"
                )
            given = given @ ego2lidar
        matrices.append(given)
    counts = {len(given) for given in matrices}
    if len(counts) > 1:
        raise ValueError(f"the samples of a batch have different numbers of cameras: {counts}")
    return np.stack(matrices)


def image_sizes(img_metas: Sequence[Mapping[str, Any]], cameras: int) -> np.ndarray:
    """Width and height of the padded images, (B, N, 2) float64.

    The metas tell it as `pad_shape`, or else `img_shape`: a (height, width, ..) per camera, or one
    for all.
    """
    sizes = []
    for sample, meta in enumerate(img_metas):
        shapes = meta.get("pad_shape", meta.get("img_shape"))
        if shapes is None:
            raise ValueError(f"img_metas of sample {sample} lack pad_shape and img_shape")
        if np.ndim(shapes[0]) == 0:
            shapes = [shapes] * cameras
        if len(shapes) != cameras:
            raise ValueError(
                f"sample {sample} has {cameras} cameras but image shapes of {len(shapes)}"
            )
        sizes.append([(shape[1], shape[0]) for shape in shapes])
    return np.asarray(sizes, dtype=np.float64)


@torch.no_grad()
def project_to_cameras(
    points: Tensor, matrices: Tensor, sizes: Tensor, nearest: float = NEAREST_DEPTH
) -> tuple[Tensor, Tensor]:
    """Where points appear in the images of all cameras of a batch.

    Sums of products instead of a matrix product: autocast and TF32 leave them exact.

    Args:
        points: (Q, D, 3) in metres, or (B, Q, D, 3).
        matrices: (B, N, 4, 4), see `camera_matrices`.
        sizes: (B, N, 2), width and height of the images in pixels.
        nearest: Points are seen from this depth on, in metres.

    Returns:
        The places (B, N, Q, D, 2), (u, v) divided by the size of the image, and whether they are
        inside the image and in front of the camera (B, N, Q, D).
    """
    points = points.expand(len(matrices), *points.shape[-3:])[:, None]  # (B, 1, Q, D, 3)
    x, y, z = points.unbind(-1)
    rows = matrices[:, :, :3, :, None, None]  # (B, N, 3, 4, 1, 1)

    def row(i: int) -> Tensor:
        return rows[:, :, i, 0] * x + rows[:, :, i, 1] * y + rows[:, :, i, 2] * z + rows[:, :, i, 3]

    depth = row(2)  # (B, N, Q, D)
    divisor = depth.clamp(min=nearest)
    u = row(0) / divisor / sizes[..., 0, None, None]
    v = row(1) / divisor / sizes[..., 1, None, None]
    seen = (depth > nearest) & (u > 0) & (u < 1) & (v > 0) & (v < 1)
    return torch.stack([u, v], -1), seen


class SeenQueries(NamedTuple):
    """Which queries of a batch the cameras see, as indexes; B samples, N cameras, Q queries.

    `index`, `points` are padded to L, the most that any camera sees; the other fields tell which
    entries count.

    Attributes:
        index: (B * N, L), the query of each entry, counted through the batch (sample * Q + query).
        points: (B * N, L, D, 2), where its D points appear in the image of that camera.
        row: (K,), the row (sample * N + camera) of each entry that counts.
        column: (K,), its column in L.
        query: (K,), its query, counted through the batch.
        cameras: (B * Q, 1), the number of cameras that see a query, at least 1.
    """

    index: Tensor
    points: Tensor
    row: Tensor
    column: Tensor
    query: Tensor
    cameras: Tensor


@torch.no_grad()
def seen_queries(places: Tensor, seen: Tensor) -> SeenQueries:
    """Gather, for each sample and camera, the queries with at least one visible point.

    Args:
        places: (B, N, Q, D, 2), see `project_to_cameras`.
        seen: (B, N, Q, D).
    """
    batch, cameras, queries = seen.shape[:3]
    any_seen = seen.any(-1)  # (B, N, Q)
    flat = any_seen.flatten(0, 1)
    row, query = flat.nonzero(as_tuple=True)
    counts = flat.sum(1)
    longest = max(int(counts.max()), 1)  # 1: the layers stay in the graph when nothing is seen
    column = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    local = row.new_zeros(batch * cameras, longest)
    local[row, column] = query
    rows = torch.arange(batch * cameras, device=row.device)[:, None]
    return SeenQueries(
        index=local + rows // cameras * queries,
        points=places.flatten(0, 1)[rows, local],
        row=row,
        column=column,
        query=query + row // cameras * queries,
        cameras=any_seen.sum(1).clamp(min=1).reshape(-1, 1),
    )


def can_bus_of(img_metas: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The motion of the car, (B, 18) float64.

    Entries 0 and 1 are the translation in metres in the world, the next to last is the yaw in
    radians, the last one is the change of the yaw in degrees, each since the previous frame.
    """
    vectors = []
    for sample, meta in enumerate(img_metas):
        vector = np.asarray(meta.get("can_bus", ()), dtype=np.float64)
        if vector.shape != (CAN_BUS_SIZE,):
            raise ValueError(
                f"img_metas of sample {sample} need can_bus with {CAN_BUS_SIZE} numbers, got the "
                f"shape {vector.shape}; without it set use_can_bus, use_shift and rotate_prev_bev "
                "to False"
            )
        vectors.append(vector)
    return np.stack(vectors)


def bev_shift(
    can_bus: np.ndarray,
    grid_length: tuple[float, float],
    bev_h: int,
    bev_w: int,
    legacy_axes: bool = False,
) -> np.ndarray:
    """How far the car moved, as a share of the grid.

    A thing at normalised place p of the grid now was at p + shift in the previous grid, once that
    one is turned to the heading of now (`rotate_bev`).

    Args:
        can_bus: (B, 18), see `can_bus_of`.
        grid_length: Height (along y) and width (along x) of a cell in metres.
        bev_h: Rows of the grid.
        bev_w: Columns of the grid.
        legacy_axes: As if the car's front were along the rows' axis y and its right along x. The
            published occupancy model was trained so (the axes of a lidar that BEVFormer has on
            nuScenes), although its grid has the front along x.

    Returns:
        (B, 2) float64, as (x, y).
    """
    east, north, yaw = can_bus[:, 0], can_bus[:, 1], can_bus[:, -2]
    length = np.hypot(east, north)
    angle = np.arctan2(north, east) - yaw  # of the motion, from the front to the left
    ahead, left = length * np.cos(angle), length * np.sin(angle)
    x, y = (-left, ahead) if legacy_axes else (ahead, left)
    return np.stack([x / (grid_length[1] * bev_w), y / (grid_length[0] * bev_h)], -1)


def rotate_bev(
    bev: Tensor,
    angles: Sequence[float],
    bev_h: int,
    bev_w: int,
    center: Sequence[float] | None = None,
) -> Tensor:
    """Turn the BEV features of the previous frame to the heading of the current one.

    Args:
        bev: (B, bev_h * bev_w, C).
        angles: How far the car turned to the left since then, one per sample, in degrees.
        bev_h: Rows of the grid.
        bev_w: Columns of the grid.
        center: The cell borders (x, y) that the car stands on; the middle of the grid if None.

    Returns:
        (B, bev_h * bev_w, C), the nearest cell's features; zeros where there was no cell.
    """
    # in float32 at least: torchvision computes the grid in the type of the map
    maps = bev.to(torch.promote_types(bev.dtype, torch.float32))
    maps = maps.transpose(1, 2).unflatten(2, (bev_h, bev_w))  # (B, C, H, W)
    center = None if center is None else list(center)
    turned = [
        rotate(one, float(angle), center=center) for one, angle in zip(maps, angles, strict=True)
    ]
    return torch.stack(turned).flatten(2).transpose(1, 2).to(bev.dtype)
