"""A data set that is written whole or not at all, and files in it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

MARKER = "synthetic.json"  # settings of a data set that these writers made


def settings_of(folder: Path) -> Any:
    """What the marker of a data set holds; None where there is none."""
    try:
        return json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_whole(
    out: Path, settings: Mapping[str, Any], write: Callable[[Path], None], overwrite: bool
) -> bool:
    """Let `write` fill a temporary folder, which then becomes `out`.

    Args:
        out: the folder of the data set.
        settings: all that determines its content; a data set of equal settings is left as it is.
        overwrite: replace a data set of other settings. A folder of something else never is.

    Returns:
        False when the data set was there already.

    Raises:
        FileExistsError: `out` is a file, or a folder that may not be replaced.
        OSError: it cannot be written.
    """
    settings = json.loads(json.dumps(settings))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        found = settings_of(out) if out.is_dir() else None
        if found == settings:
            return False
        if found is None:
            raise FileExistsError(
                f"{out} exists and was not written by this program: name another folder"
            )
        if not overwrite:
            raise FileExistsError(
                f"{out} holds a synthetic data set of other settings: add --overwrite to replace "
                "it, or name another folder"
            )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise OSError(
            f"{out} cannot be written ({error.strerror or error}): name another folder"
        ) from error
    try:
        write(temporary)
        write_json(temporary / MARKER, settings)
        temporary.chmod(0o755)
        if out.exists():
            if settings_of(out) is not None:
                shutil.rmtree(out)
            else:
                out.rmdir()  # it is empty
        os.rename(temporary, out)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)
        raise
    return True


def write_json(path: Path, tree: Any) -> None:
    """Write `tree` as JSON; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree) + "\n", encoding="utf-8")


def write_jpeg(path: Path, image: np.ndarray) -> None:
    """Write an RGB image (H, W, 3) uint8 with full colour resolution."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = [cv2.IMWRITE_JPEG_QUALITY, 93]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), options)
    if not done:
        raise OSError(f"{path}: OpenCV could not encode an image of shape {image.shape}")
    path.write_bytes(data.tobytes())
