"""Finding images and labels: class folders, class folders in a zip archive, list files."""

from __future__ import annotations

import difflib
import os
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from .errors import DataError
from .samples import PackedStrings, Samples
from .storage import open_zip

CLASSIFICATION = Path(__file__).resolve().parents[1]


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS)


def _check_not_empty(counts: dict[str, int], where: str) -> None:
    empty = [name for name, count in counts.items() if not count]
    if empty:
        raise DataError(
            f"{len(empty)} of {len(counts)} class folders of {where} hold no image: "
            f"{', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''} "
            f"(known endings: {' '.join(IMG_EXTENSIONS)})"
        )


def _label_of(index: dict[str, int], name: str, where: str) -> int:
    if name not in index:
        near = difflib.get_close_matches(name, index, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise DataError(f"{where} has a class folder {name!r} that is not a known class{hint}")
    return index[name]


# ----------------------------------------------------------------------------------- folders
def class_folders(folder: Path) -> list[str]:
    """Sorted names of the class folders in ``folder`` (hidden ones left out)."""
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    )


def folder_samples(folder: Path, index: dict[str, int]) -> Samples:
    """All images below ``folder/<class>/``, in torchvision's ImageFolder order.

    Raises:
        DataError: an empty class folder, or one that ``index`` does not have.
    """
    names = class_folders(folder)
    local = {name: _label_of(index, name, str(folder)) for name in names}
    if not local:
        raise DataError(f"{folder} holds no class folders")
    found = make_dataset(str(folder), local, extensions=IMG_EXTENSIONS, allow_empty=True)
    labels = np.array([label for _, label in found], dtype=np.int64)
    counts = np.bincount(labels, minlength=max(local.values()) + 1) if len(labels) else {}
    _check_not_empty({n: int(counts[i]) if len(labels) else 0 for n, i in local.items()}, folder)
    return Samples(PackedStrings([path for path, _ in found]), labels)


# --------------------------------------------------------------------------------------- zip
def _zip_members(archive: Path) -> tuple[str, ...]:
    stamp = archive.stat().st_mtime_ns if archive.exists() else None
    return _members_at(archive, stamp)


@lru_cache(maxsize=4)
def _members_at(archive: Path, stamp: int | None) -> tuple[str, ...]:
    with open_zip(archive) as file:
        return tuple(
            name
            for name in file.namelist()
            if not name.endswith("/") and not name.startswith("__MACOSX/")
        )


def forget_archives() -> None:
    """Drop the member lists of archives; they are large for large data sets."""
    _members_at.cache_clear()


def _zip_images(archive: Path) -> dict[str, list[str]]:
    """Class -> sorted members. A single folder around all classes (train/...) is looked through."""
    members = [name for name in _zip_members(archive) if _is_image(name)]
    if not members:
        raise DataError(f"zip archive {archive} holds no image")
    around = {name.split("/", 1)[0] for name in members}
    depth = 1 if len(around) == 1 and all(name.count("/") >= 2 for name in members) else 0
    classes: dict[str, list[str]] = {}
    for name in members:
        parts = name.split("/")
        if len(parts) < depth + 2:
            raise DataError(
                f"zip archive {archive} holds {name} outside of a class folder: put a list file "
                f"beside it ({archive.stem}_map.txt, lines 'path label') or sort it into folders"
            )
        classes.setdefault(parts[depth], []).append(name)
    return {name: sorted(classes[name]) for name in sorted(classes)}


def zip_classes(archive: Path) -> list[str]:
    """Sorted names of the class folders in an archive."""
    return list(_zip_images(archive))


def zip_samples(archive: Path, index: dict[str, int]) -> Samples:
    """All images of an archive with class folders, as ``archive.zip@/inner/path``."""
    paths, labels = [], []
    for name, members in _zip_images(archive).items():
        label = _label_of(index, name, str(archive))
        paths += [f"{archive}@/{member}" for member in members]
        labels += [label] * len(members)
    return Samples(PackedStrings(paths), np.array(labels, dtype=np.int64))


# ------------------------------------------------------------------------------------- lists
def find_file(name: str, root: Path) -> tuple[Path | None, list[Path]]:
    """Look for ``name`` relative to the working directory, the data root and classification/.

    Returns:
        The first that exists (or None), and all places looked at.
    """
    places = list(dict.fromkeys(base / name for base in (Path.cwd(), root, CLASSIFICATION)))
    return next((p for p in places if p.is_file()), None), places


def _list_text(path: Path) -> str:
    if path.suffix != ".zip":
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"list file {path} cannot be read: {error}") from error
    with open_zip(path) as file:
        names = [name for name in file.namelist() if name.endswith(".txt")]
        wanted = path.stem if path.stem in names else names[0] if len(names) == 1 else None
        if wanted is None:
            raise DataError(f"{path} must hold {path.stem}, it holds: {', '.join(names) or 'none'}")
        try:
            return file.read(wanted).decode("utf-8")
        except (zipfile.BadZipFile, UnicodeDecodeError, OSError) as error:
            raise DataError(f"{wanted} in {path} cannot be read: {error}") from error


def read_list(path: Path, num_classes: int | None = None) -> tuple[list[str], np.ndarray]:
    """Read lines ``path label`` (blank or tab between them), also from ``name.txt.zip``.

    Args:
        path: list file.
        num_classes: labels must lie in 0..num_classes-1.

    Returns:
        Paths as written, labels (N,) int64.

    Raises:
        DataError: naming file and line.
    """
    names, labels = [], []
    for number, line in enumerate(_list_text(path).splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().replace("\t", " ").rpartition(" ")
        if not name or not label.removeprefix("-").isdigit():
            raise DataError(f"{path}:{number}: expected 'path label', got {line!r}")
        value = int(label)
        if value < 0 or (num_classes is not None and value >= num_classes):
            limit = f"0..{num_classes - 1}" if num_classes is not None else "0.."
            raise DataError(f"{path}:{number}: label {value} is out of range {limit}")
        names.append(name.strip())
        labels.append(value)
    if not names:
        raise DataError(f"list file {path} is empty, expected lines 'path label'")
    return names, np.array(labels, dtype=np.int64)


def list_samples(path: Path, bases: list[str], num_classes: int) -> Samples:
    """Images named by a list file.

    Args:
        path: list file.
        bases: places that its paths can be relative to (folders, or ``archive.zip@/prefix``); the
            first one that has one of the list's first images is taken for all.
        num_classes: limit of the labels.

    Raises:
        DataError: malformed line, or no place has any of the first images.
    """
    names, labels = read_list(path, num_classes)
    if os.path.isabs(names[0]) or os.path.isfile(names[0].partition("@/")[0]):
        return Samples(PackedStrings(names), labels)
    for base in bases:
        if any(_exists(base, name) for name in names[:20]):
            return Samples(PackedStrings([base + name.lstrip("/") for name in names]), labels)
    tried = ", ".join(base + names[0] for base in bases)
    raise DataError(f"the first images of {path} do not exist; looked for: {tried}")


def _exists(base: str, name: str) -> bool:
    archive, mark, prefix = (base + name).partition(".zip@/")
    if mark:
        path = Path(archive + ".zip")
        return path.is_file() and prefix in _zip_members(path)
    return os.path.isfile(base + name)
