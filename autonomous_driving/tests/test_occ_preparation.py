"""From nuScenes tables, CAN bus and annotations to info files, and what happens with bad input."""

from __future__ import annotations

import json
import pickle
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from ad_common.geometry import ego_to_image_at, pose_matrix, project
from ad_common.synthetic import rig
from occ.can_bus import CanBus, with_motion, with_pose
from occ.classes import FREE, GRID
from occ.dataset import read_infos
from occ.frames import CAMERAS
from occ.results import pack
from occ_data import again, make_dataset, write_data

PROJECT = Path(__file__).resolve().parents[1] / "occupancy_prediction"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training scenes and one validation scene of three frames."""
    return write_data(tmp_path_factory.mktemp("occ"))


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A copy of the data that a test may damage; returns the folder as `made` does."""
    shutil.copytree(made.parent, tmp_path / "own")
    again(tmp_path / "own" / made.name)  # paths of its own
    return tmp_path / "own" / made.name


def change_json(path: Path, change: object) -> None:
    """Applies a function to a json file's contents."""
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))


def test_infos_hold_the_published_fields(made: Path) -> None:
    contents = pickle.loads((made / "occ_infos_temporal_train.pkl").read_bytes())
    assert contents["metadata"] == {"version": "v1.0-trainval"}
    infos = contents["infos"]
    assert len(infos) == 6
    assert [info["frame_idx"] for info in infos] == [0, 1, 2, 0, 1, 2]
    first = infos[0]
    for key in (
        *("lidar_path", "token", "prev", "next", "can_bus", "sweeps", "scene_token", "timestamp"),
        *("lidar2ego_translation", "lidar2ego_rotation", "ego2global_translation"),
        *("ego2global_rotation", "occ_gt_path", "cams"),
    ):
        assert key in first
    assert list(first["cams"]) == list(CAMERAS)
    assert first["prev"] == "" and first["next"] == infos[1]["token"]
    assert first["can_bus"].shape == (18,) and first["can_bus"].dtype == np.float64
    assert (made / first["occ_gt_path"]).is_file()
    assert Path(first["cams"]["CAM_BACK"]["data_path"]).is_file()


def test_projection_is_that_of_the_rig(made: Path) -> None:
    dataset = make_dataset(made)
    info = dataset.get_data_info(4)
    cameras = {camera.name: camera for camera in rig.build(rig.NUSCENES, 0.04)}
    points = np.random.default_rng(0).uniform([-40, -40, -1], [40, 40, 5.4], (50, 3))
    for name, lidar2img in zip(CAMERAS, info["lidar2img"], strict=True):
        pixels, depth = project(points, lidar2img @ info["ego2lidar"])
        expected, expected_depth = project(points, cameras[name].ego2img)
        front = expected_depth > 0.1
        np.testing.assert_allclose(depth, expected_depth, atol=1e-9)
        np.testing.assert_allclose(pixels[front], expected[front], atol=1e-6)


def test_image_taken_from_another_place(made: Path, own: Path) -> None:
    """A camera that triggers later has another ego pose; a fixed point moves in its image."""
    table = own / "v1.0-trainval"
    samples = json.loads((table / "sample.json").read_text())
    channels = {r["token"]: r["channel"] for r in json.loads((table / "sensor.json").read_text())}
    sensors = {
        r["token"]: channels[r["sensor_token"]]
        for r in json.loads((table / "calibrated_sensor.json").read_text())
    }
    record = next(
        r
        for r in json.loads((table / "sample_data.json").read_text())
        if r["sample_token"] == samples[0]["token"]
        and sensors[r["calibrated_sensor_token"]] == "CAM_BACK_LEFT"
    )

    def move(poses: list[dict]) -> None:
        for pose in poses:
            if pose["token"] == record["ego_pose_token"]:
                pose["translation"][0] += 0.7

    change_json(table / "ego_pose.json", move)
    again(own)
    info = make_dataset(own).get_data_info(0)
    before = make_dataset(made).data_infos[0]
    at_lidar = pose_matrix(before["ego2global_rotation"], before["ego2global_translation"])
    at_image = at_lidar.copy()
    at_image[0, 3] += 0.7
    camera = {c.name: c for c in rig.build(rig.NUSCENES, 0.04)}["CAM_BACK_LEFT"]
    np.testing.assert_allclose(
        info["lidar2img"][CAMERAS.index("CAM_BACK_LEFT")] @ info["ego2lidar"],
        ego_to_image_at(camera.intrinsic, camera.cam2ego, at_image, at_lidar),
        atol=1e-6,
    )


