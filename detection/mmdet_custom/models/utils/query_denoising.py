"""Contrastive denoising queries (DINO, arXiv 2203.03605, section 3.3).

During training the decoder gets, in front of its matching queries, noised copies of the ground
truth. They come in groups. Every group holds each box of an image twice:

    group g:  [ positive copy of box 0, 1, ... | negative copy of box 0, 1, ... ]

A positive copy keeps its sides within half a box of the true ones and has to restore the box; a
negative copy is moved further away (between half a box and a whole one) and has to answer "no
object". Some labels are replaced at random. Groups are padded to the largest number of boxes of an
image in the batch; padding queries are zeros.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from mmdet.core import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from mmdet.models.utils.transformer import inverse_sigmoid
from torch import Tensor, nn

__all__ = ["BOX_EPS", "CdnQueryGenerator", "DenoisingQueries", "build_dn_generator"]

#: Clamp of a box coordinate before its inverse sigmoid, in DINO everywhere.
BOX_EPS = 1e-3


@dataclass
class DenoisingQueries:
    """What one batch adds to the decoder; P = ``pad_size`` queries per image.

    Attributes:
        label_query: (N, P, C) contents, the embeddings of the noised labels.
        bbox_query: (N, P, 4) noised boxes (cx, cy, w, h) before the sigmoid.
        attn_mask: (P + Q, P + Q) bool for the Q matching queries; true where the query of the row
            must not look at the query of the column.
        num_groups: groups per image; every group has ``pad_size / num_groups`` queries.
    """

    label_query: Tensor
    bbox_query: Tensor
    attn_mask: Tensor
    num_groups: int

    @property
    def pad_size(self) -> int:
        return self.label_query.shape[1]

    def positive_indices(self, num_boxes: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Positive queries of an image with ``num_boxes`` boxes, and the box of each.

        Returns:
            (G*B,) positions among the P queries and (G*B,) box numbers.
        """
        boxes = torch.arange(num_boxes, device=device)
        starts = torch.arange(self.num_groups, device=device) * (self.pad_size // self.num_groups)
        return (starts[:, None] + boxes).flatten(), boxes.repeat(self.num_groups)


class CdnQueryGenerator:
    """Makes the denoising queries of a batch.

    Args:
        noise_scale: ``dict(label=0.5, box=1.0)``: half of ``label`` is the probability that a label
            is drawn anew among all classes; ``box`` scales the noise of the corners, 1 is half a
            side for positive and up to a whole side for negative copies.
        group_cfg: ``dict(dynamic=True, num_dn_queries=100)``: as many groups as give about that
            number of positive queries for the fullest image; or ``dict(dynamic=False,
            num_groups=5)``.

    Raises:
        ValueError: for a setting outside its range.
        TypeError: for a setting that does not exist.
    """

    def __init__(self, noise_scale: Mapping[str, float], group_cfg: Mapping[str, object]) -> None:
        check_keys("noise_scale", noise_scale, ("label", "box"))
        check_keys("group_cfg", group_cfg, ("dynamic", "num_groups", "num_dn_queries"))
        self.label_noise_scale = float(noise_scale.get("label", 0.5))
        self.box_noise_scale = float(noise_scale.get("box", 1.0))
        self.dynamic = bool(group_cfg.get("dynamic", True))
        name = "num_dn_queries" if self.dynamic else "num_groups"
        number = group_cfg.get(name)
        if not isinstance(number, int) or number < 1:
            raise ValueError(
                f"dn_cfg.group_cfg: {name} must be an integer >= 1 when dynamic is {self.dynamic}, "
                f"got {number!r}"
            )
        if not 0 <= self.label_noise_scale <= 2 or self.box_noise_scale < 0:
            raise ValueError(
                "dn_cfg.noise_scale: label must be within [0, 2] and box not negative, got "
                f"label={self.label_noise_scale}, box={self.box_noise_scale}"
            )
        self.number = number

    def num_groups(self, max_boxes: int) -> int:
        """Groups for a batch whose fullest image has ``max_boxes`` boxes; at least one."""
        if not self.dynamic:
            return self.number
        return max(1, self.number // max(1, max_boxes))

    def __call__(
        self,
        gt_bboxes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        img_metas: Sequence[Mapping[str, object]],
        label_embedding: nn.Embedding,
        num_matching_queries: int,
    ) -> DenoisingQueries:
        """Draws the queries with the default random generator of the boxes' device.

        Draws, in this order: one uniform number per copy (which labels change), the new labels,
        signs and magnitudes of the noise. A copy is (group, positive or negative, image, box).

        Args:
            gt_bboxes: per image (B_i, 4) corners in pixels; their dtype is that of the noise.
            gt_labels: per image (B_i,).
            img_metas: ``img_shape`` normalises the boxes.
            label_embedding: (num_classes, C), gets gradients.
            num_matching_queries: Q.
        """
        counts = [len(boxes) for boxes in gt_bboxes]
        groups = self.num_groups(max(counts))
        half = max(counts)
        pad_size = 2 * groups * half

        boxes = torch.cat([normalise(b, meta) for b, meta in zip(gt_bboxes, img_metas)])
        labels = torch.cat(list(gt_labels)).long()
        labels = self.noise_labels(labels.repeat(2 * groups), label_embedding.num_embeddings)
        boxes = self.noise_boxes(boxes.repeat(2 * groups, 1), groups)

        image = torch.cat([boxes.new_full((n,), i).long() for i, n in enumerate(counts)])
        number = torch.cat([torch.arange(n, device=boxes.device) for n in counts])
        copy = torch.arange(2 * groups, device=boxes.device).repeat_interleave(len(number))
        position = (image.repeat(2 * groups), number.repeat(2 * groups) + half * copy)

        content = label_embedding(labels)
        label_query = content.new_zeros(len(counts), pad_size, content.shape[-1])
        bbox_query = boxes.new_zeros(len(counts), pad_size, 4)
        return DenoisingQueries(
            label_query.index_put(position, content),
            bbox_query.index_put(position, inverse_sigmoid(boxes, eps=BOX_EPS)),
            attention_mask(pad_size, num_matching_queries, groups, boxes.device),
            groups,
        )

    def noise_labels(self, labels: Tensor, num_classes: int) -> Tensor:
        """Replaces each label with probability ``label_noise_scale / 2`` by any class."""
        if self.label_noise_scale == 0:
            return labels
        chosen = torch.rand_like(labels, dtype=torch.float32) < self.label_noise_scale * 0.5
        drawn = torch.randint_like(labels[chosen], num_classes)
        return labels.masked_scatter(chosen, drawn)

    def noise_boxes(self, boxes: Tensor, groups: int) -> Tensor:
        """Moves the corners of (2*G*B, 4) boxes (cx, cy, w, h), positive and negative copies."""
        if self.box_noise_scale == 0:
            return boxes
        half_sides = boxes[:, 2:].repeat(1, 2) / 2
        sign = torch.randint_like(boxes, 0, 2) * 2 - 1
        part = torch.rand_like(boxes).view(groups, 2, -1, 4)
        part = torch.stack((part[:, 0], part[:, 1] + 1), dim=1).view_as(boxes)
        corners = bbox_cxcywh_to_xyxy(boxes) + sign * part * half_sides * self.box_noise_scale
        return bbox_xyxy_to_cxcywh(corners.clamp(0, 1))


def attention_mask(pad_size: int, num_matching: int, groups: int, device: torch.device) -> Tensor:
    """True where looking is forbidden: matching queries see no copy, a group only itself.

    Denoising queries may look at the matching queries, which carry no ground truth.
    """
    group = torch.arange(pad_size, device=device) // max(1, pad_size // groups)
    group = torch.cat((group, group.new_full((num_matching,), groups)))
    return (group[:, None] != group) & (group != groups)


def normalise(boxes: Tensor, meta: Mapping[str, object]) -> Tensor:
    """Corners in pixels -> (cx, cy, w, h) relative to the image without padding."""
    height, width = meta["img_shape"][:2]
    return bbox_xyxy_to_cxcywh(boxes / boxes.new_tensor((width, height, width, height)))


def build_dn_generator(cfg: Mapping[str, object]) -> CdnQueryGenerator:
    """The generator of ``dn_cfg``; ``type`` may be left out, 'CdnQueryGenerator' is the only one.

    Raises:
        KeyError: for another type.
        TypeError: for settings that do not exist.
    """
    settings = dict(cfg)
    name = settings.pop("type", "CdnQueryGenerator")
    if name not in ("CdnQueryGenerator", CdnQueryGenerator):
        raise KeyError(f"unknown dn_cfg.type {name!r}; the only one is 'CdnQueryGenerator'")
    return CdnQueryGenerator(**settings)


def check_keys(name: str, given: Mapping[str, object], known: Sequence[str]) -> None:
    """Refuses keys of a dict that nothing would read."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise TypeError(f"{name}: unknown setting {key!r}{hint}")
