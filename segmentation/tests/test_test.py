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
from internimage.safe_load import load_file
from mmcv import Config
from mmseg.core.evaluation import eval_metrics
from mmseg.datasets import build_dataset
from mmseg_custom.overlay import colours, paint
from mmseg_custom.testing import Formatter, use_aug_test
from PIL import Image

SLIDE = ["--eval", "mIoU", "--cfg-options", "model.test_cfg.mode=slide"]


def metrics_of(work_dir: Path, scale: str = "single") -> dict:
    """The metrics that test.py wrote."""
    (path,) = work_dir.glob(f"eval_{scale}_scale_*.json")
    return json.loads(path.read_text())["metric"]


def maps_of(path: Path) -> list[np.ndarray]:
    return pickle.loads(path.read_bytes())


def masks(trained: Trained) -> list[np.ndarray]:
    folder = trained.data / "annotations" / "validation"
    return [np.array(Image.open(folder / f"{i}.png")) for i in range(3)]


def run(trained: Trained, work_dir: Path, *argv: object) -> None:
    arguments = [trained.config, trained.checkpoint, "--work-dir", work_dir, *argv]
    assert runs.test(*arguments) == 0


def test_all_results_in_one_pass(trained: Trained, tmp_path: Path) -> None:
    out, show = tmp_path / "deep" / "maps.pkl", tmp_path / "show"
    run(
        trained, tmp_path, "--eval", "mIoU", "mDice", "mFscore", "--out", out, "--show-dir", show,
        "--opacity", "0.8",
    )  # fmt: skip
    metric = metrics_of(tmp_path)
    rows = (trained.work_dir / max(trained.work_dir.glob("*.log.json"))).read_text().splitlines()
    assert metric["mIoU"] == pytest.approx(json.loads(rows[-1])["mIoU"], abs=1e-4)
    maps = maps_of(out)
    assert [m.shape for m in maps] == [(64, 64)] * 3
    assert {m.dtype for m in maps} == {np.dtype(np.uint8)}
    wanted = eval_metrics(maps, masks(trained), 5, 255, ["mIoU", "mDice", "mFscore"])
    assert metric["mIoU"] == pytest.approx(np.nanmean(wanted["IoU"]), abs=1e-4)
    assert metric["mDice"] == pytest.approx(np.nanmean(wanted["Dice"]), abs=1e-4)
    assert metric["mFscore"] == pytest.approx(np.nanmean(wanted["Fscore"]), abs=1e-4)
    assert metric["aAcc"] == pytest.approx(wanted["aAcc"], abs=1e-4)
    image = np.array(Image.open(trained.data / "images/validation/1.png"))
    palette = colours([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], 5)
    picture = np.array(Image.open(show / "1.png"))
    mixed = 0.2 * image + 0.8 * palette[maps[1]]
    assert np.abs(picture - mixed).max() <= 1
    assert sorted(p.name for p in show.iterdir()) == ["0.png", "1.png", "2.png"]


def test_several_scales_and_flips_are_averaged(trained: Trained, tmp_path: Path) -> None:
    plain, augmented = tmp_path / "plain.pkl", tmp_path / "aug.pkl"
    run(trained, tmp_path, "--out", plain)
    run(trained, tmp_path, "--out", augmented, "--aug-test", "--eval", "mIoU")
    assert metrics_of(tmp_path, "multi")["mIoU"] > 0
    different = [np.mean(a != b) for a, b in zip(maps_of(plain), maps_of(augmented))]
    assert 0 < np.mean(different) < 0.5


def test_scales_of_the_augmentation(trained: Trained) -> None:
    cfg = Config.fromfile(trained.config)
    use_aug_test(cfg)
    step = cfg.data.test.pipeline[1]
    assert (step.img_ratios, step.flip) == ([0.5, 0.75, 1.0, 1.25, 1.5, 1.75], True)
    cfg.data.test.pipeline = [{"type": "LoadImageFromFile"}]
    with pytest.raises(ValueError, match=r"MultiScaleFlipAug in data\.test\.pipeline"):
        use_aug_test(cfg)