def test_annotations_alone_give_the_same_projections(made: Path, own: Path) -> None:
    shutil.rmtree(own / "v1.0-trainval")
    again(own, version=None)
    plain, full = make_dataset(own), make_dataset(made)
    assert [i["token"] for i in plain.data_infos] == [i["token"] for i in full.data_infos]
    for index in range(len(full)):
        one, other = plain.get_data_info(index), full.get_data_info(index)
        np.testing.assert_allclose(one["can_bus"], other["can_bus"])
        for a, b in zip(one["lidar2img"], other["lidar2img"], strict=True):
            np.testing.assert_allclose(a @ one["ego2lidar"], b @ other["ego2lidar"], atol=1e-6)


def test_can_bus_takes_the_last_message_before(tmp_path: Path) -> None:
    messages = [
        dict(
            utime=time,
            pos=[time, 0, 0],
            orientation=[1, 0, 0, 0],
            accel=[time, 1, 2],
            rotation_rate=[time, 3, 4],
            vel=[time, 5, 6],
        )
        for time in (10, 30, 20)
    ]
    (tmp_path / "can_bus").mkdir()
    (tmp_path / "can_bus" / "scene-0001_pose.json").write_text(json.dumps(messages))
    bus = CanBus(tmp_path, "scene-0001")
    assert [bus.at(time)[7] for time in (5, 10, 29, 30, 99)] == [10, 10, 20, 30, 30]
    np.testing.assert_array_equal(
        bus.at(20), [20, 0, 0, 1, 0, 0, 0, 20, 1, 2, 20, 3, 4, 20, 5, 6, 0, 0]
    )
    assert not CanBus(tmp_path, "scene-0161").at(20).any()
    del messages[0]["vel"]
    (tmp_path / "can_bus" / "scene-0001_pose.json").write_text(json.dumps(messages))
    with pytest.raises(ValueError, match="vel None"):
        CanBus(tmp_path, "scene-0001").at(10)


def test_pose_and_motion_in_the_vector() -> None:
    angle = np.radians(-1.0)  # 359 degrees
    first = with_pose(np.arange(18.0), [np.cos(angle / 2), 0, 0, np.sin(angle / 2)], [5, 6, 7])
    assert first[16] == pytest.approx(np.radians(359))
    assert first[17] == pytest.approx(359)
    np.testing.assert_array_equal(first[7:16], np.arange(7, 16))
    second = with_pose(np.zeros(18), [1, 0, 0, 0], [6, 8, 7])
    moved = with_motion(second, first)
    np.testing.assert_allclose(moved[:3], [1, 2, 0])
    assert moved[17] == pytest.approx(1)  # not -359
    start = with_motion(first, None)
    assert not start[:3].any() and start[17] == 0
    assert start[16] == first[16]


