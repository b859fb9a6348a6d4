"""Synthetic HD-map data: Argoverse 2 images and the map annotations of the online HD-map task.

    OUT/argoverse2/<segment>/image/<camera>/<timestamp>.jpg
    OUT/{train,val,test}_annotations.json

`image_path` is relative to OUT/argoverse2. A segment is a drive along a road (`town.py`). In the
images boundaries are red, dividers white (the one between the directions yellow) and crossings
blue with a light border.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from . import rig
from .folder import write_jpeg, write_json, write_whole
from .ground import Texture, Viewer, grain, seen_by
from .segments import (
    PERIOD,
    SPLITS,
    Segment,
    check,
    ego_pose,
    lifted,
    random_tilt,
    segments,
)
from .town import Town, in_ego, local_map, rings

COLOURS = {  # RGB
    "ped_crossing": (60, 110, 225),
    "outline": (120, 200, 255),  # of a crossing
    "divider": (245, 245, 245),
    "centre": (250, 215, 40),
    "boundary": (225, 45, 40),
    "road": (92, 92, 98),
    "grass": (95, 135, 65),
}
WIDTHS = {"divider": 0.4, "boundary": 0.5, "outline": 0.5}  # metres


def painted(ground: np.ndarray, town: Town, place: np.ndarray, heading: float) -> Texture:
    """The ground around the car."""
    texture = Texture(ground, COLOURS["grass"])
    borders = rings(in_ego(town.ground, place, heading))
    texture.area(borders, COLOURS["road"])
    for crossing in town.crossings:
        ring = np.asarray(in_ego(crossing, place, heading).exterior.coords)
        texture.area([ring], COLOURS["ped_crossing"])
        texture.line(ring, COLOURS["outline"], WIDTHS["outline"])
    for line in town.dividers:
        moved = in_ego(line, place, heading)
        colour = COLOURS["centre" if line is town.centre else "divider"]
        for part in getattr(moved, "geoms", [moved]):
            texture.line(np.asarray(part.coords).reshape(-1, 2), colour, WIDTHS["divider"])
    for ring in borders:
        texture.line(ring, COLOURS["boundary"], WIDTHS["boundary"])
    return texture


def write(
    root: str | Path,
    *,
    train_segments: int = 50,
    val_segments: int = 10,
    test_segments: int = 1,
    frames: int = 3,
    image_scale: float = 0.125,
    seed: int = 0,
    slope: float = 0.0,
    intersections: float = 0.5,
    overwrite: bool = False,
    progress: bool = False,
) -> bool:
    """Write the data set to `root`, whole or not at all.

    Args:
        root: becomes the folder with argoverse2 and the annotation files.
        train_segments: number of drives for training.
        val_segments: number of drives for validation.
        test_segments: number of drives without annotations.
        frames: per segment, two a second.
        image_scale: 1 gives images of 2048 x 1550 pixels.
        seed: of the random numbers; equal arguments give equal files.
        slope: largest grade of the ground in the ego frame.
        intersections: share of segments with a junction.
        overwrite: replace a synthetic data set of other arguments.
        progress: show a progress bar.

    Returns:
        False when the data set was there already.

    Raises:
        ValueError: an argument is out of range.
        OSError: `root` cannot be written or holds something else.
    """
    counts = dict(zip(SPLITS, (train_segments, val_segments, test_segments)))
    check(counts, frames, seed, slope, intersections)
    cameras = rig.build(rig.ARGOVERSE2, image_scale)
    settings = {"kind": "hdmap", **counts, "frames": frames, "image_scale": image_scale}
    settings |= {"seed": seed, "slope": slope, "intersections": intersections}

    def fill(folder: Path) -> None:
        trees: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
        viewer = Viewer(cameras, np.eye(3))
        bar = tqdm(total=sum(counts.values()) * frames, unit="frame", disable=not progress)
        for segment in segments(counts, seed):
            tilt = random_tilt(segment.rng, slope)
            if slope:
                viewer = Viewer(cameras, tilt)
            trees[segment.split][segment.name] = write_segment(
                folder / "argoverse2", segment, frames, intersections, viewer, tilt, bar
            )
        bar.close()
        for split, tree in trees.items():
            write_json(folder / f"{split}_annotations.json", tree)

    return write_whole(Path(root), settings, fill, overwrite)


def write_segment(
    folder: Path,
    segment: Segment,
    frames: int,
    intersections: float,
    viewer: Viewer,
    tilt: np.ndarray,
    bar: tqdm,
) -> list[dict[str, Any]]:
    """Write the images of a segment; returns its frames as the annotation file holds them."""
    rng = segment.rng
    speed = rng.uniform(5, 9)
    town = Town(rng, speed * PERIOD * (frames - 1), rng.random() < intersections)
    ground = grain(COLOURS["grass"], rng)
    found = []
    for number in range(frames):
        place, heading = town.ego(speed * PERIOD * number)
        timestamp = segment.timestamp(number)
        sensor = {}
        images = viewer.look(painted(ground, town, place, heading))
        for camera in viewer.cameras:
            path = f"{segment.name}/image/{camera.name}/{timestamp}.jpg"
            write_jpeg(folder / path, images[camera.name])
            sensor[camera.name] = {
                "image_path": path,
                "intrinsic": camera.intrinsic.tolist(),
                "extrinsic": np.linalg.inv(camera.cam2ego).tolist(),
            }
        rotation, translation = ego_pose(place, heading, tilt)
        frame: dict[str, Any] = {
            "segment_id": segment.name,
            "timestamp": str(timestamp),
            "sensor": sensor,
            "pose": {
                "ego2global_translation": translation.tolist(),
                "ego2global_rotation": rotation.tolist(),
            },
        }
        if segment.split != "test":
            frame["annotation"] = {
                name: [with_visibility(lifted(line, tilt), viewer) for line in lines]
                for name, lines in local_map(town, place, heading).items()
            }
        found.append(frame)
        bar.update()
    return found


def with_visibility(points: np.ndarray, viewer: Viewer) -> list[list[float]]:
    """Points (n, 3) with a fourth number, 1 where a camera sees them and 0 elsewhere."""
    seen = seen_by(points, viewer.cameras)
    return [[*map(float, point), float(flag)] for point, flag in zip(points, seen)]
