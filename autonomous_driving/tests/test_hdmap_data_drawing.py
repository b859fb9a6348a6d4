"""Pictures of the HD map: lines where they belong, the program and what it refuses."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import cv2
import hdmap_made_data as made
import numpy as np
import pytest
from hdmap.annotations import camera_matrices, load_frames
from hdmap.dataset import AV2Dataset
from hdmap.drawing import (
    CELL,
    COLORS,
    GAP,
    camera_images,
    draw_frame,
    draw_row,
    ground_height,
    heading,
)
from hdmap.evaluation import Lines

TOOL = Path(__file__).resolve().parents[1] / "Online-HD-Map-Construction/tools/visualize.py"
DIVIDER = 1


@pytest.fixture(scope="module")
def visualize() -> ModuleType:
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("hdmap_visualize", TOOL)
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def count(image: np.ndarray, label: int) -> int:
    """Pixels in the colour of a class."""
    return int((image == COLORS[label]).all(axis=-1).sum())


def test_lines_are_where_they_belong(tmp_path: Path) -> None:
    [frame] = load_frames(made.write(tmp_path, 1))
    matrices = camera_matrices(frame)
    images = {name: np.zeros((*CELL, 3), np.uint8) for name in matrices}
    scale = np.diag([CELL[1] / 40, CELL[0] / 24, 1, 1])
    matrices = {name: scale @ matrix for name, matrix in matrices.items()}
    ahead = Lines([np.array([[4.0, 0], [25.0, 0]])], np.array([DIVIDER]))
    row = draw_row("title", ahead, images, matrices, 0.0)
    above, cameras = row[:, :240], row[:, 244:]  # 60 x 30 m at 8 pixels per metre
    assert above.shape == (480, 240, 3)
    drawn = np.argwhere((above[:400] == COLORS[DIVIDER]).all(axis=-1))
    assert drawn[:, 0].min() == pytest.approx((30 - 25) * 8, abs=2)
    assert drawn[:, 0].max() == pytest.approx((30 - 4) * 8, abs=2)
    assert np.abs(drawn[:, 1] - 119.5).max() <= 2
    left, right = cameras[:, : CELL[1]], cameras[:, CELL[1] :]  # the rear camera comes first
    assert count(right, DIVIDER) > 20 * count(left, DIVIDER) == 0
    assert not any(image.any() for image in images.values())


def test_truth_over_prediction(tmp_path: Path) -> None:
    [frame] = load_frames(made.write(tmp_path, 1))
    root = tmp_path / "argoverse2"
    alone = draw_frame(frame, root)
    shifted = [line[:, :2] + [0, 1.0] for line in frame["annotation"]["divider"]]
    sure = Lines(shifted, np.array([DIVIDER]), np.array([0.4]))
    both = draw_frame(frame, root, sure, 0.3)
    assert both.shape[0] == 2 * alone.shape[0] + GAP
    np.testing.assert_array_equal(both[: len(alone)], alone)
    hidden = draw_frame(frame, root, sure, 0.5)
    below = slice(len(alone), None)
    assert count(both[below], DIVIDER) > count(hidden[below], DIVIDER) + 50


def test_without_annotation_and_prediction(tmp_path: Path) -> None:
    [frame] = load_frames(made.write(tmp_path, 1, annotated=False))
    legend = count(draw_frame(frame, tmp_path / "argoverse2"), DIVIDER)
    [frame] = load_frames(made.write(tmp_path, 1))
    assert count(draw_frame(frame, tmp_path / "argoverse2"), DIVIDER) > legend + 50


def test_directions_and_heights(tmp_path: Path) -> None:
    [frame] = load_frames(made.write(tmp_path, 1))
    front, rear = camera_matrices(frame).values()
    assert heading(front) == pytest.approx(0)
    assert abs(heading(rear)) == pytest.approx(np.pi)
    high = Lines([np.array([[0.0, 0, 1], [1, 0, 2], [2, 0, 2]])], np.array([0]))
    assert ground_height(high) == 2
    assert ground_height(Lines()) == 0
    assert [i.shape for i in camera_images(frame, tmp_path / "argoverse2").values()] == [
        (24, 40, 3)
    ] * 2


def test_the_program(tmp_path: Path, visualize: ModuleType) -> None:
    path = made.write(tmp_path, 3)
    dataset = AV2Dataset(str(path), [], test_mode=True)
    line = np.array([[0.0, 0], [9, 0]])
    results = [{"vectors": [line], "scores": [0.9], "labels": [0]} for _ in range(3)]
    result = dataset.format_results(results, tmp_path)
    out = tmp_path / "out"
    args = ["seg", str(path), "--result", result, "--out-dir", str(out), "--interval", "2"]
    assert visualize.main(args) == 0
    assert sorted(p.name for p in (out / "seg").iterdir()) == ["100.jpg", "102.jpg"]
    dataset.show(results, tmp_path / "shown", begin=1)
    shown = sorted(path.name for path in (tmp_path / "shown" / "seg").iterdir())
    assert shown == ["101.jpg", "102.jpg"]
    images = [cv2.imread(str(folder / "seg" / "102.jpg")) for folder in (out, tmp_path / "shown")]
    np.testing.assert_array_equal(*images)


def test_what_the_program_refuses(
    tmp_path: Path, visualize: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    path = made.write(tmp_path, 2)
    out = ["--out-dir", str(tmp_path / "out")]
    assert visualize.main(["sek", str(path), *out]) == 1
    assert "has no segment 'sek', did you mean 'seg'" in caplog.text
    other = made.save(tmp_path, {"meta": {}, "results": {}}, "result.json")
    assert visualize.main(["seg", str(path), "--result", str(other), *out]) == 1
    assert "no frame of segment seg; is it of another split?" in caplog.text
    (tmp_path / "file").write_text("")
    assert visualize.main(["seg", str(path), "--out-dir", str(tmp_path / "file")]) == 1
    assert "100.jpg cannot be written" in caplog.text
    image = tmp_path / "argoverse2/seg/image" / made.CAMERAS[1] / "100.jpg"
    image.unlink()
    assert visualize.main(["seg", str(path), *out]) == 1
    assert f"{image} of camera {made.CAMERAS[1]}, frame 100: the file does not exist" in caplog.text
    with pytest.raises(SystemExit, match="2"):
        visualize.main(["seg", str(path), "--interval", "0"])
