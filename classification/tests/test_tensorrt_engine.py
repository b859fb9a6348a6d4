"""export.py --trt and models/tensorrt_engine.py, as far as they go without TensorRT and a GPU.

A stand-in records what TensorRT's Python API is asked for; engines themselves are not tested here.
"""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch

import export
from models import tensorrt_engine
from models.tensorrt_plugin import PluginError


class Registry:
    def get_creator(self, *plugin: str) -> object:
        return object()  # the plugin is there


def stand_in(version: str = "10.16.1", is_readable: bool = True, engine: bytes | None = b"engine"):
    """A package like TensorRT, and the list of what was asked of it."""
    asked: list[tuple] = []

    class Parser:
        num_errors = 2

        def __init__(self, network: object, log: object) -> None:
            pass

        def parse_from_file(self, path: str) -> bool:
            asked.append(("parse", path))
            return is_readable

        def get_error(self, index: int) -> str:
            return f"error {index}"

    def record(name: str, result: object = None):
        return lambda *args: (asked.append((name, *args)), result)[1]

    config = SimpleNamespace(
        set_memory_pool_limit=record("memory"), add_optimization_profile=record("add")
    )
    builder = SimpleNamespace(
        create_network=record("network", "network"),
        create_builder_config=lambda: config,
        create_optimization_profile=lambda: SimpleNamespace(set_shape=record("shape")),
        build_serialized_network=record("build", engine),
    )
    module = ModuleType("tensorrt")
    vars(module).update(
        __version__=version,
        get_plugin_registry=Registry,
        Logger=type("Logger", (), {"WARNING": 1, "__init__": lambda self, level: None}),
        Builder=lambda log: builder,
        OnnxParser=Parser,
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
    )
    return module, asked


