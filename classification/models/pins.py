"""The lock file of downloaded checkpoints: their sha256 and size, as they were the first time.

`<HF_HOME>/internimage_lock.json`, beside the cache. A file that differs later, here or after
another download, is refused. Several processes may use it at once.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import FileLock
from huggingface_hub import constants

from .safe_load import CheckpointError

logger = logging.getLogger(__name__)


@dataclass
class Pin:
    """What is known of one file.

    Attributes:
        sha256: hexadecimal.
        size: in bytes.
        checked: {path: [size, mtime in ns]} of copies that had this hash, so that gigabytes are not
            read at every start.
    """

    sha256: str
    size: int
    checked: dict[str, list[int]] = field(default_factory=dict)

    def knows(self, path: Path) -> bool:
        """Whether this very file was checked and has not been written to since."""
        return self.checked.get(str(path)) == _stamp(path)


def lock_file() -> Path:
    """Where the pins are."""
    return Path(constants.HF_HOME) / "internimage_lock.json"


def read_pin(key: str) -> Pin | None:
    """The pin of `repository/file`, None before the first download.

    Raises:
        CheckpointError: the lock file is damaged.
    """
    return _read().get(key)


def write_pin(key: str, sha256: str, path: Path) -> None:
    """Records that `path` has this hash. A folder that cannot be written to is only a warning.

    Raises:
        CheckpointError: the lock file is damaged, or another process pinned another hash meanwhile.
    """
    target = lock_file()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            pins = _read()
            pin = pins.setdefault(key, Pin(sha256, path.stat().st_size))
            if pin.sha256 != sha256:
                raise CheckpointError(
                    f"{path} has sha256 {sha256}, but another process has pinned {pin.sha256} for "
                    f"{key} in {target}"
                )
            pin.checked = {p: stamp for p, stamp in pin.checked.items() if Path(p).exists()}
            pin.checked[str(path)] = _stamp(path)
            _write(target, pins)
    except OSError as error:
        logger.warning("cannot record the sha256 of %s in %s: %s", key, target, error)


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _read() -> dict[str, Pin]:
    path = lock_file()
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        pins = {key: Pin(**entry) for key, entry in entries.items()}
        for key, pin in pins.items():
            if not (isinstance(pin.sha256, str) and isinstance(pin.checked, dict)):
                raise ValueError(f"the entry {key!r} is {entries[key]}")
        return pins
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"cannot read {path} ({error}), which holds the sha256 of downloaded checkpoints: "
            "repair or delete it"
        ) from error


def _write(target: Path, pins: dict[str, Pin]) -> None:
    entries = {key: asdict(pin) for key, pin in pins.items()}
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(entries, file, indent=2, sort_keys=True)
            file.write("\n")
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
