"""Synthetic occupancy data in the formats of nuScenes, its CAN bus and Occ3D-nuScenes.

    OUT/can_bus/<scene>_pose.json
    OUT/occ3d-nus/annotations.json
    OUT/occ3d-nus/gts/<scene>/<sample token>/labels.npz
    OUT/occ3d-nus/samples/{CAM_FRONT,...,LIDAR_TOP}/...
    OUT/occ3d-nus/<version>/{scene,sample,sample_data,calibrated_sensor,ego_pose,sensor,...}.json

A scene is a drive along a street (`city.py`). The images show the very voxels of the labels.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..geometry import matrix_to_quaternion
from . import city, rig, voxels
from .folder import write_jpeg, write_json, write_whole

VERSIONS = ("v1.0-trainval", "v1.0-mini")
FOLDER = "occ3d-nus"
TRAIN_SCENES = (61, 553, 655, 757, 796, 1077, 1094, 1100, *range(161, 211), *range(222, 268))
VAL_SCENES = (103, 916, 3, *range(12, 19), 35, 36, 38, 39, *range(92, 103), *range(104, 111))
PERIOD = 0.5  # seconds between frames
CAN_BUS_PERIOD = 0.02
START = 1531883530449377  # microseconds; the first scene's first sample
SKY = np.array([175.0, 205.0, 235.0])
FACE_LIGHT = np.array([0.82, 0.66, 1.0])  # of faces across x, y and z
LARGEST_SCALE = 0.5  # beyond it the table of rays needs too much memory
ROWS = 2  # rays per pixel, one above the other: the grid is seen from a low place
VEHICLE = "n015"


def token(*parts: object) -> str:
    """A nuScenes-like token (32 hexadecimal digits) that depends on the parts only."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


