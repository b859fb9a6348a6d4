"""A tiny data set of the HD map for the tests: two cameras, a few frames, grey images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

CAMERAS = ("ring_front_center", "ring_rear_left")
LINES = {
    "divider": [[[0.0, 2.0, 0.0, 1], [5.0, 2.05, 0.0, 1], [10.0, 2.0, 0.0, 1]]],
    "boundary": [[[-10.0, 6.0, 0.1, 1], [4.0, 6.0, 0.1, 1], [10.0, 12.0, 0.1, 1]]],
    "ped_crossing": [],
}


def extrinsic(yaw: float) -> list[list[float]]:
    """Ego to camera, 4x4, of a camera 1.5 m above the ground that looks along `yaw`."""
    c, s = np.cos(yaw), np.sin(yaw)
    to_camera = np.array([[s, -c, 0, 0], [0, 0, -1, 1.5], [c, s, 0, 0], [0, 0, 0, 1]])
    return to_camera.tolist()


def frame(segment: str, token: int, root: Path, *, annotated: bool = True) -> dict[str, Any]:
    """One frame; its images are written."""
    sensor = {}
    for i, camera in enumerate(CAMERAS):
        path = Path(segment) / "image" / camera / f"{token}.jpg"
        file = root / "argoverse2" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), np.full((24, 40, 3), 60 * i + 40, np.uint8))
        sensor[camera] = {
            "image_path": str(path),
            "intrinsic": [[20.0, 0, 20], [0, 20, 12], [0, 0, 1]],
            "extrinsic": extrinsic(i * np.pi),
        }
    pose = {"ego2global_translation": [0, 0, 0], "ego2global_rotation": np.eye(3).tolist()}
    made = {"segment_id": segment, "timestamp": str(token), "sensor": sensor, "pose": pose}
    if annotated:
        made["annotation"] = json.loads(json.dumps(LINES))
    return made


def write(root: Path, frames: int = 3, *, annotated: bool = True) -> Path:
    """Writes `frames` frames of one segment; returns the annotation file."""
    content = {"seg": [frame("seg", 100 + i, root, annotated=annotated) for i in range(frames)]}
    return save(root, content)


def save(root: Path, content: Any, name: str = "annotations.json") -> Path:
    """Writes an annotation file."""
    path = root / name
    path.write_text(json.dumps(content))
    return path


def load(path: Path) -> dict[str, Any]:
    """The content of an annotation file, to change it."""
    return json.loads(path.read_text())
