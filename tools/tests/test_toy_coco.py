"""tools/toy_coco.py: a deterministic COCO-format data set whose boxes and areas are its masks'."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cv2")
pytest.importorskip("pycocotools")

TOOLS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOOLS))
import numpy as np  # noqa: E402
import toy_coco  # noqa: E402
from PIL import Image  # noqa: E402
from pycocotools import mask as coco_mask  # noqa: E402
from pycocotools.coco import COCO  # noqa: E402

SETTINGS = toy_coco.Settings(train=40, val=12, size=64, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "set"
    assert toy_coco.build(out, SETTINGS)
    return out


@pytest.fixture(scope="module")
def coco(folder):
    return COCO(str(toy_coco.json_path(folder, "train")))


def rng_of(seed):
    return np.random.default_rng(seed)


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_area_and_box_are_those_of_the_mask(coco):
    assert len(coco.anns) > 60
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        assert annotation["area"] == mask.sum() >= 10
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y, width, height = annotation["bbox"]
        assert (x, y) == (columns[0], rows[0])
        assert (x + width, y + height) == (columns[-1] + 1, rows[-1] + 1)


def test_masks_of_an_image_hardly_overlap_because_they_are_the_visible_parts(coco):
    covered = twice = 0
    for image in coco.getImgIds():
        masks = [coco.annToMask(a) for a in coco.loadAnns(coco.getAnnIds(image))]
        if masks:
            depth = np.sum(masks, axis=0)
            covered += (depth > 0).sum()
            twice += (depth > 1).sum()
    assert twice < 0.03 * covered  # pixels on the border of two polygons, and holes


def test_polygons_follow_the_drawn_shape():
    shapes = [shape for seed in range(10) for shape in toy_coco.draw(rng_of(seed), 128)[1]]
    annotations = toy_coco.annotate(shapes, 1, 1)
    assert len(shapes) > 20
    for (label, mask), annotation in zip(shapes, annotations, strict=True):
        assert annotation["category_id"] == label + 1
        drawn = coco_mask.decode(
            coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], 128, 128))
        )
        assert (drawn & mask).sum() > 0.98 * (drawn | mask).sum()


def test_json_is_what_pycocotools_and_mmdet_ask_for(folder, coco):
    tree = json.loads(toy_coco.json_path(folder, "train").read_text())
    assert list(tree) == ["info", "licenses", "categories", "images", "annotations"]
    assert [row["name"] for row in tree["categories"]] == list(toy_coco.SHAPES)
    assert len({row["id"] for row in tree["annotations"]}) == len(tree["annotations"])
    assert {row["category_id"] for row in tree["annotations"]} == {1, 2, 3, 4, 5}
    for row in tree["images"]:
        with Image.open(folder / "train" / row["file_name"]) as image:
            assert image.size == (row["width"], row["height"]) == (64, 64)
            assert image.mode == "RGB"
    empty = [i for i in coco.getImgIds() if not coco.getAnnIds(i)]
    assert 0 < len(empty) < 12
    results = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}]
    assert len(coco.loadRes(results).anns) == 1  # needs `info`


def test_equal_arguments_give_equal_bytes_and_a_larger_set_begins_with_the_smaller(
    folder, tmp_path
):
    toy_coco.build(tmp_path / "again", SETTINGS)
    assert files(tmp_path / "again") == files(folder)
    smaller = toy_coco.Settings(train=5, val=2, size=64, seed=3)
    toy_coco.build(tmp_path / "smaller", smaller)
    images = {k: v for k, v in files(tmp_path / "smaller").items() if k.suffix == ".png"}
    assert len(images) == 7
    assert all(files(folder)[name] == data for name, data in images.items())
    other = toy_coco.Settings(train=1, val=1, size=64, seed=4)
    toy_coco.build(tmp_path / "other", other)
    name = Path("train/000000.png")
    assert files(tmp_path / "other")[name] != images[name]


def test_train_and_val_differ(folder):
    data = files(folder)
    assert data[Path("train/000000.png")] != data[Path("val/000000.png")]


def test_a_complete_set_is_left_alone_and_nothing_else_is_overwritten(folder, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert not toy_coco.build(folder, SETTINGS)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    with pytest.raises(FileExistsError, match="not the data set of these arguments"):
        toy_coco.build(folder, toy_coco.Settings(train=40, val=12, size=64, seed=5))

    small = toy_coco.Settings(train=1, val=1, size=32)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="photos exists"):
        toy_coco.build(tmp_path / "photos", small)
    assert files(tmp_path / "photos") == {Path("cat.jpg"): b"mine"}
    toy_coco.build(tmp_path / "set", small)
    (tmp_path / "set" / "val" / "000000.png").unlink()
    with pytest.raises(FileExistsError):
        toy_coco.build(tmp_path / "set", small)
    assert not list(tmp_path.glob(".*"))


def test_command_line(tmp_path):
    program = [sys.executable, str(TOOLS / "toy_coco.py"), "--output", str(tmp_path / "set")]
    arguments = ["--train", "2", "--val", "1", "--size", "48", "--seed", "7"]
    arguments += ["--names", "coin", "crate", "sign", "badge", "plus"]
    done = subprocess.run([*program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wrote 2 train and 1 val images of 48 pixels in")
    tree = json.loads(toy_coco.json_path(tmp_path / "set", "val").read_text())
    assert [row["name"] for row in tree["categories"]][:2] == ["coin", "crate"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "0"], "need an image each, got 0, 50"),
        (["--size", "8"], "at least 32 pixels, got 8"),
        (["--seed", "-1"], "must not be negative, got -1"),
        (["--names", *"aabcd"], "takes 5 different names"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_1(tmp_path, capsys, arguments, message):
    assert toy_coco.main(["--output", str(tmp_path / "set"), *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "set").exists()
