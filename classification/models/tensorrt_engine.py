"""TensorRT engines from ONNX files: building, running, timing.

TensorRT 10 and newer through its Python API, with the plugin of tensorrt/modulated_deform_conv_v3.
TensorRT 8 through mmdeploy's `from_onnx`, which was written for it; that takes files without the
node (``export.py --inline``). Both need a GPU.

Networks are strongly typed: what a tensor's type is says the file, so float16 is a matter of the
export (``--fp16``), as TensorRT 11 wants it.
"""

from __future__ import annotations

import importlib
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .tensorrt_plugin import PluginError, import_tensorrt, load_plugin
from .write_file import replacing

logger = logging.getLogger(__name__)

WORKSPACE = 1 << 30  # bytes
# TensorRT computes float32 convolutions in TF32 (ten bits), as its default.
TOLERANCE = {torch.float32: 1e-2, torch.float16: 3e-2}

Shape = tuple[int, ...]
Profile = tuple[Shape, Shape, Shape]  # smallest, most frequent, largest


class EngineError(RuntimeError):
    """An engine cannot be built, loaded or run; the message says why."""


def choose_builder() -> str:
    """'tensorrt', or 'mmdeploy' where only that can build an engine.

    Call it before a long export: it fails at once where nothing can be built.

    Raises:
        EngineError: no GPU.
        PluginError: no TensorRT that can build engines, or no plugin.
    """
    try:
        trt = import_tensorrt()
    except PluginError:
        if _mmdeploy() is None:
            raise
        _need_gpu()
        return "mmdeploy"
    if not hasattr(trt, "Builder"):
        raise PluginError(
            f"{trt.__name__} only runs engines: building one needs the full TensorRT, "
            "pip install tensorrt"
        )
    _need_gpu()  # TensorRT ends the process without a driver
    load_plugin(tensorrt=trt)
    return "tensorrt"


def _need_gpu() -> None:
    if not torch.cuda.is_available():
        raise EngineError(
            "a TensorRT engine is built on the GPU that runs it, and PyTorch sees none"
        )


def _mmdeploy() -> ModuleType | None:
    """mmdeploy's module of TensorRT, if both are there."""
    try:
        module = importlib.import_module("mmdeploy.backend.tensorrt")
    except (ImportError, AttributeError):  # the second: tensorrt/ of this repository, an empty one
        return None
    return module if hasattr(module, "from_onnx") else None


def build_engine(
    onnx_path: str | Path,
    path: str | Path,
    profiles: Mapping[str, Profile],
    *,
    builder: str = "tensorrt",
    workspace: int = WORKSPACE,
) -> None:
    """Builds an engine and writes it.

    Args:
        onnx_path: the model; without TRTDCNv3 nodes for builder 'mmdeploy'.
        path: file to write; it is replaced when the engine is there.
        profiles: shapes of every input that has open axes.
        builder: what `choose_builder` says.
        workspace: memory that a layer may use, in bytes.

    Raises:
        EngineError: TensorRT cannot read the model or build the engine; the message has its words.
        OSError: `path` cannot be written.
    """
    with replacing(path) as temporary:
        if builder == "mmdeploy":
            _build_by_mmdeploy(onnx_path, temporary, profiles, workspace)
        else:
            temporary.write_bytes(_build(import_tensorrt(), onnx_path, profiles, workspace))


def _build(
    trt: Any, onnx_path: str | Path, profiles: Mapping[str, Profile], workspace: int
) -> bytes:
    log = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_path)):  # by path: weights may lie in a second file
        errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise EngineError(
            f"TensorRT {trt.__version__} cannot read {onnx_path}: {'; '.join(errors)}"
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    if profiles:
        profile = builder.create_optimization_profile()
        for name, (smallest, usual, largest) in profiles.items():
            profile.set_shape(name, smallest, usual, largest)
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise EngineError(f"TensorRT {trt.__version__} built no engine; its log above says why")
    return bytes(engine)


def _build_by_mmdeploy(
    onnx_path: str | Path, path: Path, profiles: Mapping[str, Profile], workspace: int
) -> None:
    module = _mmdeploy()
    if module is None:
        raise EngineError("mmdeploy's TensorRT backend is not installed")
    names = ("min_shape", "opt_shape", "max_shape")
    shapes = {name: dict(zip(names, profile)) for name, profile in profiles.items()}
    prefix = str(path.with_suffix(""))
    try:  # it asserts, and raises what TensorRT raises
        module.from_onnx(str(onnx_path), prefix, shapes, max_workspace_size=workspace)
    except Exception as error:
        raise EngineError(f"mmdeploy built no engine: {error}") from error
    written = Path(f"{prefix}.engine")
    if written != path:
        written.replace(path)


class Engine:
    """An engine on the current GPU; called as the model is, with tensors that are there.

    Args:
        path: the file.
        output: name of the output that a call returns.
        builder: as in `build_engine`.

    Raises:
        EngineError: no GPU, or TensorRT cannot load the file.
    """

    def __init__(self, path: str | Path, output: str = "output", builder: str = "tensorrt") -> None:
        _need_gpu()
        self.output = output
        if builder == "mmdeploy":
            module = importlib.import_module("mmdeploy.backend.tensorrt.wrapper")
            self.wrapper: Any = module.TRTWrapper(str(path), [output])
            return
        self.wrapper = None
        self.trt: Any = import_tensorrt()
        load_plugin(tensorrt=self.trt)
        self.runtime = self.trt.Runtime(self.trt.Logger(self.trt.Logger.WARNING))
        self.engine = self.runtime.deserialize_cuda_engine(Path(path).read_bytes())
        if self.engine is None:
            raise EngineError(
                f"TensorRT {self.trt.__version__} cannot load {path}: engines belong to the "
                "TensorRT version and the kind of GPU that they were built with"
            )
        self.context = self.engine.create_execution_context()

    def run(self, *inputs: Tensor) -> Tensor:
        """The output for inputs on the GPU, in the order of the engine's inputs."""
        if self.wrapper is not None:
            names = self.wrapper._input_names
            return self.wrapper(dict(zip(names, inputs, strict=True)))[self.output]
        engine, context = self.engine, self.context
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_input = self.trt.TensorIOMode.INPUT
        input_names = [name for name in names if engine.get_tensor_mode(name) == is_input]
        tensors = {
            name: value.contiguous() for name, value in zip(input_names, inputs, strict=True)
        }
        for name, value in tensors.items():
            if not context.set_input_shape(name, tuple(value.shape)):
                raise EngineError(f"{name} of {tuple(value.shape)} is outside the engine's shapes")
        for name in names:
            if name not in tensors:
                shape = tuple(context.get_tensor_shape(name))
                kind = np.empty(0, self.trt.nptype(engine.get_tensor_dtype(name)))
                dtype = torch.from_numpy(kind).dtype
                tensors[name] = torch.empty(shape, dtype=dtype, device="cuda")
            context.set_tensor_address(name, tensors[name].data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise EngineError("TensorRT could not run the engine; its log above says why")
        return tensors[self.output]

    def __call__(self, *inputs: Tensor) -> np.ndarray:
        """`run`, on the CPU."""
        return self.run(*inputs).float().cpu().numpy()


def latency(run: Callable[..., Any], inputs: Sequence[Tensor], runs: int = 100) -> float:
    """Median time of a call on the GPU in milliseconds, after ten calls that do not count."""
    for _ in range(10):
        run(*inputs)
    times = []
    for _ in range(runs):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(*inputs)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)
