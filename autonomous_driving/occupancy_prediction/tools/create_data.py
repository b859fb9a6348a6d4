"""Prepares nuScenes with Occ3D labels: writes the info files that training and testing read.

    python tools/create_data.py occ --root-path ./data/occ3d-nus --out-dir ./data/occ3d-nus \
        --extra-tag occ --version v1.0-trainval --canbus ./data --occ-path ./data/occ3d-nus
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT.parent)]

from internimage.cli import ArgumentParser, run_program
from occ.nuscenes import VERSIONS
from occ.preparation import prepare


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 when it is wrong."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dataset", choices=("occ",), help="the data set to prepare")
    parser.add_argument("--root-path", default="./data/occ3d-nus", help="tables and samples/")
    parser.add_argument("--out-dir", default="./data/occ3d-nus", help="where the info files go")
    parser.add_argument("--extra-tag", default="occ", help="start of the info files' names")
    parser.add_argument("--version", choices=VERSIONS, default="v1.0-trainval")
    parser.add_argument("--canbus", default="./data", help="folder that contains can_bus/")
    parser.add_argument(
        "--occ-path", default="./data/occ3d-nus", help="annotations.json and the labels"
    )
    parser.add_argument(
        "--from-annotations",
        action="store_true",
        help="take the frames from annotations.json; the tables of nuScenes are not needed",
    )
    return parser.parse_args(argv)


def create(args: argparse.Namespace) -> int:
    """Writes the info files; returns the exit code 0."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prepare(
        args.root_path,
        args.out_dir,
        occ_path=args.occ_path,
        can_bus=args.canbus,
        version=None if args.from_annotations else args.version,
        tag=args.extra_tag,
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_program(create, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
