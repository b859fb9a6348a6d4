"""Libraries that the tests share, each built once: the launcher and the plugin on an emulated GPU,
the program that drives the plugin, and the real thing where nvcc and TensorRT's headers are.

TensorRT's headers are looked for in TENSORRT_INCLUDE_DIR, in .third_party/tensorrt/*/include of the
repository (which git ignores) and in /usr/include. Without them the tests of the shell skip.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from harness import Harness

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PLUGIN = HERE.parent / "modulated_deform_conv_v3"
CSRC = ROOT / "ops_dcnv3" / "csrc"


def _header_folders() -> list[Path]:
    named = os.environ.get("TENSORRT_INCLUDE_DIR")
    folders = [Path(named)] if named else []
    folders += sorted((ROOT / ".third_party" / "tensorrt").glob("*/include"))
    folders += [Path("/usr/include/x86_64-linux-gnu"), Path("/usr/include")]
    return [folder for folder in folders if (folder / "NvInferRuntime.h").exists()]


CUDA_HEADERS = Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda") / "include"
HEADERS = _header_folders()
NO_HEADERS = "needs TensorRT's headers: set TENSORRT_INCLUDE_DIR"
if not (CUDA_HEADERS / "cuda_runtime_api.h").exists():  # TensorRT's include them
    HEADERS, NO_HEADERS = [], f"needs CUDA's headers, none in {CUDA_HEADERS}: set CUDA_HOME"
needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
# Without headers one test stays, to say why it skips.
each_version = pytest.mark.parametrize(
    "headers",
    HEADERS or [pytest.param(None, marks=pytest.mark.skip(reason=NO_HEADERS))],
    ids=lambda folder: folder.parent.name if folder else "no headers",
)


def _gxx(output: Path, *arguments: str | Path) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC"]
    subprocess.run(["g++", *flags, *arguments, "-o", output], check=True)
    return output


@pytest.fixture(scope="session")
def builds(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("builds")


@pytest.fixture(scope="session")
def launcher_library(builds) -> Path:
    """The launcher's source on the CPU, with the emulation of the operator's tests."""
    # _FORTIFY_SOURCE, which some systems switch on, forbids jumps between the fibers' stacks.
    quiet = ["-U_FORTIFY_SOURCE", "-Wno-attributes", "-Wno-unknown-pragmas"]
    folders = ["-isystem", Path(torch.__file__).parent / "include", f"-I{HERE / 'emulated'}"]
    source = HERE / "launcher_on_cpu.cpp"
    output = builds / "liblauncher.so"
    return _gxx(output, *quiet, "-shared", *folders, f"-I{CSRC}", source)


@pytest.fixture(scope="session")
def emulated_plugin(builds, launcher_library):
    """Builds the plugin's shell for one version of the headers, on the emulated launcher."""
    built: dict[Path, Path] = {}

    def build(headers: Path) -> Path:
        if headers not in built:
            built[headers] = _gxx(
                builds / f"libplugin{len(built)}.so",
                *("-shared", "-isystem", headers, "-isystem", CUDA_HEADERS),
                *(PLUGIN / "trt_dcnv3.cpp", launcher_library, f"-Wl,-rpath,{builds}"),
            )
        return built[headers]

    return build


@pytest.fixture(scope="session")
def harness_of(builds):
    """Builds the program that drives plugins, for one version of the headers."""
    built: dict[Path, Path] = {}

    def build(headers: Path) -> Path:
        if headers not in built:
            built[headers] = _gxx(
                builds / f"harness{len(built)}",
                *("-isystem", headers, "-isystem", CUDA_HEADERS),
                *(HERE / "plugin_harness.cpp", "-ldl"),
            )
        return built[headers]

    return build


@pytest.fixture
def drive(harness_of, emulated_plugin):
    """Runs commands on the emulated plugin."""

    def start(headers: Path) -> Harness:
        return Harness(harness_of(headers), emulated_plugin(headers))

    return start


@pytest.fixture(scope="session")
def cuda_build(builds) -> Path:
    """Folder of the plugin and its harness as CMake and nvcc build them (newest headers)."""
    for tool in ("cmake", "nvcc"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    if not HEADERS:
        pytest.skip(NO_HEADERS)
    folder = builds / "cuda"
    subprocess.run(
        [
            *("cmake", "-S", PLUGIN, "-B", folder, "-DTRT_DCNV3_HARNESS=ON"),
            *(f"-DTENSORRT_INCLUDE_DIR={HEADERS[-1]}", "-DCMAKE_CUDA_ARCHITECTURES=80-real;90"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    subprocess.run(["cmake", "--build", folder], check=True, stdout=subprocess.DEVNULL)
    return folder
