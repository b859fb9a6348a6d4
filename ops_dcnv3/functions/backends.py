"""Which implementations exist in this process, and which one a call uses.

    cpp      compiled C++ kernel, CPU tensors
    cuda     compiled CUDA kernel, CUDA tensors
    triton   Triton kernel, compiled by its first call; CUDA tensors, and with TRITON_INTERPRET=1
             CPU tensors too
    pytorch  plain PyTorch (`reference.py`), any device

The compiled module is the top-level extension `DCNv3`. Nothing here fails when it is missing,
broken or built for another PyTorch: the reason is kept and the next backend is used.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import logging
import os
from types import ModuleType

import torch

logger = logging.getLogger(__name__)

ABI_VERSION = 2
ENVIRONMENT_VARIABLE = "OPS_DCNV3_BACKEND"
NAMES = ("cpp", "cuda", "triton", "pytorch")
TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
OLD_TORCH = not hasattr(torch.library, "register_autograd")  # before 2.4, which brought Triton 3
INSTALL_HINT = "pip install --force-reinstall --no-deps ./ops_dcnv3"


def _minor(version: str) -> list[str]:
    """'2.11.0+cu130' -> ['2', '11']: PyTorch's binary interface changes with the minor version."""
    return version.split("+")[0].split(".")[:2]


def _load_extension() -> tuple[ModuleType | None, str]:
    """The compiled module, or None with the reason in words."""
    try:
        module = importlib.import_module("DCNv3")
    except ModuleNotFoundError:
        return None, "the compiled module DCNv3 is not installed"
    except (ImportError, OSError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        return None, f"the compiled module DCNv3 does not load with torch {torch.__version__} " + (
            f"({first_line})"
        )
    if not hasattr(module, "compiled"):  # the original package's, or a folder of that name
        where = getattr(module, "__file__", None) or list(module.__path__)
        return None, f"the module DCNv3 that Python finds is another package's ({where})"
    if not module.compiled:
        return None, module.reason
    if module.abi_version != ABI_VERSION:
        return None, (
            f"the compiled module DCNv3 has interface version {module.abi_version}, "
            f"this package needs {ABI_VERSION}"
        )
    if _minor(module.torch_version) != _minor(torch.__version__):
        return None, (
            f"the compiled module DCNv3 was built with torch {module.torch_version}, "
            f"this is torch {torch.__version__}"
        )
    return module, ""


extension, unavailable_reason = _load_extension()
if extension is None and not os.environ.get(ENVIRONMENT_VARIABLE):
    logger.warning(
        "ops_dcnv3 runs in plain PyTorch on the CPU, many times slower: %s. To compile it: %s "
        "(%s=pytorch silences this)",
        unavailable_reason,
        INSTALL_HINT,
        ENVIRONMENT_VARIABLE,
    )


def is_triton_interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter: slow, on any device, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_problem() -> str:
    """Why Triton kernels cannot run here, or '' if they can. Triton is not imported by asking."""
    if not TRITON_INSTALLED:
        return "Triton is not installed (pip install triton)"
    if OLD_TORCH:
        return f"the kernels need Triton 3 and torch 2.4, this is torch {torch.__version__}"
    if not is_triton_interpreted() and not torch.cuda.is_available():
        return (
            "Triton needs a GPU, and none is visible (TRITON_INTERPRET=1 runs it without, slowly)"
        )
    return ""


def covers(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether kernels built for `architectures` run on a GPU of that compute capability.

    Args:
        architectures: as in TORCH_CUDA_ARCH_LIST, '8.0;9.0+PTX'. Binary code runs on later minor
            versions of its major version, PTX on every later GPU.
        capability: (major, minor) of the GPU.
    """
    for entry in filter(None, architectures.split(";")):
        number = entry.removesuffix("+PTX")
        built = tuple(int(part) for part in number.rstrip("af").split("."))
        if number[-1] in "af":  # 9.0a: code for this one architecture
            if built == capability:
                return True
        elif built <= capability and (built[0] == capability[0] or entry.endswith("+PTX")):
            return True
    return False


@functools.lru_cache
def _uncovered_gpu(architectures: str) -> str:
    """Which visible GPU kernels for `architectures` do not run on, or ''."""
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        capability = torch.cuda.get_device_capability(index)
        if not covers(architectures, capability):
            return (
                f"the installed DCNv3 was compiled for GPUs of compute capability {architectures}, "
                f"{torch.cuda.get_device_name(index)} has {capability[0]}.{capability[1]}"
            )
    return ""


def cuda_problem() -> str:
    """Why the compiled CUDA kernels cannot run in this process, or ''."""
    if extension is None:
        return unavailable_reason or "the compiled module DCNv3 is not there"
    if not extension.cuda_architectures:
        return "the installed DCNv3 was compiled without CUDA"
    return _uncovered_gpu(extension.cuda_architectures)


def has_kernel(backend: str) -> bool:
    """Whether `backend` ('cpp', 'cuda', 'triton' or 'pytorch') exists in this process."""
    if backend == "pytorch":
        return True
    if backend == "triton":
        return not triton_problem()
    return extension is not None if backend == "cpp" else not cuda_problem()


def available_backends() -> list[str]:
    """Names of the backends that exist in this process, fastest first."""
    return [name for name in ("cuda", "triton", "cpp", "pytorch") if has_kernel(name)]


def _refuse(backend: str, device_type: str) -> str | None:
    """Why `backend` cannot run on a device type, or None when it can."""
    if backend not in NAMES:
        return f"unknown backend {backend!r}; choose one of {', '.join(NAMES)}"
    if backend == "pytorch":
        return None
    wanted = "cpu" if backend == "cpp" else "cuda"
    anywhere = backend == "triton" and is_triton_interpreted()
    if device_type != wanted and not anywhere:
        return f"backend {backend!r} runs on {wanted} tensors, got a {device_type} tensor"
    if has_kernel(backend):
        return None
    if backend == "triton":
        return f"backend 'triton' is not there: {triton_problem()}"
    reason = cuda_problem() if backend == "cuda" else unavailable_reason
    return f"backend {backend!r} is not there: {reason}. To compile it: {INSTALL_HINT}"


def is_forced(backend: str | None) -> bool:
    """Whether an argument or the environment variable names the backend of a call."""
    return bool(backend or os.environ.get(ENVIRONMENT_VARIABLE))


def choose_backend(device_type: str, backend: str | None = None) -> str:
    """The backend that a call with tensors on `device_type` uses.

    Args:
        device_type: 'cpu', 'cuda', ...
        backend: a name to force one; None reads the environment variable OPS_DCNV3_BACKEND, and
            without that takes the fastest available.

    Raises:
        ValueError: unknown name, or a backend for another device.
        RuntimeError: the backend is not compiled here, or Triton cannot run.
    """
    forced = backend or os.environ.get(ENVIRONMENT_VARIABLE) or None
    if forced is None:
        order = {"cpu": ("cpp",), "cuda": ("cuda", "triton")}.get(device_type, ())
        return next((name for name in order if has_kernel(name)), "pytorch")
    problem = _refuse(forced, device_type)
    if problem is None:
        return forced
    origin = "" if backend else f" (from the environment variable {ENVIRONMENT_VARIABLE})"
    error = RuntimeError if "is not there" in problem else ValueError
    raise error(f"dcnv3: {problem}{origin}")