def test_scenes_without_lidar_and_frames_without_annotation_are_skipped(
    own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    infos = read_infos(own / "occ_infos_temporal_train.pkl")
    Path(own / "samples" / "LIDAR_TOP" / Path(infos[0]["lidar_path"]).name).unlink()

    def forget(annotations: dict) -> None:
        del annotations["scene_infos"][infos[4]["scene_name"]][infos[4]["token"]]

    change_json(own / "annotations.json", forget)
    with caplog.at_level("WARNING"):
        again(own)
    left = read_infos(own / "occ_infos_temporal_train.pkl")
    assert [info["token"] for info in left] == [infos[3]["token"], infos[5]["token"]]
    assert [info["frame_idx"] for info in left] == [0, 2]
    assert f"{infos[0]['scene_name']} skipped" in caplog.text
    assert infos[4]["token"] in caplog.text


def test_test_split_has_no_labels(own: Path) -> None:
    def hide(annotations: dict) -> None:
        for frames in annotations["scene_infos"].values():
            for frame in frames.values():
                del frame["gt_path"]

    change_json(own / "annotations.json", hide)
    (own / "v1.0-trainval").rename(own / "v1.0-test")
    paths = again(own, version="v1.0-test")
    assert list(paths) == ["test"]
    dataset = make_dataset(own, "test", test_mode=True)
    assert len(dataset) == 9
    assert dataset[0]["img"].data.shape[0] == 6
    results = [
        dict(token=info["token"], occupancy=pack(np.full(GRID, FREE)))
        for info in dataset.data_infos
    ]
    with pytest.raises(ValueError, match="no labels"):
        dataset.evaluate(results)
    with pytest.raises(ValueError, match="no labels"):
        make_dataset(own, "test")[1]


def test_the_program(made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """create_data.py and its errors."""
    program = runpy.run_path(str(PROJECT / "tools" / "create_data.py"))["main"]
    options = ["--root-path", str(made), "--occ-path", str(made), "--canbus", str(made.parent)]
    out = ["--out-dir", str(tmp_path), "--extra-tag", "mine"]
    assert program(["occ", *options, *out]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "mine_infos_temporal_train.pkl",
        "mine_infos_temporal_val.pkl",
    ]
    with caplog.at_level("ERROR"):
        assert program(["occ", *options, *out, "--version", "v1.0-mini"]) == 1
    assert "v1.0-mini with the tables of nuScenes" in caplog.text
    with pytest.raises(SystemExit, match="2"):
        program(["kitti", *options])


def drop_camera(records: list[dict]) -> None:
    index = next(i for i, r in enumerate(records) if "CAM_BACK__" in r["filename"])
    del records[index]


def drop_calibration(records: list[dict]) -> None:
    next(r for r in records if r["camera_intrinsic"])["camera_intrinsic"] = []


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("sample_data", drop_camera, "has no CAM_BACK$"),
        ("calibrated_sensor", drop_calibration, "no 3x3 intrinsic"),
        ("ego_pose", lambda records: records.clear(), "no ego_pose"),
        ("sample", lambda records: records.pop(1), "no sample of"),
        ("ego_pose", lambda records: records[0].update(rotation=[0, 0, 0, 0]), "which is none"),
    ],
)
def test_broken_tables(own: Path, table: str, change: object, message: str) -> None:
    change_json(own / "v1.0-trainval" / f"{table}.json", change)
    before = (own / "occ_infos_temporal_train.pkl").read_bytes()
    with pytest.raises(ValueError, match=message):
        again(own)
    assert (own / "occ_infos_temporal_train.pkl").read_bytes() == before


def test_broken_files_of_preparation(own: Path) -> None:
    (own / "v1.0-trainval" / "scene.json").write_text("[{")
    with pytest.raises(ValueError, match=r"scene\.json is not a readable json"):
        again(own)
    (own / "v1.0-trainval" / "scene.json").unlink()
    with pytest.raises(OSError, match=r"no file .*scene\.json"):
        again(own)
    with pytest.raises(OSError, match="no folder .*v1.0-mini"):
        again(own, version="v1.0-mini")
    with pytest.raises(OSError, match="--canbus"):
        again(own, can_bus=own)
    (own / "annotations.json").write_text("{}")
    with pytest.raises(ValueError, match="scene_infos"):
        again(own)
