"""Says what is wrong with the data sets of a config, before a training run does.

    python tools/check_dataset.py configs/ade20k/upernet_internimage_t_512_160k_ade20k.py --all

Without --all: what train.py and test.py check anyway (some seconds). With --all every image header
and every mask is read, in several processes; all faulty files are listed, and in how many masks
each class occurs.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import logging
import multiprocessing
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mmseg_custom  # noqa: F401
from internimage.cli import ArgumentParser, run_program
from mmcv import Config
from mmcv_custom.config_checks import KeyValues
from mmcv_custom.runtime import load_config
from mmseg.utils import get_root_logger
from mmseg_custom.datasets.checks import DatasetError, build_data, label_classes, mask_rules
from mmseg_custom.datasets.masks import MaskRules, check_pair, pair_paths
from mmseg_custom.datasets.splits import leaf_data_sets, split_name
from tqdm import tqdm

MOST_SHOWN = 50  # faulty files that are listed


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="config file")
    parser.add_argument("--all", action="store_true", help="read every image header and mask")
    parser.add_argument("--splits", nargs="+", default=["train", "val", "test"], metavar="SPLIT")
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--cfg-options", nargs="+", action=KeyValues)
    return parser.parse_args(args)


def fault(pair: tuple[str, str], rules: MaskRules) -> tuple[str | None, list[int]]:
    """What is wrong with an image and its mask (None: nothing), and the labels that occur."""
    try:
        return None, check_pair(*pair, rules).tolist()
    except DatasetError as error:
        return str(error), []


def check_all(cfg: Config, leaf: Any, workers: int) -> int:
    """Checks every sample of one data set, lists faults and classes; returns the fault count."""
    where = split_name(cfg, leaf)
    rules = mask_rules(cfg, leaf, where)
    pairs = [pair_paths(leaf, i) for i in range(len(leaf))]
    pairs = [pair for pair in pairs if pair[1] is not None]
    faults: list[str] = []
    occurs: collections.Counter[int] = collections.Counter()
    with contextlib.ExitStack() as stack:
        run_all: Any = map
        if workers > 1:
            pool = stack.enter_context(multiprocessing.get_context("fork").Pool(workers))
            run_all = partial(pool.imap_unordered, chunksize=16)
        results = run_all(partial(fault, rules=rules), pairs)
        for text, labels in tqdm(results, total=len(pairs), desc=where, unit="mask", mininterval=1):
            occurs.update(labels)
            if text is not None:
                faults.append(text)
    for text in sorted(faults)[:MOST_SHOWN]:
        print(text)
    if len(faults) > MOST_SHOWN:
        print(f"... and {len(faults) - MOST_SHOWN} more")
    first = int(rules.reduce_zero_label)
    counts = [occurs[label] for label in range(first, first + rules.num_labels)]
    names = type(leaf).CLASSES if leaf.label_map else leaf.CLASSES  # as the files count them
    print(f"{where}: {len(pairs)} masks, {len(faults)} with faults")
    print("  " + ", ".join(f"{name} {count}" for name, count in zip(names, counts)))
    absent = [str(name) for name, count in zip(names, counts) if count == 0]
    if absent:
        print(f"  in no mask: {', '.join(absent)}")
    return len(faults)


def run(args: argparse.Namespace) -> int:
    """Checks the splits; 1 if anything is wrong."""
    get_root_logger(log_level=logging.WARNING)  # mmseg counts the images itself
    cfg = load_config(args.config, args.cfg_options, parts=("data",))
    seen, faults = [], 0
    for split in args.splits:
        settings = cfg.data.get(split)
        if settings is None:
            raise ValueError(f"{args.config} has no data.{split}")
        if settings in seen:
            continue
        seen.append(settings)
        default_args = None if split == "train" else dict(test_mode=True)
        dataset = build_data(cfg, settings, default_args, files=not args.all)
        print(f"data.{split}: {len(dataset)} samples, {_classes(dataset)} classes")
        if args.all:
            leaves = leaf_data_sets(dataset)
            faults += sum(check_all(cfg, leaf, args.workers) for leaf in leaves)
    return int(faults > 0)


def _classes(dataset: Any) -> int:
    return len(label_classes(next(leaf_data_sets(dataset))))


if __name__ == "__main__":
    sys.exit(run_program(run, parse_args()))
