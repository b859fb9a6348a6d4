"""One-to-one assignment of predicted lanes to annotated ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ad_common.assign import assign_by_cost
from mmdet.core.bbox.assigners import AssignResult, HungarianAssigner
from mmdet.core.bbox.builder import BBOX_ASSIGNERS
from mmdet.core.bbox.match_costs.builder import MATCH_COST
from torch import Tensor


@MATCH_COST.register_module()
class LaneL1Cost:
    """Sum of the absolute differences of two lanes' control points, in metres.

    Args:
        weight: factor of the cost.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, lanes: Tensor, gt_lanes: Tensor) -> Tensor:
        """Costs of all pairs: (Q, 15) and (n, 15) -> (Q, n)."""
        return torch.cdist(lanes, gt_lanes, p=1) * self.weight


@BBOX_ASSIGNERS.register_module()
class LaneHungarianAssigner(HungarianAssigner):
    """Hungarian matching by the costs of class and control points.

    `iou_cost` is accepted because mmdet's heads compare its weight with that of their IoU loss;
    lanes have no boxes, so its weight must be 0.

    Raises:
        ValueError: `iou_cost` has another weight.
    """

    def __init__(
        self,
        cls_cost: Mapping[str, Any],
        reg_cost: Mapping[str, Any],
        iou_cost: Mapping[str, Any],
    ) -> None:
        super().__init__(cls_cost, reg_cost, iou_cost)
        if self.iou_cost.weight != 0:
            raise ValueError(
                f"lanes have no IoU: set the weight of iou_cost to 0, not {self.iou_cost.weight}"
            )

    def assign(
        self,
        bbox_pred: Tensor,
        cls_pred: Tensor,
        gt_bboxes: Tensor,
        gt_labels: Tensor,
        img_meta: Any = None,
        gt_bboxes_ignore: None = None,
        eps: float = 1e-7,
    ) -> AssignResult:
        """Assigns every lane of the ground truth to one query (the signature is mmdet's).

        Args:
            bbox_pred: (Q, 15) predicted control points, metres.
            cls_pred: (Q, classes) logits.
            gt_bboxes: (n, 15) annotated control points, metres.
            gt_labels: (n,) classes.
            img_meta: not used.
            gt_bboxes_ignore: not used.
            eps: not used.

        Returns:
            per query 0 for background, i + 1 for lane i.

        Raises:
            ValueError: a cost is not finite, because the model's output is not.
        """
        cost = bbox_pred.new_zeros(len(bbox_pred), len(gt_bboxes))
        if cost.numel():
            cost = self.cls_cost(cls_pred, gt_labels) + self.reg_cost(bbox_pred, gt_bboxes)
        return assign_by_cost(cost, gt_labels)


def matched_gt(result: AssignResult) -> Tensor:
    """(Q,) index of the annotation of each query, -1 for background."""
    return result.gt_inds - 1
