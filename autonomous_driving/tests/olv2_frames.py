"""Frames for the tests of OpenLane-V2: annotations, predictions, and files in its layout."""

from __future__ import annotations

from typing import Any

import numpy as np

KEY = ("val", "segment", "1")


def lane(y: float, start: float = 0, end: float = 10, points: int = 11) -> np.ndarray:
    """A straight lane along x."""
    line = np.zeros((points, 3), dtype=np.float32)
    line[:, 0], line[:, 1] = np.linspace(start, end, points), y
    return line


def annotation(
    lanes: list[np.ndarray],
    elements: list[tuple[np.ndarray, int]],
    lclc: np.ndarray | list,
    lcte: np.ndarray | list,
) -> dict[str, Any]:
    """Ground truth of a frame; elements are (points (2, 2), attribute)."""
    n, k = len(lanes), len(elements)
    return {
        "lane_centerline": [{"id": str(i), "points": points} for i, points in enumerate(lanes)],
        "traffic_element": [
            {"id": str(n + i), "points": points, "attribute": attribute, "category": 1}
            for i, (points, attribute) in enumerate(elements)
        ],
        "topology_lclc": np.asarray(lclc, dtype=np.int8).reshape(n, n),
        "topology_lcte": np.asarray(lcte, dtype=np.int8).reshape(n, k),
    }


def predictions(
    lanes: list[tuple[np.ndarray, float]],
    elements: list[tuple[np.ndarray, int, float]],
    lclc: np.ndarray | list,
    lcte: np.ndarray | list,
) -> dict[str, Any]:
    """Predictions: lanes are (points, confidence), elements (points, attribute, confidence)."""
    n, k = len(lanes), len(elements)
    return {
        "lane_centerline": [
            {"id": 1000 + i, "points": points, "confidence": confidence}
            for i, (points, confidence) in enumerate(lanes)
        ],
        "traffic_element": [
            {"id": 2000 + i, "points": points, "attribute": attribute, "confidence": confidence}
            for i, (points, attribute, confidence) in enumerate(elements)
        ],
        "topology_lclc": np.asarray(lclc, dtype=np.float32).reshape(n, n),
        "topology_lcte": np.asarray(lcte, dtype=np.float32).reshape(n, k),
    }


def submission(frames: dict[tuple[str, str, str], dict[str, Any]]) -> dict[str, Any]:
    """The predictions of frames as a file with all fields."""
    return {
        "method": "test",
        "authors": ["someone"],
        "e-mail": "someone@example.com",
        "institution / company": "none",
        "country / region": "CH",
        "results": {key: {"predictions": frame} for key, frame in frames.items()},
    }


def random_frame(
    rng: np.random.Generator, gts: int = 12, preds: int = 40, elements: int = 5
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Annotation and predictions: noisy copies of the truth, some twice, and lanes of noise."""
    n, k = int(rng.integers(0, gts + 1)), int(rng.integers(0, elements + 1))
    t = np.linspace(0, 1, 11)[:, None]

    def curve() -> np.ndarray:
        start, step, bend = (rng.uniform(-size, size, 3) for size in (40, 30, 10))
        line = start + t * step + t * (1 - t) * bend
        return (line * [1, 0.5, 0.02]).astype(np.float32)

    def box() -> np.ndarray:
        corner, size = rng.uniform(0, 1500, 2), rng.uniform(20, 200, 2)
        return np.stack([corner, corner + size]).astype(np.float32)

    true_lanes = [curve() for _ in range(n)]
    true_boxes = [(box(), int(rng.integers(0, 13))) for _ in range(k)]
    lclc, lcte = rng.random((n, n)) < 0.15, rng.random((n, k)) < 0.3
    truth = annotation(true_lanes, true_boxes, lclc, lcte)

    origin = rng.integers(0, n, preds) if n else np.zeros(0, dtype=int)
    lanes = [
        (true_lanes[i] + rng.normal(0, rng.choice([0.2, 0.8]), 3)).astype(np.float32)
        for i in origin[: preds // 2]
    ]
    lanes += [curve() for _ in range(preds - len(lanes))]
    scores = rng.random(preds)
    boxes = [
        (points + rng.normal(0, 12, (2, 2)).astype(np.float32), attribute)
        for points, attribute in true_boxes
        for _ in range(2)
    ]
    boxes = [(b, a if rng.random() < 0.7 else int(rng.integers(0, 13))) for b, a in boxes]
    boxes += [(box(), int(rng.integers(0, 13))) for _ in range(3)]
    box_scores = rng.random(len(boxes))

    edges, element_edges = (0.99 * rng.random((preds, m)) for m in (preds, len(boxes)))
    for i, a in enumerate(origin[: preds // 2]):
        for j, b in enumerate(origin[: preds // 2]):
            edges[i, j] = 0.4 * lclc[a, b] + 0.59 * rng.random()
        for j in range(2 * k):
            element_edges[i, j] = 0.4 * lcte[a, j // 2] + 0.59 * rng.random()
    guess = predictions(
        list(zip(lanes, scores, strict=True)),
        [(b, a, s) for (b, a), s in zip(boxes, box_scores, strict=True)],
        edges,
        element_edges,
    )
    return truth, guess
