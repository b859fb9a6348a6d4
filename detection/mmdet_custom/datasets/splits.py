"""Finding the data sets inside mmdet's wrappers and the part of the config each came from."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterator
from typing import Any

SPLITS = ("train", "val", "test")


def leaf_data_sets(dataset: Any) -> Iterator[Any]:
    """The data sets inside RepeatDataset, ClassBalancedDataset, ConcatDataset, ... ."""
    if hasattr(dataset, "datasets"):
        for part in dataset.datasets:
            yield from leaf_data_sets(part)
    elif hasattr(dataset, "dataset"):
        yield from leaf_data_sets(dataset.dataset)
    else:
        yield dataset


def leaf_configs(data: Any, path: str) -> Iterator[tuple[str, dict]]:
    """(path in the config, settings) of the data sets inside the wrappers of one split."""
    if isinstance(data, (list, tuple)):
        for i, part in enumerate(data):
            yield from leaf_configs(part, f"{path}[{i}]")
    elif isinstance(data, dict):
        if "datasets" in data:
            yield from leaf_configs(data["datasets"], f"{path}.datasets")
        elif "dataset" in data:
            yield from leaf_configs(data["dataset"], f"{path}.dataset")
        else:
            yield path, data


def annotation_files(settings: dict) -> list[str]:
    """The annotation files of one data set's settings, joined to its `data_root`."""
    files = settings.get("ann_file") or []
    files = list(files) if isinstance(files, (list, tuple)) else [files]
    root = settings.get("data_root")
    return [osp.join(root, name) if root else name for name in files]


def split_of(cfg: Any, data: Any) -> str | None:
    """'train', 'val' or 'test': the split whose settings `data` is; None where it is none."""
    splits = cfg.get("data", {}) if cfg is not None else {}
    names = [name for name in SPLITS if splits.get(name) is not None]
    same = [name for name in names if splits[name] is data]
    return next(iter(same + [name for name in names if splits[name] == data]), None)


def split_name(cfg: Any, leaf: Any, split: str | None = None) -> str:
    """Where the config has the settings of a data set: `data.train`, `data.val`, ... .

    Args:
        cfg: the config of the run.
        leaf: the data set, without wrappers.
        split: the one that was built, if that is known; val and test are often alike.
    """
    data = cfg.get("data", {}) if cfg is not None else {}
    splits = ("val", "test") if leaf.test_mode else SPLITS
    for name in (split, *splits) if split else splits:
        for path, settings in leaf_configs(data.get(name, {}), f"data.{name}"):
            if leaf.ann_file in annotation_files(settings):
                return path
    return "data.test" if leaf.test_mode else "data.train"
