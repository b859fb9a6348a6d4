"""Pictures of a frame: its lines from above beside the cameras, truth over prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ad_common.datasets.errors import DatasetError
from ad_common.datasets.loading import read_image
from ad_common.visualize import (
    BACKGROUND,
    bev_panel,
    camera_mosaic,
    draw_polyline,
    draw_text,
    side_by_side,
    write_image,
)

from .annotations import camera_matrices, truth_of
from .evaluation import Lines
from .tokens import CLASSES, ROI_SIZE

COLORS = ((255, 90, 255), (255, 220, 40), (70, 220, 70))  # BGR of the classes
CELL = (238, 314)  # height and width of a camera in the mosaic, pixels
COLUMNS = 4
GAP = 8  # between the rows, pixels


def draw_frame(
    frame: dict[str, Any],
    image_root: Path,
    predicted: Lines | None = None,
    threshold: float = 0.0,
) -> np.ndarray:
    """A row with the truth and a row with the prediction, as far as they are there.

    Args:
        frame: of `load_frames`.
        image_root: folder that the image paths start from.
        predicted: lines with scores.
        threshold: least score that is drawn.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        DatasetError: an image is missing or unreadable, or a calibration is wrong.
    """
    images = camera_images(frame, image_root)
    matrices = camera_matrices(frame)
    rows, height = [], 0.0
    if frame["annotation"] is not None:
        truth = truth_of(frame)
        rows.append(("truth", truth))
        height = ground_height(truth)
    if predicted is not None:
        kept = np.flatnonzero(np.asarray(predicted.scores) >= threshold)
        shown = Lines([predicted.vectors[i] for i in kept], np.asarray(predicted.labels)[kept])
        rows.append((f"prediction, score >= {threshold:g}", shown))
    if not rows:
        rows.append(("no annotation", Lines()))
    panels = [draw_row(title, lines, images, matrices, height) for title, lines in rows]
    gap = np.full((GAP, panels[0].shape[1], 3), BACKGROUND, np.uint8)
    return np.concatenate([part for panel in panels for part in (gap, panel)][1:])


def draw_row(
    title: str,
    lines: Lines,
    images: dict[str, np.ndarray],
    matrices: dict[str, np.ndarray],
    height: float,
) -> np.ndarray:
    """The lines from above, and in the cameras from left behind to right behind the car.

    Args:
        title: of the row.
        lines: in metres; those without z are drawn at `height`.
        images: (H, W, 3) by camera; left as they are.
        matrices: (4, 4) from the ego frame to pixels, by camera.
        height: of the ground in the ego frame, metres.
    """
    x, y = ROI_SIZE[0] / 2, ROI_SIZE[1] / 2
    colored = [(line, COLORS[label]) for line, label in zip(lines.vectors, lines.labels)]
    above = bev_panel((-x, -y, x, y), colored, title=title)
    for i, (name, color) in enumerate(zip(CLASSES, COLORS, strict=True)):
        draw_text(above, name, (6, above.shape[0] - 38 + 16 * i), color)
    drawn = {}
    for name in sorted(images, key=lambda name: -heading(matrices[name])):
        drawn[name] = images[name].copy()
        for line, color in colored:
            points = np.column_stack([line, np.full(len(line), height)])[:, :3]
            thickness = max(2, images[name].shape[1] // 160)
            draw_polyline(drawn[name], points, matrices[name], color, thickness)
    return side_by_side(above, camera_mosaic(drawn, COLUMNS, CELL))


def heading(matrix: np.ndarray) -> float:
    """Where a camera looks, in radians from straight ahead, left is positive."""
    return float(np.arctan2(matrix[2, 1], matrix[2, 0]))


def ground_height(truth: Lines) -> float:
    """Median z of the lines in metres, 0 without any: predictions have none of their own."""
    heights = [line[:, 2] for line in truth.vectors if line.shape[1] > 2]
    return float(np.median(np.concatenate(heights))) if heights else 0.0


def camera_images(frame: dict[str, Any], image_root: Path) -> dict[str, np.ndarray]:
    """The images of a frame by camera, (H, W, 3) uint8.

    Raises:
        DatasetError: one is missing or unreadable.
    """
    images = {}
    for name, sensor in frame["sensor"].items():
        path = image_root / sensor["image_path"]
        try:
            images[name] = read_image(path)
        except OSError as error:
            raise DatasetError(
                f"image {path} of camera {name}, frame {frame['token']}: {error}"
            ) from error
    return images


def save_frame(
    path: Path,
    frame: dict[str, Any],
    image_root: Path,
    predicted: Lines | None = None,
    threshold: float = 0.0,
) -> Path:
    """Writes the picture of `draw_frame`.

    Raises:
        OSError: it cannot be written.
    """
    return write_image(path, draw_frame(frame, image_root, predicted, threshold))
