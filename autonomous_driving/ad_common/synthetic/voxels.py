"""Ray casting in a voxel grid: which voxels rays pass and which they hit.

The rays of a rig are fixed in the ego frame, as is the grid. So the voxels along each ray are
found once (grid traversal of Amanatides and Woo, 1987); a frame then only looks them up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Paths:
    """The voxels along rays, in the order in which a ray enters them.

    Attributes:
        starts: (rays + 1,) int64; ray r owns the entries starts[r] to starts[r + 1].
        voxels: (entries,) int32; flat indexes into the grid.
        faces: (entries,) int8; axis (0 x, 1 y, 2 z) across which the voxel is entered.
    """

    starts: np.ndarray
    voxels: np.ndarray
    faces: np.ndarray


def trace(
    origins: np.ndarray,
    directions: np.ndarray,
    lower: np.ndarray,
    size: float,
    shape: tuple[int, int, int],
) -> Paths:
    """Follow rays that start inside a grid until they leave it.

    Args:
        origins: (rays, 3) in metres.
        directions: (rays, 3), of any length but zero.
        lower: (3,) corner of the grid with the smallest coordinates.
        size: edge of a voxel in metres.
        shape: of the grid.

    Raises:
        ValueError: a ray starts outside.
    """
    place = (origins - lower) / size  # in voxels
    cell = np.floor(place).astype(np.int64)  # (rays, 3)
    if ((cell < 0) | (cell >= shape)).any():
        raise ValueError(f"a ray starts outside the grid of {shape} voxels from {lower}")
    with np.errstate(divide="ignore"):
        pace = 1.0 / np.abs(directions)  # way per voxel along each axis
    sign = np.where(directions > 0, 1, -1)
    rest = np.where(directions > 0, cell + 1 - place, place - cell)
    with np.errstate(invalid="ignore"):
        border = np.where(directions == 0, np.inf, rest * pace)  # way to the next border
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    ray = np.arange(len(origins))
    face = np.full(len(origins), 2, np.int8)
    steps: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    counts = np.zeros(len(origins), np.int64)
    limits = np.asarray(shape)
    while len(ray):
        steps.append((ray, (cell @ strides).astype(np.int32), face))
        counts[ray] += 1
        axis = border.argmin(axis=1)
        row = np.arange(len(ray))
        cell[row, axis] += sign[row, axis]
        border[row, axis] += pace[row, axis]
        value = cell[row, axis]
        inside = (value >= 0) & (value < limits[axis])
        ray, cell, border = ray[inside], cell[inside], border[inside]
        pace, sign, face = pace[inside], sign[inside], axis[inside].astype(np.int8)
    starts = np.concatenate([[0], np.cumsum(counts)])
    voxels = np.empty(starts[-1], np.int32)
    faces = np.empty(starts[-1], np.int8)
    for number, (index, voxel, axis) in enumerate(steps):
        voxels[starts[index] + number] = voxel
        faces[starts[index] + number] = axis
    return Paths(starts, voxels, faces)


def first_hits(paths: Paths, occupied: np.ndarray) -> np.ndarray:
    """For each ray the entry of the first occupied voxel, -1 for none.

    Args:
        occupied: boolean grid.

    Returns:
        (rays,) int64 indexes into `paths.voxels`.
    """
    hits = np.flatnonzero(occupied.ravel()[paths.voxels])
    hits = np.append(hits, len(paths.voxels))
    first = hits[np.searchsorted(hits, paths.starts[:-1])]
    return np.where(first < paths.starts[1:], first, -1)


def observed(paths: Paths, hits: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Which voxels are passed free or hit first, as a boolean grid."""
    stops = np.where(hits < 0, paths.starts[1:], hits + 1)
    change = np.zeros(len(paths.voxels) + 1, np.int8)
    change[paths.starts[:-1]] += 1
    change[stops] -= 1  # may be the start of the next ray: the two cancel out
    seen = np.zeros(int(np.prod(shape)), bool)
    seen[paths.voxels[np.cumsum(change[:-1], dtype=np.int8) > 0]] = True
    return seen.reshape(shape)
