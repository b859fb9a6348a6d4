"""Losses of DINO (arXiv 2203.03605): matching queries, selected tokens and denoising queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.core import bbox_cxcywh_to_xyxy, reduce_mean
from torch import Tensor

from ..utils.query_denoising import DenoisingQueries, normalise

__all__ = ["DinoLosses"]

Images = Sequence[Tensor]
Metas = Sequence[Mapping[str, Any]]


class DinoLosses:
    """Mixed into `DINOHead`, in front of mmdet's head, whose ``loss_single`` does the matching."""

    def loss(
        self,
        all_cls_scores: Tensor,
        all_bbox_preds: Tensor,
        enc_topk_scores: Tensor,
        enc_topk_boxes: Tensor,
        gt_bboxes: Images,
        gt_labels: Images,
        img_metas: Metas,
        denoising: DenoisingQueries | None = None,
    ) -> dict[str, Tensor]:
        """All losses of a batch, in float32 or more, also under autocast.

        Args:
            all_cls_scores: (layers, N, P + Q, classes) logits.
            all_bbox_preds: (layers, N, P + Q, 4) boxes (cx, cy, w, h) in [0, 1].
            enc_topk_scores: (N, K, classes).
            enc_topk_boxes: (N, K, 4).
            gt_bboxes: per image (B_i, 4) corners in pixels.
            gt_labels: per image (B_i,).
            img_metas: one per image.
            denoising: where the first P queries come from; none: P = 0.

        Returns:
            ``interm_`` losses of the encoder tokens, those of the last layer, ``dI.`` of the other
            layers, and all layers' ``dn_`` losses when there are denoising queries.
        """
        with torch.autocast(all_cls_scores.device.type, enabled=False):
            scores, enc_scores = at_least_float32(all_cls_scores), at_least_float32(enc_topk_scores)
            boxes, enc_boxes = at_least_float32(all_bbox_preds), at_least_float32(enc_topk_boxes)
            check_finite(type(self).__name__, scores, boxes)
            targets = (gt_bboxes, gt_labels, img_metas)
            start = denoising.pad_size if denoising is not None else 0
            losses = named("interm_", self.loss_single(enc_scores, enc_boxes, *targets))
            matching = zip(scores[:, :, start:], boxes[:, :, start:])
            losses |= last_first("", [self.loss_single(s, b, *targets) for s, b in matching])
            if denoising is not None:
                copies = zip(scores[:, :, :start], boxes[:, :, :start])
                dn = [self.loss_dn_single(s, b, *targets, denoising) for s, b in copies]
                losses |= last_first("dn_", dn)
        return losses

    def loss_dn_single(
        self,
        cls_scores: Tensor,
        bbox_preds: Tensor,
        gt_bboxes: Images,
        gt_labels: Images,
        img_metas: Metas,
        denoising: DenoisingQueries,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of one layer's denoising queries, whose boxes are known without matching.

        Positive copies answer with class and box of their origin, negative copies and padding with
        "no object". The losses are normalised by the positive copies of all processes.

        Args:
            cls_scores: (N, P, classes) logits.
            bbox_preds: (N, P, 4) boxes in [0, 1].
            gt_bboxes, gt_labels, img_metas: see `loss`.
            denoising: says which query is a copy of which box.

        Returns:
            class, L1 and IoU loss.
        """
        labels = torch.full_like(cls_scores[..., 0], self.num_classes, dtype=torch.long)
        box_targets, box_weights = torch.zeros_like(bbox_preds), torch.zeros_like(bbox_preds)
        factors = []
        for i, (boxes, image_labels, meta) in enumerate(zip(gt_bboxes, gt_labels, img_metas)):
            positive, origin = denoising.positive_indices(len(boxes), boxes.device)
            labels[i, positive] = image_labels[origin]
            box_targets[i, positive] = normalise(boxes, meta)[origin].to(box_targets.dtype)
            box_weights[i, positive] = 1
            height, width = meta["img_shape"][:2]
            factors.append(bbox_preds.new_tensor((width, height, width, height)))
        total = bbox_preds.new_tensor(float(denoising.num_groups * sum(map(len, gt_bboxes))))
        mean = reduce_mean(total).clamp(min=1).item()

        if denoising.pad_size == 0:  # no image has boxes: zeros with a graph
            return cls_scores.sum() * 0, bbox_preds.sum() * 0, bbox_preds.sum() * 0
        class_mean = mean if self.sync_cls_avg_factor else total.clamp(min=1).item()
        flat = labels.flatten()
        loss_cls = self.loss_cls(
            cls_scores.flatten(0, 1),
            flat,
            torch.ones_like(flat, dtype=cls_scores.dtype),
            avg_factor=class_mean,
        )
        size = torch.stack(factors)[:, None]
        loss_iou = self.loss_iou(
            (bbox_cxcywh_to_xyxy(bbox_preds) * size).flatten(0, 1),
            (bbox_cxcywh_to_xyxy(box_targets) * size).flatten(0, 1),
            box_weights.flatten(0, 1),
            avg_factor=mean,
        )
        loss_bbox = self.loss_bbox(
            bbox_preds.flatten(0, 1),
            box_targets.flatten(0, 1),
            box_weights.flatten(0, 1),
            avg_factor=mean,
        )
        return loss_cls, loss_bbox, loss_iou


def named(prefix: str, losses: Sequence[Tensor]) -> dict[str, Tensor]:
    """Class, L1 and IoU loss with their names."""
    return dict(zip((f"{prefix}loss_cls", f"{prefix}loss_bbox", f"{prefix}loss_iou"), losses))


def last_first(prefix: str, layers: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """The losses of the last layer without, then those of the others with the prefix ``dI.``."""
    losses = named(prefix, layers[-1])
    for i, layer in enumerate(layers[:-1]):
        losses |= named(f"d{i}.{prefix}", layer)
    return losses


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def check_finite(name: str, scores: Tensor, boxes: Tensor) -> None:
    """Says in plain words what the matcher would reject as an "invalid numeric entry".

    Raises:
        ValueError: when a prediction is infinite or not a number.
    """
    if not (torch.isfinite(scores).all() and torch.isfinite(boxes).all()):
        raise ValueError(
            f"{name}: predictions are not finite; the training has diverged. Lower the learning "
            "rate, keep grad_clip, or use --amp bf16 instead of fp16"
        )
