"""Tar shards in the WebDataset convention: which bytes of a shard are which image.

A shard is a plain tar file. Neighbouring members ``KEY.jpg`` (or another ending of an image) and
``KEY.cls`` (the label as text) or ``KEY.json`` (a number, or an object with "label" or "cls") are
one sample. The index is what turns shards into a list that can be read in any order; it is made by
walking over the headers of a shard once. The names are grouped by the package webdataset itself.
"""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from models.write_file import replacing

from .errors import DataError
from .samples import PackedStrings

_IMAGES = tuple(ending.removeprefix(".") for ending in IMG_EXTENSIONS)
_BLOCK = 512  # a tar file consists of blocks of this size; a block of zeros ends it


def webdataset() -> ModuleType:
    """The package webdataset.

    Raises:
        DataError: it is not installed.
    """
    try:
        import webdataset as package
        import webdataset.shardlists
        import webdataset.tariterators
    except ImportError as error:
        raise DataError(
            f"tar shards need the package webdataset ({error}): "
            "pip install -r requirements/large.txt"
        ) from error
    return package


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        name: path relative to the data root.
        samples: number of images.
        bytes: size of the file.
        sha256: of the file, '' where it is not known.
    """

    name: str
    samples: int
    bytes: int
    sha256: str = ""


@dataclass(frozen=True)
class TarIndex:
    """The N images of some shards, in the order in which they lie there.

    Attributes:
        shards: the tar files.
        offsets: (N,) int64, first byte of each image in its shard.
        sizes: (N,) int64, bytes of each image.
        labels: (N,) int64.
        names: the N members, for messages.
    """

    shards: tuple[Shard, ...]
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    names: PackedStrings

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, names: Sequence[str]) -> TarIndex | None:
        """The part of some shards, in the order of ``names``; None when one is not there."""
        place = {shard.name: i for i, shard in enumerate(self.shards)}
        if not set(names) <= set(place):
            return None
        if list(names) == [shard.name for shard in self.shards]:
            return self
        return concatenate([self._part(place[name]) for name in names])

    def _part(self, number: int) -> TarIndex:
        begin = sum(shard.samples for shard in self.shards[:number])
        rows = slice(begin, begin + self.shards[number].samples)
        buffer, ends = self.names.arrays
        ends = ends[rows.start : rows.stop + 1]
        names = PackedStrings.from_arrays(buffer[ends[0] : ends[-1]], ends - ends[0])
        return TarIndex(
            (self.shards[number],), self.offsets[rows], self.sizes[rows], self.labels[rows], names
        )

    def save(self, path: Path) -> None:
        """Write an .npz file, whole or not at all."""
        shards = json.dumps([asdict(shard) for shard in self.shards]).encode()
        buffer, ends = self.names.arrays
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file, shards=np.frombuffer(shards, np.uint8), offsets=self.offsets,
                sizes=self.sizes, labels=self.labels, names=buffer, name_ends=ends,
            )  # fmt: skip


def load_index(path: Path) -> TarIndex:
    """Read what `TarIndex.save` wrote.

    Raises:
        DataError: the file is missing or not such an index.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            shards = tuple(Shard(**shard) for shard in json.loads(file["shards"].tobytes()))
            names = PackedStrings.from_arrays(file["names"], file["name_ends"])
            index = TarIndex(shards, file["offsets"], file["sizes"], file["labels"], names)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"index of shards {path} cannot be read: {error}") from error
    if sum(shard.samples for shard in shards) != len(index) or len(names) != len(index):
        raise DataError(f"index of shards {path} contradicts itself: make it again")
    return index


def concatenate(parts: Sequence[TarIndex]) -> TarIndex:
    """One index of the shards of several."""
    buffers, ends, total = [], [np.zeros(1, np.int64)], 0
    for part in parts:
        buffer, own = part.names.arrays
        buffers.append(buffer)
        ends.append(own[1:] + total)
        total += int(own[-1])
    return TarIndex(
        tuple(shard for part in parts for shard in part.shards),
        np.concatenate([part.offsets for part in parts]),
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.labels for part in parts]),
        PackedStrings.from_arrays(np.concatenate(buffers), np.concatenate(ends)),
    )


