"""COCO-Stuff 164k: masks with the 171 classes out of the published pixel maps.

    python tools/convert_datasets/coco_stuff164k.py data/coco_stuff164k

Needs train2017.zip and val2017.zip of COCO in images/, and stuffthingmaps_trainval2017.zip in
annotations/ (or beside it, as stuffthingmaps/). Writes
annotations/{train2017,val2017}/*_labelTrainIds.png with 0..170, and 255 for unlabeled.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from coco_stuff10k import USED
from common import label_table, make_parser, need, read_labels, run_jobs, save_labels
from internimage.cli import run_program

# the maps hold id - 1 (0..181), and 255
CLASSES = {label - 1: index for index, label in enumerate(USED)}
SUFFIX = "_labelTrainIds"


def convert(job: tuple[Path, Path]) -> None:
    """Writes one mask."""
    source, target = job
    labels = read_labels(source)
    wrong = set(np.unique(labels).tolist()) - {*CLASSES, 255}
    if wrong:
        raise ValueError(f"{source} holds values {sorted(wrong)[:8]} of no class of COCO-Stuff")
    save_labels(label_table(CLASSES, 1 << 16)[labels], target)


def run(args: Namespace) -> int:
    """Converts both splits."""
    jobs = []
    for split in ("train2017", "val2017"):
        folders = [args.root / "annotations" / split, args.root / "stuffthingmaps" / split]
        found = next((folder for folder in folders if folder.is_dir()), folders[0])
        folder = need(found, "unpack stuffthingmaps_trainval2017.zip in annotations/")
        sources = [path for path in sorted(folder.glob("*.png")) if SUFFIX not in path.stem]
        if not sources:
            raise ValueError(f"no *.png in {folder}: unpack stuffthingmaps_trainval2017.zip there")
        targets = [folders[0] / f"{path.stem}{SUFFIX}.png" for path in sources]
        jobs += [pair for pair in zip(sources, targets) if not pair[1].exists()]
    run_jobs(convert, jobs, args.workers, "coco_stuff164k")
    print(f"{args.root}: {len(jobs)} masks written")
    return 0


def parse_args(args: list[str] | None = None) -> Namespace:
    """The command line."""
    return make_parser(__doc__, "folder with images and annotations").parse_args(args)


if __name__ == "__main__":
    sys.exit(run_program(run, parse_args()))
