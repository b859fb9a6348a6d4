"""Two-stage detectors in ONNX files with mmdet's own choice of boxes; needs mmdeploy.

mmdeploy's translations choose differently from mmdet: proposals of all levels suppress each other,
those with scores below 0.05 are dropped, a region keeps only the box of its best class, and boxes
of a cascade are not clipped. Here each of these is done as mmdet does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from internimage.onnx_export import ExportError
from mmcv_custom.exported_attention import replace
from mmdeploy.codebase.mmdet.core.post_processing import bbox_nms
from mmdeploy.codebase.mmdet.deploy import get_post_processing_params
from mmdeploy.codebase.mmdet.models.dense_heads import rpn_head
from mmdeploy.codebase.mmdet.models.roi_heads import cascade_roi_head
from mmdeploy.mmcv.ops.nms import ONNXNMSop
from mmdeploy.utils import Backend, get_backend
from torch import Tensor

RPN = "mmdet.models.dense_heads.RPNHead.get_bboxes"
BOX_HEAD = "mmdet.models.roi_heads.bbox_heads.bbox_head.BBoxHead.get_bboxes"
CASCADE = "mmdet.models.roi_heads.cascade_roi_head.CascadeRoIHead.simple_test"


def suppress(
    cfg: Any, boxes: Tensor, scores: Tensor, iou: float, threshold: float, keep: int
) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression within each class.

    Args:
        cfg: deploy config.
        boxes: (N, R, 4), or (N, R, C, 4) with a box for each class.
        scores: (N, R, C).
        iou: overlap from which the lower score goes.
        threshold: scores from here down are no detections.
        keep: most detections of an image.

    Returns:
        (N, K, 5) corners and score, best first, and (N, K) labels; unused rows have score 0.
    """
    if get_backend(cfg) == Backend.TENSORRT:
        return bbox_nms.multiclass_nms(
            boxes,
            scores,
            keep,
            iou_threshold=iou,
            score_threshold=threshold,
            pre_top_k=get_post_processing_params(cfg).pre_top_k,
            keep_top_k=keep,
        )
    count = scores.shape[2]
    each = scores.permute(0, 2, 1)  # (N, C, R)
    if boxes.dim() == 4:  # a class of an image is an image of its own, with its own boxes
        boxes = boxes.permute(0, 2, 1, 3).flatten(0, 1)  # (N * C, R, 4)
        each = each.flatten(0, 1)[:, None]  # (N * C, 1, R)
    chosen = ONNXNMSop.apply(
        boxes, each, keep, torch.tensor([iou]).float(), torch.tensor([threshold]).float()
    )  # (K, 3): image, class, box
    row, label, index = chosen.unbind(1)
    found = torch.cat((boxes[row, index], each[row, label, index][:, None]), 1)  # (K, 5)
    if each.shape[1] == 1 and count > 1:
        row, label = row // count, row % count
    images = torch.arange(scores.shape[0], device=row.device)[:, None]
    own = row[None] == images  # (N, K)
    found = torch.where(own[..., None], found[None], found.new_zeros(1))
    label = torch.where(own, label[None], label.new_zeros(1))
    found = torch.cat((found, found.new_zeros(scores.shape[0], 1, 5)), 1)  # never empty
    label = torch.cat((label, label.new_zeros(scores.shape[0], 1)), 1)
    order = found[..., 4].topk(keep, dim=1).indices
    return found[images, order], label[images, order]


def iou_of(nms: Any, what: str) -> float:
    """The overlap in mmdet's config of a suppression.

    Raises:
        ExportError: it is of another type than 'nms'.
    """
    if nms.get("type", "nms") != "nms":
        raise ExportError(f"{what} is {nms.type!r}: only 'nms' can be exported")
    return float(nms.iou_threshold)


def level_numbers(cfg: Any, cls_scores: Sequence[Tensor], most: int) -> Tensor:
    """(R,) the level of each candidate: of every level the best `most`, or all there are.

    TensorRT's candidates are filled up to `most`, because it cannot count them.
    """
    fixed = get_backend(cfg) == Backend.TENSORRT
    parts = []
    for level, score in enumerate(cls_scores):
        limit = torch.tensor(most)
        shape = torch._shape_as_tensor(score)
        count = limit if fixed else torch.minimum(shape[1] * shape[2] * shape[3], limit)
        parts.append(torch.arange(most if fixed else count) * 0 + level)
    return torch.cat(parts).to(cls_scores[0].device)


def proposals(
    ctx: Any, self: Any, cls_scores: Any, *args: Any, cfg: Any = None, **kwargs: Any
) -> Any:
    """`RPNHead.get_bboxes`: (N, K, 5) proposals and (N, K) their levels."""
    cfg = self.test_cfg if cfg is None else cfg
    if not kwargs.pop("with_nms", True) or cfg.get("nms_pre", -1) <= 0:
        raise ExportError("test_cfg.rpn needs nms_pre above 0 and a suppression to be exported")
    boxes, scores = rpn_head.rpn_head__get_bboxes(
        ctx, self, cls_scores, *args, cfg=cfg, with_nms=False, **kwargs
    )
    width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
    size = cfg.get("min_bbox_size", 0)
    scores = torch.where(((width > size) & (height > size))[..., None], scores, 0.0)
    level = level_numbers(ctx.cfg, cls_scores, cfg.nms_pre)
    own = level[:, None] == torch.arange(len(cls_scores), device=boxes.device)
    scores = torch.where(own[None], scores, 0.0)  # (N, R, levels)
    iou = iou_of(cfg.nms, "test_cfg.rpn.nms")
    return suppress(ctx.cfg, boxes, scores, iou, 0.0, cfg.max_per_img)


def class_boxes(
    ctx: Any,
    self: Any,
    rois: Tensor,
    cls_score: Tensor,
    bbox_pred: Tensor,
    img_shape: Any,
    scale_factor: Any,
    rescale: bool = False,
    cfg: Any = None,
) -> tuple[Tensor, Tensor]:
    """`BBoxHead.get_bboxes`: (N, K, 5) detections and (N, K) labels of (N, R, 5) regions."""
    if img_shape is None:
        img_shape = self.exported_shape
    if self.custom_cls_channels:
        scores = self.loss_cls.get_activation(cls_score)
    else:
        scores = cls_score.softmax(-1)
    boxes = self.bbox_coder.decode(rois[..., 1:], bbox_pred, max_shape=img_shape)
    if not self.reg_class_agnostic:
        boxes = boxes.reshape(boxes.shape[0], -1, self.num_classes, 4)
    return suppress(
        ctx.cfg,
        boxes,
        scores[..., : self.num_classes],
        iou_of(cfg.nms, "test_cfg.rcnn.nms"),
        cfg.score_thr,
        cfg.max_per_img,
    )


def cascade(ctx: Any, self: Any, x: Any, boxes: Any, img_metas: Any, **kwargs: Any) -> Any:
    """`CascadeRoIHead.simple_test`; mmdeploy's keeps the image's size from the last head."""
    self.bbox_head[-1].exported_shape = img_metas[0]["img_shape"]
    return cascade_roi_head.cascade_roi_head__simple_test(ctx, self, x, boxes, img_metas, **kwargs)


replace(RPN, proposals)
replace(BOX_HEAD, class_boxes)
replace(CASCADE, cascade)
