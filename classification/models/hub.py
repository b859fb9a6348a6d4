"""Checkpoints of released models: downloaded once, verified, kept in the Hugging Face cache.

huggingface_hub downloads (progress bar, retries that resume, one download for several processes);
HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN mean what they mean there. A file is
used only after its sha256 was found right and it could be opened as a checkpoint; a file that fails
is removed from the cache again.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import logging
import re
import time
from pathlib import Path

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.utils import HfHubHTTPError, LocalEntryNotFoundError

from .pins import Pin, lock_file, read_pin, write_pin
from .released import ReleasedModel, model_arguments, released_model
from .safe_load import CheckpointError, ReadError, load_file
from .weights import State, core_op, describe, extract_state, head_classes, is_joint

logger = logging.getLogger(__name__)

ATTEMPTS = 3
ABANDONED = 60.0  # seconds after which a partial file that nobody writes to is deleted
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SHA256 = re.compile("[0-9a-f]{64}")


def checkpoint_path(name: str, cache_dir: str | Path | None = None) -> Path:
    """Path of a released model's checkpoint, downloaded into the cache if it is not there.

    A file that was put by hand where the error message says is found too.

    Args:
        name: one of `list_models(pretrained=True)`.
        cache_dir: the cache; None for that of huggingface_hub (HF_HUB_CACHE).

    Raises:
        UnknownModelError: no such name.
        CheckpointError: no file is published, it cannot be had, or it is not the right one.
    """
    row = released_model(name)
    if row.hub_file is None:
        raise CheckpointError(
            f"{name} has no checkpoint to download: none is known to this project. Build it with "
            "pretrained=False, and load your own file with models.weights.load_weights"
        )
    cache = Path(cache_dir or constants.HF_HUB_CACHE)
    pin = read_pin(_key(row))
    cached = try_to_load_from_cache(row.hub_repo, row.hub_file, cache_dir=cache)
    if isinstance(cached, str):
        return _verify_cached(row, Path(cached), pin, "")
    by_hand = path_by_hand(row, cache)
    if by_hand.is_file():
        _verify(row, by_hand, pin)
        return by_hand
    return _download(row, cache, pin)


def path_by_hand(row: ReleasedModel, cache: Path) -> Path:
    """Where a file that was carried here by hand is looked for."""
    return cache / f"models--{row.hub_repo.replace('/', '--')}" / row.hub_file


def sha256_of(path: Path) -> str:
    """The sha256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _key(row: ReleasedModel) -> str:
    return f"{row.hub_repo}/{row.hub_file}"


def _download(row: ReleasedModel, cache: Path, pin: Pin | None) -> Path:
    try:
        url = hf_hub_url(row.hub_repo, row.hub_file, endpoint=constants.ENDPOINT)
        etag = get_hf_file_metadata(url).etag or ""
        _compare(row, pin, etag if SHA256.fullmatch(etag) else None, f"the file that {url} offers")
        logger.info("downloading %s to %s", url, cache)
        path = _resumed_download(row, cache, etag)
    except CheckpointError:
        raise
    except Exception as error:  # those of requests, httpx, ... depending on huggingface_hub
        raise CheckpointError(_unreachable(row, cache, pin, error)) from error
    _remove_abandoned(row, cache, etag)
    return _verify_cached(row, path, pin, etag)


def _resumed_download(row: ReleasedModel, cache: Path, etag: str) -> Path:
    """`hf_hub_download`, again after a cut connection: not all of its releases do that."""
    for attempt in range(ATTEMPTS):
        try:
            path = hf_hub_download(
                row.hub_repo, row.hub_file, cache_dir=cache, endpoint=constants.ENDPOINT
            )
            return Path(path)
        except Exception as error:
            if type(error) is OSError and error.errno is None:  # another size than announced
                partial = path_by_hand(row, cache).parent / "blobs" / f"{etag}.incomplete"
                partial.unlink(missing_ok=True)  # nothing to go on from
                raise
            final = isinstance(error, (HfHubHTTPError, LocalEntryNotFoundError, ValueError))
            on_disk = isinstance(error, OSError) and error.errno is not None
            if final or on_disk or attempt == ATTEMPTS - 1:
                raise
            logger.warning("%s: %s; trying to go on", row.hub_file, error)
            time.sleep(1 + attempt)
    raise AssertionError("unreachable")


