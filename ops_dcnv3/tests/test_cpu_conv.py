"""Convolutions in compiled inference: the same numbers, and in no other graph."""

import pytest
import torch
from torch import nn

from ops_dcnv3.functions import apply_conv, apply_head_conv

pytestmark = pytest.mark.skipif(
    not hasattr(torch.compiler, "_is_exporting_flag"),
    reason="before torch 2.7 a captured graph is not known to stay on this machine",
)


class Convolution(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 12, 3, padding=1, **options).to(memory_format=torch.channels_last)

    def forward(self, x):
        return apply_conv(self.conv, x)


def images():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 12, 7, 6, generator=generator)
    return x.contiguous(memory_format=torch.channels_last)


def captured(layer, x):
    """Result and targets of the graph that torch.compile captures."""
    torch._dynamo.reset()
    targets = []

    def backend(graph, _):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    return torch.compile(layer, backend=backend, fullgraph=True)(x), targets


@pytest.mark.parametrize(
    "options", [{}, {"groups": 12}, {"stride": 2, "bias": False}, {"dilation": 2, "groups": 3}]
)
def test_compiled_inference(options):
    layer, x = Convolution(**options), images()
    with torch.inference_mode():
        actual, targets = captured(layer, x)
        torch.testing.assert_close(actual, layer.conv(x))
        assert any("ops_dcnv3.conv2d" in target for target in targets)
        compiled = torch.compile(layer, fullgraph=True, dynamic=True)
        torch.testing.assert_close(compiled(x), layer.conv(x))
        assert compiled(x).is_contiguous(memory_format=torch.channels_last)


def test_autocast():
    layer, x = Convolution(groups=12), images()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        actual, targets = captured(layer, x)
        assert any("ops_dcnv3.conv2d" in target for target in targets)
        assert actual.dtype == torch.bfloat16
        torch.testing.assert_close(actual, layer.conv(x))


@pytest.mark.parametrize("case", ["training", "hook", "padding_mode"])
def test_everywhere_else_the_layer_is_called(case):
    layer, x = Convolution(), images()
    if case == "hook":
        layer.conv.register_forward_hook(lambda *_: None)
    if case == "padding_mode":
        layer.conv.padding_mode = "reflect"
        layer.conv._reversed_padding_repeated_twice = [1, 1, 1, 1]
    with torch.set_grad_enabled(case == "training"):
        actual, targets = captured(layer, x)
    torch.testing.assert_close(actual, layer.conv(x))
    assert not any("ops_dcnv3" in target for target in targets)


def test_exported_graphs_hold_pytorchs_own_operator():
    with torch.no_grad():
        program = torch.export.export(Convolution(), (images(),))
    assert not any("ops_dcnv3" in str(node.target) for node in program.graph.nodes)


def test_opcheck():
    x, layer = images(), Convolution(groups=12).conv
    arguments = (x, layer.weight.detach(), layer.bias.detach(), [1, 1], [1, 1], [1, 1], 12)
    torch.library.opcheck(torch.ops.ops_dcnv3.conv2d.default, arguments)


def test_a_hooked_sequence_is_called():
    layers, x = nn.Sequential(nn.Conv2d(12, 8, 1), nn.ReLU()), images()
    torch.testing.assert_close(apply_head_conv(layers, x), layers(x))
    seen = []
    layers.register_forward_hook(lambda *_: seen.append(1))
    apply_head_conv(layers, x)
    assert seen == [1]
