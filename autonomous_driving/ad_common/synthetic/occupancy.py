"""Synthetic occupancy data in the formats of nuScenes, its CAN bus and Occ3D-nuScenes.

    OUT/can_bus/<scene>_pose.json
    OUT/occ3d-nus/annotations.json
    OUT/occ3d-nus/gts/<scene>/<sample token>/labels.npz
    OUT/occ3d-nus/samples/{CAM_FRONT,...,LIDAR_TOP}/...
    OUT/occ3d-nus/<version>/{scene,sample,sample_data,calibrated_sensor,ego_pose,sensor,...}.json

A scene is a drive along a street (`city.py`). The images show the very voxels of the labels.
"""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from . import city, rig
from .caster import Caster
from .folder import write_jpeg, write_json, write_whole
from .nuscenes_tables import Tables, token

VERSIONS = ("v1.0-trainval", "v1.0-mini")
FOLDER = "occ3d-nus"
TRAIN_SCENES = (61, 553, 655, 757, 796, 1077, 1094, 1100, *range(161, 211), *range(222, 268))
VAL_SCENES = (103, 916, 3, *range(12, 19), 35, 36, 38, 39, *range(92, 103), *range(104, 111))
PERIOD = 0.5  # seconds between frames
CAN_BUS_PERIOD = 0.02
START = 1531883530449377  # microseconds; the first scene's first sample
LARGEST_SCALE = 0.5  # beyond it the table of rays needs too much memory


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
        near = difflib.get_close_matches(version, VERSIONS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"version must be {' or '.join(VERSIONS)}, got {version!r}{hint}")
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
