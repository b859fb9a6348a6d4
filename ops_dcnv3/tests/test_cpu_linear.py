"""Linear layers with bias and GELU inside the product: the same numbers, and never in the way."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from ops_dcnv3.functions import apply_linear, cpu_linear, is_untouched, linear
from ops_dcnv3.modules import DCNv3, DCNv4

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float64: 1e-12}


def arguments(dtype=torch.float32, rows=(2, 5, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((*rows, 12), (20, 12), (20,))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def ordinary(x, weight, bias, gelu):
    """In float64."""
    result = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    return F.gelu(result) if gelu else result


@pytest.fixture
def calls(monkeypatch):
    """How often oneDNN's call runs; skips where PyTorch has none."""
    if cpu_linear._pointwise is None:
        pytest.skip("this PyTorch has no oneDNN")
    counted, original = [], cpu_linear._pointwise

    def count(*args):
        counted.append(args)
        return original(*args)

    monkeypatch.setattr(cpu_linear, "_pointwise", count)
    return counted


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_equals_the_ordinary_functions(dtype, with_bias, gelu):
    x, weight, bias = arguments(dtype)
    if dtype == torch.float16 and not hasattr(torch.library, "register_autograd"):
        pytest.skip("before torch 2.4 float16 products may not exist on the CPU")
    bias = bias if with_bias else None
    actual = linear(x, weight, bias, gelu)
    assert actual.dtype == dtype and actual.shape == (2, 5, 4, 20)
    tolerance = TOLERANCES[dtype]
    expected = ordinary(x, weight, bias, gelu)
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=4 * tolerance)


def test_non_contiguous_and_empty():
    x, weight, bias = arguments()
    turned = x.transpose(0, 2).contiguous().transpose(0, 2)
    torch.testing.assert_close(linear(turned, weight, bias), F.linear(x, weight, bias))
    assert linear(x[:0], weight, bias, True).shape == (0, 5, 4, 20)


def test_inference_takes_the_one_call(calls):
    linear(*arguments(), gelu=True)
    with torch.inference_mode():
        layer = nn.Linear(12, 20)
        apply_linear(layer, arguments()[0])
    assert len(calls) == 2


def test_gradients_are_those_of_the_ordinary_functions(calls):
    x, *parameters = arguments(torch.float64)
    parameters = [tensor.requires_grad_() for tensor in parameters]
    assert torch.autograd.gradcheck(lambda *p: linear(x, *p, gelu=True), parameters)
    layer = nn.Linear(12, 20)
    apply_linear(layer, arguments()[0], gelu=True).sum().backward()
    assert layer.weight.grad is not None
    assert not calls


def test_autocast(calls):
    if torch.bfloat16 not in cpu_linear._dtypes:
        pytest.skip("no bfloat16 products on this processor")
    x, weight, bias = arguments()
    with torch.autocast("cpu", torch.bfloat16):
        actual = linear(x, weight, bias)
        assert actual.dtype == torch.bfloat16
        torch.testing.assert_close(actual, F.linear(x, weight, bias), rtol=1e-2, atol=5e-2)
        assert linear(x.bfloat16(), weight, bias).dtype == torch.bfloat16
    assert len(calls) == 2


def test_other_dtypes_are_left_to_pytorch(calls):
    linear(*arguments(torch.float64))
    assert not calls


def test_switched_off_with_oneDNN(calls):
    with torch.backends.mkldnn.flags(enabled=False):
        linear(*arguments())
    assert not calls


def test_mixed_dtypes_are_refused_as_by_pytorch():
    x, weight, bias = arguments()
    with pytest.raises(RuntimeError, match="dtype"):
        linear(x.double(), weight, bias)


def test_operations_are_counted(calls):
    with FlopCounterMode(display=False) as counter:
        linear(*arguments())
    assert counter.get_total_flops() == 2 * 40 * 12 * 20


@pytest.mark.skipif(
    not hasattr(torch.library, "register_autograd"),
    reason="compiling custom operators needs torch 2.4",
)
def test_vmap_and_compile(calls):
    x, weight, bias = arguments()
    torch.testing.assert_close(
        torch.func.vmap(linear, (0, None, None))(x, weight, bias), F.linear(x, weight, bias)
    )
    compiled = torch.compile(linear, fullgraph=True)
    torch.testing.assert_close(compiled(x, weight, bias), F.linear(x, weight, bias))
    program = torch.export.export(nn.Sequential(Wrapped()), (x,))
    assert "linear_pointwise" not in str(program.graph)
    assert not calls


def test_forward_mode_keeps_the_tangent(calls):
    x, weight, bias = arguments()
    with forward_ad.dual_level():
        output = linear(forward_ad.make_dual(x, torch.ones_like(x)), weight, bias)
        tangent = forward_ad.unpack_dual(output).tangent
    torch.testing.assert_close(tangent, weight.sum(1).expand_as(tangent))
    assert not calls


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 20)

    def forward(self, x):
        return apply_linear(self.layer, x, gelu=True)


def no_op(*_):
    return None


def change(layer, how):
    """Something that is lost when the layer is not called."""
    if how == "forward":
        layer.forward = lambda x: nn.Linear.forward(layer, x)
    elif how == "global":
        return nn.modules.module.register_module_forward_hook(no_op)
    else:
        return getattr(layer, how)(no_op)


@pytest.mark.parametrize(
    "how",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "forward",
        "global",
    ],
)
def test_hooked_and_replaced_layers_are_called(calls, how):
    x, layer = arguments()[0], nn.Linear(12, 20)
    assert is_untouched(layer, nn.Linear)
    handle = change(layer, how)
    try:
        assert not is_untouched(layer, nn.Linear)
        with torch.no_grad():
            apply_linear(layer, x, gelu=True)
        assert not calls
    finally:
        if handle:
            handle.remove()


def test_another_kind_of_layer_is_called():
    x = arguments()[0]
    assert not is_untouched(nn.Identity(), nn.Linear)
    torch.testing.assert_close(apply_linear(nn.Identity(), x, gelu=True), F.gelu(x))


def test_autocast_leaves_float64_alone(calls):
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(*arguments(torch.float64)).dtype == torch.float64
    assert not calls


# --- compiled inference ---------------------------------------------------------------------------

since_2_7 = pytest.mark.skipif(
    not hasattr(torch.compiler, "_is_exporting_flag"),
    reason="before torch 2.7 a captured graph is not known to stay on this machine",
)


@since_2_7
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_compiled_inference(calls, dtype, dynamic, with_bias):
    if dtype not in cpu_linear._dtypes:
        pytest.skip("no bfloat16 products on this processor")
    torch._dynamo.reset()
    compiled = torch.compile(linear, fullgraph=True, dynamic=dynamic)
    for rows in ((2, 5, 4), (1, 3, 6), (0, 3, 6)):
        x, weight, bias = arguments(rows=rows)
        bias = bias if with_bias else None
        with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            before = len(calls)
            actual = compiled(x, weight, bias, True)
            assert len(calls) - before == (x.numel() > 0)
            torch.testing.assert_close(actual, linear(x, weight, bias, True))


@since_2_7
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("layer_type", [DCNv3, DCNv4])
def test_compiled_layers_in_inference(calls, layer_type, dynamic):
    torch._dynamo.reset()
    layer = layer_type(16, group=2, dw_kernel_size=3).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.3)
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic)
    for size in ((2, 5, 4), (1, 7, 9)):
        x = torch.randn(*size, 16)
        with torch.inference_mode():
            before = len(calls)
            actual = compiled(x)
            assert len(calls) - before == 3  # input, offsets and masks, output
            torch.testing.assert_close(actual, layer(x))


@since_2_7
def test_opcheck():
    x, weight, bias = arguments()
    for gelu in (False, True):
        torch.library.opcheck(torch.ops.ops_dcnv3.linear.default, (x, weight, bias, gelu))
