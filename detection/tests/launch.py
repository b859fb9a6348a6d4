"""Runs the programs of this folder in tests: in the test's own process, or in others.

On the CPU, also where there is a GPU: tests compare runs with each other to the last bit.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).resolve().parents[1]
LOGGERS = ("mmdet", "mmseg", "mmcv", "mmcv_custom", "mmdet_custom", "mmseg_custom", "internimage")


def program(name: str) -> ModuleType:
    """train.py or test.py as a module; `import test` would be Python's own tests."""
    full = f"{FOLDER.name}_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


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


def train(*argv: Any) -> int:
    """train.py in this process; errors are raised."""
    forget_loggers()
    module = program("train")
    return module.train(module.parse_args(on_the_cpu(argv)))


def test(*argv: Any) -> int:
    """test.py in this process; errors are raised."""
    forget_loggers()
    module = program("test")
    return module.test(module.parse_args(on_the_cpu(argv)))


test.__test__ = False  # not a test of pytest's


def shell(*command: Any, env: dict[str, str] | None = None, cwd: Path | None = None) -> Any:
    """A program of this folder in processes of its own."""
    ours = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    variables = {**os.environ, **ours, **(env or {})}
    return subprocess.run(
        [str(part) for part in command],
        env=variables,
        cwd=cwd or FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )
