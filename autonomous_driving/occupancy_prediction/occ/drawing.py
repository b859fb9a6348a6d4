"""Pictures of occupancy: voxels in the cameras' images, and grids from above."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from ad_common.geometry import project
from ad_common.visualize import bev_panel, camera_mosaic, side_by_side

from .classes import CLASSES, FREE, PALETTE, POINT_RANGE, VOXEL_SIZE

ORDER = (  # of the cameras in a picture
    *("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"),
    *("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"),
)
CORNERS = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)])
NEAR = 0.5  # metres; closer voxels are not drawn
UNSEEN = (60, 60, 60)
OPACITY = 0.65
CELL = 300  # pixels, height of a camera's image


def colors(grid: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 BGR of classes."""
    return PALETTE[grid][..., ::-1]


def paint_voxels(image: np.ndarray, grid: np.ndarray, ego2img: np.ndarray) -> np.ndarray:
    """A copy of an image (H, W, 3) with the occupied voxels over it, near ones over far ones.

    Args:
        image: BGR, uint8.
        grid: (X, Y, Z) classes.
        ego2img: (4, 4) projection to the pixels of the image.
    """
    painted = image.copy()
    voxels = np.argwhere(grid != FREE)
    if not len(voxels):
        return painted
    corners = (voxels[:, None] + CORNERS) * VOXEL_SIZE + POINT_RANGE[:3]  # (N, 8, 3)
    pixels, depth = project(corners.reshape(-1, 3), ego2img)
    pixels, depth = pixels.reshape(-1, 8, 2), depth.reshape(-1, 8)
    height, width = image.shape[:2]
    low, high = pixels.min(1), pixels.max(1)
    shown = (depth.min(1) > NEAR) & (high > 0).all(1) & (low < (width, height)).all(1)
    paint = colors(grid[tuple(voxels.T)]).tolist()
    for i in np.flatnonzero(shown)[np.argsort(-depth[shown].mean(1))]:
        hull = cv2.convexHull(np.round(pixels[i]).astype(np.int32))
        cv2.fillConvexPoly(painted, hull, paint[i])
    return cv2.addWeighted(painted, OPACITY, image, 1 - OPACITY, 0)


def from_above(grid: np.ndarray, seen: np.ndarray | None, title: str) -> np.ndarray:
    """The topmost occupied voxel of every column that is seen, x ahead going up."""
    occupied = grid != FREE
    known = np.ones_like(occupied) if seen is None else seen.astype(bool)
    occupied &= known
    top = grid.shape[2] - 1 - occupied[:, :, ::-1].argmax(2)  # (X, Y)
    cells = colors(np.take_along_axis(grid, top[..., None], 2)[..., 0])
    cells = np.where(occupied.any(2)[..., None], cells, colors(np.array(FREE)))
    cells = np.where(known.any(2)[..., None], cells, np.array(UNSEEN)).astype(np.uint8)
    x0, y0, _, x1, y1, _ = POINT_RANGE
    return bev_panel((x0, y0, x1, y1), cells=cells, title=title)


def legend(grids: list[np.ndarray], width: int) -> np.ndarray:
    """A strip with the colours of the classes that the grids have."""
    present = [c for c in np.unique(np.concatenate([g.ravel() for g in grids])) if c != FREE]
    strip = np.full((22, width, 3), 30, np.uint8)
    step = width // max(len(present), 1)
    for i, label in enumerate(present):
        color = colors(np.array(label)).tolist()
        cv2.rectangle(strip, (i * step + 4, 5), (i * step + 18, 17), color, cv2.FILLED)
        cv2.putText(
            strip, CLASSES[label], (i * step + 23, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.42,
            (235, 235, 235), 1, cv2.LINE_AA,
        )  # fmt: skip
    return strip


def picture(
    images: Mapping[str, np.ndarray],
    ego2img: Mapping[str, np.ndarray],
    prediction: np.ndarray,
    label: np.ndarray | None,
    seen: np.ndarray | None,
) -> np.ndarray:
    """One picture of a frame: cameras with the prediction, prediction and labels from above.

    Args:
        images: camera name -> (H, W, 3) BGR.
        ego2img: camera name -> (4, 4) projection to the image's pixels.
        prediction: (X, Y, Z) classes.
        label: (X, Y, Z) classes; None in the test split.
        seen: (X, Y, Z) voxels that a camera sees; others are not drawn. None: all are.
    """
    visible = prediction if seen is None else np.where(seen, prediction, FREE)
    views = {}
    for name in ORDER:
        scale = CELL / images[name].shape[0]
        size = (round(images[name].shape[1] * scale), CELL)
        matrix = np.diag([size[0] / images[name].shape[1], scale, 1, 1]) @ ego2img[name]
        views[name] = paint_voxels(cv2.resize(images[name], size), visible, matrix)
    panels = [camera_mosaic(views), from_above(prediction, seen, "prediction")]
    if label is not None:
        panels.append(from_above(label, seen, "labels"))
    joined = side_by_side(*panels)
    shown = [visible] if label is None else [visible, label]
    return np.concatenate([joined, legend(shown, joined.shape[1])])
