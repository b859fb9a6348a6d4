"""The synthetic occupancy data: formats, and that images, masks and poses agree with the labels."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from ad_common.geometry import quaternion_to_matrix
from ad_common.synthetic import city, occupancy, rig, voxels

CAMERAS = tuple(rig.NUSCENES)
FRAMES = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set: two scenes of three frames, images of 72 x 40 pixels."""
    out = tmp_path_factory.mktemp("occupancy") / "data"
    assert occupancy.write(out, train_scenes=1, val_scenes=1, frames=FRAMES, image_scale=0.045)
    return out


def tables(root: Path) -> dict[str, list[dict[str, Any]]]:
    folder = root / "occ3d-nus" / "v1.0-trainval"
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def annotations(root: Path) -> dict[str, Any]:
    return json.loads((root / "occ3d-nus" / "annotations.json").read_text())


def pose(entry: dict[str, Any]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = quaternion_to_matrix(entry["rotation"])
    matrix[:3, 3] = entry["translation"]
    return matrix


def test_labels_have_the_published_form(root: Path) -> None:
    infos = annotations(root)["scene_infos"]
    paths = [entry["gt_path"] for scene in infos.values() for entry in scene.values()]
    assert len(paths) == len(set(paths)) == 2 * FRAMES
    for path in paths:
        assert re.fullmatch(r"gts/scene-\d{4}/[0-9a-f]{32}/labels\.npz", path)
        with np.load(root / "occ3d-nus" / path) as labels:
            assert set(labels.files) == {"semantics", "mask_lidar", "mask_camera"}
            arrays = {name: labels[name] for name in labels.files}
        for array in arrays.values():
            assert array.shape == (200, 200, 16) and array.dtype == np.uint8
        assert (
            set(np.unique(arrays["mask_camera"])) == set(np.unique(arrays["mask_lidar"])) == {0, 1}
        )
        semantics = arrays["semantics"]
        assert 0.85 < (semantics == 17).mean() < 0.95
        seen = semantics[arrays["mask_camera"] == 1]
        assert len(set(np.unique(seen)) - {17}) >= 6
        assert set(np.unique(semantics)) <= {3, 4, 10, 11, 13, 14, 15, 16, 17}


def test_tables_are_linked(root: Path) -> None:
    rows = tables(root)
    assert [scene["name"] for scene in rows["scene"]] == ["scene-0061", "scene-0103"]
    by_token = {name: {row["token"]: row for row in table} for name, table in rows.items()}
    for name, table in rows.items():
        assert len(by_token[name]) == len(table), f"a token of {name} is there twice"
    for scene in rows["scene"]:
        token, times = scene["first_sample_token"], []
        while token:
            sample = by_token["sample"][token]
            assert sample["scene_token"] == scene["token"]
            times.append(sample["timestamp"])
            last, token = token, sample["next"]
        assert last == scene["last_sample_token"] and scene["nbr_samples"] == len(times) == FRAMES
        assert np.diff(times).tolist() == [500_000] * (FRAMES - 1)
        assert scene["log_token"] in by_token["log"]
    channels = set()
    for data in rows["sample_data"]:
        calibrated = by_token["calibrated_sensor"][data["calibrated_sensor_token"]]
        channel = by_token["sensor"][calibrated["sensor_token"]]["channel"]
        channels.add(channel)
        assert data["ego_pose_token"] in by_token["ego_pose"]
        assert data["sample_token"] in by_token["sample"] and data["is_key_frame"] is True
        path = root / "occ3d-nus" / data["filename"]
        assert re.fullmatch(
            rf"samples/{channel}/n.*__{channel}__{data['timestamp']}\..*", data["filename"]
        )
        if channel == "LIDAR_TOP":
            points = np.fromfile(path, np.float32).reshape(-1, 5)
            assert len(points) > 100 and np.abs(points[:, :3]).max() < 60
        else:
            image = cv2.imread(str(path))
            assert image.shape == (data["height"], data["width"], 3) == (40, 72, 3)
    assert channels == {*CAMERAS, "LIDAR_TOP"}


def test_annotations_repeat_the_tables(root: Path) -> None:
    rows, tree = tables(root), annotations(root)
    assert tree["train_split"] == ["scene-0061"] and tree["val_split"] == ["scene-0103"]
    data = {row["token"]: row for row in rows["sample_data"]}
    poses = {row["token"]: row for row in rows["ego_pose"]}
    calibrated = {row["token"]: row for row in rows["calibrated_sensor"]}
    samples = {row["token"]: row for row in rows["sample"]}
    for scene in tree["scene_infos"].values():
        for token, info in scene.items():
            assert [info[key] for key in ("timestamp", "prev", "next")] == [
                samples[token][key] for key in ("timestamp", "prev", "next")
            ]
            assert len(info["camera_sensor"]) == 6
            for key, camera in info["camera_sensor"].items():
                row = data[key]
                assert row["sample_token"] == token and row["filename"] == camera["img_path"]
                sensor = calibrated[row["calibrated_sensor_token"]]
                assert camera["intrinsic"] == sensor["camera_intrinsic"]
                assert camera["extrinsic"]["rotation"] == sensor["rotation"]
                assert camera["ego_pose"]["rotation"] == poses[row["ego_pose_token"]]["rotation"]


def test_can_bus_follows_the_ego_poses(root: Path) -> None:
    for name, scene in annotations(root)["scene_infos"].items():
        messages = json.loads((root / "can_bus" / f"{name}_pose.json").read_text())
        keys = {"pos", "orientation", "accel", "rotation_rate", "vel", "utime"}
        assert all(set(message) == keys for message in messages)
        time = np.array([message["utime"] for message in messages])
        assert (np.diff(time) == 20_000).all()
        frames = list(scene.values())
        assert time[0] < frames[0]["timestamp"] and time[-1] > frames[-1]["timestamp"]
        speed = np.linalg.norm([message["vel"] for message in messages], axis=1)
        rate = np.array([message["rotation_rate"][2] for message in messages])
        for info in frames:
            message = messages[int(np.abs(time - info["timestamp"]).argmin())]
            ego = info["ego_pose"]
            np.testing.assert_allclose(message["pos"], ego["translation"], atol=1e-6)
            np.testing.assert_allclose(
                quaternion_to_matrix(message["orientation"]),
                quaternion_to_matrix(ego["rotation"]),
                atol=1e-9,
            )
        for one, two in pairwise(frames):
            relative = np.linalg.inv(pose(one["ego_pose"])) @ pose(two["ego_pose"])
            moved = relative[:2, 3]
            assert 1 < np.linalg.norm(moved) < 4 and moved[0] > 0.9 * np.linalg.norm(moved)
            np.testing.assert_allclose(np.linalg.norm(moved), 0.5 * speed.mean(), rtol=0.15)
            between = (time >= one["timestamp"]) & (time < two["timestamp"])
            turned = np.arctan2(relative[1, 0], relative[0, 0])
            np.testing.assert_allclose(turned, 0.02 * rate[between].sum(), atol=2e-3)


def test_poses_align_the_labels_of_two_frames(root: Path) -> None:
    scene = annotations(root)["scene_infos"]["scene-0061"]
    one, two = list(scene.values())[:2]
    grids = []
    for info in (one, two):
        with np.load(root / "occ3d-nus" / info["gt_path"]) as labels:
            grids.append(labels["semantics"])
    index = np.argwhere(grids[0] == city.MANMADE)
    assert len(index) > 500
    centres = city.LOWER + city.SIZE * (index + 0.5)
    relative = np.linalg.inv(pose(two["ego_pose"])) @ pose(one["ego_pose"])

    def agreement(matrix: np.ndarray) -> float:
        moved = centres @ matrix[:3, :3].T + matrix[:3, 3]
        cell = np.floor((moved - city.LOWER) / city.SIZE).astype(int)
        inside = ((cell >= 1) & (cell < np.array(city.SHAPE) - 1))[:, :2].all(axis=1)
        cell = cell[inside]
        near = [
            grids[1][cell[:, 0] + i, cell[:, 1] + j, cell[:, 2]] == city.MANMADE
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
        ]
        return float(np.any(near, axis=0).mean())

    assert agreement(relative) > 0.99
    assert agreement(np.eye(4)) < 0.8


def test_a_voxel_shows_its_colour_where_it_projects() -> None:
    cameras = rig.build(rig.NUSCENES, 0.125)[:1]
    caster = occupancy.Caster(cameras)
    world = city.City(np.random.default_rng(5), 5.0, 2.0)
    labels, light = world.voxels(1.0)
    images, seen, _, _ = caster.frame(labels, light)
    front = cameras[0]
    assert images["CAM_FRONT"].shape == (112, 200, 3)
    palette = {
        label: np.array(colour) / np.linalg.norm(colour) for label, colour in city.COLOURS.items()
    }
    eye = front.cam2ego[:3, 3]
    right = total = 0
    for index in np.argwhere((labels != city.FREE) & (seen == 1)):
        centre = city.LOWER + city.SIZE * (index + 0.5)
        for axis in range(3):  # the middle of a face that the camera may see
            place = centre.copy()
            place[axis] += 0.48 * city.SIZE * np.sign(eye[axis] - centre[axis])
            u, v, depth, _ = front.ego2img @ [*place, 1]
            u, v = u / depth, v / depth
            if not (2 < depth < 12 and 1 <= u <= 198 and 1 <= v <= 110):
                continue
            way = np.linspace(0, 1, 400)[:, None] * (place - eye) + eye
            cells = np.floor((way - city.LOWER) / city.SIZE).astype(int)
            before = cells[(cells != index).any(axis=1)]
            if (labels[tuple(before.T)] != city.FREE).any():
                continue  # hidden
            pixel = images["CAM_FRONT"][round(v), round(u)].astype(float)
            near = max(palette, key=lambda label: palette[label] @ pixel / np.linalg.norm(pixel))
            total += 1
            right += near == labels[tuple(index)]
    assert total > 200 and right / total > 0.85


def test_rays_agree_with_a_brute_force_search() -> None:
    rng = np.random.default_rng(0)
    shape, size, lower = (7, 6, 4), 0.5, np.array([-1.0, -2.0, 0.5])
    occupied = rng.random(shape) < 0.12
    start = lower + size * np.array([3.3, 2.6, 1.7])
    occupied[3, 2, 1] = False
    directions = rng.normal(size=(60, 3))
    directions[0], directions[1] = [1, 0, 0], [0, 0, -2]  # parallel to the axes
    paths = voxels.trace(np.tile(start, (60, 1)), directions, lower, size, shape)
    hits = voxels.first_hits(paths, occupied)
    expected = np.zeros(shape, bool)
    cells = np.argwhere(np.ones(shape, bool))
    for ray, direction in enumerate(directions):
        low = lower + size * cells
        with np.errstate(divide="ignore", invalid="ignore"):
            a, b = (low - start) / direction, (low + size - start) / direction
        a, b = np.nan_to_num(a, nan=-np.inf), np.nan_to_num(b, nan=np.inf)
        enter, leave = np.minimum(a, b).max(axis=1), np.maximum(a, b).min(axis=1)
        crossed = (leave > np.maximum(enter, 0) + 1e-12) & (leave > 0)
        order = np.argsort(enter[crossed])
        visited = cells[crossed][order]
        part = slice(paths.starts[ray], paths.starts[ray + 1])
        np.testing.assert_array_equal(
            paths.voxels[part], np.ravel_multi_index(tuple(visited.T), shape)
        )
        solid = np.flatnonzero(occupied[tuple(visited.T)])
        if len(solid):
            assert hits[ray] == paths.starts[ray] + solid[0]
            visited = visited[: solid[0] + 1]
        else:
            assert hits[ray] == -1
        expected[tuple(visited.T)] = True
    assert (hits >= 0).any() and (hits < 0).any()
    np.testing.assert_array_equal(voxels.observed(paths, hits, shape), expected)
    with pytest.raises(ValueError, match="starts outside the grid"):
        voxels.trace(lower[None] - 1, np.ones((1, 3)), lower, size, shape)


def test_small_objects_are_added_on_request() -> None:
    plain, full = (
        city.City(np.random.default_rng(3), 5.0, 2.0, small).voxels(0.0)[0]
        for small in (False, True)
    )
    small = {city.PEDESTRIAN, city.BARRIER}
    assert not small & set(np.unique(plain)) and small <= set(np.unique(full))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train_scenes": 0}, "train scenes must be from 1 to"),
        ({"val_scenes": 10_000}, "val scenes must be from 1 to"),
        ({"frames": 0}, "a scene needs a frame"),
        ({"image_scale": 0.9}, "at most 0.5"),
        ({"image_scale": 0.01}, "image scale must be from"),
        ({"image_scale": float("nan")}, "image scale must be from"),
        ({"seed": -1}, "seed must not be negative"),
        ({"version": "v1.0-mimi"}, "did you mean v1.0-mini"),
    ],
)
def test_bad_arguments(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        occupancy.write(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
