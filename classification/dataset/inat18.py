"""iNaturalist 2018: images, labels, and where and when each picture was taken.

Files in the root: ``{train,val}2018.json`` (images, annotations, categories), optionally
``{train,val}2018_locations.json`` (id, lat, lon, date) and the images at their ``file_name``.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .samples import Classes, PackedStrings, Samples

_MONTH = re.compile(r"^\d{4}-(\d{1,2})")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist; the iNaturalist 2018 files are listed at "
            "https://github.com/visipedia/inat_comp/tree/master/2018"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error


def temporal_features(date: str | None) -> list[float]:
    """(sin, cos, 0, 0) of the month on a yearly circle; zeros when the date is missing."""
    match = _MONTH.match(str(date))  # pandas writes missing dates as NaN
    if not match or not 1 <= int(match[1]) <= 12:
        return [0.0, 0.0, 0.0, 0.0]
    angle = 2 * math.pi * int(match[1]) / 12
    return [math.sin(angle), math.cos(angle), 0.0, 0.0]


def spatial_features(lat: float | None, lon: float | None) -> list[float]:
    """The unit vector (x, y, z) of latitude and longitude in degrees; zeros when one is missing.

    JSON written by pandas has NaN for a missing number.
    """
    if lat is None or lon is None or not (math.isfinite(lat) and math.isfinite(lon)):
        return [0.0, 0.0, 0.0]
    phi, lam = math.radians(lat), math.radians(lon)
    return [math.cos(phi) * math.cos(lam), math.cos(phi) * math.sin(lam), math.sin(phi)]


def _classes(content: dict, path: Path) -> tuple[Classes, dict[int, int]]:
    categories = content.get("categories")
    if not categories:
        raise DataError(f"{path} has no 'categories'")
    names = [str(category.get("name", category["id"])) for category in categories]
    return Classes(len(names), names), {c["id"]: i for i, c in enumerate(categories)}


def inat18_classes(root: Path) -> Classes:
    """Classes in category order, from the validation file (the small one)."""
    val, train = root / "val2018.json", root / "train2018.json"
    path = val if val.is_file() or not train.is_file() else train
    return _classes(_read_json(path), path)[0]


def inat18_samples(root: Path, split: str, classes: Classes, with_metadata: bool) -> Samples:
    """One split; images, annotations and locations are matched by id.

    Args:
        root: folder of the JSON files.
        split: 'train' or 'val'.
        classes: classes of the data set; the file must have the same ones.
        with_metadata: read the locations too.

    Raises:
        DataError: missing or malformed file, image without annotation, other categories.
    """
    path = root / f"{split}2018.json"
    content = _read_json(path)
    own, label_of = _classes(content, path)
    if own.names != classes.names:
        other = sorted(set(own.names) ^ set(classes.names))
        raise DataError(
            f"the categories of train2018.json and val2018.json in {root} differ: "
            f"{', '.join(other[:5]) or 'their order'}"
        )
    category_of = {a["image_id"]: a["category_id"] for a in content.get("annotations", ())}
    images = content.get("images", ())
    if not images:
        raise DataError(f"{path} lists no images")
    without = [image["id"] for image in images if image["id"] not in category_of]
    if without:
        raise DataError(f"{path}: {len(without)} images have no annotation, e.g. id {without[0]}")
    unknown = {category_of[i["id"]] for i in images} - set(label_of)
    if unknown:
        raise DataError(f"{path}: annotations with unknown category ids {sorted(unknown)[:5]}")
    labels = np.array([label_of[category_of[i["id"]]] for i in images], dtype=np.int64)
    paths = PackedStrings([str(root / image["file_name"]) for image in images])
    metadata = None
    if with_metadata:
        found = _read_json(root / f"{split}2018_locations.json")
        location_of = {location["id"]: location for location in found}
        metadata = np.array([_metadata(location_of.get(i["id"], {})) for i in images], np.float32)
    return Samples(paths, labels, metadata)


def _metadata(location: dict) -> list[float]:
    position = spatial_features(location.get("lat"), location.get("lon"))
    return temporal_features(location.get("date")) + position
