"""Synthetic OpenLane-V2 data, subset A: images of seven ring cameras, lanes and traffic elements.

    OUT/OpenLane-V2/{train,val,test}/<segment>/image/<camera>/<timestamp>.jpg
    OUT/OpenLane-V2/{train,val,test}/<segment>/info/<timestamp>.json
    OUT/OpenLane-V2/{data_dict_subset_A,data_dict_sample}.json

`image_path` is relative to OUT/OpenLane-V2. A segment is a drive along a road (`lanes.py`). In the
images a lane is a strip whose colour tells its direction, with darker arrowheads; a white bar marks
where one lane ends and the next begins. Lights and signs (`signals.py`) hang above the middle and
the end of a lane and concern that lane.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from . import rig, signals
from .folder import write_jpeg, write_json, write_whole
from .ground import Texture, Viewer, grain
from .lanes import ROI, Network, clip, successions
from .segments import PERIOD, SPLITS, Segment, check, ego_pose, lifted, random_tilt, segments
from .town import LANE
from .world import to_ego

FOLDER = "OpenLane-V2"
VERSION = "OpenLane-V2_v1.0"
COLOURS = {  # RGB; connectors are lighter
    "forward": (35, 120, 235),
    "backward": (240, 130, 30),
    "out": (200, 40, 200),
    "in": (40, 190, 70),
}
ROAD, GRASS, JOINT = (92, 92, 98), (120, 125, 95), (250, 250, 250)
STRIP = 2.0  # metres, width of a lane's strip
BAR = (3.0, 0.9)  # metres across and along the lane, of the mark at its ends
ARROWS = 7.0  # metres from one arrowhead to the next


def colour_of(kind: str) -> tuple[int, ...]:
    """Colour of a lane's strip."""
    base = np.array(COLOURS[kind.removesuffix("_connector")])
    if kind.endswith("_connector"):
        base = np.round(0.55 * base + 0.45 * 255)
    return tuple(map(int, base))


def painted(ground: np.ndarray, network: Network, place: np.ndarray, heading: float) -> Texture:
    """The ground around the car."""
    texture = Texture(ground, GRASS)
    grid = np.arange(0, network.road.s[-1], 2.0)
    low, high = network.edges
    border = np.vstack([network.road.at(grid, low)[0], network.road.at(grid, high)[0][::-1]])
    texture.area([to_ego(border, place, heading)], ROAD)
    for line in network.sides:
        texture.line(to_ego(line, place, heading), ROAD, 2 * LANE + 1)
    moved = [(lane, to_ego(lane.points, place, heading)) for lane in network.lanes]
    order = sorted(moved, key=lambda entry: not entry[0].kind.startswith(("out", "in")))
    for lane, points in order:
        texture.line(points, colour_of(lane.kind), STRIP)
        paint_arrows(texture, points, tuple(int(0.6 * c) for c in colour_of(lane.kind)))
    for _, points in order:
        for end, inner in ((points[0], points[1]), (points[-1], points[-2])):
            step = (end - inner) / np.linalg.norm(end - inner)
            left = (BAR[0] - BAR[1]) / 2 * np.array([-step[1], step[0]])  # OpenCV's ends are round
            texture.line(np.array([end - left, end + left]), JOINT, BAR[1])
    return texture


def paint_arrows(texture: Texture, points: np.ndarray, colour: tuple[int, ...]) -> None:
    """Paint arrowheads along a lane (n, 2)."""
    way = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    for s in np.arange(ARROWS / 2, way[-1] - 1, ARROWS):
        back, tip = (
            np.array([np.interp(s + shift, way, points[:, k]) for k in (0, 1)])
            for shift in (-0.9, 0.9)
        )
        along = (tip - back) / np.linalg.norm(tip - back)
        left = 0.8 * np.array([-along[1], along[0]])
        texture.area([np.array([back + left, back - left, tip])], colour)


