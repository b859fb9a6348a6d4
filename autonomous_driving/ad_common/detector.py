"""What detectors with several cameras have in common: image features, losses, test calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmcv.runner import auto_fp16
from mmdet.models.builder import build_backbone, build_head, build_neck
from mmdet.models.detectors.base import BaseDetector
from torch import Tensor

from .grid_mask import GridMask


class MultiViewDetector(BaseDetector):
    """Base of a detector that sees a frame through N calibrated cameras.

    A subclass has `forward_train(**batch)`, which returns a dictionary of losses, and
    `forward_test(**batch)`, which returns a list with one picklable dictionary per frame.
    `train_step` and `val_step` are those of mmdet.

    Args:
        img_backbone: config of the backbone.
        img_neck: config of the neck; None for none.
        pts_bbox_head: config of the head in bird's eye view; gets `train_cfg.pts` and
            `test_cfg.pts` as its `train_cfg` and `test_cfg`. None for none.
        use_grid_mask: hide a grid of squares in the training images, the same in all cameras
            (GridMask, arXiv 2001.04086, with the settings of BEVFormer, arXiv 2203.17270).
        train_cfg: settings for training; {"pts": {...}}.
        test_cfg: settings for testing; {"pts": {...}}.
        pretrained: weights of the backbone, a path or {"img": path}; old, `img_backbone.init_cfg`
            says the same.
        init_cfg: as in mmcv's BaseModule.
    """

    def __init__(
        self,
        img_backbone: Mapping[str, Any],
        img_neck: Mapping[str, Any] | None = None,
        pts_bbox_head: Mapping[str, Any] | None = None,
        use_grid_mask: bool = False,
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        pretrained: str | Mapping[str, str] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        checkpoint = pretrained.get("img") if isinstance(pretrained, Mapping) else pretrained
        img_backbone = dict(img_backbone)
        if checkpoint is not None:
            img_backbone["init_cfg"] = {"type": "Pretrained", "checkpoint": checkpoint}
        self.img_backbone = build_backbone(img_backbone)
        self.img_neck = build_neck(dict(img_neck)) if img_neck is not None else None
        self.train_cfg = train_cfg
        self.test_cfg = test_cfg
        if pts_bbox_head is not None:
            head = dict(pts_bbox_head)
            head["train_cfg"] = (train_cfg or {}).get("pts")
            head["test_cfg"] = (test_cfg or {}).get("pts")
            self.pts_bbox_head = build_head(head)
        self.grid_mask = GridMask(mode=1, prob=0.7) if use_grid_mask else None

    def extract_img_feat(self, img: Tensor) -> list[Tensor]:
        """Feature maps of all cameras.

        Args:
            img: (B, N, 3, H, W), normalised.

        Returns:
            one (B, N, C, h, w) tensor per level of the neck.

        Raises:
            ValueError: `img` has another number of dimensions.
        """
        if img.dim() != 5:
            raise ValueError(
                f"expected images of shape (batch, cameras, 3, H, W), got {tuple(img.shape)}"
            )
        batch, cameras = img.shape[:2]
        flat = img.flatten(0, 1)  # (B*N, 3, H, W)
        if self.grid_mask is not None:
            flat = self.grid_mask(flat)
        levels = self.img_backbone(flat)
        if self.img_neck is not None:
            levels = self.img_neck(levels)
        return [level.unflatten(0, (batch, cameras)) for level in levels]

    def extract_feat(self, imgs: Tensor) -> list[Tensor]:
        """mmdet's name for `extract_img_feat`."""
        return self.extract_img_feat(imgs)

    @auto_fp16(apply_to=("img",))
    def forward(self, return_loss: bool = True, **batch: Any) -> Any:
        """`forward_train` or `forward_test` with the tensors of the data set's pipeline.

        The list level that `MultiScaleFlipAug3D` of a test pipeline adds is taken off first.
        """
        if return_loss:
            return self.forward_train(**batch)
        return self.forward_test(**without_augmentations(batch))

    def simple_test(self, img: Tensor, img_metas: list[dict], **batch: Any) -> list[dict[str, Any]]:
        """mmdet's name for `forward_test`."""
        return self.forward_test(img=img, img_metas=img_metas, **batch)

    def aug_test(self, imgs: Any, img_metas: Any, **batch: Any) -> None:
        """There are no test-time augmentations."""
        raise NotImplementedError(f"{type(self).__name__} has no test-time augmentations")


def without_augmentations(batch: dict[str, Any]) -> dict[str, Any]:
    """A test batch without the list level of test-time augmentations, if it has one.

    Raises:
        ValueError: there is more than one augmentation.
    """
    metas = batch.get("img_metas")
    if not (isinstance(metas, list) and metas and isinstance(metas[0], list)):
        return batch
    if len(metas) != 1:
        raise ValueError(f"test-time augmentations are not supported, got {len(metas)} of them")
    return {k: v[0] if isinstance(v, list) and len(v) == 1 else v for k, v in batch.items()}
