"""Checkpoints given by path, by the name of a released model or by URL, for several processes."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from torch import distributed

from . import hub
from .released import ReleasedModel, find_by_file, is_released, list_models, released_model
from .safe_load import CheckpointError

logger = logging.getLogger(__name__)

_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")


def is_url(path: str) -> bool:
    """Whether ``path`` is an http(s) address."""
    return str(path).startswith(("http://", "https://"))


def released(path: str) -> ReleasedModel | None:
    """The released model that a name or the address of its checkpoint stands for, or None."""
    if is_released(path):
        return None if Path(path).is_file() else released_model(path)
    return find_by_file(path) if is_url(path) else None


def fetch(path: str) -> Path:
    """Local path of a checkpoint given by path, released model's name or URL.

    A released model (``internimage_t_1k_224``, or its address) comes from the hub's cache, see
    :func:`hub.checkpoint_path`. Any other URL is downloaded once to ``<torch hub
    folder>/checkpoints``; when its file name carries the start of its sha256 (``name-<hash>.pth``,
    the torch convention) the content is checked. With several processes only rank 0 of each run
    downloads; call it on all of them.

    Raises:
        CheckpointError: no such file or name, download failed or hash differs.
    """
    row = released(path)
    if row is not None:
        return _first_rank_first(lambda: hub.checkpoint_path(row.name))
    if is_url(path):
        return _first_rank_first(lambda: _download(path))
    if not Path(path).is_file():
        raise CheckpointError(_missing(path))
    return Path(path)


def _first_rank_first(get: Callable[[], Path]) -> Path:
    """``get()`` on rank 0, then on the others, which find the file or fetch it to their machine."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return get()
    found: Path | None = None
    error = [None]
    if distributed.get_rank() == 0:
        try:
            found = get()
        except (CheckpointError, OSError) as failure:
            error = [str(failure)]
    distributed.broadcast_object_list(error, src=0)
    if error[0]:
        raise CheckpointError(error[0])
    return found or get()


def _missing(path: str) -> str:
    message = (
        f"checkpoint {path} does not exist (working directory {Path.cwd()}); give the path of a "
        ".pth file, the name of a released model or an https:// address"
    )
    row = find_by_file(Path(path).name)
    if row is not None:
        return f"{message}. {row.name!r} is the released model with this file"
    near = difflib.get_close_matches(path, list_models(pretrained=True, task=None), n=1)
    return f"{message}. Did you mean {near[0]!r}?" if near else message


def _download(url: str) -> Path:
    """Downloads ``url`` to torch's folder unless it is there."""
    target = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    match = _HASH_IN_NAME.search(target.name)
    wanted = match.group(1) if match else None
    if target.is_file():
        logger.info("using %s (already downloaded from %s)", target, url)
        if wanted and not (digest := hub.sha256_of(target)).startswith(wanted):
            raise CheckpointError(
                f"{target} has sha256 {digest[:16]}..., but its name asks for {wanted}; delete it "
                "and start again"
            )
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    logger.info("downloading %s to %s", url, target)
    try:
        torch.hub.download_url_to_file(url, str(target), hash_prefix=wanted)
    except (URLError, OSError) as failure:
        known = f"sha256 starts with {wanted}" if wanted else "its hash is not known"
        raise CheckpointError(
            f"could not download {url} ({failure}). Without a network, get the file on another "
            f"machine ({known}) and put it at {target}"
        ) from failure
    except RuntimeError as failure:
        raise CheckpointError(
            f"{url}: the downloaded file is not the expected one ({failure}); nothing was kept"
        ) from failure
    return target
