"""The data set of OpenLane-V2: frames, targets, pipeline steps, submissions, bad input."""

from __future__ import annotations

import copy
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import olv2  # noqa: F401 - registers the data set and the steps
import pytest
from ad_common.datasets.errors import DatasetError
from ad_common.datasets.pickles import read_pickle
from ad_common.geometry import project
from mmdet.datasets import build_dataset
from olv2 import bezier
from olv2.devkit import collect_all, evaluate
from olv2.devkit.evaluate import F_SCORE, SCORE
from olv2.results import make_header, predictions_of, shuffled
from olv2.transforms import CustomParameterizeLane
from olv2_frames import KEY, info, lane, result, write_tree

PROGRAM = Path(__file__).parents[1] / "openlane-v2" / "tools" / "evaluate_submission.py"
NORM = dict(mean=[100.0, 100.0, 100.0], std=[50.0, 50.0, 50.0], to_rgb=True)
TARGETS = ["gt_lc", "gt_lc_labels", "gt_te", "gt_te_labels", "gt_topology_lclc", "gt_topology_lcte"]
META = ("token", "img_paths", "scale_factor", "lidar2img", "can_bus", "pad_shape", "img_shape")


def pipeline(training: bool = True) -> list[dict[str, Any]]:
    steps = [
        dict(type="CustomLoadMultiViewImageFromFiles", to_float32=True),
        dict(type="ResizeFrontView"),
        dict(type="NormalizeMultiviewImage", **NORM),
        dict(type="CustomPadMultiViewImage", size_divisor=32),
    ]
    if training:
        steps.append(dict(type="CustomParameterizeLane", n_control=5))
    keys = ["img", *(TARGETS if training else [])]
    return [
        *steps,
        dict(type="CustomDefaultFormatBundle"),
        dict(type="Collect", keys=keys, meta_keys=META),
    ]


def make(root: Path, frames: dict[str, Any], split: str = "train", **options: Any) -> Any:
    write_tree(root, frames, split)
    collect_all(root)
    options = {"pipeline": pipeline(not options.get("test_mode")), **options}
    return build_dataset(
        dict(
            type="OpenLaneV2SubsetADataset",
            data_root=str(root),
            collection=f"data_dict_toy_{split}",
            **options,
        )
    )


@pytest.fixture
def dataset(tmp_path: Path) -> Any:
    return make(tmp_path, {"100": info("100"), "200": info("200", lanes=0)})


def exact(dataset: Any, index: int) -> dict[str, Any]:
    """The result of a model that found what is annotated."""
    targets = dataset.get_data_info(index)
    n, k = len(targets["gt_lc"]), len(targets["gt_te"])
    control = [bezier.fit(points) for points in targets["gt_lc"]]
    return {
        "lc": {"control_points": np.reshape(control, (n, 5, 3)), "scores": np.ones(n)},
        "te": {
            "bboxes": targets["gt_te"],
            "labels": targets["gt_te_labels"],
            "scores": np.ones(k),
        },
        "lclc": targets["gt_topology_lclc"],
        "lcte": targets["gt_topology_lcte"],
    }


def test_training_sample(dataset: Any) -> None:
    sample = dataset[0]
    assert sample["img"].data.shape == (7, 3, 32, 32)
    control = sample["gt_lc"].data.reshape(2, 5, 3)
    expected = [lane(0, 0, 10, 5), lane(4, 10, 20, 5)]  # a straight lane: evenly spaced
    np.testing.assert_allclose(control, expected, atol=1e-4)
    assert sample["gt_lc_labels"].data.tolist() == [0, 0]
    assert sample["gt_te_labels"].data.tolist() == [3]
    assert sample["gt_topology_lclc"].data.tolist() == [[0, 1], [0, 0]]
    assert sample["gt_topology_lcte"].data.tolist() == [[1], [1]]
    metas = sample["img_metas"].data
    assert metas["token"] == "train/00001/100"
    assert len(metas["lidar2img"]) == 7
    assert not any(sample[name].stack for name in TARGETS)


def test_frame_without_lanes(dataset: Any) -> None:
    sample = dataset[1]
    assert sample["gt_lc"].data.shape == (0, 15)
    assert sample["gt_topology_lclc"].data.shape == (0, 0)
    assert sample["gt_topology_lcte"].data.shape == (0, 1)


