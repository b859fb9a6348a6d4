"""Models as torch.export programs (.pt2) and as AOTInductor packages, for use without their code.

For any model whose layers come from ops_dcnv3. A program is a graph that PyTorch reads on any
machine; a package is that graph compiled by a C++ compiler for the processor of this one. Both call
the operator of ops_dcnv3, which has to be installed where they run.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .onnx_export import Axis, ExportError, dynamic_shapes, first_reason, quiet
from .write_file import replacing

COMPILERS = ("c++", "g++", "clang++")
# Inductor would lay out plain convolutions for itself; the layers around them want channels last.
INDUCTOR = {"layout_optimization": False}


def export_program(
    model: nn.Module,
    inputs: Sequence[Tensor],
    axes: Sequence[dict[int, Axis]] | None = None,
) -> Any:
    """The model as a `torch.export.ExportedProgram`.

    Sizes that the captured graph does not hold for are left out of an open axis: InternImage has
    five halvings, and programs take sides of 33 and more (one row in the last map is a special case
    of PyTorch's convolution).

    Args:
        model: in evaluation mode, on the CPU.
        inputs: the tensors that it is called with; where axes are open, of sizes of 2 or more.
        axes: for each input the axes that are left open, as for `onnx_export.export_onnx`.

    Raises:
        ExportError: torch is older than 2.7, or the model cannot be captured.
        Exception: whatever the model raises for these inputs.
    """
    if not hasattr(torch.compiler, "is_exporting"):
        raise ExportError(f"torch.export programs need torch 2.7, this is {torch.__version__}")
    with torch.no_grad(), quiet():
        model(*inputs)  # errors of the model itself come first, and in its own words
        shapes = dynamic_shapes(model, axes)
        try:
            return _capture(model, inputs, shapes)
        except Exception as error:  # torch.export's errors have no common type
            reason = first_reason(error)
            raise ExportError(f"torch.export cannot capture this model ({reason})") from error


def _capture(model: nn.Module, inputs: Sequence[Tensor], shapes: Any) -> Any:
    try:
        return torch.export.export(model, tuple(inputs), dynamic_shapes=shapes)
    except torch._dynamo.exc.UserError as error:  # a range that is narrower than was asked for
        refine = torch.export.dynamic_shapes.refine_dynamic_shapes_from_suggested_fixes
        shapes = refine(error.msg, shapes)
    return torch.export.export(model, tuple(inputs), dynamic_shapes=shapes)


def smallest_sizes(program: Any, axes: Sequence[dict[int, Axis]] | None) -> dict[str, int]:
    """{name of an open axis: the smallest size that a program takes}."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    sizes = {}
    for value, entry in zip(program.graph_signature.user_inputs, axes or ()):
        for axis, (name, _) in entry.items():
            size = values[value].shape[axis].node
            bounds = size.shape_env.bound_sympy(size.expr)
            if size.expr.is_Symbol:  # what it may be when it runs, not while it is captured
                bounds = program.range_constraints[size.expr]
            sizes[name] = int(bounds.lower)
    return sizes


def write_program(
    program: Any, path: str | Path, verify: Callable[[Callable[..., np.ndarray]], None] | None
) -> None:
    """Writes a program as ``.pt2`` (`torch.export.save`).

    Args:
        program: an `ExportedProgram`.
        path: file to write; it is replaced when the new one is whole and verified.
        verify: called with the program read back from the file; what it raises is raised.
            None: no look at it.

    Raises:
        OSError: `path` cannot be written.
    """
    with replacing(path) as temporary, quiet():
        file = io.BytesIO()  # to a full disk PyTorch's own writer ends the process
        torch.export.save(program, file)
        temporary.write_bytes(file.getbuffer())
        if verify is not None:
            verify(Program(temporary))


def write_package(
    program: Any, path: str | Path, verify: Callable[[Callable[..., np.ndarray]], None] | None
) -> None:
    """Compiles a program for this machine's processor and writes it (AOTInductor).

    Args:
        program: an `ExportedProgram`.
        path: file to write, named ``.pt2``; replaced when the new one is whole and verified.
        verify: called with the package read back from the file; what it raises is raised.
            None: no look at it.

    Raises:
        ExportError: there is no C++ compiler, or it fails.
        OSError: `path` cannot be written.
    """
    if not any(map(shutil.which, COMPILERS)):
        raise ExportError(f"AOTInductor needs a C++ compiler, one of {', '.join(COMPILERS)}")
    with replacing(path) as temporary, quiet():
        file = io.BytesIO()
        try:
            torch._inductor.aoti_compile_and_package(
                program, package_path=file, inductor_configs=INDUCTOR
            )
        except Exception as error:  # Inductor's errors have no common type
            raise ExportError(f"AOTInductor failed ({first_reason(error)})") from error
        temporary.write_bytes(file.getbuffer())
        if verify is not None:
            verify(Package(temporary))


class Program:
    """A ``.pt2`` file of `write_program`.

    Args:
        path: the file.

    Raises:
        ExportError: it does not exist or is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.module = _read(path, lambda: torch.export.load(path).module())

    def __call__(self, *inputs: Tensor) -> np.ndarray:
        """The first output.

        Raises:
            ExportError: it cannot run on inputs of these sizes.
        """
        return _run(self.module, inputs)


class Package:
    """A file of `write_package`; arguments and errors as for `Program`."""

    def __init__(self, path: str | Path) -> None:
        self.module = _read(path, lambda: torch._inductor.aoti_load_package(str(path)))

    def __call__(self, *inputs: Tensor) -> np.ndarray:
        """The first output."""
        return _run(self.module, inputs)


def _read(path: str | Path, load: Callable[[], Any]) -> Any:
    import ops_dcnv3  # noqa: F401 - registers the operator that the file calls

    if not Path(path).is_file():
        raise ExportError(f"{path} does not exist")
    try:
        with quiet():
            return load()
    except Exception as error:  # zipfile's, json's, torch's
        raise ExportError(f"{path} cannot be read ({first_reason(error)})") from error


def _run(module: Callable[..., Any], inputs: Sequence[Tensor]) -> np.ndarray:
    try:
        with torch.no_grad():
            output = module(*inputs)
    except (AssertionError, RuntimeError) as error:
        shape = tuple(inputs[0].shape)
        raise ExportError(f"the file cannot run on {shape}: {first_reason(error)}") from error
    return (output if isinstance(output, Tensor) else output[0]).numpy()
