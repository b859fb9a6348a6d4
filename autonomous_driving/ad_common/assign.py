"""One-to-one matching of predictions and annotations (DETR, arXiv 2005.12872, equation 1)."""

from __future__ import annotations

import torch
from mmdet.core.bbox.assigners import AssignResult
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def assign_by_cost(cost: Tensor, gt_labels: Tensor) -> AssignResult:
    """The assignment with the smallest sum of costs.

    Args:
        cost: (Q, N) of every query with every annotation; Q and N can be 0.
        gt_labels: (N,) classes.

    Returns:
        mmdet's result: `gt_inds` (Q,) is 0 for background and i + 1 for annotation i, `labels` (Q,)
        is -1 for background.

    Raises:
        ValueError: a cost is not finite.
    """
    gt_inds = torch.zeros(len(cost), dtype=torch.long, device=cost.device)
    labels = torch.full_like(gt_inds, -1)
    if cost.numel():
        values = cost.detach().float().cpu()
        if not torch.isfinite(values).all():
            raise ValueError(
                "the matching costs are not finite: training has diverged (lower the learning "
                "rate), or the annotations hold NaN or infinite values"
            )
        rows, columns = (
            torch.as_tensor(part, device=cost.device)
            for part in linear_sum_assignment(values.numpy())
        )
        gt_inds[rows] = columns + 1
        labels[rows] = gt_labels[columns]
    return AssignResult(cost.shape[1], gt_inds, None, labels=labels)