def check_labels(index: TarIndex, num_classes: int) -> None:
    """Raise a DataError that names the first image whose label is not in 0..num_classes-1."""
    wrong = np.flatnonzero((index.labels < 0) | (index.labels >= num_classes))
    if not len(wrong):
        return
    first = int(wrong[0])
    ends = np.cumsum([shard.samples for shard in index.shards])
    shard = index.shards[int(np.searchsorted(ends, first, side="right"))]
    raise DataError(
        f"{shard.name}: label {index.labels[first]} of {index.names[first]} is out of range "
        f"0..{num_classes - 1} ({len(wrong)} such images in this split)"
    )


# -------------------------------------------------------------------------------------- scanning
def scan_tar(path: Path, name: str, sha256: str = "") -> TarIndex:
    """Index one shard by its headers; the images themselves are not read.

    Args:
        path: the file.
        name: what the index and messages call it.
        sha256: of the file, kept in the index.

    Raises:
        DataError: missing, cut off or compressed file; sample without image or label.
    """
    grouped = webdataset().tariterators.group_by_keys
    offsets, sizes, labels, names = [], [], [], []
    try:
        with tarfile.open(path, "r:") as tar:
            for sample in grouped(_members(tar, name)):
                image = _image(sample, name)
                offsets.append(image.offset_data)
                sizes.append(image.size)
                names.append(image.name.removeprefix("./"))
                labels.append(_label(tar, sample, name))
            _check_end(tar, name)
    except FileNotFoundError:
        raise DataError(f"shard {name} does not exist (looked for {path})") from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"shard {name} is not a whole, plain tar file: {_reason(path, error)}"
        ) from (error)
    except DataError:
        raise
    except ValueError as error:  # of webdataset: two members of the same name
        raise DataError(f"shard {name}: {error.args[0]}") from error
    if not labels:
        raise DataError(f"shard {name} holds no samples (members KEY.jpg and KEY.cls)")
    return TarIndex(
        (Shard(name, len(labels), path.stat().st_size, sha256),),
        np.array(offsets, np.int64),
        np.array(sizes, np.int64),
        np.array(labels, np.int64),
        PackedStrings(names),
    )


def _members(tar: tarfile.TarFile, name: str) -> Iterator[dict[str, Any]]:
    for member in tar:
        if member.isreg() and not member.name.startswith("__"):
            yield {"fname": member.name.removeprefix("./"), "data": member, "__url__": name}


def _check_end(tar: tarfile.TarFile, name: str) -> None:
    """tarfile takes a file that stops between two members, or a damaged header, for the end."""
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(_BLOCK) != bytes(_BLOCK):
        raise tarfile.ReadError(f"no end mark at byte {tar.offset}, it is cut off or damaged there")


def _reason(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        compressed = file.read(3).startswith((b"\x1f\x8b", b"BZh", b"\xfd7z", b"(\xb5/"))
    if compressed:
        return "it is compressed, which leaves no way to one image; images gain nothing from it"
    return str(error)


def _image(sample: dict[str, Any], shard: str) -> tarfile.TarInfo:
    found = [ending for ending in sample if ending.rpartition(".")[2] in _IMAGES]
    if len(found) == 1:
        return sample[found[0]]
    own = sorted(ending for ending in sample if not ending.startswith("__"))
    what = f"several images ({', '.join(found)})" if found else "no image"
    raise DataError(
        f"shard {shard}: sample {sample['__key__']!r} has {what}, its members end in: "
        f"{' '.join(own)}"
    )


def _label(tar: tarfile.TarFile, sample: dict[str, Any], shard: str) -> int:
    where = f"shard {shard}: sample {sample['__key__']!r}"
    reader: Callable[[bytes], Any] = int
    member = sample.get("cls")
    if member is None:
        member, reader = sample.get("json"), _label_of_json
    if member is None:
        own = sorted(ending for ending in sample if not ending.startswith("__"))
        raise DataError(
            f"{where} has no label: KEY.cls or KEY.json must lie right beside the image, there "
            f"are only: {' '.join(own)}"
        )
    text = tar.extractfile(member).read()
    try:
        return reader(text)
    except (ValueError, KeyError, TypeError):
        form = "an integer" if reader is int else "an integer or as {'label': integer}"
        raise DataError(
            f"{where}: {member.name} must hold the label as {form}, got {text[:60]!r}"
        ) from None


def _label_of_json(text: bytes) -> int:
    value = json.loads(text)
    if isinstance(value, dict):
        value = value["label"] if "label" in value else value["cls"]
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value
