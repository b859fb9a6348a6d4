"""OpenLane-V2 score of a submission: python tools/evaluate_submission.py SUBMISSION COLLECTION"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT.parent)]

import olv2  # noqa: F401 - first: puts the shared parts in place
from internimage.cli import ArgumentParser, run_program
from internimage.write_file import replacing
from olv2.devkit import evaluate, load_collection
from olv2.devkit.topology import VERSIONS


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 when it is wrong."""
    parser = ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("submission", help="submission.pkl, as test.py writes it")
    parser.add_argument("collection", help="of the same split, by tools/preprocess.py")
    parser.add_argument(
        "--metric",
        choices=VERSIONS,
        default=VERSIONS[-1],
        help="definition of the topology part: v1.0 of published results; default: %(default)s",
    )
    parser.add_argument("--interval", type=int, default=1, help="the test run's, 1 for all frames")
    parser.add_argument("--out", help="also write the score to this json file")
    args = parser.parse_args(argv)
    if args.interval < 1:
        parser.error(f"--interval must be 1 or more, got {args.interval}")
    return args


def score(args: argparse.Namespace) -> int:
    """Evaluates as the arguments say; returns the exit code 0."""
    frames = load_collection(args.collection)
    frames = dict(list(frames.items())[:: args.interval])
    values = evaluate(frames, args.submission, args.metric)
    for name, value in values.items():
        print(f"{name:22}{value:.4f}")
    if args.out:
        with replacing(args.out) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_program(score, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
