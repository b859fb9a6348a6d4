"""Train or evaluate an InternImage classifier with DeepSpeed: ZeRO 1, 2, 3 and CPU offload.

``torchrun --nproc_per_node=8 main_deepspeed.py --cfg FILE --zero-stage 3 [options]``; also under
Slurm and the ``deepspeed`` launcher. ``--to-pth FOLDER FILE`` turns a checkpoint folder into a file
that ``main.py`` and ``predict.py`` read.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
for folder in (str(HERE.parent), str(HERE)):
    if folder not in sys.path:
        sys.path.insert(0, folder)

import distributed
from backend_deepspeed import DeepSpeedBackend, check_config
from cli import ArgumentParser
from config import add_arguments
from training import USER_ERRORS, run_program
from zero_checkpoint import convert

logger = logging.getLogger(__name__)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of main_deepspeed.py."""
    parser = ArgumentParser(
        "main_deepspeed.py",
        description="InternImage: training and evaluation with DeepSpeed",
        allow_abbrev=False,
    )
    add_arguments(parser)
    add = parser.add_argument_group("DeepSpeed").add_argument
    add(
        "--zero-stage",
        type=int,
        default=1,
        choices=(1, 2, 3),
        help="shard the optimizer's state (1, default), also gradients (2), also weights (3)",
    )
    add(
        "--offload-optimizer",
        default="none",
        choices=("cpu", "none"),
        help="cpu: keep the optimizer's state in main memory and update there",
    )
    add(
        "--offload-param",
        default="none",
        choices=("cpu", "none"),
        help="cpu: keep the sharded weights in main memory (--zero-stage 3)",
    )
    add(
        "--disable-grad-scalar",
        action="store_true",
        help="float16 with a fixed loss scale of 1 instead of a dynamic one",
    )
    add(
        "--to-pth",
        nargs=2,
        metavar=("FOLDER", "FILE"),
        help="write the checkpoint in FOLDER as one plain FILE and stop; needs no --cfg",
    )
    parser.set_defaults(cfg=None)
    for action in parser._actions:
        action.required = action.required and action.dest != "cfg"
    args = parser.parse_args(argv)
    if args.cfg is None and args.to_pth is None:
        parser.error("the following arguments are required: --cfg")
    return args


def start(args: argparse.Namespace, config: Any) -> DeepSpeedBackend:
    """Join the process group."""
    check_config(config)
    info = distributed.init_distributed(config.DEVICE, args.local_rank, always_group=True)
    os.environ.setdefault("LOCAL_RANK", str(info.launch.local_rank))  # DeepSpeed asks for it
    return DeepSpeedBackend(config, info, args)


def to_pth(folder: str, file: str) -> int:
    """``--to-pth``; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        convert(folder, file)
    except USER_ERRORS as error:
        logger.error("main_deepspeed.py: %s", error)
        return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    args = parse_args(argv)
    if args.to_pth:
        return to_pth(*args.to_pth)
    return run_program(args, start)


if __name__ == "__main__":
    sys.exit(main())
