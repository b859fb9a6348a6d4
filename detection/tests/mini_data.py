"""Writers of miniature data sets in the layout that the real ones have on disk."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 96, 64
BOXES = [(8, 8, 40, 40), (50, 10, 30, 44)]  # x, y, width, height in every image


def tool(name: str) -> ModuleType:
    """A program of detection/tools as a module."""
    folder = str(Path(__file__).resolve().parents[1] / "tools")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def picture(path: Path, width: int = WIDTH, height: int = HEIGHT) -> Path:
    """A noisy jpeg."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
    return path


def outline(box: Sequence[float]) -> list[list[float]]:
    """A box as a polygon."""
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def coco_json(
    names: Sequence[str],
    files: Sequence[str],
    labels: Sequence[int] = (0, 1),
    **extra: Any,
) -> dict[str, Any]:
    """A json of COCO's format: in each image the boxes `BOXES` with the given labels."""
    images = [
        dict(id=i, file_name=name, width=WIDTH, height=HEIGHT) for i, name in enumerate(files, 1)
    ]
    annotations = [
        dict(
            id=0,
            image_id=image["id"],
            category_id=label + 1,
            bbox=list(box),
            area=box[2] * box[3],
            iscrowd=0,
            segmentation=outline(box),
        )
        for image in images
        for box, label in zip(BOXES, labels)
    ]
    for i, row in enumerate(annotations, 1):
        row["id"] = i
    categories = [dict(id=i, name=name) for i, name in enumerate(names, 1)]
    return dict(info={}, images=images, annotations=annotations, categories=categories, **extra)


def write_json(path: Path, content: Any) -> Path:
    """Writes a json file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_coco(root: Path, names: Sequence[str], count: int = 2) -> None:
    """data/coco with train2017 and val2017."""
    for split in ("train2017", "val2017"):
        files = [f"{i:012d}.jpg" for i in range(1, count + 1)]
        for name in files:
            picture(root / "coco" / split / name)
        content = coco_json(names, files)
        write_json(root / "coco" / "annotations" / f"instances_{split}.json", content)


def write_lvis(root: Path, names: Sequence[str]) -> None:
    """data/lvis_v1; of its two val images one is in COCO's val2017, the other in train2017."""
    for split, folders in (
        ("train", ["train2017", "train2017"]),
        ("val", ["val2017", "train2017"]),
    ):
        files = [f"{folder}/{i:012d}.jpg" for i, folder in enumerate(folders, 1)]
        for name in files:
            picture(root / "lvis_v1" / name)
        content = coco_json(names, files)
        for row in content["images"]:
            row["coco_url"] = "http://images.cocodataset.org/" + row.pop("file_name")
            row.update(neg_category_ids=[3], not_exhaustive_category_ids=[])
        for row in content["categories"]:
            row.update(frequency="rcf"[row["id"] % 3], image_count=2)
        write_json(root / "lvis_v1" / "annotations" / f"lvis_v1_{split}.json", content)


def write_voc(folder: Path, split: str, with_objects: bool = True) -> None:
    """One year of data/VOCdevkit."""
    names = [f"{split}{i}" for i in range(2)]
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    (folder / "Annotations").mkdir(exist_ok=True)
    for name in names:
        picture(folder / "JPEGImages" / f"{name}.jpg")
        objects = "".join(
            f"<object><name>{kind}</name><difficult>0</difficult><bndbox><xmin>{x}</xmin>"
            f"<ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for kind, (x, y, w, h) in zip(("dog", "person"), BOXES)
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        if with_objects:
            (folder / "Annotations" / f"{name}.xml").write_text(
                f"<annotation>{size}{objects}</annotation>"
            )


def write_openimages(root: Path, classes: int = 601) -> None:
    """data/OpenImages with the csv files; class 2 is a part of class 1 in the hierarchy."""
    folder = root / "OpenImages"
    notes = folder / "annotations"
    notes.mkdir(parents=True)
    labels = [f"/m/{i:04d}" for i in range(classes)]
    (notes / "class-descriptions-boxable.csv").write_text(
        "".join(f"{label},Class {i}\n" for i, label in enumerate(labels))
    )
    parts = [dict(LabelName=label) for label in labels]
    parts[1]["Subcategory"] = [parts.pop(2)]
    write_json(notes / "bbox_labels_600_hierarchy.json", dict(LabelName="/m/0", Subcategory=parts))
    head = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,"
        "IsGroupOf,IsDepiction,IsInside"
    )
    for split, name in (
        ("train", "oidv6-train-annotations-bbox.csv"),
        ("validation", "validation-annotations-bbox.csv"),
    ):
        lines = [head]
        for image in range(2):
            picture(folder / split / f"{split}{image}.jpg")
            for label, (x, y, w, h) in zip((labels[0], labels[2]), BOXES):
                sides = f"{x / WIDTH},{(x + w) / WIDTH},{y / HEIGHT},{(y + h) / HEIGHT}"
                lines.append(f"{split}{image},xclick,{label},1,{sides},0,0,0,0,0")
        (notes / name).write_text("\n".join(lines) + "\n")
    (notes / "validation-annotations-human-imagelabels-boxable.csv").write_text(
        f"ImageID,Source,LabelName,Confidence\nvalidation0,verification,{labels[0]},1\n"
    )


def write_crowd_human(root: Path) -> None:
    """data/CrowdHuman with the published odgt files."""
    folder = root / "CrowdHuman"
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        lines = []
        for image in range(2):
            name = f"273271,{split}{image}"
            picture(folder / "Images" / f"{name}.jpg")
            boxes = [dict(tag="person", fbox=list(box), extra={}) for box in BOXES]
            boxes.append(dict(tag="mask", fbox=[0, 50, 20, 10], extra=dict(ignore=1)))
            lines.append(json.dumps(dict(ID=name, gtboxes=boxes)))
        (folder / "annotations" / f"annotation_{split}.odgt").write_text("\n".join(lines) + "\n")
