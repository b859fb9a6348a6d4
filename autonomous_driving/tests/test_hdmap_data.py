"""Annotation files and data set of the HD map, with what can be wrong about them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hdmap_made_data as made
import numpy as np
import pytest
import torch
from ad_common.datasets.errors import DatasetError
from ad_common.geometry import project
from hdmap.annotations import load_frames
from hdmap.dataset import AV2Dataset
from mmcv.parallel import collate
from mmdet.datasets import build_dataset

TRAIN = [
    {"type": "VectorizeMap"},
    {"type": "LoadMultiViewImagesFromFiles"},
    {"type": "ResizeMultiViewImages", "size": (12, 20)},
    {"type": "Normalize3D", "mean": [0, 0, 0], "std": [1, 1, 1], "to_rgb": True},
    {"type": "PadMultiViewImages", "size_divisor": 32},
    {"type": "PolygonizeLocalMapBbox"},
    {"type": "FormatBundleMap"},
    {"type": "Collect3D", "keys": ["img", "polys"]},
]
TEST = [*TRAIN[1:5], TRAIN[6], {"type": "Collect3D", "keys": ["img"]}]


def train_set(path: Path, **options: Any) -> AV2Dataset:
    """The data set as a config makes it."""
    return build_dataset(
        {"type": "AV2Dataset", "ann_file": str(path), "pipeline": TRAIN, **options}
    )


def test_a_training_sample(tmp_path: Path) -> None:
    dataset = train_set(made.write(tmp_path))
    assert len(dataset) == len(dataset.flag) == 3
    batch = collate([dataset[0], dataset[1]], samples_per_gpu=2)
    assert batch["img"].data[0].shape == (2, 2, 3, 32, 32)
    polys = batch["polys"].data[0]
    assert len(polys) == 2
    assert polys[1]["det_label"].tolist() == [1, 2]
    assert [len(s) for s in polys[1]["sequences"]] == [5, 7]  # a vertex 5 cm off is taken out
    assert all(isinstance(s, torch.Tensor) for s in polys[0]["gen_weight"])
    meta = batch["img_metas"].data[0][1]
    assert meta["token"] == "101" and meta["camera_names"] == list(made.CAMERAS)


def test_projection_follows_the_resize_and_not_the_padding(tmp_path: Path) -> None:
    dataset = train_set(made.write(tmp_path))
    before = dataset.get_data_info(0)["lidar2img"]
    after = dataset[0]["img_metas"].data["lidar2img"]
    point = [[8.0, 1.0, 0.5]]
    uv, depth = project(point, before[0])
    np.testing.assert_allclose(uv, [[20 - 20 / 8, 12 + 20 / 8]])
    assert depth == pytest.approx(8)
    np.testing.assert_allclose(project(point, after[0])[0], uv / 2)
    assert project(point, before[1])[1] < 0  # the rear camera


def test_cameras_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = made.write(tmp_path)
    content = made.load(path)
    sensor = content["seg"][1]["sensor"]
    content["seg"][1]["sensor"] = dict(reversed(sensor.items()))
    info = train_set(made.save(tmp_path, content)).get_data_info(1)
    assert info["camera_names"] == list(reversed(made.CAMERAS))
    assert made.CAMERAS[1] in info["img_filename"][0]


@pytest.mark.parametrize("start", ["", "argoverse2", "somewhere/argoverse2"])
@pytest.mark.parametrize("given", ["", "argoverse2"])
def test_where_image_paths_start(tmp_path: Path, start: str, given: str) -> None:
    root = tmp_path / "somewhere"
    root.mkdir()
    content = made.load(made.write(root))
    for frame in content["seg"]:
        for sensor in frame["sensor"].values():
            sensor["image_path"] = f"{start}/{sensor['image_path']}".lstrip("/")
    path = made.save(tmp_path, content)
    dataset = AV2Dataset(str(path), [], data_root=str(root / given), test_mode=True)
    for index in range(len(dataset)):
        assert all(Path(f).is_file() for f in dataset.get_data_info(index)["img_filename"])


def test_interval(tmp_path: Path) -> None:
    assert train_set(made.write(tmp_path, 5), interval=2).tokens == ["100", "102", "104"]
    with pytest.raises(DatasetError, match="interval must be"):
        train_set(tmp_path / "annotations.json", interval=0)


def test_a_frame_without_lines_gives_its_place_to_another(tmp_path: Path) -> None:
    path = made.write(tmp_path, 4)
    content = made.load(path)
    content["seg"][0]["annotation"] = {"divider": [], "boundary": []}
    del content["seg"][1]["annotation"]
    content["seg"][2]["annotation"] = {"divider": [[[200.0, 0], [300, 0]]]}  # outside the region
    dataset = train_set(made.save(tmp_path, content))
    np.random.seed(0)
    tokens = [dataset[i % 4]["img_metas"].data["token"] for i in range(12)]
    assert set(tokens) == {"103"}


def test_training_without_any_lines(tmp_path: Path) -> None:
    path = made.write(tmp_path, annotated=False)
    with pytest.raises(DatasetError, match=r"none of 3 frames has lines"):
        train_set(path)


def test_only_lines_outside_the_region(tmp_path: Path) -> None:
    path = made.write(tmp_path, 1)
    content = made.load(path)
    content["seg"][0]["annotation"] = {"divider": [[[200.0, 0], [300, 0]]]}
    dataset = train_set(made.save(tmp_path, content))
    with pytest.raises(DatasetError, match="check roi_size"):
        dataset[0]


def test_testing_needs_no_annotation(tmp_path: Path) -> None:
    path = made.write(tmp_path, annotated=False)
    dataset = AV2Dataset(str(path), TEST, test_mode=True)
    sample = dataset[2]
    assert set(sample) == {"img", "img_metas"}
    assert sample["img_metas"].data["token"] == "102"
    with pytest.raises(DatasetError, match="3 of 3 frames have no annotation"):
        dataset.evaluate([{}] * 3)


def camera(frame: dict[str, Any]) -> dict[str, Any]:
    """The record of the rear camera."""
    return frame["sensor"]["ring_rear_left"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["sensor"].pop("ring_rear_left"), "frame 101: has the cameras ring_front"),
        (lambda f: camera(f).pop("extrinsic"), "101: camera ring_rear_left has no extrinsic"),
        (lambda f: f["sensor"].clear(), "101: there are no cameras"),
        (lambda f: f.pop("timestamp"), "segment seg: a frame without timestamp"),
        (lambda f: f.update(timestamp="100"), "timestamp 100 is there twice"),
        (
            lambda f: f["annotation"].update(dividers=[]),
            "101: unknown category 'dividers', did you mean 'divider'",
        ),
        (lambda f: f.update(annotation=[1]), "101: 'annotation' must be"),
        (lambda f: f["annotation"]["divider"].append([1.0, 2.0]), "divider 1: has the shape"),
        (lambda f: f["annotation"]["divider"].append([[1.0, 2], [3]]), "divider 1: not a list"),
        (
            lambda f: f["annotation"]["divider"].append([[1.0, None], [3, 4]]),
            "divider 1: holds coordinates that are not finite",
        ),
    ],
)
def test_broken_annotations(tmp_path: Path, change: Callable, message: str) -> None:
    content = made.load(made.write(tmp_path))
    change(content["seg"][1])
    with pytest.raises(DatasetError, match=re.escape(message)):
        load_frames(made.save(tmp_path, content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(intrinsic=[[1, 0], [0, 1]]), "intrinsic has the shape"),
        (lambda c: c.update(extrinsic=np.eye(3).tolist()), "extrinsic of shape (3, 3)"),
        (lambda c: c.update(extrinsic="none"), "could not convert"),
    ],
)
def test_broken_calibrations(tmp_path: Path, change: Callable, message: str) -> None:
    content = made.load(made.write(tmp_path))
    change(camera(content["seg"][1]))
    dataset = train_set(made.save(tmp_path, content))
    with pytest.raises(
        DatasetError, match=f"frame 101, camera ring_rear_left.*{re.escape(message)}"
    ):
        dataset[1]


def test_a_line_of_one_point_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = made.load(made.write(tmp_path))
    content["seg"][0]["annotation"]["divider"] += [[[1.0, 2, 0, 1]], []]
    frames = load_frames(made.save(tmp_path, content))
    assert len(frames[0]["annotation"]["divider"]) == 1
    assert "2 lines of less than two points" in caplog.text


def test_unreadable_images(tmp_path: Path) -> None:
    dataset = train_set(made.write(tmp_path))
    path = Path(dataset.get_data_info(1)["img_filename"][1])
    path.write_bytes(b"no image")
    with pytest.raises(DatasetError, match=rf"{path}.*ring_rear_left.*101"):
        dataset[1]
    path.unlink()
    with pytest.raises(DatasetError, match=rf"{path}.*ring_rear_left.*101.*does not exist"):
        dataset[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"seg": [{"timestamp": "1", ', "is no whole json file"),
        (b"\xff\xd8\xff\xe0", "is no whole json file"),
        (b"[]", "must hold {segment: [frame, ...]}"),
        (b'{"seg": {}}', "must hold {segment: [frame, ...]}"),
        (b"{}", "has no frames"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=re.escape(message)):
        load_frames(path)


def test_missing_annotation_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="none.json does not exist"):
        load_frames(tmp_path / "none.json")
    with pytest.raises(DatasetError, match="cannot be read: Is a directory"):
        load_frames(tmp_path)