@pytest.fixture(autouse=True)
def _no_tensorrt(monkeypatch):
    """Whatever is installed, there is no TensorRT, no mmdeploy and no GPU."""
    for name in ("tensorrt", "tensorrt_lean", "mmdeploy.backend.tensorrt"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_no_tensorrt(nano_yaml, tmp_path, monkeypatch, caplog):
    """One message, at once: nothing is exported for an engine that cannot be built."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "Export", None)
    assert export.main(["--onnx", "--trt", "--cfg", str(nano_yaml)]) == 1
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "TensorRT's Python package is not installed"
    ]
    assert not list(tmp_path.iterdir())


def test_mmdeploy_takes_this_repositorys_folder_for_tensorrt(tmp_path, monkeypatch):
    """The folder tensorrt/ is an empty package to it, so that its module cannot be imported."""
    folder = tmp_path / "mmdeploy" / "backend" / "tensorrt"
    folder.mkdir(parents=True)
    for package in (folder.parents[1], folder.parent):
        (package / "__init__.py").touch()
    (folder / "__init__.py").write_text("import math as tensorrt\n\ntensorrt.ICudaEngine\n")
    monkeypatch.syspath_prepend(tmp_path)
    with patch.dict(sys.modules):
        for name in [name for name in sys.modules if name.split(".")[0] == "mmdeploy"]:
            del sys.modules[name]
        with pytest.raises(PluginError, match="not installed: pip install tensorrt"):
            tensorrt_engine.choose_builder()


def test_choice_of_the_builder(monkeypatch):
    module, _ = stand_in()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(tensorrt_engine.EngineError, match="PyTorch sees none"):
        tensorrt_engine.choose_builder()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert tensorrt_engine.choose_builder() == "tensorrt"
    module.get_plugin_registry = lambda: SimpleNamespace(get_creator=lambda *plugin: None)
    monkeypatch.setenv("TRT_DCNV3_LIBRARY", "/no/such.so")
    with pytest.raises(PluginError, match="was not found.*/no/such.so"):
        tensorrt_engine.choose_builder()
    del module.Builder
    with pytest.raises(PluginError, match="only runs engines"):
        tensorrt_engine.choose_builder()
    module, _ = stand_in("8.6.1")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(PluginError, match="needs TensorRT 10 or newer, this is 8.6.1"):
        tensorrt_engine.choose_builder()
    monkeypatch.setitem(
        sys.modules, "mmdeploy.backend.tensorrt", SimpleNamespace(from_onnx=lambda: None)
    )
    assert tensorrt_engine.choose_builder() == "mmdeploy"


def test_building(tmp_path, monkeypatch):
    module, asked = stand_in()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    path, shapes = tmp_path / "made" / "x.engine", ((1, 3, 32, 32), (1, 3, 64, 64), (2, 3, 96, 96))
    tensorrt_engine.build_engine("x.onnx", path, {"input": shapes}, workspace=5)
    assert path.read_bytes() == b"engine"
    assert ("network", 2) in asked and ("parse", "x.onnx") in asked
    assert ("memory", "workspace", 5) in asked and ("shape", "input", *shapes) in asked
    assert [entry[0] for entry in asked][-2:] == ["add", "build"]

    for options, message in (
        ({"is_readable": False}, "cannot read x.onnx: error 0; error 1"),
        ({"engine": None}, "built no engine"),
    ):
        monkeypatch.setitem(sys.modules, "tensorrt", stand_in(**options)[0])
        with pytest.raises(tensorrt_engine.EngineError, match=message):
            tensorrt_engine.build_engine("x.onnx", path, {})
        assert path.read_bytes() == b"engine" and len(list(path.parent.iterdir())) == 1


def test_building_by_mmdeploy(tmp_path, monkeypatch):
    def from_onnx(model: str, prefix: str, shapes: dict, max_workspace_size: int) -> None:
        Path(f"{prefix}.engine").write_text(f"{model} {shapes} {max_workspace_size}")

    module = SimpleNamespace(from_onnx=from_onnx)
    monkeypatch.setitem(sys.modules, "mmdeploy.backend.tensorrt", module)
    path, profiles = tmp_path / "x.engine", {"input": ((1,), (2,), (3,))}
    tensorrt_engine.build_engine("x.onnx", path, profiles, builder="mmdeploy", workspace=5)
    shapes = {"input": {"min_shape": (1,), "opt_shape": (2,), "max_shape": (3,)}}
    assert path.read_text() == f"x.onnx {shapes} 5"
    module.from_onnx = None
    with pytest.raises(tensorrt_engine.EngineError, match="mmdeploy built no engine"):
        tensorrt_engine.build_engine("x.onnx", path, profiles, builder="mmdeploy")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.engine"]


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_program_compares_and_times(shift, trained, tmp_path, monkeypatch, capsys, caplog):
    """The model itself, or one that is wrong by `shift`, stands in for the engine."""
    monkeypatch.setattr(tensorrt_engine, "choose_builder", lambda: "mmdeploy")
    built: dict = {}

    def build_engine(onnx_path: Path, path: Path, profiles: dict, builder: str) -> None:
        built.update(profiles=profiles, builder=builder, onnx=onnx_path)
        path.write_bytes(b"engine")

    class Engine:
        def __init__(self, path: Path, builder: str) -> None:
            from models.onnx_check import OnnxModel

            self.runtime = OnnxModel(built["onnx"])

        def __call__(self, *inputs: torch.Tensor) -> np.ndarray:
            return self.runtime(*inputs) + shift

        run = __call__

    monkeypatch.setattr(tensorrt_engine, "build_engine", build_engine)
    monkeypatch.setattr(tensorrt_engine, "Engine", Engine)
    monkeypatch.setattr(tensorrt_engine, "latency", lambda run, inputs: 1.5)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: self)
    path = tmp_path / "nano.onnx"
    flags = ["--resume", str(trained / "ckpt_epoch_best.pth"), "--output", str(path)]
    flags += ["--dynamic", "--batch-size", "2", "--exporter", "torchscript"]
    assert export.main(["--trt", *flags]) == (1 if shift else 0)
    assert built["profiles"] == {"input": ((1, 3, 16, 16), (2, 3, 32, 32), (2, 3, 64, 64))}
    printed = capsys.readouterr().out
    assert "standard operators" in printed  # mmdeploy's TensorRT 8 has no plugin for the node
    assert ("2x3x32x32: DIFFERENT" if shift else "TensorRT, 2x3x32x32: same") in printed
    assert "TensorRT 1.50 ms, PyTorch 1.50 ms" in printed
    assert ("do not use it" in caplog.text) == bool(shift)
