"""The walk of docs/segmentation.md: its config, commands and errors, as they are printed there."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import runs
import torch
from internimage.safe_load import CheckpointError
from mmcv import Config
from mmseg.models import build_segmentor
from mmseg_custom.datasets.checks import DatasetError, build_data
from PIL import Image

sys.path.insert(0, str(runs.FOLDER.parent / "tools"))
import toy_ade

TEXT = (runs.FOLDER.parent / "docs/segmentation.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, flags=re.DOTALL)
CONFIG, PHOTOS = (body for kind, body in BLOCKS if kind == "python")
NAMES = ("field", "furrows", "orchard", "pond", "house")
TOY = "segformer_internimage_nano_toy"
FAULTY = "data/my_data/masks/training/00000007.png"


def command(start: str) -> list[str]:
    """The words after `start` of the first command of the page that begins so."""
    bodies = [body.replace("\\\n", " ") for kind, body in BLOCKS if kind == "bash"]
    lines = [line for body in bodies for line in body.splitlines()]
    found = next(line for line in lines if line.startswith(f"python {start} "))
    return shlex.split(found)[2:]


def tool(path: str) -> ModuleType:
    """A program below tools/ as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, runs.FOLDER / "tools" / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def work(program: ModuleType, words: list[str]) -> int:
    return program.run_program(program.run, program.parse_args(words))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like segmentation/ in front of the reader, with the data and the earlier model."""
    out = tmp_path_factory.mktemp("walk")
    (out / "configs").symlink_to(runs.FOLDER / "configs")
    words = command("../tools/toy_ade.py")
    words[words.index("--output") + 1] = str(out / "data/my_data")
    for flag, count in (("--train", "8"), ("--val", "3")):
        words[words.index(flag) + 1] = count
    assert toy_ade.main(words) == 0
    colours = re.search(r"<<END\n(.*?)END", TEXT, flags=re.DOTALL)[1]
    (out / "data/my_data/colours.txt").write_text(colours)
    (out / "my_data.py").write_text(CONFIG)
    earlier = out / re.search(r'load_from = "(work_dirs.*)"', CONFIG)[1]
    earlier.parent.mkdir(parents=True)
    model = build_segmentor(Config.fromfile(runs.FOLDER / f"configs/toy/{TOY}.py").model)
    torch.save({"state_dict": model.state_dict(), "meta": {"CLASSES": toy_ade.CLASSES}}, earlier)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out)
        words = command("tools/convert_datasets/colour_masks.py")
        program = tool("convert_datasets/colour_masks.py")
        assert work(program, [w for w in words if w != "--ignore-others"] + ["--workers", "1"]) == 1
        assert work(program, [*words, "--workers", "1"]) == 0
    return out


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_masks_hold_the_five_classes(folder: Path) -> None:
    for number in range(8):
        colours = np.asarray(
            Image.open(toy_ade.paths(folder / "data/my_data", "training", number)[1])
        )
        labels = np.asarray(Image.open(folder / f"data/my_data/masks/training/{number:08d}.png"))
        assert set(np.unique(labels)) <= {0, 1, 2, 3, 4, 255}
        for label in range(5):
            same = (colours == toy_ade.PALETTE[label]).all(-1)
            assert ((labels == label) == same).all()


def test_the_walk_as_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = command("tools/check_dataset.py")
    assert work(tool("check_dataset.py"), [*words, "--workers", "1"]) == 0
    assert "data.train: 8 masks, 0 with faults" in (shown := capsys.readouterr().out)
    assert re.search(r"field 8, furrows \d, orchard \d, pond \d, house \d", shown)

    words = command("train.py")
    assert words[0] == "my_data.py"
    small = ["runner.max_iters=2", "evaluation.interval=2", "checkpoint_config.interval=2"]
    assert runs.train(*words, "--device", "cpu", "--cfg-options", *small) == 0
    work_dir = folder / "work_dirs/my_data"
    text = max(work_dir.glob("*.log")).read_text()
    assert "decode_head.conv_seg.weight [6, 64, 1, 1] instead of [5, 64, 1, 1]" in text
    assert all(f"IoU.{name}" in text for name in NAMES)
    assert runs.test(*command("test.py"), "--device", "cpu", "--work-dir", work_dir) == 0
    capsys.readouterr()

    words = command("image_demo.py")
    demo = runs.program("image_demo")
    assert demo.main([*words, "--device", "cpu"]) == 0
    pictures = sorted((work_dir / "pictures").iterdir())
    assert [path.stem for path in pictures] == ["00000000", "00000001", "00000002"]
    height, width = cv2.imread(str(pictures[0])).shape[:2]
    assert width >= 96 and height >= 96


def palette(labels: np.ndarray) -> Image.Image:
    """A palette PNG of the labels, in the colours of the toy data set."""
    image = Image.fromarray(labels, "L")
    image = Image.frombytes("P", image.size, labels.tobytes())
    table = np.full((256, 3), 255, np.uint8)
    table[:6] = toy_ade.PALETTE
    image.putpalette(table.ravel().tolist())
    return image


def from_one(labels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.where(labels == 255, 255, labels + 1).astype(np.uint8))


def half_size(labels: np.ndarray) -> Image.Image:
    return Image.fromarray(labels[::2, ::2])


def said(options: dict | None = None, split: str = "train") -> str:
    """What the check of a split says, or nothing."""
    cfg = Config.fromfile("my_data.py")
    cfg.merge_from_dict(options or {})
    try:
        build_data(cfg, cfg.data[split])
    except DatasetError as error:
        return str(error)
    return ""


def printed(message: str) -> bool:
    """Whether the page's table has a message, with other numbers of pixels and files."""

    def plain(text: str) -> str:
        text = re.sub(r"labels? [\d, ]+ \(\d+ of", "labels N (N of", text)
        text = re.sub(r"like [\w., ]+;", "like FILES;", text)
        return re.sub(r"\d+ of \d+ masks", "N masks", text)

    message = message.replace(str(Path.cwd()), "...")
    return f"`{plain(message)}`" in plain(TEXT)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda m: palette(m).convert("L"), {}, "saved as grey, its values are brightnesses"),
        (palette, {"data.train.pipeline.1.imdecode_backend": "cv2"}, "leave LoadAnnotations at"),
        (from_one, {}, "if the labels count from 1, set reduce_zero_label=True"),
        (half_size, {}, "48 x 48 pixels but its image"),
        (None, {}, "masks looked up are missing"),
    ],
)
def test_the_errors_about_a_mask(
    change: Callable | None, options: dict, message: str, folder: Path
) -> None:
    path = folder / FAULTY
    kept = path.read_bytes()
    assert not said()
    labels = np.array(Image.open(path))
    labels[0, 0] = 4  # so that one of 1..5 is too high
    try:
        if change is None:
            path.unlink()
        else:
            change(labels).save(path)
        found = said(options)
    finally:
        path.write_bytes(kept)
    assert message in found
    assert printed(found), found


