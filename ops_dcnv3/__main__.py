"""`python -m ops_dcnv3`: what is installed, which backend runs where, and a short self-test."""

from __future__ import annotations

import platform
import sys

import torch

from . import __version__
from .functions import Geometry, available_backends, choose_backend, dcnv3, dcnv3_reference
from .functions.backends import (
    ENVIRONMENT_VARIABLE,
    INSTALL_HINT,
    extension,
    triton_problem,
    unavailable_reason,
)

TOLERANCE = 1e-4  # float32 kernels against the float64 reference, values of order one


def _report() -> None:
    print(f"ops_dcnv3 {__version__} ({__file__.rsplit('/', 1)[0]})")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}")
    if extension is None:
        print(f"compiled kernels: none: {unavailable_reason}")
        print(f"  to compile: {INSTALL_HINT}")
    else:
        cuda = extension.cuda_architectures
        threads = "multi-threaded" if extension.multi_threaded else "one thread"
        print(
            f"compiled kernels: CPU ({extension.cpu_level()}, {threads}), "
            f"built with torch {extension.torch_version}"
        )
        print(f"CUDA kernels: {'for ' + cuda if cuda else 'none (OPS_DCNV3_CUDA=1 builds them)'}")
    print(f"Triton kernels: {triton_problem() or 'there, compiled by their first call'}")
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        print(f"GPU: {torch.cuda.get_device_name()} (compute capability {major}.{minor})")
    else:
        print("GPU: none visible")
    print(f"backends: {', '.join(available_backends())} (force one with {ENVIRONMENT_VARIABLE})")
    for device in ("cpu", "cuda"):
        try:
            print(f"  {device} tensors use {choose_backend(device)}")
        except (RuntimeError, ValueError) as error:  # what ENVIRONMENT_VARIABLE asks for
            print(f"  {device} tensors cannot be used: {error}")


def _self_test(device: str) -> bool:
    """Output and gradients of the chosen backend against the reference in float64."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    geometry = Geometry(3, 3, 1, 1, 1, 1, 1, 1, 2, 16, 1.0, False)
    tensors = random(2, 9, 7, 32), random(2, 9, 7, 36), random(2, 9, 7, 18)
    cotangent = random(2, 9, 7, 32)

    def evaluate(inputs: list[torch.Tensor], run) -> list[torch.Tensor]:
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        output = run(*inputs)
        gradients = torch.autograd.grad(output, inputs, cotangent.to(output))
        return [output.detach(), *gradients]

    expected = evaluate(list(tensors), lambda *t: dcnv3_reference(*t, geometry))
    single = [tensor.to(device, torch.float32) for tensor in tensors]
    actual = evaluate(single, lambda *t: dcnv3(*t, group=2))
    errors = [(a.cpu().double() - e).abs().max() for a, e in zip(actual, expected)]
    error = torch.stack(errors).max().item()  # NaN if any of them is
    passed = error <= TOLERANCE
    print(
        f"self-test on {device} ({choose_backend(device)}): {'passed' if passed else 'FAILED'}, "
        f"largest difference from the float64 reference {error:.1e}"
    )
    return passed


def _self_test_or_reason(device: str) -> bool:
    """`_self_test`; False, with the reason on the screen, where the operator raises."""
    try:
        return _self_test(device)
    except (RuntimeError, ValueError) as error:  # no such backend, a failed launch
        print(f"self-test on {device}: FAILED, {error}")
        return False


def main() -> int:
    """Prints the report; the exit code is 1 if a self-test fails."""
    _report()
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return 0 if all([_self_test_or_reason(device) for device in devices]) else 1


if __name__ == "__main__":
    sys.exit(main())
