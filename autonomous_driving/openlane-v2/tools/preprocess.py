"""Collects the annotations of OpenLane-V2: `python tools/preprocess.py data/OpenLane-V2`.

Writes one pickle per `data_dict_*.json` and split beside it: data_dict_subset_A_train.pkl and so
on, with all points of a lane for training and eleven otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT.parent)]

import olv2  # noqa: F401 - first: puts the shared parts in place
from internimage.cli import ArgumentParser, run_program
from olv2.devkit import collect_all


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 when it is wrong."""
    parser = ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument(
        "root",
        nargs="?",
        default="data/OpenLane-V2",
        help="folder with data_dict_*.json and train/, val/, test/; default: %(default)s",
    )
    return parser.parse_args(argv)


def preprocess(args: argparse.Namespace) -> int:
    """Writes the collections; returns the exit code 0."""
    for path in collect_all(args.root):
        print(path)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_program(preprocess, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
