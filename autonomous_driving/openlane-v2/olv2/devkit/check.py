"""Checks a submission to the OpenLane-V2 challenge, or the predictions that are evaluated."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from .collection import ATTRIBUTES, frame_text

logger = logging.getLogger(__name__)

HEADER = {
    "method": str,
    "authors": list,
    "e-mail": str,
    "institution / company": str,
    "country / region": str,  # ISO 3166
}
MOST_AUTHORS = 10
GROUPS = ("lane_centerline", "traffic_element")
SHAPES = {"lane_centerline": "(n, 3), n >= 2", "traffic_element": "(2, 2)"}


def header_problems(submission: Mapping[str, Any]) -> list[str]:
    """What a challenge server would not accept in the fields besides the results."""
    problems = [f"no field {name!r}" for name in HEADER if name not in submission]
    problems += [
        f"field {name!r} is a {type(submission[name]).__name__}, expected a {kind.__name__}"
        for name, kind in HEADER.items()
        if name in submission and not isinstance(submission[name], kind)
    ]
    authors = submission.get("authors")
    if isinstance(authors, list) and len(authors) > MOST_AUTHORS:
        problems.append(f"{len(authors)} authors, at most {MOST_AUTHORS} are accepted")
    return problems


def check_results(submission: Mapping[str, Any]) -> None:
    """Checks the format; only a warning for the fields besides `results`.

    Args:
        submission: {method, authors, ..., results: {(split, segment, timestamp): {predictions:
            {lane_centerline, traffic_element, topology_lclc, topology_lcte}}}}.

    Raises:
        ValueError: what is wrong, in which frame.
    """
    if not isinstance(submission, Mapping) or not isinstance(submission.get("results"), Mapping):
        raise ValueError("a submission is a dictionary with a dictionary called 'results'")
    for problem in header_problems(submission):
        logger.warning("submission: %s", problem)
    for key, frame in submission["results"].items():
        if not isinstance(key, tuple) or len(key) != 3:
            raise ValueError(f"results: key {key!r}, expected (split, segment, timestamp)")
        try:
            check_predictions(frame["predictions"])
        except KeyError as error:
            raise ValueError(f"frame {frame_text(key)}: no {error}") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"frame {frame_text(key)}: {error}") from error


def check_predictions(predictions: Mapping[str, Any]) -> None:
    """Checks one frame.

    Raises:
        KeyError, ValueError: what is missing or wrong.
    """
    ids: set[Any] = set()
    for group in GROUPS:
        for i, entry in enumerate(predictions[group]):
            _check_entry(entry, group, f"{group}[{i}]")
            if entry["id"] in ids:
                raise ValueError(f"{group}[{i}]: id {entry['id']!r} is used twice in the frame")
            ids.add(entry["id"])
    lanes, elements = (len(predictions[group]) for group in GROUPS)
    for name, shape in (("topology_lclc", (lanes, lanes)), ("topology_lcte", (lanes, elements))):
        edges = _array(predictions[name], name)
        if edges.shape != shape:
            raise ValueError(f"{name} of shape {edges.shape}, expected {shape}")


def _check_entry(entry: Mapping[str, Any], group: str, name: str) -> None:
    for field in ("id", "points", "confidence"):
        if field not in entry:
            raise ValueError(f"{name}: no {field!r}")
    points = _array(entry["points"], f"{name}: points")
    lane = group == "lane_centerline"
    right = points.ndim == 2 and (
        points.shape[1] == 3 and len(points) > 1 if lane else points.shape == (2, 2)
    )
    if not right:
        raise ValueError(f"{name}: points of shape {points.shape}, expected {SHAPES[group]}")
    confidence = entry["confidence"]
    if not isinstance(confidence, (float, int, np.floating, np.integer)):
        raise ValueError(f"{name}: confidence is a {type(confidence).__name__}, expected a number")
    if not np.isfinite(confidence):
        raise ValueError(f"{name}: confidence {confidence}")
    if not lane and entry.get("attribute") not in range(len(ATTRIBUTES)):
        raise ValueError(
            f"{name}: attribute {entry.get('attribute')!r}, expected 0 to {len(ATTRIBUTES) - 1}"
        )


def _array(value: Any, name: str) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name} is a {type(value).__name__}, expected a numpy array")
    if not np.isfinite(value).all():
        raise ValueError(f"{name} has values that are not finite")
    return value
