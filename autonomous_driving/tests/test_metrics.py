"""Distances, matching and average precision against naive versions, and what they must satisfy."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from ad_common.metrics.average_precision import average_precision, precision_recall
from ad_common.metrics.distance import (
    box_iou,
    chamfer_distance,
    chamfer_distances,
    frechet_distance,
    frechet_distances,
)
from ad_common.metrics.matching import match_nearest


def naive_chamfer(a: np.ndarray, b: np.ndarray) -> float:
    forward = [min(np.linalg.norm(p - q) for q in b) for p in a]
    backward = [min(np.linalg.norm(p - q) for p in a) for q in b]
    return (sum(forward) / len(forward) + sum(backward) / len(backward)) / 2


def naive_frechet(a: np.ndarray, b: np.ndarray) -> float:
    @cache
    def leash(i: int, j: int) -> float:
        here = float(np.linalg.norm(a[i] - b[j]))
        before = [(i - 1, j), (i, j - 1), (i - 1, j - 1)]
        ways = [leash(*way) for way in before if min(way) >= 0]
        return max(here, min(ways)) if ways else here

    return leash(len(a) - 1, len(b) - 1)


def naive_match(
    distances: np.ndarray, scores: np.ndarray, threshold: float, inclusive: bool
) -> list[int]:
    taken: set[int] = set()
    matched = [-1] * len(scores)
    for p in sorted(range(len(scores)), key=lambda p: -scores[p]):
        gt = int(distances[:, p].argmin())
        distance = distances[gt, p]
        if (distance < threshold or (inclusive and distance == threshold)) and gt not in taken:
            taken.add(gt)
            matched[p] = gt
    return matched


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_line_distances_equal_naive_ones(rng: np.random.Generator) -> None:
    for _ in range(30):
        d = int(rng.integers(2, 4))
        a, b = (rng.normal(size=(int(rng.integers(1, 9)), d)) for _ in "ab")
        assert chamfer_distance(a, b) == pytest.approx(naive_chamfer(a, b), abs=1e-12)
        assert frechet_distance(a, b) == pytest.approx(naive_frechet(a, b), abs=1e-12)


def test_many_pairs_equal_single_ones(rng: np.random.Generator) -> None:
    a = [rng.normal(size=(n, 3)) for n in (1, 4, 7)]
    b = [rng.normal(size=(n, 3)) for n in (5, 2)]
    expected = [[chamfer_distance(line, other) for other in b] for line in a]
    np.testing.assert_allclose(chamfer_distances(a, b), expected, atol=1e-12)
    assert chamfer_distances([], b).shape == (0, 2)
    pairs_a, pairs_b = rng.normal(size=(6, 4, 3)), rng.normal(size=(6, 7, 3))
    expected = [frechet_distance(p, q) for p, q in zip(pairs_a, pairs_b, strict=True)]
    np.testing.assert_allclose(frechet_distances(pairs_a, pairs_b), expected, atol=1e-12)


def test_only_frechet_sees_the_direction() -> None:
    line = np.stack([np.linspace(0, 10, 11), np.zeros(11)], axis=1)
    assert chamfer_distance(line, line[::-1]) == 0
    assert frechet_distance(line, line[::-1]) == 10
    assert frechet_distance(line, line) == 0
    assert frechet_distance(line, line + [0, 1.5]) == chamfer_distance(line, line + [0, 1.5]) == 1.5


def test_frechet_is_at_least_the_distance_of_both_ends(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(40, 6, 3)), rng.normal(size=(40, 9, 3))
    ends = np.maximum(*(np.linalg.norm(a[:, k] - b[:, k], axis=1) for k in (0, -1)))
    assert (frechet_distances(a, b) >= ends).all()
    np.testing.assert_allclose(frechet_distances(a, b), frechet_distances(b, a))


@pytest.mark.parametrize("shapes", [((0, 2), (3, 2)), ((3, 2), (3, 3)), ((3,), (3,))])
def test_lines_of_wrong_shape(shapes: tuple) -> None:
    with pytest.raises(ValueError, match=r"expected \(n, d\) and \(m, d\)"):
        chamfer_distance(*map(np.zeros, shapes))
    with pytest.raises(ValueError, match=r"expected \(n, d\) and \(m, d\)"):
        frechet_distance(*map(np.zeros, shapes))


def test_iou_of_known_boxes() -> None:
    a = np.array([[0, 0, 10, 10], [0, 0, 0, 0]])
    b = np.array([[5, 0, 15, 10], [0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 0, 0]])
    np.testing.assert_allclose(box_iou(a, b), [[1 / 3, 1, 0, 0], [0, 0, 0, 0]])
    assert box_iou(a, np.zeros((0, 4))).shape == (2, 0)


@pytest.mark.parametrize("inclusive", [False, True])
def test_matching_equals_the_loop(rng: np.random.Generator, inclusive: bool) -> None:
    for _ in range(50):
        distances = rng.integers(0, 6, size=rng.integers(1, 12, size=2)).astype(float)
        scores = rng.integers(0, 4, size=distances.shape[1]) / 4  # with equal scores
        matched = match_nearest(distances, scores, 3, inclusive)
        assert matched.tolist() == naive_match(distances, scores, 3, inclusive)
        assert len(set(matched[matched >= 0])) == (matched >= 0).sum()


def test_matching_of_nothing() -> None:
    assert match_nearest(np.zeros((0, 3)), np.ones(3), 1).tolist() == [-1, -1, -1]
    assert match_nearest(np.zeros((3, 0)), np.ones(0), 1).tolist() == []
    with pytest.raises(ValueError, match=r"\(num_gt, num_pred\)"):
        match_nearest(np.zeros((2, 3)), np.ones(2), 1)


def test_a_prediction_never_falls_back_to_its_second_nearest() -> None:
    distances = np.array([[0.1, 0.2], [9.0, 0.5]])
    assert match_nearest(distances, np.array([0.9, 0.8]), 1).tolist() == [0, -1]


def test_average_precision_of_known_curves() -> None:
    hits = [True, False, True]  # of two ground truths
    recall, precision = precision_recall(hits, 2)
    assert recall.tolist() == [0.5, 0.5, 1]
    assert average_precision(recall, precision) == pytest.approx(0.5 + 0.5 * 2 / 3)
    eleven = average_precision(recall, precision, "11points")
    assert eleven == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert average_precision(np.array([0.3]), np.array([1.0]), "11points") == pytest.approx(4 / 11)


def test_average_precision_bounds(rng: np.random.Generator) -> None:
    for mode in ("area", "11points"):
        assert average_precision(np.ones(1), np.ones(1), mode) == 1
        assert average_precision(np.zeros(0), np.zeros(0), mode) == 0
        assert average_precision(*precision_recall([False] * 3, 2), mode) == 0
        assert average_precision(*precision_recall([False] * 3, 0), mode) == 0
        for _ in range(20):
            curve = precision_recall(rng.random(9) < 0.5, 9)
            assert 0 <= average_precision(*curve, mode) <= 1


def test_average_precision_of_bad_input() -> None:
    with pytest.raises(ValueError, match="'voc'.*area, 11points"):
        average_precision(np.ones(1), np.ones(1), "voc")
    with pytest.raises(ValueError, match=r"expected \(n,\) for both"):
        average_precision(np.ones(1), np.ones(2))
