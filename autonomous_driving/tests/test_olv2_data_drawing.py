"""Pictures of OpenLane-V2 frames, and the program that draws them."""

from __future__ import annotations

import pickle
import runpy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import olv2  # noqa: F401 - first: puts the shared parts in place
import pytest
from ad_common.datasets.errors import DatasetError
from olv2.devkit import collect_all, load_collection
from olv2.drawing import EDGE, FOUND, TRUE, draw_frame, save_frame
from olv2.results import predictions_of, write_submission
from olv2_frames import info, result, submission, write_tree

PROGRAM = Path(__file__).parents[1] / "openlane-v2" / "tools" / "visualize.py"
KEY = ("val", "00001", "100")
CAMERAS_WIDTH = 1190  # where the views from above begin, at least


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_tree(tmp_path, {"100": info("100"), "200": info("200", lanes=0)}, "val")
    collect_all(tmp_path)
    return tmp_path


@pytest.fixture
def frame(root: Path) -> dict[str, Any]:
    return load_collection(root / "data_dict_toy_val.pkl")[KEY]


def pixels(picture: np.ndarray, color: tuple[int, ...]) -> int:
    return int((picture == color).all(axis=-1).sum())


def test_truth_and_prediction_have_their_colours(root: Path, frame: dict[str, Any]) -> None:
    both = draw_frame(root, frame, predictions_of(result(), KEY))
    for part in (both[:, :CAMERAS_WIDTH], both[:, CAMERAS_WIDTH:]):
        assert pixels(part, TRUE) > 50
        assert pixels(part, FOUND) > 50
    truth = draw_frame(root, frame)
    assert truth.shape[0] == both.shape[0]
    assert truth.shape[1] < both.shape[1]
    assert pixels(truth, FOUND) == 0
    found = draw_frame(root, {**frame, "annotation": None}, predictions_of(result(), KEY))
    assert pixels(found, TRUE) == 0 < pixels(found, FOUND)


def test_only_what_is_confident_is_drawn(root: Path, frame: dict[str, Any]) -> None:
    frame = {**frame, "annotation": None}
    drawn = [
        pixels(draw_frame(root, frame, predictions_of(result(), KEY), threshold), FOUND)
        for threshold in (0.0, 0.4, 0.85, 0.95)
    ]
    assert drawn == sorted(drawn, reverse=True)
    assert drawn[2] > 0 == drawn[3]


def test_edges_are_drawn_between_shown_lanes(root: Path, frame: dict[str, Any]) -> None:
    found = result()
    frame = {**frame, "annotation": None}
    with_edges = draw_frame(root, frame, predictions_of(found, KEY), 0.0).astype(int)
    found["lclc"][:] = 0.5  # not more than 0.5
    without = draw_frame(root, frame, predictions_of(found, KEY), 0.0).astype(int)
    found["lcte"][:] = 0.5
    alone = draw_frame(root, frame, predictions_of(found, KEY), 0.0)
    assert (alone != without)[40:, CAMERAS_WIDTH:].any()  # the numbers of the elements
    changed = (with_edges != without).any(axis=-1)
    assert changed[40:, CAMERAS_WIDTH:].sum() > 20  # below the counts
    assert not changed[:, :CAMERAS_WIDTH].any()
    assert abs(with_edges - EDGE).sum(axis=-1).min() < abs(without - EDGE).sum(axis=-1).min()


def test_frame_without_lanes_and_missing_image(root: Path, frame: dict[str, Any]) -> None:
    frames = load_collection(root / "data_dict_toy_val.pkl")
    empty = frames["val", "00001", "200"]
    nothing = predictions_of(result(0, 0), KEY)
    assert pixels(draw_frame(root, empty, nothing), FOUND) == 0
    image = root / frame["sensor"]["ring_side_left"]["image_path"]
    image.unlink()
    with pytest.raises(DatasetError, match=rf"frame val/00001/100: image {image}.*not exist"):
        save_frame(root, KEY, frame, None, root / "pictures")


def test_program(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    main = runpy.run_path(str(PROGRAM))["main"]
    collection, out = root / "data_dict_toy_val.pkl", root / "pictures"
    keys = list(load_collection(collection))
    results, dump = root / "results.pkl", root / "submission.pkl"
    results.write_bytes(pickle.dumps([result(), result()], protocol=2))
    write_submission([result(), result()], keys, {}, dump)
    sizes = []
    for more in ([], ["--result", str(results)], ["--result", str(dump), "--num", "1"]):
        folder = out / str(len(sizes))
        assert main([str(collection), "--out-dir", str(folder), *more]) == 0
        names = sorted(path.name for path in (folder / "00001").iterdir())
        assert names == (["100.jpg"] if "--num" in more else ["100.jpg", "200.jpg"])
        sizes.append(cv2.imread(str(folder / "00001" / "100.jpg")).shape)
    assert sizes[0] < sizes[1] == sizes[2]
    capsule = {("test", "a", "b"): predictions_of(result(), KEY)}
    dump.write_bytes(pickle.dumps(submission(capsule)))
    for more, message in (
        (["--segment", "00002"], "no segment '00002', did you mean '00001'"),
        (["--result", str(dump)], "no frame of the collection"),
        (["--result", str(root / "no.pkl")], "no.pkl"),
    ):
        caplog.clear()
        assert main([str(collection), *more]) == 1
        assert message in caplog.text
    results.write_bytes(pickle.dumps([result()]))
    assert main([str(collection), "--result", str(results)]) == 1
    assert "results of 1 frames, the collection 2" in caplog.text
    with pytest.raises(SystemExit, match="2"):
        main([str(collection), "--num", "0"])
