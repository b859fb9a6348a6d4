"""COCO-Stuff 10k: label maps out of the .mat files, images sorted into train and test.

    python tools/convert_datasets/coco_stuff10k.py data/coco_stuff10k

Needs cocostuff-10k-v1.1.zip unpacked there (images, annotations, imageLists). Writes
images/{train2014,test2014} (links) and annotations/{train2014,test2014}/*_labelTrainIds.png with 0
for unlabeled and 1..171 for the classes.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from common import link_or_copy, make_parser, need, read_list, run_jobs, save_labels
from internimage.cli import run_program
from scipy.io import loadmat

# ids of 1..182 that no image has (arXiv 1612.03716): street sign, hat, shoe, eye glasses, plate,
# mirror, window, desk, door, blender, hair brush
UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
USED = [label for label in range(1, 183) if label not in UNUSED]  # the 171 classes, in order


def convert(job: tuple[Path, Path, Path, Path]) -> None:
    """Writes the label map of one image and links the image."""
    image, target_image, mat, target = job
    link_or_copy(image, target_image)
    if target.exists():
        return
    labels = loadmat(mat)["S"]  # (H, W), 0..182
    table = np.zeros(256, np.uint8)
    table[USED] = np.arange(1, len(USED) + 1)
    wrong = set(np.unique(labels).tolist()) - {0, *USED}
    if wrong:
        raise ValueError(f"{mat} holds labels {sorted(wrong)[:8]} of no class of COCO-Stuff")
    save_labels(table[labels], target)


def run(args: Namespace) -> int:
    """Converts both splits."""
    how = "unpack cocostuff-10k-v1.1.zip there"
    jobs = []
    for split in ("train", "test"):
        for name in read_list(need(args.root / "imageLists" / f"{split}.txt", how)):
            image = need(args.root / "images" / f"{name}.jpg", how)
            mat = need(args.root / "annotations" / f"{name}.mat", how)
            folder = f"{split}2014"
            target = args.root / "annotations" / folder / f"{name}_labelTrainIds.png"
            jobs.append((image, args.root / "images" / folder / image.name, mat, target))
    run_jobs(convert, jobs, args.workers, "coco_stuff10k")
    print(f"{args.root}: {len(jobs)} images and masks in train2014 and test2014")
    return 0


def parse_args(args: list[str] | None = None) -> Namespace:
    """The command line."""
    return make_parser(__doc__, "folder with images, annotations and imageLists").parse_args(args)


if __name__ == "__main__":
    sys.exit(run_program(run, parse_args()))
