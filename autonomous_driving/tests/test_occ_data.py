"""The data set: queues, published and broken info files, labels, evaluation, submission."""

from __future__ import annotations

import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from occ.classes import CLASSES, FREE, GRID, read_labels
from occ.results import pack, unpack
from occ_data import again, make_dataset, write_data


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


def change_infos(path: Path, change: object) -> None:
    """Applies a function to every record of an info file."""
    contents = pickle.loads(path.read_bytes())
    for info in contents["infos"]:
        change(info)
    path.write_bytes(pickle.dumps(contents))


# --------------------------------------------------------------------------- the data set


def test_a_queue(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(made, queue_length=2)
    monkeypatch.setattr(np.random, "randint", lambda high: 0)  # leaves the oldest out
    sample = dataset[2]
    assert sample["img"].data.shape == (2, 6, 3, 64, 64)
    assert sample["voxel_semantics"].data.shape == GRID
    metas = sample["img_metas"].data
    assert [metas[i]["token"] for i in range(2)] == [dataset.data_infos[i]["token"] for i in (1, 2)]
    assert [metas[i]["prev_bev_exists"] for i in range(2)] == [False, True]
    where = [np.array(dataset.data_infos[i]["ego2global_translation"]) for i in (1, 2)]
    np.testing.assert_allclose(metas[1]["can_bus"][:3], where[1] - where[0])
    assert np.linalg.norm(metas[1]["can_bus"][:3]) > 1
    assert not metas[0]["can_bus"][:3].any() and metas[0]["can_bus"][17] == 0
    monkeypatch.setattr(np.random, "randint", lambda high: 1)  # the newest of the two
    skipping = dataset[2]["img_metas"].data
    assert skipping[0]["token"] == dataset.data_infos[0]["token"]
    assert np.linalg.norm(skipping[1]["can_bus"][:3]) > 2


def test_a_queue_over_the_border_of_scenes(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np.random, "randint", lambda high: 0)
    metas = make_dataset(made, queue_length=4)[4]["img_metas"].data
    assert [metas[i]["prev_bev_exists"] for i in range(4)] == [False, True, False, True]
    assert not metas[2]["can_bus"][:3].any()


def test_the_first_frame_is_repeated(made: Path) -> None:
    dataset = make_dataset(made, queue_length=4)
    metas = dataset[0]["img_metas"].data
    assert {metas[i]["token"] for i in range(4)} == {dataset.data_infos[0]["token"]}
    assert not any(metas[i]["can_bus"][:3].any() for i in range(4))
    assert not any(metas[i]["prev_bev_exists"] for i in range(4))  # as at test time


def test_the_left_out_frame_is_random(made: Path) -> None:
    dataset = make_dataset(made, queue_length=2)
    np.random.seed(0)
    seen = {dataset[2]["img_metas"].data[0]["token"] for _ in range(12)}
    assert seen == {dataset.data_infos[i]["token"] for i in (0, 1)}


def test_one_frame_alone(made: Path, own: Path) -> None:
    path = own / "occ_infos_temporal_train.pkl"
    contents = pickle.loads(path.read_bytes())
    contents["infos"] = contents["infos"][:1]
    path.write_bytes(pickle.dumps(contents))
    dataset = make_dataset(own)
    assert len(dataset) == 1
    assert dataset[0]["img"].data.shape[0] == 4
    assert make_dataset(made, queue_length=1)[3]["img"].data.shape[0] == 1
    assert len(make_dataset(made, max_frames=2)) == 2


def test_test_mode_keeps_the_absolute_pose(made: Path) -> None:
    dataset = make_dataset(made, "val", test_mode=True)
    sample = dataset[2]
    assert sample["img"].data.shape == (6, 3, 64, 64)
    meta, info = sample["img_metas"].data, dataset.data_infos[2]
    np.testing.assert_allclose(meta["can_bus"][:3], info["ego2global_translation"])
    assert meta["can_bus"][17] == pytest.approx(np.degrees(meta["can_bus"][16]))
    assert meta["token"] == info["token"]
    assert len(dataset.flag) == len(dataset) == 3


def test_published_info_files_are_accepted(own: Path, tmp_path: Path) -> None:
    """Boxes in the records, records in any order, paths of another machine, old settings."""
    path = own / "occ_infos_temporal_train.pkl"
    contents = pickle.loads(path.read_bytes())
    tokens = [info["token"] for info in contents["infos"]]
    contents["infos"].reverse()
    for info in contents["infos"]:
        info.update(gt_boxes=np.zeros((2, 7)), gt_names=np.array(["car", "bus"]))
        info.update(gt_velocity=np.zeros((2, 2)), num_lidar_pts=[1, 2], valid_flag=[True, True])
        for camera in info["cams"].values():
            name = Path(camera["data_path"])
            camera["data_path"] = f"./elsewhere/samples/{name.parent.name}/{name.name}"
    path.write_bytes(pickle.dumps(contents))
    dataset = make_dataset(
        own,
        bev_size=(200, 200),
        classes=["car"],
        modality=dict(use_camera=True),
        use_valid_flag=True,
        box_type_3d="LiDAR",
        filter_empty_gt=False,
    )
    assert [info["token"] for info in dataset.data_infos] == tokens
    assert dataset[1]["img"].data.shape == (4, 6, 3, 64, 64)
    with pytest.raises(ValueError, match="did you mean 'bev_size'"):
        make_dataset(own, bevsize=3)
    with pytest.raises(ValueError, match="queue_length"):
        make_dataset(own, queue_length=0)


def remove_camera(info: dict) -> None:
    del info["cams"]["CAM_FRONT"]


def remove_calibration(info: dict) -> None:
    del info["cams"]["CAM_BACK"]["cam_intrinsic"]


def bad_pose(info: dict) -> None:
    info["cams"]["CAM_BACK"]["sensor2lidar_rotation"] = np.eye(2)


def short_can_bus(info: dict) -> None:
    info["can_bus"] = np.zeros(16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove_camera, "has no camera CAM_FRONT"),
        (remove_calibration, "CAM_BACK has no calibration"),
        (bad_pose, "pose of CAM_BACK"),
        (short_can_bus, r"can_bus has the shape \(16,\)"),
    ],
)
def test_bad_records(own: Path, change: object, message: str) -> None:
    change_infos(own / "occ_infos_temporal_train.pkl", change)
    dataset = make_dataset(own)
    with pytest.raises(ValueError, match=message) as caught:
        dataset[1]
    assert "frame " in str(caught.value)


