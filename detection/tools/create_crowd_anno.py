"""Turn CrowdHuman's odgt files into the json that CrowdHumanDataset reads.

    python tools/create_crowd_anno.py --dataset CrowdHuman --dataset-split train
    python tools/create_crowd_anno.py --dataset CrowdHuman --dataset-split val

Reads data/CrowdHuman/annotations/annotation_SPLIT.odgt and the sizes of the images in
data/CrowdHuman/Images; writes annotation_SPLIT.json beside the odgt file. Boxes are those of the
full body (fbox). What is not a person, or marked to be ignored, gets iscrowd=1.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from internimage.cli import ArgumentParser, run_program
from internimage.write_file import replacing
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

logger = logging.getLogger("create_crowd_anno")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = ArgumentParser(
        "create_crowd_anno.py", description="CrowdHuman's odgt files as COCO json"
    )
    add = parser.add_argument
    add("--dataset", default="CrowdHuman", help="folder of the data set in --data-root")
    add("--dataset-split", required=True, metavar="SPLIT", help="train or val")
    add("--data-root", type=Path, default=Path("data"), metavar="DIR", help="default: data")
    return parser.parse_args(argv)


def read_odgt(path: Path) -> Iterator[dict[str, Any]]:
    """The images of an odgt file, one json object per line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a json object with ID and gtboxes.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.absolute()} does not exist: download the annotations and images from "
            "https://www.crowdhuman.org and put them there, or set --data-root"
        )
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            row["ID"], row["gtboxes"]
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path} line {number} is not an image of CrowdHuman ({error!r}); the file may "
                "have been cut off while copying: get it again"
            ) from error
        yield row


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image, from its header."""
    if not path.is_file():
        raise FileNotFoundError(
            f"image {path.absolute()} does not exist: unpack all CrowdHuman_*.zip files so that "
            f"the images are in {path.parent}"
        )
    try:
        with Image.open(path) as image:
            return image.size
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image (corrupt or cut off): get it again") from error


def is_ignored(box: dict[str, Any]) -> bool:
    """Whether an annotated box is a region to ignore instead of a person to find."""
    return box.get("tag") != "person" or bool(box.get("extra", {}).get("ignore", 0))


def convert(odgt: Path, images: Path) -> dict[str, Any]:
    """The content of the json file.

    Args:
        odgt: the annotations.
        images: folder of the images, ID.jpg.
    """
    rows: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    empty = 0
    for number, row in enumerate(tqdm(list(read_odgt(odgt)), desc=odgt.name), 1):
        name = f"{row['ID']}.jpg"
        width, height = image_size(images / name)
        rows.append(dict(id=number, file_name=name, width=width, height=height))
        for box in row["gtboxes"]:
            x, y, w, h = box["fbox"]
            if w <= 0 or h <= 0:
                empty += 1
                continue
            boxes.append(
                dict(
                    id=len(boxes) + 1,
                    image_id=number,
                    category_id=1,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=int(is_ignored(box)),
                )
            )
    if empty:
        logger.warning("%d boxes without width or height left out", empty)
    return dict(
        info=dict(description=f"CrowdHuman, {odgt.name}, full-body boxes"),
        licenses=[],
        images=rows,
        annotations=boxes,
        categories=[dict(id=1, name="person")],
    )


def run(args: argparse.Namespace) -> int:
    """Converts one split."""
    folder = args.data_root / args.dataset
    odgt = folder / "annotations" / f"annotation_{args.dataset_split}.odgt"
    content = convert(odgt, folder / "Images")
    path = odgt.with_suffix(".json")
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
    crowds = sum(row["iscrowd"] for row in content["annotations"])
    people = len(content["annotations"]) - crowds
    logger.info(
        "%s: %d images, %d people, %d regions to ignore",
        *(path, len(content["images"]), people, crowds),
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_program(run, parse_args()))
