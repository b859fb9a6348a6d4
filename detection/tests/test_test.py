"""test.py: every way to get results out of a checkpoint, and what it says when it cannot."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
from conftest import Trained
from internimage.cli import USER_ERRORS


def metrics_of(work_dir: Path) -> dict:
    """The metrics that test.py wrote."""
    return json.loads(max(work_dir.glob("eval_*.json")).read_text())["metric"]


def results_of(path: Path) -> list:
    return pickle.loads(path.read_bytes())


def boxes_of(results: list) -> np.ndarray:
    """(n, 5) boxes of all images and classes: x1, y1, x2, y2, score."""
    return np.concatenate([boxes for per_class, _ in results for boxes in per_class])


def test_evaluation_equals_that_of_the_training(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "results.pkl"
    code = runs.test(
        trained.config, trained.checkpoint, "--work-dir", tmp_path, "--eval", "bbox", "segm",
        "--out", out, "--eval-options", "classwise=True",
    )  # fmt: skip
    assert code == 0
    metrics = metrics_of(tmp_path)
    log = max(trained.work_dir.glob("*.log.json")).read_text().splitlines()
    logged = json.loads(log[-1])
    assert metrics["bbox_mAP"] > 0
    assert metrics["bbox_mAP"] == pytest.approx(logged["bbox_mAP"], abs=2e-3)
    assert metrics["segm_mAP"] == pytest.approx(logged["segm_mAP"], abs=2e-3)
    results = results_of(out)
    assert len(results) == 3
    assert len(results[0]) == 2  # boxes and masks
    assert len(results[0][0]) == len(runs.CLASSES)


def test_pictures_and_several_scales(trained: Trained, tmp_path: Path) -> None:
    plain, augmented = tmp_path / "plain.pkl", tmp_path / "tta.pkl"
    common = [trained.config, trained.checkpoint, "--work-dir", tmp_path]
    show = ["--show-dir", tmp_path / "show", "--show-score-thr", "0.05"]
    assert runs.test(*common, "--out", plain, *show) == 0
    assert {p.name for p in (tmp_path / "show").iterdir()} == {"0.png", "1.png", "2.png"}
    scales = ["--cfg-options", "tta_scales=[(64,64)]"]
    assert runs.test(*common, "--out", augmented, "--tta", *scales) == 0
    first, second = boxes_of(results_of(plain)), boxes_of(results_of(augmented))
    assert first.shape != second.shape or not np.allclose(first, second)


def test_tta_scales_are_around_the_scale_of_the_config(trained: Trained) -> None:
    from mmcv import Config
    from mmdet_custom.testing import use_tta

    cfg = Config.fromfile(trained.config)
    use_tta(cfg)
    step = cfg.data.test.pipeline[1]
    assert [tuple(scale) for scale in step.img_scale] == [(32, 32), (64, 64), (96, 96)]
    assert step.flip and step.flip_direction == "horizontal"
    cfg.data.test.pipeline = [{"type": "LoadImageFromFile"}]
    with pytest.raises(ValueError, match="MultiScaleFlipAug"):
        use_tta(cfg)


def test_format_only_writes_the_files_for_a_server(trained: Trained, tmp_path: Path) -> None:
    prefix = tmp_path / "server" / "mine"
    code = runs.test(
        trained.config, trained.checkpoint, "--work-dir", tmp_path, "--format-only",
        "--options", f"jsonfile_prefix={prefix}",
    )  # fmt: skip
    assert code == 0
    assert {p.name for p in prefix.parent.iterdir()} == {"mine.bbox.json", "mine.segm.json"}
    assert json.loads((prefix.parent / "mine.bbox.json").read_text())
    assert not list(tmp_path.glob("eval_*.json"))


def test_only_coco_has_files_for_a_server() -> None:
    from mmdet.datasets import VOCDataset
    from mmdet_custom.testing import check_format

    with pytest.raises(ValueError, match=r"VOCDataset has no files for a server.*voc_results.py"):
        check_format(VOCDataset.__new__(VOCDataset))


def test_proposals_and_batches_and_fused_norms(trained: Trained, tmp_path: Path) -> None:
    one, batch = tmp_path / "one.pkl", tmp_path / "batch.pkl"
    common = [trained.config, trained.checkpoint, "--work-dir", tmp_path, "--eval", "bbox"]
    assert runs.test(*common, "--out", one, "--fuse-conv-bn", "--gpu-ids", 0) == 0
    options = ["--cfg-options", "data.test_dataloader.samples_per_gpu=2"]
    assert runs.test(*common, "--out", batch, *options) == 0
    assert np.allclose(boxes_of(results_of(one)), boxes_of(results_of(batch)), atol=1e-3)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--eval", "bbox"], "does not exist"),
        (["--eval", "box"], "--eval box: CocoDataset has bbox, segm"),
        (["--eval", "box"], "did you mean 'bbox'"),
        (["--out", "/proc/x/results.pkl"], "--out: the folder /proc/x cannot be written"),
        (
            ["--eval", "segm", "--cfg-options", "model.roi_head.mask_head=None"],
            "--eval segm: MaskRCNN predicts no masks",
        ),
        (
            ["--eval", "bbox", "--cfg-options", "model.roi_head.mask_head=None"],
            "only in the file (roi_head.mask_head",
        ),
        (["--eval", "bbox", "--eval-options", "clswise=True"], "clswise"),
        (["--eval", "bbox", "--cfg-options", "model.neck.out_channels=24"], "of another shape"),
        (["--eval", "bbox", "--cfg-options", "model.neck.num_outs=2"], "assert num_outs >="),
        (
            ["--eval", "bbox", "--cfg-options", "model.roi_head.mask_head.num_convs=2"],
            "not in the file (roi_head.mask_head.convs.1.conv.weight",
        ),
        (["--eval", "bbox", "--cfg-options", "data.test.ann_file=/nowhere.json"], "/nowhere.json"),
        (["--eval", "bbox", "--device", "cuda"], "sees no GPU"),
        (["--show-dir", runs.DETECTION / "test.py"], "--show-dir"),
        (["--show"], "--show needs a screen"),
    ],
)
def test_errors_of_the_user_are_one_sentence(
    trained: Trained, tmp_path: Path, argv: list[str], message: str
) -> None:
    if "cuda" in argv and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    checkpoint = "/nowhere.pth" if message == "does not exist" else trained.checkpoint
    with pytest.raises(USER_ERRORS) as error:
        runs.test(trained.config, checkpoint, "--work-dir", tmp_path, *argv)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give --eval, --out, --format-only, --show or --show-dir"),
        (["--eval", "bbox", "--format-only"], "exclude each other"),
        (["--out", "a.json"], "must end with .pkl"),
        (["--eval", "bbox", "--cfg-options", "a"], "--cfg-options takes KEY=VALUE without spaces"),
        (["--eval", "bbox", "--cfg-options", "a=dict(b=1,c=2)"], "no dictionary or call"),
        (["--eval", "bbox", "--cfg-options", "a=[1,(2]"], "--cfg-options a=[1,(2]: "),
        (["--evil", "bbox"], "did you mean --eval"),
        (["--eval", "bbox", "--options", "a=1", "--eval-options", "a=1"], "give only"),
    ],
)
def test_wrong_command_lines_end_with_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        runs.program("test").parse_args(["config.py", "checkpoint.pth", *argv])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--out", "r.pkl"], ["--format-only"], ["--show-dir", "s"]])
def test_a_full_disk_is_told_with_the_file(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for place in ("mmcv.dump", "mmdet.models.detectors.BaseDetector.show_result"):
        monkeypatch.setattr(place, full)
    argv = [str(tmp_path / word) if word in ("r.pkl", "s") else word for word in argv]
    with pytest.raises(OSError, match=r"cannot be written.*No space left") as error:
        runs.test(trained.config, trained.checkpoint, "--work-dir", tmp_path, *argv)
    assert str(tmp_path) in str(error.value)


def test_other_class_names_are_told(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from mmcv_custom.checkpoint import compare_classes

    with caplog.at_level("WARNING"):
        compare_classes({"CLASSES": ("a", "b")}, ("a", "b"))
        assert not caplog.text
        compare_classes({"CLASSES": ("a", "b")}, ("a", "c"))
    assert "1: 'b' / 'c'" in caplog.text
