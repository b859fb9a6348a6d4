"""Checks of an ONNX file: is it valid (onnx.checker), does it compute what the model computes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .onnx_export import ExportError, need

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-2}  # of the largest output, at least of 1


@dataclass(frozen=True)
class Comparison:
    """Outputs of a runtime and of PyTorch for the same inputs.

    Attributes:
        shape: of the first input.
        error: largest absolute difference of two outputs.
        largest: largest absolute output of PyTorch.
        bound: largest `error` that is accepted.
    """

    shape: tuple[int, ...]
    error: float
    largest: float
    bound: float

    @property
    def agrees(self) -> bool:
        return self.error <= self.bound  # False for NaN

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        verdict = "same" if self.agrees else "DIFFERENT"
        return (
            f"{size}: {verdict}, largest difference {self.error:.1e} "
            f"(bound {self.bound:.1e}, outputs up to {self.largest:.3g})"
        )


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def check_file(path: str | Path) -> None:
    """Runs onnx.checker with shape inference on a file.

    Raises:
        ExportError: the file is not valid ONNX.
    """
    need("onnx")
    import onnx
    from onnx.shape_inference import InferenceError

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, InferenceError) as error:
        raise ExportError(f"onnx.checker refuses the file: {error}") from error


class OnnxModel:
    """An ONNX file in ONNX Runtime on the CPU.

    Args:
        path: the file.
        threads: of one operator; PyTorch's number if not given.

    Raises:
        ExportError: onnxruntime is missing, or it cannot read the file.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        need("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = threads or torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has no common type for its errors
            raise ExportError(f"ONNX Runtime cannot read {path}: {error}") from error

    @property
    def input_shape(self) -> list[int | str]:
        """Sizes of the first input; names stand for open axes."""
        return list(self.session.get_inputs()[0].shape)

    def outputs(self, *inputs: Tensor) -> list[np.ndarray]:
        """All outputs, in the file's order."""
        names = [item.name for item in self.session.get_inputs()]
        feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        try:
            return self.session.run(None, feed)
        except Exception as error:  # onnxruntime has no common type for its errors
            raise ExportError(
                f"ONNX Runtime cannot run the file on {tuple(inputs[0].shape)}: {error}"
            ) from error

    def __call__(self, *inputs: Tensor) -> np.ndarray:
        """The first output."""
        return self.outputs(*inputs)[0]


def compare(
    model: nn.Module,
    runtime: Callable[..., np.ndarray],
    inputs: Sequence[Tensor],
    tolerance: float = TOLERANCE[torch.float32],
) -> Comparison:
    """Runs PyTorch and a runtime on the same inputs.

    Args:
        model: returns one tensor.
        runtime: such as an `OnnxModel`.
        inputs: on the model's device.
        tolerance: accepted difference, as a part of the largest output or of 1, whichever is more.

    Raises:
        ExportError: the outputs have different shapes, or the runtime fails.
    """
    with torch.no_grad():
        expected = model(*inputs).float().cpu().numpy()
    got = runtime(*inputs)
    if got.shape != expected.shape:
        raise ExportError(f"the file returns {got.shape} where PyTorch returns {expected.shape}")
    error = float(np.abs(got.astype(np.float64) - expected).max())
    largest = float(np.abs(expected).max())
    return Comparison(tuple(inputs[0].shape), error, largest, tolerance * max(1.0, largest))
