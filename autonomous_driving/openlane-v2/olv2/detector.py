"""Lanes, traffic elements and their topology from seven cameras (OpenLane-V2, arXiv 2304.10440)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ad_common.detector import MultiViewDetector
from mmdet.models.builder import DETECTORS, build_head, build_neck
from torch import Tensor


@DETECTORS.register_module()
class ROAD_BEVFormer(MultiViewDetector):
    """The OpenLane-V2 baseline: BEVFormer, a lane head, a box head and two topology heads.

    Args:
        bev_constructor: config of the bird's-eye-view encoder.
        bbox_head: config of the head for traffic elements in the first camera's image.
        lclc_head: config of the lane-to-lane topology head.
        lcte_head: config of the lane-to-traffic-element topology head.
        train_cfg: {"pts": settings of the lane head, "bbox": settings of the box head}.
        test_cfg: the same for testing.
        **kwargs: arguments of `MultiViewDetector`; `pts_bbox_head` is the lane head.
    """

    def __init__(
        self,
        bev_constructor: Mapping[str, Any],
        bbox_head: Mapping[str, Any],
        lclc_head: Mapping[str, Any],
        lcte_head: Mapping[str, Any],
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(train_cfg=train_cfg, test_cfg=test_cfg, **kwargs)
        self.bev_constructor = build_neck(dict(bev_constructor))
        box_settings = dict(
            train_cfg=(train_cfg or {}).get("bbox"), test_cfg=(test_cfg or {}).get("bbox")
        )
        self.bbox_head = build_head({**bbox_head, **box_settings})
        self.lclc_head = build_head(dict(lclc_head))
        self.lcte_head = build_head(dict(lcte_head))

    def predict(
        self, img: Tensor, img_metas: list[dict]
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...], Tensor, Tensor]:
        """What all heads say about a batch.

        Args:
            img: (B, N, 3, H, W), the front view first.
            img_metas: per frame `lidar2img`, `can_bus`, `img_shape`, `pad_shape`.

        Returns:
            outputs of the lane head and of the box head, and the logits of the edges: lane to lane
            (B, Q, Q), lane to traffic element (B, Q, K).
        """
        features = self.extract_img_feat(img)
        bev = self.bev_constructor(features, img_metas)  # (B, H*W, C)
        *lanes, lane_states = self.pts_bbox_head(bev)
        boxes, box_states = self.bbox_head.forward_states(
            [level[:, 0] for level in features], front_metas(img, img_metas)
        )
        lclc = self.lclc_head(lane_states, lane_states)
        lcte = self.lcte_head(lane_states, box_states)
        return tuple(lanes), boxes, lclc, lcte

    def forward_train(
        self,
        img: Tensor,
        img_metas: list[dict],
        gt_lc: Sequence[Tensor],
        gt_lc_labels: Sequence[Tensor],
        gt_te: Sequence[Tensor],
        gt_te_labels: Sequence[Tensor],
        gt_topology_lclc: Sequence[Tensor],
        gt_topology_lcte: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Losses of a batch; the names begin with lane_head, bbox_head, lclc_head, lcte_head.

        Args:
            img: (B, N, 3, H, W), the front view first.
            img_metas: see `predict`.
            gt_lc: per frame (n, 15) control points of the centre lines, metres.
            gt_lc_labels: per frame (n,) zeros.
            gt_te: per frame (k, 4) boxes x1, y1, x2, y2 in pixels of the front view of `img`.
            gt_te_labels: per frame (k,) attributes.
            gt_topology_lclc: per frame (n, n), 1 where the column's lane follows the row's.
            gt_topology_lcte: per frame (n, k), 1 where the traffic element belongs to the lane.
        """
        metas = front_metas(img, img_metas)
        lanes, boxes, lclc, lcte = self.predict(img, img_metas)
        of_lane = self.pts_bbox_head.match(*lanes, gt_lc, gt_lc_labels)
        of_box = self.bbox_head.match(boxes, gt_te, gt_te_labels, metas)
        losses = {
            "lane_head": self.pts_bbox_head.loss(*lanes, gt_lc, gt_lc_labels),
            "bbox_head": self.bbox_head.loss(*boxes, gt_te, gt_te_labels, metas),
            "lclc_head": self.lclc_head.loss(lclc, of_lane, of_lane, gt_topology_lclc),
            "lcte_head": self.lcte_head.loss(lcte, of_lane, of_box, gt_topology_lcte),
        }
        return {f"{head}.{k}": v for head, parts in losses.items() for k, v in parts.items()}

    def forward_test(
        self, img: Tensor, img_metas: list[dict], **annotations: Any
    ) -> list[dict[str, Any]]:
        """Predictions per frame, as numpy arrays; all queries, in their order.

        Args:
            img: (B, N, 3, H, W), the front view first.
            img_metas: see `predict`, and `scale_factor` of the front view or of all views (width,
                height, width, height: size of the resized over that of the original image).
            **annotations: not used.

        Returns:
            per frame `lc` (control_points (Q, 5, 3) metres, scores (Q,)), `te` (bboxes (K, 4) in
            pixels of the original front image, labels (K,), scores (K,)), and the probabilities of
            edges `lclc` (Q, Q) and `lcte` (Q, K).
        """
        lanes, boxes, lclc, lcte = self.predict(img, img_metas)
        lanes = self.pts_bbox_head.get_lanes(*lanes)
        boxes = self.bbox_head.get_bboxes(*boxes, front_metas(img, img_metas), rescale=True)
        return [
            dict(
                lc=dict(control_points=array(points), scores=array(scores)),
                te=dict(bboxes=array(box[:, :4]), labels=array(label), scores=array(box[:, 4])),
                lclc=array(lane_edges.sigmoid()),
                lcte=array(box_edges.sigmoid()),
            )
            for (points, scores), (box, label), lane_edges, box_edges in zip(
                lanes, boxes, lclc, lcte
            )
        ]


def front_metas(img: Tensor, img_metas: list[dict]) -> list[dict]:
    """What mmdet's box head wants to know about the first camera's image of each frame."""
    return [
        dict(
            img_shape=tuple(meta["img_shape"][0]),
            batch_input_shape=tuple(img.shape[-2:]),
            scale_factor=np.reshape(meta.get("scale_factor", np.ones(4)), (-1, 4))[0],
        )
        for meta in img_metas
    ]


def array(tensor: Tensor) -> np.ndarray:
    """A tensor as float32 or int64 numpy array."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
