"""ONNX files of classification models, and their comparison with PyTorch.

The exporter is torch.onnx's that captures the model with torch.export (``dynamo=True``). The
operator DCNv3, which ONNX does not have, is written with standard operators by `onnx_dcnv3.py`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.write_file import replacing
from ops_dcnv3.modules import DCNv3, DCNv4

logger = logging.getLogger(__name__)

OPSET = 18
SINGLE_FILE_LIMIT = 1_900_000_000  # bytes of weights; a protobuf file ends at 2 GiB
INPUT_NAMES = ("input", "temporal", "spatial")  # the last two: models with metadata
NOISY = ("torch.onnx", "torch._guards", "torch.export", "onnxscript", "onnx_ir")
TOLERANCE = 1e-3  # of the largest logit


class ExportError(RuntimeError):
    """A model cannot be exported, or its file computes something else; the message says why."""


@dataclass(frozen=True)
class Comparison:
    """Outputs of ONNX Runtime and PyTorch for one shape of images.

    Attributes:
        shape: (N, 3, H, W).
        error: largest absolute difference of two logits.
        largest: largest absolute logit of PyTorch.
    """

    shape: tuple[int, ...]
    error: float
    largest: float

    @property
    def agrees(self) -> bool:
        return self.error <= TOLERANCE * max(self.largest, 1e-3)


def need(*packages: str) -> None:
    """Raises ExportError with the pip line unless all packages are installed."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ExportError(
                f"the package {package} is missing ({error}): pip install -r requirements/tools.txt"
            ) from error


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def is_new_enough() -> bool:
    """Whether torch.onnx takes translations of custom operators (torch 2.6 and newer)."""
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    return found is not None and (int(found[1]), int(found[2])) >= (2, 6)


def size_multiple(model: nn.Module) -> int:
    """What height and width of images must be multiples of; 1 for no such condition."""
    has_projector = getattr(model, "use_clip_projector", False)
    return 2 ** (len(model.depths) + 1) if has_projector else 1


def export_onnx(
    model: nn.Module, inputs: Sequence[Tensor], path: str | Path, *, dynamic: bool = False
) -> None:
    """Writes a model as ONNX (opset 18, standard operators only).

    Weights above 1.9 GB go into a second file, `path` with ``.data`` added.

    Args:
        model: a classification model in evaluation mode, float32, on the CPU.
        inputs: what it is called with: images (N, 3, H, W), and metadata if it takes any.
        path: file to write; it is replaced when the new one is whole.
        dynamic: batch, height and width are left open. With the clip projector height and width
            are then multiples of 32.

    Raises:
        ExportError: a package is missing, PyTorch is too old, or the model cannot be captured.
        OSError: `path` cannot be written.
        ValueError: images that the model cannot take.
    """
    need("onnx", "onnxscript")
    if not is_new_enough():
        raise ExportError(f"export to ONNX needs torch 2.6 or newer, this is {torch.__version__}")
    path = Path(path)
    with replacing(path) as temporary, _any_backend(model):
        with torch.no_grad():
            model(*inputs)  # errors of the model itself come first, and in its own words
        program = _capture(model, _traced(model, inputs) if dynamic else inputs, dynamic)
        with tempfile.TemporaryDirectory(prefix=".onnx-", dir=path.parent) as folder:
            staged = Path(folder) / path.name
            program.save(str(staged), external_data=_bytes_of_weights(model) > SINGLE_FILE_LIMIT)
            weights = staged.with_name(f"{staged.name}.data")
            if weights.exists():
                os.replace(weights, path.with_name(weights.name))
            os.replace(staged, temporary)