def test_a_palette_png_is_as_good_as_a_grey_one(folder: Path) -> None:
    path = folder / FAULTY
    kept = path.read_bytes()
    try:
        palette(np.array(Image.open(path))).save(path)
        assert not said()
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize(
    "options",
    [
        {"data.train.ann_dir": "annotations/training"},
        {"model.decode_head.num_classes": 6},
        {"data.train.reduce_zero_label": True},
        {"data.train.img_suffix": ".jpeg"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_the_errors_about_the_config(options: dict) -> None:
    found = said(options)
    assert found
    assert printed(found), found


def test_a_checkpoint_of_other_classes() -> None:
    earlier = re.search(r'load_from = "(work_dirs.*)"', CONFIG)[1]
    with pytest.raises(CheckpointError) as error:
        runs.test("my_data.py", earlier, "--device", "cpu", "--eval", "mIoU")
    found = str(error.value)
    for part in ("is a checkpoint of another model: 147 of the model's 149", "instead of [5, 64,"):
        assert part in found and part in TEXT


def test_the_config_for_photographs_builds_with_its_classes(folder: Path) -> None:
    (folder / "photos.py").write_text(PHOTOS)
    config = Config.fromfile(folder / "photos.py")
    assert config.load_from == "upernet_internimage_t_512x1024_160k_cityscapes"
    assert config.model.backbone.init_cfg is None
    with torch.device("meta"):
        model = build_segmentor(config.model)
    assert model.decode_head.conv_seg.out_channels == 3
    assert model.auxiliary_head.conv_seg.out_channels == 3
