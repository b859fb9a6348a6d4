"""One key frame of nuScenes as data preparation sees it, and its record in the info files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ad_common.geometry import inverse_pose, pose_matrix

CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)
Pose = dict[str, list[float]]  # {"rotation": quaternion (w, x, y, z), "translation": metres}


@dataclass(frozen=True)
class Camera:
    """One image: `path` below the data root, pose, calibration, time in microseconds."""

    path: str
    token: str
    to_ego: Pose
    ego_to_global: Pose  # when the image was taken
    intrinsic: list[list[float]]
    timestamp: int


@dataclass(frozen=True)
class Frame:
    """A key frame: its place in a scene, its pose (when the lidar scanned), its images."""

    token: str
    prev: str
    next: str
    scene: str
    scene_token: str
    timestamp: int
    lidar_path: str
    lidar_to_ego: Pose
    ego_to_global: Pose
    cameras: dict[str, Camera]


def make_info(
    frame: Frame, root: Path, frame_idx: int, can_bus: np.ndarray, occ_gt_path: str
) -> dict[str, Any]:
    """A frame's record in the info files, with the published keys.

    Args:
        frame: the key frame.
        root: data root; paths of images and lidar are written below it.
        frame_idx: 0 for the first frame of a scene.
        can_bus: (18,), see `can_bus.py`.
        occ_gt_path: labels.npz relative to the labels' root; "" in the test split.

    Raises:
        ValueError: a camera or its calibration is missing or wrong.
    """
    missing = [name for name in CAMERAS if name not in frame.cameras]
    if missing:
        raise ValueError(f"frame {frame.token} of {frame.scene} has no {', '.join(missing)}")
    lidar_to_global = as_matrix(frame.ego_to_global, frame) @ as_matrix(frame.lidar_to_ego, frame)
    info = {
        "lidar_path": str(root / frame.lidar_path) if frame.lidar_path else "",
        "token": frame.token,
        "prev": frame.prev,
        "next": frame.next,
        "can_bus": can_bus,
        "frame_idx": frame_idx,
        "sweeps": [],
        "scene_token": frame.scene_token,
        "scene_name": frame.scene,
        "lidar2ego_translation": frame.lidar_to_ego["translation"],
        "lidar2ego_rotation": frame.lidar_to_ego["rotation"],
        "ego2global_translation": frame.ego_to_global["translation"],
        "ego2global_rotation": frame.ego_to_global["rotation"],
        "timestamp": frame.timestamp,
        "cams": {},
    }
    if occ_gt_path:
        info["occ_gt_path"] = occ_gt_path
    for name in CAMERAS:
        camera = frame.cameras[name]
        intrinsic = np.asarray(camera.intrinsic, dtype=np.float64)
        if intrinsic.shape != (3, 3):
            raise ValueError(
                f"{name} of frame {frame.token} has no 3x3 intrinsic, but {camera.intrinsic}"
            )
        to_global = as_matrix(camera.ego_to_global, frame) @ as_matrix(camera.to_ego, frame)
        to_lidar = inverse_pose(lidar_to_global) @ to_global  # camera -> lidar at the lidar's time
        info["cams"][name] = {
            "data_path": str(root / camera.path),
            "type": name,
            "sample_data_token": camera.token,
            "sensor2ego_translation": camera.to_ego["translation"],
            "sensor2ego_rotation": camera.to_ego["rotation"],
            "ego2global_translation": camera.ego_to_global["translation"],
            "ego2global_rotation": camera.ego_to_global["rotation"],
            "timestamp": camera.timestamp,
            "sensor2lidar_rotation": to_lidar[:3, :3],
            "sensor2lidar_translation": to_lidar[:3, 3],
            "cam_intrinsic": intrinsic,
        }
    return info


def as_matrix(pose: Pose, frame: Frame) -> np.ndarray:
    """(4, 4) matrix of a pose; the frame is named in the error."""
    try:
        return pose_matrix(pose["rotation"], pose["translation"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"frame {frame.token} of {frame.scene} has the pose {pose}, which is none: {error}"
        ) from None
