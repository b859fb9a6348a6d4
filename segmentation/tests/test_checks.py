"""The checks that training and testing start with: every fault is named with file and remedy."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from internimage.cli import run_program
from mmcv import Config
from mmseg_custom.datasets.checks import DatasetError, build_data, check_data
from mmseg_custom.datasets.masks import MaskRules, check_pair, read_mask
from PIL import Image
from torch._utils import ExceptionWrapper

FOLDER = Path(__file__).resolve().parents[1]
CLASSES = ("sky", "road", "car")
PIPELINE = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="DefaultFormatBundle"),
    dict(type="Collect", keys=["img", "gt_semantic_seg"], meta_keys=["filename"]),
]


@pytest.fixture
def folder(tmp_path):
    """Four images and masks with labels 0, 1, 2 and 255."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for i in range(4):
        picture = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "images" / f"{i}.jpg")
        labels = rng.choice(np.array([0, 1, 2, 255], dtype=np.uint8), (12, 16))
        Image.fromarray(labels).save(tmp_path / "masks" / f"{i}.png")
    return tmp_path


def config(folder, num_classes=3, **settings):
    part = dict(
        type="CustomDataset",
        data_root=str(folder),
        img_dir="images",
        ann_dir="masks",
        classes=CLASSES,
        pipeline=PIPELINE,
    )
    part.update(settings)
    head = dict(type="FCNHead", num_classes=num_classes)
    return Config(dict(model=dict(decode_head=head), data=dict(train=part)))


def build(cfg):
    return build_data(cfg, cfg.data.train)


def refused(cfg, *words):
    with pytest.raises(DatasetError) as caught:
        build(cfg)
    for word in words:
        assert str(word) in str(caught.value)


def write_mask(folder, labels, name="2.png"):
    Image.fromarray(labels).save(folder / "masks" / name)


def test_a_good_folder_passes(folder):
    data = build(config(folder))
    assert len(data) == 4
    assert data[0]["gt_semantic_seg"].data.shape == (1, 12, 16)


def test_class_count_of_a_head(folder):
    refused(config(folder, 150), "model.decode_head.num_classes=150", "3 classes", "sky")


def test_class_count_of_a_list_of_heads(folder):
    cfg = config(folder)
    cfg.model.auxiliary_head = [dict(num_classes=3), dict(num_classes=5)]
    refused(cfg, "model.auxiliary_head[1].num_classes=5")


def test_class_count_of_a_built_model(folder):
    cfg = config(folder)
    data = build(cfg)
    model = torch.nn.Module()
    model.decode_head = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    model.decode_head[1].num_classes = 4
    with pytest.raises(DatasetError, match=r"model\.decode_head\[1\]\.num_classes=4"):
        check_data(cfg, data, model)
    model.decode_head[1].num_classes = 3
    check_data(cfg, data, model)


def test_class_weights_as_long_as_the_head(folder):
    cfg = config(folder)
    cfg.model.decode_head.loss_cls = dict(class_weight=[1.0] * 150 + [0.1])
    refused(cfg, "loss_cls.class_weight has 151", "needs 4")
    cfg.model.decode_head.loss_cls = dict(class_weight=[1.0] * 3 + [0.1])
    build(cfg)


def test_a_kept_released_head_is_allowed(folder):
    cfg = config(folder, 150)
    cfg.released_head = dict(num_classes=150, mode="keep")
    build(cfg)


def test_empty_split(folder):
    (folder / "none.txt").write_text("")
    refused(config(folder, split="none.txt"), "data.train", "none.txt", "empty")
    refused(config(folder, img_suffix=".tif"), "'.tif'", "files like", "img_suffix")


def test_missing_folder_says_how_to_set_data_root(folder):
    cfg = config(folder, data_root="/nowhere")
    refused(cfg, "/nowhere/images", "data.train.data_root")
    refused(config(folder, ann_dir="labels"), "labels", "does not exist")


def test_unknown_type_names_the_nearest(folder):
    refused(config(folder, type="CustomDatset"), "did you mean 'CustomDataset'")


