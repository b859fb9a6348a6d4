"""image_demo.py: what it draws and writes for every kind of input, and its answers to bad input."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import cv2
import image_demo
import mmcv_custom.demo as shared
import numpy as np
import pytest
import runs
import torch
from conftest import Trained
from internimage.safe_load import load_file
from mmdet.apis import inference_detector
from pycocotools import mask as coco_mask


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images (one in a folder of its own, one grey) and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    (folder / "sub").mkdir()
    cv2.imwrite(str(folder / "a.png"), rng.integers(0, 255, (50, 70, 3), dtype=np.uint8))
    cv2.imwrite(str(folder / "grey.jpg"), rng.integers(0, 255, (64, 64), dtype=np.uint8))
    cv2.imwrite(str(folder / "sub/c.png"), rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    (folder / "notes.txt").write_text("no image")
    return folder


def demo(trained: Trained, source: object, *args: object, threshold: float = 0.0) -> int:
    flags = ["--score-thr", threshold, "--device", "cpu", *args]
    return image_demo.main([str(w) for w in (source, trained.config, trained.checkpoint, *flags)])


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def load(trained: Trained) -> torch.nn.Module:
    args = image_demo.parse_args(["x", trained.config, str(trained.checkpoint), "--device", "cpu"])
    return image_demo.load_detector(args)


def test_an_image_its_picture_and_its_detections(trained, photos, tmp_path, capsys):
    out, lines = tmp_path / "made/picture.png", tmp_path / "made/found.jsonl"
    assert demo(trained, photos / "a.png", "--out", out, "--json", lines) == 0
    picture, image = cv2.imread(str(out)), cv2.imread(str(photos / "a.png"))
    assert picture.shape == image.shape
    assert (picture != image).mean() > 0.05  # something is drawn
    (row,) = rows(lines)
    assert (row["image"], row["width"], row["height"]) == (str(photos / "a.png"), 70, 50)
    boxes, masks = inference_detector(load(trained), str(photos / "a.png"))
    wanted = {(i, *map(float, box)) for i, rows in enumerate(boxes) for box in rows}
    found = set()
    for item in row["detections"]:
        x, y, width, height = item["bbox"]
        found.add((item["label"], x, y, x + width, y + height, item["score"]))
        assert item["class"] == runs.CLASSES[item["label"]]
        assert item["segmentation"]["size"] == [50, 70]
    assert np.allclose(sorted(found), sorted(wanted), atol=1e-4)
    drawn = sum(int(coco_mask.area(item["segmentation"])) for item in row["detections"])
    assert drawn == sum(int(mask.sum()) for rows in masks for mask in rows)
    scores = [item["score"] for item in row["detections"]]
    assert scores == sorted(scores, reverse=True)
    assert f"{len(found)} detections" in capsys.readouterr().out
    assert sorted(path.name for path in out.parent.iterdir()) == ["found.jsonl", "picture.png"]


def test_a_folder_keeps_its_layout_and_skips_what_is_no_image(trained, photos, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert demo(trained, photos, "--out", tmp_path) == 0
    written = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert written == ["a.png", "grey.jpg", "sub/c.png"]
    assert "skipped 1 that are no images: notes.txt" in caplog.text


def test_a_pattern_and_names_that_collide(trained, photos, tmp_path, caplog):
    assert demo(trained, photos / "*.png", "--out", tmp_path / "one") == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["a.png"]
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.png").write_bytes((photos / "a.png").read_bytes())
    assert demo(trained, tmp_path / "*/same.png", "--out", tmp_path / "two") == 1
    assert "would both be written to" in caplog.text
    assert not (tmp_path / "two").exists()


def test_images_that_cannot_be_read_do_not_stop_the_others(trained, photos, tmp_path, caplog):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes((photos / "a.png").read_bytes())
    (folder / "broken.jpg").write_bytes((photos / "grey.jpg").read_bytes()[:40])
    (folder / "empty.png").touch()
    cv2.imwrite(str(folder / "line.png"), np.zeros((1, 900, 3), np.uint8))
    lines = tmp_path / "found.jsonl"
    assert demo(trained, folder, "--out", tmp_path / "out", "--json", lines) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    assert len(rows(lines)) == 1
    for text in ("broken.jpg: not an image", "empty.png: not an image", "3 of 4 inputs"):
        assert text in caplog.text
    assert "line.png: an image of 900x1 pixels cannot be resized" in caplog.text


def test_one_pixel_and_no_detections(trained, photos, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "one.png"), np.full((1, 1, 3), 200, np.uint8))
    assert demo(trained, tmp_path / "one.png", "--out", tmp_path / "out") == 0
    assert cv2.imread(str(tmp_path / "out/one.png")).shape == (1, 1, 3)
    out = tmp_path / "nothing.png"
    assert demo(trained, photos / "a.png", "--out", out, threshold=1.0) == 0
    assert np.array_equal(cv2.imread(str(out)), cv2.imread(str(photos / "a.png")))
    assert "no detections" in capsys.readouterr().out


def test_a_video_frame_by_frame(trained, photos, tmp_path, caplog):
    source, out = tmp_path / "clip.avi", tmp_path / "out"
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for shade in (0, 100, 200):
        writer.write(np.full((48, 64, 3), shade, np.uint8))
    writer.release()
    assert demo(trained, source, "--out", out, "--json", tmp_path / "f.jsonl") == 0
    video = cv2.VideoCapture(str(out / "clip.avi"))
    frames = list(shared.frames(video))
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 3
    assert video.get(cv2.CAP_PROP_FPS) == 5
    assert [row["frame"] for row in rows(tmp_path / "f.jsonl")] == [0, 1, 2]

    (tmp_path / "bad.mp4").write_bytes(b"no video")
    assert demo(trained, tmp_path / "bad.mp4", "--out", out) == 1
    assert "bad.mp4: not a video that can be read" in caplog.text
    assert demo(trained, source, "--out", tmp_path / "x.png") == 1
    assert "the input is a video" in caplog.text
    assert sorted(path.name for path in out.iterdir()) == ["clip.avi"]


def test_a_released_model_by_name(trained, photos, tmp_path, monkeypatch, caplog):
    row = SimpleNamespace(task="detection", config=trained.config)
    monkeypatch.setattr(shared, "released_model", lambda name: row)
    real = image_demo.load_checkpoint

    def load_named(model, name, **kwargs):
        assert name == "mask_rcnn_tiny"
        return real(model, str(trained.checkpoint), **kwargs)

    monkeypatch.setattr(image_demo, "load_checkpoint", load_named)
    flags = ["--model", "mask_rcnn_tiny", "--device", "cpu", "--out", str(tmp_path)]
    assert image_demo.main([str(photos / "a.png"), *flags]) == 0
    assert (tmp_path / "a.png").is_file()
    monkeypatch.undo()
    image = str(photos / "a.png")
    assert image_demo.main([image, "--model", "internimage_t_1k_224"]) == 1
    assert "is a classification model" in caplog.text
    assert image_demo.main([image, "--model", "mask_rcnn_internimage_t_fpn_1x_coca"]) == 1
    assert "Did you mean 'mask_rcnn_internimage_t_fpn_1x_coco'" in caplog.text


def test_names_come_from_the_checkpoint_then_the_config(trained, tmp_path, caplog):
    config = image_demo.Config.fromfile(trained.config)
    checkpoint = load_file(trained.checkpoint)
    assert image_demo.class_names(checkpoint, config, 3) == list(runs.CLASSES)
    other = {"meta": {"CLASSES": ["a", "b", "c"]}}
    assert image_demo.class_names(other, config, 3) == ["a", "b", "c"]
    assert image_demo.class_names({}, config, 3) == list(runs.CLASSES)
    assert image_demo.class_names(checkpoint, config, 2) == ["class 0", "class 1"]
    assert "3 class names for 2 classes" in caplog.text


def test_checkpoint_of_another_model(trained, photos, tmp_path, caplog):
    state = load_file(trained.checkpoint)
    state["state_dict"]["roi_head.bbox_head.fc_cls.weight"] = torch.zeros(9, 32)
    torch.save(state, tmp_path / "other.pth")
    args = [str(photos / "a.png"), trained.config, str(tmp_path / "other.pth"), "--device", "cpu"]
    assert image_demo.main(args) == 1
    assert "fc_cls.weight [9, 32] instead of [4, 32]" in caplog.text


def test_palettes(trained, photos, tmp_path):
    pictures = []
    for palette in image_demo.PALETTES:
        out = tmp_path / f"{palette}.png"
        assert demo(trained, photos / "a.png", "--out", out, "--palette", palette) == 0
        pictures.append(out.read_bytes())
    assert len(set(pictures)) == len(image_demo.PALETTES)


def test_input_is_never_overwritten_and_must_exist(trained, photos, tmp_path, caplog):
    before = (photos / "a.png").read_bytes()
    assert demo(trained, photos / "a.png", "--out", photos) == 1
    assert "would be overwritten" in caplog.text
    assert (photos / "a.png").read_bytes() == before
    assert demo(trained, tmp_path / "none.png") == 1
    assert "none.png: no such file, folder or match" in caplog.text
    assert demo(trained, tmp_path) == 1
    assert "no image in this folder" in caplog.text
    assert demo(trained, photos / "a.png", "--device", "gpu") == 1
    assert "--device takes auto, cpu, cuda or cuda:N, got 'gpu'" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png"], "which model?"),
        (["a.png", "config.py"], "which model?"),
        (["a.png", "config.py", "x.pth", "--model", "m"], "leave config.py out"),
        (["a.png", "c.py", "x.pth", "--score-thr", "2"], "between 0 and 1, got 2.0"),
        (["a.png", "c.py", "x.pth", "--async-test"], "never did anything"),
        (["a.png", "c.py", "x.pth", "--palete", "voc"], "did you mean --palette?"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        image_demo.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
