"""Reads the key frames of nuScenes from six of its tables, without the devkit.

The tables are json files in `<root>/<version>/`: scene, sample, sample_data, calibrated_sensor,
ego_pose, sensor. A record refers to others by their tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .annotations import read_json
from .frames import CAMERAS, Camera, Frame

LIDAR = "LIDAR_TOP"
VERSIONS = ("v1.0-trainval", "v1.0-mini", "v1.0-test")


class Tables:
    """The tables of one version.

    Attributes:
        scenes: {name: record of the scene}.

    Raises:
        OSError, ValueError: a table is missing or broken.
    """

    def __init__(self, root: str | Path, version: str) -> None:
        self.root = Path(root)
        self.folder = self.root / version
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"no folder {self.folder} with the tables of nuScenes; check --root-path and "
                f"--version ({', '.join(VERSIONS)})"
            )
        self.scenes = {record["name"]: record for record in self.read("scene", "name")}
        self.samples = {record["token"]: record for record in self.read("sample", "token")}
        self.calibrations = {r["token"]: r for r in self.read("calibrated_sensor", "token")}
        channels = {r["token"]: r["channel"] for r in self.read("sensor", "token", "channel")}
        self.channels = {
            token: channels.get(self.get(record, "sensor_token"))
            for token, record in self.calibrations.items()
        }
        self.data: dict[str, dict[str, dict]] = {}  # sample token -> channel -> record
        for record in self.read("sample_data", "sample_token", "is_key_frame"):
            channel = self.channels.get(record.get("calibrated_sensor_token"))
            if record["is_key_frame"] and (channel == LIDAR or channel in CAMERAS):
                self.data.setdefault(record["sample_token"], {})[channel] = record
        wanted = {r["ego_pose_token"] for images in self.data.values() for r in images.values()}
        self.poses = {
            record["token"]: record
            for record in self.read("ego_pose", "token")
            if record["token"] in wanted
        }

    def read(self, name: str, *keys: str) -> list[dict[str, Any]]:
        """A table; its records have `keys`."""
        path = self.folder / f"{name}.json"
        records = read_json(path, "it is part of nuScenes' metadata")
        if not isinstance(records, list):
            raise ValueError(f"{path} must be a list of records, got {type(records).__name__}")
        for record in records:
            lacking = [key for key in keys if key not in record]
            if lacking:
                raise ValueError(f"{path} has a record without {', '.join(lacking)}: {record}")
        return records

    def get(self, record: dict[str, Any], key: str) -> Any:
        """A field that must be there."""
        if key not in record:
            raise ValueError(f"a record in {self.folder} lacks {key}: {record}")
        return record[key]

    def lidar_file(self, scene: str) -> Path | None:
        """The first lidar file of a scene; None when the tables name none."""
        record = self.data.get(self.scenes[scene]["first_sample_token"], {}).get(LIDAR)
        return None if record is None else self.root / record["filename"]

    def frames(self, scene: str) -> Iterator[Frame]:
        """A scene's key frames in the order of time.

        Raises:
            ValueError: a sample, a sensor's record, its calibration or its pose is missing.
        """
        token = self.get(self.scenes[scene], "first_sample_token")
        while token:
            sample = self.found(self.samples, token, f"sample of {scene}")
            sensors = self.data.get(token, {})
            if LIDAR not in sensors:
                raise ValueError(f"sample {token} of {scene} has no {LIDAR} in sample_data")
            lidar = sensors[LIDAR]
            yield Frame(
                token=token,
                prev=sample["prev"],
                next=sample["next"],
                scene=scene,
                scene_token=self.get(self.scenes[scene], "token"),
                timestamp=int(sample["timestamp"]),
                lidar_path=lidar["filename"],
                lidar_to_ego=self.pose_of_sensor(lidar),
                ego_to_global=self.pose_of_ego(lidar),
                cameras={name: self.camera(sensors[name]) for name in CAMERAS if name in sensors},
            )
            token = sample["next"]

    def camera(self, record: dict[str, Any]) -> Camera:
        """A camera's image with pose and calibration."""
        calibration = self.calibrations[record["calibrated_sensor_token"]]
        return Camera(
            path=record["filename"],
            token=record["token"],
            to_ego=self.pose_of_sensor(record),
            ego_to_global=self.pose_of_ego(record),
            intrinsic=self.get(calibration, "camera_intrinsic"),
            timestamp=int(record["timestamp"]),
        )

    def pose_of_sensor(self, record: dict[str, Any]) -> dict[str, list[float]]:
        """Pose of a sensor in the ego frame."""
        calibration = self.calibrations[record["calibrated_sensor_token"]]
        return {key: self.get(calibration, key) for key in ("rotation", "translation")}

    def pose_of_ego(self, record: dict[str, Any]) -> dict[str, list[float]]:
        """Pose of the car in the world when a sensor recorded."""
        pose = self.found(self.poses, record["ego_pose_token"], f"ego_pose of {record['token']}")
        return {key: self.get(pose, key) for key in ("rotation", "translation")}

    def found(self, table: dict[str, dict], token: str, what: str) -> dict[str, Any]:
        """A record by its token, or an error that names what is missing."""
        if token not in table:
            raise ValueError(f"the tables in {self.folder} have no {what}: token {token!r}")
        return table[token]
