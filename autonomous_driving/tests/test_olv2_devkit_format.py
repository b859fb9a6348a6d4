"""Collecting the json files of OpenLane-V2, reading collections, checking submissions."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ad_common.datasets.pickles import read_pickle
from olv2.devkit import check_results, collect, collect_all, load_collection
from olv2_frames import KEY, info, lane, predictions, submission, write_tree

PREPROCESS = Path(__file__).parents[1] / "openlane-v2" / "tools" / "preprocess.py"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path, {"100": info("100"), "200": info("200", lanes=0)})


def test_collection_of_training_frames(tree: Path) -> None:
    (path,) = collect_all(tree)
    assert path == tree / "data_dict_toy_train.pkl"
    frames = load_collection(path)
    assert list(frames) == [("train", "00001", "100"), ("train", "00001", "200")]
    frame = frames["train", "00001", "100"]
    assert frame["pose"]["translation"].tolist() == [100, 200, 3]
    camera = frame["sensor"]["ring_front_left"]
    assert camera["extrinsic"]["rotation"].dtype == camera["intrinsic"]["K"].dtype == np.float64
    assert camera["intrinsic"]["distortion"].shape == (3,)
    parts = frame["annotation"]
    points = parts["lane_centerline"][1]["points"]
    assert (points.shape, points.dtype) == ((201, 3), np.float32)
    np.testing.assert_array_equal(points, lane(4, 10, 20, 201))
    assert parts["traffic_element"][0]["points"].tolist() == [[4, 2], [12, 10]]
    assert parts["topology_lclc"].tolist() == [[0, 1], [0, 0]]
    assert parts["topology_lclc"].dtype == parts["topology_lcte"].dtype == np.int8
    assert frame["segment_id"] == "00001"


def test_frame_without_lanes_keeps_its_shapes(tree: Path) -> None:
    frames = load_collection(collect_all(tree)[0])
    empty = frames["train", "00001", "200"]["annotation"]
    assert empty["topology_lclc"].shape == (0, 0)
    assert empty["topology_lcte"].shape == (0, 1)


def test_other_splits_have_eleven_points(tmp_path: Path) -> None:
    write_tree(tmp_path, {"100": info("100")}, split="val")
    frames = load_collection(collect_all(tmp_path)[0])
    points = frames["val", "00001", "100"]["annotation"]["lane_centerline"][0]["points"]
    np.testing.assert_array_equal(points, lane(0))


def test_test_split_has_no_annotation(tmp_path: Path) -> None:
    write_tree(tmp_path, {"100": info("100", with_annotation=False)}, split="test")
    assert "annotation" not in load_collection(collect_all(tmp_path)[0])["test", "00001", "100"]


def test_program(
    tree: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    main = runpy.run_path(str(PREPROCESS))["main"]
    assert main([str(tree)]) == 0
    assert capsys.readouterr().out.strip() == str(tree / "data_dict_toy_train.pkl")
    assert main([str(tree / "no")]) == 1
    assert "no data_dict_*.json in" in caplog.text


def write_info(tree: Path, change: Any) -> Path:
    path = tree / "train" / "00001" / "info" / "200.json"
    frame = info("200")
    change(frame)
    path.write_text(json.dumps(frame))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("pose"), "200.json is no frame.*no 'pose'"),
        (lambda f: f["sensor"]["ring_side_left"].pop("intrinsic"), "no 'intrinsic'"),
        (lambda f: f["pose"].update(rotation=[1, 2]), r"shape \(2,\), expected \(3, 3\)"),
        (lambda f: f["annotation"].update(topology_lclc=[[0]]), r"\(1, 1\), expected \(2, 2\)"),
        (
            lambda f: f["annotation"]["lane_centerline"][0].update(points=[[1, 2]]),
            r"\(1, 2\), expected \(n, 3\)",
        ),
        (
            lambda f: f["annotation"]["traffic_element"][0].update(attribute=99),
            "attribute 99, known are 0 to 12",
        ),
    ],
)
def test_broken_frames(tree: Path, change: Any, message: str) -> None:
    write_info(tree, change)
    with pytest.raises(ValueError, match=message):
        collect_all(tree)
    assert not list(tree.glob("*.pkl*"))


def test_broken_and_missing_json(tree: Path) -> None:
    path = tree / "train" / "00001" / "info" / "200.json"
    path.write_text('{"version": ')
    with pytest.raises(ValueError, match=r"200\.json is no valid json"):
        collect_all(tree)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"200\.json of frame train/00001/200"):
        collect_all(tree)
    (tree / "data_dict_toy.json").write_text("[]")
    with pytest.raises(ValueError, match=r"data_dict_toy\.json: expected"):
        collect_all(tree)


def test_a_failed_collection_leaves_the_old_one(tree: Path) -> None:
    (path,) = collect_all(tree)
    before = path.read_bytes()
    with pytest.raises(FileNotFoundError):
        collect(tree, {"train": {"00001": ["100.json", "300.json"]}}, path.stem)
    assert path.read_bytes() == before


def test_broken_collections(tmp_path: Path) -> None:
    path = tmp_path / "c.pkl"
    with pytest.raises(FileNotFoundError, match=r"write it with python tools/preprocess\.py"):
        load_collection(path)
    path.write_bytes(pickle.dumps({KEY: {}})[:-5])
    with pytest.raises(ValueError, match=r"c\.pkl cannot be read as a pickle"):
        load_collection(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="is no collection"):
        load_collection(path)
    with pytest.raises(FileNotFoundError, match=r"there are c\.pkl"):
        load_collection(tmp_path / "d.pkl")


def test_pickles_run_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "touched",)

    path = tmp_path / "c.pkl"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="only numpy arrays are read"):
        read_pickle(path)
    assert not (tmp_path / "touched").exists()


def test_numpy_in_pickles_of_all_kinds(tmp_path: Path) -> None:
    data = {"a": np.arange(6.0).reshape(2, 3), "b": np.float32(1.5), "c": np.array(["x"])}
    for protocol in (2, 3, 4, 5):  # mmcv writes 2
        (tmp_path / "p.pkl").write_bytes(pickle.dumps(data, protocol))
        read = read_pickle(tmp_path / "p.pkl")
        np.testing.assert_array_equal(read["a"], data["a"])
        assert read["b"] == 1.5
        assert read["c"] == ["x"]
    other = pickle.dumps(data, 3).replace(b"numpy.core", b"numpy._core")
    (tmp_path / "p.pkl").write_bytes(other)
    np.testing.assert_array_equal(read_pickle(tmp_path / "p.pkl")["a"], data["a"])


def good() -> dict[str, Any]:
    box = np.array([[0, 0], [5, 5]], dtype=np.float32)
    frame = predictions([(lane(0), 0.9), (lane(4), 0.8)], [(box, 1, 0.7)], np.zeros((2, 2)), [0, 0])
    return submission({KEY: frame})


def test_right_submission(caplog: pytest.LogCaptureFixture) -> None:
    check_results(good())
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("country / region"), "no field 'country / region'"),
        (lambda s: s.update(authors=["a"] * 11), "11 authors, at most 10"),
        (lambda s: s.update(authors="me"), "'authors' is a str, expected a list"),
    ],
)
def test_wrong_header_is_a_warning(
    change: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = good()
    change(wrong)
    with caplog.at_level(logging.WARNING):
        check_results(wrong)
    assert message in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("topology_lclc"), "no 'topology_lclc'"),
        (lambda p: p.update(topology_lclc=[[0, 0], [0, 0]]), "topology_lclc is a list"),
        (lambda p: p.update(topology_lcte=np.zeros((1, 2))), r"\(1, 2\), expected \(2, 1\)"),
        (lambda p: p.update(topology_lclc=np.full((2, 2), np.nan)), "not finite"),
        (lambda p: p["lane_centerline"][1].update(id=2000), "id 2000 is used twice"),
        (lambda p: p["lane_centerline"][1].pop("confidence"), r"\[1\]: no 'confidence'"),
        (lambda p: p["lane_centerline"][0].update(confidence="x"), "is a str"),
        (lambda p: p["lane_centerline"][0].update(confidence=np.inf), "confidence inf"),
        (lambda p: p["lane_centerline"][0].update(points=np.zeros((3, 2))), r"\(n, 3\), n >= 2"),
        (lambda p: p["lane_centerline"][0].update(points=[[0, 0, 0]]), "points is a list"),
        (lambda p: p["traffic_element"][0].update(points=np.zeros(4)), r"expected \(2, 2\)"),
        (lambda p: p["traffic_element"][0].update(attribute=13), "attribute 13, expected 0 to 12"),
    ],
)
def test_wrong_predictions(change: Any, message: str) -> None:
    wrong = copy.deepcopy(good())
    change(wrong["results"][KEY]["predictions"])
    with pytest.raises(ValueError, match=rf"^frame val/segment/1: .*{message}"):
        check_results(wrong)


def test_no_results() -> None:
    with pytest.raises(ValueError, match="called 'results'"):
        check_results({"method": "x"})
    with pytest.raises(ValueError, match=r"key 'a', expected \(split"):
        check_results(submission({"a": {}}))
    with pytest.raises(ValueError, match="frame val/segment/1: no 'predictions'"):
        check_results({**good(), "results": {KEY: {}}})
