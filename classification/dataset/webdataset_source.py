"""--dataset webdataset: tar shards under DATA.DATA_PATH, a folder or the address of one.

Found there: ``dataset.json`` with the classes and ``<split>/index.npz``, both written by
tools/make_shards.py. For shards from elsewhere: ``classes.txt`` (one name per line) and the shards
``train/*.tar`` and ``val/*.tar``, or those that DATA.TRAIN_SHARDS and DATA.VAL_SHARDS name; they
are indexed once, and the index is kept beside the cache.

Why an index, and not webdataset's own pipeline: that is a stream, which deals shards out over
processes and workers. The order of the images then depends on the number of workers, processes get
different numbers of batches, and a resumed run cannot repeat an epoch. With an index the shards are
a list of images like any other: sampler, decoding, transforms, workers, exactly-once validation and
exact resume are those of the other data sets. (The indexed reader wids, which webdataset 0.2
carried, is not part of webdataset 1.0.) From webdataset come the grouping of members to samples,
the patterns of names, access to stores other than http, and the writer.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from tqdm import tqdm
from yacs.config import CfgNode

from config import is_typed

from .class_names import names_for
from .download import NotOnServer, download
from .errors import DataError
from .samples import Classes, Samples
from .shard_cache import ShardCache, default_folder, locked
from .shard_store import ShardStore
from .tar_index import TarIndex, check_labels, concatenate, load_index, scan_tar, webdataset

logger = logging.getLogger(__name__)

FORMAT = "internimage-shards-1"
MANIFEST = "dataset.json"
_EXPECTED = (
    "Expected there: train/*.tar and val/*.tar with members KEY.jpg and KEY.cls; "
    "'python tools/make_shards.py -h' makes them from other layouts"
)


class _Root:
    """DATA.DATA_PATH: a folder, or the address of one with the cache for its files."""

    def __init__(self, config: CfgNode):
        typed = config.DATA.DATA_PATH.rstrip("/")
        if not typed:
            raise DataError(f"no data set given: type --data-path DIR or an URL. {_EXPECTED}")
        if typed.startswith("file:"):
            typed = url2pathname(urlparse(typed).path)
        self.remote = "://" in typed
        if not self.remote and not Path(typed).is_dir():
            raise DataError(f"data folder {typed} (DATA.DATA_PATH) does not exist. {_EXPECTED}")
        self.typed = typed
        self._folder = Path(config.DATA.SHARD_CACHE or default_folder())
        self._limit = int(config.DATA.SHARD_CACHE_GB * 2**30)

    def cache(self) -> ShardCache:
        return ShardCache(self._folder, self._limit)

    def url(self, name: str) -> str:
        """Path or URL of a file under the root (or elsewhere, when ``name`` says where)."""
        absolute = "://" in name or name.startswith("/")
        return name if absolute else f"{self.typed}/{name}"

    def small_file(self, name: str) -> bytes | None:
        """The content of a file, None when there is none."""
        if not self.remote:
            path = Path(self.typed, name)
            return path.read_bytes() if path.is_file() else None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "file")
            try:
                download(self.url(name), path)
            except NotOnServer:
                return None
            return path.read_bytes()


def read_manifest(data: bytes, where: str) -> dict[str, Any]:
    """Read a ``dataset.json`` that was found at ``where``.

    Raises:
        DataError: not one that tools/make_shards.py wrote.
    """
    try:
        content = json.loads(data)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, known is {FORMAT!r}")
        int(content["num_classes"]), dict(content["splits"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where} is not one of tools/make_shards.py: {error}") from error
    return content


def _manifest(root: _Root) -> dict[str, Any] | None:
    data = root.small_file(MANIFEST)
    return None if data is None else read_manifest(data, root.url(MANIFEST))


def webdataset_classes(config: CfgNode) -> Classes:
    """Classes from dataset.json, classes.txt or a typed MODEL.NUM_CLASSES.

    Raises:
        DataError: none of them is there.
    """
    root = _Root(config)
    content = _manifest(root)
    if content is not None:
        return Classes(int(content["num_classes"]), content.get("classes"))
    lines = (root.small_file("classes.txt") or b"").decode("utf-8", "replace").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if names:
        return Classes(len(names), names)
    if is_typed(config, "MODEL.NUM_CLASSES"):
        return Classes(config.MODEL.NUM_CLASSES)
    raise DataError(
        f"the classes of the shards in {root.typed} are not known, there is neither {MANIFEST} nor "
        "classes.txt: put a file classes.txt there (one name per line, in the order of the "
        "labels), or type --opts MODEL.NUM_CLASSES N"
    )


def is_imagenet(classes: Classes) -> bool:
    """Whether these are the 1000 classes of ImageNet-1K in their order."""
    return classes.count == 1000 and classes.names == names_for(1000)


def webdataset_samples(config: CfgNode, split: str, classes: Classes) -> Samples:
    """All images of the shards of a split.

    Raises:
        DataError: no shards, a missing or damaged one, images without label, labels out of range.
    """
    root = _Root(config)
    index = _index(config, root, split)
    check_labels(index, classes.count)
    urls = [root.url(shard.name) for shard in index.shards]
    remote = ["://" in url for url in urls]
    if any(remote) != all(remote):
        raise DataError(f"DATA.{split.upper()}_SHARDS mixes files and URLs: give one kind")
    if not any(remote):
        _check_files(index, urls)
    store = ShardStore(index, urls, root.cache() if any(remote) else None)
    return Samples(store.paths, index.labels, shards=store)


def _check_files(index: TarIndex, paths: list[str]) -> None:
    for shard, path in zip(index.shards, paths, strict=True):
        try:
            size = Path(path).stat().st_size
        except OSError as error:
            raise DataError(f"shard {path} is missing ({error}); the index names it") from error
        if size != shard.bytes:
            raise DataError(
                f"shard {path} has {size} bytes, the index says {shard.bytes}: it is cut off, or "
                "was changed after the index was made (tools/make_shards.py --verify, --index)"
            )


def _index(config: CfgNode, root: _Root, split: str) -> TarIndex:
    typed = config.DATA[f"{split.upper()}_SHARDS"]
    known = ((_manifest(root) or {}).get("splits") or {}).get(split)
    whole = None if known is None else _written_index(root, known)
    if whole is not None and not typed:
        return whole
    names = shard_names(root.typed, split, typed)
    part = whole.select(names) if whole is not None else None
    return part if part is not None else _scan(root, names, split)


def _written_index(root: _Root, entry: dict[str, Any]) -> TarIndex:
    url = root.url(entry["index"])
    local = root.cache().fetch(url, sha256=entry["index_sha256"]) if root.remote else Path(url)
    index = load_index(local)
    for shard in index.shards:
        if "://" in shard.name or shard.name.startswith("/") or ".." in shard.name.split("/"):
            raise DataError(f"{url} names a shard outside of its folder: {shard.name!r}")
    return index


def shard_names(root: str, split: str, pattern: str) -> list[str]:
    """Names of the shards of a split relative to ``root``, in order.

    Args:
        root: folder or address.
        pattern: e.g. ``train/photos-{000000..000146}.tar`` or ``train/*.tar`` (the latter for files
            only); '' is ``<split>/*.tar``.

    Raises:
        DataError: nothing fits, or an address without the pattern that it needs.
    """
    where = f"DATA.{split.upper()}_SHARDS"
    text = pattern or f"{split}/*.tar"
    result = []
    for name in webdataset().shardlists.expand_urls(text):
        if "*" not in name:
            result.append(name)
        elif "://" in root or "://" in name:
            raise DataError(
                f"{root} has no {MANIFEST} that lists the {split} shards, and a server is not "
                f"asked for its files: type --opts {where} '{split}/NAME-{{000000..000146}}.tar', "
                "or write the index with tools/make_shards.py --index"
            )
        elif name.startswith("/"):
            result += sorted(map(str, Path("/").glob(name[1:])))
        else:
            result += sorted(str(path.relative_to(root)) for path in Path(root).glob(name))
    if not result:
        hint = "" if pattern else f" {_EXPECTED}"
        raise DataError(f"no file in {root} is like {text!r} ({where}).{hint}")
    name, count = Counter(result).most_common(1)[0]
    if count > 1:
        raise DataError(f"{where} names {name} {count} times")
    return result


def _scan(root: _Root, names: list[str], split: str) -> TarIndex:
    """Index shards that came without one; each is looked at once, the result is kept."""
    cache = root.cache()
    folder = cache.folder / "index"
    folder.mkdir(exist_ok=True)
    parts = []
    logger.info("%s: %d shards without an index are looked through once", split, len(names))
    for name in tqdm(names, f"index of {split}", unit="shard", disable=None, leave=False):
        url = root.url(name)
        version = ""
        if "://" not in url:
            try:
                state = Path(url).stat()
            except OSError:
                raise DataError(f"shard {url} does not exist") from None
            version, url = f"{state.st_size} {state.st_mtime_ns}", str(Path(url).resolve())
        kept = folder / f"{cache.path(url, version).name}.npz"
        with locked(cache.lock_of(kept)):
            if not kept.is_file():
                local = cache.fetch(url) if "://" in url else Path(url)
                scan_tar(local, name).save(kept)
        parts.append(load_index(kept))
    return concatenate(parts)
