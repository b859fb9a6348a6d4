"""A tiny synthetic occupancy data set, prepared as a user would, and configs for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ad_common.synthetic import occupancy
from mmdet.datasets import build_dataset
from occ.preparation import prepare

LOAD = [
    dict(type="LoadMultiViewImageFromFiles", to_float32=True),
    dict(
        type="NormalizeMultiviewImage",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    dict(type="PadMultiViewImage", size_divisor=32),
]
FORMAT = dict(type="DefaultFormatBundle3D")
LABELS = ("voxel_semantics", "mask_lidar", "mask_camera")


def write_data(root: Path, **options: Any) -> Path:
    """Writes and prepares a data set; returns the folder of its info files."""
    settings = dict(train_scenes=2, val_scenes=1, frames=3, image_scale=0.04) | options
    occupancy.write(root, **settings)
    folder = root / "occ3d-nus"
    prepare(folder, folder, occ_path=folder, can_bus=root, version="v1.0-trainval")
    return folder


def pipeline(folder: Path, test_mode: bool) -> list[dict[str, Any]]:
    """The steps of a pipeline without random changes."""
    if test_mode:
        return [*LOAD, FORMAT, dict(type="CustomCollect3D", keys=["img"])]
    labels = dict(type="LoadOccGTFromFile", data_root=str(folder))
    return [*LOAD, labels, FORMAT, dict(type="CustomCollect3D", keys=["img", *LABELS])]


def make_dataset(
    folder: Path, split: str = "train", test_mode: bool = False, **options: Any
) -> Any:
    """The data set of a split."""
    settings = dict(
        type="NuSceneOcc",
        data_root=str(folder),
        ann_file=str(folder / f"occ_infos_temporal_{split}.pkl"),
        pipeline=pipeline(folder, test_mode),
        test_mode=test_mode,
    )
    return build_dataset(settings | options)


def again(folder: Path, **options: object) -> dict[str, Path]:
    """Prepares a folder once more."""
    settings = dict(occ_path=folder, can_bus=folder.parent, version="v1.0-trainval") | options
    return prepare(folder, folder, **settings)
