"""Results of the HD map: evaluated in memory and from a file, written, read, refused."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import hdmap_made_data as made
import numpy as np
import pytest
from ad_common.datasets.errors import DatasetError
from hdmap import submission
from hdmap.dataset import AV2Dataset
from hdmap.submission import META, make_meta, read_submission

PROJECT = Path(__file__).resolve().parents[1] / "Online-HD-Map-Construction"


def program(name: str) -> ModuleType:
    """A program of the project's tools folder as a module."""
    spec = importlib.util.spec_from_file_location(f"hdmap_{name}", PROJECT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.fixture
def dataset(tmp_path: Path) -> AV2Dataset:
    """Three frames with a divider and a boundary each."""
    return AV2Dataset(str(made.write(tmp_path)), [], test_mode=True)


def perfect(dataset: AV2Dataset) -> list[dict[str, Any]]:
    """What a perfect model gives."""
    results = []
    for frame in dataset.frames:
        lines = [frame["annotation"][name][0][:, :2] for name in ("divider", "boundary")]
        results.append(
            {
                "vectors": lines,
                "scores": np.array([0.9, 0.8], dtype=np.float32),
                "labels": np.array([1, 2]),
                "token": frame["token"],
            }
        )
    return results


def test_perfect_results(dataset: AV2Dataset) -> None:
    metrics = dataset.evaluate(perfect(dataset), metric=["chamfer"])
    assert metrics["divider_AP"] == metrics["boundary_AP"] == 1
    assert metrics["ped_crossing_AP"] == 0  # is nowhere in the truth
    assert metrics["mAP"] == pytest.approx(2 / 3)


def test_file_and_memory_agree(dataset: AV2Dataset, tmp_path: Path) -> None:
    results = perfect(dataset)
    results[0]["vectors"][0] = results[0]["vectors"][0] + [0, 1.2]
    results[1] = {"vectors": [], "scores": np.zeros(0), "labels": np.zeros(0, dtype=int)}
    path = dataset.format_results(results, out_dir=tmp_path / "out")
    assert Path(path).name == "submission_vector.json"
    metrics = dataset.evaluate(results)
    assert 0.1 < metrics["mAP"] < 0.6
    assert dataset.evaluate(path) == pytest.approx(metrics)


def test_the_program_agrees(
    dataset: AV2Dataset, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    results = perfect(dataset)
    results[2]["labels"] = results[2]["labels"][::-1]
    path = dataset.format_results(results, out_dir=tmp_path / "new.json")
    out = tmp_path / "metrics.json"
    args = [path, dataset.ann_file, "--out", str(out)]
    assert program("evaluate_submission").main(args) == 0
    metrics = dataset.evaluate(results)
    assert json.loads(out.read_text()) == pytest.approx(metrics)
    assert capsys.readouterr().out.split()[-1] == f"{100 * metrics['mAP']:.2f}"


def test_content_of_the_file(dataset: AV2Dataset, tmp_path: Path) -> None:
    path = dataset.format_results(perfect(dataset), out_dir=tmp_path, method="x", country="Chile")
    content = json.loads(Path(path).read_text())
    assert set(content) == {"meta", "results"} and set(content["meta"]) == set(META)
    assert content["meta"]["country / region"] == "Chile"
    assert content["meta"]["method"] == "x" and content["meta"]["output_format"] == "vector"
    assert list(content["results"]) == ["100", "101", "102"]
    frame = content["results"]["101"]
    assert frame["labels"] == [1, 2] and frame["scores"] == [0.9, 0.8]
    assert frame["vectors"][0] == [[0.0, 2.0], [5.0, 2.05], [10.0, 2.0]]


def test_meta_of_the_config_and_of_the_command_line(dataset: AV2Dataset) -> None:
    meta = make_meta({"method": "a", "authors": "b"}, {"method": "c"})
    assert (meta["method"], meta["authors"], meta["use_camera"]) == ("c", "b", True)
    with pytest.raises(DatasetError, match="no field 'metod', did you mean 'method'"):
        dataset.format_results(perfect(dataset), metod="a")


def test_a_large_file_is_told(
    dataset: AV2Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dataset.format_results(perfect(dataset), out_dir=tmp_path)
    assert "the server takes" not in caplog.text
    monkeypatch.setattr(submission, "LARGEST", 1e-5)
    dataset.format_results(perfect(dataset), out_dir=tmp_path)
    assert "the server takes" in caplog.text


def test_unwritable_output(dataset: AV2Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/out/submission_vector.json cannot be written"):
        dataset.format_results(perfect(dataset), out_dir=tmp_path / "file" / "out")


def test_a_failed_write_keeps_the_old_file(
    dataset: AV2Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(dataset.format_results(perfect(dataset), out_dir=tmp_path))
    before = path.read_text()

    def fail(*args: Any, **kwargs: Any) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(submission.json, "dumps", fail)
    with pytest.raises(OSError, match="disk full"):
        dataset.format_results(perfect(dataset), out_dir=tmp_path, method="new")
    assert path.read_text() == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop(), "there are 2 results for 3 frames"),
        (lambda r: r.reverse(), "result of frame 102 is where frame 100 belongs"),
        (lambda r: r[1].pop("scores"), "result of frame 101: no scores"),
        (lambda r: r[1].update(scores=[0.5]), "frame 101: 2 vectors, 1 scores and 2 labels"),
        (lambda r: r[1].update(scores=[0.5, np.nan]), "frame 101: scores that are not finite"),
        (lambda r: r[1].update(labels=[0, 3]), "frame 101: label 3; labels are 0 to 2"),
        (lambda r: r[1].update(labels=["a", "b"]), "frame 101: scores and labels must be"),
        (lambda r: r[1]["vectors"][1].resize(1, 2), "frame 101, vector 1: has 1 points"),
        (lambda r: r.__setitem__(1, None), "frame 101: expected vectors, scores and labels"),
    ],
)
def test_wrong_results(dataset: AV2Dataset, change: Callable, message: str) -> None:
    results = perfect(dataset)
    results[1]["vectors"] = [line.copy() for line in results[1]["vectors"]]
    change(results)
    with pytest.raises(DatasetError, match=re.escape(message)):
        dataset.evaluate(results)
    with pytest.raises(DatasetError, match=re.escape(message)):
        dataset.format_results(results)


def test_unknown_metric(dataset: AV2Dataset) -> None:
    with pytest.raises(DatasetError, match="no metric 'Chamfer', did you mean 'chamfer'"):
        dataset.evaluate(perfect(dataset), metric="Chamfer")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no whole json file"),
        ("[]", "is no submission"),
        ('{"meta": {}}', "is no submission"),
        ('{"results": {"100": {"vectors": []}}}', "frame 100: no scores, labels"),
        ('{"results": {"100": {"vectors": [1], "scores": [1], "labels": [0]}}}', "vector 0: has"),
        ('{"results": {"other": {"vectors": [], "scores": [], "labels": []}}}', "'other'"),
    ],
)
def test_wrong_submissions(
    dataset: AV2Dataset,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    content: str,
    message: str,
) -> None:
    path = tmp_path / "s.json"
    path.write_text(content)
    with pytest.raises(DatasetError, match=re.escape(message)):
        dataset.evaluate(path)
    assert program("evaluate_submission").main([str(path), dataset.ann_file]) == 1
    assert message in caplog.text


def test_missing_files_end_the_program_with_one_line(
    dataset: AV2Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    main = program("evaluate_submission").main
    assert main([str(tmp_path / "none.json"), dataset.ann_file]) == 1
    assert "none.json does not exist; tools/test.py --format-only" in caplog.text
    path = dataset.format_results(perfect(dataset), out_dir=tmp_path)
    bare = made.write(tmp_path, annotated=False)
    assert main([path, str(bare)]) == 1
    assert "3 of 3 frames have no annotation" in caplog.text


def test_frames_may_be_missing(dataset: AV2Dataset, tmp_path: Path) -> None:
    path = Path(dataset.format_results(perfect(dataset), out_dir=tmp_path))
    content = json.loads(path.read_text())
    del content["results"]["101"]
    path.write_text(json.dumps(content))
    assert set(read_submission(path)) == {"100", "102"}
    assert dataset.evaluate(path)["divider_AP"] == pytest.approx(2 / 3)
