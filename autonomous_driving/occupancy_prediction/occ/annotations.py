"""annotations.json of Occ3D-nuScenes: splits, frames with labels, and all that describes a frame.

    {"train_split": [scene names], "val_split": [...],
     "scene_infos": {scene: {sample token: {
         "timestamp", "ego_pose": {translation, rotation}, "gt_path", "prev", "next",
         "camera_sensor": {token: {"img_path", "intrinsic", "extrinsic", "ego_pose"}}}}}}

Rotations are quaternions (w, x, y, z); an extrinsic is the pose of the camera in the ego frame.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .frames import CAMERAS, Camera, Frame


def read_json(path: str | Path, hint: str) -> Any:
    """A json file's contents.

    Raises:
        OSError: no such file; `hint` says how to get it.
        ValueError: it is not json.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; {hint}")
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not a readable json file: {error}") from None


class Annotations:
    """The contents of annotations.json.

    Args:
        occ_path: folder with annotations.json; the labels lie below it.

    Raises:
        OSError, ValueError: the file is missing or not what it should be.
    """

    def __init__(self, occ_path: str | Path) -> None:
        self.path = Path(occ_path) / "annotations.json"
        contents = read_json(self.path, "it comes with the labels of Occ3D-nuScenes")
        if not isinstance(contents, dict) or not isinstance(contents.get("scene_infos"), dict):
            raise ValueError(f"{self.path} has no scene_infos; it is not Occ3D's annotations.json")
        self.scenes: dict[str, dict[str, dict]] = contents["scene_infos"]
        self.splits = {
            "train": set(contents.get("train_split", ())),
            "val": set(contents.get("val_split", ())),
        }

    def split_of(self, scene: str, is_test: bool) -> str | None:
        """'train', 'val' or 'test'; None when the file names the scene in no split."""
        if is_test:
            return "test"
        return next((name for name, scenes in self.splits.items() if scene in scenes), None)

    def labels_of(self, scene: str, token: str) -> str | None:
        """`gt_path` of a frame, relative to the root; '' without labels, None: not annotated."""
        record = self.scenes.get(scene, {}).get(token)
        return None if record is None else record.get("gt_path", "")

    def frames(self, scene: str) -> Iterator[Frame]:
        """A scene's frames in the order of time, from this file alone; lidar frame = ego frame.

        Raises:
            ValueError: a frame lacks a camera or a field.
        """
        records = self.scenes[scene]
        for token in sorted(records, key=lambda key: int(records[key]["timestamp"])):
            record = records[token]
            try:
                yield Frame(
                    token=token,
                    prev=record.get("prev") or "",
                    next=record.get("next") or "",
                    scene=scene,
                    scene_token=scene,
                    timestamp=int(record["timestamp"]),
                    lidar_path="",
                    lidar_to_ego={"rotation": [1.0, 0, 0, 0], "translation": [0.0, 0, 0]},
                    ego_to_global=record["ego_pose"],
                    cameras=cameras_of(record["camera_sensor"]),
                )
            except (KeyError, TypeError) as error:
                raise ValueError(f"frame {token} of {scene} in {self.path} lacks {error}") from None


def cameras_of(sensors: dict[str, dict]) -> dict[str, Camera]:
    """The six cameras by name; a camera's name is the folder of its image."""
    cameras = {}
    for token, sensor in sensors.items():
        name = Path(sensor["img_path"]).parent.name
        if name in CAMERAS:
            cameras[name] = Camera(
                path=sensor["img_path"],
                token=token,
                to_ego=sensor["extrinsic"],
                ego_to_global=sensor["ego_pose"],
                intrinsic=sensor["intrinsic"],
                timestamp=int(sensor.get("timestamp", 0)),
            )
    return cameras
