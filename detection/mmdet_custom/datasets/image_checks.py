"""Are the images there, and can they be read? Errors name the file."""

from __future__ import annotations

import logging
import os.path as osp
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from mmdet.datasets.pipelines import LoadImageFromFile
from PIL import Image

from .errors import DatasetError, listed

logger = logging.getLogger("mmdet.data")

MOST_OPENED = 20  # of which the header is read
MOST_LOOKUPS = 1000  # files looked up per data set: well under a second on a local disk
_ORIENTATION = 0x0112  # tag of EXIF
_LONGEST_TO_SHORTEST = 500  # beyond it, resizing to 1333 pixels rounds the short side to nothing


def image_path(leaf: Any, index: int) -> str:
    """Path of one image of a data set."""
    name = leaf.data_infos[index]["filename"]
    return osp.join(leaf.img_prefix, name) if leaf.img_prefix else name


def _on_disk(leaf: Any) -> bool:
    """Whether the images are plain files (not on a server or in a database)."""
    steps = getattr(leaf.pipeline, "transforms", [])
    loads = [step for step in steps if isinstance(step, (LoadImageFromFile, NamedLoad))]
    return bool(loads) and loads[0].file_client_args.get("backend", "disk") == "disk"


def check_images(leaf: Any, where: str) -> None:
    """Looks up to 1000 files, spread over the data set, and warns of extreme shapes.

    Raises:
        DatasetError: files are missing; the message has the first path and what to set.
    """
    if not _on_disk(leaf):
        return
    count = len(leaf)
    looked = np.unique(np.linspace(0, count - 1, min(count, MOST_LOOKUPS)).astype(int))
    missing = [path for i in looked if not osp.isfile(path := image_path(leaf, i))]
    if missing:
        raise DatasetError(
            f"{where}: {len(missing)} of {len(looked)} images looked up are missing, first "
            f"{missing[0]}; {_place(leaf, where, missing[0])}"
        )
    _check_sizes(leaf, where, looked[:: -(-len(looked) // MOST_OPENED)])
    thin = [
        info["filename"]
        for info in leaf.data_infos
        if max(info.get("width", 1), info.get("height", 1))
        > _LONGEST_TO_SHORTEST * max(1, min(info.get("width", 1), info.get("height", 1)))
    ]
    if thin:
        logger.warning(
            "%s: %d images are more than %d times longer than wide and may not survive resizing: "
            "%s; take them out of %s",
            *(where, len(thin), _LONGEST_TO_SHORTEST, listed(thin, 3), leaf.ann_file),
        )


def _check_sizes(leaf: Any, where: str, indices: Sequence[int]) -> None:
    """Compares a few images with the sizes that the annotations give them."""
    wrong = []
    for i in indices:
        info, path = leaf.data_infos[i], image_path(leaf, i)
        try:
            with Image.open(path) as image:
                # a picture taken with a turned camera is turned when it is read
                size, turned = image.size, image.getexif().get(_ORIENTATION, 1) > 4
        except (OSError, ValueError, SyntaxError):  # named when it is read
            continue
        if "width" in info and (size[::-1] if turned else size) != (info["width"], info["height"]):
            wrong.append((path, size, info))
    if not wrong:
        return
    path, size, info = wrong[0]
    message = (
        f"{where}: {len(wrong)} of {len(indices)} images opened are not of the size that "
        f"{leaf.ann_file} says, first {path}: {size[0]} x {size[1]} pixels, there "
        f"{info['width']} x {info['height']} (width x height)"
    )
    if 2 * len(wrong) > len(indices):
        raise DatasetError(f"{message}; are boxes and images of the same version?")
    logger.warning("%s", message)


def _place(leaf: Any, where: str, path: str) -> str:
    """What to set so that the images are found."""
    prefix = leaf.img_prefix or ""
    if prefix and not osp.isdir(prefix):
        return (
            f"the folder {osp.abspath(prefix)} does not exist: put the images there or set "
            f"{where}.img_prefix (data_root is {leaf.data_root!r})"
        )
    name = osp.relpath(path, prefix) if prefix else path
    for folder in (prefix, leaf.data_root or "", osp.dirname(prefix.rstrip("/"))):
        for tail in (name, osp.basename(name)):
            if folder and osp.isfile(found := osp.join(folder, tail)):
                return f"there is {found}: file_name in the json and {where}.img_prefix do not fit"
    return (
        f"file_name in {leaf.ann_file} is {name!r} and {where}.img_prefix is {prefix!r}: "
        "add the images or change one of the two"
    )


class NamedLoad:
    """mmdet's LoadImageFromFile with errors that name the file."""

    def __init__(self, load: LoadImageFromFile) -> None:
        self.load = load
        self.file_client_args = load.file_client_args

    def __call__(self, results: dict) -> dict:
        name = results["img_info"]["filename"]
        path = osp.join(results["img_prefix"], name) if results["img_prefix"] else name
        try:
            return self.load(results)
        except FileNotFoundError as error:
            raise DatasetError(f"image {path} is missing") from error
        except (OSError, ValueError, AttributeError, TypeError, cv2.error) as error:
            # the decoder gives None for what it cannot read, and mmdet then asks for its shape
            raise DatasetError(
                f"image {path} cannot be read (corrupt, empty or not an image): replace it or take "
                "it out of the annotations; tools/check_dataset.py CONFIG --images lists all"
            ) from error

    def __repr__(self) -> str:
        return repr(self.load)


def name_broken_images(leaf: Any) -> None:
    """Makes the data set's loading step name the file that it cannot read."""
    steps = getattr(leaf.pipeline, "transforms", [])
    for i, step in enumerate(steps):
        if type(step) is LoadImageFromFile:
            steps[i] = NamedLoad(step)
