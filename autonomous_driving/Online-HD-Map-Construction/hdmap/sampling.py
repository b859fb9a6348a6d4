"""Nucleus sampling (arXiv 1904.09751) with random numbers that belong to a line, not to a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def line_uniforms(counts: Sequence[int], steps: int, seed: int) -> torch.Tensor:
    """Random numbers in [0, 1) for every step of every line.

    Every frame has a generator of its own, so its lines do not depend on the other frames.

    Args:
        counts: lines of each frame.
        steps: numbers per line.
        seed: start of every frame's generator.

    Returns:
        (sum of counts, steps) float64 on the CPU.
    """
    rows = [torch.zeros(0, steps, dtype=torch.float64)]
    for count in counts:
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.rand(count, steps, generator=generator, dtype=torch.float64))
    return torch.cat(rows)


def nucleus_sample(logits: torch.Tensor, uniforms: torch.Tensor, top_p: float) -> torch.Tensor:
    """Draws from the smallest set of tokens whose probabilities sum to at least `top_p`.

    Args:
        logits: (N, vocabulary).
        uniforms: (N,) random numbers in [0, 1).
        top_p: 0 always takes the most likely token, 1 draws from the whole distribution.

    Returns:
        (N,) tokens.
    """
    if top_p <= 0:
        return logits.argmax(dim=-1)
    probabilities, tokens = logits.double().softmax(dim=-1).sort(dim=-1, descending=True)
    before = probabilities.cumsum(dim=-1) - probabilities  # of the more likely tokens
    probabilities = probabilities * (before < top_p)
    cumulative = probabilities.cumsum(dim=-1)
    drawn = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]
    chosen = (cumulative <= drawn).sum(dim=-1, keepdim=True)
    last = (probabilities > 0).sum(dim=-1, keepdim=True) - 1  # rounding never leaves the nucleus
    return tokens.gather(1, torch.minimum(chosen, last)).squeeze(1)
