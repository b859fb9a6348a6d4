"""Reading ``.pth`` files without running code from them, and fetching them from a URL.

Own checkpoints hold only tensors and plain Python values. Checkpoints of the original
implementation also hold a pickled yacs ``CfgNode``: it is read as an ordinary dictionary, so
even that class is never constructed. Everything else is refused.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch

import distributed

logger = logging.getLogger(__name__)

CFG_NODE = "yacs.config.CfgNode"
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read, written or used; the message says what to do."""


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


def load_file(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, never running code from it.

    Args:
        path: a ``.pth`` file written by this project, by the original implementation or by any
            program that saved a dictionary of tensors.

    Raises:
        CheckpointError: missing, truncated, not a checkpoint, or holding objects other than
            tensors, plain Python values and a yacs configuration.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        loaded = _read(path)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError,
            AttributeError, IndexError, zipfile.BadZipFile) as error:  # fmt: skip
        raise CheckpointError(_explain(path, error)) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f"{path} holds a {type(loaded).__name__}, not a dictionary of weights"
        )
    if isinstance(loaded.get("config"), dict):
        loaded["config"] = to_plain(loaded["config"])
    return loaded


def to_plain(value: Any) -> Any:
    """Nested dictionaries of any class to plain ``dict``."""
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return value


def _read(path: Path) -> Any:
    if not _can_rename_globals():
        return _read_restricted(path)
    with torch.serialization.safe_globals([(OrderedDict, CFG_NODE)]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _can_rename_globals() -> bool:
    """Whether ``safe_globals`` takes (class, "name in the file") pairs (torch 2.6 and newer)."""
    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    return version is not None and (int(version[1]), int(version[2])) >= (2, 6)


class _RestrictedUnpickler(pickle.Unpickler):
    """Unpickler for older torch whose only classes and functions are those of this list."""

    _MODULES = types.MappingProxyType({"__builtin__": "builtins"})
    _ALLOWED = types.MappingProxyType(
        {
            "collections.OrderedDict": OrderedDict,
            "builtins.set": set,
            "torch.Size": torch.Size,
            "torch.device": torch.device,
            "torch._utils._rebuild_tensor": torch._utils._rebuild_tensor,
            "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
            "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
            CFG_NODE: OrderedDict,
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        full = f"{self._MODULES.get(module, module)}.{name}"
        if full in self._ALLOWED:
            return self._ALLOWED[full]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module == "torch" and re.fullmatch(r"[A-Za-z0-9]+Storage", name):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {full} is not allowed")


_restricted_pickle = types.SimpleNamespace(
    __name__="restricted_pickle",
    Unpickler=_RestrictedUnpickler,
    load=lambda file, **options: _RestrictedUnpickler(file, **options).load(),
)


def _read_restricted(path: Path) -> Any:
    """As ``weights_only=True`` with CfgNode allowed, for torch releases that cannot express it."""
    return torch.load(
        path, map_location="cpu", weights_only=False, pickle_module=_restricted_pickle
    )


def _explain(path: Path, error: Exception) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found:
        return (
            f"{path} is refused: it would run or construct {found[1]!r}, and only tensors, plain "
            "values and a yacs configuration are read. If the file comes from a source you trust, "
            "open it there and save only its state_dict"
        )
    size = path.stat().st_size
    return (
        f"{path} ({size} bytes) cannot be read as a checkpoint: it is truncated, damaged or not a "
        f".pth file ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). "
        "Use another checkpoint or get the file again"
    )
