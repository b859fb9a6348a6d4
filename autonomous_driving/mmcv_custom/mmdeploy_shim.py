"""What mmdeploy 0.14 needs on the torch of today, and to write files of opset 16 and newer.

mmdeploy writes opset 11 by the TorchScript exporter of torch 1.x. Here files hold GridSample, which
came with opset 16 (see `internimage.onnx_dcnv3`), so that its translations for older opsets are
taken out or replaced. Import it only where mmdeploy is installed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import mmcv.ops  # noqa: F401  makes the names below resolvable
import torch
from mmdeploy.apis.utils import utils as mmdeploy_utils
from mmdeploy.core import FUNCTION_REWRITER, SYMBOLIC_REWRITER
from torch import Tensor
from torch.onnx import symbolic_helper

OLDEST_OPSET = 16  # of what the translations below write

# mmdeploy's translations that torch's own have overtaken; each wrote something that newer opsets
# or TensorRT 10 do not have.
OVERTAKEN = (
    "grid_sampler",  # mmdeploy::grid_sampler, of a library of mmdeploy's; GridSample is standard
    "layer_norm",  # for wrong shapes of torch 1.12
    "group_norm",  # mmdeploy::TRTInstanceNormalization: TensorRT has InstanceNormalization
    "hardsigmoid",  # for torch 1.8
    "roll",  # for torch 1.10
)
REPLACED = ("squeeze", "mmcv.ops.roi_align.__self__")
POOL = "torch.nn.functional.adaptive_avg_pool2d"


def _long(g: Any, *values: int) -> Any:
    return g.op("Constant", value_t=torch.tensor(values, dtype=torch.int64))


def squeeze(_: Any, g: Any, value: Any, dim: Any = None) -> Any:
    """Squeeze without the test whether the axis has size 1, which TensorRT does not take.

    mmdeploy's writes the axes as an attribute; since opset 13 they are an input.
    """
    if dim is None:
        dims = [axis for axis, size in enumerate(value.type().sizes()) if size == 1]
    else:
        dims = symbolic_helper._get_const(dim, "is" if _is_list(dim) else "i", "dim")
        dims = dims if isinstance(dims, (list, tuple)) else [dims]
    return g.op("Squeeze", value, _long(g, *dims))


def _is_list(value: Any) -> bool:
    return isinstance(value.type(), torch.ListType) or (
        value.node().kind() == "onnx::Constant" and value.node().t("value").dim() > 0
    )


def roi_align(
    _: Any,
    g: Any,
    value: Any,
    rois: Any,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: str,
    aligned: bool,
) -> Any:
    """RoiAlign of opset 16, which knows `aligned`.

    mmdeploy's uses `torch.onnx.symbolic_opset9._cast_Long`, which is gone, writes Squeeze as
    above, and an attribute `aligned` that the operator does not have.
    """
    columns = _long(g, 1)
    images = g.op("Slice", rois, _long(g, 0), _long(g, 1), columns)
    images = g.op("Cast", g.op("Squeeze", images, columns), to_i=7)
    corners = g.op("Slice", rois, _long(g, 1), _long(g, 5), columns)
    return g.op(
        "RoiAlign",
        value,
        corners,
        images,
        output_height_i=output_size[0],
        output_width_i=output_size[1],
        spatial_scale_f=spatial_scale,
        sampling_ratio_i=max(0, sampling_ratio),
        mode_s=pool_mode,
        coordinate_transformation_mode_s="half_pixel" if aligned else "output_half_pixel",
    )


def pooling_weights(size: Tensor, count: int) -> Tensor:
    """(count, size) weights that average a row of `size` numbers to `count` numbers."""
    place = torch.arange(size)
    cell = torch.arange(count)[:, None]
    first, end = cell * size // count, ((cell + 1) * size + count - 1) // count
    inside = ((place >= first) & (place < end)).float()
    return inside / inside.sum(1, keepdim=True)


def adaptive_avg_pool2d(_: Any, value: Tensor, output_size: Any) -> Tensor:
    """Adaptive average pooling of maps of any size, as two products of matrices.

    mmdeploy's is an average pooling with the traced map's kernel: wrong for maps of other sizes or
    of sizes that the output's does not divide, and impossible for maps smaller than the output.

    Args:
        value: (N, C, H, W).
        output_size: of height and width, or one for both.
    """
    rows, columns = (
        output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    )
    if rows == columns == 1:
        return value.mean((2, 3), keepdim=True)
    height, width = torch._shape_as_tensor(value)[2:].unbind()
    down = pooling_weights(height, rows).to(value)  # (rows, H)
    across = pooling_weights(width, columns).to(value)  # (columns, W)
    return down @ value @ across.transpose(0, 1)


def replace_translations() -> None:
    """Takes out what is overtaken and puts those above in; calling it again changes nothing."""
    FUNCTION_REWRITER._registry._rewrite_records.pop(POOL, None)
    FUNCTION_REWRITER.register_rewriter(POOL)(adaptive_avg_pool2d)
    records = SYMBOLIC_REWRITER._registry._rewrite_records
    for name in (*OVERTAKEN, *REPLACED):
        records.pop(name, None)
    SYMBOLIC_REWRITER.register_symbolic("squeeze", is_pytorch=True)(squeeze)
    SYMBOLIC_REWRITER.register_symbolic("mmcv.ops.roi_align.__self__")(roi_align)


@contextlib.contextmanager
def torchscript_exporter() -> Iterator[None]:
    """Within it, `torch.onnx.export` uses the TorchScript exporter unless told otherwise.

    torch 2.9 made the dynamo one the default, which knows nothing of mmdeploy's translations.
    """
    export = torch.onnx.export
    torch.onnx.export = functools.partial(export, dynamo=False)
    try:
        yield
    finally:
        torch.onnx.export = export


@contextlib.contextmanager
def any_device() -> Iterator[None]:
    """Within it, a model for TensorRT may be exported on the CPU; its engine needs the GPU later.

    mmdeploy: `ValueError: cpu is invalid for the backend tensorrt`, before anything is done.
    """
    check = mmdeploy_utils.check_backend_device
    mmdeploy_utils.check_backend_device = lambda *_, **__: None
    try:
        yield
    finally:
        mmdeploy_utils.check_backend_device = check


replace_translations()
