"""Masks and classes out of a semantic label map: what Mask2Former is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def mask_targets(semantic: Tensor, ignore_index: int = 255) -> tuple[list[Tensor], list[Tensor]]:
    """The classes of each image, ascending, and the pixels of each of them.

    Args:
        semantic: (N, 1, H, W) label of every pixel.
        ignore_index: label that gets no mask.

    Returns:
        per image, the classes (n_i,) int64 and their masks (n_i, H, W) bool.
    """
    labels, masks = [], []
    for label_map in semantic[:, 0].long():  # (H, W)
        present = label_map.unique()
        present = present[present != ignore_index]
        labels.append(present)
        masks.append(label_map == present[:, None, None])
    return labels, masks


def check_mask_targets(
    labels: Sequence[Tensor],
    masks: Sequence[Any],
    semantic: Tensor,
    num_classes: int,
    metas: Sequence[dict],
) -> list[Tensor]:
    """The masks as tensors (n_i, H, W) on the device of the labels.

    Args:
        labels: per image (n_i,).
        masks: per image, a tensor or mmdet's BitmapMasks.
        semantic: (N, 1, H, W) the label maps, for the size of the masks.
        num_classes: upper bound of the labels.
        metas: per image; ``ori_filename`` or ``filename`` names it in a message.

    Raises:
        ValueError: a label is out of range, or the masks of an image are not (n_i, H, W).
    """
    tensors = []
    for index, (image_labels, image_masks) in enumerate(zip(labels, masks)):
        meta = metas[index] if index < len(metas) else {}
        name = meta.get("ori_filename") or meta.get("filename") or f"image {index} of the batch"
        if not torch.is_tensor(image_masks):
            image_masks = image_masks.to_tensor(torch.uint8, image_labels.device)
        wanted = (len(image_labels), *semantic.shape[-2:])
        if tuple(image_masks.shape) != wanted:
            raise ValueError(
                f"{name}: masks have shape {tuple(image_masks.shape)}, but {len(image_labels)} "
                f"labels on a label map of {wanted[1]}x{wanted[2]} need {wanted}. ToMask has to "
                "come after all transforms that move pixels."
            )
        bad = image_labels[(image_labels < 0) | (image_labels >= num_classes)]
        if len(bad):
            raise ValueError(
                f"{name}: label {bad[0].item()} is outside 0..{num_classes - 1} "
                f"(num_classes={num_classes}). Correct num_classes, or mark these pixels with the "
                "ignored label 255."
            )
        tensors.append(image_masks.to(image_labels.device))
    return tensors
