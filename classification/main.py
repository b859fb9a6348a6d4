"""Train, evaluate or time an InternImage classifier: ``python main.py --cfg FILE [options]``.

Runs in one process, under torchrun and under Slurm (srun), on CPU and GPU. Results go to
``<output>/<name of the YAML>/``.
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

import distributed
from backend import Backend
from cli import ArgumentParser
from config import add_arguments
from training import run_program


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of main.py."""
    parser = ArgumentParser(
        "main.py", description="InternImage: training and evaluation", allow_abbrev=False
    )
    add_arguments(parser)
    return parser.parse_args(argv)


def start(args: argparse.Namespace, config: Any) -> Backend:
    """Join the process group; DistributedDataParallel, or FSDP2 with ``--fsdp``."""
    if config.TRAIN.FSDP:
        from backend_fsdp import FsdpBackend, check_config

        check_config(config)
        info = distributed.init_distributed(config.DEVICE, args.local_rank, always_group=True)
        return FsdpBackend(config, info)
    return Backend(config, distributed.init_distributed(config.DEVICE, args.local_rank))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    return run_program(parse_args(argv), start)


if __name__ == "__main__":
    sys.exit(main())
