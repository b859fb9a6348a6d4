"""Reading the annotation files: {segment: [frame, ...]} as json.

A frame has `timestamp` (its token), `sensor` {camera: image_path, intrinsic 3x3, extrinsic 4x4 from
the ego frame to the camera}, `pose` and, except in the test split, `annotation` {class: lines}. A
line is a list of [x, y, z, ...] in metres in the ego frame.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from ad_common.datasets.errors import DatasetError, listed, nearest
from ad_common.geometry import intrinsic_4x4

from .evaluation import Lines
from .tokens import CLASSES

logger = logging.getLogger(__name__)

DOWNLOAD = "see the project's README for the layout of the data"


def read_json(path: str | Path, source: str = DOWNLOAD) -> Any:
    """The content of a json file; `source` says where such a file comes from.

    Raises:
        DatasetError: there is no such file, it cannot be read, or it is no json.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist; {source}") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # broken json, or no text at all
        raise DatasetError(f"{path} is no whole json file: {error}; get it again") from error


def load_frames(path: str | Path) -> list[dict[str, Any]]:
    """All frames of an annotation file, in its order, checked.

    The lines become (n, 3) arrays; what has less than two points is left out with a warning. A
    frame without `annotation` has None there.

    Raises:
        DatasetError: the file cannot be read, or a frame is not as it must be; names the frame.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(v, list) for v in content.values()):
        raise DatasetError(f"{path} must hold {{segment: [frame, ...]}}; {DOWNLOAD}")
    frames: dict[str, dict[str, Any]] = {}
    cameras: set[str] | None = None
    short = 0
    for segment, records in content.items():
        for record in records:
            frame = _checked(record, str(segment), path)
            token = frame["token"]
            if token in frames:
                raise DatasetError(f"{path}: the timestamp {token} is there twice")
            cameras = cameras or set(frame["sensor"])
            if cameras != set(frame["sensor"]):
                raise DatasetError(
                    f"{path}, frame {token}: has the cameras {listed(sorted(frame['sensor']))}; "
                    f"the first frame has {listed(sorted(cameras))}; take out or repair this frame"
                )
            if frame["annotation"] is not None:
                frame["annotation"], dropped = _lines(frame["annotation"], f"{path}, {token}")
                short += dropped
            frames[token] = frame
    if not frames:
        raise DatasetError(f"{path} has no frames; {DOWNLOAD}")
    if short:
        logger.warning("%s: %d lines of less than two points are left out", path, short)
    return list(frames.values())


def _checked(record: Any, segment: str, path: str | Path) -> dict[str, Any]:
    """A frame with `token` and `segment_id`.

    The cameras are checked by `camera_matrices` when the frame is used.
    """
    if not isinstance(record, dict) or record.get("timestamp") is None:
        raise DatasetError(f"{path}, segment {segment}: a frame without timestamp; {DOWNLOAD}")
    token = str(record["timestamp"])
    sensors = record.get("sensor")
    if not isinstance(sensors, dict) or not sensors:
        raise DatasetError(f"{path}, frame {token}: there are no cameras in 'sensor'")
    for name, sensor in sensors.items():
        lost = [k for k in ("image_path", "intrinsic", "extrinsic") if not _has(sensor, k)]
        if lost:
            raise DatasetError(f"{path}, frame {token}: camera {name} has no {listed(lost)}")
    annotation = record.get("annotation")
    return {**record, "token": token, "segment_id": segment, "annotation": annotation}


def _has(sensor: Any, key: str) -> bool:
    return isinstance(sensor, dict) and sensor.get(key) is not None


def _lines(annotation: Any, where: str) -> tuple[dict[str, list[np.ndarray]], int]:
    """The lines of a frame as arrays by class, and how many were too short."""
    if not isinstance(annotation, dict):
        raise DatasetError(f"{where}: 'annotation' must be {{class: lines}}")
    lines: dict[str, list[np.ndarray]] = {name: [] for name in CLASSES}
    short = 0
    for name, items in annotation.items():
        if name not in lines:
            raise DatasetError(
                f"{where}: unknown category {name!r}{nearest(name, CLASSES)}; there are "
                f"{listed(CLASSES)}"
            )
        for i, item in enumerate(items or ()):
            line = as_line(item, f"{where}, {name} {i}")
            if len(line) < 2:
                short += 1
            else:
                lines[name].append(line)
    return lines, short


def as_line(points: Any, where: str) -> np.ndarray:
    """A line as (n, 2) or (n, 3) float64 array; further columns are left out.

    Raises:
        DatasetError: it is none.
    """
    try:
        line = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{where}: not a list of points [x, y, ...]: {error}") from error
    if line.size == 0:
        return np.zeros((0, 3))
    if line.ndim != 2 or line.shape[1] < 2:
        raise DatasetError(f"{where}: has the shape {line.shape}, expected (points, 2 or more)")
    line = line[:, :3]
    if not np.isfinite(line).all():
        raise DatasetError(f"{where}: holds coordinates that are not finite")
    return line


def image_root(data_root: str | Path, frame: dict[str, Any]) -> Path:
    """The folder that the image paths of an annotation file start from.

    Args:
        data_root: the folder of the data.
        frame: any frame of the file; its first image tells.

    Returns:
        `data_root`, its folder argoverse2 or one of the two folders above it; without the image,
        `data_root`.
    """
    root = Path(data_root)
    image = next(iter(frame["sensor"].values()))["image_path"]
    places = (root, root / "argoverse2", *root.absolute().parents[:2])
    return next((place for place in places if (place / image).is_file()), root)


def camera_matrices(frame: dict[str, Any]) -> dict[str, np.ndarray]:
    """Projection of every camera of a frame: 4x4 from the ego frame to pixels, by name.

    Raises:
        DatasetError: a matrix is not as it must be; names the frame and the camera.
    """
    matrices = {}
    for name, sensor in frame["sensor"].items():
        try:
            intrinsic = intrinsic_4x4(sensor["intrinsic"])
            extrinsic = np.asarray(sensor["extrinsic"], dtype=np.float64)
            if extrinsic.shape != (4, 4) or not np.isfinite(extrinsic).all():
                raise ValueError(f"camera extrinsic of shape {extrinsic.shape}; expected (4, 4)")
        except (TypeError, ValueError) as error:
            raise DatasetError(f"frame {frame['token']}, camera {name}: {error}") from error
        matrices[name] = intrinsic @ extrinsic
    return matrices


def truth_of(frame: dict[str, Any]) -> Lines:
    """The annotated lines of a frame."""
    annotation = frame["annotation"]
    labels = [i for i, name in enumerate(CLASSES) for _ in annotation[name]]
    vectors = [line for name in CLASSES for line in annotation[name]]
    return Lines(vectors, np.array(labels, dtype=np.int64))


def all_truth(frames: list[dict[str, Any]], where: str | Path) -> dict[str, Lines]:
    """The annotated lines of all frames by token.

    Raises:
        DatasetError: frames have no annotation.
    """
    bare = [frame["token"] for frame in frames if frame["annotation"] is None]
    if bare:
        raise DatasetError(
            f"{where}: {len(bare)} of {len(frames)} frames have no annotation (the test split has "
            f"none): {listed(bare, 3)}; evaluate on the validation split"
        )
    return {frame["token"]: truth_of(frame) for frame in frames}
