"""What only Triton needs tested; runs in its interpreter. `test_triton.py` starts this file."""

import pytest
import torch
from helpers import geometry, random_arguments, with_gradients

from ops_dcnv3.functions import (
    available_backends,
    choose_backend,
    dcnv3,
    dcnv3_backward_reference,
    dcnv3_fused,
    dcnv3_reference,
    triton_backend,
)
from ops_dcnv3.functions.dcnv3_func import _call
from ops_dcnv3.functions.triton_backend import Blocks


def compare(shape, arguments):
    cotangent = torch.randn_like(dcnv3_reference(*arguments, shape))
    actual = with_gradients(lambda *t: _call(*t, shape, "triton"), arguments, cotangent)
    expected = with_gradients(lambda *t: dcnv3_reference(*t, shape), arguments, cotangent)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("index_limit", [2**31, 0], ids=["32-bit", "64-bit"])
def test_several_programs(monkeypatch, index_limit):
    """Tiles with a rest in both directions; elsewhere one program covers everything."""
    monkeypatch.setattr(triton_backend, "choose_blocks", lambda *_: Blocks(16, 4, 16, 4))
    monkeypatch.setattr(triton_backend, "INDEX_LIMIT", index_limit)
    shape = geometry(group_channels=6)
    compare(shape, random_arguments(shape, 1, 4, 5))


def test_pixels_that_are_not_sampled_are_not_read():
    """Their values do not matter, even if they are not finite."""
    x = torch.randn(1, 5, 5, 8, dtype=torch.float64)
    x[0, 0, 0], x[0, 4, 4] = float("inf"), float("nan")
    offset, mask = torch.zeros(1, 5, 5, 36).double(), torch.ones(1, 5, 5, 18).double()
    offset += 0.5
    cotangent = torch.ones(1, 5, 5, 8).double()
    cotangent[0, 2, 2] = float("inf")
    actual, expected = (
        with_gradients(run, [x, offset, mask], cotangent)
        for run in (
            lambda *t: dcnv3(*t, group=2, backend="triton"),
            lambda *t: dcnv3(*t, group=2, backend="pytorch"),
        )
    )
    assert 0 < actual["out"].isfinite().sum() < actual["out"].numel()
    assert 0 < actual["grad_input"].isfinite().sum() < actual["grad_input"].numel()
    for name in ("out", "grad_input"):
        assert torch.equal(actual[name].isfinite(), expected[name].isfinite())


def test_deterministic_algorithms_take_the_reference():
    arguments = random_arguments(geometry())
    cotangent = torch.randn(2, 7, 6, 8, dtype=torch.float64)
    call = torch.ops.ops_dcnv3.dcnv3_triton_backward
    expected = dcnv3_backward_reference(cotangent, *arguments, geometry())
    torch.use_deterministic_algorithms(True)
    try:
        actual = call(cotangent, *arguments, *geometry())
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected))


def test_second_derivatives():
    shape = geometry(offset_scale=0.7)

    def penalty(backend):
        leaves = [t.requires_grad_() for t in random_arguments(shape, 1, 3, 4)]
        output = _call(*leaves, shape, backend)
        first = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    torch.testing.assert_close(penalty("triton"), penalty("pytorch"))


@pytest.mark.parametrize(
    "grad_output, error, message",
    [
        (torch.zeros(2, 7, 5, 8).double(), ValueError, r"\(2, 7, 6, 8\), got \(2, 7, 5, 8\)"),
        (torch.zeros(2, 7, 6, 8), TypeError, "must be torch.float64 on cpu .*got torch.float32"),
    ],
)
def test_wrong_grad_output(grad_output, error, message):
    with pytest.raises(error, match=message):
        torch.ops.ops_dcnv3.dcnv3_triton_backward(
            grad_output, *random_arguments(geometry()), *geometry()
        )


def test_a_call_is_checked_before_it_is_launched():
    x, offset, mask = random_arguments(geometry())
    with pytest.raises(ValueError, match="offset must be"):
        torch.ops.ops_dcnv3.dcnv3_triton(x, offset[..., 1:], mask, *geometry())


def test_choice(monkeypatch):
    assert "triton" in available_backends()
    assert choose_backend("cpu") != "triton"  # too slow to be taken unasked
    monkeypatch.setenv("OPS_DCNV3_BACKEND", "triton")
    assert choose_backend("cpu") == "triton"


def test_autocast_and_the_environment_variable(monkeypatch):
    monkeypatch.setenv("OPS_DCNV3_BACKEND", "triton")
    x, offset, mask = random_arguments(geometry(), dtype=torch.float32)
    called = []
    run = triton_backend._launch
    monkeypatch.setattr(
        triton_backend, "_launch", lambda name, *a: (called.append(name), run(name, *a))
    )
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = dcnv3_fused(x, torch.cat((offset, mask), -1), group=2)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert x.grad.dtype == torch.float32
    assert called == ["forward_kernel", "backward_kernel"]
