"""Building the plugin, and the real library: TensorRT's registry, and a GPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import HEADERS, NO_HEADERS, PLUGIN
from harness import TYPES, Harness, check, create, expected, geometry, random_arguments

HERE = Path(__file__).parent
needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")


def configure(folder: Path, *options: str) -> str:
    """What CMake says when it stops, in one line."""
    command = ["cmake", "-S", PLUGIN, "-B", folder, *options]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    return " ".join(result.stderr.split())


@needs_cmake
def test_headers_are_missing(tmp_path):
    said = configure(tmp_path / "build", f"-DTENSORRT_INCLUDE_DIR={tmp_path}")
    assert f"NvInferVersion.h are not in TENSORRT_INCLUDE_DIR='{tmp_path}'" in said
    assert "https://github.com/NVIDIA/TensorRT" in said


@needs_cmake
def test_headers_are_too_old(tmp_path):
    (tmp_path / "NvInferRuntime.h").touch()
    version = "#define NV_TENSORRT_MAJOR 8 //!< major\n#define NV_TENSORRT_MINOR 6 //!< minor\n"
    (tmp_path / "NvInferVersion.h").write_text(version)
    said = configure(tmp_path / "build", f"-DTENSORRT_INCLUDE_DIR={tmp_path}")
    assert "holds TensorRT 8.6; the plugin needs 10 or newer" in said


@needs_cmake
@pytest.mark.skipif(not HEADERS, reason=NO_HEADERS)
def test_operator_is_missing(tmp_path):
    said = configure(
        tmp_path / "build",
        *(f"-DTENSORRT_INCLUDE_DIR={HEADERS[0]}", f"-DDCNV3_SOURCE_DIR={tmp_path}"),
    )
    assert f"dcnv3_cuda_dispatch.cuh is not in DCNV3_SOURCE_DIR='{tmp_path}'" in said


def test_library_needs_nothing_of_tensorrt(cuda_build):
    """It loads without libnvinfer, and exports what TensorRT and ctypes look for, no more."""
    library = cuda_build / "libtrt_dcnv3.so"
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True)
    assert "nvinfer" not in dynamic.stdout
    assert "cudart" not in dynamic.stdout
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True
    )
    functions = {line.split()[2] for line in symbols.stdout.splitlines() if line.split()[1] == "T"}
    assert functions == {"getCreators", "setLoggerFinder", "trt_dcnv3_forward", "trt_dcnv3_error"}


def test_library_without_a_gpu(cuda_build):
    """All that the emulated plugin's tests do before enqueue, once."""
    harness = Harness(cuda_build / "plugin_harness", cuda_build / "libtrt_dcnv3.so")
    shape = geometry(stride_h=2, remove_center=True)
    answers = harness(
        create(shape), "recreate", "clone", "attach", "fields", "shapes ?1 ?7 ?8 8", "formats"
    )
    assert answers[:4] == ["ok"] * 4
    assert "stride_h=2 " in answers[4] and "remove_center=1 " in answers[4]
    assert answers[5] == "?1 ?4 ?8 8"
    assert answers[6].count(":0") == 12


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("group_channels", [3, 16])
def test_enqueue_on_a_gpu(cuda_build, tmp_path, dtype, group_channels):
    harness = Harness(cuda_build / "plugin_harness", cuda_build / "libtrt_dcnv3.so")
    for changes in ({}, {"stride_h": 2, "stride_w": 2}, {"remove_center": True}):
        shape = geometry(group_channels=group_channels, offset_scale=2.0, **changes)
        tensors = random_arguments(shape, 2, 29, 34, dtype)
        check(harness.enqueue(shape, tensors, tmp_path), expected(shape, tensors))


def python_with_tensorrt() -> str:
    """A Python whose TensorRT (full or lean) has a registry of plugins; skips if there is none."""
    python = os.environ.get("TENSORRT_PYTHON", sys.executable)
    code = "import importlib.util as u, sys; sys.exit(not any(map(u.find_spec, sys.argv[1:])))"
    packages = ("tensorrt_bindings", "tensorrt_lean")
    # not in this folder's parent, which is called tensorrt
    if subprocess.run([python, "-c", code, *packages], cwd=HERE).returncode != 0:
        pytest.skip(
            f"needs TensorRT 10 or 11 in {python}: pip install tensorrt-lean-cu13 "
            "(or name another Python in TENSORRT_PYTHON)"
        )
    return python


def test_registry(cuda_build):
    """TensorRT's own registry loads the library and makes plugins; in a process of its own."""
    result = subprocess.run(
        [python_with_tensorrt(), HERE / "registry_check.py", cuda_build / "libtrt_dcnv3.so"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts.pop("tensorrt").split(".")[0] in ("10", "11")
    assert facts == {
        "creator": ["TRTDCNv3", "1", ""],
        "fields": 13,
        "core": ["TRTDCNv3", "1", ""],
        "build": [1, "3_3_2_1_1_1_1_1_2_8_1_2"],
        "capabilities": ["CORE", "BUILD", "RUNTIME"],
        "refused": True,
        "again": None,
    }
    assert "TRTDCNv3: node: stride_h must be at least 1" in result.stderr
