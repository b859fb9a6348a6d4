"""Packing the images of a split into tar shards, so that a kill costs the shard in work only.

What goes into which shard follows from the list of images, the seed and the number per shard; the
bytes of a shard depend on nothing else. A finished shard leaves its index in ``.unfinished``; when
all are there they become ``<split>/index.npz`` and an entry in ``dataset.json``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from models.write_file import replacing

from .decode import DECODE_ERRORS, decode_image
from .errors import CorruptDataError, DataError
from .samples import Classes, Samples
from .storage import READ_ERRORS, Reader
from .tar_index import TarIndex, concatenate, load_index, scan_tar, webdataset
from .webdataset_source import FORMAT, MANIFEST, read_manifest

T, R = TypeVar("T"), TypeVar("R")


@dataclass(frozen=True)
class Job:
    """One shard to be written.

    Attributes:
        out: root of the shards.
        name: of the shard, relative to it.
        numbers: place of each image in the list of the split.
        paths, labels: of these images.
        decode: look at the pixels, too.
    """

    out: Path
    name: str
    numbers: tuple[int, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    decode: bool

    @property
    def part(self) -> Path:
        """Index of the finished shard."""
        split, _, file = self.name.partition("/")
        return self.out / ".unfinished" / split / f"{file}.npz"

    @property
    def problems(self) -> Path:
        """[path, reason] of each image that was left out."""
        return self.part.with_suffix(".json")

    def is_done(self) -> bool:
        if not self.part.is_file():
            return False
        path, shard = self.out / self.name, load_index(self.part).shards[0]
        return path.is_file() and path.stat().st_size == shard.bytes


class _Hashing:
    """A file that is only written, and its sha256."""

    def __init__(self, file: IO[bytes]):
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)


def plan(
    out: Path, split: str, samples: Samples, per_shard: int, seed: int, decode: bool
) -> list[Job]:
    """Deal the images of a split out to shards; those of training are shuffled first."""
    order = np.arange(len(samples))
    if split == "train":
        order = np.random.default_rng(seed).permutation(order)
    jobs = []
    for number, begin in enumerate(range(0, len(order), per_shard)):
        own = order[begin : begin + per_shard].tolist()
        paths = tuple(samples.paths[i] for i in own)
        labels = tuple(int(samples.labels[i]) for i in own)
        jobs.append(Job(out, f"{split}/shard-{number:06d}.tar", tuple(own), paths, labels, decode))
    return jobs


@lru_cache
def _reader() -> Reader:
    """One for all shards of a process: opening a large zip archive takes a while."""
    return Reader()


def write_shard(job: Job) -> int:
    """Write a shard and its index; returns the number of images that were left out."""
    target = job.out / job.name
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    reader, problems = _reader(), []
    try:
        with temporary.open("wb") as file:
            sink = _Hashing(file)
            writer = webdataset().TarWriter(sink, encoder=False, compress=False, mtime=0)
            for number, path, label in zip(job.numbers, job.paths, job.labels, strict=True):
                try:
                    data = reader.read(path)
                    if job.decode:
                        decode_image(io.BytesIO(data))
                except (*READ_ERRORS, *DECODE_ERRORS) as error:
                    if isinstance(error, DataError):
                        raise
                    problems.append([path, str(error)])
                    continue
                stem, ending = os.path.splitext(path.rpartition("/")[2])
                ending = ending.lower() if ending.lower() in IMG_EXTENSIONS else ".jpg"
                clean = re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:60]
                key = f"{number:08d}-{clean}"
                writer.write({"__key__": key, ending[1:]: data, "cls": str(label).encode()})
            writer.close()
            file.flush()
            os.fsync(file.fileno())
        if len(problems) == len(job.paths):
            path, reason = problems[0]
            raise CorruptDataError(
                f"none of the {len(problems)} images of {job.name} can be read, e.g. {path} "
                f"({reason})"
            )
        index = scan_tar(temporary, job.name, sink.digest.hexdigest())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    write_json(job.problems, problems)
    index.save(job.part)
    return len(problems)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------- processes
def _end_with(parent: int) -> None:
    """A worker whose parent was killed would wait for work for ever; Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def in_processes(work: Callable[[T], R], items: Sequence[T], jobs: int) -> Iterator[tuple[T, R]]:
    """``(item, work(item))`` in the order in which they are ready."""
    if jobs == 1:
        for item in items:
            yield item, work(item)
        return
    pool = ProcessPoolExecutor(jobs, initializer=_end_with, initargs=(os.getpid(),))
    try:
        waiting = {pool.submit(work, item): item for item in items}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


