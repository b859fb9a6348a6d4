"""The toy configs with the real programs on a few images: they learn, go on, and are evaluated.

What they reach when they are trained to the end is in docs/detection.md.
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
from mmdet.datasets import build_dataset

TOY = Path(__file__).resolve().parents[1] / "configs/toy"
sys.path.insert(0, str(TOY.parents[2] / "tools"))
import toy_coco  # noqa: E402

NAMES = sorted(path.stem for path in TOY.glob("*_internimage_*.py"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "toy_coco"
    toy_coco.build(out, toy_coco.Settings(train=16, val=4, size=64))
    return out


def options(data: Path, epochs: int, size: int = 4) -> list[str]:
    """Command line that trains a toy config on `data`: 16 images of 64 pixels."""
    words = [f"runner.max_epochs={epochs}", "evaluation.interval=2", "log_config.interval=1"]
    words += ["optimizer.lr=0.002", "lr_config.warmup_iters=2", f"data.samples_per_gpu={size}"]
    for split, folder in (("train", "train"), ("val", "val"), ("test", "val")):
        words.append(f"data.{split}.ann_file={toy_coco.json_path(data, folder)}")
        words.append(f"data.{split}.img_prefix={data / folder}/")
    for part in ("train.pipeline.2", "val.pipeline.1", "test.pipeline.1"):
        words.append(f"data.{part}.img_scale=(64,64)")
    return ["--device", "cpu", "--seed", "0", "--cfg-options", *words]


def train(
    name: str, data: Path, work_dir: Path, epochs: int, *flags: object, size: int = 4
) -> None:
    config = TOY / f"{name}.py"
    words = [*options(data, epochs, size), "--work-dir", work_dir, *flags]
    assert runs.train(config, *words) == 0


def log(work_dir: Path) -> list[dict]:
    """The rows of all JSON logs, in the order of the runs."""
    paths = sorted(work_dir.glob("*.log.json"))
    lines = [line for path in paths for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def losses(work_dir: Path) -> list[float]:
    return [row["loss"] for row in log(work_dir) if row.get("mode") == "train"]


def falls(values: list[float]) -> bool:
    """Whether the last quarter is clearly below the first."""
    count = len(values) // 4
    return np.mean(values[-count:]) < 0.85 * np.mean(values[:count])


@pytest.mark.parametrize("name", ["mask_rcnn_internimage_nano_toy", "dino_internimage_nano_toy"])
def test_a_toy_model_learns_goes_on_and_is_evaluated(name: str, data: Path, tmp_path: Path) -> None:
    kinds = ["bbox", "segm"] if name.startswith("mask") else ["bbox"]
    train(name, data, tmp_path, 2)
    assert {"epoch_2.pth", "latest.pth", f"{name}.py"} <= {p.name for p in tmp_path.iterdir()}
    first = losses(tmp_path)
    assert len(first) == 8 and np.isfinite(first).all()
    assert load_file(tmp_path / "epoch_2.pth")["meta"]["epoch"] == 2

    train(name, data, tmp_path, 4, "--auto-resume")
    rows = log(tmp_path)
    epochs = [row["epoch"] for row in rows if row.get("mode") == "train"]
    assert epochs == sorted(epochs) and set(epochs) == {1, 2, 3, 4}
    assert falls(losses(tmp_path))
    validated = [row for row in rows if row.get("mode") == "val"]
    assert [row["epoch"] for row in validated] == [2, 4]
    assert all(0 <= validated[-1][f"{kind}_mAP"] <= 1 for kind in kinds)

    out = tmp_path / "results.pkl"
    words = [TOY / f"{name}.py", tmp_path / "epoch_4.pth", "--eval", *kinds, "--out", out]
    assert runs.test(*words, "--work-dir", tmp_path / "test", *options_of_test(data)) == 0
    assert len(mmcv.load(out)) == 4
    (written,) = (tmp_path / "test").glob("*.json")
    metrics = json.loads(written.read_text())["metric"]
    for kind in kinds:
        assert metrics[f"{kind}_mAP"] == pytest.approx(validated[-1][f"{kind}_mAP"], abs=1e-3)


def options_of_test(data: Path) -> list[str]:
    words = options(data, 1)
    return [w for w in words[words.index("--cfg-options") :] if w[:9] in ("--cfg-opt", "data.test")]


def test_both_backbones_of_cb_dino_learn(data: Path, tmp_path: Path) -> None:
    train("cb_dino_internimage_nano_toy", data, tmp_path, 2, "--no-validate", size=2)
    rows = [row for row in log(tmp_path) if row.get("mode") == "train"]
    assert falls([row["loss"] for row in rows])
    for part in ("loss_bbox0_w0.5", "loss_bbox1", "dn_loss_cls0_w0.5", "dn_loss_cls1"):
        assert falls([row[part] for row in rows]), part


@pytest.mark.parametrize("name", NAMES)
def test_toy_configs_name_the_data_that_the_tool_writes(name: str, data: Path) -> None:
    cfg = Config.fromfile(TOY / f"{name}.py")
    dataset = cfg.data.train.get("dataset", cfg.data.train)
    assert tuple(dataset.classes) == toy_coco.SHAPES
    folder = f"data/toy_coco{'_overfit' * name.endswith('overfit')}"
    assert dataset.ann_file == f"{folder}/annotations/instances_train.json"
    if name.endswith("overfit"):
        assert cfg.data.val.ann_file == cfg.data.test.ann_file == dataset.ann_file
    for part in (dataset, cfg.data.val, cfg.data.test):
        split = Path(part.img_prefix).name
        part.ann_file = str(toy_coco.json_path(data, split))
        part.img_prefix = f"{data / split}/"
    built = build_dataset(cfg.data.train)
    keys = {"img", "gt_bboxes", "gt_labels"} | ({"gt_masks"} if name.startswith("mask") else set())
    assert set(built[0]) == keys | {"img_metas"}
