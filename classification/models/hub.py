"""Checkpoints of released models: downloaded once, verified, kept in the Hugging Face cache."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download

from .released import released_model
from .safe_load import CheckpointError


def checkpoint_path(name: str) -> Path:
    """Path of a released model's checkpoint, downloaded into the cache if it is not there.

    Raises:
        UnknownModelError: no such name.
        CheckpointError: there is no file, or it cannot be had.
    """
    row = released_model(name)
    if row.hub_file is None:
        raise CheckpointError(f"no published checkpoint of {name!r} is known: use pretrained=False")
    return Path(hf_hub_download(row.hub_repo, row.hub_file))
