"""Train or evaluate an InternImage classifier with Hugging Face Accelerate.

``accelerate launch --config_file configs/accelerate/dist_8gpus_zero1.yaml main_accelerate.py --cfg
FILE [options]``. Results go to ``<output>/<name of the YAML>_deepspeed/``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
for folder in (str(HERE.parent), str(HERE)):
    if folder not in sys.path:
        sys.path.insert(0, folder)

from backend_accelerate import (
    AccelerateBackend,
    AccelerateDeepSpeedBackend,
    build_accelerator,
    check_config,
)
from cli import ArgumentParser
from config import ConfigError, add_arguments
from training import run_program


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of main_accelerate.py."""
    parser = ArgumentParser(
        "main_accelerate.py",
        description="InternImage: training and evaluation with Accelerate",
        allow_abbrev=False,
    )
    add_arguments(parser)
    add = parser.add_argument_group("Accelerate").add_argument
    add(
        "--disable-grad-scalar",
        action="store_true",
        help="float16 with a fixed loss scale of 1 instead of a dynamic one",
    )
    add(
        "--logger",
        default="tensorboard",
        choices=("tensorboard", "wandb"),
        help="where scalars go, besides log.jsonl",
    )
    return parser.parse_args(argv)


def start(args: argparse.Namespace, config: Any) -> AccelerateBackend | AccelerateDeepSpeedBackend:
    """Join the process group as the launch configuration says."""
    check_config(config, args)
    accelerator = build_accelerator(config, args)
    config = config.clone()
    config.defrost()
    config.OUTPUT += "_deepspeed"
    config.freeze()
    kind = accelerator.distributed_type.value
    if kind == "DEEPSPEED":
        return AccelerateDeepSpeedBackend(config, accelerator, args)
    if kind not in ("NO", "MULTI_GPU", "MULTI_CPU"):
        raise ConfigError(
            f"the launch configuration has distributed_type {kind}, which is not supported: use "
            "one of configs/accelerate/, or main.py --fsdp"
        )
    return AccelerateBackend(config, accelerator, args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    return run_program(parse_args(argv), start)


if __name__ == "__main__":
    sys.exit(main())
