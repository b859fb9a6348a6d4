"""Reading ``.pth`` files without running code from them.

Own checkpoints hold only tensors and plain Python values. Checkpoints of the original
implementation also hold a pickled yacs ``CfgNode``: it is read as an ordinary dictionary, so
even that class is never constructed. Everything else is refused.
"""

from __future__ import annotations

import errno
import pickle
import re
import struct
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

_NO_MEMORY = re.compile("can't allocate memory|not enough memory")  # words of PyTorch's allocator
CFG_NODE = "yacs.config.CfgNode"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read, written or used; the message says what to do."""


class ReadError(CheckpointError):
    """A file could not be read here, though it may be right: too little memory, a disk's error."""


def load_file(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, never running code from it.

    Args:
        path: a ``.pth`` file written by this project, by the original implementation or by any
            program that saved a dictionary of tensors.

    Raises:
        CheckpointError: missing, truncated, not a checkpoint, or holding objects other than
            tensors, plain Python values and a yacs configuration.
        ReadError: the memory does not hold it, or the disk reports an error.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        loaded = _read(path)
    except MemoryError as error:
        raise ReadError(_no_memory(path)) from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # the file names a place before its own beginning
            raise CheckpointError(_explain(path, error)) from error
        raise ReadError(f"cannot read {path}: {error}") from error
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError,
            AttributeError, IndexError, struct.error, zipfile.BadZipFile) as error:  # fmt: skip
        if _NO_MEMORY.search(str(error)):
            raise ReadError(_no_memory(path)) from error
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


def _no_memory(path: Path) -> str:
    return f"{path} ({path.stat().st_size} bytes) does not fit into the memory of this machine"


def _explain(path: Path, error: Exception) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found:
        return (
            f"{path} is refused: it would run or construct {found[1]!r}, and only tensors, plain "
            "values and a yacs configuration are read. If the file comes from a source you trust, "
            "open it there and save only its state_dict"
        )
    size = path.stat().st_size
    reason = type(error).__name__
    first_line = str(error).partition("\n")[0]
    if first_line and "weights_only" not in first_line:  # PyTorch's advice to load it unsafely
        reason += f": {first_line}"
    return (
        f"{path} ({size} bytes) cannot be read as a checkpoint: it is truncated, damaged or not a "
        f".pth file ({reason}). Use another checkpoint or get the file again"
    )
