"""DCNv3 and DCNv4 in ONNX files: one node `mmdeploy::TRTDCNv3` that carries its own definition.

The node has the name, inputs and attributes that the original project's exporter writes, so
TensorRT runs it with the plugin of tensorrt/modulated_deform_conv_v3. The file also holds a
model-local function of that name, made of standard operators, for runtimes that do not know the
node: sampling points are computed from the offsets and handed to GridSample, whose zero padding is
the operator's. All sizes are read when the graph runs, so one file serves any batch, height and
width. The function has the samples of all points in memory at once: P times the feature map (P = 9
for 3x3).

    as_operator()            the graph names the operator, whichever backend this machine has
    translation_table()      how torch.onnx's exporter (dynamo=True) writes the operators
    torchscript_symbolics()  the same for its older one (dynamo=False), which mmdeploy uses
    function_proto()         the definition
    add_function()           puts it into a file that has such nodes
    inline_function()        puts it in place of every node

Needs the packages onnx and onnxscript.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ops_dcnv3.functions import Geometry

DOMAIN, NAME, VERSION = "mmdeploy", "TRTDCNv3", 1
OLDEST_OPSET = 16  # GridSample
FUNCTION_IR = 9  # version of the file format that has functions with default attributes
IM2COL_STEP = 256  # without a meaning here or in the plugin; other programs may look for it

# The grid runs over columns first, as `ops_dcnv3.functions.reference` does: point i lies in column
# i / kernel_h and row i % kernel_h. remove_center skips the middle one: i and all after it move on
# by one. Computed in float32 whatever the type of the inputs: half precision has no tenths of a
# pixel in a large image.
_BODY = """
<opset_import: ["" : OPSET], domain: "mmdeploy">
TRTDCNv3 <kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group,
          group_channels, offset_scale, im2col_step: int = 256, remove_center: int = 0,
          plugin_namespace: string = ""> (input, offset, mask) => (output)
{
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    any = Constant <value_ints = [-1]> ()
    kernel_h = Constant <value_int: int = @kernel_h> ()
    kernel_w = Constant <value_int: int = @kernel_w> ()
    stride_h = Constant <value_int: int = @stride_h> ()
    stride_w = Constant <value_int: int = @stride_w> ()
    pad_h = Constant <value_int: int = @pad_h> ()
    pad_w = Constant <value_int: int = @pad_w> ()
    dilation_h = Constant <value_int: int = @dilation_h> ()
    dilation_w = Constant <value_int: int = @dilation_w> ()
    group_size = Constant <value_int: int = @group> ()
    depth_size = Constant <value_int: int = @group_channels> ()
    removed = Constant <value_int: int = @remove_center> ()
    scale = Constant <value_float: float = @offset_scale> ()
    none = Constant <value_int = 0> ()
    single = Constant <value_int = 1> ()
    pair = Constant <value_int = 2> ()

    full = Mul(kernel_h, kernel_w)
    count = Sub(full, removed)
    index = Range(none, count, single)
    centre_column = Div(kernel_w, pair)
    centre_row = Div(kernel_h, pair)
    centre_start = Mul(centre_column, kernel_h)
    centre = Add(centre_start, centre_row)
    after = GreaterOrEqual(index, centre)
    after_number = Cast <to = 7> (after)
    skipped = Mul(after_number, removed)
    point = Add(index, skipped)
    column = Div(point, kernel_h)
    row = Mod(point, kernel_h)
    last_column = Sub(kernel_w, single)
    last_row = Sub(kernel_h, single)
    width_span = Mul(dilation_w, last_column)
    height_span = Mul(dilation_h, last_row)
    middle_x = Div(width_span, pair)
    middle_y = Div(height_span, pair)
    column_pixels = Mul(column, dilation_w)
    row_pixels = Mul(row, dilation_h)
    from_middle_x = Sub(column_pixels, middle_x)
    from_middle_y = Sub(row_pixels, middle_y)
    x_number = Cast <to = 1> (from_middle_x)
    y_number = Cast <to = 1> (from_middle_y)
    x_scaled = Mul(x_number, scale)
    y_scaled = Mul(y_number, scale)
    shift_x = Sub(middle_x, pad_w)
    shift_y = Sub(middle_y, pad_h)
    shift_x_number = Cast <to = 1> (shift_x)
    shift_y_number = Cast <to = 1> (shift_y)
    grid_x = Add(x_scaled, shift_x_number)
    grid_y = Add(y_scaled, shift_y_number)
    grid_x_last = Unsqueeze(grid_x, any)
    grid_y_last = Unsqueeze(grid_y, any)
    grid = Concat <axis = -1> (grid_x_last, grid_y_last)

    batch = Shape <start = 0, end = 1> (input)
    height = Shape <start = 1, end = 2> (input)
    width = Shape <start = 2, end = 3> (input)
    out_h = Shape <start = 1, end = 2> (offset)
    out_w = Shape <start = 2, end = 3> (offset)
    groups = Reshape(group_size, one)
    depth = Reshape(depth_size, one)
    points = Reshape(count, one)
    batch_groups = Mul(batch, groups)
    pixels = Mul(out_h, out_w)

    out_w_size = Squeeze(out_w, zero)
    columns = Range(none, out_w_size, single)
    columns_pixels = Mul(columns, stride_w)
    columns_number = Cast <to = 1> (columns_pixels)
    across_shape = Concat <axis = 0> (one, out_w, one)
    across_row = Reshape(columns_number, across_shape)
    across_full = Concat <axis = 0> (out_h, one, one)
    across = Expand(across_row, across_full)
    out_h_size = Squeeze(out_h, zero)
    rows = Range(none, out_h_size, single)
    rows_pixels = Mul(rows, stride_h)
    rows_number = Cast <to = 1> (rows_pixels)
    down_shape = Concat <axis = 0> (out_h, one, one)
    down_column = Reshape(rows_number, down_shape)
    down_full = Concat <axis = 0> (one, out_w, one)
    down = Expand(down_column, down_full)
    corner = Concat <axis = -1> (across, down)
    corner_shape = Concat <axis = 0> (one, out_h, out_w, one, one, two)
    corner_6d = Reshape(corner, corner_shape)

    offset_number = Cast <to = 1> (offset)
    offset_shape = Concat <axis = 0> (batch, out_h, out_w, groups, points, two)
    offset_6d = Reshape(offset_number, offset_shape)
    offset_scaled = Mul(offset_6d, scale)
    place_in_window = Add(offset_scaled, grid)
    place = Add(place_in_window, corner_6d)
    image = Concat <axis = 0> (width, height)
    image_number = Cast <to = 1> (image)
    two_number = Constant <value_float = 2.0> ()
    one_number = Constant <value_float = 1.0> ()
    place_twice = Mul(place, two_number)
    place_middle = Add(place_twice, one_number)
    place_share = Div(place_middle, image_number)
    place_normal = Sub(place_share, one_number)
    place_by_group = Transpose <perm = [0, 3, 1, 2, 4, 5]> (place_normal)
    place_shape = Concat <axis = 0> (batch_groups, pixels, points, two)
    sampling_grid = Reshape(place_by_group, place_shape)

    input_number = Cast <to = 1> (input)
    maps_shape = Concat <axis = 0> (batch, height, width, groups, depth)
    maps_5d = Reshape(input_number, maps_shape)
    maps_by_group = Transpose <perm = [0, 3, 4, 1, 2]> (maps_5d)
    maps_4d_shape = Concat <axis = 0> (batch_groups, depth, height, width)
    maps = Reshape(maps_by_group, maps_4d_shape)
    samples = GridSample <mode = "LINEAR", padding_mode = "zeros", align_corners = 0>
        (maps, sampling_grid)

    mask_number = Cast <to = 1> (mask)
    mask_shape = Concat <axis = 0> (batch, out_h, out_w, groups, points)
    mask_5d = Reshape(mask_number, mask_shape)
    mask_by_group = Transpose <perm = [0, 3, 1, 2, 4]> (mask_5d)
    mask_4d_shape = Concat <axis = 0> (batch_groups, one, pixels, points)
    weights = Reshape(mask_by_group, mask_4d_shape)
    weighted = Mul(samples, weights)
    sums = ReduceSum <keepdims = 0> (weighted, any)
    sums_shape = Concat <axis = 0> (batch, groups, depth, out_h, out_w)
    sums_5d = Reshape(sums, sums_shape)
    sums_by_pixel = Transpose <perm = [0, 3, 4, 1, 2]> (sums_5d)
    channels = Mul(groups, depth)
    output_shape = Concat <axis = 0> (batch, out_h, out_w, channels)
    output_number = Reshape(sums_by_pixel, output_shape)
    output = CastLike(output_number, input)
}
"""


@contextlib.contextmanager
def as_operator() -> Iterator[None]:
    """Within it every call of the operator is that of torch.ops, whatever backend it asks for.

    A captured graph then names the operator also where nothing was compiled, or where plain PyTorch
    was asked for: the file has its own way to compute it.
    """
    from ops_dcnv3.functions import dcnv3_func

    choose = dcnv3_func._choose
    dcnv3_func._choose = lambda *arguments: "operator"
    try:
        yield
    finally:
        dcnv3_func._choose = choose


def node_attributes(geometry: Geometry) -> dict[str, int | float | str]:
    """Attributes of the node for one call of the operator, in the original exporter's names.

    `plugin_namespace` is added: with it TensorRT 10.15 and newer takes the plugin although the file
    has a function of the same name.
    """
    numbers = geometry._asdict()
    scale, removed = float(numbers.pop("offset_scale")), int(numbers.pop("remove_center"))
    return {
        **{name: int(value) for name, value in numbers.items()},
        "offset_scale": scale,
        "im2col_step": IM2COL_STEP,
        "remove_center": removed,
        "plugin_namespace": "",
    }


def function_proto(opset: int) -> Any:
    """The definition of the node in standard operators: an `onnx.FunctionProto`.

    Args:
        opset: version of the standard operators, 16 or newer; that of the model it goes into.
    """
    import onnx.parser

    mode = "bilinear" if opset < 20 else "linear"  # its name changed with GridSample-20
    return onnx.parser.parse_function(_BODY.replace("OPSET", str(opset)).replace("LINEAR", mode))


def add_function(model: Any) -> bool:
    """Adds the definition to a model that has nodes of the operator.

    Args:
        model: an `onnx_ir.Model`; `onnx_ir.serde.deserialize_model` makes one of `onnx`'s.

    Returns:
        Whether there are such nodes.

    Raises:
        ValueError: the model's opset is too old for the definition.
    """
    import onnx_ir

    if not any(node.domain == DOMAIN and node.op_type == NAME for node in model.graph.all_nodes()):
        return False
    opset = model.opset_imports[""]
    if opset < OLDEST_OPSET:
        raise ValueError(
            f"{NAME} needs opset {OLDEST_OPSET} or newer (GridSample), the model has {opset}"
        )
    function = onnx_ir.serde.deserialize_function(function_proto(opset))
    model.functions[function.identifier()] = function
    model.opset_imports[DOMAIN] = VERSION
    model.ir_version = max(model.ir_version, FUNCTION_IR)
    return True


def inline_function(model: Any) -> None:
    """Puts standard operators in place of every node: for runtimes without functions (OpenVINO).

    Args:
        model: an `onnx_ir.Model` after `add_function`.
    """
    from onnx_ir.passes.common import InlinePass

    InlinePass()(model)
    model.opset_imports.pop(DOMAIN, None)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The operators' translations for ``torch.onnx.export(custom_translation_table=...)``.

    Export within `as_operator`; the file that comes out needs `add_function`.
    """
    from onnx.defs import OpSchema
    from onnxscript import opset18 as op
    from onnxscript.values import Op, Opset

    tensors = [OpSchema.FormalParameter(name, "T") for name in ("input", "offset", "mask")]
    kinds = {
        int: OpSchema.AttrType.INT,
        float: OpSchema.AttrType.FLOAT,
        str: OpSchema.AttrType.STRING,
    }
    attributes = [
        OpSchema.Attribute(name, kinds[type(value)], required=False)
        for name, value in node_attributes(Geometry(*[1] * 10, 1.0, False)).items()
    ]
    schema = OpSchema(
        NAME,
        DOMAIN,
        VERSION,
        inputs=tensors,
        outputs=[OpSchema.FormalParameter("output", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
        attributes=attributes,
    )
    node = Op(Opset(DOMAIN, VERSION), NAME, op_schema=schema)

    def ints(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    def take(tensor: Any, start: int, end: int) -> Any:
        return op.Slice(tensor, ints(start), ints(end), ints(-1))

    def dcnv3(input: Any, offset: Any, mask: Any, *numbers: Any) -> Any:
        return node(input, offset, mask, **node_attributes(Geometry(*numbers)))

    def dcnv3_fused(input: Any, offset_mask: Any, *numbers: Any) -> Any:
        *numbers, softmax, interleaved = numbers
        geometry = Geometry(*numbers)
        group, points = geometry.group, geometry.points
        if interleaved:
            both = take(offset_mask, 0, 3 * group * points)
            both = op.Reshape(both, ints(-1, 0, 0, group, 3 * points))
            offset, mask = take(both, 0, 2 * points), take(both, 2 * points, 3 * points)
            offset = op.Reshape(offset, ints(-1, 0, 0, 2 * group * points))
        else:
            offset = take(offset_mask, 0, 2 * group * points)
            mask = take(offset_mask, 2 * group * points, 3 * group * points)
            mask = op.Reshape(mask, ints(-1, 0, 0, group, points))
        if softmax:
            mask = op.Softmax(mask, axis=-1)
        mask = op.Reshape(mask, ints(-1, 0, 0, group * points))
        return dcnv3(input, offset, mask, *numbers)

    return {
        torch.ops.ops_dcnv3.dcnv3.default: dcnv3,
        torch.ops.ops_dcnv3.dcnv3_fused.default: dcnv3_fused,
    }


@contextlib.contextmanager
def torchscript_symbolics(opset: int) -> Iterator[None]:
    """Within it, ``torch.onnx.export(dynamo=False, opset_version=opset)`` writes the operators.

    The file that comes out needs `add_function`, and `opset` 16 or newer to be run by a runtime
    without a plugin.
    """
    from torch.onnx import register_custom_op_symbolic, unregister_custom_op_symbolic

    def ints(g: Any, *values: int) -> Any:
        return g.op("Constant", value_t=torch.tensor(values, dtype=torch.int64))

    def reshape(g: Any, tensor: Any, *sizes: int) -> Any:
        return g.op("Reshape", tensor, ints(g, *sizes))

    def take(g: Any, tensor: Any, start: int, end: int) -> Any:
        return g.op("Slice", tensor, ints(g, start), ints(g, end), ints(g, -1))

    def plain(value: Any) -> Any:
        node = value.node()
        return node.t("value").item() if node.kind() == "onnx::Constant" else value.toIValue()

    def geometry_of(numbers: Sequence[Any]) -> Geometry:
        return Geometry(*map(plain, numbers))

    def node(g: Any, input: Any, offset: Any, mask: Any, geometry: Geometry) -> Any:
        suffixes = {int: "i", float: "f", str: "s"}
        attributes = {
            f"{name}_{suffixes[type(value)]}": value
            for name, value in node_attributes(geometry).items()
        }
        output = g.op(f"{DOMAIN}::{NAME}", input, offset, mask, **attributes)
        channels = geometry.group * geometry.group_channels
        output.setType(input.type().with_sizes([None, None, None, channels]))
        return output

    def dcnv3(g: Any, input: Any, offset: Any, mask: Any, *numbers: Any) -> Any:
        return node(g, input, offset, mask, geometry_of(numbers))

    def dcnv3_fused(g: Any, input: Any, offset_mask: Any, *numbers: Any) -> Any:
        *numbers, softmax, interleaved = numbers
        geometry = geometry_of(numbers)
        group, points = geometry.group, geometry.points
        if plain(interleaved):
            both = take(g, offset_mask, 0, 3 * group * points)
            both = reshape(g, both, -1, 0, 0, group, 3 * points)
            offset, mask = take(g, both, 0, 2 * points), take(g, both, 2 * points, 3 * points)
            offset = reshape(g, offset, -1, 0, 0, 2 * group * points)
        else:
            offset = take(g, offset_mask, 0, 2 * group * points)
            mask = take(g, offset_mask, 2 * group * points, 3 * group * points)
            mask = reshape(g, mask, -1, 0, 0, group, points)
        if plain(softmax):
            mask = g.op("Softmax", mask, axis_i=-1)
        mask = reshape(g, mask, -1, 0, 0, group * points)
        return node(g, input, offset, mask, geometry)

    symbolics = {"ops_dcnv3::dcnv3": dcnv3, "ops_dcnv3::dcnv3_fused": dcnv3_fused}
    try:
        for name, symbolic in symbolics.items():
            register_custom_op_symbolic(name, symbolic, opset)
        with as_operator():
            yield
    finally:
        for name in symbolics:
            unregister_custom_op_symbolic(name, opset)
