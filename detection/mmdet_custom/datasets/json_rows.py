"""Are the rows of a COCO-format json what they should be? Keys and types.

pycocotools and mmdet answer some of these faults with an obscure error, or a crash of the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .errors import listed

_LARGEST_SIDE = 100_000  # pixels


def json_fault(content: Any) -> str | None:
    """The first fault of a json's content as a sentence, or None; a second for all of COCO.

    Args:
        content: what the file holds.
    """
    if not isinstance(content, dict):
        return f"it is a {type(content).__name__}, not a COCO json (an object with images, ...)"
    for table, check in _CHECKS.items():
        rows = content.get(table)
        if table not in content:
            if table == "annotations":  # the test images of a challenge have none
                continue
            return f"it is not a COCO json: it has no {table!r}, only {listed(sorted(content))}"
        if not isinstance(rows, list):
            return f"{table!r} must be a list, it is a {type(rows).__name__}"
        for i, row in enumerate(rows):
            fault = check(row) if isinstance(row, dict) else "is not an object"
            if fault:
                return f"{table}[{i}] {fault} (it is {str(row)[:120]})"
        kinds = {type(row["id"]).__name__ for row in rows}
        if len(kinds) > 1:
            return f"the ids of {table} are of different types: {listed(sorted(kinds))}"
        ids = {row["id"] for row in rows}
        if len(ids) != len(rows):
            return f"{len(rows) - len(ids)} ids of {table} occur more than once"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def is_box(value: Any) -> bool:
    """Whether a value is [x, y, width, height] in finite numbers."""
    return isinstance(value, (list, tuple)) and len(value) == 4 and all(map(_is_number, value))


def _lacks(row: dict, *keys: str) -> str | None:
    lost = [key for key in keys if key not in row]
    return f"has no {listed(lost)}" if lost else None


def _id_fault(row: dict, *keys: str) -> str | None:
    for key in keys:
        if not isinstance(row[key], (int, str)):
            return f"has the {key} {row[key]!r}, which must be a whole number"
    return None


def _image_fault(row: dict) -> str | None:
    name = "coco_url" if "coco_url" in row and "file_name" not in row else "file_name"  # LVIS
    fault = _lacks(row, "id", name, "width", "height") or _id_fault(row, "id")
    if fault:
        return fault
    if not isinstance(row[name], str) or not row[name]:
        return f"has the {name} {row[name]!r}, which must be the name of a file"
    for side in ("width", "height"):
        if not isinstance(row[side], int) or not 0 < row[side] <= _LARGEST_SIDE:
            return f"has the {side} {row[side]!r}, which must be a whole number above 0, of pixels"
    return None


def _category_fault(row: dict) -> str | None:
    fault = _lacks(row, "id", "name") or _id_fault(row, "id")
    if not fault and not isinstance(row["name"], str):
        return f"has the name {row['name']!r}, which must be a text"
    if not fault and not isinstance(row["id"], int):
        return f"has the id {row['id']!r}, which must be a whole number"
    return fault


def _annotation_fault(row: dict) -> str | None:
    get = row.get
    if (  # the usual case: data sets have millions of annotations
        type(get("id")) is int
        and type(get("image_id")) is int
        and type(get("category_id")) is int
        and "bbox" in row
        and type(get("area", 0)) in (int, float)
        and get("area", 0) - get("area", 0) == 0  # finite
        and get("iscrowd", 0) in (0, 1)
    ):
        return None
    keys = ("id", "image_id", "category_id")
    fault = _lacks(row, *keys, "bbox") or _id_fault(row, *keys)
    if fault:
        return fault
    if "area" in row and not _is_number(row["area"]):
        return f"has the area {row['area']!r}, which must be a number"
    if row.get("iscrowd", 0) not in (0, 1):
        return f"has iscrowd {row['iscrowd']!r}, which must be 0 or 1"
    return None


_CHECKS: dict[str, Callable[[dict], str | None]] = {
    "images": _image_fault,
    "annotations": _annotation_fault,
    "categories": _category_fault,
}


def mask_fault(segmentation: Any, height: int, width: int) -> str | None:
    """What keeps a `segmentation` from being a mask, or None; an empty one is a fault.

    Args:
        segmentation: polygons [[x, y, x, y, x, y, ...], ...] or a run-length code.
        height: of the image.
        width: of the image.
    """
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                return "polygons must have at least three points, [x, y, x, y, x, y, ...]"
            try:
                if not math.isfinite(sum(polygon)):
                    return "polygons must have finite numbers"
            except TypeError:
                return "polygons must have numbers only"
        return None
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            return (
                f"the run-length code has the size {segmentation.get('size')}, the image is "
                f"[{height}, {width}] (height, width)"
            )
        counts = segmentation.get("counts")
        if isinstance(counts, list):
            sound = all(isinstance(n, int) and n >= 0 for n in counts)
            if not sound or sum(counts) != height * width:
                return "the counts of the run-length code must add up to height * width"
        elif not isinstance(counts, str) or not counts:
            return "the run-length code has no counts"
        return None
    return "there is no mask"
