"""DINO's head behind a composite backbone (CBNet, arXiv 2107.00420)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.builder import HEADS
from torch import Tensor

from .dino_head import DINOHead

__all__ = ["CBDINOHead"]

#: Weights of the losses of the assisting and of the lead backbone (CBNet, section 3.4).
BACKBONE_WEIGHTS = (0.5, 1.0)


@HEADS.register_module()
class CBDINOHead(DINOHead):
    """One `DINOHead` for both backbones of a composite one.

    In training the maps of the assisting and of the lead backbone go through the head as one batch
    of 2N images: first the N images as the assisting backbone sees them, then as the lead backbone
    does. Each half has DINO's losses of a batch of N images; those of the assisting backbone count
    half. At test time there is only the lead backbone. Takes the arguments of `DINOHead`.
    """

    def forward_train(
        self,
        x: Sequence[Sequence[Tensor]] | Sequence[Tensor],
        img_metas: Sequence[Mapping[str, Any]],
        gt_bboxes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        gt_bboxes_ignore: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch, named after `DINOHead`'s with the backbone's number at the end.

        Args:
            x: per backbone, per level (N, C, H, W); or per level, those of the lead backbone, which
                is what the neck gives in eval mode.
            img_metas: one per image.
            gt_bboxes: per image (B_i, 4) corners in pixels; B_i may be 0.
            gt_labels: per image (B_i,).
            gt_bboxes_ignore: must be None.

        Returns:
            ``loss_cls0_w0.5`` ... of the assisting backbone, weighted, and ``loss_cls1`` ... of the
            lead backbone; in eval mode only the latter.

        Raises:
            ValueError: see `DINOHead.forward_train`.
        """
        if isinstance(x[0], Tensor):
            losses = super().forward_train(x, img_metas, gt_bboxes, gt_labels, gt_bboxes_ignore)
            return weighted(losses, len(BACKBONE_WEIGHTS) - 1)
        if gt_bboxes_ignore is not None:
            raise ValueError(f"{type(self).__name__}: gt_bboxes_ignore is not supported")
        if len(x) != len(BACKBONE_WEIGHTS):
            raise ValueError(
                f"{type(self).__name__}: expected the maps of {len(BACKBONE_WEIGHTS)} backbones, "
                f"got {len(x)}"
            )
        feats = [torch.cat(maps) for maps in zip(*x)]  # per level (2N, C, H, W)
        batch = [list(part) * len(x) for part in (img_metas, gt_bboxes, gt_labels)]
        denoising = self.make_denoising(feats, *batch)
        scores, boxes, enc_scores, enc_boxes = self(feats, batch[0], denoising)
        losses = {}
        for backbone in range(len(x)):
            own = slice(backbone * len(img_metas), (backbone + 1) * len(img_metas))
            part = self.loss(
                scores[:, own],
                boxes[:, own],
                enc_scores[own],
                enc_boxes[own],
                gt_bboxes,
                gt_labels,
                img_metas,
                denoising,
            )
            losses |= weighted(part, backbone)
        return losses


def weighted(losses: Mapping[str, Tensor], backbone: int) -> dict[str, Tensor]:
    """The losses times the backbone's weight, which is written into the names unless it is 1."""
    weight = BACKBONE_WEIGHTS[backbone]
    suffix = f"{backbone}" if weight == 1 else f"{backbone}_w{weight}"
    return {f"{name}{suffix}": loss * weight for name, loss in losses.items()}
