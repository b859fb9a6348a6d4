"""Pascal Context: masks with the 59 classes out of the published label maps.

    python tools/convert_datasets/pascal_context.py data/VOCdevkit/VOC2010 --labels LABELS

Needs VOC2010 (JPEGImages, ImageSets) in the first folder, and in LABELS the unpacked
trainval.tar.gz of Pascal Context (Mottaghi et al., CVPR 2014): *.mat with the label map of every
image, and labels.txt with the names of its classes. Writes SegmentationClassContext/*.png (0 for
background, 1..59) and ImageSets/SegmentationContext/{train,val}.txt.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from common import make_parser, need, read_list, run_jobs, save_labels, write_list
from internimage.cli import run_program
from mmseg.datasets import PascalContextDataset59
from scipy.io import loadmat

CLASSES = PascalContextDataset59.CLASSES  # the label in the masks is the index here plus 1


def read_table(path: Path) -> np.ndarray:
    """(K,) uint8: 1..59 or 0 for every label of the label maps.

    Args:
        path: labels.txt, lines like `2: aeroplane`.

    Raises:
        ValueError: one of the 59 classes is not in the file.
    """
    ids = {}
    for line in read_list(path):
        number, _, name = line.partition(":")
        ids[name.strip()] = int(number)
    absent = [name for name in CLASSES if name not in ids]
    if absent:
        raise ValueError(f"{path} does not name {', '.join(absent)}: take labels.txt of trainval")
    table = np.zeros(1 << 16, np.uint8)
    for index, name in enumerate(CLASSES):
        table[ids[name]] = index + 1
    return table


def convert(job: tuple[Path, Path], table: np.ndarray) -> None:
    """Writes one mask."""
    mat, target = job
    save_labels(table[loadmat(mat)["LabelMap"]], target)


def run(args: Namespace) -> int:
    """Converts both splits: the images of VOC2010's own lists that have a label map."""
    folder = args.labels or args.root / "trainval"
    table = read_table(need(folder / "labels.txt", "unpack trainval.tar.gz and set --labels"))
    jobs, counts = [], {}
    for split in ("train", "val"):
        names = read_list(need(args.root / "ImageSets" / "Main" / f"{split}.txt", "get VOC2010"))
        names = [name.split()[0] for name in names]
        names = [name for name in names if (folder / f"{name}.mat").is_file()]
        if not names:
            raise ValueError(f"no label map *.mat in {folder} for the images of {split}.txt")
        for name in names:
            need(args.root / "JPEGImages" / f"{name}.jpg", "get VOC2010")
        targets = [args.root / "SegmentationClassContext" / f"{name}.png" for name in names]
        mats = [folder / f"{name}.mat" for name in names]
        jobs += [pair for pair in zip(mats, targets) if not pair[1].exists()]
        write_list(names, args.root / "ImageSets" / "SegmentationContext" / f"{split}.txt")
        counts[split] = len(names)
    run_jobs(partial(convert, table=table), jobs, args.workers, "pascal_context")
    print(f"{args.root}: {counts['train']} training and {counts['val']} validation images")
    return 0


def parse_args(args: list[str] | None = None) -> Namespace:
    """The command line."""
    parser = make_parser(__doc__, "the folder VOC2010")
    parser.add_argument("--labels", type=Path, help="folder of *.mat (default: ROOT/trainval)")
    return parser.parse_args(args)


if __name__ == "__main__":
    sys.exit(run_program(run, parse_args()))
