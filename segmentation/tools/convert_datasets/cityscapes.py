"""Cityscapes: masks with the 19 training classes beside the published ones.

    python tools/convert_datasets/cityscapes.py data/cityscapes
    python tools/convert_datasets/cityscapes.py data/cityscapes --folder gtCoarse/train_extra

Needs gtFine_trainvaltest.zip and leftImg8bit_trainvaltest.zip unpacked there. Of every
`CITY_SEQUENCE_FRAME_*_labelIds.png` (or other PNG mask of the frame) it writes
`CITY_SEQUENCE_FRAME_gtFine_labelTrainIds.png` beside it. The configs with `train_extra` read
refinement_final/train_extra; give that --folder, and --train-ids if its masks hold 0..18 already.
"""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from common import label_table, make_parser, need, read_labels, run_jobs, save_labels
from internimage.cli import run_program

# published label id -> training class; the others are ignored
TRAIN_IDS = dict(
    zip((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), range(19))
)
FRAME = re.compile(r"^(.+_\d{6}_\d{6})_(.+)\.png$")
OUTPUT = "gtFine_labelTrainIds"
OTHER_KINDS = ("color", "instanceIds", "instanceTrainIds", "leftImg8bit_blurred")


def find_masks(folder: Path, train_ids: bool) -> list[tuple[Path, Path]]:
    """(mask, mask to write) of all frames that have none yet.

    Raises:
        ValueError: there is no mask to convert.
    """
    sources: dict[Path, Path] = {}
    for path in sorted(folder.rglob("*.png")):
        match = FRAME.match(path.name)
        if match is None or match[2] == OUTPUT or match[2].endswith(OTHER_KINDS):
            continue
        target = path.with_name(f"{match[1]}_{OUTPUT}.png")
        if match[2].endswith("labelTrainIds") and not train_ids:
            continue
        if match[2].endswith("labelIds") or target not in sources:
            sources[target] = path
    if not sources:
        raise ValueError(f"no mask CITY_SEQUENCE_FRAME_*_labelIds.png in {folder}")
    return [(path, target) for target, path in sources.items() if not target.exists()]


def convert(job: tuple[Path, Path], train_ids: bool) -> None:
    """Writes the training classes of one mask."""
    source, target = job
    labels = read_labels(source)
    if train_ids:
        wrong = sorted(set(labels.ravel().tolist()) - {*range(19), 255})
        if wrong:
            raise ValueError(
                f"{source} holds {wrong[:8]}, not 0..18 and 255: leave --train-ids out"
            )
        save_labels(labels.astype("uint8"), target)
    else:
        save_labels(label_table(TRAIN_IDS, 1 << 16)[labels], target)


def run(args: Namespace) -> int:
    """Converts one folder of masks."""
    folder = need(args.root / args.folder, "unpack gtFine_trainvaltest.zip of Cityscapes there")
    jobs = find_masks(folder, args.train_ids)
    run_jobs(partial(convert, train_ids=args.train_ids), jobs, args.workers, args.folder)
    print(f"{folder}: {len(jobs)} masks written")
    return 0


def parse_args(args: list[str] | None = None) -> Namespace:
    """The command line."""
    parser = make_parser(__doc__, "folder with gtFine and leftImg8bit")
    parser.add_argument("--folder", default="gtFine", help="folder of masks (default: gtFine)")
    parser.add_argument("--train-ids", action="store_true", help="the masks hold 0..18 already")
    return parser.parse_args(args)


if __name__ == "__main__":
    sys.exit(run_program(run, parse_args()))
