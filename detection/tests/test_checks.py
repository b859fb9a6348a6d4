"""Broken annotations: each is refused with a sentence that helps, or handled with a warning."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mini_data
import numpy as np
import pytest
from made_data import CONFIG, Made
from mmcv import Config
from mmdet.datasets import Objects365V2Dataset, build_dataset
from mmdet_custom.datasets.checks import DatasetError, build_data, check_data
from mmdet_custom.datasets.splits import split_of
from torch import nn

OBJECTS365 = Objects365V2Dataset.CLASSES
Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def test_a_sound_data_set(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    assert len(made.build()) == len(made.build("val")) == 3
    assert not [record for record in caplog.records if record.name == "mmdet.data"]


# class names, heads, categories


def test_forgotten_classes(made: Made) -> None:
    """The most frequent mistake: own data with the 80 names of COCO."""
    with pytest.raises(DatasetError) as error:
        made.build(classes=None)
    message = str(error.value)
    assert "data.train: 77 of its 80 classes are not categories of" in message
    assert "the json has 3 categories (cat, dog, horse)" in message
    assert "set data.train.classes=('cat', 'dog', 'horse')" in message
    assert "num_classes=3" in message


def test_number_of_classes(made: Made) -> None:
    cfg = made.cfg()
    cfg.model.roi_head.mask_head.num_classes = 80
    with pytest.raises(DatasetError) as error:
        build_data(cfg, cfg.data.train)
    message = str(error.value)
    assert "model.roi_head.mask_head.num_classes=80" in message
    assert "bbox_head" not in message
    assert "data.train has 3 classes (cat, dog, horse); set num_classes=3" in message


def test_number_of_classes_of_cascade_and_dino(made: Made) -> None:
    cfg = made.cfg()
    cfg.model = Config.fromfile(str(CONFIG.with_name("cascade_internimage_l_fpn_1x_coco.py"))).model
    with pytest.raises(DatasetError, match=r"roi_head.bbox_head\[2\].num_classes=80"):
        build_data(cfg, cfg.data.train)
    name = "dino_4scale_internimage_t_1x_coco_layer_wise_lr.py"
    cfg.model = Config.fromfile(str(CONFIG.with_name(name))).model
    with pytest.raises(DatasetError, match=r"model.bbox_head.num_classes=80"):
        build_data(cfg, cfg.data.train)


def test_number_of_classes_of_a_built_model(made: Made) -> None:
    model = nn.Module()
    model.bbox_head = nn.Linear(1, 1)
    model.bbox_head.num_classes = 4
    model.backbone = nn.Linear(1, 1)
    model.backbone.num_classes = 1000
    cfg = made.cfg()
    dataset = build_dataset(cfg.data.train)
    with pytest.raises(DatasetError, match=r"model.bbox_head.num_classes=4, but data.train has 3"):
        check_data(cfg, dataset, model)


def test_misspelt_class(made: Made) -> None:
    with pytest.raises(DatasetError, match=r"own.json: hors, did you mean 'horse'\?"):
        made.build("val", classes=("cat", "dog", "hors"))


def test_classes_in_another_order(made: Made) -> None:
    """mmdet numbers classes as the json does, so that the names would be wrong in every picture."""
    with pytest.raises(DatasetError, match=r"label 0 is 'cat' there, 'dog' in data.train.classes"):
        made.build(classes=("dog", "cat", "horse"))


def test_some_of_the_categories(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    """Training on a part of the classes is fine and said."""
    cfg = made.cfg(classes=("cat", "horse"))
    cfg.model.roi_head.bbox_head.num_classes = cfg.model.roi_head.mask_head.num_classes = 2
    assert len(build_data(cfg, cfg.data.train)) == 3
    assert "1 categories of" in caplog.text
    assert "left out: dog" in caplog.text


def test_one_class_without_comma(made: Made) -> None:
    with pytest.raises(DatasetError, match=r"write classes=\('cat',\), with the comma"):
        made.build(classes="cat")


def test_class_named_twice(made: Made) -> None:
    with pytest.raises(DatasetError, match="class names that occur twice: cat"):
        made.build(classes=("cat", "cat", "dog"))


def test_category_named_twice(made: Made) -> None:
    made.content["categories"].append(dict(id=4, name="cat"))
    with pytest.raises(DatasetError, match="category names that occur twice: cat"):
        made.build()


# the json


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), r"not a COCO json: it has no 'images', only annotations"),
        (lambda c: c.pop("categories"), r"it has no 'categories'"),
        (lambda c: c["images"][1].pop("width"), r"images\[1\] has no width"),
        (
            lambda c: c["images"][1].update(width=0),
            r"images\[1\] has the width 0, which must",
        ),
        (lambda c: c["annotations"][2].pop("image_id"), r"annotations\[2\] has no image_id"),
        (lambda c: c["annotations"][2].update(id=1), r"1 ids of annotations occur more than once"),
        (lambda c: c.update(images={}), r"'images' must be a list, it is a dict"),
        (lambda c: c["images"].append(None), r"images\[3\] is not an object"),
        (lambda c: c["images"][1].update(file_name=5), r"images\[1\] has the file_name 5"),
        (lambda c: c["images"][1].update(height=1e9), r"images\[1\] has the height 1000000000.0"),
        (lambda c: c["categories"][0].update(id=[1]), r"categories\[0\] has the id \[1\]"),
        (lambda c: c["categories"][0].update(name=None), r"categories\[0\] has the name None"),
        (lambda c: c["annotations"][0].update(area="x"), r"annotations\[0\] has the area 'x'"),
        (lambda c: c["annotations"][0].update(iscrowd=[1]), r"annotations\[0\] has iscrowd \[1\]"),
        (lambda c: c["images"][0].update(id="a"), "ids of images are of different types: int, str"),
        (lambda c: c["annotations"][0].pop("bbox"), r"annotations\[0\] has no bbox"),
    ],
)
def test_not_a_coco_json(made: Made, change: Change, message: str) -> None:
    change(made.content)
    with pytest.raises(DatasetError, match=message):
        made.build()


def test_truncated_json(made: Made) -> None:
    cfg = made.cfg()
    text = made.json.read_text()
    made.json.write_text(text[: len(text) // 2])
    with pytest.raises(DatasetError, match=r"own.json is not a whole json file: .* get it again"):
        build_data(cfg, cfg.data.train)


def test_json_that_is_a_list(made: Made) -> None:
    made.content = []
    with pytest.raises(DatasetError, match="is a list, not a COCO json"):
        made.build()


def test_missing_json(made: Made) -> None:
    cfg = made.cfg()
    made.json.unlink()
    with pytest.raises(DatasetError, match=r"data.val: annotation file .*own.json does not exist"):
        build_data(cfg, cfg.data.val, dict(test_mode=True))


def test_unknown_type(made: Made) -> None:
    with pytest.raises(DatasetError, match=r"'CocoDatset', did you mean 'CocoDataset'\?"):
        made.build(type="CocoDatset")


def test_unknown_step(made: Made) -> None:
    with pytest.raises(DatasetError, match=r"unknown step 'Resise' .*, did you mean 'Resize'\?"):
        made.build(pipeline=[dict(type="LoadImageFromFile"), dict(type="Resise")])


def test_json_without_info(made: Made) -> None:
    """pycocotools 2.0.10 fails on it when it evaluates."""
    made.content.pop("info")
    dataset = made.build("val")
    empty = [np.zeros((0, 5), dtype=np.float32)] * 2
    boxes = np.array([[8, 8, 48, 48, 0.9]], dtype=np.float32)
    assert dataset.evaluate([[boxes, *empty]] * 3, metric="bbox")["bbox_mAP"] == 0.5


# annotations


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda row: row.update(category_id=7),
            r"1 of 6 annotations have the category_id of none of the 3 categories, "
            r"first: annotation 3 with category_id 7 \(ids are 1, 2, 3\)",
        ),
        (lambda row: row.update(image_id=9), r"1 of 6 annotations have the image_id of none .* 9"),
        (lambda row: row.update(bbox=[math.nan, 0, 5, 5]), r"1 boxes are not four finite numbers"),
        (lambda row: row.update(bbox=[1, 2, 3]), r"annotation 3 of image 2 with bbox \[1, 2, 3\]"),
        (lambda row: row.update(bbox=["a", 2, 3, 4]), r"1 boxes are not four finite numbers"),
    ],
)
def test_broken_annotations(made: Made, change: Change, message: str) -> None:
    change(made.content["annotations"][2])
    with pytest.raises(DatasetError, match=message):
        made.build()


@pytest.mark.parametrize("box", [[], [1, 2, 3, 4, 5, 6, 7, 8]])
def test_no_box_is_four_numbers(made: Made, box: list[int]) -> None:
    for row in made.content["annotations"]:
        row["bbox"] = box
    with pytest.raises(DatasetError, match="6 boxes are not four finite numbers"):
        made.build()


def test_the_split_that_was_built_is_named(made: Made) -> None:
    """val and test are often the same data; who runs test.py must change data.test."""
    cfg = made.cfg()
    cfg.data.test = copy.deepcopy(cfg.data.val)
    for split in ("val", "test"):
        assert split_of(cfg, cfg.data[split]) == split
    cfg.data.test.img_prefix = cfg.data.val.img_prefix = "nowhere"
    with pytest.raises(DatasetError, match="set data.test.img_prefix"):
        build_data(cfg, cfg.data.test, {"test_mode": True})


def test_boxes_without_masks(made: Made) -> None:
    """Mask R-CNN on a json of boxes; the way out that the message names works."""
    for row in made.content["annotations"]:
        row.pop("segmentation")
    with pytest.raises(DatasetError, match="'segmentation' of 6 of 6 annotations is no mask"):
        made.build()
    assert len(made.build("val")) == 3
    pipeline = made.cfg().data.train.pipeline
    pipeline[1].with_mask = False
    pipeline[-1]["keys"].remove("gt_masks")
    assert "gt_masks" not in made.build(pipeline=pipeline)[0]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([], "there is no mask"),
        ([[1, 2, 30, 40]], "polygons must have at least three points"),
        ([[1, 2, 30, 40, 5, math.nan]], "polygons must have finite numbers"),
        ([[1, 2, 30, 40, 5, "x"]], "polygons must have numbers only"),
        (dict(size=[96, 64], counts=[6144]), r"size \[96, 64\], the image is \[64, 96\]"),
        (dict(size=[64, 96], counts=[6143]), "must add up to height"),
        (dict(size=[64, 96]), "the run-length code has no counts"),
    ],
)
def test_broken_masks(made: Made, mask: Any, message: str) -> None:
    made.content["annotations"][4]["segmentation"] = mask
    with pytest.raises(DatasetError, match=rf"1 of 6 .* annotation 5, .*{message}"):
        made.build()


@pytest.mark.parametrize(
    ("box", "message", "left"),
    [
        ([10, 10, 0, 20], "1 of 6 boxes are narrower than a pixel or of negative size", 1),
        ([10, 10, -5, 20], "1 of 6 boxes are narrower than a pixel or of negative size", 1),
        ([200, 10, 20, 20], "1 of 6 boxes lie outside their image", 1),
        ([80, 40, 40, 40], "1 of 6 boxes reach over the border", 2),
    ],
)
def test_odd_boxes(
    made: Made, caplog: pytest.LogCaptureFixture, box: list[int], message: str, left: int
) -> None:
    made.content["annotations"][0]["bbox"] = box
    sample = made.build()[0]
    assert message in caplog.text
    boxes = sample["gt_bboxes"].data
    assert len(boxes) == left
    assert (boxes[:, 2:] <= 96).all() and (boxes[:, :2] >= 0).all()


def test_json_without_area_and_iscrowd(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    """Many programs write neither; pycocotools and mmdet read both."""
    for row in made.content["annotations"]:
        del row["area"], row["iscrowd"]
    assert len(made.build()[0]["gt_bboxes"].data) == 2
    assert "6 annotations of" in caplog.text and "have no area" in caplog.text
    empty = [np.zeros((0, 5), dtype=np.float32)] * 2
    boxes = np.array([[8, 8, 48, 48, 0.9]], dtype=np.float32)
    found = made.build("val").evaluate([[boxes, *empty]] * 3, metric="bbox")
    assert found["bbox_mAP"] == found["bbox_mAP_m"] == 0.5


def test_crowds_are_to_be_ignored(made: Made) -> None:
    made.content["annotations"][0].update(iscrowd=1)
    info = made.build().get_ann_info(0)
    assert (len(info["bboxes"]), len(info["bboxes_ignore"])) == (1, 1)


def test_no_box_to_train_on(made: Made) -> None:
    for row in made.content["annotations"]:
        row["iscrowd"] = 1
    with pytest.raises(DatasetError, match="none of its 6 boxes can be trained on .* 6 crowds"):
        made.build()


def test_published_names_may_differ_a_little(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    """mmdet spells some classes of Objects365 differently, which is not the user's fault."""
    names = [name.upper() if i == 7 else name for i, name in enumerate(OBJECTS365)]
    made.content["categories"] = [dict(id=i, name=name) for i, name in enumerate(names, 1)]
    cfg = made.cfg(type="Objects365V2Dataset", classes=None, test_mode=True)
    for row in made.content["images"]:
        mini_data.picture(made.folder / "images" / "images" / row["file_name"])
    for row in made.content["images"]:
        row["file_name"] = "images/" + row["file_name"]
    mini_data.write_json(made.json, made.content)
    cfg.model.roi_head.bbox_head.num_classes = cfg.model.roi_head.mask_head.num_classes = 365
    assert len(build_data(cfg, cfg.data.train)) == 3
    assert f"1 of the 365 classes are spelt differently in {made.json}" in caplog.text
