"""The label grid of Occ3D-nuScenes (arXiv 2304.14365): classes, size, reading of its files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

CLASSES = (
    "others",
    "barrier",
    "bicycle",
    "bus",
    "car",
    "construction_vehicle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "trailer",
    "truck",
    "driveable_surface",
    "other_flat",
    "sidewalk",
    "terrain",
    "manmade",
    "vegetation",
    "free",
)
NUM_CLASSES = len(CLASSES)
FREE = NUM_CLASSES - 1
GRID = (200, 200, 16)  # voxels along x (forward), y (left), z (up) of the ego frame
POINT_RANGE = (-40.0, -40.0, -1.0, 40.0, 40.0, 5.4)  # metres: lower, then upper corner
VOXEL_SIZE = 0.4  # metres
PALETTE = np.array(
    [
        (0, 0, 0),
        (112, 128, 144),
        (220, 20, 60),
        (255, 127, 80),
        (255, 158, 0),
        (233, 150, 70),
        (255, 61, 99),
        (0, 0, 230),
        (47, 79, 79),
        (255, 140, 0),
        (255, 99, 71),
        (0, 150, 145),
        (120, 70, 70),
        (75, 0, 75),
        (140, 190, 90),
        (222, 184, 135),
        (0, 120, 0),
        (255, 255, 255),
    ],
    dtype=np.uint8,
)  # (18, 3) RGB


class OccupancyLabels(NamedTuple):
    """Contents of a labels.npz: each (200, 200, 16), indexed [x, y, z] in the ego frame."""

    semantics: np.ndarray  # uint8 classes
    mask_lidar: np.ndarray  # bool, voxels seen by a lidar ray
    mask_camera: np.ndarray  # bool, voxels seen by a camera


def read_labels(path: str | Path) -> OccupancyLabels:
    """Reads a frame's labels.npz.

    Raises:
        OSError: there is no such file.
        ValueError: it is broken, has another shape, or a class that is not in `CLASSES`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no occupancy labels at {path}; `data_root` must be the folder with gts/"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in OccupancyLabels._fields if name in file}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a readable npz file: {error}") from None
    for name in OccupancyLabels._fields:
        if name not in arrays:
            raise ValueError(
                f"{path} has no array {name!r}; needs {', '.join(OccupancyLabels._fields)}"
            )
    for name, array in arrays.items():
        if array.shape != GRID:
            raise ValueError(f"{name} in {path} has the shape {array.shape}, not {GRID}")
    semantics, mask_lidar, mask_camera = arrays.values()
    if semantics.dtype.kind not in "iu" or semantics.min() < 0 or semantics.max() >= NUM_CLASSES:
        wrong = sorted({value for value in np.unique(semantics) if not 0 <= value < NUM_CLASSES})
        raise ValueError(
            f"semantics in {path} must be classes 0..{FREE}, got {semantics.dtype} with "
            f"{[int(value) for value in wrong[:5]]}"
        )
    return OccupancyLabels(
        semantics.astype(np.uint8), mask_lidar.astype(bool), mask_camera.astype(bool)
    )
