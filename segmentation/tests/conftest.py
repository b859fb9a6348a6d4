"""Import paths of this folder's tests, and the one training run that several of them look at."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

TESTS = Path(__file__).resolve().parent
for folder in (TESTS, TESTS.parent):
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


@dataclass(frozen=True)
class Trained:
    """A finished training of 16 iterations.

    Attributes:
        config: path of the config.
        data: folder of the data set.
        work_dir: of the run.
        checkpoint: its last checkpoint.
    """

    config: str
    data: Path
    work_dir: Path
    checkpoint: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, no_waiting: None) -> Trained:
    """train.py, run once: UPerNet on 12 images of 64 pixels, evaluated on 3, batches of 2."""
    import runs

    folder = tmp_path_factory.mktemp("trained")
    data = runs.write_data(folder / "data", train=12, val=3)
    config = runs.write_config(folder / "tiny.py", data)
    work_dir = folder / "work"
    assert runs.train(config, "--work-dir", work_dir, "--seed", 3, "--device", "cpu") == 0
    return Trained(config, data, work_dir, work_dir / "iter_16.pth")