def _remove_abandoned(row: ReleasedModel, cache: Path, etag: str) -> None:
    """Deletes partial files of processes that were killed: newer hub releases never reuse them."""
    blobs = path_by_hand(row, cache).parent / "blobs"
    for partial in blobs.glob(f"{glob.escape(etag)}.*.incomplete"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > ABANDONED:
                partial.unlink()


def _verify_cached(row: ReleasedModel, path: Path, pin: Pin | None, etag: str) -> Path:
    """As `_verify`, for a file that huggingface_hub wrote: it is removed if it is wrong."""
    names = (etag, path.resolve().name)  # the cache calls a large file by its sha256
    announced = next((name for name in names if SHA256.fullmatch(name)), None)
    try:
        _verify(row, path, pin, announced)
    except ReadError:
        raise
    except CheckpointError as error:
        try:
            _remove(path)
        except OSError as failure:
            raise CheckpointError(
                f"{error}. It could not be removed from the cache ({failure}): delete it there"
            ) from error
        raise CheckpointError(f"{error}. It was removed from the cache") from error
    return path


def _verify(row: ReleasedModel, path: Path, pin: Pin | None, etag: str | None = None) -> None:
    """Raises CheckpointError unless the file is the released one and opens; pins its hash."""
    if pin is not None and pin.knows(path):
        return
    logger.info("checking %s", path)
    size = path.stat().st_size
    if row.bytes not in (None, size):
        raise CheckpointError(f"{path} has {size} bytes, but that of {row.name} has {row.bytes}")
    sha256 = sha256_of(path)
    _compare(row, pin, sha256, str(path))
    if etag not in (None, sha256):
        raise CheckpointError(f"{path} has sha256 {sha256}, but the hub announced {etag}")
    state = extract_state(load_file(path), str(path))
    if not is_joint(state):
        _compare_contents(row, state, path)
    write_pin(_key(row), sha256, path)


def _compare_contents(row: ReleasedModel, state: State, path: Path) -> None:
    """Raises CheckpointError if the weights are not of the size, operator and head of the row."""
    classes = head_classes(state, row.task)
    head = "no head" if classes is None else f"{classes} classes"
    found = f"{describe(state)}, {core_op(state) or 'no operator'}, {head}"
    arguments = row.arguments if row.model is None else model_arguments(row.name)
    expected = (
        f"channels {arguments['channels']}, depths {list(arguments['depths'])}, "
        f"{arguments.get('core_op', 'DCNv3')}, {row.num_classes} classes"
    )
    if found != expected:
        raise CheckpointError(f"{path} holds {found}, but {row.name} has {expected}: another model")


def _compare(row: ReleasedModel, pin: Pin | None, sha256: str | None, what: str) -> None:
    """Raises CheckpointError if a hash is not the published and not the pinned one."""
    if sha256 is None:
        return
    if row.sha256 not in (None, sha256):
        raise CheckpointError(f"{what} has sha256 {sha256}, but that of {row.name} is {row.sha256}")
    if pin is not None and pin.sha256 != sha256:
        raise CheckpointError(
            f"{what} has sha256 {sha256}, but the first download of {row.name} had {pin.sha256} "
            f"(pinned in {lock_file()}). If the file was replaced on purpose, delete that entry"
        )


def _remove(path: Path) -> None:
    """Deletes a file of the cache, and what it is a symbolic link to."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def _unreachable(row: ReleasedModel, cache: Path, pin: Pin | None, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, OSError) and (error.filename is not None or error.errno in DISK_FULL):
        return (
            f"cannot write to the cache {cache} ({error}): make room there, or set HF_HOME to "
            "another folder"
        )
    sha256 = row.sha256 or (pin.sha256 if pin else None)
    known = f"sha256 {sha256}" if sha256 else "its sha256 is not known"
    size = row.bytes or (pin.size if pin else None)
    known += f", {size} bytes" if size else ""
    return (
        f"could not download {row.url} ({type(error).__name__}: {reason}). Without a network, get "
        f"the file on another machine ({known}) "
        f"and put it at {path_by_hand(row, cache)}"
    )
