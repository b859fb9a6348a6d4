"""Synthetic driving data in the formats of the real data sets, drawn from small worlds."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple


class Size(NamedTuple):
    """How much the command line writes if not told: scenes or segments, frames of each, scale."""

    train: int
    val: int
    frames: int
    scale: float


DEFAULTS = {
    "occupancy": Size(train=20, val=5, frames=5, scale=0.125),
    "openlane": Size(train=50, val=10, frames=3, scale=0.125),
    "hdmap": Size(train=50, val=10, frames=3, scale=0.125),
}


def write(kind: str, root: str | Path, **options: Any) -> bool:
    """Call the writer of "occupancy", "openlane" or "hdmap"; see their modules for the options."""
    return import_module(f".{kind}", __name__).write(root, **options)
