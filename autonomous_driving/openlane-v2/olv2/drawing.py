"""Pictures of a frame: lanes and traffic elements in the cameras, and topology from above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ad_common.datasets.errors import DatasetError
from ad_common.datasets.loading import read_image
from ad_common.visualize import (
    bev_panel,
    camera_mosaic,
    draw_polyline,
    draw_text,
    fit,
    side_by_side,
    write_image,
)

from .dataset import camera_projection
from .devkit.collection import ATTRIBUTES, CAMERAS, FrameKey, frame_text

BOUNDS = (-51.2, -25.6, 51.2, 25.6)  # metres around the car
CELL = (240, 320)  # pixels of a camera's picture
ROWS = (  # left beside right
    "ring_front_left", "ring_front_right", "ring_side_left", "ring_side_right", "ring_rear_left",
    "ring_rear_right",
)  # fmt: skip
TRUE, FOUND = (90, 200, 60), (40, 140, 255)  # blue, green, red
EDGE, ELEMENT_EDGE = (255, 120, 255), (80, 230, 255)
BEND = 0.18  # of an edge's length, to the side: edges do not hide lanes


def draw_frame(
    data_root: str | Path,
    frame: Mapping[str, Any],
    predictions: Mapping[str, Any] | None = None,
    threshold: float = 0.3,
) -> np.ndarray:
    """The front view, the other cameras, and the lanes from above: true, then predicted ones.

    In the cameras true lanes and boxes are green, predicted ones orange. From above a violet arrow
    goes from the middle of a lane to that of its successor, and a yellow label names the traffic
    elements of a lane, as in the front view.

    Args:
        data_root: folder that the paths of the images start from.
        frame: of a collection; drawn without truth where it has no annotation.
        predictions: of a submission.
        threshold: least confidence that is drawn; edges need more than 0.5.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        DatasetError: an image cannot be read.
        ValueError: a calibration is missing.
    """
    layers = []
    if frame.get("annotation"):
        layers.append(("truth", _shown(frame["annotation"]), TRUE))
    if predictions is not None:
        layers.append(("prediction", _shown(predictions, threshold), FOUND))
    images = {}
    for name, sensor in frame["sensor"].items():
        size = (3 * CELL[0] + 8, 3 * CELL[1]) if name == CAMERAS[0] else CELL
        image, scale = _scaled(Path(data_root) / sensor["image_path"], size)
        matrix = np.diag([scale, scale, 1, 1]) @ camera_projection(name, sensor)
        for thickness, (_, layer, color) in zip((4, 2), layers, strict=False):
            for lane in layer["lanes"]:
                draw_polyline(image, lane, matrix, color, thickness, arrow=True)
            if name == CAMERAS[0]:
                _draw_elements(image, layer["elements"], scale, color)
        images[name] = image
    front = images.pop(CAMERAS[0], None)
    parts = [] if front is None else [front]
    ordered = sorted(images, key=lambda name: ROWS.index(name) if name in ROWS else len(ROWS))
    if images:
        parts.append(camera_mosaic({name: images[name] for name in ordered}, 2, CELL))
    parts += [_from_above(title, layer, color) for title, layer, color in layers]
    return side_by_side(*parts)


def save_frame(
    data_root: str | Path,
    key: FrameKey,
    frame: Mapping[str, Any],
    predictions: Mapping[str, Any] | None,
    folder: str | Path,
    threshold: float = 0.3,
) -> Path:
    """Writes `draw_frame` to FOLDER/SEGMENT/TIMESTAMP.jpg; returns the path.

    Raises:
        DatasetError: the frame cannot be drawn; the message names it.
        OSError: the file cannot be written.
    """
    try:
        picture = draw_frame(data_root, frame, predictions, threshold)
    except ValueError as error:
        raise DatasetError(f"frame {frame_text(key)}: {error}") from error
    return write_image(Path(folder) / str(key[1]) / f"{key[2]}.jpg", picture)


def _shown(part: Mapping[str, Any], threshold: float = 0.0) -> dict[str, Any]:
    """What is drawn of an annotation or of predictions."""
    lanes, elements = (
        [i for i, entry in enumerate(part[name]) if entry.get("confidence", 1) >= threshold]
        for name in ("lane_centerline", "traffic_element")
    )
    lclc = np.asarray(part["topology_lclc"])[np.ix_(lanes, lanes)] > 0.5
    lcte = np.asarray(part["topology_lcte"])[np.ix_(lanes, elements)] > 0.5
    return {
        "lanes": [np.asarray(part["lane_centerline"][i]["points"], float) for i in lanes],
        "elements": [part["traffic_element"][i] for i in elements],
        "lclc": np.argwhere(lclc),
        "lcte": np.argwhere(lcte),
    }


def _scaled(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, float]:
    """An image as large as fits into (height, width), and the factor."""
    try:
        image = read_image(path)
    except OSError as error:
        raise DatasetError(f"image {path}: {error}") from error
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (max(1, round(n * scale)) for n in image.shape[:2])
    return fit(image, height, width), scale


def _draw_elements(
    image: np.ndarray, elements: Sequence[Mapping[str, Any]], scale: float, color: tuple[int, ...]
) -> None:
    """Boxes of the traffic elements with their number and attribute."""
    below = color == FOUND  # labels of truth and prediction beside each other
    for i, element in enumerate(elements):
        corners = np.round(np.asarray(element["points"]) * scale).astype(int)
        cv2.rectangle(image, tuple(corners[0].tolist()), tuple(corners[1].tolist()), color, 2)
        step = 15 * (i % 2)  # neighbours' labels are long
        y = int(corners[1, 1] + 16 + step if below else corners[0, 1] - 5 - step)
        corner = (int(corners[0, 0]), y)
        draw_text(image, f"{i} {ATTRIBUTES[element['attribute']]}", corner, color)


def _from_above(title: str, layer: Mapping[str, Any], color: tuple[int, ...]) -> np.ndarray:
    scale = (3 * CELL[0] + 8) / (BOUNDS[2] - BOUNDS[0])
    middles = [lane[len(lane) // 2] for lane in layer["lanes"]]
    counts = f"{len(middles)} lanes, {len(layer['lclc'])} edges, {len(layer['lcte'])} to elements"
    panel = bev_panel(
        BOUNDS,
        [(lane, color) for lane in layer["lanes"]],
        [([lane[0], lane[-1]], color) for lane in layer["lanes"]],
        pixels_per_metre=scale,
        title=title,
        arrows=True,
    )
    draw_text(panel, counts, (6, 34))
    for i, j in layer["lclc"]:
        a, b = _pixel(middles[i], scale), _pixel(middles[j], scale)
        side = BEND * np.array([a[1] - b[1], b[0] - a[0]])
        points = [a, (a + b) / 2 + side, b]
        _arrow(panel, points, EDGE)
    for i in range(len(middles)):
        numbers = [str(j) for lane, j in layer["lcte"] if lane == i]
        if numbers:
            corner = _pixel(middles[i], scale).round().astype(int)
            draw_text(panel, ",".join(numbers), (int(corner[0]) + 4, int(corner[1])), ELEMENT_EDGE)
    return panel


def _pixel(point: np.ndarray, scale: float) -> np.ndarray:
    """Place of a point in the view from above: x goes up, y to the left."""
    return (np.array([BOUNDS[3] - point[1], BOUNDS[2] - point[0]])) * scale


def _arrow(panel: np.ndarray, points: Sequence[np.ndarray], color: tuple[int, ...]) -> None:
    """A bent arrow through three places."""
    t = np.linspace(0, 1, 9)[:, None]
    a, middle, b = points
    curve = (1 - t) ** 2 * a + 2 * t * (1 - t) * middle + t**2 * b
    pixels = curve.round().astype(np.int32)
    cv2.polylines(panel, [pixels[:-1]], False, color, 1, cv2.LINE_AA)
    tip = 6 / max(np.linalg.norm(curve[-1] - curve[-2]), 6)
    start, end = (tuple(pixel.tolist()) for pixel in pixels[-2:])
    cv2.arrowedLine(panel, start, end, color, 1, cv2.LINE_AA, tipLength=tip)
