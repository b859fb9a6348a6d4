"""Pack a data set into tar shards in the WebDataset convention, for --dataset webdataset.

    python tools/make_shards.py --data-path DIR --out OUT [--dataset imagenet] [--jobs 8] [--verify]
    python tools/make_shards.py --out OUT --verify      look at all shards again
    python tools/make_shards.py --out OUT --index       write the index of shards made elsewhere

Reads whatever main.py reads: folders, lists, zip archives. Training images are shuffled once.
Started again after a kill it goes on with the next shard. OUT gets train/shard-000000.tar, ...,
train/index.npz, the same for val, and dataset.json with counts, sizes and sha256.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
for folder in (str(HERE.parent), str(HERE)):
    if folder not in sys.path:
        sys.path.insert(0, folder)

import numpy as np
from tqdm import tqdm

from cli import ArgumentParser
from config import ConfigError, config_from_dict
from dataset.decode import DECODE_ERRORS, decode_image
from dataset.errors import DataError
from dataset.samples import Classes
from dataset.shard_writer import (
    add_to_manifest,
    in_processes,
    plan,
    read_own_manifest,
    write_split,
)
from dataset.sources import load_classes, load_samples
from dataset.tar_index import TarIndex, check_labels, concatenate, load_index, scan_tar
from dataset.webdataset_source import MANIFEST, shard_names

logger = logging.getLogger("make_shards")
SHOWN = 20  # problems that are named one by one


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = ArgumentParser(
        "make_shards.py",
        description="Pack a data set into tar shards (WebDataset convention)",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--out", required=True, type=Path, metavar="OUT", help="folder of the shards")
    add("--data-path", metavar="DIR", help="data set to convert, as for main.py")
    add("--dataset", default="folder", help="its kind: folder|imagenet|imagenet22K|inat18")
    add("--zip", action="store_true", help="it consists of train.zip and val.zip")
    add("--splits", nargs="+", default=["train", "val"], choices=["train", "val"])
    add("--per-shard", type=int, default=2000, metavar="N", help="images per shard (2000)")
    add("--seed", type=int, default=0, help="of the order of the training images")
    add("--jobs", type=int, default=min(8, os.cpu_count() or 1), help="processes")
    add("--max-corrupt", type=int, default=50, help="more unreadable images than this stop it")
    add("--no-decode", action="store_true", help="do not look whether images can be decoded")
    add("--verify", action="store_true", help="check every byte of the shards against the index")
    add("--index", action="store_true", help="index the *.tar files that are in OUT already")
    add("--classes", type=Path, metavar="FILE", help="with --index: class names, one per line")
    add("--num-classes", type=int, metavar="N", help="with --index: for classes without names")
    add("--opts", nargs="+", action="extend", metavar="KEY VALUE", default=[],
        help="DATA.TRAIN_LIST FILE; with --index DATA.TRAIN_SHARDS 'a-{000..123}.tar'")  # fmt: skip
    args = parser.parse_args(argv)
    if args.per_shard < 1 or args.jobs < 1 or args.max_corrupt < 0:
        parser.error("--per-shard and --jobs must be at least 1, --max-corrupt at least 0")
    if args.index and args.data_path:
        parser.error("--index is for shards that are there already: leave out --data-path")
    if not (args.data_path or args.verify or args.index):
        parser.error("nothing to do: give --data-path DIR, --index or --verify")
    if args.dataset == "webdataset":
        parser.error("--dataset webdataset is what this program writes; for shards from elsewhere "
                     "type --index")  # fmt: skip
    return args


def convert(args: argparse.Namespace) -> None:
    """Pack the splits of a data set."""
    root = str(Path(args.data_path).resolve())
    data = {"DATA_PATH": root, "DATASET": args.dataset, "ZIP_MODE": args.zip}
    config = config_from_dict({"DATA": data}, args.opts)
    if str(args.out.resolve()) == root:
        raise DataError(f"--out {args.out} is the data set itself: name another folder")
    classes = load_classes(config)
    for split in args.splits:
        samples = load_samples(config, split, classes)
        jobs = plan(args.out, split, samples, args.per_shard, args.seed, not args.no_decode)
        written, left_out = write_split(
            args.out, split, jobs, classes, processes=args.jobs, max_corrupt=args.max_corrupt
        )
        for path, reason in left_out[:SHOWN]:
            logger.warning("cannot read image %s (%s); it is left out", path, reason)
        entry = read_own_manifest(args.out)["splits"][split]
        print(
            f"{split}: {entry['samples']} images, {len(left_out)} unreadable and left out, "
            f"{len(entry['shards'])} shards, {entry['bytes'] / 2**20:.1f} MiB"
            f"{'' if written else ' (were there already)'}"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _index_one(root: Path, name: str) -> TarIndex:
    return scan_tar(root / name, name, _sha256(root / name) if (root / name).is_file() else "")


def index(args: argparse.Namespace) -> None:
    """Write the index of shards that came without one."""
    config = config_from_dict({}, args.opts)
    if not args.out.is_dir():
        raise DataError(f"folder {args.out} does not exist")
    file = args.classes or args.out / "classes.txt"
    names = None
    if args.classes or file.is_file():
        names = [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
    elif args.num_classes is None:
        raise DataError(f"the classes are not known: write {file}, or type --num-classes N")
    classes = Classes(len(names) if names else args.num_classes, names)
    for split in args.splits:
        found = shard_names(str(args.out), split, config.DATA[f"{split.upper()}_SHARDS"])
        done = in_processes(partial(_index_one, args.out), found, args.jobs)
        parts = dict(tqdm(done, split, len(found), unit="shard", disable=None))
        whole = concatenate([parts[name] for name in found])
        check_labels(whole, classes.count)
        add_to_manifest(args.out, split, whole, classes)
        print(f"{split}: {len(whole)} images in {len(found)} shards are indexed")


# -------------------------------------------------------------------------------- verification
def verify_shard(job: tuple[Path, TarIndex, bool]) -> list[str]:
    """What is wrong with one shard: size, sha256, samples, labels, images."""
    root, part, decode = job
    shard = part.shards[0]
    path = root / shard.name
    if not path.is_file():
        return [f"{shard.name} is missing"]
    if path.stat().st_size != shard.bytes:
        return [f"{shard.name} has {path.stat().st_size} bytes, the index says {shard.bytes}"]
    digest = _sha256(path)
    if digest != shard.sha256:
        return [f"{shard.name} has sha256 {digest}, the index says {shard.sha256}"]
    try:
        found = scan_tar(path, shard.name)
    except DataError as error:
        return [str(error)]
    for what in ("offsets", "sizes", "labels"):
        if not np.array_equal(getattr(found, what), getattr(part, what)):
            return [f"{shard.name}: the {what} in the index are not those of the shard"]
    problems = []
    with path.open("rb") as file:
        for i in range(len(part)) if decode else ():
            file.seek(part.offsets[i])
            try:
                decode_image(io.BytesIO(file.read(part.sizes[i])))
            except DECODE_ERRORS as error:
                problems.append(f"{shard.name}: cannot read {part.names[i]} ({error})")
    return problems


def verify(args: argparse.Namespace) -> int:
    """Check all shards; returns the number of problems."""
    content = read_own_manifest(args.out)
    if content is None:
        raise DataError(f"{args.out / MANIFEST} does not exist: there is nothing to verify")
    problems = 0
    for split, entry in content["splits"].items():
        path = args.out / entry["index"]
        whole = load_index(path)
        found = []
        if _sha256(path) != entry["index_sha256"]:
            found.append(f"{path} is not the file that {MANIFEST} names")
        check_labels(whole, content["num_classes"])
        jobs = [
            (args.out, whole.select([shard.name]), not args.no_decode) for shard in whole.shards
        ]
        done = in_processes(verify_shard, jobs, args.jobs)
        for _, wrong in tqdm(done, f"verify {split}", len(jobs), unit="shard", disable=None):
            found += wrong
        for line in found[:SHOWN]:
            logger.error("%s", line)
        problems += len(found)
        print(
            f"{split}: {len(whole)} images in {len(jobs)} shards "
            f"{f'have {len(found)} problems' if found else 'are whole'}"
        )
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        if args.data_path:
            convert(args)
        if args.index:
            index(args)
        return 1 if args.verify and verify(args) else 0
    except (ConfigError, OSError, ValueError) as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        logger.error("interrupted; start the same command again to go on")
        return 130


if __name__ == "__main__":
    sys.exit(main())
