"""Lanes as Bezier curves: fitting control points to a polyline, and points of a curve.

A centre line is described by five control points, of which the first and the last are its ends
(the parameterisation of the OpenLane-V2 baseline, arXiv 2304.10440, section 4).
"""

from __future__ import annotations

import numpy as np
from scipy.special import comb


def bernstein(n_points: int, n_control: int) -> np.ndarray:
    """Values of the Bernstein polynomials at `n_points` equally spaced t in [0, 1].

    Args:
        n_points: number of t values, at least 2; t = i / (n_points - 1).
        n_control: number of control points, at least 2 (degree + 1).

    Returns:
        (n_points, n_control) float64; every row sums to 1.

    Raises:
        ValueError: fewer than two points or control points were asked for.
    """
    if n_points < 2 or n_control < 2:
        raise ValueError(
            f"a curve needs at least 2 points and 2 control points, "
            f"got {n_points} points and {n_control} control points"
        )
    t = np.linspace(0.0, 1.0, n_points)[:, None]  # (n_points, 1)
    k = np.arange(n_control)
    degree = n_control - 1
    return comb(degree, k) * t**k * (1 - t) ** (degree - k)


def fit(points: np.ndarray, n_control: int = 5) -> np.ndarray:
    """Control points of the Bezier curve nearest to a polyline, with its ends kept exactly.

    Point i belongs to t = i / (n - 1). The inner control points minimise the sum of squared
    distances; with fewer points than unknowns, the solution nearest to a straight line is taken.

    Args:
        points: (n, d) ordered points, n >= 2, any unit.
        n_control: number of control points.

    Returns:
        (n_control, d) float64, in the unit of the points.

    Raises:
        ValueError: the points are not an (n >= 2, d) array of finite numbers.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or len(points) < 2 or not np.isfinite(points).all():
        raise ValueError(
            f"a lane must be an (n, 3) array of at least 2 finite points, got shape {points.shape}"
        )
    basis = bernstein(len(points), n_control)
    share = np.linspace(0.0, 1.0, n_control)[:, None]
    control = (1 - share) * points[0] + share * points[-1]  # evenly spaced on the chord
    inner = slice(1, n_control - 1)
    residual = points - basis @ control
    control[inner] += np.linalg.lstsq(basis[:, inner], residual, rcond=None)[0]
    return control


def evaluate(control: np.ndarray, n: int) -> np.ndarray:
    """Points of Bezier curves at n equally spaced t, both ends included.

    Args:
        control: (..., n_control, d) control points.
        n: number of points, at least 2.

    Returns:
        (..., n, d) in the dtype of `control` (float64 for integers).
    """
    control = np.asarray(control)
    dtype = control.dtype if control.dtype.kind == "f" else np.float64
    return (bernstein(n, control.shape[-2]) @ control).astype(dtype)
