"""The error that every fault of a data set is reported with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DatasetError(ValueError):
    """A data set that cannot be used as it is; the message says what to change.

    A worker process of the data loader hands its error on as text with a traceback inside; only
    the sentence at the end of it is kept.
    """

    def __init__(self, message: str) -> None:
        if message.startswith("Caught DatasetError in "):
            message = message.rsplit("DatasetError: ", 1)[-1].strip()
        super().__init__(message)


def nearest(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the known name closest to a wrong one, or nothing."""
    known = [str(other) for other in known]
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if not near:
        near = [other for other in known if other.lower() == str(name).lower()]
    return f", did you mean {near[0]!r}?" if near else ""


def listed(names: Iterable[object], most: int = 8) -> str:
    """Names for a message: the first few, and how many more there are."""
    names = [str(name) for name in names]
    rest = len(names) - most
    return ", ".join(names[:most]) + (f", ... ({rest} more)" if rest > 0 else "")