def test_front_view_is_squashed_with_all_that_lies_in_it(dataset: Any) -> None:
    """24x32 becomes 32x24: a point, a box and the box's factor move alike."""
    before = dataset.get_data_info(0)
    sample = dataset[0]
    metas = sample["img_metas"].data
    assert [shape[:2] for shape in metas["img_shape"]] == [(24, 32)] * 7
    factor = np.array([32 / 24, 24 / 32])
    np.testing.assert_allclose(metas["scale_factor"][0], np.tile(factor, 2), rtol=1e-6)
    np.testing.assert_allclose(metas["scale_factor"][3], np.ones(4))
    np.testing.assert_allclose(sample["gt_te"].data, [[4, 2, 12, 10] * np.tile(factor, 2)])
    point = np.array([[12.0, 1.0, 0.5]])
    stored, depth = project(point, before["lidar2img"][0])
    squashed, same = project(point, metas["lidar2img"][0])
    assert depth == pytest.approx(11) == same
    np.testing.assert_allclose(stored, [[12 - 20 / 11, 16 + 20 / 11]])  # left of and below centre
    np.testing.assert_allclose(squashed, stored * factor)
    for i in range(1, 7):
        np.testing.assert_allclose(metas["lidar2img"][i], before["lidar2img"][i])
    green = sample["img"].data[:, 1, 0, 0].numpy() * 50 + 100  # image i was filled with 10 * i
    np.testing.assert_allclose(green, 10 * np.arange(7), atol=2)


def test_boxes_follow_every_resize(tmp_path: Path) -> None:
    steps = pipeline()
    steps.insert(1, dict(type="RandomScaleImageMultiViewImage", scales=[2.0]))
    sample = make(tmp_path, {"100": info("100")}, pipeline=steps)[0]
    factor = sample["img_metas"].data["scale_factor"][0]
    np.testing.assert_allclose(factor, [64 / 24, 48 / 32] * 2, rtol=1e-6)
    np.testing.assert_allclose(sample["gt_te"].data, [[4, 2, 12, 10] * factor], rtol=1e-6)


def test_pose_of_the_car(tmp_path: Path) -> None:
    frame = info("100")
    turn = np.radians(-30)  # to the right: 330 degrees
    frame["pose"]["rotation"] = [
        [np.cos(turn), -np.sin(turn), 0],
        [np.sin(turn), np.cos(turn), 0],
        [0, 0, 1],
    ]
    can_bus = make(tmp_path, {"100": frame}).get_data_info(0)["can_bus"]
    assert can_bus.shape == (18,)
    np.testing.assert_allclose(can_bus[:3], [100, 200, 3])
    np.testing.assert_allclose(can_bus[3:7], [np.cos(turn / 2), 0, 0, np.sin(turn / 2)])
    np.testing.assert_allclose(can_bus[7:16], 0)
    np.testing.assert_allclose(can_bus[-2:], [np.radians(330), 330])


def test_frames_without_annotation(tmp_path: Path) -> None:
    frames = {"100": info("100", with_annotation=False)}
    dataset = make(tmp_path, frames, "test", test_mode=True)
    assert set(dataset[0]) == {"img", "img_metas"}
    path = dataset.format_results([result()], tmp_path / "out")
    assert list(read_pickle(path)["results"]) == [("test", "00001", "100")]
    with pytest.raises(DatasetError, match="1 of 1 frames have no annotation to evaluate with"):
        dataset.evaluate([result()])
    with pytest.raises(DatasetError, match=r"no annotation to train on.*test/00001/100"):
        make(tmp_path, frames, "test")


def test_fewer_cameras_and_frames(tmp_path: Path) -> None:
    frames = {str(i): info(str(i)) for i in range(100, 105)}
    cameras = ["ring_front_center", "ring_rear_left"]
    dataset = make(tmp_path, frames, cameras=cameras, interval=2)
    assert [key[2] for key in dataset.keys] == ["100", "102", "104"]
    assert len(dataset.flag) == 3
    assert dataset[1]["img"].data.shape == (2, 3, 32, 32)
    for wrong, message in (
        (["ring_front_centre"], "did you mean 'ring_front_center'"),
        (["ring_rear_left"], "the first one must be ring_front_center"),
    ):
        with pytest.raises(DatasetError, match=message):
            make(tmp_path, frames, cameras=wrong)
    with pytest.raises(DatasetError, match="interval must be"):
        make(tmp_path, frames, interval=0)


