"""Broken images and empty data sets, wrappers around data sets, and the program for all of it."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mini_data
import pytest
from made_data import CONFIG, NAMES, Made
from mmdet_custom.datasets.checks import DatasetError, build_data
from PIL import Image
from torch._utils import ExceptionWrapper


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


# what is left


def test_no_image_is_left(made: Made) -> None:
    made.content["annotations"].clear()
    with pytest.raises(DatasetError, match="Of its 3 images 0 are so small; it has 0 annotations"):
        made.build()


def test_all_images_are_too_small(made: Made) -> None:
    for row in made.content["images"]:
        row.update(width=16, height=16)
    with pytest.raises(DatasetError, match="Of its 3 images 3 are so small; it has 6"):
        made.build()


def test_empty_validation_data(made: Made) -> None:
    made.content["images"].clear()
    made.content["annotations"].clear()
    with pytest.raises(DatasetError, match="no image is left of .*: it lists none"):
        made.build("val")


def test_validation_data_without_annotations(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    """The test images of a challenge: results can be written, not evaluated."""
    made.content["annotations"].clear()
    assert len(made.build("test")) == 3
    assert "has no annotations: there is nothing to evaluate against" in caplog.text


def test_images_without_annotations(made: Made) -> None:
    made.content["annotations"] = made.content["annotations"][:2]
    assert len(made.build()) == 1
    dataset = made.build(filter_empty_gt=False)
    assert len(dataset) == 3
    assert dataset[1]["gt_bboxes"].data.shape == (0, 4)


# images


def test_missing_images(made: Made) -> None:
    (made.folder / "images" / "1.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 of 3 images looked up are missing, first .*/1.jpg"):
        made.build()


def test_wrong_folder(made: Made) -> None:
    with pytest.raises(DatasetError, match=r"the folder .*/pictures does not exist: .*img_prefix"):
        made.build("test", img_prefix=str(made.folder / "pictures"))


def test_folder_named_twice(made: Made) -> None:
    """The json says images/0.jpg and img_prefix is .../images."""
    for row in made.content["images"]:
        row["file_name"] = "images/" + row["file_name"]
    with pytest.raises(DatasetError, match=r"there is .*/0.jpg: file_name in the json and"):
        made.build()


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "cut off"])
def test_image_that_cannot_be_read(made: Made, content: bytes | None) -> None:
    path = made.folder / "images" / "0.jpg"
    path.write_bytes(path.read_bytes()[:30] if content is None else content)
    dataset = made.build()
    with pytest.raises(DatasetError) as error:
        dataset[0]
    assert str(error.value).startswith(f"image {path} cannot be read (corrupt, empty")


def test_an_error_out_of_a_worker_process_is_one_sentence() -> None:
    """The loader sends it as text with a traceback, and raises it anew."""
    try:
        raise DatasetError("image a.jpg is missing")
    except DatasetError:
        sent = ExceptionWrapper(sys.exc_info(), where="in DataLoader worker process 0")
    assert "Traceback" in sent.exc_msg
    with pytest.raises(DatasetError, match=r"^image a.jpg is missing$"):
        sent.reraise()


def test_image_that_vanishes(made: Made) -> None:
    dataset = made.build("val")
    (made.folder / "images" / "2.jpg").unlink()
    with pytest.raises(DatasetError, match=r"image .*/2.jpg is missing"):
        dataset[2]


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_images_of_one_pixel(made: Made, size: tuple[int, int]) -> None:
    """Tested on as all others; for training mmdet leaves out what is below 32 pixels."""
    width, height = size
    mini_data.picture(made.folder / "images" / "0.jpg", width, height)
    made.content["images"][0].update(width=width, height=height)
    made.content["annotations"] = made.content["annotations"][2:]
    assert min(made.build("test")[0]["img"][0].shape) >= 3
    assert len(made.build(filter_empty_gt=False)) == 2


def test_very_thin_images(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    made.content["images"][0].update(width=5000, height=2)
    made.build("test")
    assert "1 images are more than 500 times longer than wide" in caplog.text


def test_sizes_that_the_json_has_wrong(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    """One is told; when most are wrong, boxes and images do not belong together."""
    mini_data.picture(made.folder / "images" / "0.jpg", 48, 32)
    made.build()
    assert "1 of 3 images opened are not of the size" in caplog.text
    assert "0.jpg: 48 x 32 pixels, there 96 x 64 (width x height)" in caplog.text
    mini_data.picture(made.folder / "images" / "1.jpg", 48, 32)
    with pytest.raises(DatasetError, match="are boxes and images of the same version"):
        made.build()


def test_turned_photo(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    """Its pixels are stored lying; it is read upright, as the json has it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(made.folder / "images" / "0.jpg") as image:
        lying = image.transpose(Image.Transpose.ROTATE_90)
    lying.save(made.folder / "images" / "0.jpg", exif=exif)
    assert made.build()[0]["img"].data.shape[2] == 96
    assert "not of the size" not in caplog.text


