"""Results of test.py --out as the text files that the VOC evaluation server takes.

    python test.py CONFIG CHECKPOINT --out results.pkl
    python tools/voc_results.py results.pkl --config CONFIG --out results/VOC2012/Main

One file per class, comp4_det_test_CLASS.txt, with a line `IMAGE SCORE X1 Y1 X2 Y2` per detection.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

import mmcv
import mmdet_custom  # noqa: F401  registers the data sets
from internimage.cli import ArgumentParser, run_program
from internimage.write_file import replacing
from mmcv import Config
from mmdet.datasets import VOCDataset

logger = logging.getLogger("voc_results")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = ArgumentParser("voc_results.py", description="Files for the VOC evaluation server")
    add = parser.add_argument
    add("results", help="pkl file written by test.py --out")
    add("--config", required=True, help="config that the results are of")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    return parser.parse_args(argv)


def write_class(path: Path, names: Sequence[str], boxes: Sequence[Any]) -> int:
    """Writes one class; returns the number of detections.

    Args:
        path: the text file.
        names: of the images.
        boxes: per image (N, 5), corners in pixels from 0 and score; VOC counts pixels from 1.
    """
    lines = [
        f"{name} {score:.6f} {x1 + 1:.2f} {y1 + 1:.2f} {x2 + 1:.2f} {y2 + 1:.2f}\n"
        for name, found in zip(names, boxes)
        for x1, y1, x2, y2, score in found
    ]
    with replacing(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def run(args: argparse.Namespace) -> int:
    """Writes all classes."""
    names = Path(Config.fromfile(args.config).data.test.ann_file).read_text().split()
    results = mmcv.load(args.results)
    classes = VOCDataset.CLASSES
    if len(results) != len(names) or any(len(result) != len(classes) for result in results):
        raise ValueError(
            f"{args.results} has {len(results)} images, data.test of {args.config} has "
            f"{len(names)} with {len(classes)} classes: these are not the results of this config"
        )
    count = 0
    for label, kind in enumerate(classes):
        boxes = [result[label] for result in results]
        count += write_class(args.out / f"comp4_det_test_{kind}.txt", names, boxes)
    logger.info("%s: %d detections in %d files", args.out, count, len(classes))
    return 0


if __name__ == "__main__":
    sys.exit(run_program(run, parse_args()))
