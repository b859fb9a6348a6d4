"""The synthetic OpenLane-V2 data: formats, and that images, lanes and topology agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from ad_common.synthetic import lanes, openlane, rig, signals


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five segments, some of them with a junction, on tilted ground."""
    out = tmp_path_factory.mktemp("openlane") / "data"
    counts = {"train_segments": 3, "val_segments": 1, "test_segments": 1}
    assert openlane.write(out, **counts, frames=1, image_scale=0.125, slope=0.03)
    return out / "OpenLane-V2"


@pytest.fixture(scope="module")
def frames(root: Path) -> list[dict[str, Any]]:
    """The info files of the training and validation frames."""
    paths = [*root.glob("train/*/info/*.json"), *root.glob("val/*/info/*.json")]
    return [json.loads(path.read_text()) for path in sorted(paths)]


def ego2img(sensor: dict[str, Any]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = sensor["extrinsic"]["rotation"]
    matrix[:3, 3] = sensor["extrinsic"]["translation"]
    intrinsic = np.eye(4)
    intrinsic[:3, :3] = sensor["intrinsic"]["K"]
    return intrinsic @ np.linalg.inv(matrix)


def points_of(frame: dict[str, Any]) -> list[np.ndarray]:
    return [np.array(lane["points"]) for lane in frame["annotation"]["lane_centerline"]]


def test_layout(root: Path) -> None:
    index = json.loads((root / "data_dict_subset_A.json").read_text())
    assert {split: len(found) for split, found in index.items()} == {
        "train": 3,
        "val": 1,
        "test": 1,
    }
    for split, found in index.items():
        for segment, names in found.items():
            for name in names:
                info = json.loads((root / split / segment / "info" / name).read_text())
                assert info["segment_id"] == segment and f"{info['timestamp']}.json" == name
                assert list(info["sensor"]) == list(rig.ARGOVERSE2)
                assert ("annotation" in info) == (split != "test")
                for camera, sensor in info["sensor"].items():
                    path = f"{split}/{segment}/image/{camera}/{info['timestamp']}.jpg"
                    assert sensor["image_path"] == path
                    shape = cv2.imread(str(root / path)).shape
                    front = camera == "ring_front_center"
                    assert shape == ((256, 194, 3) if front else (194, 256, 3))
                    assert np.shape(sensor["intrinsic"]["K"]) == (3, 3)
                    assert len(sensor["intrinsic"]["distortion"]) == 3
                    rotation = np.array(sensor["extrinsic"]["rotation"])
                    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
                assert np.shape(info["pose"]["rotation"]) == (3, 3)
                assert (
                    len(info["pose"]["translation"]) == len(sensor["intrinsic"]["distortion"]) == 3
                )
    sample = json.loads((root / "data_dict_sample.json").read_text())
    assert sample == {"train": dict(list(index["train"].items())[:2])}


def test_annotations(frames: list[dict[str, Any]]) -> None:
    connectors = edges = elements = 0
    for frame in frames:
        tree = frame["annotation"]
        n, k = len(tree["lane_centerline"]), len(tree["traffic_element"])
        assert n >= 4
        ids = [entry["id"] for entry in (*tree["lane_centerline"], *tree["traffic_element"])]
        assert len(set(ids)) == n + k and all(isinstance(name, str) for name in ids)
        for points in points_of(frame):
            assert points.shape == (201, 3)
            assert (np.abs(points) <= [51.25, 25.65, 3]).all()
            steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
            assert steps.min() > 0.9 * steps.max() and steps.sum() >= 3.9
        lclc = np.array(tree["topology_lclc"])
        lcte = np.array(tree["topology_lcte"]).reshape(n, k)
        assert lclc.shape == (n, n) and set(np.unique([*lclc.ravel(), *lcte.ravel()])) <= {0, 1}
        assert (lcte.sum(axis=0) == 1).all()
        connectors += sum(lane["is_intersection_or_connector"] for lane in tree["lane_centerline"])
        edges, elements = edges + lclc.sum(), elements + k
    assert connectors > 4 and edges > 30 and elements >= 4


def test_successors_are_exactly_the_lanes_that_join(frames: list[dict[str, Any]]) -> None:
    for frame in frames:
        lines = points_of(frame)
        ends, starts = (np.array([line[k] for line in lines]) for k in (-1, 0))
        gaps = np.linalg.norm(ends[:, None] - starts[None], axis=-1)
        edges = np.array(frame["annotation"]["topology_lclc"]) == 1
        assert (gaps[edges] < 1e-4).all()
        assert (gaps[~edges] > 0.5).all()
        for i, j in np.argwhere(edges):  # and go on in the same direction
            before, after = lines[i][-1] - lines[i][-2], lines[j][1] - lines[j][0]
            cosine = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
            assert cosine > 0.97


def test_lanes_show_the_colour_of_their_direction(root: Path, frames: list[dict[str, Any]]) -> None:
    palette = {kind: openlane.COLOURS[kind] for kind in ("forward", "backward")}
    palette |= {"road": openlane.ROAD, "grass": openlane.GRASS}
    names, colours = list(palette), np.array([*palette.values()], float)
    found = {"forward": [], "backward": []}
    for frame in frames:
        for sensor in frame["sensor"].values():
            image = cv2.imread(str(root / sensor["image_path"]))[..., ::-1].astype(float)
            for entry, points in zip(frame["annotation"]["lane_centerline"], points_of(frame)):
                direction = points[-1] - points[0]
                straight = abs(direction[0]) > 0.95 * np.linalg.norm(direction)
                if entry["is_intersection_or_connector"] or not straight:
                    continue
                kind = "forward" if direction[0] > 0 else "backward"
                inner = points[8:-8]  # off the white bars
                u, v, depth, _ = ego2img(sensor) @ np.vstack([inner.T, np.ones(len(inner))])
                near = (depth > 2) & (depth < 15)
                u, v = np.round(u[near] / depth[near]), np.round(v[near] / depth[near])
                inside = (u >= 0) & (v >= 0) & (u < image.shape[1]) & (v < image.shape[0])
                pixels = image[v[inside].astype(int), u[inside].astype(int)]
                pixels = pixels[pixels.max(axis=1) > 190]  # not an arrowhead
                away = np.linalg.norm(pixels[:, None] - colours, axis=-1)
                found[kind] += [names[index] for index in away.argmin(axis=1)]
    for kind, seen in found.items():
        assert len(seen) > 100
        assert np.mean([name == kind for name in seen]) > 0.97


def test_boxes_surround_panels_of_the_attribute(root: Path, frames: list[dict[str, Any]]) -> None:
    total = 0
    for frame in frames:
        path = frame["sensor"]["ring_front_center"]["image_path"]
        image = cv2.imread(str(root / path))[..., ::-1].astype(float)
        for element in frame["annotation"]["traffic_element"]:
            low, high = np.array(element["points"])
            assert (low >= 0).all() and (high <= [193, 255]).all() and (high - low >= 4).all()
            light = element["attribute"] < 4
            assert element["category"] == (1 if light else 2)
            if (high - low).min() < 8:
                continue
            across, down = (0.5, 0.5) if light else (0.2, 0.2)
            u, v = np.round(low + (high - low) * (across, down)).astype(int)
            away = np.linalg.norm(np.array(signals.COLOURS) - image[v, u], axis=1)
            assert away.argmin() == element["attribute"]
            u, v = np.round(low - 2).astype(int)
            assert image[max(v, 0), max(u, 0)][2] > 180  # the sky outside
            total += 1
    assert total >= 4


def test_an_element_hangs_above_its_lane(frames: list[dict[str, Any]]) -> None:
    for frame in frames:
        tree, lines = frame["annotation"], points_of(frame)
        matrix = ego2img(frame["sensor"]["ring_front_center"])
        for column, element in enumerate(tree["traffic_element"]):
            (row,) = np.flatnonzero(np.array(tree["topology_lcte"])[:, column])
            (left, top), (right, bottom) = np.array(element["points"])
            best = np.inf
            for k in (100, 200):
                place = lines[row][k] + [0, 0, signals.HEIGHT]
                u, v, depth, _ = matrix @ [*place, 1]
                if depth > 1:
                    miss = np.hypot(u / depth - (left + right) / 2, v / depth - (top + bottom) / 2)
                    best = min(best, miss / (right - left))
            if best > 0.3:  # the middle of a lane that is clipped is elsewhere
                assert np.abs(lines[row][[0, -1], :2]).max() > 25
            else:
                assert best < 0.3


def test_clip_keeps_the_longest_part_and_tells_whole_ends() -> None:
    whole = lanes.clip(0, np.array([[0.0, 0], [10, 0]]))
    assert whole.whole_start and whole.whole_end
    np.testing.assert_allclose(whole.points[:, 0], np.linspace(0, 10, 201))
    cut = lanes.clip(1, np.array([[40.0, 3], [70, 3]]))
    assert cut.whole_start and not cut.whole_end and cut.points[-1].tolist() == [51.2, 3]
    assert lanes.clip(2, np.array([[0.0, 30], [10, 30]])) is None
    assert lanes.clip(3, np.array([[50.0, 0], [60, 0]])) is None  # too short
    twice = lanes.clip(4, np.array([[-10.0, 20], [-10, 30], [10, 30], [10, 0]]))
    np.testing.assert_allclose(twice.points[[0, -1]], [[10, 25.6], [10, 0]])


def test_junctions_on_request() -> None:
    rng = np.random.default_rng(0)
    plain = lanes.Network(rng, 10.0, False)
    assert not any(lane.connector for lane in plain.lanes) and not plain.sides
    assert all(len(lane.following) <= 1 for lane in plain.lanes)
    network = lanes.Network(rng, 10.0, True)
    kinds = {lane.kind for lane in network.lanes}
    assert {"forward_connector", "out_connector", "in_connector", "out", "in"} <= kinds
    assert max(len(lane.following) for lane in network.lanes) == 2
