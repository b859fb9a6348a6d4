"""Collects the json files of OpenLane-V2, one per frame, into one pickle per split."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from internimage.write_file import replacing
from tqdm import tqdm

from .collection import FrameKey, check_attributes, frame_text, read_json

logger = logging.getLogger(__name__)

INTERVALS = {"train": 1}  # of the 201 points of a lane; others:
EVALUATION_INTERVAL = 20  # 11 points, as the metrics use them


def collect_all(root: str | Path) -> list[Path]:
    """Collects every split of every `data_dict_*.json` of a folder.

    Returns:
        the files written: `<root>/data_dict_<subset>_<split>.pkl`.

    Raises:
        OSError, ValueError: something is missing or broken; the message names the file.
    """
    root = Path(root)
    names = sorted(root.glob("data_dict_*.json"))
    if not names:
        raise FileNotFoundError(
            f"no data_dict_*.json in {root}: give the folder that OpenLane-V2 was unpacked to"
        )
    written = []
    for name in names:
        data_dict = read_json(name)
        if not isinstance(data_dict, dict):
            raise ValueError(f"{name}: expected {{split: {{segment: [file names]}}}}")
        for split, segments in data_dict.items():
            interval = INTERVALS.get(split, EVALUATION_INTERVAL)
            written.append(collect(root, {split: segments}, f"{name.stem}_{split}", interval))
    return written


def collect(
    root: str | Path,
    data_dict: Mapping[str, Mapping[str, list[str]]],
    collection: str,
    point_interval: int = 1,
) -> Path:
    """Writes the frames of `data_dict` to `<root>/<collection>.pkl`, whole or not at all.

    Args:
        root: folder with `<split>/<segment>/info/<timestamp>.json`.
        data_dict: {split: {segment: ["<timestamp>.json", ...]}}.
        collection: name of the pickle without its ending.
        point_interval: keeps every n-th point of a lane, from the first on.

    Returns:
        the file.

    Raises:
        OSError, ValueError: a json file is missing or broken; the message names it.
    """
    root = Path(root)
    keys = [
        (split, segment, str(name).removesuffix(".json"))
        for split, segments in data_dict.items()
        for segment, names in segments.items()
        for name in names
    ]
    frames: dict[FrameKey, dict[str, Any]] = {}
    for key in tqdm(keys, desc=f"collecting {collection}", leave=False, disable=None):
        split, segment, timestamp = key
        path = root / split / segment / "info" / f"{timestamp}.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} of frame {frame_text(key)} does not exist")
        info = read_json(path)
        try:
            frames[key] = as_arrays(info, point_interval)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path} is no frame of OpenLane-V2: {reason}") from error
    path = root / f"{collection}.pkl"
    with replacing(path) as temporary, temporary.open("wb") as file:
        pickle.dump(frames, file, protocol=4)
    logger.info("%s: %d frames", path, len(frames))
    return path


def as_arrays(info: Mapping[str, Any], point_interval: int = 1) -> dict[str, Any]:
    """A frame as a collection keeps it: numbers that belong together as arrays.

    Args:
        info: what the json file of the frame holds; not changed.
        point_interval: keeps every n-th point of a lane.

    Raises:
        KeyError: a field is missing.
        ValueError: an array has the wrong shape, an attribute is unknown.
    """
    frame = dict(info)
    frame["sensor"] = {
        name: {
            **camera,
            "extrinsic": _numbers(camera["extrinsic"], {"rotation": (3, 3), "translation": (3,)}),
            "intrinsic": _numbers(camera["intrinsic"], {"K": (3, 3)}, ("distortion",)),
        }
        for name, camera in info["sensor"].items()
    }
    frame["pose"] = _numbers(info["pose"], {"rotation": (3, 3), "translation": (3,)})
    if info.get("annotation"):
        frame["annotation"] = _annotation(info["annotation"], point_interval)
    return frame


def _annotation(annotation: Mapping[str, Any], point_interval: int) -> dict[str, Any]:
    lanes, elements = annotation["lane_centerline"], annotation["traffic_element"]
    check_attributes(elements)
    n, k = len(lanes), len(elements)
    return {
        "lane_centerline": [
            {**lane, "points": _shaped(lane["points"], (-1, 3), np.float32)[::point_interval]}
            for lane in lanes
        ],
        "traffic_element": [
            {**element, "points": _shaped(element["points"], (2, 2), np.float32)}
            for element in elements
        ],
        "topology_lclc": _shaped(annotation["topology_lclc"], (n, n), np.int8),
        "topology_lcte": _shaped(annotation["topology_lcte"], (n, k), np.int8),
    }


def _numbers(
    group: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], free: tuple[str, ...] = ()
) -> dict[str, Any]:
    arrays = {name: _shaped(group[name], shape, np.float64) for name, shape in shapes.items()}
    arrays.update({n: np.asarray(group[n], dtype=np.float64) for n in free if n in group})
    return {**group, **arrays}


def _shaped(value: Any, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array of that shape; the empty list of a frame without lanes gets its shape too."""
    array = np.asarray(value, dtype=dtype)
    wanted = tuple(size if size >= 0 else len(array) for size in shape)
    if array.shape != wanted and not (array.size == 0 and 0 in wanted):
        expected = str(shape).replace("-1", "n")
        raise ValueError(f"an array of shape {array.shape}, expected {expected}")
    return array.reshape(wanted)
