"""Noise on what the generator is told in training, so that it learns to go on from wrong tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class NoiseSythesis(nn.Module):
    """Moves coordinates by a rounded normal deviate (the name is the published one).

    Every coordinate keeps its own axis: the noise and the limits of a y are those of y. (In the
    published code the perturbed y of a box is a copy of its x.)

    Args:
        p: share of the coordinates that move.
        scale: standard deviation as a share of the canvas.
        canvas_size: cells along x and y.
    """

    def __init__(
        self, p: float = 0.3, scale: float = 0.01, canvas_size: Sequence[int] = (200, 100)
    ) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p is a probability, got {p}.")
        self.p = p
        self.scale = scale
        canvas = torch.tensor(tuple(canvas_size), dtype=torch.float32)
        self.register_buffer("canvas_size", canvas)
        # Two names of the published weights. The noise is set by `scale`, whatever they hold.
        self.register_buffer("shift_scale", canvas * scale)
        self.register_buffer("scaling_size", torch.full((2,), float(scale)))

    def forward(
        self, tokens: torch.Tensor, boxes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Perturbs copies of tokens and boxes.

        Args:
            tokens: (N, T) x1, y1, x2, ...; 0 (stop, padding) stays.
            boxes: (N, 4) cells, x1, y1, x2, y2, from 0.

        Returns:
            Tokens (N, T) within 1..canvas, and boxes (N, 4) within 0..canvas - 1.
        """
        moved = torch.where(tokens > 0, self._move(tokens, 1), tokens)
        return moved, self._move(boxes, 0)

    def _move(self, cells: torch.Tensor, lowest: int) -> torch.Tensor:
        """Moves (N, T) cells that run x, y, x, y, ... and are counted from `lowest`."""
        axis = torch.arange(cells.shape[1], device=cells.device) % 2
        size = self.canvas_size[axis]  # (T,)
        noise = torch.randn(cells.shape, device=cells.device) * self.scale * size
        moved = (cells + noise).round().clamp(min=lowest)
        moved = torch.minimum(moved, size - 1 + lowest).to(cells.dtype)
        return torch.where(torch.rand(cells.shape, device=cells.device) < self.p, moved, cells)
