"""The OpenLane-V2 score (OLS), its parts, and the F-score of lanes.

Source: OpenLane-V2 (arXiv 2304.10440), section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ad_common.datasets.pickles import read_pickle
from tqdm import tqdm

from .check import check_results
from .collection import ATTRIBUTES, FrameKey, frame_text, load_collection
from .detection import (
    ELEMENT_THRESHOLD,
    LANE_THRESHOLDS,
    PooledPrecision,
    element_distances,
    lane_distances,
)
from .f_score import LaneFScore
from .topology import VERSIONS, TopologyPrecision

SCORE, F_SCORE = "OpenLane-V2 Score", "F-Score for 3D Lane"


def evaluate(
    ground_truth: str | Path | Mapping[FrameKey, Mapping[str, Any]],
    predictions: str | Path | Mapping[str, Any],
    metric: str = "v1.1",
) -> dict[str, float]:
    """Compares predictions with the annotation of every frame.

    Args:
        ground_truth: a collection or its file; 11 points per lane in the official one.
        predictions: a submission or its file.
        metric: definition of the topology part, "v1.0" (published results) or "v1.1" (now
            official; the same in 2.1).

    Returns:
        "OpenLane-V2 Score", "DET_l", "DET_t", "TOP_ll", "TOP_lt", "F-Score for 3D Lane", 0 to 1.

    Raises:
        OSError: a file cannot be read.
        ValueError: unknown metric, wrong format, frames missing or without annotation.
    """
    if isinstance(ground_truth, (str, Path)):
        ground_truth = load_collection(ground_truth)
    if isinstance(predictions, (str, Path)):
        if not Path(predictions).is_file():
            raise FileNotFoundError(
                f"{predictions} does not exist; tools/test.py --format-only writes such a file"
            )
        predictions = read_pickle(predictions)
    evaluation = Evaluation(metric)
    check_results(predictions)
    results = predictions["results"]
    _check_frames(ground_truth, results)
    for key in tqdm(ground_truth, desc="evaluating", leave=False, disable=None):
        evaluation.add(ground_truth[key]["annotation"], results[key]["predictions"])
    return evaluation.values()


class Evaluation:
    """Adds up the parts of the score, one frame after the other.

    Args:
        metric: "v1.0" or "v1.1".

    Raises:
        ValueError: unknown metric.
    """

    def __init__(self, metric: str = "v1.1") -> None:
        if metric not in VERSIONS:
            raise ValueError(f"metric {metric!r}: use one of {', '.join(VERSIONS)}")
        self.lanes = [PooledPrecision(threshold) for threshold in LANE_THRESHOLDS]
        self.elements = [PooledPrecision(ELEMENT_THRESHOLD) for _ in ATTRIBUTES]
        self.lane_edges, self.element_edges = (TopologyPrecision(metric) for _ in range(2))
        self.f_score = LaneFScore()

    def add(self, annotation: Mapping[str, Any], predictions: Mapping[str, Any]) -> None:
        """Counts a frame: its annotation and what a submission has as its `predictions`."""
        gts, preds = (_points(part["lane_centerline"]) for part in (annotation, predictions))
        scores = _field(predictions["lane_centerline"], "confidence")
        distances = lane_distances(gts, preds)
        lane_hits = [precision.add(distances, scores) for precision in self.lanes]

        true, shown = annotation["traffic_element"], predictions["traffic_element"]
        boxes, shown_boxes = (np.array(_points(part)).reshape(-1, 4) for part in (true, shown))
        element_scores = _field(shown, "confidence")
        apart = element_distances(boxes, shown_boxes)
        attributes, shown_attributes = (_field(part, "attribute") for part in (true, shown))
        for attribute, precision in enumerate(self.elements):
            rows, columns = attributes == attribute, shown_attributes == attribute
            precision.add(apart[np.ix_(rows, columns)], element_scores[columns])
        element_hits = PooledPrecision(ELEMENT_THRESHOLD).add(apart, element_scores)

        n, k = len(gts), len(true)
        lclc = np.asarray(annotation["topology_lclc"]).reshape(n, n)
        lcte = np.asarray(annotation["topology_lcte"]).reshape(n, k)
        for hits in lane_hits:
            lane_side, element_side = (hits, scores), (element_hits, element_scores)
            self.lane_edges.add(lclc, predictions["topology_lclc"], lane_side, lane_side)
            self.element_edges.add(lcte, predictions["topology_lcte"], lane_side, element_side)
        self.f_score.add(gts, preds)

    def values(self) -> dict[str, float]:
        """The score and its parts over the frames so far."""
        det_l = float(np.mean([precision.value() for precision in self.lanes]))
        det_t = float(np.mean([precision.value() for precision in self.elements]))
        top_ll, top_lt = self.lane_edges.value(), self.element_edges.value()
        return {
            SCORE: float(np.mean([det_l, det_t, np.sqrt(top_ll), np.sqrt(top_lt)])),
            "DET_l": det_l,
            "DET_t": det_t,
            "TOP_ll": top_ll,
            "TOP_lt": top_lt,
            F_SCORE: self.f_score.value(),
        }


def _points(entries: Iterable[Mapping[str, Any]]) -> list[np.ndarray]:
    return [np.asarray(entry["points"], dtype=np.float64) for entry in entries]


def _field(entries: Iterable[Mapping[str, Any]], name: str) -> np.ndarray:
    return np.array([entry[name] for entry in entries], dtype=np.float64)


def _check_frames(
    ground_truth: Mapping[FrameKey, Mapping[str, Any]], results: Mapping[FrameKey, Any]
) -> None:
    if not ground_truth:
        raise ValueError("no frames to evaluate")
    missing = [key for key in ground_truth if key not in results]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(ground_truth)} frames have no predictions, the first one is "
            f"{frame_text(missing[0])}"
        )
    bare = [key for key, frame in ground_truth.items() if not frame.get("annotation")]
    if bare:
        raise ValueError(
            f"{len(bare)} of {len(ground_truth)} frames have no annotation, the first one is "
            f"{frame_text(bare[0])}; the test split cannot be evaluated here"
        )
