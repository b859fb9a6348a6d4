"""tools/toy_digits.py: the handwritten digits as image folders."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from image_folders import settings
from PIL import Image

from dataset import build_loader

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
from sklearn.datasets import load_digits

SCRIPT = Path(__file__).resolve().parents[2] / "tools/toy_digits.py"
FIRST_VAL = [21, 24, 28, 34, 35]
spec = importlib.util.spec_from_file_location("toy_digits", SCRIPT)
toy_digits = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy_digits)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "deep" / "digits"
    assert toy_digits.main([str(out)]) == 0
    return out


def files(out, half="*"):
    return sorted(out.glob(f"{half}/*/*.png"))


def test_all_1797_images_are_there_once(digits):
    assert len(files(digits)) == 1797 and len(files(digits, "val")) == 360
    assert sorted(int(path.stem) for path in files(digits)) == list(range(1797))


def test_the_split_is_stratified(digits):
    total = np.bincount(load_digits().target)
    for digit in range(10):
        val = len(list((digits / f"val/{digit}").iterdir()))
        assert abs(val - total[digit] * 360 / 1797) < 1


def test_folders_are_labels_and_pixels_are_scikit_learns(digits):
    source = load_digits()
    for path in files(digits)[::7]:
        index = int(path.stem)
        assert path.parent.name == str(source.target[index])
        image = Image.open(path)
        assert image.size == (32, 32) and image.mode == "L"
        small = np.asarray(image.resize((8, 8), Image.Resampling.BOX), dtype=float) * 16 / 255
        original = source.images[index]
        assert np.corrcoef(small.ravel(), original.ravel())[0, 1] > 0.97
        assert np.abs(small - original).mean() < 1.0  # of 0..16


def test_a_second_run_changes_nothing(digits, capsys):
    before = {path: path.stat().st_mtime_ns for path in files(digits)}
    assert toy_digits.main([str(digits)]) == 0
    assert "already there: 1797 images, 1437 train and 360 val" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in files(digits)}
    assert [path.name for path in digits.parent.iterdir()] == ["digits"]  # nothing temporary


def test_the_split_is_the_same_everywhere(digits):
    names = [int(path.stem) for path in files(digits, "val")]
    assert sorted(names) == toy_digits.split()["val"]
    assert toy_digits.split() == toy_digits.split()
    assert sorted(names)[:5] == FIRST_VAL


def test_incomplete_or_foreign_folder_is_left_alone(tmp_path, capsys):
    out = tmp_path / "digits"
    (out / "train/0").mkdir(parents=True)
    (out / "train/0/0000.png").write_bytes(b"")
    assert toy_digits.main([str(out)]) == 1
    assert "not the complete data set: remove it" in capsys.readouterr().err
    assert len(files(out)) == 1


def test_empty_folder_is_filled(tmp_path):
    (tmp_path / "digits").mkdir()
    assert toy_digits.main([str(tmp_path / "digits")]) == 0
    assert toy_digits.is_complete(tmp_path / "digits")


def test_unwritable_place_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert toy_digits.main([str(tmp_path / "file/digits")]) == 1
    assert f"cannot write {tmp_path}/file/digits" in capsys.readouterr().err


def test_an_interrupted_run_leaves_nothing_behind(tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        toy_digits.main([str(tmp_path / "digits")])
    assert list(tmp_path.iterdir()) == []


def test_loaders_read_it(digits, tmp_path):
    loaders = build_loader(settings(tmp_path, digits, "DATA.BATCH_SIZE", 360))
    assert loaders.class_names == list("0123456789") and loaders.num_classes == 10
    images, targets = next(iter(loaders.val))
    assert images.shape == (360, 3, 32, 32) and sorted(set(targets.tolist())) == list(range(10))
