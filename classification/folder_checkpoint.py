"""Checkpoints that are folders: one file per process and more, written whole or not at all.

``epoch{n}/`` and ``best/`` are written under a hidden name and renamed when every process has
finished; a pointer to the newest is renamed into place last. A run that is killed at any moment
leaves the previous checkpoint and the pointer to it as they were.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import distributed
from models.safe_load import CheckpointError

logger = logging.getLogger(__name__)

RUN_FILE = "additional_state.pth"  # epoch, accuracies, configuration...
POINTER = "latest"  # a text file with the name of the newest folder, as DeepSpeed's tools read it


class FolderWriter:
    """Writes the checkpoints of one run; all processes share the file system.

    Args:
        output: folder of the run.
        save_freq: SAVE_FREQ, epochs between periodic checkpoints.
        keep: SAVE_CKPT_NUM, how many of those to keep.
        link: name of a symbolic link that also points to the newest folder, or ''.
    """

    def __init__(self, output: str | Path, save_freq: int, keep: int, link: str = "") -> None:
        self.output = Path(output)
        self.save_freq = save_freq
        self.keep = keep
        self.link = link
        if distributed.is_main_process():
            self.output.mkdir(parents=True, exist_ok=True)
            for old in self.output.glob(".*.old.tmp"):  # killed between two renames
                folder = self.output / old.name[1 : -len(".old.tmp")]
                if not folder.exists():
                    os.rename(old, folder)
            for stale in self.output.glob(".*.tmp"):
                logger.info("removing the unfinished checkpoint %s", stale)
                _remove(stale)
        distributed.barrier()

    def save(self, name: str, write: Callable[[Path], None]) -> Path:
        """Make the folder ``name`` (collective).

        Args:
            write: called on every process with the folder to write into, which exists.

        Raises:
            CheckpointError: on the process that could not write; the others lose their peer.
        """
        folder, temporary = self.output / name, self.output / f".{name}.tmp"
        if distributed.is_main_process():
            _remove(temporary)
            temporary.mkdir(parents=True)
        distributed.barrier()
        try:
            write(temporary)
        except (OSError, RuntimeError) as error:
            if distributed.is_lost_peer(error):
                raise
            if distributed.is_main_process():
                _remove(temporary)
            cause = str(error.__cause__ or error.__context__ or error).partition("\n")[0]
            # without telling the others: they may wait inside `write`, and end with this process
            raise CheckpointError(
                f"could not write {folder}: {cause}. Earlier checkpoints in {self.output} are "
                "untouched: make room or fix the permissions, then start the same command again"
            ) from error
        distributed.barrier()
        if distributed.is_main_process():
            self._replace(folder, temporary)
        distributed.barrier()
        logger.info("saved %s", folder)
        return folder

    def save_epoch(self, epoch: int, write: Callable[[Path], None]) -> Path:
        """Make ``epoch{n}``, point to it, and drop the one that is too old by then (collective)."""
        folder = self.save(f"epoch{epoch}", write)
        if distributed.is_main_process():
            self._point_to(folder)
            old = self.output / f"epoch{epoch - self.keep * self.save_freq}"
            if old.exists():
                _remove(old)
                logger.info("removed %s (SAVE_CKPT_NUM %d)", old, self.keep)
        distributed.barrier()
        return folder

    def _replace(self, folder: Path, temporary: Path) -> None:
        old = self.output / f".{folder.name}.old.tmp"
        _remove(old)
        if folder.exists():
            os.rename(folder, old)
        os.rename(temporary, folder)
        _remove(old)

    def _point_to(self, folder: Path) -> None:
        temporary = self.output / f".{POINTER}.tmp"
        with temporary.open("w") as file:
            file.write(folder.name)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.output / POINTER)
        if self.link:
            temporary = self.output / f".{self.link}.tmp"
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(folder.name)
            os.replace(temporary, self.output / self.link)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def find_folder(output: str | Path) -> Path | None:
    """The folder that the pointer in ``output`` names, else the last ``epoch{n}`` (collective:
    rank 0 decides for all)."""
    found = None
    if distributed.is_main_process():
        try:
            found = resolve_folder(output, must_exist=False)
        except OSError as error:
            logger.warning("auto-resume cannot look into %s: %s", output, error)
    return distributed.broadcast_object(found)


def resolve_folder(source: str | Path, must_exist: bool = True) -> Path | None:
    """A checkpoint folder, given itself or the run's output folder.

    Args:
        must_exist: False gives None when an output folder has no checkpoint.

    Raises:
        CheckpointError: there is no such folder.
    """
    path = Path(source)
    if (path / RUN_FILE).is_file():
        return path
    pointer = path / POINTER
    if pointer.is_file():
        folder = path / pointer.read_text().strip()
        if (folder / RUN_FILE).is_file():
            return folder
        logger.warning("%s names %s, which is not a checkpoint", pointer, folder)
    epochs = [
        (int(match[1]), folder)
        for folder in (path.iterdir() if path.is_dir() else ())
        if (match := re.fullmatch(r"epoch(\d+)", folder.name)) and (folder / RUN_FILE).is_file()
    ]
    if epochs:
        return max(epochs)[1]
    if must_exist:
        raise CheckpointError(
            f"{path} is not a checkpoint folder of main_deepspeed.py or main_accelerate.py (it has "
            f"no {RUN_FILE}) and holds none; give a folder such as OUTPUT/epoch3, or OUTPUT"
        )
    return None
