"""Linear layers with bias and GELU inside the product: the same numbers, and never in the way."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from ops_dcnv3.functions import apply_linear, cpu_linear, is_plain_linear, linear

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


def test_hooked_and_replaced_layers_are_called(calls):
    x, seen = arguments()[0], []
    layer = nn.Linear(12, 20)
    handle = layer.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        assert not is_plain_linear(layer)
        apply_linear(layer, x)
        assert seen == [1] and not calls
        handle.remove()
        assert is_plain_linear(layer)
        assert not is_plain_linear(nn.Identity())
        torch.testing.assert_close(apply_linear(nn.Identity(), x, gelu=True), F.gelu(x))
