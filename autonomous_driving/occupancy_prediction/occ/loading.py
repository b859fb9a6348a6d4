"""The pipeline step that reads a frame's occupancy labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ad_common.datasets.errors import DatasetError
from ad_common.datasets.loading import frame_name
from mmcv.parallel import DataContainer
from mmdet.datasets.builder import PIPELINES

from .classes import read_labels


@PIPELINES.register_module()
class LoadOccGTFromFile:
    """Sets `voxel_semantics`, `mask_lidar` and `mask_camera`, (200, 200, 16) each, [x, y, z].

    Args:
        data_root: folder that the labels' paths (`occ_gt_path`) start from.
    """

    def __init__(self, data_root: str) -> None:
        self.data_root = data_root

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Reads the labels.

        Raises:
            DatasetError: the frame has none, or the file is missing or not as it should be.
        """
        if not results.get("occ_gt_path"):
            raise DatasetError(
                f"frame {frame_name(results)} has no labels (occ_gt_path); frames of the test "
                "split cannot be trained on"
            )
        try:
            labels = read_labels(Path(self.data_root) / results["occ_gt_path"])
        except (OSError, ValueError) as error:
            raise DatasetError(f"frame {frame_name(results)}: {error}") from error
        for name, array in zip(
            ("voxel_semantics", "mask_lidar", "mask_camera"), labels, strict=True
        ):
            results[name] = DataContainer(torch.from_numpy(array), stack=True, pad_dims=None)
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(data_root={self.data_root!r})"
