"""Checks of a json in COCO's format: categories against class names, ids, boxes."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from .errors import DatasetError, listed, nearest
from .json_rows import is_box, json_fault, mask_fault

logger = logging.getLogger("mmdet.data")


def check_coco(leaf: Any, where: str, heads: list[tuple[str, int]]) -> None:
    """Checks a built CocoDataset (or LVIS, CrowdHuman).

    Args:
        leaf: the data set.
        where: its place in the config, for messages: `data.train`.
        heads: (place, value) of the model's class counts.

    Raises:
        DatasetError: class names that the json does not have or has in another order, annotations
            that point to images or categories that do not exist, boxes that are not numbers.
    """
    content = leaf.coco.dataset
    fault = json_fault(content)
    if fault:
        raise DatasetError(f"{leaf.ann_file}: {fault}")
    for key in ("info", "licenses"):  # pycocotools 2.0.10 needs info to load results
        content.setdefault(key, {} if key == "info" else [])
    _check_categories(leaf, where, heads)
    annotations = content.get("annotations", [])
    _fill_in(leaf, where, annotations)
    _check_ids(leaf, where, annotations)
    _check_boxes(leaf, where, annotations)
    _check_masks(leaf, where, annotations)


def _fill_in(leaf: Any, where: str, annotations: list[dict]) -> None:
    """`iscrowd` and `area`, which mmdet and pycocotools read and many programs do not write."""
    lost = 0
    for row in annotations:
        row.setdefault("iscrowd", 0)
        if "area" not in row and is_box(row["bbox"]):
            row["area"] = row["bbox"][2] * row["bbox"][3]
            lost += 1
    if lost:
        logger.warning(
            "%s: %d annotations of %s have no area; that of the box is used",
            *(where, lost, leaf.ann_file),
        )


def _check_categories(leaf: Any, where: str, heads: list[tuple[str, int]]) -> None:
    classes = list(leaf.CLASSES)
    names = [category["name"] for category in leaf.coco.dataset.get("categories", [])]
    if "LVIS" in type(leaf).__name__:
        names = _lvis_names(leaf, names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DatasetError(f"{leaf.ann_file}: category names that occur twice: {listed(twice)}")
    unknown = [name for name in classes if name not in names]
    if unknown and _is_published(leaf) and len(unknown) < len(classes) // 10:
        logger.warning(
            "%s: %d of the %d classes are spelt differently in %s: %s",
            *(where, len(unknown), len(classes), leaf.ann_file, listed(unknown)),
        )
        return
    if unknown:
        counts = ", ".join(f"{place}={value}" for place, value in heads[:1])
        model = f"; the model has {counts}" if counts else ""
        raise DatasetError(
            f"{where}: {len(unknown)} of its {len(classes)} classes are not categories of "
            f"{leaf.ann_file}: {listed(unknown, 5)}{nearest(unknown[0], names)}; the json has "
            f"{len(names)} categories ({listed(names)}){model}; set "
            f"{where}.classes={_as_tuple(names)} (in all three splits) and "
            f"num_classes={len(names)} in the heads"
        )
    in_json = [name for name in names if name in set(classes)]
    if in_json != classes and not _is_published(leaf):
        first = next(i for i, name in enumerate(classes) if in_json[i] != name)
        raise DatasetError(
            f"{where}: the classes are in another order than in {leaf.ann_file}, and mmdet numbers "
            f"them as the json does: label {first} is {in_json[first]!r} there, "
            f"{classes[first]!r} in {where}.classes; set {where}.classes={_as_tuple(in_json)}"
        )
    unused = [name for name in names if name not in set(classes)]
    if unused:
        logger.warning(
            "%s: %d categories of %s are not among the %d classes and are left out: %s",
            *(where, len(unused), leaf.ann_file, len(classes), listed(unused)),
        )


def _is_published(leaf: Any) -> bool:
    """Whether the class names are mmdet's own for a data set other than COCO's default."""
    return leaf.CLASSES is type(leaf).CLASSES and type(leaf).__name__.startswith("Objects365")


def _lvis_names(leaf: Any, names: list[str]) -> list[str]:
    """mmdet numbers LVIS by id and spells some names differently: only the count must fit."""
    if len(leaf.cat_ids) == len(leaf.CLASSES):
        return list(leaf.CLASSES)
    return names


def _as_tuple(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return f"({shown}{', ...' if len(names) > 8 else ',' if len(names) == 1 else ''})"


def _check_ids(leaf: Any, where: str, annotations: list[dict]) -> None:
    """Annotations must belong to images and categories of the json."""
    content = leaf.coco.dataset
    for key, table in (("image_id", "images"), ("category_id", "categories")):
        known = {row["id"] for row in content.get(table, [])}
        lost = [row for row in annotations if row.get(key) not in known]
        if lost:
            raise DatasetError(
                f"{leaf.ann_file}: {len(lost)} of {len(annotations)} annotations have the {key} of "
                f"none of the {len(known)} {table}, first: annotation "
                f"{lost[0].get('id')} with {key} {lost[0].get(key)!r} (ids are "
                f"{listed(sorted(known, key=str), 5)}); correct the json ({where})"
            )


def _check_boxes(leaf: Any, where: str, annotations: list[dict]) -> None:
    """Counts what mmdet leaves out or cuts off; boxes that are not four numbers are an error."""
    if not annotations:
        if leaf.test_mode:
            logger.warning(
                "%s: %s has no annotations: there is nothing to evaluate against",
                *(where, leaf.ann_file),
            )
        return
    try:
        boxes = np.array([row["bbox"] for row in annotations], dtype=np.float64).reshape(-1, 4)
        broken = ~np.isfinite(boxes).all(1)
    except (ValueError, TypeError):
        boxes = np.zeros((0, 4))
    if len(boxes) != len(annotations):
        broken = np.array([not is_box(row["bbox"]) for row in annotations])
    if broken.any():
        row = annotations[int(np.argmax(broken))]
        raise DatasetError(
            f"{leaf.ann_file}: {int(broken.sum())} boxes are not four finite numbers, first: "
            f"annotation {row.get('id')} of image {row.get('image_id')} with bbox {row['bbox']}; "
            "take them out of the json or correct them"
        )
    sizes = {row["id"]: (row["width"], row["height"]) for row in leaf.coco.dataset["images"]}
    size = np.array([sizes[row["image_id"]] for row in annotations], dtype=np.float64)
    low, extent = boxes[:, :2], boxes[:, 2:]
    high = low + extent
    tiny = (extent < 1).any(1)
    inside = (np.minimum(high, size) - np.maximum(low, 0)).clip(0).prod(1)
    outside = ~tiny & (inside == 0)
    over = ~tiny & ~outside & ((low < -1).any(1) | (high > size + 1).any(1))
    crowd = np.array([bool(row.get("iscrowd", 0)) for row in annotations])
    for found, what in (
        (tiny, "boxes are narrower than a pixel or of negative size; mmdet leaves them out"),
        (outside, "boxes lie outside their image; mmdet leaves them out"),
        (over, "boxes reach over the border of their image; they are used as they are"),
    ):
        if found.any():
            row = annotations[int(np.argmax(found))]
            logger.warning(
                "%s: %d of %d %s (first: annotation %s, bbox %s)",
                *(where, found.sum(), len(boxes), what, row.get("id"), row["bbox"]),
            )
    usable = ~tiny & ~outside & ~crowd
    if not leaf.test_mode and not usable.any():
        raise DatasetError(
            f"{leaf.ann_file}: none of its {len(boxes)} boxes can be trained on ({tiny.sum()} of "
            f"no size, {outside.sum()} outside their image, {crowd.sum()} crowds)"
        )


def _check_masks(leaf: Any, where: str, annotations: list[dict]) -> None:
    """Where the pipeline loads masks, every annotation that is trained on must have one."""
    steps = getattr(leaf.pipeline, "transforms", [])
    if not any(getattr(step, "with_mask", False) for step in steps):
        return
    sizes = {row["id"]: (row["height"], row["width"]) for row in leaf.coco.dataset["images"]}
    wrong = [
        (row, fault)
        for row in annotations
        if row["category_id"] in leaf.cat2label
        and (fault := mask_fault(row.get("segmentation"), *sizes[row["image_id"]]))
    ]
    if wrong:
        row, fault = wrong[0]
        raise DatasetError(
            f"{leaf.ann_file}: the 'segmentation' of {len(wrong)} of {len(annotations)} "
            f"annotations is no mask, first: annotation {row['id']}, {fault}; {where} loads masks: "
            "correct them, or train on boxes only: set roi_head.mask_head and mask_roi_extractor "
            "to None, take with_mask=True and 'gt_masks' out of the pipeline and 'segm' out of the "
            "evaluation"
        )
