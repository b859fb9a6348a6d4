"""The toy configs with the real programs on a few pictures: they learn, go on, and are evaluated.

What they reach when they are trained to the end is in docs/segmentation.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mmcv
import numpy as np
import pytest
import runs
from internimage.safe_load import load_file
from mmcv import Config
from mmseg.datasets import build_dataset

TOY = Path(__file__).resolve().parents[1] / "configs/toy"
sys.path.insert(0, str(TOY.parents[2] / "tools"))
import toy_ade  # noqa: E402

NAMES = sorted(path.stem for path in TOY.glob("*_internimage_*.py"))
RATES = {"upernet": 5e-3, "segformer": 5e-3, "mask2former": 2e-3}  # for a few iterations
RESIZED = ((2, "img_scale"), (3, "crop_size"), (6, "size"))  # steps of the training pipeline


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "toy_ade"
    toy_ade.build(out, toy_ade.Settings(training=16, validation=4, size=64))
    return out


def options(data: Path, iterations: int) -> list[str]:
    """Command line that trains a toy config on `data`: 16 pictures of 64 pixels."""
    words = [f"runner.max_iters={iterations}", "evaluation.interval=12", "log_config.interval=1"]
    words += [
        "lr_config.power=0",
        "lr_config.warmup_iters=2",
        "data.samples_per_gpu=4",
        "checkpoint_config.interval=12",
    ]
    words += [f"data.{split}.data_root={data}" for split in ("train", "val", "test")]
    words += [f"data.train.pipeline.{i}.{key}=(64,64)" for i, key in RESIZED]
    words += [f"data.{split}.pipeline.1.img_scale=(64,64)" for split in ("val", "test")]
    return ["--device", "cpu", "--cfg-options", *words]


def train(name: str, data: Path, work_dir: Path, iterations: int, rate: str, *flags: str) -> None:
    words = [*options(data, iterations), rate, "--seed", "0", "--work-dir", work_dir, *flags]
    assert runs.train(TOY / f"{name}.py", *words) == 0


def log(work_dir: Path, mode: str) -> list[dict]:
    """The rows of a mode ("train", "val") in all JSON logs, in the order of the runs."""
    paths = sorted(work_dir.glob("*.log.json"))
    rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return [row for row in rows if row.get("mode") == mode]


def ratio(values: list[float]) -> float:
    """Mean of the last quarter by the mean of the first."""
    count = len(values) // 4
    return np.mean(values[-count:]) / np.mean(values[:count])


@pytest.mark.parametrize("head", RATES)
def test_a_toy_model_learns_goes_on_and_is_evaluated(head: str, data: Path, tmp_path: Path) -> None:
    name, rate = f"{head}_internimage_nano_toy", f"optimizer.lr={RATES[head]}"
    train(name, data, tmp_path, 12, rate)
    assert {"iter_12.pth", "latest.pth", f"{name}.py"} <= {p.name for p in tmp_path.iterdir()}
    first = [row["loss"] for row in log(tmp_path, "train")]
    assert len(first) == 12 and np.isfinite(first).all()
    meta = load_file(tmp_path / "iter_12.pth")["meta"]
    assert tuple(meta["CLASSES"]) == toy_ade.CLASSES

    train(name, data, tmp_path, 24, rate, "--auto-resume")
    rows = log(tmp_path, "train")
    assert [row["iter"] for row in rows] == list(range(1, 25))
    most = 0.92 if head == "mask2former" else 0.85  # it begins slowly
    assert ratio([row["loss"] for row in rows]) < most
    validated = log(tmp_path, "val")
    assert len(validated) == 2
    assert 0 < validated[-1]["mIoU"] <= 1
    assert all(f"IoU.{name}" in validated[-1] for name in toy_ade.CLASSES)

    out = tmp_path / "results.pkl"
    words = [TOY / f"{name}.py", tmp_path / "iter_24.pth", "--eval", "mIoU", "--out", out]
    words += ["--work-dir", tmp_path / "test", "--device", "cpu", "--cfg-options"]
    words += [word for word in options(data, 24) if word.startswith("data.test")]
    assert runs.test(*words) == 0
    maps = mmcv.load(out)
    assert [np.asarray(labels).shape for labels in maps] == [(64, 64)] * 4
    (written,) = (tmp_path / "test").glob("*.json")
    metric = json.loads(written.read_text())["metric"]
    assert metric["mIoU"] == pytest.approx(validated[-1]["mIoU"], abs=2e-4)  # the log has 4 digits


def test_a_toy_model_learns_pictures_by_heart(data: Path, tmp_path: Path) -> None:
    """Two pictures, some seconds: from a sixth of the pixels to most of them."""
    name = "segformer_internimage_nano_toy_overfit"
    root = tmp_path / "two"
    toy_ade.build(root, toy_ade.Settings(training=2, validation=1, size=64))
    words = [f"data.{split}.data_root={root}" for split in ("train", "val", "test")]
    words += ["runner.max_iters=60", "evaluation.interval=60", "data.samples_per_gpu=2"]
    words += ["data.val.pipeline.1.img_scale=(64,64)", "lr_config.warmup_iters=5"]
    flags = ["--device", "cpu", "--seed", "0", "--work-dir", tmp_path / "run"]
    assert runs.train(TOY / f"{name}.py", *flags, "--cfg-options", *words) == 0
    (row,) = log(tmp_path / "run", "val")
    assert row["aAcc"] > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_toy_configs_name_the_data_that_the_tool_writes(name: str, data: Path) -> None:
    cfg = Config.fromfile(TOY / f"{name}.py")
    parts = [cfg.data[split] for split in ("train", "val", "test")]
    folder = f"data/toy_ade{'_overfit' * name.endswith('overfit')}"
    for part in parts:
        assert tuple(part.classes) == toy_ade.CLASSES
        assert [tuple(rgb) for rgb in part.palette] == list(toy_ade.PALETTE)
        assert part.data_root == folder and not part.get("reduce_zero_label")
        part.data_root = str(data)
    same = name.endswith("overfit")
    assert (parts[0].img_dir == parts[1].img_dir == parts[2].img_dir) == same
    assert parts[1].ann_dir == parts[1].img_dir.replace("images", "annotations")
    built = build_dataset(cfg.data.train)
    assert len(built) == 16 and len(build_dataset(cfg.data.val)) == (16 if same else 4)
    masks = {"gt_masks", "gt_labels"} if name.startswith("mask2former") else set()
    assert set(built[0]) == {"img", "gt_semantic_seg", "img_metas"} | masks
