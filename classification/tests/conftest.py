"""Shared by the tests of this folder: import paths, a tiny data set and model, one trained run."""

import os
import sys
from pathlib import Path

import pytest
import torch
from helpers import CLASSES, NANO, make_images

CLASSIFICATION = Path(__file__).resolve().parents[1]
for folder in (CLASSIFICATION, CLASSIFICATION.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@pytest.fixture(autouse=True, scope="session")
def _few_threads():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch):
    """No test sees the environment of a cluster or launcher it happens to run in."""
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in (
            "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"
        ):  # fmt: skip
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def colours(tmp_path_factory) -> Path:
    """An ImageFolder data set: 4 classes, 48 training and 22 validation images."""
    root = tmp_path_factory.mktemp("colours")
    make_images(root / "train", 12, seed=1)
    make_images(root / "val", 6, seed=2)
    for name in ("red", "blue"):  # an odd count, so that two processes get different numbers
        (root / "val" / name / "005.png").unlink()
    return root


@pytest.fixture(scope="session")
def nano_yaml(tmp_path_factory, colours) -> Path:
    """Configuration of a model small enough to train within a second."""
    path = tmp_path_factory.mktemp("config") / "nano.yaml"
    path.write_text(NANO.replace("DATASET: folder", f"DATASET: folder\n  DATA_PATH: {colours}"))
    return path


@pytest.fixture
def nano_config(nano_yaml):
    """The configuration as an object, with the class count of the data set."""
    from config import load_config_file

    config = load_config_file(nano_yaml).clone()
    config.defrost()
    config.MODEL.NUM_CLASSES = len(CLASSES)
    return config


@pytest.fixture(scope="session")
def trained(tmp_path_factory, nano_yaml) -> Path:
    """Output folder of one finished three-epoch run. Do not write into it."""
    import main

    output = tmp_path_factory.mktemp("run")
    assert main.main(["--cfg", str(nano_yaml), "--output", str(output)]) == 0
    return output / "nano"
