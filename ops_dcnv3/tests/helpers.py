"""Shared by the operator's tests: the reference cases and random arguments."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ops_dcnv3.functions import Geometry, available_backends

DATA = Path(__file__).parent / "data"
GRADIENTS = ("grad_input", "grad_offset", "grad_mask")

# Every implementation, with the device of its tensors and the reason to skip it here.
BACKENDS = [
    pytest.param(
        name,
        id=name,
        marks=[
            pytest.mark.skipif(
                name not in available_backends(), reason=f"backend {name} is not compiled here"
            )
        ],
    )
    for name in ("pytorch", "cpp")
] + [
    pytest.param(
        "cuda",
        id="cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(
                not torch.cuda.is_available() or "cuda" not in available_backends(),
                reason="needs a GPU and the CUDA kernels",
            ),
        ],
    ),
    pytest.param(  # without a GPU test_triton.py runs these in Triton's interpreter
        "triton",
        id="triton",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(
                "triton" not in available_backends(), reason="needs a GPU and Triton"
            ),
        ],
    ),
]


def device_of(backend: str) -> str:
    on_gpu = backend == "cuda" or (backend == "triton" and torch.cuda.is_available())
    return "cuda" if on_gpu else "cpu"


class Case:
    """One case of tests/data: arguments, and expected output and gradients in float64.

    The numbers come from the original implementation. In `deviations` its kernels and its PyTorch
    fallback disagree, and the expected values are the kernels'.
    """

    def __init__(self, file: str, facts: dict) -> None:
        self.id = facts["id"]
        self.geometry = Geometry(
            *facts["kernel"],
            *facts["stride"],
            *facts["pad"],
            *facts["dilation"],
            facts["group"],
            facts["group_channels"],
            facts["offset_scale"],
            bool(facts["remove_center"]),
        )
        self._file, self._prefix = file, "cuda_" if file == "deviations" else ""

    def tensor(self, name: str) -> Tensor:
        with np.load(DATA / f"{self._file}.npz") as arrays:
            return torch.from_numpy(arrays[f"{self.id}/{name}"])

    def arguments(self) -> list[Tensor]:
        return [self.tensor(name) for name in ("input", "offset", "mask")]

    def expected(self) -> dict[str, Tensor]:
        return {name: self.tensor(self._prefix + name) for name in ("out", *GRADIENTS)}


CASES = [
    pytest.param(Case(file, facts), id=facts["id"])
    for file in ("cases", "deviations")
    for facts in json.loads((DATA / f"{file}.json").read_text())
]


def random_arguments(
    geometry: Geometry,
    batch: int = 2,
    height: int = 7,
    width: int = 6,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> list[Tensor]:
    """Input, offset and mask; no sampling position is an integer."""
    generator = torch.Generator().manual_seed(seed)
    out_h, out_w = geometry.output_size(height, width)
    per_pixel = geometry.group * geometry.points

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return [
        normal(batch, height, width, geometry.group * geometry.group_channels),
        normal(batch, out_h, out_w, 2 * per_pixel),
        normal(batch, out_h, out_w, per_pixel).sigmoid(),
    ]


def geometry(**changes) -> Geometry:
    """A 3 x 3 'same' geometry with two groups of four channels, and changes to it."""
    return Geometry(3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.0, False)._replace(**changes)


def with_gradients(run, arguments: list[Tensor], cotangent: Tensor) -> dict[str, Tensor]:
    """Output and the gradients of sum(output * cotangent), by the names of the cases."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in arguments]
    output = run(*leaves)
    gradients = torch.autograd.grad(output, leaves, cotangent.to(output))
    return {"out": output.detach(), **dict(zip(GRADIENTS, gradients))}