def test_windows_as_large_as_the_image_equal_the_whole(trained: Trained, tmp_path: Path) -> None:
    paths = []
    for name, crop, stride in (("whole", None, None), ("one", 64, 64), ("small", 40, 24)):
        path = tmp_path / f"{name}.pkl"
        options = []
        if crop:
            options = ["--options", "model.test_cfg.mode=slide"]
            options += [f"model.test_cfg.crop_size=({crop},{crop})"]
            options += [f"model.test_cfg.stride=({stride},{stride})"]
        run(trained, tmp_path, "--out", path, *options)
        paths.append(path)
    whole, one, small = (np.stack(maps_of(path)) for path in paths)
    np.testing.assert_array_equal(whole, one)
    assert 0 < np.mean(whole != small) < 0.5


def test_format_only_writes_label_maps(trained: Trained, tmp_path: Path) -> None:
    """CustomDataset has no format of its own: PNG files with the labels of the data set."""
    run(trained, tmp_path, "--format-only", "--out", tmp_path / "maps.pkl")
    maps = maps_of(tmp_path / "maps.pkl")
    for index, labels in enumerate(maps):
        written = np.array(Image.open(tmp_path / "results" / f"{index}.png"))
        np.testing.assert_array_equal(written, labels)
    assert not list(tmp_path.glob("eval_*.json"))


def test_format_of_the_data_set(trained: Trained, tmp_path: Path) -> None:
    """ADE20K's: labels from 1."""
    image_dir, mask_dir = (trained.data / kind / "validation" for kind in ("images", "annotations"))
    data = build_dataset(
        dict(type="ADE20KDataset", img_dir=str(image_dir), ann_dir=str(mask_dir), pipeline=[])
    )
    data.img_infos = [dict(filename="0.png", ann=dict(seg_map="0.png"))]
    write = Formatter(data, {"imgfile_prefix": str(tmp_path)})
    (path,) = write([np.full((2, 3), 149)], [0])
    assert np.array(Image.open(path)).tolist() == [[150] * 3] * 2


def test_several_folders_are_tested_as_one_data_set(trained: Trained, tmp_path: Path) -> None:
    folders = ["images/validation", "images/validation"]
    masks_of = ["annotations/validation", "annotations/validation"]
    run(
        trained, tmp_path, "--out", tmp_path / "twice.pkl", "--eval", "mIoU", "--show-dir",
        tmp_path / "show", "--cfg-options", f"data.test.img_dir={folders}",
        f"data.test.ann_dir={masks_of}",
    )  # fmt: skip
    maps = maps_of(tmp_path / "twice.pkl")
    assert len(maps) == 6
    np.testing.assert_array_equal(maps[0], maps[3])
    metric = metrics_of(tmp_path)
    assert metric["0_mIoU"] == metric["1_mIoU"]


