"""Python's side of plugin_harness.cpp, and calls of the operator that the tests compare with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch
from torch import Tensor

from ops_dcnv3.functions import Geometry, dcnv3_reference

TYPES = {"float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16}


def geometry(**changes) -> Geometry:
    """A 3 x 3 'same' geometry with two groups of four channels, and changes to it."""
    return Geometry(3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.0, False)._replace(**changes)


def random_arguments(
    shape: Geometry, batch: int, height: int, width: int, dtype: torch.dtype
) -> list[Tensor]:
    """Input, offset and mask; points reach beyond the border."""
    generator = torch.Generator().manual_seed(0)
    pixels = (batch, *shape.output_size(height, width))
    per_pixel = shape.group * shape.points

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator).to(dtype)

    return [
        normal(batch, height, width, shape.group * shape.group_channels),
        normal(*pixels, 2 * per_pixel),
        normal(*pixels, per_pixel).sigmoid(),
    ]


def expected(shape: Geometry, arguments: list[Tensor]) -> Tensor:
    """The operator in PyTorch, computed in float64."""
    return dcnv3_reference(*(tensor.double() for tensor in arguments), shape)


def check(got: Tensor, want: Tensor) -> None:
    """Half types are rounded once, at the end; float32 sums of 4 * 9 products."""
    tolerance = {torch.float32: 2e-5}.get(got.dtype, torch.finfo(got.dtype).eps)
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=3e-5)


class Harness:
    """Runs the commands of plugin_harness.cpp on one library.

    Attributes:
        complaints: what the last run wrote to stderr.
    """

    def __init__(self, program: Path, library: Path) -> None:
        self.program, self.library = program, library
        self.complaints = ""

    def __call__(self, *commands: str) -> list[str]:
        """One answer for each command; they share a plugin."""
        result = subprocess.run(
            [self.program, self.library],
            input="\n".join(commands),
            capture_output=True,
            text=True,
        )
        self.complaints = result.stderr
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    def enqueue(self, shape: Geometry, arguments: list[Tensor], folder: Path) -> Tensor:
        """Creates the plugin, gives it the tensors and returns its output."""
        for name, tensor in zip(("input", "offset", "mask"), arguments):
            raw = tensor.contiguous().view(torch.uint8).numpy()
            (folder / f"{name}.bin").write_bytes(raw.tobytes())
        x = arguments[0]
        sizes = (x.shape[0], *shape.output_size(*x.shape[1:3]), x.shape[3])
        name = next(name for name, dtype in TYPES.items() if dtype == x.dtype)
        answers = self(create(shape), f"enqueue {name} {listed(arguments, sizes)} {folder}")
        assert answers == ["ok", "ok"], self.complaints
        raw = bytearray((folder / "output.bin").read_bytes())
        return torch.frombuffer(raw, dtype=x.dtype).reshape(sizes)


def listed(arguments: list[Tensor], output: tuple[int, ...]) -> str:
    """The 16 sizes of a call."""
    return " ".join(str(size) for sizes in (*arguments, None) for size in _sizes(sizes, output))


def _sizes(tensor: Tensor | None, output: tuple[int, ...]) -> tuple[int, ...]:
    return output if tensor is None else tuple(tensor.shape)


def attributes(shape: Geometry) -> dict[str, int | float]:
    """A node's attributes; im2col_step is upstream's and has no effect."""
    values = {name: int(value) for name, value in shape._asdict().items() if name != "offset_scale"}
    return {**values, "im2col_step": 256, "offset_scale": float(shape.offset_scale)}


def create(shape: Geometry, **changes) -> str:
    """The command that makes a plugin; a change to None leaves the attribute out."""
    values = {**attributes(shape), **changes}
    words = [f"{name}={value}" for name, value in values.items() if value is not None]
    return " ".join(["create", *words])