def reverse_sensors(frame: dict[str, Any]) -> None:
    frame["sensor"] = dict(reversed(frame["sensor"].items()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["sensor"].pop("ring_side_left"), "no camera ring_side_left"),
        (reverse_sensors, "cameras in the order ring_side_right.*learnt them in the order ring_fr"),
        (
            lambda f: f["pose"].update(rotation=[[1, 0, 0], [0, 2, 0], [0, 0, 1]]),
            "not a rotation matrix",
        ),
    ],
)
def test_frames_that_cannot_be_used(tmp_path: Path, change: Any, message: str) -> None:
    frame = info("100")
    change(frame)
    dataset = make(tmp_path, {"100": frame})
    with pytest.raises(DatasetError, match=rf"^frame train/00001/100: .*{message}"):
        dataset[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: f["sensor"]["ring_rear_left"].pop("intrinsic"),
            "camera ring_rear_left: no 'intrinsic'; write the collection anew",
        ),
        (
            lambda f: f["sensor"]["ring_rear_left"]["extrinsic"].update(translation=[1, 2]),
            "camera ring_rear_left: translation has the shape",
        ),
        (lambda f: f.pop("pose"), "pose: no 'rotation'"),
        (
            lambda f: f["annotation"].update(topology_lcte=np.zeros((1, 1))),
            r"\(1, 1\), expected \(2",
        ),
        (
            lambda f: f["annotation"]["traffic_element"][0].update(attribute=13),
            "traffic element 9: attribute 13, known are 0 to 12",
        ),
        (lambda f: f["annotation"].pop("topology_lcte"), "annotation: no 'topology_lcte'"),
        (
            lambda f: f["annotation"]["lane_centerline"][0].update(points=np.zeros((1, 3))),
            "at least 2 finite points",
        ),
    ],
)
def test_collections_that_cannot_be_used(dataset: Any, change: Any, message: str) -> None:
    change(dataset.frames[0])
    with pytest.raises(DatasetError, match=rf"^frame train/00001/100: .*{message}"):
        dataset[0]


def test_unreadable_and_missing_images(dataset: Any, tmp_path: Path) -> None:
    image = tmp_path / "train/00001/image/ring_rear_right/100.jpg"
    image.write_text("no image")
    named = rf"{image} of camera ring_rear_right, frame train/00001/100"
    with pytest.raises(DatasetError, match=named):
        dataset[0]
    image.unlink()
    with pytest.raises(DatasetError, match=f"{named}: the file does not exist"):
        dataset[0]


def test_images_of_two_sizes(dataset: Any, tmp_path: Path) -> None:
    image = tmp_path / "train/00001/image/ring_rear_right/100.jpg"
    front = tmp_path / "train/00001/image/ring_front_center/100.jpg"
    image.write_bytes(front.read_bytes())
    with pytest.raises(DatasetError, match=r"frame train/00001/100: .*ResizeFrontView needs one"):
        dataset[0]


def test_missing_collection(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"write it with python tools/preprocess\.py"):
        build_dataset(
            dict(
                type="OpenLaneV2SubsetADataset",
                data_root=str(tmp_path),
                collection="data_dict_subset_A_train",
                pipeline=[],
            )
        )


def test_curves_of_wrong_kind(dataset: Any) -> None:
    with pytest.raises(ValueError, match="did you mean 'bezier_Endpointfixed'"):
        CustomParameterizeLane("bezier_endpointfixed")
    with pytest.raises(ValueError, match="n_control=1"):
        CustomParameterizeLane(n_control=1)
    dataset.pipeline.transforms.pop(4)
    with pytest.raises(DatasetError, match="put CustomParameterizeLane before"):
        dataset[0]


@pytest.mark.parametrize("version", ["v1.0", "v1.1"])
def test_exact_results_score_one(dataset: Any, version: str) -> None:
    """With the 201 points of a training collection, too."""
    results = [exact(dataset, i) for i in range(2)]
    scores = dataset.evaluate(results, "OpenLane-V2", metric_version=version)
    assert scores == pytest.approx(dict.fromkeys(scores, 1.0))
    assert set(scores) == {SCORE, "DET_l", "DET_t", "TOP_ll", "TOP_lt", F_SCORE}


def test_dumped_submission_scores_as_the_results_do(tmp_path: Path) -> None:
    dataset = make(tmp_path, {"100": info("100"), "200": info("200")}, "val")
    results = [exact(dataset, 0), result()]
    scores = dataset.evaluate(results, dump=True, dump_dir=tmp_path / "out", authors="me, you")
    path = tmp_path / "out" / "submission.pkl"
    assert evaluate(dataset.path, path) == pytest.approx(scores)
    assert 0 < scores[SCORE] < 1
    written = read_pickle(path)
    assert written["authors"] == ["me, you"]
    assert set(written) == {
        "method", "authors", "e-mail", "institution / company", "country / region", "results",
    }  # fmt: skip
    assert sorted(path.parent.iterdir()) == [path]
    main = runpy.run_path(str(PROGRAM))["main"]
    json_path = tmp_path / "scores.json"
    assert main([str(path), str(dataset.path), "--out", str(json_path)]) == 0
    assert json.loads(json_path.read_text()) == pytest.approx(scores)
    old = dataset.evaluate(results, metric_version="v1.0")
    assert main([str(path), str(dataset.path), "--metric", "v1.0", "--out", str(json_path)]) == 0
    assert json.loads(json_path.read_text()) == pytest.approx(old) != pytest.approx(scores)
    path.write_bytes(b"")
    assert main([str(path), str(dataset.path)]) == 1


