"""The node TRTDCNv3: its attributes, and its definition against the operator in ONNX Runtime."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import onnx_dcnv3
from models.onnx_export import export_onnx
from ops_dcnv3.functions import Geometry, dcnv3, dcnv4
from ops_dcnv3.modules import DCNv3, DCNv4

onnx = pytest.importorskip("onnx", reason="pip install -r requirements/tools.txt")
onnx_ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

NAMES = ("input", "offset", "mask")
NODES = json.loads((Path(__file__).parent / "data" / "onnx_node.json").read_text())


def session(model: object) -> object:
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def node_model(geometry: Geometry, opset: int, kind: int) -> object:
    """A file of one node whose sizes are all open."""
    values = [onnx.helper.make_tensor_value_info(name, kind, [None] * 4) for name in NAMES]
    output = onnx.helper.make_tensor_value_info("output", kind, [None] * 4)
    node = onnx.helper.make_node(
        onnx_dcnv3.NAME, NAMES, ["output"], domain=onnx_dcnv3.DOMAIN,
        **onnx_dcnv3.node_attributes(geometry),
    )  # fmt: skip
    graph = onnx.helper.make_graph([node], "one", values, [output])
    imports = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)
    model = onnx_ir.serde.deserialize_model(model)
    assert onnx_dcnv3.add_function(model)
    model = onnx_ir.serde.serialize_model(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def tensors(geometry: Geometry, batch: int, height: int, width: int) -> list[Tensor]:
    """Input, offsets that lead far outside, masks."""
    pixels = (batch, *geometry.output_size(height, width))
    per_pixel = geometry.group * geometry.points
    return [
        torch.randn(batch, height, width, geometry.group * geometry.group_channels),
        3 * torch.randn(*pixels, 2 * per_pixel),
        torch.randn(*pixels, per_pixel),
    ]


def by_operator(geometry: Geometry, values: list[Tensor]) -> np.ndarray:
    pairs = [geometry[start : start + 2] for start in range(0, 8, 2)]
    options = (geometry.group, geometry.offset_scale, geometry.remove_center)
    return dcnv3(*values, *pairs, *options).numpy()


@pytest.mark.parametrize("remove_center", [False, True])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 4), (3, 3), (5, 3), (5, 5)])
def test_definition_in_every_geometry(kernel, stride, dilation, remove_center):
    """One file, several sizes, odd ones among them; even kernels, uneven paddings, two scales."""
    if remove_center and kernel == (1, 1):
        return  # no point left
    torch.manual_seed(0)
    padding = (kernel[0] // 2, (kernel[1] - 1) * dilation[1] // 2)
    group, depth = (1, 5) if stride == (1, 1) else (3, 4)
    scale = 1.0 if dilation == (1, 1) else 1.7
    numbers = (*kernel, *stride, *padding, *dilation, group, depth, scale, remove_center)
    geometry = Geometry(*numbers)
    run = session(node_model(geometry, 18, onnx.TensorProto.FLOAT)).run
    for size in [(1, 9, 12), (2, 13, 11)]:
        values = tensors(geometry, *size)
        expected = by_operator(geometry, values)
        (got,) = run(None, dict(zip(NAMES, [value.numpy() for value in values])))
        assert got.shape == expected.shape and np.abs(expected).max() > 0.5
        assert np.abs(got - expected).max() < 1e-5 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("opset", [16, 18, 20, 22])
@pytest.mark.parametrize("is_half", [False, True])
def test_opsets_and_half_precision(opset, is_half):
    """Sampling points are computed in float32, so half precision loses no pixels."""
    if opset > onnx.defs.onnx_opset_version():
        pytest.skip(f"onnx {onnx.__version__} has no opset {opset}")
    torch.manual_seed(1)
    geometry = Geometry(3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.0, False)
    kind = onnx.TensorProto.FLOAT16 if is_half else onnx.TensorProto.FLOAT
    run = session(node_model(geometry, opset, kind)).run
    values = [value.half().float() for value in tensors(geometry, 1, 7, 1500)]
    feed = [value.numpy().astype(np.float16 if is_half else np.float32) for value in values]
    (got,) = run(None, dict(zip(NAMES, feed)))
    expected = by_operator(geometry, values)
    bound = 2e-3 if is_half else 4e-4  # GridSample's coordinates: 24 bits for 1500 pixels
    assert got.dtype == feed[0].dtype
    assert np.abs(got - expected).max() < bound * np.abs(expected).max()


def test_definition_needs_gridsample():
    node = onnx.helper.make_node(onnx_dcnv3.NAME, NAMES, ["y"], domain=onnx_dcnv3.DOMAIN)
    imports = [onnx.helper.make_opsetid("", 11)]
    graph = onnx.helper.make_graph([node], "old", [], [])
    model = onnx_ir.serde.deserialize_model(onnx.helper.make_model(graph, opset_imports=imports))
    with pytest.raises(ValueError, match="needs opset 16 or newer .* the model has 11"):
        onnx_dcnv3.add_function(model)
    graph = onnx.helper.make_graph([], "none", [], [])
    model = onnx_ir.serde.deserialize_model(onnx.helper.make_model(graph, opset_imports=imports))
    assert not onnx_dcnv3.add_function(model) and not model.functions


class Calls(nn.Module):
    """The operator's functions called with tensors of the caller's, in ways no layer does."""

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        both = torch.cat((offset.unflatten(-1, (2, -1)), mask.unflatten(-1, (2, -1))), -1)
        options = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "group": 2}
        return dcnv3(input, offset, mask, **options) + dcnv4(input, both.flatten(-2), **options)


def nodes(path: Path) -> tuple[object, list[object]]:
    model = onnx.load(path)
    return model, [node for node in model.graph.node if node.domain]


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_node_is_the_original_exporters(exporter, tmp_path, monkeypatch):
    """Name, inputs and attributes; offsets and masks reach it apart and after the softmax.

    Also where another backend was asked for.
    """
    monkeypatch.setenv("OPS_DCNV3_BACKEND", "pytorch")

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            options = {"channels": 16, "group": 2, "offset_scale": 2.0}
            self.plain = DCNv3(**options)
            self.removed = DCNv3(**options, remove_center=True, backend="pytorch")
            self.fourth = DCNv4(**options)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return self.plain(x), self.removed(x), self.fourth(x)

    path, layers = tmp_path / "layers.onnx", Layers().eval()
    names = ["plain", "removed", "fourth"]
    export_onnx(layers, [torch.randn(1, 6, 7, 16)], path, output_names=names, exporter=exporter)
    model, (plain, removed, fourth) = nodes(path)
    for node, key in ((plain, "remove_center=False"), (removed, "remove_center=True")):
        spec = NODES[key]
        got = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert got.pop("plugin_namespace") == b""
        assert got == spec["attrs"]
        assert {name: type(value) for name, value in got.items()} == {
            name: type(value) for name, value in spec["attrs"].items()
        }
        assert (node.domain, node.op_type) == (spec["domain"], spec["op"])
        assert (len(node.input), len(node.output)) == (spec["n_inputs"], spec["n_outputs"])
    assert fourth.op_type == plain.op_type
    assert sum(node.op_type == "Softmax" for node in model.graph.node) == 2  # none for DCNv4
    versions = {entry.domain: entry.version for entry in model.opset_import}
    assert versions == {"": 18, "mmdeploy": 1}
    assert [(f.domain, f.name) for f in model.functions] == [("mmdeploy", "TRTDCNv3")]
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)

    geometry = Geometry(3, 2, 2, 1, 1, 0, 1, 1, 2, 4, 1.0, False)
    values, calls = tensors(geometry, 2, 8, 9), tmp_path / "calls.onnx"
    export_onnx(Calls(), values, calls, input_names=NAMES, exporter=exporter)
    assert len(nodes(calls)[1]) == 2
    (got,) = session(onnx.load(calls)).run(None, dict(zip(NAMES, [v.numpy() for v in values])))
    assert np.abs(got - Calls()(*values).numpy()).max() < 2e-5