def _traced(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Inputs to capture a model with whose sizes are left open.

    The exporter takes every size of 1 for a constant, so there must be two images, and two rows and
    columns in the last map.
    """
    images, *others = inputs
    side = 2 ** (len(model.depths) + 2)
    blank = images.new_zeros(2, images.shape[1], side, side * 3 // 2)
    return [blank, *(other.new_zeros(2, other.shape[1]) for other in others)]


def _capture(model: nn.Module, inputs: Sequence[Tensor], dynamic: bool) -> Any:
    """torch.onnx's program of a model.

    Raises:
        ExportError: what the exporter complained of first.
    """
    from onnx_dcnv3 import dcnv3_fused

    try:
        with _quiet(), torch.no_grad():
            return torch.onnx.export(
                model,
                tuple(inputs),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(INPUT_NAMES[: len(inputs)]),
                output_names=["output"],
                dynamic_shapes=_dynamic_shapes(model, inputs) if dynamic else None,
                custom_translation_table={torch.ops.ops_dcnv3.dcnv3_fused.default: dcnv3_fused},
                verbose=False,
            )
    except Exception as error:  # the exporter's errors have no common type
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        lines = str(first).strip().splitlines() or [""]
        raise ExportError(
            f"torch.onnx cannot export this model ({type(first).__name__}: {lines[0]})"
        ) from error


@contextlib.contextmanager
def _any_backend(model: nn.Module) -> Iterator[None]:
    """Without the backends that layers were told to use: the file has its own."""
    layers = [layer for layer in model.modules() if isinstance(layer, (DCNv3, DCNv4))]
    backends = [layer.backend for layer in layers]
    try:
        for layer in layers:
            layer.backend = None
        yield
    finally:
        for layer, backend in zip(layers, backends, strict=True):
            layer.backend = backend


def _dynamic_shapes(model: nn.Module, inputs: Sequence[Tensor]) -> tuple[dict[int, Any], ...]:
    """Names of the axes that are left open, for each input."""
    batch = torch.export.Dim("batch")
    step = size_multiple(model)
    if step == 1:
        sides = {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    else:
        sides = {
            axis: step * torch.export.Dim(name, min=1)
            for axis, name in ((2, "height_steps"), (3, "width_steps"))
        }
    return ({0: batch, **sides}, *({0: batch} for _ in inputs[1:]))


def _bytes_of_weights(model: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own log lines and warnings, which name its internals."""
    noisy = [logging.getLogger(name) for name in NOISY]
    levels = [log.level for log in noisy]
    try:
        for log in noisy:
            log.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(noisy, levels, strict=True):
            log.setLevel(level)


class OnnxModel:
    """An ONNX file in ONNX Runtime on the CPU.

    Args:
        path: the file.

    Raises:
        ExportError: onnxruntime is missing, or it cannot read the file.
    """

    def __init__(self, path: str | Path) -> None:
        need("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = torch.get_num_threads()
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

    def __call__(self, *inputs: Tensor) -> np.ndarray:
        """The first output: (N, num_classes)."""
        names = [item.name for item in self.session.get_inputs()]
        feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        try:
            return self.session.run(None, feed)[0]
        except Exception as error:  # onnxruntime has no common type for its errors
            raise ExportError(
                f"ONNX Runtime cannot run the file on {tuple(inputs[0].shape)}: {error}"
            ) from error


def compare(model: nn.Module, onnx_model: OnnxModel, inputs: Sequence[Tensor]) -> Comparison:
    """Runs PyTorch and ONNX Runtime on the same inputs."""
    with torch.no_grad():
        expected = model(*inputs).numpy()
    got = onnx_model(*inputs)
    if got.shape != expected.shape:
        raise ExportError(f"the file returns {got.shape} where PyTorch returns {expected.shape}")
    error = float(np.abs(got - expected).max())
    return Comparison(tuple(inputs[0].shape), error, float(np.abs(expected).max()))


def check_shapes(
    height: int, width: int, batch: int, dynamic: bool, multiple: int
) -> list[tuple[int, int, int]]:
    """(N, H, W) to compare at: the exported one and, if axes are open, others.

    The others are larger and not square, of another batch, and for models without a condition on
    the size odd, so that every rounding of a stride is met.
    """
    shapes = [(batch, height, width)]
    if dynamic:
        odd = 0 if multiple > 1 else 1
        step = multiple if multiple > 1 else 32
        shapes += [(batch + 1, height + step + odd, width), (1, height, width + 2 * step + odd)]
    return shapes