def test_missing_mask_is_named(folder):
    (folder / "masks" / "1.png").unlink()
    refused(config(folder), "1 of 4 masks", folder / "masks" / "1.png", "seg_map_suffix")


def test_missing_masks_name_their_converter(folder):
    part = dict(type="CityscapesDataset", classes=None, img_suffix=".jpg")
    refused(config(folder, 19, **part), "4 of 4 masks", "_labelTrainIds.png", "cityscapes.py")
    part.update(data_root="/nowhere")
    refused(config(folder, 19, **part), "tools/convert_datasets/cityscapes.py")


def test_mask_of_another_size(folder):
    write_mask(folder, np.zeros((16, 12), np.uint8))
    refused(config(folder), "2.png is 12 x 16", "2.jpg is 16 x 12")


def test_exif_rotation_is_named(folder):
    picture = Image.fromarray(np.zeros((16, 12, 3), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(folder / "images" / "2.jpg", exif=exif)
    build(config(folder))  # stored 12 x 16, shown 16 x 12 like its mask
    write_mask(folder, np.zeros((16, 12), np.uint8))
    refused(config(folder), "EXIF")


def test_colour_mask(folder):
    write_mask(folder, np.zeros((12, 16, 3), np.uint8))
    refused(config(folder), "2.png", "colour picture (mode RGB)", "(12, 16, 3)")


@pytest.mark.parametrize("size", [(16, 1), (1, 12), (1, 1)])
def test_pictures_one_pixel_high_or_wide(folder, size):
    """mmseg squeezes their masks to one axis or none."""
    box = (0, 0, *size)
    for path in (folder / "images" / "2.jpg", folder / "masks" / "2.png"):
        Image.open(path).crop(box).save(path)
    labels = np.array(Image.open(folder / "masks" / "2.png"))
    data = build(config(folder))
    assert np.array_equal(data[2]["gt_semantic_seg"].data[0], labels)
    assert np.array_equal(data.get_gt_seg_map_by_idx(2), labels)
    write_mask(folder, np.zeros((*size[::-1], 3), np.uint8))
    refused(config(folder), "2.png", "colour picture (mode RGB)")


def test_palette_masks_give_indices_and_cv2_gives_colours(folder):
    mask = Image.fromarray(np.full((12, 16), 2, np.uint8)).convert("P")
    mask.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    mask.save(folder / "masks" / "2.png")
    labels, mode = read_mask(str(folder / "masks" / "2.png"))
    assert mode == "P"
    assert labels.tolist() == np.full((12, 16), 2).tolist()
    data = build(config(folder))
    assert set(data[2]["gt_semantic_seg"].data.flatten().tolist()) == {2}
    pipeline = [dict(step) for step in PIPELINE]
    pipeline[1]["imdecode_backend"] = "cv2"
    refused(config(folder, pipeline=pipeline), "palette PNG", "pillow")
    mask.convert("L").save(folder / "masks" / "2.png")  # brightness of green, 75
    refused(config(folder), "2.png holds label 75", "0..2")


def test_labels_out_of_range(folder):
    labels = np.zeros((12, 16), np.uint8)
    labels[0, :3] = 7, 7, 9
    write_mask(folder, labels)
    refused(config(folder), "2.png", "labels 7, 9", "3 of 192 pixels", "0..2, and 255", "False")
    write_mask(folder, np.full((12, 16), 3, np.uint8))
    refused(config(folder), "count from 1", "reduce_zero_label=True")


def test_labels_with_reduce_zero_label(folder):
    pipeline = [dict(step) for step in PIPELINE]
    pipeline[1]["reduce_zero_label"] = True
    write_mask(folder, np.full((12, 16), 3, np.uint8))
    cfg = config(folder, pipeline=pipeline, reduce_zero_label=True)
    data = build(cfg)
    assert set(data[2]["gt_semantic_seg"].data.flatten().tolist()) == {2}
    refused(config(folder, pipeline=pipeline), "LoadAnnotations has reduce_zero_label=True")
    write_mask(folder, np.full((12, 16), 4, np.uint8))
    refused(cfg, "label 4", "1..3, and 0 and 255")


def test_sixteen_bit_masks(folder):
    write_mask(folder, np.full((12, 16), 300, np.uint16))
    refused(config(folder), "label 300", "16 bits")


def test_corrupt_image_and_mask_name_the_file(folder):
    data = build(config(folder))
    (folder / "images" / "3.jpg").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"3\.jpg cannot be read"):
        data[3]
    (folder / "masks" / "1.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"1\.png cannot be read"):
        data[1]
    (folder / "masks" / "0.png").unlink()
    with pytest.raises(DatasetError, match=r"0\.png is missing"):
        data[0]


def test_faults_outside_the_sample_are_named_while_loading(folder):
    data = build(config(folder))
    write_mask(folder, np.full((12, 16), 40, np.uint8))
    with pytest.raises(DatasetError, match=r"2\.png holds label 40"):
        data[2]
    with pytest.raises(DatasetError, match=r"2\.png"):
        data.get_gt_seg_map_by_idx(2)  # the evaluation's way


def test_binary_masks_with_255_are_warned_of(folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("mmseg"), "propagate", True)
    for i in range(4):
        labels = np.zeros((12, 16), np.uint8)
        labels[2:5] = 255
        write_mask(folder, labels, f"{i}.png")
    build(config(folder))
    assert "save the object as 1" in caplog.text


def test_left_out_pictures_are_warned_of(folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("mmseg"), "propagate", True)
    Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(folder / "images" / "5.png")
    build(config(folder))
    assert "left out: 5.png" in caplog.text


def test_ignored_labels_differ(folder):
    cfg = config(folder, ignore_index=0)
    refused(cfg, "model.decode_head ignores label 255", "data.train ignores 0")
    cfg.model.decode_head.ignore_index = 0
    build(cfg)


def test_an_error_in_a_worker_process_is_one_sentence(folder):
    data = build(config(folder))
    (folder / "images" / "3.jpg").write_bytes(b"no picture")
    try:
        data[3]
    except DatasetError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")  # as a worker sends it
    with pytest.raises(DatasetError) as caught:
        wrapped.reraise()
    assert str(caught.value).startswith(f"image {folder}/images/3.jpg cannot be read")
    assert "Traceback" not in str(caught.value)


def test_several_cityscapes_folders_train_together(folder):
    part = dict(img_suffix=".jpg", seg_map_suffix=".png", type="CityscapesDataset", classes=None)
    lists = dict(img_dir=["images", "images"], ann_dir=["masks", "masks"])
    cfg = config(folder, 19, **part, **lists)
    data = build(cfg)
    assert len(data) == 8
    assert len(data.CLASSES) == 19
    (folder / "masks" / "1.png").unlink()
    with pytest.raises(DatasetError, match=r"1\.png"):
        check_data(cfg, data)


def test_rules_in_words():
    assert MaskRules(19).allowed().startswith("0..18")
    assert MaskRules(150, True).highest == 150


def test_check_pair_needs_both_files(folder):
    with pytest.raises(DatasetError, match="is missing"):
        check_pair(str(folder / "images" / "9.jpg"), str(folder / "masks" / "1.png"), MaskRules(3))


def check_dataset(folder, *args, **settings):
    """Runs tools/check_dataset.py on the folder; its exit code."""
    path = folder / "config.py"
    path.write_text(config(folder, **settings).pretty_text)
    sys.path.insert(0, str(FOLDER / "tools"))
    try:
        program = importlib.import_module("check_dataset")
    finally:
        sys.path.pop(0)
    options = ["--splits", "train", "--workers", "1"]
    return run_program(program.run, program.parse_args([str(path), *options, *args]))


def test_check_dataset_lists_all_faults(folder, capsys):
    write_mask(folder, np.full((12, 16), 40, np.uint8))
    (folder / "masks" / "0.png").unlink()
    assert check_dataset(folder, "--all") == 1
    printed = capsys.readouterr().out
    assert "2.png holds label 40" in printed
    assert "0.png is missing" in printed
    assert "4 masks, 2 with faults" in printed
    assert "sky 2, road 2, car 2" in printed


def test_check_dataset_fails_with_one_line(folder, caplog):
    assert check_dataset(folder, num_classes=7) == 1
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.message.endswith("classes to the names the model is for")
