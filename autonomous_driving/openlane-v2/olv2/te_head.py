"""Traffic lights and signs in the front view: a Deformable DETR (arXiv 2010.04159)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.core import bbox_cxcywh_to_xyxy
from mmdet.models.builder import HEADS
from mmdet.models.dense_heads import DeformableDETRHead
from torch import Tensor

from .assign import matched_gt


@HEADS.register_module()
class TEDeformableDETRHead(DeformableDETRHead):
    """mmdet's head, which also tells the queries' states and annotations for the topology.

    Boxes are predicted one per query, in the order of the queries, so that the rows and columns
    of the topology matrices point to them.
    """

    def forward_states(
        self, mlvl_feats: Sequence[Tensor], img_metas: list[dict]
    ) -> tuple[tuple[Tensor, Tensor, None, None], Tensor]:
        """Predictions of all decoder layers and the states behind the last ones.

        Args:
            mlvl_feats: front-view features, (B, C, h, w) per level.
            img_metas: `img_shape` (height, width, 3) and `batch_input_shape` (height, width) per
                frame.

        Returns:
            what mmdet's `forward` returns, and (B, Q, C) states of the last layer's queries.
        """
        states = []
        branch = self.cls_branches[-1]
        hook = branch.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        try:
            outs = self(mlvl_feats, img_metas)
        finally:
            hook.remove()
        return outs, states[-1]

    def loss(self, *args, **kwargs) -> dict[str, Tensor]:
        """mmdet's losses; all zero when the batch has no traffic element at all."""
        losses = super().loss(*args, **kwargs)
        gt_bboxes = kwargs.get("gt_bboxes_list", args[4] if len(args) > 4 else ())
        if not sum(len(boxes) for boxes in gt_bboxes):
            losses = {name: loss * 0 for name, loss in losses.items()}
        return losses

    def match(
        self,
        outs: tuple[Tensor, Tensor, None, None],
        gt_bboxes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        img_metas: list[dict],
    ) -> list[Tensor]:
        """Per frame (Q,) index of the annotation of each query of the last layer, -1 for none."""
        scores, boxes = outs[0][-1].float(), outs[1][-1].float()
        frames = zip(boxes, scores, gt_bboxes, gt_labels, img_metas)
        return [matched_gt(self.assigner.assign(*frame)) for frame in frames]

    def _get_bboxes_single(
        self, cls_score, bbox_pred, img_shape, scale_factor, rescale=False
    ) -> tuple[Tensor, Tensor]:
        """Boxes (Q, 5) with scores and classes (Q,) of one frame, in the order of the queries."""
        scores, labels = cls_score.sigmoid().max(-1)
        height, width = img_shape[:2]
        size = bbox_pred.new_tensor([width, height, width, height])
        boxes = bbox_cxcywh_to_xyxy(bbox_pred).clamp(0, 1) * size
        if rescale:
            boxes = boxes / boxes.new_tensor(scale_factor)
        return torch.cat([boxes, scores[:, None]], dim=-1), labels
