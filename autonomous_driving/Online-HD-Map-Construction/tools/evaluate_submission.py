"""Chamfer AP of a submission: python tools/evaluate_submission.py SUBMISSION ANNOTATIONS"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT.parent)]

import hdmap  # noqa: F401  first: makes mmcv fit the installed torch
from hdmap.annotations import all_truth, load_frames
from hdmap.evaluation import evaluate_lines, table
from hdmap.submission import read_submission
from internimage.cli import ArgumentParser, run_program
from internimage.write_file import replacing


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 when it is wrong."""
    parser = ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("submission", help="submission_vector.json, as test.py writes it")
    parser.add_argument("annotations", help="of the same split, for example val_annotations.json")
    parser.add_argument("--interval", type=int, default=1, help="the test run's, 1 for all frames")
    parser.add_argument("--out", help="also write the metrics to this json file")
    args = parser.parse_args(argv)
    if args.interval < 1:
        parser.error(f"--interval must be 1 or more, got {args.interval}")
    return args


def evaluate(args: argparse.Namespace) -> int:
    """Evaluates as the arguments say; returns the exit code 0."""
    predicted = read_submission(args.submission)
    frames = load_frames(args.annotations)[:: args.interval]
    metrics = evaluate_lines(predicted, all_truth(frames, args.annotations))
    print(table(metrics))
    if args.out:
        with replacing(args.out) as temporary:
            temporary.write_text(json.dumps(metrics, indent=2) + "\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_program(evaluate, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
