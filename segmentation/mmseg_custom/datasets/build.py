"""mmseg's `build_dataset` with several Cityscapes folders, and its failures in words."""

from __future__ import annotations

import copy
import os.path as osp
from typing import Any

from mmseg.datasets import DATASETS, CityscapesDataset, build_dataset
from mmseg.datasets.dataset_wrappers import RepeatDataset
from torch.utils.data import ConcatDataset

from .errors import nearest
from .splits import joined, leaf_configs

_LISTS = ("img_dir", "ann_dir", "split")
FAILURES = (
    OSError,
    LookupError,
    ValueError,
    AssertionError,
    TypeError,
    AttributeError,
    NotImplementedError,
)

# programs in tools/convert_datasets that make the folders a type reads
CONVERTERS = {
    "CityscapesDataset": "cityscapes.py",
    "COCOStuffDataset": "coco_stuff10k.py or coco_stuff164k.py",
    "MapillaryDataset": "mapillary.py",
    "NYUDepthV2Dataset": "nyu_depth_v2.py",
    "PascalContextDataset59": "pascal_context.py",
}


def converter_hint(kind: Any) -> str:
    """Which program makes the files that a data set of type `kind` reads."""
    name = CONVERTERS.get(kind if isinstance(kind, str) else getattr(kind, "__name__", ""))
    return f"convert it with tools/convert_datasets/{name}, " if name else ""


class TrainingFolders(ConcatDataset):
    """Several data sets with the same classes one after the other, for training only.

    mmseg's own ConcatDataset refuses Cityscapes because it cannot evaluate it in parts, but
    training on `train` and `train_extra` together is fine.
    """

    def __init__(self, datasets: list[Any]) -> None:
        super().__init__(datasets)
        self.CLASSES = datasets[0].CLASSES
        self.PALETTE = datasets[0].PALETTE


def build(data: Any, default_args: dict | None) -> Any:
    """mmseg's `build_dataset`, which also takes several Cityscapes folders for training."""
    if isinstance(data, (list, tuple)):
        return _chained([build(part, default_args) for part in data], data, default_args)
    if data["type"] == "RepeatDataset":
        return RepeatDataset(build(data["dataset"], default_args), data["times"])
    counts = [len(data[key]) for key in _LISTS if isinstance(data.get(key), (list, tuple))]
    if not counts:
        return build_dataset(data, default_args)
    if len(set(counts)) > 1:
        raise ValueError(f"lists of different lengths in {', '.join(_LISTS)}: {counts}")
    parts = []
    for _, settings in leaf_configs(data, ""):
        settings = copy.deepcopy(dict(settings))
        settings.pop("separate_eval", None)
        parts.append(build_dataset(settings, default_args))
    return _chained(parts, data, default_args)


def _chained(parts: list[Any], data: Any, default_args: dict | None) -> Any:
    """`TrainingFolders` where mmseg's ConcatDataset refuses, else what mmseg builds."""
    trains = not any(getattr(part, "test_mode", False) for part in parts)
    if trains and any(isinstance(part, CityscapesDataset) for part in parts):
        return TrainingFolders(parts)
    return build_dataset(data, default_args)


def diagnose(cfg: Any, data: Any, error: Exception) -> str:
    """The sentence for an error of `build_dataset`."""
    splits = cfg.get("data", {}) if cfg is not None else {}
    named = [name for name in ("train", "val", "test") if splits.get(name) == data]
    split = named[0] if named else "..."
    for where, settings in leaf_configs(data, f"data.{split}"):
        kind = settings.get("type")
        if isinstance(kind, str) and DATASETS.get(kind) is None:
            return f"{where}: unknown data set type {kind!r}{nearest(kind, DATASETS.module_dict)}"
        classes = settings.get("classes")
        if isinstance(classes, str) and not osp.isfile(classes):
            return (
                f"{where}: classes={classes!r} is read as the name of a file with one class per "
                f"line, which does not exist; for one class write classes=({classes!r},), with the "
                "comma"
            )
        for key, exists in (("img_dir", osp.isdir), ("ann_dir", osp.isdir), ("split", osp.isfile)):
            path = joined(settings, key)
            if path is not None and not exists(path):
                what = "list of samples" if key == "split" else "folder"
                return (
                    f"{where}: the {what} {osp.abspath(path)} does not exist; put the data there "
                    f"(docs/segmentation_data.md says how), {converter_hint(kind)}or set "
                    f"{where}.data_root (now {settings.get('data_root')!r}) or {where}.{key}"
                )
    return f"data.{split} cannot be built: {type(error).__name__}: {error}"
