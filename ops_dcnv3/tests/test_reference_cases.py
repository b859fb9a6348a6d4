"""Every backend against the numbers computed with the original implementation."""

import pytest
import torch
from helpers import BACKENDS, CASES, device_of, with_gradients

from ops_dcnv3.functions import dcnv3_backward_reference, dcnv3_core_pytorch, dcnv3_reference
from ops_dcnv3.functions.dcnv3_func import _call


def run(case, backend, dtype=torch.float64):
    device = device_of(backend)
    arguments = [tensor.to(device, dtype) for tensor in case.arguments()]
    return with_gradients(
        lambda *tensors: _call(*tensors, case.geometry, backend),
        arguments,
        case.tensor("grad_output").to(device, dtype),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_float64(case, backend):
    actual = run(case, backend)
    for name, expected in case.expected().items():
        torch.testing.assert_close(
            actual[name].cpu(), expected, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_float32(case, backend):
    actual = run(case, backend, torch.float32)
    for name, expected in case.expected().items():
        torch.testing.assert_close(
            actual[name].cpu().double(),
            expected,
            rtol=1e-5,
            atol=1e-5,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("case", CASES)
def test_written_out_gradients_of_the_reference(case):
    gradients = dcnv3_backward_reference(
        case.tensor("grad_output"), *case.arguments(), case.geometry
    )
    for gradient, (name, expected) in zip(gradients, list(case.expected().items())[1:]):
        torch.testing.assert_close(
            gradient, expected, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_half_precision(case, backend, dtype):
    """Rounding the inputs to half precision is not the operator's error: the float32 result for
    the same rounded inputs is the truth. What remains is one rounding of each result
    (eps / 2 relative) and float32 sums, whose order differs.
    """
    device = device_of(backend)
    arguments = [tensor.to(device, dtype) for tensor in case.arguments()]
    cotangent = case.tensor("grad_output").to(device, dtype)
    actual = with_gradients(
        lambda *tensors: _call(*tensors, case.geometry, backend), arguments, cotangent
    )
    truth = with_gradients(
        lambda *tensors: dcnv3_reference(*tensors, case.geometry),
        [tensor.float() for tensor in arguments],
        cotangent.float(),
    )
    for name, expected in truth.items():
        assert actual[name].dtype == dtype
        torch.testing.assert_close(
            actual[name].float(),
            expected,
            rtol=torch.finfo(dtype).eps,
            atol=2e-5,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def test_dcnv3_core_pytorch_is_the_reference():
    case = CASES[0].values[0]
    torch.testing.assert_close(
        dcnv3_core_pytorch(*case.arguments(), *case.geometry),
        case.expected()["out"],
        rtol=1e-9,
        atol=1e-9,
    )