def annotate(
    network: Network,
    place: np.ndarray,
    heading: float,
    tilt: np.ndarray,
    front: rig.Camera,
) -> tuple[dict[str, Any], list[signals.Signal]]:
    """A frame's annotation as the info file holds it, and the signals to paint."""
    clipped = [
        clip(index, to_ego(lane.points, place, heading)) for index, lane in enumerate(network.lanes)
    ]
    lanes = [entry for entry in clipped if entry is not None]
    above = []
    for number, entry in enumerate(lanes):
        points = to_ego(network.lanes[entry.lane].points, place, heading)
        for share, attribute in network.lanes[entry.lane].signals:
            point = points[round(share * (len(points) - 1))]
            if (np.abs(point) <= np.array(ROI) / 2).all():
                above.append((attribute, number, lifted(point[None], tilt)[0]))
    shown = signals.choose(above, tilt.T @ np.array([0, 0, 1.0]), front)
    assigned = np.zeros((len(lanes), len(shown)), np.int64)
    for column, signal in enumerate(shown):
        assigned[signal.owner, column] = 1
    annotation = {
        "lane_centerline": [
            {
                "id": str(number),
                "points": np.round(lifted(entry.points, tilt), 6).tolist(),
                "is_intersection_or_connector": network.lanes[entry.lane].connector,
            }
            for number, entry in enumerate(lanes)
        ],
        "traffic_element": [
            {
                "id": str(len(lanes) + number),
                "category": 1 if signal.attribute < signals.LIGHTS else 2,
                "attribute": signal.attribute,
                "points": np.round(signal.rectangle, 3).reshape(2, 2).tolist(),
            }
            for number, signal in enumerate(shown)
        ],
        "topology_lclc": successions(network, lanes).tolist(),
        "topology_lcte": assigned.tolist(),
    }
    return annotation, shown


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
    """Write the data set to `root`/OpenLane-V2; `root` is made whole or not at all.

    Args:
        root: becomes the folder with OpenLane-V2.
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
    settings = {"kind": "openlane", **counts, "frames": frames, "image_scale": image_scale}
    settings |= {"seed": seed, "slope": slope, "intersections": intersections}

    def fill(folder: Path) -> None:
        index: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
        viewer = Viewer(cameras, np.eye(3))
        bar = tqdm(total=sum(counts.values()) * frames, unit="frame", disable=not progress)
        for segment in segments(counts, seed):
            tilt = random_tilt(segment.rng, slope)
            if slope:
                viewer = Viewer(cameras, tilt)
            index[segment.split][segment.name] = write_segment(
                folder / FOLDER, segment, frames, intersections, viewer, tilt, bar
            )
        bar.close()
        write_json(folder / FOLDER / "data_dict_subset_A.json", index)
        sample = {"train": dict(list(index["train"].items())[:2])}
        write_json(folder / FOLDER / "data_dict_sample.json", sample)

    return write_whole(Path(root), settings, fill, overwrite)


def write_segment(
    root: Path,
    segment: Segment,
    frames: int,
    intersections: float,
    viewer: Viewer,
    tilt: np.ndarray,
    bar: tqdm,
) -> list[str]:
    """Write the images and info files of a segment; returns the names of the latter."""
    rng = segment.rng
    speed = rng.uniform(5, 9)
    network = Network(rng, speed * PERIOD * (frames - 1), rng.random() < intersections)
    ground = grain(GRASS, rng)
    folder = f"{segment.split}/{segment.name}"
    names = []
    for number in range(frames):
        place, heading = network.ego(speed * PERIOD * number)
        timestamp = segment.timestamp(number)
        annotation, shown = annotate(network, place, heading, tilt, viewer.cameras[0])
        images = viewer.look(painted(ground, network, place, heading))
        sensor = {}
        for camera in viewer.cameras:
            signals.paint(images[camera.name], camera, shown)
            path = f"{folder}/image/{camera.name}/{timestamp}.jpg"
            write_jpeg(root / path, images[camera.name])
            sensor[camera.name] = {
                "image_path": path,
                "extrinsic": {
                    "rotation": camera.cam2ego[:3, :3].tolist(),
                    "translation": camera.cam2ego[:3, 3].tolist(),
                },
                "intrinsic": {"K": camera.intrinsic.tolist(), "distortion": [0.0, 0.0, 0.0]},
            }
        rotation, translation = ego_pose(place, heading, tilt)
        info = {
            "version": VERSION,
            "segment_id": segment.name,
            "meta_data": {"source": "synthetic", "source_id": segment.name},
            "timestamp": timestamp,
            "sensor": sensor,
            "pose": {"rotation": rotation.tolist(), "translation": translation.tolist()},
        }
        if segment.split != "test":
            info["annotation"] = annotation
        names.append(f"{timestamp}.json")
        write_json(root / folder / "info" / names[-1], info)
        bar.update()
    return names