class Caster:
    """Renders images and visibility masks of a voxel grid for the cameras and the lidar."""

    def __init__(self, cameras: list[rig.Camera]) -> None:
        self.cameras = cameras
        self.paths = []
        for camera in cameras:
            directions = camera.rays(rows=ROWS).reshape(-1, 3)
            origins = np.broadcast_to(camera.cam2ego[:3, 3], directions.shape)
            self.paths.append(voxels.trace(origins, directions, city.LOWER, city.SIZE, city.SHAPE))
        elevation, azimuth = np.meshgrid(
            np.radians(np.linspace(-30, 10, 32)), np.radians(np.arange(0, 360, 0.5)), indexing="ij"
        )
        directions = np.stack(
            [
                np.cos(elevation) * np.cos(azimuth),
                np.cos(elevation) * np.sin(azimuth),
                np.sin(elevation),
            ],
            axis=-1,
        ).reshape(-1, 3)
        origins = np.broadcast_to(np.array(rig.LIDAR_POSITION), directions.shape)
        self.lidar = voxels.trace(origins, directions, city.LOWER, city.SIZE, city.SHAPE)
        axes = [city.LOWER[k] + city.SIZE * (np.arange(city.SHAPE[k]) + 0.5) for k in range(3)]
        self.centres = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        self.palette = np.zeros((city.FREE + 1, 3))
        for label, colour in city.COLOURS.items():
            self.palette[label] = colour

    def frame(
        self, labels: np.ndarray, light: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
        """Images by camera name, mask_camera, mask_lidar (uint8 grids) and lidar points (n, 3)."""
        occupied = labels != city.FREE
        images, seen = {}, np.zeros(city.SHAPE, bool)
        for camera, paths in zip(self.cameras, self.paths):
            hits = voxels.first_hits(paths, occupied)
            seen |= voxels.observed(paths, hits, city.SHAPE)
            images[camera.name] = self._image(camera, paths, hits, labels, light)
        hits = voxels.first_hits(self.lidar, occupied)
        scanned = voxels.observed(self.lidar, hits, city.SHAPE)
        points = self.centres[self.lidar.voxels[hits[hits >= 0]]]
        return images, seen.astype(np.uint8), scanned.astype(np.uint8), points

    def _image(
        self,
        camera: rig.Camera,
        paths: voxels.Paths,
        hits: np.ndarray,
        labels: np.ndarray,
        light: np.ndarray,
    ) -> np.ndarray:
        up = np.linspace(0.9, 1.05, camera.height * ROWS).repeat(camera.width)
        image = np.minimum(SKY * up[:, None], 255)
        ray = np.nonzero(hits >= 0)[0]
        voxel = paths.voxels[hits[ray]]
        shade = light.ravel()[voxel] * FACE_LIGHT[paths.faces[hits[ray]]]
        colour = np.clip(self.palette[labels.ravel()[voxel]] * shade[:, None], 0, 255)
        away = np.linalg.norm(self.centres[voxel] - camera.cam2ego[:3, 3], axis=1)
        haze = (1 - np.exp(-away / 120))[:, None]
        image[ray] = colour * (1 - haze) + SKY * haze
        image = image.reshape(camera.height, ROWS, camera.width, 3).mean(axis=1)
        return np.round(image).astype(np.uint8)


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


TABLES = (
    *("attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map"),
    *("sample", "sample_annotation", "sample_data", "scene", "sensor", "visibility"),
)


def can_bus_messages(world: city.City, start: int, frames: int) -> list[dict[str, Any]]:
    """Pose messages of a drive at 50 Hz, beginning shortly before the first frame."""
    messages = []
    for number in range(-3, round((frames - 1) * PERIOD / CAN_BUS_PERIOD) + 4):
        time = number * CAN_BUS_PERIOD
        place, heading = world.ego(time)
        later = world.ego(time + CAN_BUS_PERIOD)[1]
        turning = (later - heading) / CAN_BUS_PERIOD
        messages.append(
            {
                "accel": [0.0, world.speed * turning, 9.81],
                "orientation": [math.cos(heading / 2), 0.0, 0.0, math.sin(heading / 2)],
                "pos": [float(place[0]), float(place[1]), 0.0],
                "rotation_rate": [0.0, 0.0, turning],
                "utime": start + round(1e6 * time),
                "vel": [world.speed, 0.0, 0.0],
            }
        )
    return messages


def write(
    root: str | Path,
    *,
    train_scenes: int = 20,
    val_scenes: int = 5,
    frames: int = 5,
    image_scale: float = 0.125,
    seed: int = 0,
    version: str = "v1.0-trainval",
    small_objects: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> bool:
    """Write the data set to `root`, whole or not at all.

    Args:
        root: becomes the folder with can_bus and occ3d-nus.
        train_scenes: number of scenes in train_split.
        val_scenes: number of scenes in val_split.
        frames: per scene, two a second.
        image_scale: 1 gives images of 1600 x 900 pixels; at most 0.5.
        seed: of the random numbers; equal arguments give equal files.
        version: name of the folder with the tables.
        small_objects: pedestrians and barriers too.
        overwrite: replace a synthetic data set of other arguments.
        progress: show a progress bar.

    Returns:
        False when the data set was there already.

    Raises:
        ValueError: an argument is out of range.
        OSError: `root` cannot be written or holds something else.
    """
    if version not in VERSIONS:
        raise ValueError(f"version must be one of {', '.join(VERSIONS)}; got {version!r}")
    for name, count, most in (
        ("train", train_scenes, len(TRAIN_SCENES)),
        ("val", val_scenes, len(VAL_SCENES)),
    ):
        if not 1 <= count <= most:
            raise ValueError(f"the number of {name} scenes must be from 1 to {most}, got {count}")
    if frames < 1:
        raise ValueError(f"a scene needs a frame at least, got {frames}")
    if seed < 0:
        raise ValueError(f"the seed must not be negative, got {seed}")
    if image_scale > LARGEST_SCALE:
        raise ValueError(f"the image scale must be at most {LARGEST_SCALE}, got {image_scale}")
    cameras = rig.build(rig.NUSCENES, image_scale)
    settings = {"kind": "occupancy", "train_scenes": train_scenes, "val_scenes": val_scenes}
    settings |= {"frames": frames, "image_scale": image_scale, "seed": seed, "version": version}
    settings["small_objects"] = small_objects
    splits = {
        "train_split": [f"scene-{number:04d}" for number in TRAIN_SCENES[:train_scenes]],
        "val_split": [f"scene-{number:04d}" for number in VAL_SCENES[:val_scenes]],
    }

    def fill(folder: Path) -> None:
        caster, tables = Caster(cameras), Tables(cameras, seed)
        names = [*splits["train_split"], *splits["val_split"]]
        bar = tqdm(total=len(names) * frames, unit="frame", disable=not progress)
        for number, name in enumerate(names):
            write_scene(folder, name, number, frames, seed, small_objects, caster, tables, bar)
        bar.close()
        for table, rows in tables.rows.items():
            write_json(folder / FOLDER / version / f"{table}.json", rows)
        annotations = {**splits, "scene_infos": tables.scene_infos}
        write_json(folder / FOLDER / "annotations.json", annotations)

    return write_whole(Path(root), settings, fill, overwrite)


def write_scene(
    folder: Path,
    name: str,
    number: int,
    frames: int,
    seed: int,
    small_objects: bool,
    caster: Caster,
    tables: Tables,
    bar: tqdm,
) -> None:
    """Write the files of one scene and add it to the tables."""
    rng = np.random.default_rng([seed, int(name[-4:])])
    world = city.City(rng, rng.uniform(3, 7), (frames - 1) * PERIOD, small_objects)
    start = START + number * 120_000_000
    tables.add_scene(name, start, frames)
    write_json(folder / "can_bus" / f"{name}_pose.json", can_bus_messages(world, start, frames))
    for index in range(frames):
        place, heading = world.ego(index * PERIOD)
        ego = rig.pose((place[0], place[1], 0.0), heading)
        timestamp = start + round(1e6 * index * PERIOD)
        files = tables.add_frame(name, index, frames, timestamp, ego)
        labels, light = world.voxels(index * PERIOD)
        images, mask_camera, mask_lidar, points = caster.frame(labels, light)
        for channel, image in images.items():
            write_jpeg(folder / FOLDER / files[channel], image)
        write_lidar(folder / FOLDER / files["LIDAR_TOP"], points)
        sample = token(seed, name, index)
        path = folder / FOLDER / "gts" / name / sample / "labels.npz"
        path.parent.mkdir(parents=True)
        np.savez_compressed(path, semantics=labels, mask_lidar=mask_lidar, mask_camera=mask_camera)
        bar.update()


def write_lidar(path: Path, points: np.ndarray) -> None:
    """Write every 20th point (n, 3), ego frame, as nuScenes does: x, y, z, intensity, ring."""
    lidar = rig.pose(rig.LIDAR_POSITION, math.radians(rig.LIDAR_YAW))
    sparse = (points[::20] - lidar[:3, 3]) @ lidar[:3, :3]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.pad(sparse, ((0, 0), (0, 2))).astype(np.float32).tofile(path)
