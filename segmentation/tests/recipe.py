"""How the numbers in tests/data came about: weights, images and targets rebuilt from seeds.

The stored numbers are outputs of the original implementation under weights that are a function of
the names in the state dict, so that no weights need to be stored. The same files hold for every
model: `configs.json` (the tiny models), `forward/*.npz`, `loss/*.npz` and `grad_norms.json.gz`.
An array stored as "name@s" is every s-th value of the flattened array (see `assert_close`).
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DATA = Path(__file__).parent / "data"
WHOLE_MODELS = DATA / "whole_models"

# [image, x1, y1, x2, y2] in pixels: large, small, fractional and edge-touching boxes
ROIS = [
    [0, 10, 12, 90, 100],
    [0, 0, 0, 159, 127],
    [0, 40.5, 30.25, 60.75, 55.5],
    [1, 5, 20, 130, 110],
    [1, 64, 8, 120, 48],
    [1, 100, 60, 104, 63],
]


def load_json(path: str | Path) -> Any:
    """A JSON file below tests/data; ".gz" is unpacked."""
    path = DATA / path
    if path.suffix == ".gz":
        return json.loads(gzip.decompress(path.read_bytes()))
    return json.loads(path.read_text())


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file below tests/data."""
    with np.load(DATA / path) as arrays:
        return dict(arrays)


def weight_of(key: str, shape: tuple[int, ...]) -> Tensor:
    """The value that the recipe gives the state-dict entry ``key`` (float32, or int64 zeros)."""
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    if last == "running_var":
        value = 1 + 0.1 * np.abs(z)
    elif last == "running_mean":
        value = 0.1 * z
    elif last in ("gamma1", "gamma2", "layer_scale1", "layer_scale2"):
        value = 0.5 + 0.1 * z
    elif len(shape) == 1 and last == "weight":
        value = 1 + 0.1 * z
    elif len(shape) == 1:
        value = (0.5 if key.endswith(".offset.bias") else 0.1) * z
    else:
        value = z / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(value.astype(np.float32))


def fill(model: nn.Module) -> nn.Module:
    """Gives ``model`` the weights of the recipe, in place; returns it in its dtype."""
    state = {key: weight_of(key, tuple(value.shape)) for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    return model


def random_input(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal values rounded to float32, as float64 (the backbone fixtures' input)."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return torch.from_numpy(values).double()


def images(batch: int = 2, height: int = 128, width: int = 160) -> Tensor:
    """(batch, 3, height, width) float64: 16-pixel squares of random colour plus noise."""
    r = np.random.default_rng(1234)
    low = r.standard_normal((batch, 3, height // 16, width // 16))
    noise = r.standard_normal((batch, 3, height, width))
    values = low.repeat(16, axis=2).repeat(16, axis=3) + 0.5 * noise
    return torch.from_numpy(values.astype(np.float32)).double()


def img_metas() -> list[dict[str, Any]]:
    """The two images of `images()`: the second one is padded, both were enlarged 1.25 times."""
    common = {
        "pad_shape": (128, 160, 3),
        "batch_input_shape": (128, 160),
        "scale_factor": np.full(4, 1.25, dtype=np.float32),
        "flip": False,
        "flip_direction": None,
        "filename": "",
    }
    return [
        {**common, "img_shape": (128, 160, 3), "ori_shape": (102, 128, 3)},
        {**common, "img_shape": (112, 136, 3), "ori_shape": (90, 109, 3)},
    ]


def single_meta(height: int, width: int) -> dict[str, Any]:
    """One image without padding or scaling."""
    shape = (height, width, 3)
    return {
        "img_shape": shape,
        "ori_shape": shape,
        "pad_shape": shape,
        "batch_input_shape": (height, width),
        "scale_factor": np.ones(4, dtype=np.float32),
        "flip": False,
        "flip_direction": None,
        "filename": "",
    }


def rois(dtype: torch.dtype = torch.float64) -> Tensor:
    """(6, 5): the boxes at which the RoI heads are compared."""
    return torch.tensor(ROIS, dtype=dtype)


def targets(count: int = 2, dtype: torch.dtype = torch.float64) -> dict[str, list[Any]]:
    """Ground truth of the first ``count`` images: gt_bboxes, gt_labels, gt_masks (ellipses)."""
    from mmdet.core import BitmapMasks

    arrays = load_arrays("whole_models/targets.npz")
    height, width = arrays["gt_masks0"].shape[1:]
    return {
        "gt_bboxes": [torch.from_numpy(arrays[f"gt_bboxes{i}"]).to(dtype) for i in range(count)],
        "gt_labels": [torch.from_numpy(arrays[f"gt_labels{i}"]) for i in range(count)],
        "gt_masks": [BitmapMasks(arrays[f"gt_masks{i}"], height, width) for i in range(count)],
    }


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Makes float64 the default dtype, and mmcv's CPU NMS accept it (by rounding to float32).

    The stored numbers were computed so: mmcv's CPU NMS knows float32 only.
    """
    extension = importlib.import_module("mmcv.ops.nms").ext_module
    dtype, nms = torch.get_default_dtype(), extension.nms
    torch.set_default_dtype(torch.float64)

    def nms_float32(boxes: Tensor, scores: Tensor, **options: Any) -> Tensor:
        return nms(boxes.float(), scores.float(), **options)

    extension.nms = nms_float32
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        extension.nms = nms


def build_detector(name: str) -> nn.Module:
    """The tiny model ``name`` of configs.json with the recipe's weights, in the default dtype."""
    from mmcv import ConfigDict
    from mmdet.models import build_detector as build

    config = ConfigDict(load_json("whole_models/configs.json")[name])
    return fill(build(config).to(torch.get_default_dtype()))


def assert_close(
    actual: dict[str, Tensor | np.ndarray], expected: dict[str, np.ndarray], atol: float
) -> None:
    """Compares every array of ``expected`` ("name" or "name@stride") with the ``actual`` one.

    Raises:
        AssertionError: naming the arrays that are missing or differ by more than
            ``atol * max(1, |expected|)``.
    """
    assert expected, "no array to compare"
    wrong = []
    for stored, want in expected.items():
        name, _, stride = stored.partition("@")
        if name not in actual:
            wrong.append(f"{name} is missing")
            continue
        got = np.asarray(actual[name].detach() if torch.is_tensor(actual[name]) else actual[name])
        if stride:
            got = got.reshape(-1)[:: int(stride)]
        if got.shape != want.shape:
            wrong.append(f"{name} has shape {got.shape}, expected {want.shape}")
            continue
        want = want.astype(np.float64)
        error = np.abs(got - want) / np.maximum(1.0, np.abs(want))
        if not error.max(initial=0.0) <= atol:  # also true for NaN
            wrong.append(f"{name} differs by {error.max():.2e}")
    assert not wrong, "; ".join(wrong)
