"""For download_dataset.py: downloads that go on after an interruption, and unpacking."""

from __future__ import annotations

import http.client
import logging
import os
import tarfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

from tqdm import tqdm

logger = logging.getLogger("download_dataset")

BLOCK = 1 << 20  # bytes read at a time
TIMEOUT = 60  # seconds without an answer


class DownloadError(RuntimeError):
    """A file could not be had; the message names its address and its place."""


@dataclass(frozen=True)
class Source:
    """A published file.

    Attributes:
        url: its address.
        folder: where it goes, within the folder of the data set.
    """

    url: str
    folder: str = ""

    @property
    def name(self) -> str:
        """Name of the file."""
        return Path(unquote(urlparse(self.url).path)).name


def download(url: str, target: Path) -> Path:
    """Downloads a file to `target`, or the rest of it where a part is there.

    The part lies beside the target as `NAME.part` and takes its name when all bytes are there.

    Raises:
        DownloadError: no connection, no such file, or fewer bytes than announced.
    """
    if target.is_file():
        return target
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        expected = _fetch(url, part)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise DownloadError(
            f"{url} could not be downloaded ({reason}): check the connection, or download it "
            f"elsewhere and put it at {target.absolute()}"
        ) from error
    size = part.stat().st_size
    if expected is not None and size != expected:
        raise DownloadError(
            f"{url}: {size} of {expected} bytes arrived; run the same command again to go on, or "
            f"delete {part.absolute()} to start anew"
        )
    os.replace(part, target)
    return target


def _fetch(url: str, part: Path) -> int | None:
    """Appends what is missing to `part`; returns the size the whole file should have."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "download_dataset"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        total = error.headers.get("Content-Range", "").rpartition("/")[2]
        if total == str(have):
            return have  # the part was whole already
        part.unlink()
        return _fetch(url, part)
    with answer:
        if have and answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0  # the server sends everything again
        length = answer.headers.get("Content-Length")
        expected = have + int(length) if length is not None else None
        with (
            open(part, "ab" if have else "wb") as file,
            tqdm(
                total=expected,
                initial=have,
                desc=part.stem,
                unit="B",
                unit_scale=True,
                leave=False,
            ) as bar,
        ):
            while block := answer.read(BLOCK):
                file.write(block)
                bar.update(len(block))
    return expected


def unpack(path: Path) -> bool:
    """Unpacks a zip or tar archive beside itself; False if it is neither.

    Raises:
        DownloadError: the archive is damaged.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                archive.extractall(path.parent)
            return True
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                archive.extractall(path.parent, filter="data")
            return True
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise DownloadError(
            f"{path.absolute()} is damaged ({error}): delete it and run the same command again"
        ) from error
    if path.suffix in (".zip", ".tar", ".gz", ".tgz"):
        raise DownloadError(
            f"{path.absolute()} is not an archive: delete it and run the same command again"
        )
    return False
