"""DCNv3 and DCNv4 in standard ONNX operators, for torch.onnx's exporter.

`dcnv3_fused` below is what `ops_dcnv3::dcnv3_fused` becomes in an ONNX graph: the sampling points
are computed from the offsets and handed to GridSample, whose zero padding is the operator's. All
sizes are read from the tensors when the graph runs, so one file serves any batch, height and width.
The samples of all points lie in memory at once: P times the feature map (P = 9 for 3x3).

Needs onnxscript; nothing else of this project imports it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnxscript import opset18 as op

FLOAT = onnx.TensorProto.FLOAT


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _number(value: float) -> Any:
    return op.Constant(value_float=float(value))


def _sizes(*parts: Any) -> Any:
    """Sizes of a Reshape or Expand: tensors of one size and plain ints."""
    return op.Concat(*(_ints(p) if isinstance(p, int) else p for p in parts), axis=0)


def _size(tensor: Any, axis: int) -> Any:
    return op.Shape(tensor, start=axis, end=axis + 1)


def _take(tensor: Any, start: int, end: int) -> Any:
    """Entries of the last of four or five axes."""
    return op.Slice(tensor, _ints(start), _ints(end), _ints(-1))


def first_points(
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    offset_scale: float,
    remove_center: bool,
) -> np.ndarray:
    """Undeformed points of output pixel (0, 0): (P, 2) of x and y in input pixels.

    As `ops_dcnv3.functions.reference.sampling_locations`: width-major, scaled around the centre.
    """
    centre = (kernel_w // 2, kernel_h // 2)
    grid = np.array(
        [
            (column * dilation_w, row * dilation_h)
            for column in range(kernel_w)
            for row in range(kernel_h)
            if not (remove_center and (column, row) == centre)
        ],
        dtype=np.float64,
    )
    middle = np.array([dilation_w * (kernel_w - 1) // 2, dilation_h * (kernel_h - 1) // 2])
    points = (grid - middle) * offset_scale + middle - np.array([pad_w, pad_h])
    return points.astype(np.float32)


def _pixel_steps(height: Any, width: Any, stride_h: int, stride_w: int) -> Any:
    """(x, y) of output pixels relative to the first one: (Ho, Wo, 1, 1, 2)."""

    def steps(count: Any, stride: int) -> Any:
        zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
        return op.Mul(op.Cast(op.Range(zero, op.Squeeze(count), one), to=FLOAT), _number(stride))

    across = op.Reshape(steps(width, stride_w), _ints(1, -1, 1))
    down = op.Reshape(steps(height, stride_h), _ints(-1, 1, 1))
    across = op.Expand(across, _sizes(height, 1, 1))  # (Ho, Wo, 1)
    down = op.Expand(down, _sizes(1, width, 1))  # (Ho, Wo, 1)
    return op.Unsqueeze(op.Concat(across, down, axis=-1), _ints(2, 3))


def dcnv3_fused(
    input: Any,
    offset_mask: Any,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float,
    remove_center: bool,
    softmax: bool,
    interleaved: bool,
) -> Any:
    """The graph of one call of the operator; the arguments are those of its schema.

    Args:
        input: (N, H, W, G*D), float32.
        offset_mask: (N, Ho, Wo, L), offsets and masks as `ops_dcnv3.functions.dcnv3_fused` takes
            them.

    Returns:
        (N, Ho, Wo, G*D).
    """
    points = first_points(
        kernel_h, kernel_w, pad_h, pad_w, dilation_h, dilation_w, offset_scale, remove_center
    )
    count = len(points)  # P
    batch, height, width = (_size(input, axis) for axis in range(3))
    out_h, out_w = (_size(offset_mask, axis) for axis in (1, 2))
    batch_groups, pixels = op.Mul(batch, _ints(group)), op.Mul(out_h, out_w)

    if interleaved:
        both = _take(offset_mask, 0, 3 * group * count)
        both = op.Reshape(both, _sizes(batch, out_h, out_w, group, 3 * count))
        offset, mask = _take(both, 0, 2 * count), _take(both, 2 * count, 3 * count)
    else:
        offset = _take(offset_mask, 0, 2 * group * count)
        mask = _take(offset_mask, 2 * group * count, 3 * group * count)
    offset = op.Reshape(offset, _sizes(batch, out_h, out_w, group, count, 2))
    mask = op.Reshape(mask, _sizes(batch, out_h, out_w, group, count))
    if softmax:
        mask = op.Softmax(mask, axis=-1)

    # sampling points in pixels, then in GridSample's -1 to 1 between the borders of the image
    start = op.Constant(value=onnx.numpy_helper.from_array(points))  # (P, 2)
    place = op.Add(op.Mul(offset, _number(offset_scale)), start)
    place = op.Add(place, _pixel_steps(out_h, out_w, stride_h, stride_w))
    image = op.Cast(op.Concat(width, height, axis=0), to=FLOAT)
    place = op.Div(op.Add(op.Mul(place, _number(2)), _number(1)), image)
    place = op.Sub(place, _number(1))  # (N, Ho, Wo, G, P, 2)
    place = op.Transpose(place, perm=[0, 3, 1, 2, 4, 5])
    place = op.Reshape(place, _sizes(batch_groups, pixels, count, 2))

    maps = op.Reshape(input, _sizes(batch, height, width, group, group_channels))
    maps = op.Transpose(maps, perm=[0, 3, 4, 1, 2])
    maps = op.Reshape(maps, _sizes(batch_groups, group_channels, height, width))
    samples = op.GridSample(
        maps, place, mode="bilinear", padding_mode="zeros", align_corners=0
    )  # (N*G, D, Ho*Wo, P)
    mask = op.Transpose(mask, perm=[0, 3, 1, 2, 4])
    mask = op.Reshape(mask, _sizes(batch_groups, 1, pixels, count))
    output = op.ReduceSum(op.Mul(samples, mask), _ints(-1), keepdims=0)  # (N*G, D, Ho*Wo)
    output = op.Reshape(output, _sizes(batch, group, group_channels, out_h, out_w))
    output = op.Transpose(output, perm=[0, 3, 4, 1, 2])  # (N, Ho, Wo, G, D)
    return op.Reshape(output, _sizes(batch, out_h, out_w, group * group_channels))