@pytest.mark.parametrize("mode", ["trim", "keep", "refuse"])
def test_released_heads_of_150_classes(mode: str, trained: Trained, tmp_path: Path) -> None:
    """A 5-class checkpoint whose heads have 150 rows, 145 of them never trained to win."""
    loaded = load_file(trained.checkpoint)
    state = loaded["state_dict"]
    for head in ("decode_head", "auxiliary_head"):
        for name, fill in (("weight", 0.0), ("bias", -50.0)):
            rows = state[f"{head}.conv_seg.{name}"]
            more = torch.full((145, *rows.shape[1:]), fill)
            state[f"{head}.conv_seg.{name}"] = torch.cat([rows, more])
    released = tmp_path / "released.pth"
    torch.save({"state_dict": state, "meta": {}}, released)
    config = tmp_path / "config.py"
    switch = f"\nreleased_head = dict(num_classes=150, trained=5, mode='{mode}')\n"
    config.write_text(Path(trained.config).read_text() + switch)
    argv = [
        config,
        released,
        "--work-dir",
        tmp_path,
        "--eval",
        "mIoU",
        "--show-dir",
        tmp_path / "s",
    ]
    if mode == "refuse":
        with pytest.raises(USER_ERRORS, match=r"conv_seg\.weight \[150, 32, 1, 1\] instead of"):
            runs.test(*argv)
        return
    assert runs.test(*argv) == 0
    rows = (trained.work_dir / max(trained.work_dir.glob("*.log.json"))).read_text().splitlines()
    found = metrics_of(tmp_path)["mIoU"]
    assert found == pytest.approx(json.loads(rows[-1])["mIoU"], abs=1e-4)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--eval", "mIoU"], "does not exist"),
        (["--eval", "miou"], "did you mean 'mIoU'"),
        (["--eval", "cityscapes"], "CustomDataset has mIoU, mDice, mFscore"),
        (["--eval", "mIoU", "--cfg-options", "model.decode_head.channels=24"], "of another shape"),
        (["--eval", "mIoU", "--cfg-options", "data.test.img_dir=/nowhere"], "/nowhere"),
        (["--eval", "mIoU", "--cfg-options", "model.decode_head.num_classes=4"], "num_classes=5"),
        (["--eval", "mIoU", "--device", "cuda"], "sees no GPU"),
        ([*SLIDE, "model.test_cfg.mode=slid"], "mode='slid' is none of whole, slide"),
        (SLIDE, "model.test_cfg.crop_size=None: sliding windows need height and width"),
        ([*SLIDE, "model.test_cfg.crop_size=32,32", "model.test_cfg.stride=9"], "stride=9: sli"),
        (
            [*SLIDE, "model.test_cfg.crop_size=32,32", "model.test_cfg.stride=32,40"],
            "would leave gaps",
        ),
        (["--show"], "--show needs a screen"),
        (["--show-dir", "/proc/show"], "--show-dir /proc/show cannot be written"),
        (["--out", "/proc/out/a.pkl"], "cannot be written"),
    ],
)
def test_errors_of_the_user_are_one_sentence(
    trained: Trained,
    tmp_path: Path,
    argv: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "cuda" in argv and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    checkpoint = "/nowhere.pth" if message == "does not exist" else trained.checkpoint
    with pytest.raises(USER_ERRORS) as error:
        runs.test(trained.config, checkpoint, "--work-dir", tmp_path, *argv)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give --eval, --out, --format-only, --show or --show-dir"),
        (["--eval", "mIoU", "--format-only"], "exclude each other"),
        (["--out", "a.json"], "must end with .pkl"),
        (["--evil", "mIoU"], "did you mean --eval"),
        (["--show-dir", "a", "--opacity", "0"], "above 0 and at most 1, got 0.0"),
        (["--show-dir", "a", "--dir-name", "b"], "never did anything"),
    ],
)
def test_wrong_command_lines_end_with_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        runs.program("test").parse_args(["config.py", "checkpoint.pth", *argv])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_colours_of_classes_without_a_palette_differ() -> None:
    found = colours(None, 150)
    assert found.shape == (150, 3)
    assert len({tuple(row) for row in found.tolist()}) == 150
    assert colours([[1, 2, 3]], 3)[0].tolist() == [1, 2, 3]
    assert colours([[1, 2, 3]] * 9, 3).shape == (3, 3)


def test_labels_without_a_colour_stay_as_they_are() -> None:
    image = np.full((1, 3, 3), 100, np.uint8)
    labels = np.array([[0, 1, 255]])
    painted = paint(image, labels, np.array([[200, 0, 50]], np.uint8), 0.5)
    assert painted.tolist() == [[[75, 50, 150], [100] * 3, [100] * 3]]  # BGR
