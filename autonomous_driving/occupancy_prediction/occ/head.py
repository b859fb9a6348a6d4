"""The head of BEVFormerOcc: queries of the BEV grid, scores of the voxels, the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import build_positional_encoding
from mmcv.runner import BaseModule, force_fp32
from mmdet.models.builder import HEADS, build_loss
from mmdet.models.utils import build_transformer
from torch import Tensor, nn

from .classes import FREE

PUBLISHED = ("in_channels", "num_query", "sync_cls_avg_factor", "with_box_refine", "as_two_stage")


@HEADS.register_module()
class BEVFormerOccHead(BaseModule):
    """Predicts the class of every voxel.

    Args:
        transformer: config of TransformerOcc.
        positional_encoding: config of the encoding of BEV cells.
        bev_h: cells along y.
        bev_w: cells along x.
        pc_range: (x0, y0, z0, x1, y1, z1) of the grid in metres, ego frame.
        num_classes: classes of a voxel, free among them.
        loss_occ: config of the loss over voxels.
        use_mask: only voxels that a camera sees count in the loss.
        label_size: (X, Y, Z) of the labels, where the BEV grid is coarser than they are; the scores
            are interpolated to it. None: the labels have (bev_w, bev_h, pillar_h) voxels.
        train_cfg, test_cfg: the detector's; not used.
        init_cfg: as in mmcv's BaseModule.
        others: settings of published configs that belong to boxes (`PUBLISHED`).
    """

    def __init__(
        self,
        transformer: Mapping[str, Any],
        positional_encoding: Mapping[str, Any],
        bev_h: int = 200,
        bev_w: int = 200,
        pc_range: Sequence[float] = (-40.0, -40.0, -1.0, 40.0, 40.0, 5.4),
        num_classes: int = FREE + 1,
        loss_occ: Mapping[str, Any] | None = None,
        use_mask: bool = False,
        label_size: Sequence[int] | None = None,
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        init_cfg: Any = None,
        **others: Any,
    ) -> None:
        super().__init__(init_cfg)
        unknown = sorted(set(others) - set(PUBLISHED))
        if unknown:
            raise TypeError(f"BEVFormerOccHead has no argument {', '.join(unknown)}")
        self.bev_h, self.bev_w = bev_h, bev_w
        self.grid_length = (
            (pc_range[4] - pc_range[1]) / bev_h,
            (pc_range[3] - pc_range[0]) / bev_w,
        )
        self.num_classes = num_classes
        self.use_mask = use_mask
        self.label_size = None if label_size is None else tuple(label_size)
        self.positional_encoding = build_positional_encoding(dict(positional_encoding))
        self.transformer = build_transformer({"num_classes": num_classes, **transformer})
        self.bev_embedding = nn.Embedding(bev_h * bev_w, self.transformer.embed_dims)
        self.loss_occ = build_loss(
            dict(loss_occ or {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0})
        )

    def init_weights(self) -> None:
        """The transformer's."""
        self.transformer.init_weights()

    def bev_features(
        self,
        features: Sequence[Tensor],
        img_metas: Sequence[Mapping[str, Any]],
        prev_bev: Tensor | None = None,
        has_history: Tensor | None = None,
    ) -> Tensor:
        """BEV features (B, bev_h * bev_w, C).

        Args:
            features: one (B, N, C, h, w) per level of the neck.
            img_metas: one per sample, of the current frame.
            prev_bev: (B, bev_h * bev_w, C), those of the frame before.
            has_history: (B,) bool, the samples that have a frame before; None: all.
        """
        dtype = features[0].dtype
        cells = torch.zeros(
            (len(img_metas), self.bev_h, self.bev_w), dtype=dtype, device=features[0].device
        )
        return self.transformer.get_bev_features(
            features,
            self.bev_embedding.weight.to(dtype),
            self.bev_h,
            self.bev_w,
            grid_length=self.grid_length,
            bev_pos=self.positional_encoding(cells).to(dtype),
            prev_bev=prev_bev,
            img_metas=img_metas,
            has_history=has_history,
        )

    def forward(self, bev: Tensor) -> Tensor:
        """Scores (B, X, Y, Z, classes) of the label grid's voxels, from `bev_features`."""
        scores = self.transformer.decode(bev, self.bev_h, self.bev_w)
        if self.label_size is not None and scores.shape[1:4] != self.label_size:
            channels_first = scores.permute(0, 4, 1, 2, 3)
            scores = F.interpolate(channels_first, self.label_size, mode="trilinear")
            scores = scores.permute(0, 2, 3, 4, 1)
        return scores

    @force_fp32(apply_to=("scores",))
    def loss(
        self, scores: Tensor, voxel_semantics: Tensor, mask_camera: Tensor | None
    ) -> dict[str, Tensor]:
        """`loss_occ`, the mean over all voxels, or over those that a camera sees (`use_mask`).

        Args:
            scores: (B, X, Y, Z, classes).
            voxel_semantics: (B, X, Y, Z) classes.
            mask_camera: (B, X, Y, Z) bool; only `use_mask` needs it.

        Raises:
            ValueError: labels of another size, or no mask where one is needed.
        """
        if voxel_semantics.shape != scores.shape[:-1]:
            raise ValueError(
                f"labels of {tuple(voxel_semantics.shape[1:])} voxels, but the model predicts "
                f"{tuple(scores.shape[1:-1])} (x, y, z); set the head's label_size to the labels'"
            )
        if self.use_mask:
            if mask_camera is None:
                raise ValueError("use_mask=True needs mask_camera in the keys that are collected")
            seen = mask_camera.bool()
            scores, voxel_semantics = scores[seen], voxel_semantics[seen]
        flat = scores.reshape(-1, self.num_classes)
        labels = voxel_semantics.reshape(-1).long()
        count = max(labels.numel(), 1)  # a frame of which no camera sees anything
        return {"loss_occ": self.loss_occ(flat, labels, avg_factor=count)}

    @staticmethod
    def classes(scores: Tensor) -> Tensor:
        """(B, X, Y, Z) uint8, the class of the highest score."""
        return scores.argmax(-1).to(torch.uint8)
