"""The data sets that mmseg does not have, and the folders the configs expect."""

from __future__ import annotations

import mmseg_custom  # noqa: F401
import numpy as np
import pytest
from mmseg.datasets import DATASETS, CustomDataset
from mmseg_custom.datasets.checks import build_data, class_meta, label_classes
from mmseg_custom.datasets.mapillary import MapillaryDataset
from mmseg_custom.datasets.nyu_depth_v2 import NYUDepthV2Dataset, voc_colours
from mmseg_custom.datasets.transforms import MAPILLARY_TO_CITYSCAPES, MapillaryHack
from PIL import Image


@pytest.mark.parametrize(("kind", "count"), [(MapillaryDataset, 66), (NYUDepthV2Dataset, 40)])
def test_classes_and_colours(kind, count):
    assert len(kind.CLASSES) == len(set(kind.CLASSES)) == count
    assert np.array(kind.PALETTE).shape == (count, 3)
    assert len({tuple(colour) for colour in kind.PALETTE}) == count
    assert DATASETS.get(kind.__name__) is kind


def test_voc_colours():
    assert voc_colours(4) == [[128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert voc_colours(15)[-1] == [192, 128, 128]  # VOC's person


def test_mapillarys_names_fit_the_table():
    """Equal names on both sides show that the ids are those of version 1.2."""
    cityscapes = MapillaryHack.CLASSES
    assert len(set(MAPILLARY_TO_CITYSCAPES.values())) == 19
    same = {
        target
        for source, target in MAPILLARY_TO_CITYSCAPES.items()
        if MapillaryDataset.CLASSES[source].lower() == cityscapes[target]
    }
    others = {cityscapes[target] for target in range(19)} - {cityscapes[target] for target in same}
    assert others == {"rider", "train", "traffic sign"}


def write(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(labels, np.uint8)).save(path)


LOAD = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="MapillaryHack"),
    dict(type="DefaultFormatBundle"),
    dict(type="Collect", keys=["img", "gt_semantic_seg"], meta_keys=["filename"]),
]


@pytest.fixture
def mapillary(tmp_path):
    rows = [[13, 24, 0, 65], [19, 58, 255, 255]]
    for split in ("training", "validation"):
        write(tmp_path / split / "images" / "a.jpg", np.zeros((2, 4, 3)))
        write(tmp_path / split / "labels" / "a.png", rows)
    return dict(
        type="MapillaryDataset",
        data_root=str(tmp_path),
        img_dir=["training/images", "validation/images"],
        ann_dir=["training/labels", "validation/labels"],
        pipeline=LOAD,
    )


def test_mapillary_trains_on_19_classes_and_keeps_what_is_ignored(mapillary):
    data = build_data({"model": {"decode_head": {"num_classes": 19}}}, mapillary)
    assert len(data) == 2
    assert label_classes(data.datasets[0])[0] == "road"
    assert len(class_meta(data)["CLASSES"]) == len(class_meta(data)["PALETTE"]) == 19
    assert data[1]["gt_semantic_seg"].data.tolist() == [[[0, 0, 255, 255], [11, 16, 255, 255]]]


def test_mapillary_with_its_own_66_classes(mapillary):
    del mapillary["pipeline"][2:3]
    mapillary["pipeline"] = [step for step in LOAD if step["type"] != "MapillaryHack"]
    data = build_data({"model": {"decode_head": {"num_classes": 66}}}, mapillary)
    labels = data[0]["gt_semantic_seg"].data
    assert labels.tolist() == [[[13, 24, 0, 65], [19, 58, 255, 255]]]


def test_nyu_labels_count_from_one(tmp_path):
    write(tmp_path / "image" / "0001.png", np.zeros((2, 4, 3)))
    write(tmp_path / "label40" / "0001.png", [[0, 1, 2, 40], [3, 3, 255, 39]])
    (tmp_path / "train.txt").write_text("0001\n")
    steps = [step for step in LOAD if step["type"] != "MapillaryHack"]
    steps[1] = dict(type="LoadAnnotations", reduce_zero_label=True)
    settings = dict(
        type="NYUDepthV2Dataset",
        data_root=str(tmp_path),
        img_dir="image",
        ann_dir="label40",
        split="train.txt",
        pipeline=steps,
    )
    data = build_data({"model": {"decode_head": {"num_classes": 40}}}, settings)
    assert data[0]["gt_semantic_seg"].data.tolist() == [[[255, 0, 1, 39], [2, 2, 255, 38]]]


def test_evaluation_counts_nyu_classes_right(tmp_path):
    write(tmp_path / "image" / "a.png", np.zeros((2, 4, 3)))
    write(tmp_path / "label40" / "a.png", [[0, 1, 2, 40], [3, 3, 255, 39]])
    (tmp_path / "test.txt").write_text("a\n")
    data = NYUDepthV2Dataset(
        data_root=str(tmp_path), img_dir="image", ann_dir="label40", split="test.txt", pipeline=[]
    )
    assert isinstance(data, CustomDataset)
    right = np.array([[7, 0, 1, 39], [2, 2, 7, 38]])
    result = data.evaluate(data.pre_eval(right, 0), metric="mIoU")
    assert result["mIoU"] == 1.0
    assert result["IoU.wall"] == 1.0


def test_predictions_are_written_in_the_numbering_of_the_masks(tmp_path):
    write(tmp_path / "image" / "sub" / "a.png", np.zeros((2, 4, 3)))
    (tmp_path / "test.txt").write_text("sub/a\n")
    options = dict(data_root=str(tmp_path), img_dir="image", pipeline=[])
    data = NYUDepthV2Dataset(split="test.txt", **options)
    result = np.array([[0, 39], [1, 2]])
    (path,) = data.format_results([result], str(tmp_path / "out"), indices=[0])
    assert path == str(tmp_path / "out" / "sub" / "a.png")
    assert np.array(Image.open(path)).tolist() == [[1, 40], [2, 3]]
    data = MapillaryDataset(img_suffix=".png", **options)
    data.format_results([result], str(tmp_path / "out"))
    assert np.array(Image.open(path)).tolist() == result.tolist()
