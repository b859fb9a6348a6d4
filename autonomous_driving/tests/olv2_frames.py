"""Frames for the tests of OpenLane-V2: annotations, predictions, and files in its layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from olv2.devkit.collection import CAMERAS

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


def info(timestamp: str, with_annotation: bool = True, lanes: int = 2) -> dict[str, Any]:
    """What the json file of a frame holds: small images, the front one upright."""
    sensors = {}
    for i, camera in enumerate(CAMERAS):
        width, height = (24, 32) if i == 0 else (32, 24)
        yaw = 2 * np.pi * i / len(CAMERAS)
        forward, left = [np.cos(yaw), np.sin(yaw), 0], [-np.sin(yaw), np.cos(yaw), 0]
        axes = np.array([[-x for x in left], [0, 0, -1], forward]).T  # right, down, forward
        sensors[camera] = {
            "image_path": f"train/00001/image/{camera}/{timestamp}.jpg",
            "extrinsic": {"rotation": axes.tolist(), "translation": [1.0, 0.0, 1.5]},
            "intrinsic": {
                "K": [[20, 0, width / 2], [0, 20, height / 2], [0, 0, 1]],
                "distortion": [0, 0, 0],
            },
        }
    made = {
        "version": "OpenLane-V2_v1.0",
        "segment_id": "00001",
        "meta_data": {"source": "made", "source_id": "0"},
        "timestamp": int(timestamp),
        "sensor": sensors,
        "pose": {"rotation": np.eye(3).tolist(), "translation": [100.0, 200.0, 3.0]},
    }
    if with_annotation:
        edges = np.eye(lanes, k=1, dtype=int)
        made["annotation"] = {
            "lane_centerline": [
                {
                    "id": str(i),
                    "points": lane(4 * i, 10 * i, 10 * i + 10, 201).tolist(),
                    "is_intersection_or_connector": False,
                }
                for i in range(lanes)
            ],
            "traffic_element": [
                {"id": "9", "category": 1, "attribute": 3, "points": [[4.0, 2.0], [12.0, 10.0]]}
            ],
            "topology_lclc": edges.tolist(),
            "topology_lcte": np.ones((lanes, 1), dtype=int).tolist(),
        }
    return made


def write_tree(root: Path, frames: dict[str, dict[str, Any]], split: str = "train") -> Path:
    """Json files and images of {timestamp: info} in the layout of OpenLane-V2; returns `root`."""
    for timestamp, frame in frames.items():
        path = root / split / "00001" / "info" / f"{timestamp}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(frame))
        for i, sensor in enumerate(frame["sensor"].values()):
            image = root / sensor["image_path"]
            image.parent.mkdir(parents=True, exist_ok=True)
            size = (32, 24, 3) if i == 0 else (24, 32, 3)
            cv2.imwrite(str(image), np.full(size, 10 * i, dtype=np.uint8))
    names = {split: {"00001": [f"{timestamp}.json" for timestamp in frames]}}
    (root / "data_dict_toy.json").write_text(json.dumps(names))
    return root


def result(lanes: int = 3, elements: int = 2) -> dict[str, Any]:
    """What the model returns for a frame."""
    control = np.stack([lane(4 * i, points=5) for i in range(lanes)]) if lanes else []
    return {
        "lc": {
            "control_points": np.asarray(control, dtype=np.float32).reshape(lanes, 5, 3),
            "scores": np.linspace(0.9, 0.1, lanes, dtype=np.float32),
        },
        "te": {
            "bboxes": np.tile(np.float32([4, 2, 12, 10]), (elements, 1)),
            "labels": np.full(elements, 3),
            "scores": np.linspace(0.8, 0.2, elements, dtype=np.float32),
        },
        "lclc": np.eye(lanes, k=1, dtype=np.float32) * 0.9,
        "lcte": np.full((lanes, elements), 0.9, dtype=np.float32),
    }
