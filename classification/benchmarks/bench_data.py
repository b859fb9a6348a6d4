"""Images per second of the data loaders: folder, zip archive, tar shards, tar shards from a server.

    python benchmarks/bench_data.py [--images 512] [--workers 0 2] [--size 500 375]

JPEG files of noise over a gradient are written to a temporary folder and loaded by the training
loader with the transform of configs/without_lr_decay/internimage_t_1k_224.yaml. "read only" is the
bytes alone, without decoding, in the order of an epoch, by one process. Everything comes from the
file cache of the operating system: what a slow disk or network adds is not in these numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import statistics
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
for folder in (str(HERE.parent), str(HERE)):
    if folder not in sys.path:
        sys.path.insert(0, folder)

import numpy as np
import torch
from PIL import Image
from yacs.config import CfgNode

from config import load_config_file
from dataset import Loaders, build_loader
from dataset.shard_writer import plan, write_split
from dataset.sources import load_classes, load_samples

CONFIG = HERE / "configs/without_lr_decay/internimage_t_1k_224.yaml"


def write_images(root: Path, count: int, size: tuple[int, int]) -> None:
    """``count`` JPEG files in 8 classes, the same for training and validation."""
    rng = np.random.default_rng(0)
    width, height = size
    slope = np.linspace(0, 160, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
    for i in range(count):
        noise = rng.integers(0, 36, (height, width, 3))
        image = Image.fromarray((slope + noise).astype(np.uint8))
        path = root / "train" / f"{i % 8}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=90)
    (root / "val").symlink_to("train")


def settings(root: Path | str, dataset: str, workers: int, *opts: object) -> CfgNode:
    """Configuration of one way to load the images."""
    pairs = ("DATA.DATA_PATH", root, "DATA.DATASET", dataset, "DATA.NUM_WORKERS", workers)
    pairs += ("DATA.BATCH_SIZE", 64, "DATA.IMG_ON_MEMORY", False, *opts)
    return load_config_file(CONFIG, [str(word) for word in pairs])


def write_copies(root: Path, out: Path) -> None:
    """The images as out/zip/{train,val}.zip and as shards in out/tar."""
    (out / "zip").mkdir()
    with zipfile.ZipFile(out / "zip" / "train.zip", "w") as archive:
        for path in sorted((root / "train").rglob("*.jpg")):
            archive.write(path, path.relative_to(root / "train"))
    (out / "zip" / "val.zip").symlink_to("train.zip")
    config = settings(root, "folder", 0)
    classes = load_classes(config)
    for split in ("train", "val"):
        jobs = plan(out / "tar", split, load_samples(config, split, classes), 32, 0, False)
        write_split(out / "tar", split, jobs, classes, processes=1, max_corrupt=0)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a local web server for ``folder``."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def loading(loaders: Loaders, epoch: int) -> float:
    """Images per second of one epoch of the training loader."""
    loaders.set_epoch(epoch)
    begin, count = time.perf_counter(), 0
    for _, targets in loaders.train:
        count += len(targets)
    return count / (time.perf_counter() - begin)


def reading(loaders: Loaders) -> float:
    """Images per second of the bytes alone, in the order of an epoch."""
    dataset, order = loaders.train.dataset, list(loaders.train_sampler)
    begin = time.perf_counter()
    for index in order:
        dataset.reader.read(dataset.samples.paths[index])
    return len(order) / (time.perf_counter() - begin)


def measure(configs: dict[str, CfgNode], epochs: int) -> dict[str, tuple[float, float]]:
    """name -> medians of `loading` and `reading`; the candidates take turns, epoch by epoch."""
    every = {name: build_loader(config) for name, config in configs.items()}
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in every}
    for epoch in range(epochs + 1):  # the first warms up: workers start, shards are fetched
        for name, loaders in every.items():
            speeds[name].append((loading(loaders, epoch), reading(loaders)))
    return {
        name: tuple(statistics.median(column) for column in zip(*rows[1:], strict=True))
        for name, rows in speeds.items()
    }


def main() -> int:
    """Print a table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, nargs=2, default=(500, 375), metavar=("W", "H"))
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        root, out = Path(place, "images"), Path(place)
        write_images(root, args.images, tuple(args.size))
        write_copies(root, out)
        bytes_each = sum(p.stat().st_size for p in root.rglob("train/*/*.jpg")) / args.images
        print(f"{args.images} images of {args.size[0]} x {args.size[1]}, {bytes_each / 1e3:.0f} kB")
        print("| source | workers | images/s | read only, images/s |\n|---|---|---|---|")
        with served(out / "tar") as url:
            cache = ("DATA.SHARD_CACHE", out / "cache", "DATA.SHARD_CACHE_GB", 8)
            plain = ("DATA.ZIP_MODE", True, "DATA.CACHE_MODE", "no")
            for workers in args.workers:
                configs = {
                    "folder": settings(root, "folder", workers),
                    "zip": settings(out / "zip", "folder", workers, *plain),
                    "shards": settings(out / "tar", "webdataset", workers),
                    "shards, server and cache": settings(url, "webdataset", workers, *cache),
                }
                for name, (speed, read) in measure(configs, args.epochs).items():
                    print(f"| {name} | {workers} | {speed:.0f} | {read:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
