"""NYU Depth V2: images and masks with 40 classes out of the labelled .mat file.

    python tools/convert_datasets/nyu_depth_v2.py data/nyu_depth_v2

Needs there: nyu_depth_v2_labeled.mat and splits.mat (Silberman et al., ECCV 2012), and
classMapping40.mat (Gupta et al., CVPR 2013: 894 labels to 40). Reading the first needs
`pip install h5py`. Writes image/*.png, label40/*.png (0 unlabeled, 1..40), train.txt and test.txt.
"""

from __future__ import annotations

import contextlib
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from common import make_parser, need, run_jobs, save_labels, write_list
from internimage.cli import run_program
from internimage.write_file import replacing
from PIL import Image
from scipy.io import loadmat


class Labelled:
    """Pictures and label maps of nyu_depth_v2_labeled.mat, in the file's version 7.3 or resaved.

    Args:
        arrays: `images` and `labels`; in version 7.3 the axes are reversed, (N, 3, W, H) and
            (N, W, H), otherwise (H, W, 3, N) and (H, W, N).
        reversed_axes: whether they are.
    """

    def __init__(self, arrays: Any, reversed_axes: bool) -> None:
        self.images, self.labels = arrays["images"], arrays["labels"]
        self.reversed_axes = reversed_axes

    def __len__(self) -> int:
        return self.labels.shape[0 if self.reversed_axes else -1]

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Picture (H, W, 3) uint8 RGB and label map (H, W) of 0..894."""
        if self.reversed_axes:
            return np.asarray(self.images[index]).T, np.asarray(self.labels[index]).T
        return self.images[..., index], self.labels[..., index]


@contextlib.contextmanager
def open_labelled(path: Path) -> Iterator[Labelled]:
    """Opens nyu_depth_v2_labeled.mat.

    Raises:
        ValueError: it is a file of version 7.3 and h5py is not installed.
    """
    try:
        arrays = loadmat(path, variable_names=["images", "labels"])
    except NotImplementedError:  # scipy's way to say version 7.3, which is HDF5
        try:
            import h5py
        except ModuleNotFoundError as error:
            raise ValueError(f"reading {path} needs h5py: pip install h5py") from error
        with h5py.File(path, "r") as file:
            yield Labelled(file, reversed_axes=True)
        return
    yield Labelled(arrays, reversed_axes=False)


def read_mapping(path: Path) -> np.ndarray:
    """(895,) uint8: 0..40 for every label 0..894."""
    mapping = loadmat(path)["mapClass"].ravel()
    if mapping.max(initial=0) > 40 or len(mapping) < 40:
        raise ValueError(f"{path} does not map to 40 classes: take classMapping40.mat")
    return np.concatenate([[0], mapping]).astype(np.uint8)


def convert(job: tuple[Path, Path, np.ndarray, list[int]]) -> None:
    """Writes pictures and masks of some indices; each process opens the file itself."""
    path, root, mapping, indices = job
    with open_labelled(path) as data:
        for index in indices:
            target = root / "label40" / f"{index + 1:04d}.png"
            if target.exists():
                continue
            picture, labels = data.read(index)
            with replacing(root / "image" / target.name) as temporary:
                Image.fromarray(np.ascontiguousarray(picture)).save(temporary)
            if labels.max() >= len(mapping):
                raise ValueError(f"{path}: label {labels.max()} of image {index + 1} has no class")
            save_labels(mapping[labels], target)


def run(args: Namespace) -> int:
    """Converts all images and writes both lists."""
    how = "download it from the pages named in this file"
    path = need(args.root / "nyu_depth_v2_labeled.mat", how)
    splits = loadmat(need(args.root / "splits.mat", how))
    mapping = read_mapping(need(args.root / "classMapping40.mat", how))
    with open_labelled(path) as data:
        count = len(data)
    lists = {name: splits[f"{name}Ndxs"].ravel().astype(int) for name in ("train", "test")}
    for name, numbers in lists.items():
        if len(numbers) == 0 or numbers.min() < 1 or numbers.max() > count:
            raise ValueError(f"splits.mat does not fit: {name}Ndxs must be in 1..{count}")
    step = 100
    jobs = [
        (path, args.root, mapping, list(range(first, min(first + step, count))))
        for first in range(0, count, step)
    ]
    run_jobs(convert, jobs, args.workers, "nyu_depth_v2 (100 images)")
    for name, numbers in lists.items():
        write_list([f"{number:04d}" for number in numbers], args.root / f"{name}.txt")
    print(f"{args.root}: {len(lists['train'])} training and {len(lists['test'])} test images")
    return 0


def parse_args(args: list[str] | None = None) -> Namespace:
    """The command line."""
    return make_parser(__doc__, "folder with the three .mat files").parse_args(args)


if __name__ == "__main__":
    sys.exit(run_program(run, parse_args()))
