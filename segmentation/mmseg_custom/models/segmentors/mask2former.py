"""mmseg's segmentor for a head that is trained on masks (Mask2Former, arXiv 2112.01527)."""

from __future__ import annotations

from typing import Any

from mmcv import ConfigDict
from mmseg.core import add_prefix
from mmseg.models.builder import SEGMENTORS
from mmseg.models.segmentors import EncoderDecoder
from mmseg.ops import resize
from torch import Tensor


@SEGMENTORS.register_module()
class EncoderDecoderMask2Former(EncoderDecoder):
    """EncoderDecoder that hands masks and their classes to the decode head.

    Args:
        backbone: config of the backbone.
        decode_head: config of the head; it also gets ``train_cfg`` (points, assigner, sampler) and
            ``test_cfg``.
        train_cfg: config of the training.
        test_cfg: ``mode='whole'``, or ``mode='slide'`` with ``crop_size`` and ``stride``.
        options: the further arguments of EncoderDecoder.
    """

    def __init__(
        self,
        backbone: dict,
        decode_head: dict,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        **options: Any,
    ) -> None:
        head = ConfigDict({**decode_head, "train_cfg": train_cfg, "test_cfg": test_cfg})
        super().__init__(backbone, head, train_cfg=train_cfg, test_cfg=test_cfg, **options)

    def forward_train(
        self,
        img: Tensor,
        img_metas: list[dict],
        gt_semantic_seg: Tensor,
        gt_labels: list[Tensor] | None = None,
        gt_masks: list[Any] | None = None,
    ) -> dict[str, Tensor]:
        """The losses of the decode head ("decode.") and of an auxiliary head ("aux.").

        Args:
            img: (N, 3, H, W) normalised images.
            img_metas: one per image.
            gt_semantic_seg: (N, 1, H, W) label of every pixel.
            gt_labels: per image, the classes in it; default: found in ``gt_semantic_seg``.
            gt_masks: per image (n_i, H, W), the pixels of each class; default likewise.
        """
        feats = self.extract_feat(img)
        head_losses = self.decode_head.forward_train(
            feats, img_metas, gt_semantic_seg, gt_labels, gt_masks
        )
        losses = add_prefix(head_losses, "decode")
        if self.with_auxiliary_head:
            losses.update(self._auxiliary_head_forward_train(feats, img_metas, gt_semantic_seg))
        return losses

    def slide_inference(self, img: Tensor, img_meta: list[dict], rescale: bool) -> Tensor:
        """mmseg's sliding window, without its crop of a padded border (as upstream).

        The crop makes a difference only for images that the test pipeline pads.
        """
        scores = super().slide_inference(img, img_meta, rescale=False)
        if not rescale:
            return scores
        return resize(
            scores,
            size=img_meta[0]["ori_shape"][:2],
            mode="bilinear",
            align_corners=self.align_corners,
            warning=False,
        )


@SEGMENTORS.register_module()
class EncoderDecoderMask2FormerAug(EncoderDecoderMask2Former):
    """The same; the sliding window cuts a padded border off before it resizes the scores."""

    slide_inference = EncoderDecoder.slide_inference
