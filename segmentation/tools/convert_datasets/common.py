"""What the converters share: jobs in several processes, whole files, label tables."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from internimage.cli import ArgumentParser
from internimage.write_file import replacing
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

IGNORE = 255


def make_parser(description: str, root: str) -> ArgumentParser:
    """A command line with the data set's folder and the number of processes."""
    parser = ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help=root)
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    return parser


def run_jobs(work: Callable[[Any], None], jobs: Sequence[Any], workers: int, what: str) -> None:
    """`work(job)` for all jobs in `workers` processes, with a progress bar; stops at an error."""
    progress = partial(tqdm, total=len(jobs), desc=what, unit="file", mininterval=1)
    if workers <= 1:
        for job in progress(jobs):
            work(job)
        return
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        for _ in progress(pool.imap_unordered(work, jobs, chunksize=4)):
            pass


def label_table(pairs: Mapping[int, int], size: int = 256) -> np.ndarray:
    """(size,) uint8: the new label of every old one; those not in `pairs` are ignored."""
    table = np.full(size, IGNORE, np.uint8)
    for old, new in pairs.items():
        table[old] = new
    return table


def read_labels(path: Path) -> np.ndarray:
    """(H, W) indices of a palette or grey PNG.

    Raises:
        ValueError: the file cannot be read or has colours instead of indices.
    """
    try:
        with Image.open(path) as image:
            labels = np.array(image)
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if labels.ndim != 2:
        raise ValueError(f"{path} has shape {labels.shape}; one label per pixel is needed")
    return labels


def save_labels(labels: np.ndarray, path: Path) -> None:
    """Writes (H, W) uint8 labels as a grey PNG, whole or not at all."""
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(f"{path}: labels must be (H, W) uint8, got {labels.shape} {labels.dtype}")
    with replacing(path) as temporary:
        Image.fromarray(labels).save(temporary)


def link_or_copy(source: Path, target: Path) -> None:
    """Puts a file at a second place: as a hard link, or as a copy on another disk."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)


def need(path: Path, how: str) -> Path:
    """`path`, which must exist.

    Raises:
        FileNotFoundError: with `how` to get it.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: {how}")
    return path


def read_list(path: Path) -> list[str]:
    """The lines of a file without the empty ones."""
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def write_list(names: Sequence[str], path: Path) -> None:
    """Writes one name per line, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names))
