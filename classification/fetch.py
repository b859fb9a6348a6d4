"""Checkpoints given by path or by URL, for several processes at once."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import torch

import distributed
from models.safe_load import CheckpointError

logger = logging.getLogger(__name__)

_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")


def is_url(path: str) -> bool:
    """Whether ``path`` is an http(s) address."""
    return str(path).startswith(("http://", "https://"))


def fetch(path: str) -> Path:
    """Local path of a checkpoint given by path or URL.

    A URL is downloaded once to ``<torch hub folder>/checkpoints``. When its file name carries the
    start of its sha256 (``name-<hash>.pth``, the torch convention) the content is checked.
    With several processes only rank 0 of each run downloads; call it on all of them.

    Raises:
        CheckpointError: no such file, download failed or hash differs.
    """
    if not is_url(path):
        if not Path(path).is_file():
            raise CheckpointError(
                f"checkpoint {path} does not exist (working directory {Path.cwd()}); give the path "
                "of a .pth file or an https:// address"
            )
        return Path(path)
    target = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(path).path).name
    error = None
    if distributed.is_main_process():
        error = _download(path, target)
    error = distributed.broadcast_object(error)
    if error:
        raise CheckpointError(error)
    if not target.is_file():  # another machine, with its own cache folder
        error = _download(path, target)
        if error:
            raise CheckpointError(error)
    return target


def _download(url: str, target: Path) -> str | None:
    """Download ``url`` to ``target`` unless it is there; returns an error message or None."""
    match = _HASH_IN_NAME.search(target.name)
    wanted = match.group(1) if match else None
    if target.is_file():
        logger.info("using %s (already downloaded from %s)", target, url)
        return _check_hash(target, wanted)
    target.parent.mkdir(parents=True, exist_ok=True)
    logger.info("downloading %s to %s", url, target)
    try:
        torch.hub.download_url_to_file(url, str(target), hash_prefix=wanted)
    except (URLError, OSError) as failure:
        known = f"sha256 starts with {wanted}" if wanted else "its hash is not known"
        return (
            f"could not download {url} ({failure}). Without a network, get the file on another "
            f"machine ({known}) and put it at {target}"
        )
    except RuntimeError as failure:
        return f"{url}: the downloaded file is not the expected one ({failure}); nothing was kept"
    return None


def _check_hash(path: Path, wanted: str | None) -> str | None:
    if wanted is None:
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest().startswith(wanted):
        return None
    return (
        f"{path} has sha256 {digest.hexdigest()[:16]}..., but its name asks for {wanted}; delete "
        "it and start again"
    )