def test_header_of_a_submission() -> None:
    header = make_header({"country": "CH"}, {"e_mail": "a@b.c", "authors": ["a", "b"]}, None)
    assert (header["country / region"], header["e-mail"]) == ("CH", "a@b.c")
    assert header["authors"] == ["a", "b"]
    for change, message in (
        ({"authors": ["a"] * 11}, "11 authors"),
        ({"methd": "x"}, "no field 'methd', did you mean 'method'"),
        ({"method": 3}, "'method' is a int"),
    ):
        with pytest.raises(DatasetError, match=message):
            make_header(change)


def test_predictions_stay_in_step_with_their_edges() -> None:
    found = predictions_of(result(), KEY)
    assert [p["confidence"] for p in found["lane_centerline"]] == pytest.approx([0.9, 0.5, 0.1])
    assert [p["points"][0, 1] for p in found["lane_centerline"]] == [0, 4, 8]
    assert [p["id"] for p in found["lane_centerline"]] == [1000, 1001, 1002]
    assert [p["id"] for p in found["traffic_element"]] == [2000, 2001]
    np.testing.assert_allclose(found["lane_centerline"][1]["points"], lane(4), atol=1e-5)
    assert found["traffic_element"][0]["points"].tolist() == [[4, 2], [12, 10]]


def test_legacy_sort_gives_edges_to_other_lanes() -> None:
    now, legacy = predictions_of(result(), KEY), predictions_of(result(), KEY, legacy_sort=True)
    confidences = [p["confidence"] for p in legacy["lane_centerline"]]
    assert confidences == sorted(confidences)
    assert [p["id"] for p in legacy["lane_centerline"]] == [1000, 1001, 1002]
    np.testing.assert_array_equal(legacy["topology_lclc"], now["topology_lclc"])


def test_chance_and_the_published_order_lose_topology(dataset: Any) -> None:
    results = [exact(dataset, i) for i in range(2)]
    results[0]["lc"]["scores"] = np.array([0.9, 0.8])
    right = dataset.evaluate(results)
    legacy = dataset.evaluate(results, legacy_sort=True)
    assert legacy["DET_l"] == right["DET_l"] == 1
    assert legacy["TOP_ll"] < right["TOP_ll"] == 1
    chance = dataset.evaluate(results, shuffle_topology=True)
    assert chance["DET_l"] == 1
    assert chance == dataset.evaluate(results, shuffle_topology=True)


def test_shuffling_keeps_all_confidences() -> None:
    found = {**result(), "lclc": np.arange(9.0).reshape(3, 3)}
    mixed = shuffled(found, np.random.default_rng(0))
    assert sorted(mixed["lclc"].ravel()) == list(range(9))
    assert (mixed["lclc"] != found["lclc"]).any()
    assert mixed["lc"] is found["lc"]


def set_part(group: str, name: str, value: Any) -> Any:
    return lambda found: found[group].update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("lcte"), "no 'lcte'"),
        (lambda found: found.update(lclc=np.zeros((2, 3))), r"\(2, 3\), expected \(3, 3\)"),
        (set_part("lc", "scores", np.zeros(2)), r"expected \(Q, n, 3\) and \(Q,\)"),
        (set_part("lc", "control_points", np.zeros((3, 15))), r"shape \(3, 15\)"),
        (set_part("te", "labels", np.zeros(3, int)), r"labels of shape \(3,\)"),
        (set_part("te", "labels", np.array([1, 13])), "attribute 13"),
        (set_part("te", "scores", np.array([np.nan, 1])), "confidence nan"),
    ],
)
def test_wrong_results(dataset: Any, change: Any, message: str) -> None:
    wrong = copy.deepcopy(result())
    change(wrong)
    with pytest.raises(DatasetError, match=rf"result of frame train/00001/200: .*{message}"):
        dataset.evaluate([result(), wrong])


def test_wrong_use(dataset: Any) -> None:
    with pytest.raises(DatasetError, match="1 results for 2 frames"):
        dataset.evaluate([result()])
    with pytest.raises(DatasetError, match="'OpenLane', did you mean 'OpenLane-V2'"):
        dataset.evaluate([result()] * 2, "OpenLane")
    with pytest.raises(ValueError, match="metric 'v3'"):
        dataset.evaluate([result()] * 2, metric_version="v3")
    with pytest.raises(DatasetError, match="no field 'dmp'"):
        dataset.evaluate([result()] * 2, dmp=True)
