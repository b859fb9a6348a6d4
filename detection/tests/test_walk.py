"""The walk of docs/detection.md: its config, commands and errors, as they are printed there."""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
from pathlib import Path

import cv2
import image_demo
import pytest
import runs
import torch
from internimage.released import list_models, released_model
from mini_data import tool
from mmcv import Config
from mmdet.models import build_detector

DETECTION = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(DETECTION.parent / "tools"))
import toy_coco  # noqa: E402

TEXT = (DETECTION.parent / "docs/detection.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, flags=re.DOTALL)
CONFIG = next(body for kind, body in BLOCKS if kind == "python")


def command(start: str) -> list[str]:
    """The words after `start` of the first command of the page that begins so."""
    bodies = [body.replace("\\\n", " ") for kind, body in BLOCKS if kind == "bash"]
    lines = [line for body in bodies for line in body.splitlines()]
    found = next(line for line in lines if line.startswith(f"python {start} "))
    return shlex.split(found)[2:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like detection/ in front of the reader, with the data and the earlier model."""
    out = tmp_path_factory.mktemp("walk")
    for name in ("configs", "tools"):
        (out / name).symlink_to(DETECTION / name)
    words = command("../tools/toy_coco.py")
    words[words.index("--output") + 1] = str(out / "data/my_data")
    for flag, count in (("--train", "6"), ("--val", "3")):
        words[words.index(flag) + 1] = count
    assert toy_coco.main(words) == 0
    (out / "my_data.py").write_text(CONFIG)
    earlier = out / re.search(r'load_from = "(work_dirs.*)"', CONFIG)[1]
    earlier.parent.mkdir(parents=True)
    config = Config.fromfile(DETECTION / "configs/toy/mask_rcnn_internimage_nano_toy.py")
    model = build_detector(config.model)
    meta = {"CLASSES": toy_coco.SHAPES, "epoch": 10, "iter": 1}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, earlier)
    return out


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def check(*options: str) -> int:
    program = tool("check_dataset")
    words = ["my_data.py", *(("--cfg-options", *options) if options else ())]
    return program.run_program(program.run, program.parse_args(words))


def test_the_walk_as_written(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    program = tool("check_dataset")
    args = program.parse_args(command("tools/check_dataset.py"))
    assert program.run_program(program.run, args) == 0
    assert "left out: crate, wedge" in caplog.text and "nothing wrong found" in caplog.text

    words = command("train.py")
    assert words[0] == "my_data.py"
    small = ["runner.max_epochs=1", "evaluation.interval=1", "log_config.interval=1"]
    assert runs.train(*words, "--device", "cpu", "--cfg-options", *small) == 0
    work_dir = folder / "work_dirs/my_data"
    text = max(work_dir.glob("*.log")).read_text()
    assert "roi_head.bbox_head.fc_cls.weight [6, 192] instead of [4, 192]" in text
    assert runs.test(*command("test.py"), "--device", "cpu", "--work-dir", str(work_dir)) == 0

    words = command("image_demo.py")
    assert image_demo.main([*words, "--device", "cpu", "--score-thr", "0.0"]) == 0
    pictures = sorted((work_dir / "pictures").iterdir())
    assert [path.name for path in pictures] == ["000000.png", "000001.png", "000002.png"]
    assert cv2.imread(str(pictures[0])).shape == (128, 128, 3)
    rows = [json.loads(line) for line in (work_dir / "detections.jsonl").read_text().splitlines()]
    names = {item["class"] for row in rows for item in row["detections"]}
    assert names <= {"coin", "badge", "plus"} and names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data.train.classes=None"], "data.train: 80 of its 80 classes are not categories of"),
        (["data.train.classes=('coin','badge','pluss')"], "pluss, did you mean 'plus'?"),
        (
            ["model.roi_head.mask_head.num_classes=5"],
            "the model does not fit the data: model.roi_head.mask_head.num_classes=5, but "
            "data.train has 3 classes (coin, badge, plus); set num_classes=3 in "
            "model.roi_head.mask_head",
        ),
        (["data.train.classes=('plus','coin','badge')"], "the classes are in another order than"),
        (["data.train.ann_file=none.json"], "does not exist"),
        (["data.train.img_prefix=none/"], "images looked up are missing, first none/"),
    ],
)
def test_the_errors_of_the_table(options, message, caplog) -> None:
    assert check(*options) == 1
    assert message in caplog.text


def test_a_checkpoint_of_other_classes(folder: Path, caplog) -> None:
    checkpoint = re.search(r'load_from = "(work_dirs.*)"', CONFIG)[1]
    words = ["data/my_data/val", "my_data.py", checkpoint, "--device", "cpu"]
    assert image_demo.main(words) == 1
    assert "is a checkpoint of another model" in caplog.text
    assert "roi_head.bbox_head.fc_cls.weight [6, 192] instead of [4, 192]" in caplog.text


def test_the_config_for_photographs_builds_with_its_classes(folder: Path) -> None:
    text = [body for kind, body in BLOCKS if kind == "python"][1]
    (folder / "photos.py").write_text(text)
    config = Config.fromfile(folder / "photos.py")
    assert config.load_from == "mask_rcnn_internimage_t_fpn_3x_coco"
    assert config.model.backbone.init_cfg is None
    with torch.device("meta"):
        model = build_detector(config.model)
    assert model.roi_head.bbox_head.fc_cls.out_features == 4
    assert model.roi_head.mask_head.conv_logits.out_channels == 3


def test_the_tables_of_the_readme_are_those_of_the_released_models() -> None:
    text = (DETECTION / "README.md").read_text(encoding="utf-8")
    links = set(re.findall(r"\]\(([^)#]+)", text))
    missing = [link for link in links if "://" not in link and not (DETECTION / link).exists()]
    assert not missing
    for row in map(released_model, list_models(task="detection")):
        assert row.url in links and row.config in links
        assert row.log is None or row.log in links
        line = next(line for line in text.splitlines() if f"({row.config})" in line)
        numbers = [str(value) for value in row.metrics.values()]
        shown = line + text[text.index(line) :].split("\n\n")[0]
        assert all(number in shown for number in numbers), row.name
    published = {str(p.relative_to(DETECTION)) for p in (DETECTION / "configs").glob("[!_t]*/*.py")}
    assert published <= links
