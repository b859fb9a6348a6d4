"""Distances between polylines and between boxes, as the lane and map metrics use them."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist


def chamfer_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Half the sum of the mean distances from each set to the nearest point of the other.

    Args:
        a: (n, d) points in metres.
        b: (m, d) points.

    Raises:
        ValueError: a line has no points, or the dimensions differ.
    """
    distances = cdist(*_lines(a, b))
    return float((distances.min(axis=1).mean() + distances.min(axis=0).mean()) / 2)


def chamfer_distances(a: list[np.ndarray], b: list[np.ndarray]) -> np.ndarray:
    """`chamfer_distance` of every line of `a` with every line of `b`: (len(a), len(b))."""
    if not a or not b:
        return np.zeros((len(a), len(b)))
    for line in (*a, *b):
        _lines(line, a[0])
    starts_a, counts_a = _starts(a)
    starts_b, counts_b = _starts(b)
    distances = cdist(np.concatenate(a), np.concatenate(b))  # (sum n, sum m)
    to_b = np.minimum.reduceat(distances, starts_b, axis=1)  # (sum n, B)
    to_a = np.minimum.reduceat(distances, starts_a, axis=0)  # (A, sum m)
    forward = np.add.reduceat(to_b, starts_a, axis=0) / counts_a[:, None]
    backward = np.add.reduceat(to_a, starts_b, axis=1) / counts_b[None]
    return (forward + backward) / 2  # (A, B)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Discrete Fréchet distance: the shortest leash for walking both lines from start to end.

    Unlike the Chamfer distance it tells a line from the reversed one.

    Args:
        a: (n, d) points in metres, in order.
        b: (m, d) points.

    Raises:
        ValueError: a line has no points, or the dimensions differ.

    Source: Eiter and Mannila, Computing discrete Fréchet distance, 1994.
    """
    a, b = _lines(a, b)
    return float(frechet_distances(a[None], b[None])[0])


def frechet_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`frechet_distance` of pair p of lines for all p at once: (p, n, d), (p, m, d) -> (p,).

    The table of the dynamic program is filled one anti-diagonal at a time.
    """
    steps = np.linalg.norm(a[:, :, None] - b[:, None], axis=-1)  # (P, n, m)
    _, n, m = steps.shape
    leash = np.full((len(a), n + 1, m + 1), np.inf)  # row and column 0: outside
    leash[:, 0, 0] = 0
    for diagonal in range(n + m - 1):
        i = np.arange(max(0, diagonal - m + 1), min(n, diagonal + 1))
        j = diagonal - i
        reached = np.minimum(leash[:, i, j + 1], leash[:, i + 1, j])
        reached = np.minimum(reached, leash[:, i, j])
        leash[:, i + 1, j + 1] = np.maximum(reached, steps[:, i, j])
    return leash[:, n, m]


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every box of `a` with every box of `b`.

    Args:
        a: (n, 4) x1, y1, x2, y2 in pixels, no +1 on the sides.
        b: (m, 4).

    Returns:
        (n, m) in 0..1; 0 where both boxes have no area.
    """
    a = np.asarray(a, dtype=np.float64).reshape(-1, 4)[:, None]
    b = np.asarray(b, dtype=np.float64).reshape(-1, 4)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.clip(sides, 0, None).prod(axis=-1)  # (n, m)
    area_a = (a[..., 2:] - a[..., :2]).prod(axis=-1)
    area_b = (b[..., 2:] - b[..., :2]).prod(axis=-1)
    union = area_a + area_b - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _lines(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise ValueError(
            f"lines of shape {a.shape} and {b.shape}: expected (n, d) and (m, d) with n, m >= 1"
        )
    return a, b


def _starts(lines: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    counts = np.array([len(line) for line in lines])
    return np.concatenate(([0], np.cumsum(counts)[:-1])), counts
