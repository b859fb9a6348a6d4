"""Models as ONNX files: torch.onnx's exporters, DCNv3's node, and what is done to the graph after.

For any model whose layers come from ops_dcnv3, not only for classifiers. Compare the file with the
model afterwards (`onnx_check.py`): exporters freeze what depends on the example's size in ways that
nothing else shows.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import onnx_dcnv3
from .write_file import DISK_FULL, replacing

logger = logging.getLogger(__name__)

OPSET = 18
DYNAMO_OPSET = 18  # oldest that the dynamo exporter writes
EXPORTERS = ("auto", "dynamo", "torchscript")
SINGLE_FILE_LIMIT = 1_900_000_000  # bytes of weights; a protobuf file ends at 2 GiB
NOISY = (
    "torch.onnx", "torch._guards", "torch.export", "torch.utils.cpp_extension", "onnxscript",
    "onnx_ir",
)  # fmt: skip
PACKAGES = "pip install -r requirements/tools.txt"

# An open axis: its name in the file, and what its size is a multiple of (1 for any size).
Axis = tuple[str, int]


class ExportError(RuntimeError):
    """A model cannot be exported, or its file computes something else; the message says why."""


def need(*packages: str) -> None:
    """Raises ExportError with the pip line unless all packages are installed."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ExportError(f"the package {package} is missing ({error}): {PACKAGES}") from error


def opsets(exporter: str = "auto") -> range:
    """The opset versions that can be written with the installed package onnx."""
    import onnx.defs

    oldest = DYNAMO_OPSET if exporter == "dynamo" else onnx_dcnv3.OLDEST_OPSET
    return range(oldest, onnx.defs.onnx_opset_version() + 1)


def is_dynamo_new_enough() -> bool:
    """Whether torch.onnx takes translations of custom operators (torch 2.6 and newer)."""
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    return found is not None and (int(found[1]), int(found[2])) >= (2, 6)


def half_precision(model: nn.Module) -> nn.Module:
    """A copy of a model that computes in float16 but takes and returns float32."""
    return _HalfPrecision(copy.deepcopy(model).half()).eval()