# ----------------------------------------------------------------------------------- a split
def _fingerprint(jobs: Iterable[Job], classes: Classes) -> str:
    digest = hashlib.sha256(f"{FORMAT} {classes.count} {classes.names}".encode())
    for job in jobs:
        digest.update(repr((job.name, job.numbers, job.paths, job.labels, job.decode)).encode())
    return digest.hexdigest()


def read_own_manifest(out: Path) -> dict[str, Any] | None:
    """``dataset.json`` of a folder of shards, None when there is none."""
    path = out / MANIFEST
    return read_manifest(path.read_bytes(), str(path)) if path.is_file() else None


def add_to_manifest(
    out: Path,
    split: str,
    index: TarIndex,
    classes: Classes,
    *,
    made_from: str = "",
    left_out: Sequence[Sequence[str]] = (),
) -> None:
    """Write ``<split>/index.npz`` and enter the split into ``dataset.json``.

    Raises:
        DataError: the splits that are there have other classes.
    """
    content = read_own_manifest(out)
    if content is None:
        content = {
            "format": FORMAT,
            "num_classes": classes.count,
            "classes": classes.names,
            "splits": {},
        }
    if (content["num_classes"], content.get("classes")) != (classes.count, classes.names):
        raise DataError(
            f"{out / MANIFEST} has {content['num_classes']} classes, which are not the "
            f"{classes.count} of this data: name another folder"
        )
    (out / split).mkdir(parents=True, exist_ok=True)
    index.save(out / split / "index.npz")
    digest = hashlib.sha256((out / split / "index.npz").read_bytes()).hexdigest()
    content["splits"][split] = {
        "samples": len(index),
        "bytes": sum(shard.bytes for shard in index.shards),
        "index": f"{split}/index.npz",
        "index_sha256": digest,
        "made_from": made_from,
        "left_out": [list(problem) for problem in left_out],
        "shards": [asdict(shard) for shard in index.shards],
    }
    write_json(out / MANIFEST, content)


def write_split(
    out: Path,
    split: str,
    jobs: Sequence[Job],
    classes: Classes,
    *,
    processes: int,
    max_corrupt: int,
) -> tuple[bool, list[tuple[str, str]]]:
    """Write all shards of a split that are not there yet, then its index.

    Args:
        jobs: from `plan`.
        processes: how many work at once.
        max_corrupt: more unreadable images than this stop the work.

    Returns:
        Whether anything was written, and (path, reason) of the images that were left out.

    Raises:
        CorruptDataError: too many unreadable images.
        DataError: the folder holds shards of something else.
    """
    made_from = _fingerprint(jobs, classes)
    entry = ((read_own_manifest(out) or {}).get("splits") or {}).get(split)
    if entry is not None:
        if entry.get("made_from") != made_from:
            raise DataError(
                f"{out} already holds {split} shards of other images or options: remove them, or "
                "name another folder"
            )
        return False, [tuple(problem) for problem in entry["left_out"]]
    work = out / ".unfinished" / split
    try:
        work.mkdir(parents=True, exist_ok=True)
        (out / split).mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{out} cannot be written ({error.strerror}): name another folder"
        ) from error
    note = work / "made_from"
    if note.is_file() and note.read_text() != made_from:
        raise DataError(
            f"{work} is left from a conversion of other images or options: remove "
            f"{out} to begin anew, or name another folder"
        )
    note.write_text(made_from)
    left_out = _write_shards(jobs, processes, max_corrupt, split)
    whole = concatenate([load_index(job.part) for job in jobs])
    add_to_manifest(out, split, whole, classes, made_from=made_from, left_out=left_out)
    for path in (out / split).glob(".*.tmp"):  # of killed processes
        path.unlink(missing_ok=True)
    shutil.rmtree(work)
    with contextlib.suppress(OSError):
        work.parent.rmdir()
    return True, left_out


def _write_shards(
    jobs: Sequence[Job], processes: int, max_corrupt: int, split: str
) -> list[tuple[str, str]]:
    left_out: list[tuple[str, str]] = []
    total = sum(len(job.paths) for job in jobs)

    def note(job: Job) -> None:
        left_out.extend(tuple(problem) for problem in json.loads(job.problems.read_text()))
        progress.update(len(job.paths))
        if len(left_out) > max_corrupt:
            path, reason = left_out[-1]
            raise CorruptDataError(
                f"{len(left_out)} images cannot be read, more than --max-corrupt {max_corrupt}; "
                f"the last is {path} ({reason})"
            )

    with tqdm(total=total, desc=split, unit="img", disable=None) as progress:
        missing = []
        for job in jobs:
            if job.is_done():
                note(job)
            else:
                missing.append(job)
        for job, _ in in_processes(write_shard, missing, processes):
            note(job)
    return left_out
