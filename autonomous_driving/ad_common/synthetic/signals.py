"""Traffic lights and signs: upright panels above the road, painted into the images.

A light is a dark panel with a disc; a sign is a panel with an arrow. Colours tell the attributes
of OpenLane-V2 (arXiv 2304.10440), 0 to 12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from .rig import Camera

COLOURS = (  # RGB, by attribute; of a light's disc or a sign's panel
    *((150, 150, 150), (255, 30, 30), (30, 230, 60), (255, 220, 20)),
    *((20, 70, 220), (150, 30, 200), (0, 150, 160), (255, 130, 170), (200, 110, 20)),
    *((110, 160, 255), (120, 20, 40), (170, 230, 60), (240, 160, 240)),
)
ARROWS = {4: 90, 5: 180, 6: 0, 7: 180, 8: 0, 9: 270, 10: 270, 11: 135, 12: 45}  # degrees
LIGHTS = 4  # attributes below are those of lights
PANEL = (1.8, 2.4)  # width and height in metres
HEIGHT = 5.5  # of a panel's middle above the ground
NEAREST, FARTHEST = 8.0, 50.0  # metres ahead
SMALLEST = 4  # pixels of a box's width and height
SHIFT = 4


@dataclass(frozen=True)
class Signal:
    """A panel that the front camera shows.

    Attributes:
        attribute: 0 to 12.
        corners: (4, 3) in the ego frame: upper left, upper right, lower right, lower left.
        rectangle: (4,) x1, y1, x2, y2 in the front image.
        owner: what the caller identifies it by.
    """

    attribute: int
    corners: np.ndarray
    rectangle: np.ndarray
    owner: int


def panel(place: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Corners (4, 3) of a panel above a point (3,) of the ground, facing back along x."""
    middle = place + HEIGHT * up
    right = np.array([0, -PANEL[0] / 2, 0.0])
    rise = up * PANEL[1] / 2
    return np.array(
        [middle - right + rise, middle + right + rise, middle + right - rise, middle - right - rise]
    )


def project(points: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 2) and depths (n,) of points (n, 3)."""
    homogeneous = np.pad(points, ((0, 0), (0, 1)), constant_values=1) @ camera.ego2img.T
    depth = homogeneous[:, 2]
    return homogeneous[:, :2] / np.where(np.abs(depth) < 1e-6, 1e-6, depth)[:, None], depth


def choose(
    places: Sequence[tuple[int, int, np.ndarray]], up: np.ndarray, front: Camera
) -> list[Signal]:
    """The signals that the front image shows whole and unhidden, nearest first.

    Args:
        places: attribute, owner and the point (3,) of the ground below, for each.
        up: (3,) unit vector.
        front: the camera.
    """
    found: list[Signal] = []
    for attribute, owner, place in sorted(places, key=lambda entry: entry[2][0]):
        if not NEAREST <= place[0] <= FARTHEST:
            continue
        corners = panel(place, up)
        pixels, _ = project(corners, front)
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        inside = (low >= 0).all() and (high <= (front.width - 1, front.height - 1)).all()
        if not inside or (high - low).min() < SMALLEST:
            continue
        rectangle = np.concatenate([low, high])
        if not any(_touch(rectangle, other.rectangle) for other in found):
            found.append(Signal(attribute, corners, rectangle, owner))
    return found


def _touch(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((np.maximum(one[:2], other[:2]) < np.minimum(one[2:], other[2:])).all())


def paint(image: np.ndarray, camera: Camera, signals: Sequence[Signal]) -> None:
    """Paint signals into a camera's RGB image (H, W, 3), farthest first, where it sees them."""
    for signal in reversed(signals):
        pixels, depth = project(signal.corners, camera)
        if depth.min() < 1 or (pixels.max(axis=0) < 0).any():
            continue
        if (pixels.min(axis=0) > (camera.width, camera.height)).any():
            continue

        def inside(shares: np.ndarray, corners: np.ndarray = pixels) -> np.ndarray:
            """Pixels in OpenCV's fixed-point form of places (n, 2) on the panel, -1 to 1."""
            right = (corners[1] - corners[0]) / 2
            rise = (corners[0] - corners[3]) / 2
            places = corners.mean(axis=0) + shares[:, :1] * right + shares[:, 1:] * rise
            return np.round(places * (1 << SHIFT)).astype(np.int32)

        light = signal.attribute < LIGHTS
        colour = COLOURS[signal.attribute]
        square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1.0]])
        border = (25, 25, 25) if light else (250, 250, 250)
        cv2.fillPoly(image, [inside(square)], border, cv2.LINE_AA, SHIFT)
        if light:
            angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
            disc = 0.8 * np.stack([np.cos(angle), np.sin(angle) * PANEL[0] / PANEL[1]], axis=1)
            cv2.fillPoly(image, [inside(disc)], colour, cv2.LINE_AA, SHIFT)
            continue
        cv2.fillPoly(image, [inside(0.88 * square)], colour, cv2.LINE_AA, SHIFT)
        angle = np.radians(ARROWS[signal.attribute])
        rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        arrow = np.array([[0.6, 0], [0, 0.5], [0, 0.15], [-0.6, 0.15], [-0.6, -0.15], [0, -0.15]])
        arrow = np.vstack([arrow, [0, -0.5]]) @ rotation
        cv2.fillPoly(image, [inside(arrow)], (250, 250, 250), cv2.LINE_AA, SHIFT)
