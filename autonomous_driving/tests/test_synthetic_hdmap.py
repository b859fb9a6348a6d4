"""The synthetic HD-map data: formats, and that images and map elements agree."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from ad_common.synthetic import hdmap, rig, town
from shapely import LinearRing, LineString, MultiLineString, contains_xy, distance, points

CLASSES = {"ped_crossing", "divider", "boundary"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four segments on tilted ground, most with a junction."""
    out = tmp_path_factory.mktemp("hdmap") / "data"
    counts = {"train_segments": 2, "val_segments": 1, "test_segments": 1}
    assert hdmap.write(out, **counts, frames=1, image_scale=0.125, slope=0.03, intersections=0.8)
    return out


@pytest.fixture(scope="module")
def frames(root: Path) -> list[dict[str, Any]]:
    """The annotated frames."""
    trees = [
        json.loads((root / f"{name}_annotations.json").read_text()) for name in ("train", "val")
    ]
    return [frame for tree in trees for segment in tree.values() for frame in segment]


def ego2img(sensor: dict[str, Any]) -> np.ndarray:
    intrinsic = np.eye(4)
    intrinsic[:3, :3] = sensor["intrinsic"]
    return intrinsic @ np.array(sensor["extrinsic"])


def test_layout(root: Path) -> None:
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        tree = json.loads((root / f"{split}_annotations.json").read_text())
        assert len(tree) == count
        for segment, found in tree.items():
            for frame in found:
                assert frame["segment_id"] == segment and isinstance(frame["timestamp"], str)
                assert ("annotation" in frame) == (split != "test")
                assert list(frame["sensor"]) == list(rig.ARGOVERSE2)
                for camera, sensor in frame["sensor"].items():
                    path = f"{segment}/image/{camera}/{frame['timestamp']}.jpg"
                    assert sensor["image_path"] == path
                    image = cv2.imread(str(root / "argoverse2" / path))
                    assert image.shape[:2] in ((256, 194), (194, 256))
                    extrinsic = np.array(sensor["extrinsic"])  # from the ego frame to the camera
                    assert extrinsic.shape == (4, 4)
                    position = -extrinsic[:3, :3].T @ extrinsic[:3, 3]
                    np.testing.assert_allclose(position, rig.ARGOVERSE2[camera][4], atol=1e-9)
                assert set(frame["pose"]) == {"ego2global_translation", "ego2global_rotation"}


def test_elements(frames: list[dict[str, Any]]) -> None:
    counts = dict.fromkeys(CLASSES, 0)
    for frame in frames:
        assert set(frame["annotation"]) == CLASSES
        for name, lines in frame["annotation"].items():
            counts[name] += len(lines)
            for line in map(np.array, lines):
                assert line.shape[0] >= 2 and line.shape[1] == 4
                assert (np.abs(line[:, :2]) <= [30.05, 15.05]).all()
                assert set(line[:, 3]) <= {0, 1}
                if name == "ped_crossing":
                    assert (line[0] == line[-1]).all() and LinearRing(line[:, :2]).is_ccw
                    assert (line[:-1, :2].sum(axis=1) >= line[0, :2].sum() - 1e-6).all()
            if name == "boundary":
                assert len(lines) >= 2
    assert min(counts.values()) >= 4


def test_elements_lie_on_the_ground_of_the_pose(frames: list[dict[str, Any]]) -> None:
    tilted = 0
    for frame in frames:
        rotation = np.array(frame["pose"]["ego2global_rotation"])
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        points = np.vstack([line for lines in frame["annotation"].values() for line in lines])
        height = points[:, :3] @ rotation[2]
        np.testing.assert_allclose(height, 0, atol=1e-6)
        tilted += np.abs(points[:, 2]).max() > 0.1
    assert tilted >= 2


def test_the_flag_tells_what_a_camera_sees(frames: list[dict[str, Any]]) -> None:
    for frame in frames:
        points = np.vstack([line for lines in frame["annotation"].values() for line in lines])
        seen = np.zeros(len(points), bool)
        for camera, sensor in frame["sensor"].items():
            width, height = (194, 256) if camera == "ring_front_center" else (256, 194)
            homogeneous = np.column_stack([points[:, :3], np.ones(len(points))])
            u, v, depth, _ = ego2img(sensor) @ homogeneous.T
            u, v = u / depth, v / depth
            seen |= (depth > 0.1) & (u >= 0) & (v >= 0) & (u <= width - 1) & (v <= height - 1)
        np.testing.assert_array_equal(points[:, 3] == 1, seen)


def test_lines_show_their_colour(root: Path, frames: list[dict[str, Any]]) -> None:
    names = {"outline": "ped_crossing", "divider": "divider", "centre": "divider"}
    names |= {"boundary": "boundary", "road": "", "grass": "", "ped_crossing": ""}
    colours = np.array([hdmap.COLOURS[name] for name in names], float)
    right: dict[str, list[bool]] = {name: [] for name in CLASSES}
    for frame in frames:
        curbs = MultiLineString(
            [LineString([point[:2] for point in line]) for line in frame["annotation"]["boundary"]]
        )
        for sensor in frame["sensor"].values():
            path = root / "argoverse2" / sensor["image_path"]
            image = cv2.imread(str(path))[..., ::-1].astype(float)
            for name, lines in frame["annotation"].items():
                for line in lines:
                    corners = np.array(line)[:, :3]
                    share = np.linspace(0.05, 0.95, 60)[:, None]
                    dense = np.vstack([a + share * (b - a) for a, b in pairwise(corners)])
                    if name == "ped_crossing":  # a curb is painted over its side
                        dense = dense[distance(points(dense[:, :2]), curbs) > 0.8]
                    homogeneous = np.column_stack([dense, np.ones(len(dense))])
                    u, v, depth, _ = ego2img(sensor) @ homogeneous.T
                    near = (depth > 1) & (depth < 14)
                    u, v = np.round(u[near] / depth[near]), np.round(v[near] / depth[near])
                    inside = (u >= 0) & (v >= 0) & (u < image.shape[1]) & (v < image.shape[0])
                    pixels = image[v[inside].astype(int), u[inside].astype(int)]
                    away = np.linalg.norm(pixels[:, None] - colours, axis=-1)
                    kinds = [list(names.values())[index] for index in away.argmin(axis=1)]
                    right[name] += [kind == name for kind in kinds]
    assert min(map(len, right.values())) > 50
    for name, seen in right.items():
        assert np.mean(seen) > 0.9, name


def test_boundaries_have_the_road_on_their_left() -> None:
    for seed in range(4):
        world = town.Town(np.random.default_rng(seed), 10.0, seed % 2 == 1)
        place, heading = world.ego(5.0)
        found = town.local_map(world, place, heading)
        ground = town.in_ego(world.ground, place, heading).buffer(1e-6)
        for line in found["boundary"]:
            middle, step = (line[1:] + line[:-1]) / 2, np.diff(line, axis=0)
            left = np.stack([-step[:, 1], step[:, 0]], axis=1)
            left *= 0.3 / np.linalg.norm(left, axis=1, keepdims=True)
            assert contains_xy(ground, *(middle + left).T).all()
            assert not contains_xy(ground, *(middle - left).T).any()
        assert all(line[-1, 0] > line[0, 0] for line in found["divider"]) or seed % 2
