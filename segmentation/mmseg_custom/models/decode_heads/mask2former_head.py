"""Mask2Former (arXiv 2112.01527) as a decode head of mmseg, made of the parts of mmdet.

Network, matching and losses are those of mmdet's `Mask2FormerHead`. All that the config names
inside the head (pixel decoder, assigner, losses ...) is looked up in mmdet's registries, so that
`CrossEntropyLoss` and `DiceLoss` here are mmdet's and in any other head mmseg's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmcv import ConfigDict
from mmdet.models.dense_heads import Mask2FormerHead as DetectionMask2FormerHead
from torch import Tensor

from .feed_forward import use_checkpointed_ffn
from .mask_targets import check_mask_targets, mask_targets


class Mask2FormerHead(DetectionMask2FormerHead):
    """Queries that each predict a class and a mask; together they give the score of every class.

    Under autocast the head computes in the dtype of its weights, float32: the deformable attention
    has no half-precision kernels, and the sums over points in the matching costs overflow float16.

    Args:
        in_channels: channels of the inputs that ``in_index`` selects, the finest level first.
        num_classes: semantic classes; the classifier has one row more, for "no object".
        feat_channels: width of the pixel decoder and of the queries.
        out_channels: channels of the per-pixel embedding.
        num_queries: predictions per image.
        in_index: which outputs of the backbone are used.
        num_things_classes: accepted because upstream's configs set it; in semantic segmentation
            things and stuff are treated alike, so it changes nothing.
        num_stuff_classes: as ``num_things_classes``.
        ignore_index: label of the pixels that belong to no mask.
        align_corners: of the resizing of the scores to the size of the image.
        loss_cls: classification loss; its ``class_weight`` has ``num_classes + 1`` entries.
        options: the further arguments of mmdet's head (``pixel_decoder``,
            ``transformer_decoder``, ``positional_encoding``, ``loss_mask``, ``loss_dice``,
            ``train_cfg`` ...).

    Raises:
        ValueError: an argument does not fit another one; the message says which.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        num_classes: int,
        feat_channels: int,
        out_channels: int,
        loss_cls: dict[str, Any],
        num_queries: int = 100,
        in_index: Sequence[int] = (0, 1, 2, 3),
        num_things_classes: int | None = None,
        num_stuff_classes: int | None = None,
        ignore_index: int = 255,
        align_corners: bool = False,
        **options: Any,
    ) -> None:
        if len(in_channels) != len(in_index):
            raise ValueError(
                f"in_channels and in_index need one entry per input, got {list(in_channels)} and "
                f"{list(in_index)}."
            )
        check_class_weight(loss_cls.get("class_weight"), num_classes)
        options = ConfigDict({"num_transformer_feat_level": 3, **options})
        use_checkpointed_ffn(options)
        super().__init__(
            in_channels=list(in_channels),
            feat_channels=feat_channels,
            out_channels=out_channels,
            num_things_classes=num_classes,
            num_stuff_classes=0,
            num_queries=num_queries,
            loss_cls=ConfigDict(loss_cls),
            **options,
        )
        self.in_index = tuple(in_index)
        self.ignore_index = ignore_index
        # what mmseg's segmentors read from a decode head
        self.align_corners = align_corners
        self.out_channels = num_classes
        self.threshold = None
        self.fp16_enabled = False

    def forward(
        self, feats: Sequence[Tensor], img_metas: list[dict] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Class and mask logits before the first decoder layer and after each one.

        Args:
            feats: the outputs of the backbone, each (N, C_i, H_i, W_i).
            img_metas: not needed; there for the interface of mmseg and mmdet.

        Returns:
            class logits, each (N, num_queries, num_classes + 1), the last one for "no object", and
            mask logits, each (N, num_queries, H_0, W_0).
        """
        dtype = self.query_feat.weight.dtype
        feats = [feats[i].to(dtype) for i in self.in_index]
        with no_autocast(feats[0]):  # mmdet reads only the length of the metas
            return super().forward(feats, [{}] * len(feats[0]))

    def forward_train(
        self,
        feats: Sequence[Tensor],
        img_metas: list[dict],
        gt_semantic_seg: Tensor,
        gt_labels: list[Tensor] | None = None,
        gt_masks: list[Any] | None = None,
    ) -> dict[str, Tensor]:
        """The losses of every decoder layer.

        Args:
            feats: the outputs of the backbone, each (N, C_i, H_i, W_i).
            img_metas: one per image.
            gt_semantic_seg: (N, 1, H, W) label of every pixel.
            gt_labels: per image, the n_i classes that occur in it. Default: found in
                ``gt_semantic_seg``, like ``gt_masks``.
            gt_masks: per image, (n_i, H, W) the pixels of each of these classes.

        Returns:
            loss_cls, loss_mask, loss_dice of the last layer, and with the prefix "d{i}." of the
            others (d0: before the first layer).

        Raises:
            ValueError: a label is not below ``num_classes``, labels and masks do not fit, or the
                head was built without ``train_cfg``.
        """
        if not self.train_cfg:
            raise ValueError(
                "Mask2FormerHead needs train_cfg (points, assigner, sampler) to train: use the "
                "segmentor type 'EncoderDecoderMask2Former' with a train_cfg; mmseg's "
                "'EncoderDecoder' does not hand it on."
            )
        if gt_labels is None or gt_masks is None:
            gt_labels, gt_masks = mask_targets(gt_semantic_seg, self.ignore_index)
        gt_masks = check_mask_targets(
            gt_labels, gt_masks, gt_semantic_seg, self.num_classes, img_metas
        )
        class_logits, mask_logits = self(feats, img_metas)
        with no_autocast(feats[0]):  # sums over points in the matching costs
            return self.loss(class_logits, mask_logits, gt_labels, gt_masks, img_metas)

    def forward_test(
        self, feats: Sequence[Tensor], img_metas: list[dict] | None, test_cfg: dict | None = None
    ) -> Tensor:
        """(N, num_classes, H_0, W_0): the scores of the classes, summed over the queries.

        ``score[c] = sum over queries q of softmax(class_logits[q])[c] * sigmoid(mask_logits[q])``
        (arXiv 2107.06278, section 3.4). Not normalised over the classes.
        """
        class_logits, mask_logits = self(feats, img_metas)
        with no_autocast(feats[0]):
            classes = class_logits[-1].softmax(-1)[..., :-1]  # (N, Q, num_classes)
            return torch.einsum("nqc,nqhw->nchw", classes, mask_logits[-1].sigmoid())


def check_class_weight(class_weight: Sequence[float] | None, num_classes: int) -> None:
    """Raises ValueError unless every class and "no object" have a weight."""
    if class_weight is None or len(class_weight) != num_classes + 1:
        got = "none" if class_weight is None else f"{len(class_weight)}"
        raise ValueError(
            f"loss_cls.class_weight needs num_classes + 1 = {num_classes + 1} entries (the last "
            f"one is for queries without an object), got {got}. A config usually says "
            "`class_weight=[1.0] * num_classes + [0.1]`."
        )


def no_autocast(x: Tensor) -> torch.autocast:
    """A context without autocast on the device of ``x``."""
    return torch.autocast(x.device.type, enabled=False)
