"""Names of OpenLane-V2, and reading its json files and collections.

A collection is one pickle per subset and split: {(split, segment, timestamp): frame}. A frame has
the camera parameters, the pose and, except in the test split, the annotation, as numpy arrays.

Source: OpenLane-V2 (arXiv 2304.10440), section 3.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ad_common.datasets.pickles import read_pickle

FrameKey = tuple[str, str, str]  # split, segment, timestamp

CAMERAS = (
    "ring_front_center",
    "ring_front_left",
    "ring_front_right",
    "ring_rear_left",
    "ring_rear_right",
    "ring_side_left",
    "ring_side_right",
)
ATTRIBUTES = (
    "unknown",
    "red",
    "green",
    "yellow",
    "go_straight",
    "turn_left",
    "turn_right",
    "no_left_turn",
    "no_right_turn",
    "u_turn",
    "no_u_turn",
    "slight_left",
    "slight_right",
)

PREPROCESS = "python tools/preprocess.py DATA_ROOT"


def frame_text(key: FrameKey) -> str:
    """What a message calls a frame: train/00492/315970276749927222."""
    return "/".join(map(str, key))


def load_collection(path: str | Path) -> dict[FrameKey, dict[str, Any]]:
    """The frames of a collection.

    Raises:
        FileNotFoundError: there is none at `path`; says how to write it.
        ValueError: it is broken or no collection.
    """
    path = Path(path)
    if not path.is_file():
        others = ", ".join(sorted(other.name for other in path.parent.glob("*.pkl")))
        there = f"; there are {others}" if others else ""
        raise FileNotFoundError(
            f"collection {path} does not exist{there}: write it with {PREPROCESS}"
        )
    frames = read_pickle(path)
    if not isinstance(frames, dict) or not all(
        isinstance(key, tuple) and len(key) == 3 and isinstance(frame, dict)
        for key, frame in frames.items()
    ):
        raise ValueError(
            f"{path} is no collection: expected {{(split, segment, timestamp): frame}}; write it "
            f"with {PREPROCESS}"
        )
    return frames


def read_json(path: str | Path) -> Any:
    """What a json file holds.

    Raises:
        OSError: it cannot be opened; the message names it.
        ValueError: it is broken.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # also of the encoding
        raise ValueError(f"{path} is no valid json: {error}") from error


def check_attributes(elements: Iterable[Mapping[str, Any]]) -> None:
    """Raises ValueError for a traffic element whose attribute does not exist."""
    for element in elements:
        if element.get("attribute") not in range(len(ATTRIBUTES)):
            raise ValueError(
                f"traffic element {element.get('id')}: attribute {element.get('attribute')!r}, "
                f"known are 0 to {len(ATTRIBUTES) - 1}"
            )
