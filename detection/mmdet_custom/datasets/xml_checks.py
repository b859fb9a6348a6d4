"""Checks of annotations that are not json: VOC's xml files, OpenImages' side files."""

from __future__ import annotations

import logging
import os.path as osp
from collections import Counter
from typing import Any
from xml.etree import ElementTree

import numpy as np
from mmdet.datasets import OpenImagesDataset

from .errors import DatasetError, listed, nearest

logger = logging.getLogger("mmdet.data")

MOST_FILES = 1000  # xml files that are read per data set


def check_xml(leaf: Any, where: str) -> None:
    """Reads up to 1000 xml files of a VOC-style data set, spread over it.

    Raises:
        DatasetError: a box without four numbers or without area, which mmdet would train on.
    """
    count = len(leaf)
    looked = np.unique(np.linspace(0, count - 1, min(count, MOST_FILES)).astype(int))
    others: Counter[str] = Counter()
    for i in looked:
        name = f"{leaf.data_infos[i]['id']}.xml"
        path = osp.join(leaf.img_prefix, leaf.ann_subdir, name)
        for item in ElementTree.parse(path).getroot().findall("object"):
            kind = item.findtext("name", "")
            if kind not in leaf.CLASSES:
                others[kind] += 1
                continue
            sides = [item.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
            try:
                x1, y1, x2, y2 = (int(float(side)) for side in sides)
            except (TypeError, ValueError, OverflowError) as error:
                raise DatasetError(
                    f"{path}: the bndbox of a {kind} must have numbers as xmin, ymin, xmax, ymax, "
                    f"it has {sides}; correct the file ({where})"
                ) from error
            if x2 <= x1 or y2 <= y1:
                raise DatasetError(
                    f"{path}: the bndbox {sides} of a {kind} has no area; correct or remove it "
                    f"({where})"
                )
    if others:
        kind = others.most_common(1)[0][0]
        logger.warning(
            "%s: %d objects of other classes are left out: %s%s",
            *(where, sum(others.values()), listed(others), nearest(kind, leaf.CLASSES)),
        )


def check_openimages(leaf: OpenImagesDataset, where: str) -> None:
    """The files that mmdet opens only after all test images were computed.

    Raises:
        DatasetError: one of them is missing.
    """
    if not leaf.test_mode:
        return
    needed = []
    if leaf.get_metas and leaf.load_from_file:
        needed.append(("meta_file", leaf.meta_file))
    if leaf.load_image_level_labels:
        needed.append(("image_level_ann_file", leaf.image_level_ann_file))
    for key, path in needed:
        if not osp.isfile(path):
            raise DatasetError(
                f"{where}.{key} {osp.abspath(path)} does not exist, and evaluation needs it: "
                "tools/prepare_dataset.py openimages writes the sizes (meta_file) and says where "
                "to get the rest"
            )
