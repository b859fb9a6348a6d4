"""image_demo.py: what it paints and writes for every kind of input, and its errors."""

from __future__ import annotations

import logging
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import mmcv_custom.demo as shared
import numpy as np
import pytest
import runs
import torch
from conftest import Trained
from internimage.safe_load import load_file
from mmcv import Config
from mmseg_custom.overlay import colours, legend, paint

DEMO = runs.program("image_demo")
PALETTE = [[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images (one in a folder of its own, one grey) and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    (folder / "sub").mkdir()
    cv2.imwrite(str(folder / "a.png"), rng.integers(0, 255, (50, 170, 3), dtype=np.uint8))
    cv2.imwrite(str(folder / "grey.jpg"), rng.integers(0, 255, (64, 64), dtype=np.uint8))
    cv2.imwrite(str(folder / "sub/c.png"), rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    (folder / "notes.txt").write_text("no image")
    return folder


def demo(trained: Trained, source: object, *args: object) -> int:
    flags = ["--device", "cpu", *args]
    return DEMO.main([str(w) for w in (source, trained.config, trained.checkpoint, *flags)])


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_an_image_its_overlay_and_legend(trained, photos, tmp_path, capsys):
    out, labels = tmp_path / "made/picture.png", tmp_path / "labels"
    assert demo(trained, photos / "a.png", "--out", out, "--labels", labels) == 0
    image, picture, found = read(photos / "a.png"), read(out), read(labels / "picture.png")
    assert found.shape == (50, 170)
    assert picture.shape[1] == 170 and picture.shape[0] > 60
    palette = colours(PALETTE, 5)
    assert np.array_equal(picture[:50], paint(image, found, palette, 0.5))
    assert np.array_equal(picture[50:], legend(found, runs.CLASSES, palette, 170))
    line = capsys.readouterr().out
    first = np.bincount(found.ravel()).argmax()
    share = np.mean(found == first)
    assert f"{runs.CLASSES[first]} {share:.1%}" in line
    assert [path.name for path in out.parent.iterdir()] == ["picture.png"]


def test_labels_are_those_of_test_py(trained, tmp_path):
    argv = [trained.config, trained.checkpoint, "--work-dir", tmp_path, "--out", tmp_path / "m.pkl"]
    assert runs.test(*argv) == 0
    folder = trained.data / "images/validation"
    assert demo(trained, folder, "--out", tmp_path / "out", "--labels", tmp_path / "labels") == 0
    for index, labels in enumerate(pickle.loads((tmp_path / "m.pkl").read_bytes())):
        np.testing.assert_array_equal(read(tmp_path / f"labels/{index}.png"), labels)


def test_a_folder_keeps_its_layout_and_skips_what_is_no_image(trained, photos, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert demo(trained, photos, "--out", tmp_path, "--no-legend", "--opacity", 1) == 0
    written = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert written == ["a.png", "grey.jpg", "sub/c.png"]
    assert "skipped 1 that are no images: notes.txt" in caplog.text
    assert {tuple(row) for row in read(tmp_path / "a.png").reshape(-1, 3)} <= {
        tuple(row[::-1]) for row in PALETTE
    }


def test_labels_of_two_folders_do_not_collide(trained, photos, tmp_path, caplog):
    folder = tmp_path / "in"
    shutil.copytree(photos / "sub", folder / "one")
    shutil.copytree(photos / "sub", folder / "two")
    assert demo(trained, folder, "--out", tmp_path / "out", "--labels", tmp_path / "labels") == 0
    written = sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "labels").rglob("*.png"))
    assert written == ["labels/one/c.png", "labels/two/c.png"]
    shutil.copy(folder / "one/c.png", folder / "one/c.bmp")
    assert demo(trained, folder, "--out", tmp_path / "out", "--labels", tmp_path / "labels") == 1
    assert "both be written to" in caplog.text


def test_one_pixel_and_images_that_cannot_be_read(trained, photos, tmp_path, caplog):
    folder = tmp_path / "in"
    folder.mkdir()
    cv2.imwrite(str(folder / "one.png"), np.full((1, 1, 3), 200, np.uint8))
    (folder / "broken.jpg").write_bytes((photos / "grey.jpg").read_bytes()[:40])
    (folder / "empty.png").touch()
    cv2.imwrite(str(folder / "line.png"), np.zeros((1, 900, 3), np.uint8))
    assert demo(trained, folder, "--out", tmp_path / "out", "--no-legend") == 1
    assert read(tmp_path / "out/one.png").shape == (1, 1, 3)
    for text in ("broken.jpg: not an image", "empty.png: not an image"):
        assert text in caplog.text
    assert not (tmp_path / "out/broken.jpg").exists()


def test_a_video_frame_by_frame(trained, tmp_path, caplog):
    source, out = tmp_path / "clip.avi", tmp_path / "out"
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for shade in (0, 100, 200):
        writer.write(np.full((48, 64, 3), shade, np.uint8))
    writer.release()
    assert demo(trained, source, "--out", out, "--labels", tmp_path / "labels") == 0
    video = cv2.VideoCapture(str(out / "clip.avi"))
    shapes = {frame.shape for frame in shared.frames(video)}
    assert shapes == {(48 + 2 * 16 + 8, 64, 3)}  # two lines of 16 pixels, and half of one
    assert video.get(cv2.CAP_PROP_FPS) == 5
    assert sorted(p.name for p in (tmp_path / "labels").iterdir()) == [
        f"clip_00000{i}.png" for i in range(3)
    ]
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    assert demo(trained, tmp_path / "bad.mp4", "--out", out) == 1
    assert "bad.mp4: not a video that can be read" in caplog.text
    assert sorted(path.name for path in out.iterdir()) == ["clip.avi"]


def test_a_released_model_by_name(trained, photos, tmp_path, monkeypatch, caplog):
    row = SimpleNamespace(task="segmentation", config=trained.config)
    monkeypatch.setattr(shared, "released_model", lambda name: row)
    real = DEMO.load_checkpoint

    def load_named(model, name, **kwargs):
        assert name == "upernet_tiny"
        return real(model, str(trained.checkpoint), **kwargs)

    monkeypatch.setattr(DEMO, "load_checkpoint", load_named)
    flags = ["--model", "upernet_tiny", "--device", "cpu", "--out", str(tmp_path)]
    assert DEMO.main([str(photos / "a.png"), *flags]) == 0
    assert (tmp_path / "a.png").is_file()
    monkeypatch.undo()
    image = str(photos / "a.png")
    assert DEMO.main([image, "--model", "internimage_t_1k_224"]) == 1
    assert "is a classification model" in caplog.text
    assert DEMO.main([image, "--model", "upernet_internimage_t_512_160k_ade20"]) == 1
    assert "Did you mean 'upernet_internimage_t_512_160k_ade20k'" in caplog.text


def test_released_models_are_listed(capsys):
    with pytest.raises(SystemExit) as stop:
        DEMO.main(["--list-models"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 26
    assert lines[0].split() == [
        "upernet_internimage_t_512_160k_ade20k", "ADE20K", "miou", "47.9,", "miou_ms", "48.1",
    ]  # fmt: skip


def test_names_come_from_the_checkpoint_then_the_config_then_the_data_set(trained, caplog):
    config = Config.fromfile(trained.config)
    checkpoint = load_file(trained.checkpoint)
    assert DEMO.class_meta(checkpoint, config, 5)[0] == list(runs.CLASSES)
    other = {"meta": {"CLASSES": ["a", "b"], "PALETTE": [[1, 2, 3], [4, 5, 6]]}}
    assert DEMO.class_meta(other, config, 2) == (["a", "b"], [[1, 2, 3], [4, 5, 6]])
    assert DEMO.class_meta({}, config, 5)[0] == list(runs.CLASSES)
    ade = Config(dict(data=dict(test=dict(type="ADE20KDataset"))))
    names, palette = DEMO.class_meta({}, ade, 150)
    assert (names[0], palette[0]) == ("wall", [120, 120, 120])
    assert DEMO.class_meta(checkpoint, config, 6)[0] == [*runs.CLASSES, "class 5"]
    assert "5 class names for 6 classes" in caplog.text


def test_checkpoint_of_another_model(trained, photos, tmp_path, caplog):
    state = load_file(trained.checkpoint)
    state["state_dict"]["decode_head.conv_seg.weight"] = torch.zeros(9, 32, 1, 1)
    torch.save(state, tmp_path / "other.pth")
    args = [str(photos / "a.png"), trained.config, str(tmp_path / "other.pth"), "--device", "cpu"]
    assert DEMO.main(args) == 1
    assert "conv_seg.weight [9, 32, 1, 1] instead of [5, 32, 1, 1]" in caplog.text


def test_palettes(trained, photos, tmp_path):
    pictures = []
    for palette in (None, *DEMO.PALETTES):
        out = tmp_path / f"{palette}.png"
        flags = ["--palette", palette] if palette else []
        assert demo(trained, photos / "a.png", "--out", out, *flags) == 0
        pictures.append(out.read_bytes())
    assert len(set(pictures)) >= 3  # the first colours of two of them may be alike


def test_input_is_never_overwritten_and_must_exist(trained, photos, tmp_path, caplog):
    before = (photos / "a.png").read_bytes()
    assert demo(trained, photos / "a.png", "--out", photos) == 1
    assert "would be overwritten" in caplog.text
    assert (photos / "a.png").read_bytes() == before
    assert demo(trained, tmp_path / "none.png") == 1
    assert "none.png: no such file, folder or match" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png"], "which model?"),
        (["a.png", "config.py", "x.pth", "--model", "m"], "leave config.py out"),
        (["a.png", "c.py", "x.pth", "--opacity", "2"], "above 0 and at most 1, got 2.0"),
        (["a.png", "c.py", "x.pth", "--palete", "ade20k"], "did you mean --palette?"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        DEMO.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_legend_names_the_largest_first_and_wraps():
    labels = np.array([[2] * 6, [1] * 6, [2] * 6, [0, 0, 1, 1, 200, 200]])
    palette = colours(PALETTE, 3)
    wide = legend(labels, ("sky", "a rather long name", "wall"), palette, 640)
    narrow = legend(labels, ("sky", "a rather long name", "wall"), palette, 100)
    assert wide.shape == (30, 640, 3)
    assert narrow.shape == (3 * 16 + 8, 100, 3)
    assert wide[15, 15].tolist() == [0, 255, 0]  # the first box: class 2
    assert legend(labels, ("sky", "sea", "wall"), palette, 100, lines=2).shape[0] == 2 * 16 + 8
