"""Bring downloaded data sets into the form that the configs read, and say what is missing.

    python tools/prepare_dataset.py lvis         links to COCO's images; lvis_v1_minival.json
    python tools/prepare_dataset.py openimages   validation-image-metas.pkl
    python tools/prepare_dataset.py objects365   images out of nested folders
    python tools/prepare_dataset.py voc          sizes of the VOC 2012 test images

It can be run again at any time: what is done is left as it is.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from internimage.cli import ArgumentParser, run_program
from internimage.write_file import replacing
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

logger = logging.getLogger("prepare_dataset")

MINIVAL_IMAGES = 4809  # images of LVIS v1 val that are in COCO val2017


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = ArgumentParser("prepare_dataset.py", description="Prepare a downloaded data set")
    add = parser.add_argument
    add("name", choices=sorted(PREPARE), help="which data set")
    add("--data-root", type=Path, default=Path("data"), metavar="DIR", help="default: data")
    return parser.parse_args(argv)


def need(path: Path, advice: str) -> Path:
    """The path, which must exist.

    Raises:
        FileNotFoundError: it does not; the message has the advice.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path.absolute()} does not exist: {advice}")
    return path


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) of an image, from its header."""
    try:
        with Image.open(path) as image:
            return image.size
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image (corrupt or cut off): get it again") from error


def prepare_lvis(root: Path) -> None:
    """Links to the images of COCO, and the minival split.

    Minival, as the detectors that report it use it, is LVIS v1 val restricted to the images of COCO
    val2017; 4809 images. It is written from lvis_v1_val.json.
    """
    lvis, coco = root / "lvis_v1", root / "coco"
    for folder in ("train2017", "val2017"):
        if not (lvis / folder).exists():
            need(coco / folder, "LVIS uses COCO's images: tools/download_dataset.py --unzip")
            lvis.mkdir(parents=True, exist_ok=True)
            (lvis / folder).symlink_to((coco / folder).absolute(), target_is_directory=True)
            logger.info("%s links to %s", lvis / folder, coco / folder)
    notes = lvis / "annotations"
    get = "tools/download_dataset.py --dataset-name lvis --unzip gets it"
    need(notes / "lvis_v1_train.json", get)
    source, target = need(notes / "lvis_v1_val.json", get), notes / "lvis_v1_minival.json"
    if target.is_file():
        logger.info("%s is there", target)
        return
    content = json.loads(source.read_text(encoding="utf-8"))
    content["images"] = [row for row in content["images"] if "/val2017/" in row["coco_url"]]
    kept = {row["id"] for row in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
    with replacing(target) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
    logger.info(
        "%s: %d images, %d boxes", target, len(content["images"]), len(content["annotations"])
    )
    if len(kept) != MINIVAL_IMAGES:
        logger.warning(
            "minival has %d images, published results use %d: is %s the whole file of LVIS v1?",
            *(len(kept), MINIVAL_IMAGES, source),
        )


def prepare_openimages(root: Path) -> None:
    """The sizes of the validation images, which evaluation reads from a pkl file.

    The csv files have boxes in fractions of the image. The order is that of the csv file.
    """
    folder = root / "OpenImages"
    notes = folder / "annotations"
    get = "get it from https://storage.googleapis.com/openimages/web/download_v7.html"
    for name in (
        "oidv6-train-annotations-bbox.csv",
        "class-descriptions-boxable.csv",
        "bbox_labels_600_hierarchy.json",
        "validation-annotations-human-imagelabels-boxable.csv",
    ):
        need(notes / name, get)
    boxes = need(notes / "validation-annotations-bbox.csv", get)
    need(folder / "train", f"put the training images there; {get}")
    images = need(folder / "validation", f"put the validation images there; {get}")
    target = notes / "validation-image-metas.pkl"
    if target.is_file():
        logger.info("%s is there", target)
        return
    names: list[str] = []
    with open(boxes, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if not names or names[-1] != row["ImageID"]:
                names.append(row["ImageID"])
    metas = []
    for name in tqdm(names, desc="image sizes"):
        path = need(images / f"{name}.jpg", f"it is listed in {boxes.name}; {get}")
        width, height = size_of(path)
        metas.append(dict(filename=str(path), ori_shape=(height, width, 3)))
    with replacing(target) as temporary:
        temporary.write_bytes(pickle.dumps(metas))
    logger.info("%s: %d images", target, len(metas))


def prepare_objects365(root: Path) -> None:
    """Archives unpack to PATCH/ or to images/v1/PATCH/; the configs read SPLIT/PATCH/."""
    folder = root / "Objects365" / "Obj365_v2"
    get = "tools/download_dataset.py --dataset-name objects365v2 --unzip gets it"
    for split in ("train", "val"):
        need(folder / split, get)
        moved = 0
        for path in sorted((folder / split).glob("images/v*/patch*")):
            path.rename(folder / split / path.name)
            moved += 1
        name = f"zhiyuan_objv2_{split}.json"
        target = folder / "annotations" / name
        nested = sorted((folder / "annotations").rglob(name))
        if nested and not target.exists():
            nested[0].rename(target)
        need(target, get)
        patches = len(list((folder / split).glob("patch*")))
        expected = {"train": 51, "val": 44}[split]
        logger.info("%s: %d of %d patches, %d moved", folder / split, patches, expected, moved)
        if patches < expected:
            logger.warning("%d patches are missing in %s: %s", expected - patches, split, get)


def prepare_voc(root: Path) -> None:
    """Checks the folders, and writes the sizes of the VOC 2012 test images.

    The annotations of the 2012 test set are not public. mmdet reads an image's size from its xml
    file, so that each test image gets one that has the size and no object.
    """
    folder = root / "VOCdevkit"
    for year, split in ((2007, "trainval"), (2012, "trainval"), (2007, "test")):
        part = folder / f"VOC{year}"
        need(
            part / "ImageSets" / "Main" / f"{split}.txt",
            f"tools/download_dataset.py --dataset-name voc{year} --unzip gets it",
        )
        need(part / "JPEGImages", f"unpack VOC {year} again")
    part = folder / "VOC2012test"
    names = part / "ImageSets" / "Main" / "test.txt"
    if not names.is_file():
        logger.warning(
            "no %s: only needed for VOC 2012 test; get VOC2012test.tar from "
            "http://host.robots.ox.ac.uk:8080/eval/downloads (with an account), and rename its "
            "VOCdevkit/VOC2012 to %s",
            *(names.absolute(), part.absolute()),
        )
        return
    (part / "Annotations").mkdir(exist_ok=True)
    written = 0
    for name in tqdm(names.read_text().split(), desc="image sizes"):
        target = part / "Annotations" / f"{name}.xml"
        if target.is_file():
            continue
        image = need(part / "JPEGImages" / f"{name}.jpg", f"it is listed in {names}")
        write_size(target, size_of(image))
        written += 1
    logger.info("%s: %d xml files written", part / "Annotations", written)


def write_size(path: Path, size: tuple[int, int]) -> None:
    """A VOC annotation without objects."""
    root = ElementTree.Element("annotation")
    element = ElementTree.SubElement(root, "size")
    for key, value in zip(("width", "height", "depth"), (*size, 3)):
        ElementTree.SubElement(element, key).text = str(value)
    with replacing(path) as temporary:
        ElementTree.ElementTree(root).write(os.fspath(temporary))


PREPARE: dict[str, Any] = {
    "lvis": prepare_lvis,
    "objects365": prepare_objects365,
    "openimages": prepare_openimages,
    "voc": prepare_voc,
}


def run(args: argparse.Namespace) -> int:
    """Prepares one data set."""
    PREPARE[args.name](args.data_root)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(run, parse_args()))
