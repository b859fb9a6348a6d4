"""Centre lines as sets of Bezier control points: a DETR on the bird's-eye-view map.

A query predicts one lane: a score and five control points, each as an offset from the query's
reference point (OpenLane-V2, arXiv 2304.10440, section 4; Deformable DETR, arXiv 2010.04159).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import bias_init_with_prob, constant_init
from mmcv.runner import force_fp32
from mmdet.core import reduce_mean
from mmdet.models.builder import HEADS
from mmdet.models.dense_heads import DeformableDETRHead
from mmdet.models.utils.transformer import inverse_sigmoid
from torch import Tensor, nn

from .assign import matched_gt


@HEADS.register_module()
class LCDeformableDETRHead(DeformableDETRHead):
    """Lane head.

    Args:
        transformer: config of a `PerceptionTransformer`.
        pc_range: x, y, z minimum and maximum of the map, metres (-51.2, -25.6, -2.3, 51.2, ...).
        bev_h: cells of the map along y.
        bev_w: cells of the map along x.
        code_size: numbers of a lane, three per control point.
        code_weights: factors of these numbers in the regression loss; None for ones.
        with_box_refine: let each layer look around the lane that the layer before predicted.
        **kwargs: arguments of mmdet's DETRHead (num_classes, num_query, losses, train_cfg, ...).
            The IoU loss has no meaning here and its weight must be 0.

    Raises:
        ValueError: `code_weights` has another length; a two-stage or IoU loss is asked for.
    """

    def __init__(
        self,
        *args: Any,
        transformer: Mapping[str, Any],
        pc_range: Sequence[float],
        bev_h: int,
        bev_w: int,
        code_size: int = 15,
        code_weights: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("as_two_stage"):
            raise ValueError("the lane head has no two-stage variant: set as_two_stage to False")
        if code_weights is not None and len(code_weights) != code_size:
            raise ValueError(f"{code_size} code_weights are needed, got {len(code_weights)}")
        self.code_size = code_size
        self.bev_shape = (bev_h, bev_w)
        dims = transformer["embed_dims"]
        encoding = dict(type="SinePositionalEncoding", num_feats=dims // 2)  # demanded, not used
        kwargs = {"positional_encoding": encoding, "loss_iou": NO_IOU_LOSS, **kwargs}
        super().__init__(*args, transformer=transformer, **kwargs)
        if self.loss_iou.loss_weight != 0:
            raise ValueError(
                f"lanes have no IoU: set the weight of loss_iou to 0, not "
                f"{self.loss_iou.loss_weight}"
            )
        weights = torch.ones(code_size) if code_weights is None else torch.tensor(code_weights)
        self.register_buffer("code_weights", weights.float())
        self.low = tuple(pc_range[:3])
        self.size = tuple(high - low for low, high in zip(pc_range[:3], pc_range[3:]))

    def _init_layers(self) -> None:
        """Query embedding, and the branches of each decoder layer."""
        dims, layers = self.embed_dims, self.transformer.decoder.num_layers
        cls_branch, reg_branch = [], []
        for _ in range(self.num_reg_fcs):
            cls_branch += [nn.Linear(dims, dims), nn.LayerNorm(dims), nn.ReLU(inplace=True)]
            reg_branch += [nn.Linear(dims, dims), nn.ReLU()]
        cls_branch = nn.Sequential(*cls_branch, nn.Linear(dims, self.cls_out_channels))
        reg_branch = nn.Sequential(*reg_branch, nn.Linear(dims, self.code_size))
        self.cls_branches = nn.ModuleList(copy.deepcopy(cls_branch) for _ in range(layers))
        self.reg_branches = nn.ModuleList(copy.deepcopy(reg_branch) for _ in range(layers))
        self.query_embedding = nn.Embedding(self.num_query, dims * 2)

    def init_weights(self) -> None:
        """Weights as in Deformable DETR: scores of 0.01, all control points at the reference."""
        self.transformer.init_weights()
        for branch in self.cls_branches:
            nn.init.constant_(branch[-1].bias, bias_init_with_prob(0.01))
        for branch in self.reg_branches:
            constant_init(branch[-1], 0)

    def forward(self, bev: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions of all decoder layers.

        Args:
            bev: (B, H*W, C) map.

        Returns:
            logits (layers, B, Q, classes), control points (layers, B, Q, 15) in metres, and
            (B, Q, C) states of the last layer's queries.
        """
        states, references = self.transformer(
            bev,
            self.query_embedding.weight.to(bev.dtype),
            self.bev_shape,
            self.reg_branches if self.with_box_refine else None,
        )
        low, size = states.new_tensor(self.low), states.new_tensor(self.size)
        logits, lanes = [], []
        for layer, (state, reference) in enumerate(zip(states, references)):
            logits.append(self.cls_branches[layer](state))
            points = self.reg_branches[layer](state).unflatten(-1, (-1, 3))  # (B, Q, 5, 3)
            points = (points + inverse_sigmoid(reference)[:, :, None]).sigmoid()
            lanes.append((points * size + low).flatten(-2))  # metres
        return torch.stack(logits), torch.stack(lanes), states[-1]

    @force_fp32(apply_to=("logits", "lanes"))
    def loss(
        self,
        logits: Tensor,
        lanes: Tensor,
        gt_lanes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Losses of all layers: loss_cls and loss_bbox of the last, d0.loss_cls ... before it.

        Args:
            logits: (layers, B, Q, classes).
            lanes: (layers, B, Q, 15), metres.
            gt_lanes: per frame (n, 15), metres.
            gt_labels: per frame (n,).
        """
        metas = [{}] * len(gt_lanes)
        losses = super().loss(logits, lanes, None, None, list(gt_lanes), list(gt_labels), metas)
        return {name: loss for name, loss in losses.items() if not name.endswith("loss_iou")}

    def loss_single(
        self, cls_scores, bbox_preds, gt_bboxes_list, gt_labels_list, img_metas, ignored=None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Classification loss, L1 loss in metres and a zero of one layer."""
        labels, label_weights, targets, weights, positives, _ = self.get_targets(
            list(cls_scores), list(bbox_preds), gt_bboxes_list, gt_labels_list, img_metas, ignored
        )
        count = cls_scores.new_tensor([positives])
        per_rank = max(reduce_mean(count).item(), 1)
        loss_cls = self.loss_cls(
            cls_scores.flatten(0, 1),
            torch.cat(labels),
            torch.cat(label_weights),
            avg_factor=per_rank if self.sync_cls_avg_factor else max(positives, 1),
        )
        loss_bbox = self.loss_bbox(
            bbox_preds.flatten(0, 1),
            torch.cat(targets),
            torch.cat(weights) * self.code_weights,
            avg_factor=per_rank,
        )
        return torch.nan_to_num(loss_cls), torch.nan_to_num(loss_bbox), loss_bbox.new_zeros(())

    def _get_target_single(
        self, cls_score, bbox_pred, gt_bboxes, gt_labels, img_meta, gt_bboxes_ignore=None
    ) -> tuple[Tensor, ...]:
        """Targets of one frame; see mmdet's DETRHead for the tuple."""
        assigned = matched_gt(self.assigner.assign(bbox_pred, cls_score, gt_bboxes, gt_labels))
        positive = (assigned >= 0).nonzero()[:, 0]
        negative = (assigned < 0).nonzero()[:, 0]
        labels = assigned.new_full(assigned.shape, self.num_classes)
        labels[positive] = gt_labels[assigned[positive]]
        targets, weights = torch.zeros_like(bbox_pred), torch.zeros_like(bbox_pred)
        targets[positive] = gt_bboxes[assigned[positive]].to(targets.dtype)
        weights[positive] = 1.0
        return labels, torch.ones_like(bbox_pred[:, 0]), targets, weights, positive, negative

    def match(
        self,
        logits: Tensor,
        lanes: Tensor,
        gt_lanes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
    ) -> list[Tensor]:
        """Per frame (Q,) index of the annotation of each query of the last layer, -1 for none."""
        frames = zip(lanes[-1].float(), logits[-1].float(), gt_lanes, gt_labels)
        return [matched_gt(self.assigner.assign(*frame)) for frame in frames]

    def get_lanes(self, logits: Tensor, lanes: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Per frame the last layer's control points (Q, 5, 3) in metres and scores (Q,)."""
        scores = logits[-1].sigmoid().max(-1).values  # (B, Q)
        return list(zip(lanes[-1].unflatten(-1, (-1, 3)), scores))


NO_IOU_LOSS = dict(type="GIoULoss", loss_weight=0.0)
