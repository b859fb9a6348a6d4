"""The tables of nuScenes and the annotations.json of Occ3D-nuScenes, filled frame by frame."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

from ..geometry import matrix_to_quaternion
from . import rig

TABLES = (
    *("attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map"),
    *("sample", "sample_annotation", "sample_data", "scene", "sensor", "visibility"),
)
VEHICLE = "n015"


def token(*parts: object) -> str:
    """A nuScenes-like token (32 hexadecimal digits) that depends on the parts only."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


class Tables:
    """The nuScenes tables and annotations.json, filled frame by frame."""

    def __init__(self, cameras: list[rig.Camera], seed: int) -> None:
        self.cameras, self.seed = cameras, seed
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
        self.scene_infos: dict[str, dict[str, Any]] = {}
        lidar = rig.pose(rig.LIDAR_POSITION, math.radians(rig.LIDAR_YAW))
        self.calibrated: dict[str, dict[str, Any]] = {}
        sensors = [(camera.name, camera.cam2ego, camera.intrinsic.tolist()) for camera in cameras]
        for channel, to_ego, intrinsic in [*sensors, ("LIDAR_TOP", lidar, [])]:
            sensor = token(seed, "sensor", channel)
            modality = "camera" if intrinsic else "lidar"
            self.rows["sensor"].append({"token": sensor, "channel": channel, "modality": modality})
            self.calibrated[channel] = {
                "token": token(seed, "calibrated_sensor", channel),
                "sensor_token": sensor,
                "translation": to_ego[:3, 3].tolist(),
                "rotation": matrix_to_quaternion(to_ego[:3, :3]).tolist(),
                "camera_intrinsic": intrinsic,
            }
        self.rows["calibrated_sensor"] = list(self.calibrated.values())

    def add_scene(self, name: str, start: int, frames: int) -> None:
        """Add a scene and its log."""
        log = token(self.seed, name, "log")
        stamp = f"2018-07-18-11-{start // 60_000_000 % 60:02d}-07+0800"
        self.rows["log"].append(
            {
                "token": log,
                "logfile": f"{VEHICLE}-{stamp}",
                "vehicle": VEHICLE,
                "date_captured": "2018-07-18",
                "location": "singapore-onenorth",
            }
        )
        self.rows["scene"].append(
            {
                "token": token(self.seed, name),
                "log_token": log,
                "nbr_samples": frames,
                "first_sample_token": token(self.seed, name, 0),
                "last_sample_token": token(self.seed, name, frames - 1),
                "name": name,
                "description": "Synthetic street",
            }
        )
        self.scene_infos[name] = {}

    def add_frame(
        self, name: str, number: int, frames: int, timestamp: int, ego: np.ndarray
    ) -> dict[str, str]:
        """Add a sample with its poses and data; returns the file of each channel."""

        def neighbour(step: int, *parts: object) -> str:
            other = number + step
            return token(self.seed, name, other, *parts) if 0 <= other < frames else ""

        sample = token(self.seed, name, number)
        self.rows["sample"].append(
            {
                "token": sample,
                "timestamp": timestamp,
                "prev": neighbour(-1),
                "next": neighbour(1),
                "scene_token": token(self.seed, name),
            }
        )
        logfile = self.rows["log"][-1]["logfile"]
        pose = {
            "rotation": matrix_to_quaternion(ego[:3, :3]).tolist(),
            "translation": ego[:3, 3].tolist(),
        }
        files, camera_sensor = {}, {}
        sizes = {camera.name: (camera.height, camera.width) for camera in self.cameras}
        for channel, calibrated in self.calibrated.items():
            height, width = sizes.get(channel, (0, 0))
            ending = "jpg" if height else "pcd.bin"
            filename = f"samples/{channel}/{logfile}__{channel}__{timestamp}.{ending}"
            data = token(self.seed, name, number, channel)
            ego_pose = token(self.seed, name, number, channel, "ego_pose")
            self.rows["ego_pose"].append({"token": ego_pose, "timestamp": timestamp, **pose})
            self.rows["sample_data"].append(
                {
                    "token": data,
                    "sample_token": sample,
                    "ego_pose_token": ego_pose,
                    "calibrated_sensor_token": calibrated["token"],
                    "timestamp": timestamp,
                    "fileformat": "jpg" if height else "pcd",
                    "is_key_frame": True,
                    "height": height,
                    "width": width,
                    "filename": filename,
                    "prev": neighbour(-1, channel),
                    "next": neighbour(1, channel),
                }
            )
            files[channel] = filename
            if height:
                extrinsic = {key: calibrated[key] for key in ("translation", "rotation")}
                camera_sensor[data] = {
                    "img_path": filename,
                    "intrinsic": calibrated["camera_intrinsic"],
                    "extrinsic": extrinsic,
                    "ego_pose": pose,
                }
        self.scene_infos[name][sample] = {
            "timestamp": timestamp,
            "camera_sensor": camera_sensor,
            "ego_pose": pose,
            "gt_path": f"gts/{name}/{sample}/labels.npz",
            "prev": neighbour(-1),
            "next": neighbour(1),
        }
        return files
