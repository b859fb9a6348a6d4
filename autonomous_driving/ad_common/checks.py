"""What is wrong with a config or a data set, said before a long run starts."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv import Config
from mmcv_custom.runtime import ConfigError, naming_unknown_types
from mmdet.datasets import DATASETS, PIPELINES, build_dataset
from torch.utils.data import Dataset

from .apis.projects import Project
from .datasets.errors import DatasetError
from .datasets.samplers import SAMPLERS

PATHS = ("data_root", "ann_file", "meta_root")


def check_config(cfg: Config, project: Project) -> None:
    """Looks at settings that would fail late or not at all.

    Raises:
        ConfigError: a number of classes that the data set does not have, another number of cameras
            in two parts of the model, or another sampler than the one there is.
    """
    for key, count in project.class_counts.items():
        found: Any = cfg.model
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        if found is not None and found != count:
            raise ConfigError(
                f"model.{key} is {found}, but the data set has {count} classes; set it to {count}"
            )
    counts = dict(camera_counts(cfg.model))
    if len(set(counts.values())) > 1:
        raise ConfigError(
            "the parts of the model disagree on the number of cameras: "
            + ", ".join(f"{path}={count}" for path, count in counts.items())
        )
    for key, sampler in SAMPLERS.items():
        name = (cfg.data.get(key) or {}).get("type", sampler)
        if name != sampler:
            raise ConfigError(f"data.{key}.type {name!r}: leave it out, it can only be {sampler!r}")


def camera_counts(part: Any, path: str = "model") -> Iterator[tuple[str, int]]:
    """Every `num_cams` of a model's config: (where, value)."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            if key == "num_cams" and isinstance(value, int):
                yield f"{path}.{key}", value
            else:
                yield from camera_counts(value, f"{path}.{key}")
    elif isinstance(part, (list, tuple)):
        for index, value in enumerate(part):
            yield from camera_counts(value, f"{path}[{index}]")


def build_data(cfg: Config, split: str, project: Project, test_mode: bool = False) -> Dataset:
    """The data set `cfg.data.<split>`, after a look at its files and its first frame.

    Raises:
        DatasetError: files are missing (says what to download or how to make a synthetic data
            set), the data set is empty, or its frames have another number of cameras than the
            model.
        ConfigError: an unknown type or argument.
    """
    data = cfg.data[split]
    check_paths(data, split, project)
    with naming_unknown_types(f"data.{split}", DATASETS, PIPELINES):
        dataset = build_dataset(data, {"test_mode": True} if test_mode else None)
    check_first_frame(cfg, dataset, split)
    return dataset


def check_paths(data: Mapping[str, Any], split: str, project: Project) -> None:
    """Raises DatasetError for a file or folder of a data set's config that is not there."""
    while "dataset" in data and "pipeline" not in data:
        data = data["dataset"]  # RepeatDataset and the like
    root = data.get("data_root")
    for key in PATHS:
        path = data.get(key)
        if not isinstance(path, str) or not path or Path(path).exists():
            continue
        if isinstance(root, str) and Path(root, path).exists():
            continue
        raise DatasetError(
            f"data.{split}.{key}: {path} does not exist (working directory {Path.cwd()}). Download "
            f"{project.data} and prepare it as the README says, or make a synthetic data set for "
            f"configs/toy: python ../tools/make_synthetic.py {project.synthetic} data/toy"
        )


def check_first_frame(cfg: Config, dataset: Dataset, split: str) -> None:
    """Loads the first frame; raises DatasetError where it does not fit the model."""
    if len(dataset) == 0:
        raise DatasetError(f"data.{split} has no frames")
    with kept_random_state():
        sample = dataset[0]
    images = sample.get("img")
    while isinstance(images, (list, tuple)):
        images = images[0]
    shape = getattr(getattr(images, "data", images), "shape", ())
    found = shape[-4] if len(shape) >= 4 else None
    for path, count in camera_counts(cfg.model):
        if found is not None and found != count:
            raise DatasetError(
                f"data.{split} has frames with {found} cameras, the model is for {count} ({path})"
            )


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """What is drawn inside changes nothing that is drawn afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
