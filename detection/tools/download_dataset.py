"""Download a data set from where its authors publish it, to where the configs look for it.

    python tools/download_dataset.py --dataset-name coco2017 --unzip --delete

Started again after an interruption it goes on where it stopped. COCO 2017 is 20 GB, and as much
again once unpacked unless --delete is given; Objects365 is hundreds of GB.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from internimage.cli import ArgumentParser, run_program
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from fetching import DownloadError, Source, download, unpack

logger = logging.getLogger("download_dataset")

COCO = "http://images.cocodataset.org/"
LVIS = "https://s3-us-west-2.amazonaws.com/dl.fbaipublicfiles.com/LVIS/"
VOC = "http://host.robots.ox.ac.uk/pascal/VOC/"
OBJECTS365 = (
    "https://dorc.ks3-cn-beijing.ksyun.com/data-set/2020Objects365%E6%95%B0%E6%8D%AE%E9%9B%86/"
)

# name: (folder that its configs read, files)
DATA_SETS: dict[str, tuple[str, list[Source]]] = {
    "coco2017": (
        "data/coco",
        [
            Source(COCO + "zips/train2017.zip"),
            Source(COCO + "zips/val2017.zip"),
            Source(COCO + "annotations/annotations_trainval2017.zip"),
        ],
    ),
    "lvis": (
        "data/lvis_v1",
        [
            Source(LVIS + "lvis_v1_train.json.zip", "annotations"),
            Source(LVIS + "lvis_v1_val.json.zip", "annotations"),
        ],
    ),
    "voc2007": (
        "data",
        [
            Source(VOC + "voc2007/VOCtrainval_06-Nov-2007.tar"),
            Source(VOC + "voc2007/VOCtest_06-Nov-2007.tar"),
        ],
    ),
    "voc2012": ("data", [Source(VOC + "voc2012/VOCtrainval_11-May-2012.tar")]),
    "objects365v2": (
        "data/Objects365/Obj365_v2",
        [
            Source(OBJECTS365 + "train/zhiyuan_objv2_train.tar.gz", "annotations"),
            Source(OBJECTS365 + "val/zhiyuan_objv2_val.json", "annotations"),
            *(Source(f"{OBJECTS365}train/patch{i}.tar.gz", "train") for i in range(51)),
            *(Source(f"{OBJECTS365}val/images/v1/patch{i}.tar.gz", "val") for i in range(16)),
            *(Source(f"{OBJECTS365}val/images/v2/patch{i}.tar.gz", "val") for i in range(16, 44)),
        ],
    ),
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = ArgumentParser("download_dataset.py", description="Download a data set")
    add = parser.add_argument
    add("--dataset-name", default="coco2017", choices=sorted(DATA_SETS), help="default: coco2017")
    add("--save-dir", type=Path, metavar="DIR", help="default: where the configs look for it")
    add("--unzip", action="store_true", help="unpack the archives")
    add("--delete", action="store_true", help="delete an archive once it is unpacked")
    add("--threads", type=int, default=4, metavar="N", help="files at a time (default: 4)")
    args = parser.parse_args(argv)
    if args.threads < 1:
        parser.error(f"--threads must be at least 1, got {args.threads}")
    if args.delete and not args.unzip:
        parser.error("--delete needs --unzip: it would delete what was just downloaded")
    return args


def get(source: Source, folder: Path, unzip: bool, delete: bool) -> Path:
    """Downloads and, if wanted, unpacks one file; returns where it lies or lay."""
    target = folder / source.folder / source.name
    unpacked = target.with_name(f".{target.name}.unpacked")
    if unpacked.is_file() and unzip:
        return target
    path = download(source.url, target)
    if unzip and unpack(path):
        unpacked.touch()
        if delete:
            path.unlink()
    return path


def run(args: argparse.Namespace) -> int:
    """Downloads all files of a data set; the others go on when one fails."""
    default, sources = DATA_SETS[args.dataset_name]
    folder = args.save_dir or Path(default)
    failed: list[str] = []
    with ThreadPoolExecutor(args.threads) as pool:
        jobs = {
            pool.submit(get, source, folder, args.unzip, args.delete): source for source in sources
        }
        for job in tqdm(as_completed(jobs), total=len(jobs), desc=args.dataset_name, unit="file"):
            try:
                job.result()
            except (DownloadError, OSError) as error:
                failed.append(str(error))
                logger.error("%s", error)
    if failed:
        raise DownloadError(
            f"{len(failed)} of {len(sources)} files are missing (first: {failed[0]}); run the same "
            "command again to go on"
        )
    logger.info("%s is in %s", args.dataset_name, folder.absolute())
    return 0


if __name__ == "__main__":
    sys.exit(run_program(run, parse_args(), DownloadError))
