"""Camera rigs of the synthetic data sets: real camera names, plausible real calibrations.

The numbers are close to a car of nuScenes (6 cameras of 1600 x 900 pixels) and to a car of
Argoverse 2 (7 ring cameras, the front one upright). Frames: ego has x forward, y left, z up; a
camera has x right, y down, z forward; metres and pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# name: width, height, focal length, principal point (pixels); position (m) and yaw (degrees)
NUSCENES = {
    "CAM_FRONT": (1600, 900, 1266.4, (816.3, 491.5), (1.70, 0.02, 1.51), 0.3),
    "CAM_FRONT_RIGHT": (1600, 900, 1260.8, (807.9, 495.3), (1.55, -0.49, 1.50), -56.0),
    "CAM_FRONT_LEFT": (1600, 900, 1272.6, (826.6, 479.8), (1.52, 0.49, 1.51), 55.6),
    "CAM_BACK": (1600, 900, 809.2, (829.2, 481.8), (0.03, 0.00, 1.58), 179.7),
    "CAM_BACK_LEFT": (1600, 900, 1256.7, (792.1, 492.8), (1.04, 0.48, 1.59), 108.6),
    "CAM_BACK_RIGHT": (1600, 900, 1259.5, (807.3, 501.2), (1.01, -0.48, 1.56), -110.6),
}
ARGOVERSE2 = {
    "ring_front_center": (1550, 2048, 1776.0, (776.0, 1013.0), (1.63, 0.00, 1.73), 0.0),
    "ring_front_left": (2048, 1550, 1684.0, (1024.0, 776.0), (1.49, 0.26, 1.72), 45.2),
    "ring_front_right": (2048, 1550, 1686.0, (1019.0, 771.0), (1.49, -0.27, 1.72), -45.0),
    "ring_rear_left": (2048, 1550, 1686.0, (1022.0, 769.0), (1.10, 0.13, 1.74), 153.3),
    "ring_rear_right": (2048, 1550, 1685.0, (1026.0, 774.0), (1.10, -0.14, 1.74), -153.1),
    "ring_side_left": (2048, 1550, 1683.0, (1029.0, 777.0), (1.31, 0.28, 1.73), 99.3),
    "ring_side_right": (2048, 1550, 1687.0, (1021.0, 772.0), (1.31, -0.28, 1.73), -98.9),
}
LIDAR_POSITION = (0.94, 0.0, 1.84)
LIDAR_YAW = -90.0  # nuScenes' lidar looks along its y axis
SMALLEST = 32  # pixels of an image's shorter side


@dataclass(frozen=True)
class Camera:
    """A calibrated camera.

    Attributes:
        name: as the data set calls it.
        width: of the image in pixels.
        height: of the image in pixels.
        intrinsic: (3, 3) float64.
        cam2ego: (4, 4) float64.
    """

    name: str
    width: int
    height: int
    intrinsic: np.ndarray
    cam2ego: np.ndarray

    @property
    def ego2img(self) -> np.ndarray:
        """(4, 4) float64: [u * d, v * d, d, 1] of [x, y, z, 1] in the ego frame."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.intrinsic
        return matrix @ np.linalg.inv(self.cam2ego)

    def rays(self, rows: int = 1, columns: int = 1) -> np.ndarray:
        """Directions in the ego frame through evenly spaced places of the pixels.

        Args:
            rows: places per pixel from top to bottom; one is the pixel's centre.
            columns: places per pixel from left to right.

        Returns:
            (height * rows, width * columns, 3) float64, one long along the camera's axis.
        """
        v = (np.arange(self.height * rows) + 0.5) / rows - 0.5
        u = (np.arange(self.width * columns) + 0.5) / columns - 0.5
        pixels = np.stack([*np.meshgrid(u, v), np.ones((len(v), len(u)))], axis=-1)
        to_ego = np.linalg.inv(self.intrinsic).T @ self.cam2ego[:3, :3].T
        return pixels @ to_ego


def pose(position: tuple[float, float, float], yaw: float) -> np.ndarray:
    """(4, 4) matrix of a level body at `position` that looks along `yaw` (radians)."""
    matrix = np.eye(4)
    cos, sin = math.cos(yaw), math.sin(yaw)
    matrix[:2, :2] = [[cos, -sin], [sin, cos]]
    matrix[:3, 3] = position
    return matrix


def build(rig: dict[str, tuple], scale: float) -> list[Camera]:
    """The cameras of `NUSCENES` or `ARGOVERSE2` with images smaller by `scale`.

    Raises:
        ValueError: `scale` is not in (0, 1] or leaves too few pixels.
    """
    shortest = min(min(entry[0], entry[1]) for entry in rig.values())
    if not (0 < scale <= 1 and shortest * scale >= SMALLEST):
        raise ValueError(
            f"the image scale must be from {SMALLEST / shortest:.3f} ({SMALLEST} pixels of height) "
            f"to 1, got {scale}"
        )
    cameras = []
    for name, (full_width, full_height, focal, centre, position, yaw) in rig.items():
        width, height = round(full_width * scale), round(full_height * scale)
        sx, sy = width / full_width, height / full_height
        intrinsic = np.array(
            [[focal * sx, 0, centre[0] * sx], [0, focal * sy, centre[1] * sy], [0, 0, 1.0]]
        )
        cam2ego = pose(position, math.radians(yaw))
        # columns: the camera's right, down and forward
        cam2ego[:3, :3] = cam2ego[:3, :3] @ np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0.0]])
        cameras.append(Camera(name, width, height, intrinsic, cam2ego))
    return cameras
