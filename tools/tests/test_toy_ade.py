"""tools/toy_ade.py: a deterministic segmentation data set whose labels are what is drawn."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cv2")

TOOLS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOOLS))
import numpy as np  # noqa: E402
import toy_ade  # noqa: E402
from PIL import Image  # noqa: E402

SETTINGS = toy_ade.Settings(training=30, validation=6, size=64, seed=3)
SMALL = toy_ade.Settings(training=1, validation=1, size=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "set"
    assert toy_ade.build(out, SETTINGS)
    return out


def rng_of(seed):
    return np.random.default_rng(seed)


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_layout_is_that_of_ade20k(folder):
    for split, count in (("training", 30), ("validation", 6)):
        names = [f"{number:08d}" for number in range(count)]
        assert sorted(p.name for p in (folder / "images" / split).iterdir()) == [
            f"{name}.jpg" for name in names
        ]
        for name in names:
            with Image.open(folder / "images" / split / f"{name}.jpg") as image:
                assert (image.mode, image.size) == ("RGB", (64, 64))
            with Image.open(folder / "annotations" / split / f"{name}.png") as mask:
                assert (mask.mode, mask.size) == ("L", (64, 64))


def test_every_class_and_ignored_pixels_occur_and_nothing_else(folder):
    count = np.zeros(256, int)
    for number in range(30):
        with Image.open(toy_ade.paths(folder, "training", number)[1]) as mask:
            count += np.bincount(np.asarray(mask).ravel(), minlength=256)
    share = count / count.sum()
    assert set(np.flatnonzero(count)) == {0, 1, 2, 3, 4, 5, 255}
    assert share[:6].min() > 0.02
    assert 0.01 < share[255] < 0.10
    assert len(toy_ade.PALETTE) == len(set(toy_ade.PALETTE)) == len(toy_ade.CLASSES) == 6


def test_shapes_are_of_one_colour_and_textures_are_not():
    spread = {label: [] for label in (*range(6), 255)}
    for seed in range(30):
        image, labels = toy_ade.draw(rng_of(seed), 96)
        for label in np.unique(labels):
            pixels = image[labels == label].astype(float)
            spread[label].append(pixels.std(0).mean())
    mean = {label: np.mean(values) for label, values in spread.items()}
    assert max(mean[label] for label in (1, 2)) > 25  # two muted colours
    assert mean[255] > 40  # noise, and borders of shapes

    image, labels = toy_ade.draw(rng_of(5), 96)
    alone = [label for label in (3, 4, 5) if (labels == label).any()]
    assert alone  # inside a shape the colour changes from the top to the bottom only
    shape = labels == alone[0]
    rows = [image[y][shape[y]] for y in range(96) if shape[y].sum() > 8]
    assert np.median([row.std(0).max() for row in rows]) < 25


def test_the_border_of_a_shape_is_ignored():
    for seed in range(10):
        labels = toy_ade.draw(rng_of(seed), 96)[1].astype(int)
        shape = np.isin(labels, (3, 4, 5))
        for first, second in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
            touching = np.isin(first, (3, 4, 5)) & np.isin(second, (0, 1, 2))
            assert touching.sum() < 0.03 * shape.sum()


def test_equal_arguments_give_equal_bytes_and_a_larger_set_begins_with_the_smaller(
    folder, tmp_path
):
    toy_ade.build(tmp_path / "again", SETTINGS)
    assert files(tmp_path / "again") == files(folder)
    toy_ade.build(tmp_path / "smaller", toy_ade.Settings(5, 2, 64, 3))
    smaller = {k: v for k, v in files(tmp_path / "smaller").items() if k.suffix != ".json"}
    assert len(smaller) == 14
    assert all(files(folder)[name] == data for name, data in smaller.items())
    toy_ade.build(tmp_path / "other", toy_ade.Settings(1, 1, 64, 4))
    name = Path("images/training/00000000.jpg")
    assert files(tmp_path / "other")[name] != smaller[name]
    assert files(folder)[Path("images/validation/00000000.jpg")] != smaller[name]


def test_masks_in_colours_show_the_same_labels(folder, tmp_path):
    toy_ade.build(tmp_path / "set", toy_ade.Settings(2, 1, 64, 3, colours=True))
    for number in range(2):
        picture, mask = toy_ade.paths(tmp_path / "set", "training", number)
        assert picture.read_bytes() == toy_ade.paths(folder, "training", number)[0].read_bytes()
        with (
            Image.open(mask) as image,
            Image.open(toy_ade.paths(folder, "training", number)[1]) as plain,
        ):
            colours, labels = np.asarray(image), np.asarray(plain)
        assert colours.shape == (64, 64, 3)
        for label in np.unique(labels):
            expected = (255, 255, 255) if label == 255 else toy_ade.PALETTE[label]
            assert (colours[labels == label] == expected).all()


def test_a_complete_set_is_left_alone_and_nothing_else_is_overwritten(folder, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert not toy_ade.build(folder, SETTINGS)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    with pytest.raises(FileExistsError, match="not the data set of these arguments"):
        toy_ade.build(folder, toy_ade.Settings(30, 6, 64, seed=5))

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="photos exists"):
        toy_ade.build(tmp_path / "photos", SMALL)
    assert files(tmp_path / "photos") == {Path("cat.jpg"): b"mine"}
    toy_ade.build(tmp_path / "set", SMALL)
    toy_ade.paths(tmp_path / "set", "validation", 0)[1].unlink()
    with pytest.raises(FileExistsError):
        toy_ade.build(tmp_path / "set", SMALL)
    assert not list(tmp_path.glob(".*"))


def test_command_line(tmp_path):
    program = [sys.executable, str(TOOLS / "toy_ade.py"), "--output", str(tmp_path / "set")]
    arguments = ["--train", "2", "--val", "1", "--size", "48", "--seed", "7"]
    done = subprocess.run([*program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wrote 2 training and 1 validation images of 48 pixels in")
    described = json.loads((tmp_path / "set" / "toy_ade.json").read_text())
    assert described["classes"] == list(toy_ade.CLASSES)
    assert described["reduce_zero_label"] is False
    assert described["settings"] == {
        "training": 2,
        "validation": 1,
        "size": 48,
        "seed": 7,
        "colours": False,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "0"], "need an image each, got 0, 80"),
        (["--size", "8"], "at least 32 pixels, got 8"),
        (["--seed", "-1"], "must not be negative, got -1"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_1(tmp_path, capsys, arguments, message):
    assert toy_ade.main(["--output", str(tmp_path / "set"), *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "set").exists()
