"""A smooth road and the places beside it, for the synthetic data sets.

A road is a densely sampled centre line in a flat world (metres). A place is given by (s, d): the
way along the road and the distance to its left.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

STEP = 0.5  # metres between samples of a centre line


class Road:
    """A road of slowly changing curvature.

    Args:
        rng: of the shape.
        length: in metres; s runs from 0 to `length`.
        curvature: its largest absolute value, 1 / metres.
        origin: where s = 0 is, (x, y).
    """

    def __init__(
        self,
        rng: np.random.Generator,
        length: float,
        curvature: float,
        origin: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.s = np.arange(0, length + STEP, STEP)
        period, phase = rng.uniform(90, 160), rng.uniform(0, 2 * np.pi)
        bend = curvature * rng.uniform(-1, 1) + 0.5 * curvature * np.sin(
            2 * np.pi * self.s / period + phase
        )
        bend = np.clip(bend, -curvature, curvature)
        turned = np.cumsum(bend) * STEP
        self.heading = rng.uniform(-np.pi, np.pi) + turned - turned[0]  # (n,)
        middle = self.heading[:-1] + np.diff(self.heading) / 2
        steps = STEP * np.stack([np.cos(middle), np.sin(middle)], axis=1)
        self.points = np.vstack([[0.0, 0.0], np.cumsum(steps, axis=0)]) + origin  # (n, 2)
        self.tree = cKDTree(self.points)

    def at(self, s: np.ndarray | float, d: np.ndarray | float = 0.0) -> tuple[np.ndarray, ...]:
        """Places (..., 2) and headings (...) at (s, d)."""
        s, d = np.broadcast_arrays(np.asarray(s, float), np.asarray(d, float))
        heading = np.interp(s, self.s, self.heading)
        x = np.interp(s, self.s, self.points[:, 0]) - d * np.sin(heading)
        y = np.interp(s, self.s, self.points[:, 1]) + d * np.cos(heading)
        return np.stack([x, y], axis=-1), heading

    def locate(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(s, d) of world points (..., 2): of the nearest place of the centre line."""
        _, index = self.tree.query(points)
        heading = self.heading[index]
        delta = points - self.points[index]
        along = delta[..., 0] * np.cos(heading) + delta[..., 1] * np.sin(heading)
        left = delta[..., 1] * np.cos(heading) - delta[..., 0] * np.sin(heading)
        return self.s[index] + along, left


def to_ego(points: np.ndarray, place: np.ndarray, heading: float) -> np.ndarray:
    """World points (..., 2) in the frame of a car at `place` (2,) with `heading`."""
    cos, sin = np.cos(heading), np.sin(heading)
    return (points - place) @ np.array([[cos, -sin], [sin, cos]])


def to_world(points: np.ndarray, place: np.ndarray, heading: float) -> np.ndarray:
    """The inverse of `to_ego`."""
    cos, sin = np.cos(heading), np.sin(heading)
    return points @ np.array([[cos, sin], [-sin, cos]]) + place


def cell_noise(points: np.ndarray, cell: float, seed: int) -> np.ndarray:
    """A value in [-1, 1] for each world point (..., 2), equal within a square of `cell` metres."""
    x, y = (np.floor(points[..., k] / cell).astype(np.int64) for k in (0, 1))
    mixed = (x * 73856093) ^ (y * 19349663) ^ (seed * 83492791)
    mixed = (mixed ^ (mixed >> 13)) * 1274126177 & 0x7FFFFFFF
    return ((mixed ^ (mixed >> 15)) & 0xFFFF) / 32767.5 - 1