def test_bad_images(own: Path) -> None:
    dataset = make_dataset(own)
    token, path = dataset.data_infos[0]["token"], dataset.get_data_info(0)["img_filename"][2]
    Path(path).write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"of camera CAM_FRONT_LEFT, frame {token}"):
        dataset[0]
    Path(path).unlink()
    with pytest.raises(ValueError, match="does not exist"):
        dataset[0]


def test_bad_info_files(own: Path, tmp_path: Path) -> None:
    path = own / "occ_infos_temporal_val.pkl"
    for contents in (b"", b"garbage", path.read_bytes()[:500], pickle.dumps([1, 2])):
        path.write_bytes(contents)
        with pytest.raises(ValueError, match="not a readable info file"):
            make_dataset(own, "val")
    path.write_bytes(pickle.dumps({"infos": []}))
    with pytest.raises(ValueError, match="no frames"):
        make_dataset(own, "val")
    path.write_bytes(pickle.dumps({"infos": [{"timestamp": 1}]}))
    with pytest.raises(ValueError, match="has no token"):
        make_dataset(own, "val")
    path.unlink()
    with pytest.raises(OSError, match=r"create_data\.py"):
        make_dataset(own, "val")


def save_labels(path: Path, **arrays: np.ndarray) -> None:
    good = dict.fromkeys(("semantics", "mask_lidar", "mask_camera"), np.zeros(GRID, np.uint8))
    with path.open("wb") as file:
        np.savez_compressed(file, **(good | arrays))


