"""Builds ops_dcnv3: the Python package, and the extension `DCNv3` where a compiler is at hand.

Nothing here needs a GPU, and a missing compiler or PyTorch only means that the package is installed
without compiled kernels; the reason is recorded and shown by `python -m ops_dcnv3`.

    OPS_DCNV3_CUDA=1   build the CUDA kernels even without a visible GPU; failing is then an error
    OPS_DCNV3_CUDA=0   never build them
    TORCH_CUDA_ARCH_LIST, MAX_JOBS, CXX   as for every PyTorch extension

The CPU kernels are compiled for several instruction sets, and the best one is taken where they run;
there, OPS_DCNV3_CPU=avx512, avx2 or portable forces one.
"""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
ABI_VERSION = 2  # the same number stands in functions/backends.py
# GPU architectures of a build without a GPU, by the CUDA version that introduced them. Newer GPUs
# run the last one's intermediate code (PTX), which the driver compiles.
ARCHITECTURES = {"8.0": (11, 0), "8.6": (11, 1), "8.9": (11, 8), "9.0": (11, 8), "10.0": (12, 8)}


def say(message: str) -> None:
    """One line that also reaches the terminal through pip's log."""
    print(f"ops_dcnv3: {message}", file=sys.stderr, flush=True)


def import_torch():
    """PyTorch of the environment that is installed into, also from inside an isolated build."""
    try:
        import torch

        return torch
    except ImportError:
        pass
    candidates = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if site.ENABLE_USER_SITE:
        candidates.append(site.getusersitepackages())
    sys.path.extend(path for path in dict.fromkeys(candidates) if os.path.isdir(path))
    try:
        import torch

        return torch
    except ImportError:
        return None


def compiler() -> str | None:
    """The C++ compiler that a build would call, or None."""
    wanted = os.environ.get("CXX", "").split()
    return shutil.which(wanted[0]) if wanted else shutil.which("c++") or shutil.which("g++")


def find_cuda() -> bool:
    """Whether a CUDA toolkit with nvcc and headers is there; tells PyTorch where."""
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    if nvcc is not None:
        candidates.insert(2, str(Path(nvcc).resolve().parent.parent))
    for home in filter(None, candidates):
        if shutil.which("nvcc", path=f"{home}/bin") and Path(home, "include/cuda.h").exists():
            os.environ["CUDA_HOME"] = home
            return True
    return False


def default_architectures(torch) -> str:
    """What both nvcc and PyTorch know, as in TORCH_CUDA_ARCH_LIST."""
    nvcc = str(Path(os.environ["CUDA_HOME"], "bin", "nvcc"))
    answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", answer)
    versions = [tuple(map(int, torch.version.cuda.split(".")[:2]))]
    if release is not None:
        versions.append((int(release[1]), int(release[2])))
    names = [name for name, since in ARCHITECTURES.items() if since <= min(versions)]
    return ";".join(names) + "+PTX"


def wants_cuda(torch) -> bool:
    """Whether to build the CUDA kernels; raises when they are demanded and cannot be built."""
    choice = os.environ.get("OPS_DCNV3_CUDA", "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"ops_dcnv3: OPS_DCNV3_CUDA must be 0 or 1, got {choice!r}")
    if choice == "0":
        return False
    has_nvcc = find_cuda()
    if choice == "1":
        if torch.version.cuda is None:
            raise SystemExit(
                f"ops_dcnv3: OPS_DCNV3_CUDA=1, but torch {torch.__version__} is a build without "
                "CUDA; install a CUDA build of PyTorch first"
            )
        if not has_nvcc:
            raise SystemExit(
                "ops_dcnv3: OPS_DCNV3_CUDA=1, but nvcc was not found; install the CUDA "
                f"{torch.version.cuda} toolkit and set CUDA_HOME to its folder "
                f"(now {os.environ.get('CUDA_HOME')})"
            )
        if not torch.cuda.is_available():
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_architectures(torch))
        return True
    if not torch.cuda.is_available() or torch.version.cuda is None:  # a ROCm build has no CUDA
        return False
    if not has_nvcc:
        say("a GPU but no nvcc: the CUDA kernels are not built")
    return has_nvcc


