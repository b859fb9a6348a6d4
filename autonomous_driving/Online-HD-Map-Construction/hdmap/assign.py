"""One-to-one matching of predicted and true map elements (DETR's Hungarian matching).

Boxes are (x1, y1, x2, y2) in pixels of the canvas everywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from ad_common.assign import assign_by_cost
from mmdet.core.bbox.assigners import AssignResult, BaseAssigner
from mmdet.core.bbox.builder import BBOX_ASSIGNERS
from mmdet.core.bbox.iou_calculators import bbox_overlaps
from mmdet.core.bbox.match_costs import build_match_cost
from mmdet.core.bbox.match_costs.builder import MATCH_COST


@MATCH_COST.register_module()
class BBoxCostC:
    """L1 distance of two boxes' corners, times `weight`."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, boxes: torch.Tensor, gt_boxes: torch.Tensor) -> torch.Tensor:
        """(Q, 4) and (N, 4) boxes to (Q, N) costs."""
        return torch.cdist(boxes, gt_boxes, p=1) * self.weight


@MATCH_COST.register_module()
class IoUCostC:
    """Minus the (generalised) intersection over union, times `weight`.

    Args:
        iou_mode: 'giou' or 'iou'.
        weight: factor.
    """

    def __init__(self, iou_mode: str = "giou", weight: float = 1.0) -> None:
        self.iou_mode = iou_mode
        self.weight = weight

    def __call__(self, boxes: torch.Tensor, gt_boxes: torch.Tensor) -> torch.Tensor:
        """(Q, 4) and (N, 4) boxes to (Q, N) costs; a box with swapped corners is put in order."""
        overlaps = bbox_overlaps(ordered(boxes), gt_boxes, mode=self.iou_mode, is_aligned=False)
        return -overlaps * self.weight


def ordered(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes (..., 4) with x1 <= x2 and y1 <= y2."""
    first, second = boxes[..., :2], boxes[..., 2:]
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=-1)


@MATCH_COST.register_module()
class MapQueriesCost:
    """The sum of a classification, a box and an overlap cost.

    Args:
        cls_cost: config of a cost of (logits (Q, classes), labels (N,)).
        reg_cost: config of a cost of boxes: `BBoxCostC`.
        iou_cost: config of a cost of boxes: `IoUCostC`; None for none.
    """

    def __init__(self, cls_cost: dict, reg_cost: dict, iou_cost: dict | None = None) -> None:
        self.cls_cost = build_match_cost(cls_cost)
        self.reg_cost = build_match_cost(reg_cost)
        self.iou_cost = build_match_cost(iou_cost) if iou_cost is not None else None

    def __call__(
        self,
        boxes: torch.Tensor,
        logits: torch.Tensor,
        gt_boxes: torch.Tensor,
        gt_labels: torch.Tensor,
    ) -> torch.Tensor:
        """(Q, 4) boxes and (Q, classes) logits against N elements: (Q, N) costs."""
        cost = self.cls_cost(logits, gt_labels) + self.reg_cost(boxes, gt_boxes)
        if self.iou_cost is not None:
            cost = cost + self.iou_cost(boxes, gt_boxes)
        return cost


@BBOX_ASSIGNERS.register_module()
class HungarianLinesAssigner(BaseAssigner):
    """Every true element gets the query that makes the total cost smallest.

    Args:
        cost: config of the cost: `MapQueriesCost`.
    """

    def __init__(self, cost: dict) -> None:
        self.cost = build_match_cost(cost)

    def assign(
        self,
        boxes: torch.Tensor,
        logits: torch.Tensor,
        gt_boxes: torch.Tensor,
        gt_labels: torch.Tensor,
        **kwargs: Any,
    ) -> AssignResult:
        """Matches Q predictions to N elements; N can be 0 or more than Q.

        Args:
            boxes: (Q, 4) canvas pixels.
            logits: (Q, classes).
            gt_boxes: (N, 4) canvas pixels.
            gt_labels: (N,).

        Returns:
            mmdet's result: `gt_inds` is 0 for background and 1 + the element otherwise.

        Raises:
            ValueError: a prediction or an element is not a number.
        """
        cost = boxes.new_zeros(len(boxes), len(gt_boxes))
        if cost.numel():
            cost = self.cost(boxes, logits, gt_boxes, gt_labels)
        return assign_by_cost(cost, gt_labels)