def test_bad_labels(own: Path) -> None:
    dataset = make_dataset(own)
    info = dataset.data_infos[0]
    path = own / info["occ_gt_path"]
    save_labels(path, semantics=np.full(GRID, 200, np.uint8))
    with pytest.raises(ValueError, match=rf"frame {info['token']}.*classes 0\.\.17.*\[200\]"):
        dataset[0]
    save_labels(path, mask_camera=np.zeros((100, 100, 16), np.uint8))
    with pytest.raises(ValueError, match=r"mask_camera .* shape \(100, 100, 16\)"):
        dataset[0]
    save_labels(path, semantics=np.zeros(GRID, np.float32))
    with pytest.raises(ValueError, match="float32"):
        dataset[0]
    path.write_bytes(b"PK not a zip")
    with pytest.raises(ValueError, match="not a readable npz"):
        dataset[0]
    with path.open("wb") as file:
        np.savez(file, semantics=np.zeros(GRID))
    with pytest.raises(ValueError, match="mask_lidar"):
        dataset[0]
    path.unlink()
    with pytest.raises(ValueError, match="no occupancy labels"):
        dataset[0]


# --------------------------------------------------------------------------- results


def perfect(dataset: object, folder: Path) -> list[dict]:
    """The labels as predictions."""
    return [
        dict(
            token=info["token"], occupancy=pack(read_labels(folder / info["occ_gt_path"]).semantics)
        )
        for info in dataset.data_infos
    ]


def test_evaluation(made: Path) -> None:
    dataset = make_dataset(made, "val", test_mode=True)
    results = perfect(dataset, made)
    scores = dataset.evaluate(results, eval_fscore=True)
    assert scores["mIoU"] == 100
    assert scores["F-score"] == pytest.approx(100)
    assert scores["IoU/driveable_surface"] == 100
    assert set(scores) == {"mIoU", "F-score", *(f"IoU/{name}" for name in CLASSES[:FREE])}
    empty = [dict(result, occupancy=pack(np.full(GRID, FREE))) for result in results]
    scores = dataset.evaluate(empty, metric=["bbox", "F-score"])
    assert scores["mIoU"] == 0 and scores["F-score"] == 0
    assert set(dataset.evaluate(empty, metric="F-score")) == {"F-score"}
    with pytest.raises(ValueError, match="unknown metric 'mIOU', did you mean 'mIoU'"):
        dataset.evaluate(results, metric="mIOU")
    with pytest.raises(ValueError, match="2 results for 3 frames"):
        dataset.evaluate(results[:2])
    with pytest.raises(ValueError, match="order of the data set"):
        dataset.evaluate(results[::-1])


def test_submission_round_trip(made: Path, tmp_path: Path) -> None:
    dataset = make_dataset(made, "val", test_mode=True)
    results = perfect(dataset, made)
    archive = dataset.format_results(results, submission_prefix=str(tmp_path / "mine"))
    assert archive == str(tmp_path / "mine.zip")
    with zipfile.ZipFile(archive) as file:
        assert sorted(file.namelist()) == sorted(f"{i['token']}.npz" for i in dataset.data_infos)
        file.extractall(tmp_path / "out")
    for result in results:
        with np.load(tmp_path / "out" / f"{result['token']}.npz") as file:
            assert file.files == ["arr_0"]
            assert file["arr_0"].dtype == np.uint8
            np.testing.assert_array_equal(file["arr_0"], unpack(result["occupancy"]))
    assert (tmp_path / "mine" / f"{results[0]['token']}.npz").is_file()
    with pytest.raises(ValueError, match="submission_prefix"):
        dataset.format_results(results)


def test_files_to_look_at(made: Path, tmp_path: Path) -> None:
    dataset = make_dataset(made, "val", test_mode=True)
    results = perfect(dataset, made)
    dataset.show(results, str(tmp_path), begin=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0001.npz", "0002.npz"]
    with np.load(tmp_path / "0002.npz") as file:
        assert str(file["token"]) == results[2]["token"]
        np.testing.assert_array_equal(file["pred"], file["gt"])


def test_grids_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(50, 50, 16\)"):
        pack(np.zeros((50, 50, 16), np.uint8))
