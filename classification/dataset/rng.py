"""Random numbers that depend on a key alone: on (seed, epoch, image), not on what ran before."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def keyed_rng(*key: int) -> Iterator[None]:
    """Within the block, python, numpy and torch (CPU) draw from generators seeded with ``key``.

    Their states are put back afterwards, so the caller's own random numbers (drop path, say) do
    not change with the number of images that the same process loads.
    """
    words = np.random.SeedSequence([k & 0xFFFFFFFFFFFFFFFF for k in key]).generate_state(3)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.default_generator.manual_seed(int(words[2]))  # torch.manual_seed would touch CUDA too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
