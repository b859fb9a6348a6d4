"""Losses of the map element detector and of the polyline generator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.models.builder import LOSSES
from mmdet.models.losses import weight_reduce_loss
from torch import nn


@LOSSES.register_module()
class LinesLoss(nn.Module):
    """Smooth L1 distance of key points on the canvas.

    Args:
        loss_weight: factor.
        beta: canvas pixels at which the square becomes a line.
    """

    def __init__(self, loss_weight: float = 1.0, beta: float = 0.5) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.beta = beta

    def forward(
        self,
        pred: torch.Tensor,
        target: torch.Tensor,
        weight: torch.Tensor | None = None,
        avg_factor: float | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The weighted sum over all coordinates divided by `avg_factor`.

        Args:
            pred: (N, D) coordinates in canvas pixels.
            target: (N, D).
            weight: (N, D) weight of each coordinate.
            avg_factor: what to divide by; None: the number of coordinates.

        Returns:
            A scalar.
        """
        loss = F.smooth_l1_loss(pred, target, reduction="none", beta=self.beta)
        return self.loss_weight * weight_reduce_loss(loss, weight, "mean", avg_factor)


def sequence_loss(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Weighted mean of the negative log likelihood of the tokens.

    Args:
        logits: (N, T, vocabulary).
        targets: (N, T) tokens.
        weights: (N, T); 0 on padding.

    Returns:
        sum(weight * -log p(target)) / sum(weight), a scalar.
    """
    loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    weights = weights.flatten()
    return (loss * weights).sum() / weights.sum().clamp(min=1e-6)
