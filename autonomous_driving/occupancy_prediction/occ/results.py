"""Predicted grids: packed in memory, as files to look at, and as a submission.

A frame's result is {"token": sample token, "occupancy": packed grid}. Packed, the 6019 frames of
the validation split take about 0.1 GB instead of 4.
"""

from __future__ import annotations

import logging
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from internimage.write_file import replacing

from .classes import GRID

logger = logging.getLogger(__name__)


def pack(grid: np.ndarray) -> bytes:
    """A (200, 200, 16) grid of classes as compressed bytes.

    Raises:
        ValueError: it has another shape.
    """
    if grid.shape != GRID:
        raise ValueError(f"a predicted grid must have the shape {GRID}, got {grid.shape}")
    return zlib.compress(np.ascontiguousarray(grid, dtype=np.uint8).tobytes(), 1)


def unpack(packed: bytes) -> np.ndarray:
    """The (200, 200, 16) uint8 grid of `pack`."""
    return np.frombuffer(zlib.decompress(packed), dtype=np.uint8).reshape(GRID)


def save_npz(path: Path, *arrays: np.ndarray, **named: Any) -> None:
    """Writes a compressed npz file in one step."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, *arrays, **named)


def write_submission(results: Sequence[dict[str, Any]], prefix: str | Path) -> Path:
    """Writes `PREFIX/<token>.npz` with one unnamed uint8 array each, and `PREFIX.zip` of them.

    Returns:
        the path of the zip file.

    Raises:
        ValueError: there is nothing to write, or a frame comes twice.
    """
    if not results:
        raise ValueError("no results to submit")
    counts = Counter(result["token"] for result in results)
    twice = [token for token, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"frames come more than once in the results: {', '.join(twice[:5])}")
    folder = Path(prefix)
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder.with_name(folder.name + ".zip")
    with replacing(archive) as temporary, zipfile.ZipFile(temporary, "w") as file:
        for result in results:
            path = folder / f"{result['token']}.npz"
            save_npz(path, unpack(result["occupancy"]))
            file.write(path, path.name)
    logger.info("%d frames for submission: %s and %s", len(results), folder, archive)
    return archive


def write_for_viewing(
    folder: str | Path, index: int, result: dict[str, Any], labels: np.ndarray | None
) -> Path:
    """Writes `FOLDER/NNNN.npz` with `pred`, `gt` (when there are labels) and `token`."""
    os.makedirs(folder, exist_ok=True)
    path = Path(folder) / f"{index:04d}.npz"
    named = {} if labels is None else {"gt": labels}
    save_npz(path, pred=unpack(result["occupancy"]), token=result["token"], **named)
    return path
