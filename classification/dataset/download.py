"""One file from a server: http and https here, other schemes through webdataset.gopen.

A cut connection is taken up again where it broke (Range request), a few times. What arrives is
compared with the announced size and with the sha256, if one is known.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib.parse import urlparse

from .errors import DataError
from .tar_index import webdataset

logger = logging.getLogger(__name__)

ATTEMPTS = 8  # two minutes of patience
PAUSE = 1.0  # seconds before the second attempt, doubled before each further one
TIMEOUT = 60.0  # seconds without a byte
_CHUNK = 1 << 20
_NETWORK = (OSError, http.client.HTTPException)
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses that may be different a moment later


class _Broken(Exception):
    """What arrived is not the file; the next attempt may succeed."""


class NotOnServer(DataError):
    """The server answers that there is no such file (object stores say: forbidden)."""


class _Transfer:
    """The state of one download over all of its attempts."""

    def __init__(self, url: str, size: int | None, sha256: str, reserve: Callable[[int], None]):
        self.url, self.size, self.sha256, self.reserve = url, size, sha256, reserve
        self.restart()
        self.tag = ""

    def restart(self) -> None:
        self.done, self.digest = 0, hashlib.sha256()

    def attempt(self, file: IO[bytes]) -> None:
        """Read from where the last attempt stopped to the end, and check."""
        stream, begin, total = self._open()
        with stream:
            if begin != self.done:
                self.restart()
            if total is not None and self.size is not None and total != self.size:
                raise DataError(
                    f"{self.url} has {total} bytes, the index of the shards says {self.size}: it "
                    "was changed after the index was made; make the index again"
                )
            if not self.done:
                self.reserve(total or self.size or 0)
            file.seek(self.done)
            while chunk := stream.read(_CHUNK):
                _write(file, chunk)
                self.digest.update(chunk)
                self.done += len(chunk)
        total = total if total is not None else self.size
        if total is not None and self.done < total:
            raise _Broken(f"the connection was cut after {self.done} of {total} bytes")
        if total is not None and self.done > total:
            got = self.done
            self.restart()
            raise _Broken(f"{got} bytes came instead of {total}")
        if self.sha256 and self.digest.hexdigest() != self.sha256:
            got = self.digest.hexdigest()
            self.restart()
            raise _Broken(f"its sha256 is {got}, the index of the shards says {self.sha256}")

    def _open(self) -> tuple[IO[bytes], int, int | None]:
        """(stream, the byte it begins with, size of the whole file where it is known)."""
        scheme = urlparse(self.url).scheme
        if scheme not in ("http", "https"):
            if scheme == "pipe":  # a list of shards must not be able to run commands
                raise DataError(f"{self.url}: commands are not run; give an address")
            try:
                return webdataset().gopen(self.url), 0, None
            except ValueError as error:
                raise DataError(f"{self.url}: {error}") from error
        request = urllib.request.Request(self.url)
        if self.done:
            request.add_header("Range", f"bytes={self.done}-")
            if self.tag:
                request.add_header("If-Range", self.tag)
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
        tag = response.headers.get("ETag", "")
        self.tag = "" if tag.startswith("W/") else tag
        length = response.headers.get("Content-Length", "")
        found = re.match(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status == 206 and found:
            return response, int(found[1]), int(found[2])
        return response, 0, int(length) if length.isdigit() else None


def _write(file: IO[bytes], chunk: bytes) -> None:
    try:
        file.write(chunk)
    except OSError as error:
        raise cannot_write(Path(file.name).parent, error) from error


def cannot_write(folder: Path, error: OSError) -> DataError:
    """What to say when the cache of shards does not take a file."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    problem = "is on a full disk" if full else "cannot be written"
    return DataError(
        f"the cache of shards {folder} {problem} ({error}): type --opts DATA.SHARD_CACHE DIR for "
        "another folder, or a smaller DATA.SHARD_CACHE_GB"
    )


def _status(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    return str(getattr(error, "reason", "") or error or type(error).__name__)


def download(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str = "",
    reserve: Callable[[int], None] = lambda count: None,
) -> None:
    """Write ``url`` to ``target``; on an error ``target`` is left incomplete.

    Args:
        size: bytes of the file where they are known.
        sha256: of the file, '' where it is not known.
        reserve: called with the size (0: not known) before the first byte is written.

    Raises:
        NotOnServer: HTTP 404, 410 or 403.
        DataError: naming the URL: refused, unreachable or cut off after all attempts, another size
            or sha256 than expected, or the disk is full.
    """
    transfer, problem = _Transfer(url, size, sha256, reserve), ""
    try:
        file = target.open("wb", buffering=0)
    except OSError as error:
        raise cannot_write(target.parent, error) from error
    with file:
        for attempt in range(ATTEMPTS):
            if attempt:
                logger.warning("%s: %s; trying again", url, problem)
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                return transfer.attempt(file)
            except urllib.error.HTTPError as error:
                problem = _status(error)
                if error.code == 416:  # the file has become shorter
                    transfer.restart()
                elif error.code not in _PASSING:
                    kind = NotOnServer if error.code in (403, 404, 410) else DataError
                    raise kind(f"{url} cannot be downloaded: {problem}") from error
            except (*_NETWORK, _Broken) as error:
                problem = _status(error)
    raise DataError(
        f"{url} cannot be downloaded, {ATTEMPTS} attempts failed, the last with: {problem}. When "
        "the server is back, start the same command again"
    )
