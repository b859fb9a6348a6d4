"""BEVFormerOcc: occupancy from six cameras and the frames before (arXiv 2203.17270, 2304.14365)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ad_common.detector import MultiViewDetector
from mmdet.models.builder import DETECTORS
from torch import Tensor

from .can_bus import with_motion
from .results import pack


@dataclass(frozen=True)
class Memory:
    """What is kept of the last tested frame."""

    scene_token: str
    timestamp: float
    can_bus: np.ndarray  # (18,), with the absolute pose
    bev: Tensor  # (1, cells, C)


@DETECTORS.register_module()
class BEVFormerOcc(MultiViewDetector):
    """Cameras -> BEV features, with those of the frame before -> class of every voxel.

    Args:
        video_test_mode: at test time, keep the BEV features for the next frame of the scene. The
            frames of a scene must then come in their order.
        **detector: arguments of `MultiViewDetector`.
    """

    def __init__(self, video_test_mode: bool = True, **detector: Any) -> None:
        super().__init__(**detector)
        self.video_test_mode = video_test_mode
        self.memory: Memory | None = None

    def forward_train(
        self,
        img: Tensor,
        img_metas: Sequence[Mapping[int, dict]],
        voxel_semantics: Tensor,
        mask_camera: Tensor | None = None,
        mask_lidar: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a batch of queues.

        Args:
            img: (B, queue, N, 3, H, W), the oldest frame first.
            img_metas: per sample {position in the queue: metas}.
            voxel_semantics: (B, X, Y, Z) classes, of the last frame.
            mask_camera: (B, X, Y, Z), voxels that a camera sees.
            mask_lidar: (B, X, Y, Z), not used.
        """
        last = img.shape[1] - 1
        prev_bev = self.obtain_history_bev(img[:, :last], img_metas)
        metas = [sample[last] for sample in img_metas]
        features = self.extract_img_feat(img[:, last])
        bev = self.pts_bbox_head.bev_features(features, metas, prev_bev, follows(metas, img.device))
        return self.pts_bbox_head.loss(self.pts_bbox_head(bev), voxel_semantics, mask_camera)

    @torch.no_grad()
    def obtain_history_bev(
        self, img: Tensor, img_metas: Sequence[Mapping[int, dict]]
    ) -> Tensor | None:
        """BEV features of the last history frame, in eval mode and without gradients.

        Args:
            img: (B, T, N, 3, H, W), the history without the current frame; T may be 0.
            img_metas: per sample {position in the queue: metas}, the current frame's too.

        Returns:
            (B, cells, C); None when no sample of the batch has a frame before its current one.
        """
        length = img.shape[1]
        start = first_needed(img_metas, length)
        if start == length:
            return None
        with evaluating(self):
            frames = img[:, start:]
            maps = self.extract_img_feat(frames.flatten(0, 1))
            maps = [level.unflatten(0, frames.shape[:2]) for level in maps]  # (B, T, N, C, h, w)
            bev = None
            for i in range(start, length):
                metas = [sample[i] for sample in img_metas]
                features = [level[:, i - start] for level in maps]
                known = None if bev is None else follows(metas, img.device)
                bev = self.pts_bbox_head.bev_features(features, metas, bev, known)
        return bev

    def forward_test(
        self, img: Tensor, img_metas: Sequence[dict], **labels: Any
    ) -> list[dict[str, Any]]:
        """Per frame {"token", "occupancy": packed grid of classes}.

        Args:
            img: (B, N, 3, H, W); with `video_test_mode`, frames in the order of time.
            img_metas: one per frame, with the absolute pose in `can_bus`.
            **labels: not used.
        """
        maps = self.extract_img_feat(img)
        results = []
        for i, meta in enumerate(img_metas):
            bev = self.online_bev([level[i : i + 1] for level in maps], meta)
            grid = self.pts_bbox_head.classes(self.pts_bbox_head(bev))[0]
            results.append({"token": meta["token"], "occupancy": pack(grid.cpu().numpy())})
        return results

    def online_bev(self, features: Sequence[Tensor], meta: Mapping[str, Any]) -> Tensor:
        """BEV features (1, cells, C) of the next frame of a video; remembers them.

        The memory is dropped at another scene, and when time does not go forward.
        """
        memory = self.memory
        if memory is not None and not (
            memory.scene_token == meta["scene_token"] and memory.timestamp < meta["timestamp"]
        ):
            memory = None
        absolute = np.asarray(meta["can_bus"], dtype=np.float64)
        moved = with_motion(absolute, None if memory is None else memory.can_bus)
        bev = self.pts_bbox_head.bev_features(
            features, [{**meta, "can_bus": moved}], None if memory is None else memory.bev
        )
        if self.video_test_mode:
            self.memory = Memory(meta["scene_token"], meta["timestamp"], absolute, bev.detach())
        return bev


def follows(metas: Sequence[Mapping[str, Any]], device: torch.device) -> Tensor:
    """(B,) bool: the frame comes after another one of its scene."""
    return torch.tensor([bool(meta["prev_bev_exists"]) for meta in metas], device=device)


def first_needed(img_metas: Sequence[Mapping[int, dict]], length: int) -> int:
    """The first frame of a history that some sample's current frame depends on.

    Args:
        img_metas: per sample {position: metas with prev_bev_exists}.
        length: number of history frames; the current one is at this position.

    Returns:
        0 to `length`; `length` when no sample depends on any.
    """
    first = length
    for sample in img_metas:
        position = length
        while position > 0 and sample[position]["prev_bev_exists"]:
            position -= 1
        first = min(first, position)
    return first


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside; the mode from before afterwards, that of each part of the model."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