def test_only_some_files_are_looked_up(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """First and last are always among them."""
    import mmdet_custom.datasets.image_checks as module

    monkeypatch.setattr(module, "MOST_LOOKUPS", 2)
    (made.folder / "images" / "1.jpg").unlink()
    made.build()
    (made.folder / "images" / "2.jpg").unlink()
    with pytest.raises(DatasetError, match="1 of 2 images looked up are missing"):
        made.build()


# wrappers


@pytest.mark.parametrize(
    "wrap",
    [
        lambda data: dict(type="RepeatDataset", times=2, dataset=data),
        lambda data: dict(type="ClassBalancedDataset", oversample_thr=0.1, dataset=data),
        lambda data: dict(type="ConcatDataset", datasets=[data, data]),
        lambda data: [data, data],
        lambda data: dict(type="MultiImageMixDataset", dataset=data, pipeline=[]),
    ],
    ids=["repeat", "balanced", "concat", "list", "mix"],
)
def test_wrappers(made: Made, wrap: Callable[[Any], Any]) -> None:
    cfg = made.cfg()
    sound = copy.deepcopy(cfg)
    sound.data.train = wrap(cfg.data.train.to_dict())
    assert len(build_data(sound, sound.data.train)) >= 3
    broken = copy.deepcopy(cfg)
    settings = cfg.data.train.to_dict()
    settings["classes"] = ("cat", "dog", "hors")
    broken.data.train = wrap(settings)
    with pytest.raises(DatasetError, match=r"data.train.*did you mean 'horse'"):
        build_data(broken, broken.data.train)


def test_concatenated_by_ann_file(made: Made) -> None:
    """Two files in one setting; the second one is broken."""
    made.cfg()
    other = copy.deepcopy(made.content)
    other["annotations"][0]["category_id"] = 9
    path = mini_data.write_json(made.folder / "other.json", other)
    with pytest.raises(DatasetError, match=r"other.json: 1 of 6 annotations have the category_id"):
        made.build(ann_file=[str(made.json), str(path)])


# the program


def write_config(made: Made) -> str:
    """A config file for the data, as in docs/detection.md."""
    made.cfg()
    data = f'classes={NAMES}, ann_file="{made.json}", img_prefix="{made.folder / "images"}"'
    splits = ", ".join(f"{split}=dict({data})" for split in ("train", "val", "test"))
    path = made.folder / "own.py"
    path.write_text(
        f'_base_ = "{CONFIG}"\n'
        "model = dict(roi_head=dict(\n"
        "    bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3)))\n"
        f"data = dict({splits})\n"
    )
    return str(path)


def check_dataset(*args: str) -> int:
    module = mini_data.tool("check_dataset")
    return module.run_program(module.run, module.parse_args(args))


def test_check_dataset(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert check_dataset(write_config(made), "--images") == 0
    assert "own.json, 3 images, 3 classes" in caplog.text
    assert "nothing wrong found" in caplog.text


def test_check_dataset_finds_every_broken_image(
    made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    path = made.folder / "images" / "0.jpg"
    path.write_bytes(path.read_bytes()[:-20])
    (made.folder / "images" / "1.jpg").write_bytes(b"")
    mini_data.picture(made.folder / "images" / "2.jpg", 50, 50)
    assert check_dataset(write_config(made), "--images", "--splits", "train") == 1
    for message in (
        "0.jpg: not an image, corrupt or cut off",
        "1.jpg: not an image, corrupt or cut off",
        "2.jpg: is 50 x 50 pixels, the annotations say 96 x 64",
        "3 faults found",
    ):
        assert message in caplog.text


def test_check_dataset_goes_on_after_a_fault(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    changed = ["data.train.ann_file=no.json", "data.val.img_prefix=nowhere"]
    assert check_dataset(write_config(made), "--cfg-options", *changed) == 1
    assert "no.json does not exist" in caplog.text
    assert "nowhere does not exist" in caplog.text
    assert "2 faults found" in caplog.text