class _HalfPrecision(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Any:
        outputs = self.model(*(value.half() for value in inputs))
        if isinstance(outputs, Tensor):
            return outputs.float()
        return tuple(value.float() for value in outputs)


def export_onnx(
    model: nn.Module,
    inputs: Sequence[Tensor],
    path: str | Path,
    *,
    input_names: Sequence[str] = ("input",),
    output_names: Sequence[str] = ("output",),
    axes: Sequence[dict[int, Axis]] | None = None,
    opset: int = OPSET,
    exporter: str = "auto",
    inline: bool = False,
    simplify: bool = False,
    verify: Callable[[Path], None] | None = None,
) -> str:
    """Writes a model as ONNX, with one node `mmdeploy::TRTDCNv3` for each call of the operator.

    Weights above 1.9 GB go into a second file, `path` with ``.data`` added. Nothing is left behind
    if anything fails, and a file that was at `path` stays.

    Args:
        model: in evaluation mode, on the CPU.
        inputs: the tensors that it is called with. Where axes are open their sizes should be 2 or
            more: the exporters take a size of 1 for a constant.
        path: file to write; it is replaced when the new one is whole.
        input_names, output_names: names in the file.
        axes: for each input the axes that are left open.
        opset: version of the standard operators, 16 or newer.
        exporter: 'dynamo' (torch.export, opset 18 and newer), 'torchscript' (torch.jit.trace), or
            'auto': the first, and the second where it cannot be used or fails.
        inline: standard operators in place of the node.
        simplify: compute what does not depend on the inputs (constant folding).
        verify: called with the finished file before it takes its place; what it raises is raised.

    Returns:
        The exporter that wrote the file.

    Raises:
        ExportError: a package is missing, the opset is unknown, or the model cannot be captured.
        OSError: `path` cannot be written.
        Exception: whatever the model raises for these inputs.
    """
    need("onnx", "onnxscript", "onnx_ir")
    if exporter not in EXPORTERS:
        raise ExportError(f"unknown exporter {exporter!r}: one of {', '.join(EXPORTERS)}")
    known = opsets(exporter)
    if opset not in known:
        raise ExportError(
            f"opset {opset} cannot be written: choose {known[0]} to {known[-1]} "
            f"(exporter {exporter}, torch {torch.__version__})"
        )
    path = Path(path)
    with (
        replacing(path) as temporary,
        tempfile.TemporaryDirectory(prefix=".onnx-", dir=path.parent) as folder,
        onnx_dcnv3.as_operator(),
        torch.no_grad(),
    ):
        model(*inputs)  # errors of the model itself come first, and in its own words
        graph, used = _capture(
            model, inputs, input_names, output_names, axes, opset, exporter, Path(folder)
        )
        with quiet():
            _finish(graph, inline, simplify)
        staged = Path(folder) / path.name
        save(graph, staged, one_file=_bytes_of_weights(model) <= SINGLE_FILE_LIMIT)
        if verify is not None:
            verify(staged)
        weights = staged.with_name(f"{staged.name}.data")
        if weights.exists():
            os.replace(weights, path.with_name(weights.name))
        os.replace(staged, temporary)
    return used


def save(model: Any, path: Path, *, one_file: bool) -> None:
    """Writes an `onnx_ir.Model`, its weights beside it in ``<path>.data`` unless `one_file`."""
    import onnx_ir

    onnx_ir.save(model, path, external_data=None if one_file else f"{path.name}.data")


def _finish(model: Any, inline: bool, simplify: bool) -> None:
    """Everything after the capture, on an `onnx_ir.Model`."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(model)  # paths of source files
    onnx_dcnv3.add_function(model)
    if inline:
        onnx_dcnv3.inline_function(model)
    if simplify:
        from onnxscript import optimizer

        optimizer.optimize_ir(model, inline=False)
    model.producer_name, model.producer_version = "internimage", None
    model.graph.name = "internimage"


def _capture(
    model: nn.Module,
    inputs: Sequence[Tensor],
    input_names: Sequence[str],
    output_names: Sequence[str],
    axes: Sequence[dict[int, Axis]] | None,
    opset: int,
    exporter: str,
    folder: Path,
) -> tuple[Any, str]:
    """The graph as an `onnx_ir.Model`, and the exporter that made it.

    Raises:
        ExportError: what the last exporter complained of first.
    """
    names = {"input_names": list(input_names), "output_names": list(output_names)}
    order = ["dynamo", "torchscript"] if exporter == "auto" else [exporter]
    if exporter == "auto" and (opset < DYNAMO_OPSET or not is_dynamo_new_enough()):
        order = ["torchscript"]
    if exporter == "dynamo" and not is_dynamo_new_enough():
        raise ExportError(f"the dynamo exporter needs torch 2.6, this is {torch.__version__}")
    for name in order:
        try:
            with quiet():
                if name == "dynamo":
                    return _by_dynamo(model, inputs, axes, opset, names), name
                return _by_torchscript(model, inputs, axes, opset, names, folder), name
        except Exception as error:  # the exporters' errors have no common type
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            reason = first_reason(error)
            if name == order[-1]:
                raise ExportError(
                    f"torch.onnx cannot export this model (exporter {name}: {reason})"
                ) from error
            logger.warning("the dynamo exporter failed (%s), trying the TorchScript one", reason)
    raise AssertionError("no exporter")


def first_reason(error: BaseException) -> str:
    """The first line of the error that all others follow from."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def dynamic_shapes(model: nn.Module, axes: Sequence[dict[int, Axis]] | None) -> Any:
    """The open axes in torch.export's form."""
    if axes is None:
        return None
    dims: dict[Axis, Any] = {}
    for axis in {axis for open_axes in axes for axis in open_axes.values()}:
        name, multiple = axis
        dim = torch.export.Dim(name if multiple == 1 else f"{name}_steps", min=1)
        dims[axis] = dim if multiple == 1 else multiple * dim
    shapes = tuple({key: dims[axis] for key, axis in entry.items()} for entry in axes)
    parameters = inspect.signature(model.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        shapes = (shapes,)  # forward(*inputs): one argument that holds all tensors
    return shapes


def _by_dynamo(
    model: nn.Module,
    inputs: Sequence[Tensor],
    axes: Sequence[dict[int, Axis]] | None,
    opset: int,
    names: dict[str, list[str]],
) -> Any:
    program = torch.onnx.export(
        model,
        tuple(inputs),
        dynamo=True,
        opset_version=opset,
        dynamic_shapes=dynamic_shapes(model, axes),
        custom_translation_table=onnx_dcnv3.translation_table(),
        verbose=False,
        **names,
    )
    return program.model


def _by_torchscript(
    model: nn.Module,
    inputs: Sequence[Tensor],
    axes: Sequence[dict[int, Axis]] | None,
    opset: int,
    names: dict[str, list[str]],
    folder: Path,
) -> Any:
    import onnx_ir

    path = folder / "torchscript" / "traced.onnx"
    path.parent.mkdir()
    pairs = zip(names["input_names"], axes or ())
    dynamic = {name: {key: axis[0] for key, axis in entry.items()} for name, entry in pairs}
    modern = {"dynamo": False} if is_dynamo_new_enough() else {}
    with onnx_dcnv3.torchscript_symbolics(opset):
        torch.onnx.export(
            model,
            tuple(inputs),
            str(path),
            opset_version=opset,
            dynamic_axes=dynamic or None,
            **names,
            **modern,
        )
    return onnx_ir.load(path)


def _bytes_of_weights(model: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' own log lines and warnings, which name their internals."""
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
