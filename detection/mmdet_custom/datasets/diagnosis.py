"""Why mmdet could not build a data set, in words: read only after it failed."""

from __future__ import annotations

import json
import os.path as osp
import re
import traceback
from typing import Any
from xml.etree import ElementTree

from mmdet.datasets import DATASETS, PIPELINES, CocoDataset, XMLDataset

from .errors import DatasetError, nearest
from .json_rows import json_fault
from .splits import annotation_files, leaf_configs, split_of


def diagnose(cfg: Any, data: Any, error: Exception) -> str:
    """The sentence for an error of `build_dataset`.

    Args:
        cfg: the config of the run, to name the split.
        data: the settings that were built.
        error: what `build_dataset` raised.
    """
    split = split_of(cfg, data) or "..."
    for where, settings in leaf_configs(data, f"data.{split}"):
        kind = settings.get("type")
        if kind is not None and DATASETS.get(kind) is None:
            known = sorted(DATASETS.module_dict)
            return f"{where}: unknown data set type {kind!r}{nearest(kind, known)}"
        for key in ("label_file", "hierarchy_file", "proposal_file"):
            path = settings.get(key)
            if path and not osp.isfile(osp.join(settings.get("data_root") or "", path)):
                return f"{where}.{key} {osp.abspath(path)} does not exist; put it there or set it"
        if isinstance(settings.get("classes"), str) and not osp.isfile(settings["classes"]):
            name = settings["classes"]
            return (
                f"{where}: classes={name!r} is read as the name of a file with one class per line, "
                f"which does not exist; for one class write classes=({name!r},), with the comma"
            )
        prefixes = settings.get("img_prefix") or ""
        paths = annotation_files(settings)
        if isinstance(prefixes, str):
            prefixes = [prefixes] * len(paths)
        for path, prefix in zip(paths, prefixes):
            if not osp.isfile(path):
                return (
                    f"{where}: annotation file {osp.abspath(path)} does not exist; put the data "
                    f"there (docs/detection_data.md, tools/download_dataset.py) or set "
                    f"{where}.ann_file and {where}.img_prefix"
                )
            if kind and issubclass(DATASETS.get(kind), CocoDataset):
                fault = file_fault(path)
            elif kind and issubclass(DATASETS.get(kind), XMLDataset):
                root = osp.join(settings.get("data_root") or "", prefix)
                fault = xml_fault(path, osp.join(root, settings.get("ann_subdir", "Annotations")))
            else:
                continue
            if fault:
                return f"{where}: {fault}"
    if isinstance(error, DatasetError):
        return str(error)
    unknown = re.search(r"(\w+) is not in the pipeline registry", str(error))
    if unknown:
        name = unknown.group(1)
        near = nearest(name, sorted(PIPELINES.module_dict))
        return f"data.{split}: unknown step {name!r} in the pipeline{near}"
    first = error.__context__ or error  # mmcv raises it anew, with the class as a prefix
    place = traceback.extract_tb(first.__traceback__)[-1]
    return (
        f"data.{split} cannot be built: {type(first).__name__}: {str(first) or place.line} (in "
        f"{osp.basename(place.filename)}, line {place.lineno})"
    )


def xml_fault(names: str, folder: str) -> str | None:
    """What keeps a list of VOC-style annotations from being read, or None."""
    with open(names, encoding="utf-8") as file:
        for name in file.read().split():
            path = osp.join(folder, f"{name}.xml")
            if not osp.isfile(path):
                return (
                    f"{osp.abspath(path)} does not exist, but {names} lists {name}; for the test "
                    "images of VOC 2012 run tools/prepare_dataset.py voc"
                )
            try:
                ElementTree.parse(path)
            except ElementTree.ParseError as error:
                return f"{path} is not a whole xml file ({error}): get it again"
    return None


def file_fault(path: str) -> str | None:
    """What keeps a file from being a json in COCO's format, or None."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except UnicodeDecodeError:
        return f"{path} is not a json file (it is not text)"
    except json.JSONDecodeError as error:
        return (
            f"{path} is not a whole json file: {error.msg} at line {error.lineno}, character "
            f"{error.pos} of {osp.getsize(path)} bytes; it may have been cut off while copying: "
            "get it again"
        )
    fault = json_fault(content)
    return f"{path}: {fault}" if fault else None
