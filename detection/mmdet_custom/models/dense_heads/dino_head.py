"""Head of DINO (arXiv 2203.03605): Deformable DETR's head with denoising training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.core import bbox_cxcywh_to_xyxy, build_assigner, build_sampler
from mmdet.models.builder import HEADS
from mmdet.models.dense_heads import DeformableDETRHead
from torch import Tensor, nn

from ..utils.dino_decoder import refine_boxes
from ..utils.query_denoising import DenoisingQueries, build_dn_generator, check_keys
from .augmented_results import merge_augmented
from .dino_losses import DinoLosses

__all__ = ["DINOHead"]

logger = logging.getLogger("mmdet.dino")  # below mmdet's own, which writes the log file

# Settings that the released configs carry and that no published training ever used.
UNUSED_TRAIN_CFG = ("snip_cfg", "fed_loss_cfg")


@HEADS.register_module()
class DINOHead(DinoLosses, DeformableDETRHead):
    """Classes and boxes from the maps of the neck, and their losses.

    Losses: focal loss for the classes, L1 and generalised IoU for the boxes, for every decoder
    layer, for the selected encoder tokens (``interm_``) and for the denoising queries (``dn_``).
    The weights of the matching costs may differ from those of the losses, as in the paper.

    Args:
        num_classes: classes of the data set, without background.
        in_channels: kept for the configs' sake; the neck decides the width.
        transformer: config of a ``DinoTransformer``.
        num_query: matching queries; ``two_stage_num_proposals`` of the transformer must be equal
            or left out.
        num_reg_fcs: hidden layers of a box branch.
        sync_cls_avg_factor: normalise the class loss by the number of boxes of all processes.
        positional_encoding: config; ``num_feats`` is half the width.
        loss_cls, loss_bbox, loss_iou: configs of the losses; ``loss_cls`` must use a sigmoid.
        dn_cfg: settings of ``CdnQueryGenerator``; none trains without denoising.
        as_two_stage, with_box_refine: must be true; there for the configs' sake.
        train_cfg: ``dict(assigner=...)``. ``snip_cfg`` and ``fed_loss_cfg`` of the released configs
            are ignored with a log line.
        test_cfg: ``dict(max_per_img=300)``; ``nms`` is the config for merging the results of
            test-time augmentation.
        init_cfg: of ``BaseModule``.

    Raises:
        TypeError: for an argument or setting that does not exist.
        ValueError: for settings that DINO cannot have.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        transformer: Mapping[str, Any],
        num_query: int = 900,
        num_reg_fcs: int = 2,
        sync_cls_avg_factor: bool = False,
        positional_encoding: Mapping[str, Any] | None = None,
        loss_cls: Mapping[str, Any] | None = None,
        loss_bbox: Mapping[str, Any] | None = None,
        loss_iou: Mapping[str, Any] | None = None,
        dn_cfg: Mapping[str, Any] | None = None,
        as_two_stage: bool = True,
        with_box_refine: bool = True,
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        name = type(self).__name__
        if not (as_two_stage and with_box_refine):
            raise ValueError(
                f"{name}: as_two_stage and with_box_refine must be True, got {as_two_stage} and "
                f"{with_box_refine}; DINO selects its queries and refines their boxes"
            )
        proposals = transformer.get("two_stage_num_proposals", num_query)
        if proposals != num_query:
            raise ValueError(
                f"{name}: num_query is {num_query} but transformer.two_stage_num_proposals is "
                f"{proposals}; they must be equal"
            )
        # mmdet's DETRHead wants equal weights of loss and matching cost, which DINO has not. It
        # checks them where it builds the assigner; without train_cfg it does neither.
        super().__init__(
            num_classes,
            in_channels,
            num_query=num_query,
            num_reg_fcs=num_reg_fcs,
            sync_cls_avg_factor=sync_cls_avg_factor,
            with_box_refine=True,
            as_two_stage=True,
            transformer={**transformer, "two_stage_num_proposals": num_query},
            positional_encoding=positional_encoding
            or {"type": "SinePositionalEncoding", "num_feats": 128, "normalize": True},
            loss_cls=loss_cls
            or {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25},
            loss_bbox=loss_bbox or {"type": "L1Loss", "loss_weight": 5.0},
            loss_iou=loss_iou or {"type": "GIoULoss", "loss_weight": 2.0},
            train_cfg=None,
            test_cfg=test_cfg,
            init_cfg=init_cfg,
        )
        if not self.loss_cls.use_sigmoid:
            raise ValueError(f"{name}: loss_cls must have use_sigmoid=True")
        check_keys("test_cfg", test_cfg or {}, ("max_per_img", "nms"))
        self.train_cfg = train_cfg
        if train_cfg:
            self.build_matching(train_cfg)
        self.dn_generator = None
        if dn_cfg is not None:
            self.dn_generator = build_dn_generator(dn_cfg)
            self.label_embedding = nn.Embedding(num_classes, self.embed_dims)
        self.warned_about_tokens = False

    def build_matching(self, train_cfg: Mapping[str, Any]) -> None:
        """Builds the assigner; says which settings are not used."""
        check_keys("train_cfg", train_cfg, ("assigner", *UNUSED_TRAIN_CFG))
        if "assigner" not in train_cfg:
            raise ValueError(f"{type(self).__name__}: train_cfg has no assigner")
        for key in UNUSED_TRAIN_CFG:
            if key in train_cfg:
                logger.info(
                    "%s: train_cfg.%s is ignored; nothing uses it", type(self).__name__, key
                )
        self.assigner = build_assigner(train_cfg["assigner"])
        self.sampler = build_sampler({"type": "PseudoSampler"}, context=self)

    def make_masks(
        self, mlvl_feats: Sequence[Tensor], img_metas: Sequence[Mapping[str, Any]]
    ) -> list[Tensor]:
        """Per level (N, H, W), true where the map shows padding."""
        height, width = img_metas[0]["batch_input_shape"]
        mask = torch.ones(len(img_metas), 1, height, width, device=mlvl_feats[0].device)
        for image, meta in zip(mask, img_metas):
            image[:, : meta["img_shape"][0], : meta["img_shape"][1]] = 0
        return [F.interpolate(mask, feat.shape[-2:])[:, 0].bool() for feat in mlvl_feats]

    def forward(
        self,
        mlvl_feats: Sequence[Tensor],
        img_metas: Sequence[Mapping[str, Any]],
        denoising: DenoisingQueries | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Maps to classes and boxes; Q queries, denoising ones first.

        Args:
            mlvl_feats: per level (N, C, H, W), finest first.
            img_metas: ``batch_input_shape`` and ``img_shape`` tell the padding.
            denoising: queries of the training.

        Returns:
            (layers, N, Q, classes) logits; (layers, N, Q, 4) boxes (cx, cy, w, h) in [0, 1];
            (N, K, classes) logits and (N, K, 4) boxes of the selected encoder tokens.
        """
        masks = self.make_masks(mlvl_feats, img_metas)
        output = self.transformer(
            mlvl_feats,
            masks,
            [self.positional_encoding(mask) for mask in masks],
            reg_branches=self.reg_branches,
            cls_branches=self.cls_branches,
            denoising=denoising,
        )
        scores, boxes = [], []
        for layer, (state, reference) in enumerate(zip(output.states, output.references)):
            scores.append(self.cls_branches[layer](state))
            boxes.append(refine_boxes(self.reg_branches[layer](state), reference))
        return torch.stack(scores), torch.stack(boxes), output.topk_score, output.topk_anchor

    def num_matching_queries(self, mlvl_feats: Sequence[Tensor]) -> int:
        """Matching queries for maps of this size; says once when they are fewer than configured."""
        tokens = sum(feat.shape[-2] * feat.shape[-1] for feat in mlvl_feats)
        count = self.transformer.num_queries(tokens)
        if count < self.num_query and not self.warned_about_tokens:
            self.warned_about_tokens = True
            logger.warning(
                "images of this size have %d tokens: only the first %d of the %d queries are used",
                tokens,
                count,
                self.num_query,
            )
        return count

    def make_denoising(
        self,
        mlvl_feats: Sequence[Tensor],
        img_metas: Sequence[Mapping[str, Any]],
        gt_bboxes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
    ) -> DenoisingQueries | None:
        """Denoising queries of a training batch; none in eval mode or without ``dn_cfg``."""
        if self.dn_generator is None or not self.training:
            return None
        count = self.num_matching_queries(mlvl_feats)
        return self.dn_generator(gt_bboxes, gt_labels, img_metas, self.label_embedding, count)

    def forward_train(
        self,
        x: Sequence[Tensor],
        img_metas: Sequence[Mapping[str, Any]],
        gt_bboxes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        gt_bboxes_ignore: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            x: per level (N, C, H, W).
            img_metas: one per image.
            gt_bboxes: per image (B_i, 4) corners in pixels; B_i may be 0.
            gt_labels: per image (B_i,).
            gt_bboxes_ignore: must be None; DINO matches every query.

        Raises:
            ValueError: for boxes to ignore, and for predictions that are not finite.
        """
        if gt_bboxes_ignore is not None:
            raise ValueError(f"{type(self).__name__}: gt_bboxes_ignore is not supported")
        denoising = self.make_denoising(x, img_metas, gt_bboxes, gt_labels)
        outputs = self(x, img_metas, denoising)
        return self.loss(*outputs, gt_bboxes, gt_labels, img_metas, denoising)

    def simple_test_bboxes(
        self,
        feats: Sequence[Tensor],
        img_metas: Sequence[Mapping[str, Any]],
        rescale: bool = False,
    ) -> list[tuple[Tensor, Tensor]]:
        """Per image (n, 5) corners and score, best first, and (n,) labels."""
        self.num_matching_queries(feats)
        return super().simple_test_bboxes(feats, img_metas, rescale=rescale)

    def aug_test(
        self,
        feats: Sequence[Sequence[Tensor]],
        img_metas: Sequence[Sequence[Mapping[str, Any]]],
        rescale: bool = False,
    ) -> list[tuple[Tensor, Tensor]]:
        """Results of several scales and flips of each image, merged (see `merge_augmented`)."""
        runs = [self.simple_test_bboxes(x, metas) for x, metas in zip(feats, img_metas)]
        return merge_augmented(runs, img_metas, self.test_cfg or {}, rescale)

    def _get_bboxes_single(
        self,
        cls_score: Tensor,
        bbox_pred: Tensor,
        img_shape: Sequence[int],
        scale_factor: Any,
        rescale: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The best (query, class) pairs of an image, at most ``max_per_img`` and what there is.

        Args:
            cls_score: (Q, classes) logits.
            bbox_pred: (Q, 4) boxes in [0, 1].
            img_shape: (height, width, ...) in pixels.
            scale_factor: enlargement (x, y, x, y) of the image.
            rescale: give pixels of the original image.
        """
        limit = (self.test_cfg or {}).get("max_per_img", self.num_query)
        scores = cls_score.to(bbox_pred.dtype).sigmoid().flatten()
        scores, indices = scores.topk(min(limit, len(scores)))
        boxes = bbox_cxcywh_to_xyxy(bbox_pred[indices // self.num_classes])
        height, width = img_shape[:2]
        size = boxes.new_tensor((width, height, width, height))
        boxes = (boxes * size).clamp(min=torch.zeros_like(size), max=size)
        if rescale:
            boxes = boxes / boxes.new_tensor(scale_factor)
        return torch.cat((boxes, scores[:, None]), -1), indices % self.num_classes
