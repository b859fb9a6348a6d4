"""Import paths of this folder's tests, and what holds for all of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
PROJECTS = ("occupancy_prediction", "openlane-v2", "Online-HD-Map-Construction")
for folder in (TESTS, *(ROOT / name for name in PROJECTS), ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

LAUNCHERS = ("SLURM_", "OMPI_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_")
SETTINGS = ("PORT", "NNODES", "NODE_RANK", "GPUS", "CPUS_PER_TASK", "SRUN_ARGS")  # of our scripts


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Two cores are shared; results do not depend on the number of threads."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def no_waiting() -> Iterator[None]:
    """mmcv waits two seconds at every epoch; nothing here needs that."""
    import mmcv.runner.epoch_based_runner as by_epoch
    import mmcv.runner.iter_based_runner as by_iter

    with pytest.MonkeyPatch.context() as patch:
        for module in (by_epoch, by_iter):
            patch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: None))
        yield


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the environment of a launcher that it happens to run in."""
    for name in list(os.environ):
        if name.startswith((*LAUNCHERS, *SETTINGS)):
            monkeypatch.delenv(name)
