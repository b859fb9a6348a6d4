"""Polylines as targets: simplified and normalised lines, boxes, tokens, weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hdmap.polygonize import PolygonizeLocalMapBbox, line_box, sequence_weights
from hdmap.tokens import CLASSES, denormalise, detokenise
from hdmap.vectorize import VectorizeMap

ROI, CANVAS = (60.0, 30.0), (200, 100)


def vectorize(annotation: dict[str, Any], **options: Any) -> list | None:
    """The lines that the step makes."""
    results = VectorizeMap(**options)({"annotation": annotation})
    return None if results is None else results["lines"]


def polygonize(lines: list[tuple[int, np.ndarray]], **options: Any) -> dict[str, Any]:
    """The targets that the step makes."""
    return PolygonizeLocalMapBbox(**options)({"lines": lines})["polys"]


def test_normalising_has_a_margin_of_two_metres() -> None:
    [(label, line)] = vectorize({"divider": [[[-30, -15, 7], [30, 15, 7]]]})
    assert label == CLASSES.index("divider")
    np.testing.assert_allclose(line, [[0, 0], [60 / 62, 30 / 32]])


def test_classes_are_in_order() -> None:
    line = [[0.0, 0], [1, 1]]
    found = vectorize({"boundary": [line, line], "ped_crossing": [line], "divider": []})
    assert [label for label, _ in found] == [0, 2, 2]


@pytest.mark.parametrize(("off", "kept"), [(0.15, 2), (0.25, 3)])
def test_vertices_near_to_the_line_are_taken_out(off: float, kept: int) -> None:
    [(_, line)] = vectorize({"divider": [[[0, 0], [5, off], [10, 0]]]})
    assert len(line) == kept
    [(_, line)] = vectorize({"divider": [[[0, 0], [5, off], [10, 0]]]}, simplify=0)
    assert len(line) == 3


def test_a_ring_stays_closed() -> None:
    square = [[0.0, 0], [4, 0], [4, 3], [0, 3], [0, 0]]
    [(_, line)] = vectorize({"ped_crossing": [square]})
    np.testing.assert_allclose(denormalise(line, ROI), square, atol=1e-9)


def test_lines_are_cut_at_the_region() -> None:
    hook = [[0.0, 0], [0, 20], [5, 20], [5, 0]]  # leaves the region and comes back
    pieces = [denormalise(line, ROI) for _, line in vectorize({"divider": [hook]})]
    np.testing.assert_allclose(pieces[0], [[0, 0], [0, 15]], atol=1e-9)
    np.testing.assert_allclose(pieces[1], [[5, 15], [5, 0]], atol=1e-9)
    assert vectorize({"divider": [[[40.0, 0], [50, 0]]]}) is None
    assert len(vectorize({"divider": [[[-30.0, 15], [30, 15.0005]]]})) == 1  # along the border


def test_box_of_a_line() -> None:
    box = line_box(np.array([[0.2, 0.5], [0.4, 0.9], [0.3, 0.1]]), 4 / 200)
    np.testing.assert_allclose(box, [0.2, 0.1, 0.4, 0.9])


def test_a_short_side_is_widened() -> None:
    level = np.array([[0.2, 0.5], [0.4, 0.5]])
    np.testing.assert_allclose(line_box(level, 0.02), [0.2, 0.49, 0.4, 0.51])
    at_border = np.array([[0.2, 0.0], [0.4, 0.0]])
    np.testing.assert_allclose(line_box(at_border, 0.02), [0.2, 0, 0.4, 0.01])
    almost = np.array([[0.2, 0.5], [0.4, 0.51999]])
    np.testing.assert_allclose(line_box(almost, 0.02), [0.2, 0.4999, 0.4, 0.52009])


def test_targets_of_a_line() -> None:
    line = np.array([[0.25, 0.5], [0.5, 1.0]])
    polys = polygonize([(1, line)])
    np.testing.assert_allclose(polys["det_bbox"], [[50, 50, 100, 99.9]], rtol=1e-6)
    assert polys["det_bbox"].dtype == np.float32
    assert polys["sequences"][0].tolist() == [51, 51, 101, 100, 0]  # 49.75, 49.5, 99.5, 99
    assert polys["gen_bbox"].tolist() == [[50, 50, 100, 99]]
    legacy = polygonize([(1, line)], legacy_truncate=True)
    assert legacy["sequences"][0].tolist() == [50, 50, 100, 100, 0]
    assert legacy["gen_bbox"].tolist() == [[49, 49, 99, 99]]
    assert legacy["det_bbox"].tolist() == polys["det_bbox"].tolist()


def test_boxes_of_the_detector_keep_off_the_border() -> None:
    polys = polygonize([(2, np.array([[0.0, 0.0], [1.0, 1.0]]))])
    np.testing.assert_allclose(polys["det_bbox"], [[0.1, 0.1, 199.9, 99.9]], rtol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_targets_of_many_lines(seed: int) -> None:
    rng = np.random.default_rng(seed)
    metres = [rng.uniform((-30, -15), (30, 15), (n, 2)) for n in (5, 9, 20, 30)]
    lines = vectorize({"boundary": metres}, simplify=0)
    polys = polygonize(lines)
    assert len(polys["det_label"]) == 4 and polys["gen_bbox"].shape == (4, 4)
    for i, line in enumerate(metres):
        tokens, weight = polys["sequences"][i], polys["gen_weight"][i]
        assert len(tokens) == len(weight) == 2 * len(line) + 1 and tokens[-1] == 0
        assert tokens[:-1].min() >= 1 and tokens[:-1:2].max() <= 200 and tokens[1::2].max() <= 100
        cell = (62 / 199, 32 / 99)
        again = denormalise(detokenise(tokens, CANVAS), ROI)
        assert (np.abs(again - line) <= np.array(cell) / 2 + 1e-9).all()
        corners = polys["gen_bbox"][i].reshape(2, 2)  # of the tokens, counted from 0
        assert (tokens[:-1].reshape(-1, 2).min(axis=0) - 1 == corners[0]).all()
        assert (tokens[:-1].reshape(-1, 2).max(axis=0) - 1 == corners[1]).all()


def test_even_weights() -> None:
    weights = polygonize([(0, np.array([[0.1, 0.1], [0.2, 0.1], [0.9, 0.1]]))])["gen_weight"][0]
    np.testing.assert_allclose(weights, np.full(7, 1 / 7), rtol=1e-6)


def test_weights_by_the_length_of_edges() -> None:
    line = np.array([[0.0, 0.0], [0.1, 0.0], [0.4, 0.0]])  # edges 1 : 3, vertices 1 : 4 : 3
    weights = polygonize([(2, line)])["gen_weight"][0]
    np.testing.assert_allclose(weights, np.array([1, 1, 4, 4, 3, 3, 16 / 6]) / 16, rtol=1e-6)


def test_lengths_are_measured_on_the_canvas() -> None:
    line = np.array([[0.0, 0.0], [99 / 199, 0.0], [99 / 199, 1.0]])  # 99 pixels each
    weights = sequence_weights(line, CANVAS, by_length=True)
    np.testing.assert_allclose(weights[:-1], np.array([1, 1, 2, 2, 1, 1]) / 8, rtol=1e-6)


def test_weights_of_a_line_without_length() -> None:
    weights = sequence_weights(np.full((2, 2), 0.3), CANVAS, by_length=True)
    np.testing.assert_allclose(weights, np.full(5, 0.2), rtol=1e-6)