def extension(torch, with_cuda: bool):
    """The extension module DCNv3."""
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    macros = [("DCNV3_ABI_VERSION", str(ABI_VERSION))]
    arguments = {"cxx": ["-O3", "-g0", "-fvisibility=hidden"]}
    sources = ["csrc/module.cpp", "csrc/dcnv3_check.cpp", "csrc/dcnv3_cpu.cpp"]
    # One source per instruction set; which one runs is decided where it runs.
    sources += [f"csrc/dcnv3_cpu_{name}.cpp" for name in ("exact", "portable", "avx2", "avx512")]
    if sys.platform == "linux":
        # at::parallel_for is serial without it; the symbols come from the OpenMP that torch loads
        arguments["cxx"].append("-fopenmp")
    if sys.platform != "win32":
        # sums are fused where the source says so, hence in the same way in every copy of a loop
        arguments["cxx"].append("-ffp-contract=off")
    else:
        arguments["cxx"] = ["/O2", "/openmp"]
    if with_cuda:
        sources += ["csrc/dcnv3_cuda.cpp", "csrc/dcnv3_cuda_kernels.cu"]
        arguments["nvcc"] = ["-O3", "--threads", "2"]  # two architectures at a time
        architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";")
        if not architectures:
            devices = range(torch.cuda.device_count())
            found = {torch.cuda.get_device_capability(device) for device in devices}
            architectures = ";".join(f"{major}.{minor}" for major, minor in sorted(found))
        macros.append(("DCNV3_CUDA_ARCHITECTURES", f'"{architectures}"'))
    kind = CUDAExtension if with_cuda else CppExtension
    return kind("DCNv3", sources, define_macros=macros, extra_compile_args=arguments)


def plan() -> tuple[list, type[build_ext], str]:
    """The extension modules, the command that builds them, and why there are none."""
    torch = import_torch()
    demanded = os.environ.get("OPS_DCNV3_CUDA") == "1"
    problem = ""
    if torch is None:
        problem = "PyTorch was not installed at build time"
    elif compiler() is None:
        problem = f"no C++ compiler was found (CXX={os.environ.get('CXX') or 'c++, g++'})"
    if problem:
        if demanded:
            raise SystemExit(f"ops_dcnv3: OPS_DCNV3_CUDA=1, but {problem}")
        return [], build_ext, problem
    with_cuda = wants_cuda(torch)  # before cpp_extension, which reads CUDA_HOME on import
    from torch.utils.cpp_extension import BuildExtension

    return [extension(torch, with_cuda)], BuildExtension, ""


EXTENSIONS, BUILD_COMMAND, REASON = plan()


def install_stand_in(folder: str, reason: str) -> None:
    """Writes a plain-PyTorch module DCNv3 that knows why nothing was compiled."""
    say(f"installed without compiled kernels, plain PyTorch will run: {reason}")
    template = (HERE / "compat" / "DCNv3.py").read_text()
    text = template.replace("@REASON@", " ".join(reason.replace('"', "'").split()))
    Path(folder, "DCNv3.py").write_text(text)


class BuildPython(build_py):
    """The Python part, with the stand-in when it is known beforehand that nothing compiles."""

    def run(self) -> None:
        # pip builds in the source folder, and everything found in here would be installed: not what
        # an earlier build left, such as a compiled module when nothing compiles now.
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        if REASON:
            install_stand_in(self.build_lib, REASON)

    def find_package_modules(self, package: str, package_dir: str) -> list:
        modules = super().find_package_modules(package, package_dir)
        return [module for module in modules if module[1] != "setup"]  # this file


class BuildOrExplain(BUILD_COMMAND):
    """Compiles the extension; a failure leaves the stand-in, unless CUDA was demanded."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            if os.environ.get("OPS_DCNV3_CUDA") == "1":
                raise
            self.extensions = []
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            install_stand_in(
                self.build_lib, f"compiling failed ({first_line}); pip install -v shows the log"
            )


setup(
    ext_modules=EXTENSIONS,
    cmdclass={"build_py": BuildPython, "build_ext": BuildOrExplain},
)
