"""Bezier curves of lanes: fitting and evaluating."""

from __future__ import annotations

import numpy as np
import pytest
from olv2 import bezier


def test_a_curve_survives_sampling_and_fitting():
    control = np.random.default_rng(0).normal(size=(5, 3)) * 10
    points = bezier.evaluate(control, 201)
    np.testing.assert_allclose(bezier.fit(points), control, atol=1e-6)


def test_the_ends_stay_exactly_where_they_are():
    points = np.cumsum(np.random.default_rng(1).normal(size=(50, 3)), axis=0)
    control = bezier.fit(points)
    assert (control[0] == points[0]).all()
    assert (control[-1] == points[-1]).all()
    ends = bezier.evaluate(control, 11)[[0, -1]]
    np.testing.assert_allclose(ends, points[[0, -1]], atol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 11, 201])
def test_a_straight_line_is_fitted_exactly_whatever_its_number_of_points(n):
    share = np.linspace(0, 1, n)[:, None]
    points = np.array([5.0, -3.0, 0.5]) + share * np.array([30.0, 8.0, -1.0])
    control = bezier.fit(points)
    chord = np.linspace(0, 1, 5)[:, None]
    np.testing.assert_allclose(control, points[0] + chord * [30.0, 8.0, -1.0], atol=1e-9)
    np.testing.assert_allclose(bezier.evaluate(control, n), points, atol=1e-9)


def test_the_fit_is_the_least_squares_solution():
    points = np.cumsum(np.random.default_rng(2).normal(size=(40, 2)), axis=0)
    control = bezier.fit(points)

    def error(c):
        return ((bezier.evaluate(c, 40) - points) ** 2).sum()

    for i in (1, 2, 3):
        for step in (-1e-3, 1e-3):
            moved = control.copy()
            moved[i] += step
            assert error(moved) > error(control)


def test_evaluate_takes_batches_and_keeps_float32():
    control = np.random.default_rng(3).normal(size=(4, 6, 5, 3)).astype(np.float32)
    points = bezier.evaluate(control, 11)
    assert points.shape == (4, 6, 11, 3) and points.dtype == np.float32
    np.testing.assert_allclose(points[2, 3], bezier.evaluate(control[2, 3], 11), rtol=1e-6)
    assert bezier.evaluate(np.array([[0, 0, 0], [2, 0, 0]]), 3).tolist()[1] == [1, 0, 0]


@pytest.mark.parametrize("points", [np.zeros((1, 3)), np.zeros((0, 3)), np.full((5, 3), np.nan)])
def test_what_is_no_lane_is_refused(points):
    with pytest.raises(ValueError, match="at least 2 finite points"):
        bezier.fit(points)
