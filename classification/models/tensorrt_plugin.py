"""Loads the TensorRT plugin TRTDCNv3, so that TensorRT can read InternImage's ONNX files.

The plugin is built from tensorrt/modulated_deform_conv_v3 (its README says how); nothing but the
standard library and TensorRT's Python package is imported here.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
import os
from pathlib import Path
from types import ModuleType

logger = logging.getLogger(__name__)

PLUGIN = ("TRTDCNv3", "1", "")  # name, version, namespace
VARIABLE = "TRT_DCNV3_LIBRARY"
FOLDER = Path("tensorrt", "modulated_deform_conv_v3")
BUILT = FOLDER / "build" / "libtrt_dcnv3.so"
OLDEST = 10  # major version of TensorRT: IPluginV3


class PluginError(RuntimeError):
    """The plugin or TensorRT is not there or does not fit; the message says what was tried."""


def import_tensorrt() -> ModuleType:
    """TensorRT's Python package: the full one, or the lean runtime, which cannot build engines.

    Raises:
        PluginError: none is installed, or it is older than TensorRT 10.
    """
    for name in ("tensorrt", "tensorrt_lean"):
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            if error.name != name:
                raise PluginError(
                    f"the package {name} cannot be imported ({error}); install it again: "
                    f"pip install {name.replace('_', '-')}"
                ) from error
            continue
        if not hasattr(module, "get_plugin_registry"):
            continue  # the folder tensorrt/ of this repository, seen from its root
        if int(module.__version__.split(".")[0]) < OLDEST:
            raise PluginError(
                f"the plugin needs TensorRT {OLDEST} or newer, this is {module.__version__}; for "
                "TensorRT 8.5 to 9 export the ONNX file with --inline: it needs no plugin"
            )
        return module
    raise PluginError(
        "TensorRT's Python package is not installed: pip install tensorrt (NVIDIA's GPU driver is "
        "needed too)"
    )


def library_candidates() -> list[Path]:
    """Where the plugin's library is looked for when nobody names it, in this order.

    The build folder in this repository, in the current folder and in those above it; mmdeploy's
    library of operators, if the plugin was built into it (that of its wheel is without).
    """
    here = Path.cwd()
    roots = [Path(__file__).resolve().parents[2], here, *here.parents]
    paths = [root / BUILT for root in roots]
    mmdeploy = importlib.util.find_spec("mmdeploy")
    for folder in (mmdeploy.submodule_search_locations or []) if mmdeploy else []:
        library = Path(folder, "lib", "libmmdeploy_tensorrt_ops.so")
        if library.is_file() and PLUGIN[0].encode() in library.read_bytes():
            paths.append(library)
    return list(dict.fromkeys(paths))


def find_library(path: str | Path | None = None) -> Path:
    """The plugin's library: `path`, else the environment's TRT_DCNV3_LIBRARY, else a candidate.

    Raises:
        PluginError: it is not there; the message lists the paths that were tried.
    """
    named = path or os.environ.get(VARIABLE)
    tried = [Path(named)] if named else library_candidates()
    for candidate in tried:
        if candidate.is_file():
            return candidate
    source = "" if path or not named else f" ({VARIABLE})"
    raise PluginError(
        f"the TensorRT plugin {PLUGIN[0]} was not found. Tried{source}: "
        f"{', '.join(map(str, tried))}. Build it as {FOLDER / 'README.md'} says, or name the "
        f"library in {VARIABLE}"
    )


def load_plugin(path: str | Path | None = None, tensorrt: ModuleType | None = None) -> Path | None:
    """Registers the plugin with TensorRT, once per process.

    Args:
        path: the library; None to look for it, see `find_library`.
        tensorrt: TensorRT's Python package; None to import it.

    Returns:
        The library that was loaded; None if the plugin was registered before.

    Raises:
        PluginError: no library, no TensorRT, or TensorRT does not take the library.
    """
    trt = import_tensorrt() if tensorrt is None else tensorrt
    registry = trt.get_plugin_registry()
    if registry.get_creator(*PLUGIN) is not None:
        return None
    library = find_library(path)
    registry.load_library(str(library))
    if registry.get_creator(*PLUGIN) is None:
        raise PluginError(
            f"TensorRT {trt.__version__} found no plugin {PLUGIN[0]} in {library}: "
            f"{_why_not(library)}. Build it again as {FOLDER / 'README.md'} says"
        )
    logger.info("TensorRT %s: plugin %s from %s", trt.__version__, PLUGIN[0], library)
    return library


def _why_not(library: Path) -> str:
    """What keeps a library from being a library of plugins for TensorRT 10 or newer."""
    try:
        loaded = ctypes.CDLL(str(library))
    except OSError as error:  # another platform, or linked to another TensorRT
        return f"it cannot be loaded ({error})"
    if not hasattr(loaded, "getCreators"):
        return f"it has no plugins for TensorRT {OLDEST} or newer (getCreators)"
    return "its plugins have other names or versions"
