"""Runs the programs of this folder in tests: in the test's own process, or in others; on the CPU.

On the CPU also where there is a GPU: tests compare runs with each other to the last bit.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ad_common.apis.test as testing_program
import ad_common.apis.train as training_program
import torch
from ad_common.apis.projects import load_project
from internimage.safe_load import load_file
from mmcv_custom.distributed import free_port

TESTS = Path(__file__).resolve().parent
DRIVING = TESTS.parent
FOLDERS = {
    "occ": "occupancy_prediction",
    "olv2": "openlane-v2",
    "hdmap": "Online-HD-Map-Construction",
}
LOGGERS = ("mmdet", "mmcv", "mmcv_custom", "ad_common", "internimage", *FOLDERS)


def tool(project: str, name: str) -> Path:
    """A program or script of a project."""
    return DRIVING / FOLDERS[project] / "tools" / name


def forget_loggers() -> None:
    """mmcv keeps the log file of the first run of a process; every run here writes its own."""
    from mmcv.utils.logging import logger_initialized

    for name in LOGGERS:
        logger = logging.getLogger(name)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.close()
        logger.handlers.clear()
        logger.propagate = True
        logger_initialized.pop(name, None)


def on_the_cpu(argv: Sequence[Any]) -> list[str]:
    """A command line, which names no other device, for the CPU."""
    words = [str(arg) for arg in argv]
    return words if "--device" in words else ["--device", "cpu", *words]


def train(*argv: Any, project: str = "occ") -> int:
    """train.py in this process; errors are raised."""
    forget_loggers()
    loaded = load_project(project)
    args = training_program.parse_args(loaded, on_the_cpu(argv))
    return training_program.train(loaded, args)


def test(*argv: Any, project: str = "occ") -> int:
    """test.py in this process; errors are raised."""
    forget_loggers()
    loaded = load_project(project)
    return testing_program.test(loaded, testing_program.parse_args(loaded, on_the_cpu(argv)))


test.__test__ = False  # not a test of pytest's


def shell(*command: Any, env: dict[str, str] | None = None, cwd: Path | None = None) -> Any:
    """A program in processes of its own."""
    ours = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    variables = {**os.environ, **ours, "PYTHONPATH": str(TESTS), **(env or {})}
    return subprocess.run(
        [str(part) for part in command],
        env=variables,
        cwd=cwd or DRIVING,
        capture_output=True,
        text=True,
        check=False,
    )


def forked(count: int, function: Callable[..., int], *argv: Any) -> list[int]:
    """Exit codes of `function(*argv)` in processes of a launcher, forked from this one.

    They need no imports of their own, which take longer than what is tested.
    """
    port = str(free_port())

    def start(rank: int) -> None:
        torch.set_num_threads(1)
        os.environ.update(
            RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )  # fmt: skip
        sys.exit(function(*argv))

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=start, args=(rank,)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
        process.kill()
    return [process.exitcode for process in processes]


def weights(path: Path) -> dict[str, Any]:
    """The parameters in a checkpoint."""
    return load_file(path)["state_dict"]


def log_rows(work_dir: Path) -> list[dict[str, Any]]:
    """The JSON log of the newest run."""
    text = max(work_dir.glob("*.log.json")).read_text()
    return [json.loads(line) for line in text.splitlines()]


def metrics_of(work_dir: Path) -> dict[str, float]:
    """The metrics that test.py wrote."""
    return json.loads(max(work_dir.glob("eval_*.json")).read_text())["metric"]
