"""The detector DINO (arXiv 2203.03605)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdet.models.builder import DETECTORS
from mmdet.models.detectors import DETR, SingleStageDetector

__all__ = ["DINO"]


@DETECTORS.register_module()
class DINO(DETR):
    """Backbone, neck and `DINOHead`.

    mmdet's DETR takes no neck; everything else is the same.

    Args:
        backbone, neck, bbox_head: configs of the parts.
        train_cfg, test_cfg: handed to the head.
        pretrained: checkpoint of the backbone, the older spelling of its ``init_cfg``.
        init_cfg: of ``BaseModule``.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        neck: Any,
        bbox_head: Mapping[str, Any],
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        pretrained: str | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        SingleStageDetector.__init__(
            self, backbone, neck, bbox_head, train_cfg, test_cfg, pretrained, init_cfg
        )
