"""Finding the data sets inside mmseg's wrappers and the part of the config each came from."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterator
from typing import Any


def leaf_data_sets(dataset: Any) -> Iterator[Any]:
    """The data sets inside RepeatDataset, ConcatDataset, MultiImageMixDataset, ... ."""
    if hasattr(dataset, "datasets"):
        for part in dataset.datasets:
            yield from leaf_data_sets(part)
    elif hasattr(dataset, "dataset"):
        yield from leaf_data_sets(dataset.dataset)
    else:
        yield dataset


def leaf_configs(data: Any, path: str) -> Iterator[tuple[str, dict]]:
    """(path in the config, settings) of the data sets inside the wrappers of one split.

    Lists of folders (`img_dir=["a", "b"]`, one data set each) are taken apart.
    """
    if isinstance(data, (list, tuple)):
        for i, part in enumerate(data):
            yield from leaf_configs(part, f"{path}[{i}]")
    elif isinstance(data, dict):
        if "datasets" in data:
            yield from leaf_configs(data["datasets"], f"{path}.datasets")
        elif "dataset" in data:
            yield from leaf_configs(data["dataset"], f"{path}.dataset")
        else:
            lists = [data.get(key) for key in ("img_dir", "ann_dir", "split")]
            count = max([len(part) for part in lists if isinstance(part, (list, tuple))] + [1])
            for i in range(count):
                yield path, {key: _entry(key, value, i) for key, value in data.items()}


def _entry(key: str, value: Any, index: int) -> Any:
    """Entry `index` of a setting that may be a list of folders or split files."""
    is_list = key in ("img_dir", "ann_dir", "split") and isinstance(value, (list, tuple))
    return value[index] if is_list and index < len(value) else value


def joined(settings: dict, key: str) -> str | None:
    """`img_dir`, `ann_dir` or `split` of one data set's settings, joined to its `data_root`."""
    path, root = settings.get(key), settings.get("data_root")
    if path is None or root is None or osp.isabs(path):
        return path
    return osp.join(root, path)


def split_name(cfg: Any, leaf: Any) -> str:
    """Where the config has the settings of a data set: `data.train`, `data.val`, ... ."""
    data = cfg.get("data", {}) if cfg is not None else {}
    splits = ("val", "test") if leaf.test_mode else ("train", "val", "test")
    for split in splits:
        for path, settings in leaf_configs(data.get(split, {}), f"data.{split}"):
            paths = [joined(settings, key) for key in ("img_dir", "ann_dir", "split")]
            if paths == [leaf.img_dir, leaf.ann_dir, leaf.split]:
                return path
    return "data.test" if leaf.test_mode else "data.train"
