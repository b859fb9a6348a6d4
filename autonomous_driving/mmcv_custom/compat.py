"""What mmcv-full 1.7.2 needs on the torch and numpy of today; applied by importing `mmcv_custom`.

Each change is made only where the installed releases need it. None of them changes what a
registered class of mmcv, mmdet or mmseg does; they restore what newer torch and numpy took away.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import mmcv.parallel._functions as parallel_functions
import numpy as np
import torch
from mmcv.parallel import MMDistributedDataParallel
from torch.nn.parallel import DistributedDataParallel

NUMPY_ALIASES = {"int": int, "float": float, "bool": bool, "object": object}


def restore_replicated_tensor_flag() -> None:
    """DDP of torch >= 2.4 lost an attribute that mmcv reads.

    Symptom: `AttributeError: 'MMDistributedDataParallel' object has no attribute
    '_use_replicated_tensor_module'` when a wrapped model is called (testing; training is not hit).
    """
    if not hasattr(DistributedDataParallel, "_use_replicated_tensor_module"):
        MMDistributedDataParallel._use_replicated_tensor_module = False


def accept_device_index_for_streams() -> None:
    """`_get_stream` of torch >= 2.1 takes a `torch.device`, mmcv passes a GPU's number.

    Symptom: `AttributeError: 'int' object has no attribute 'type'` on the first batch with a GPU.
    """
    get_stream = parallel_functions._get_stream
    if getattr(get_stream, "takes_index", False) or not takes_device(get_stream):
        return
    parallel_functions._get_stream = with_device_index(get_stream)


def takes_device(get_stream: Callable[..., Any]) -> bool:
    """Whether torch's function wants a `torch.device`; asked without touching a GPU."""
    try:
        get_stream(torch.device("cpu"))
    except (AttributeError, TypeError, RuntimeError, AssertionError):
        return False
    return True


def with_device_index(get_stream: Callable[[torch.device], Any]) -> Callable[[Any], Any]:
    """`get_stream`, which then also takes the index of a GPU."""

    @functools.wraps(get_stream)
    def get(device: int | torch.device) -> Any:
        return get_stream(torch.device("cuda", device) if isinstance(device, int) else device)

    get.takes_index = True
    return get


def allow_numpy_scalars_in_checkpoints() -> None:
    """mmcv checkpoints hold numpy numbers, which torch >= 2.6 refuses to read.

    Symptom: `UnpicklingError: Weights only load failed ... Unsupported global:
    numpy.core.multiarray.scalar`, because EvalHook stores the best score as `np.float64`. Such
    numbers hold no code, so that they are added to what is read; everything else stays refused.
    """
    if not hasattr(torch.serialization, "add_safe_globals"):
        return  # torch < 2.6 reads pickles
    package = "numpy.core" if np.__version__.startswith("1.") else "numpy._core"
    multiarray = importlib.import_module(f"{package}.multiarray")
    scalar, rebuild = multiarray.scalar, multiarray._reconstruct
    numbers = ("bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64")
    torch.serialization.add_safe_globals(
        [np.dtype, np.ndarray, *(type(np.dtype(name)) for name in numbers)]
        + [
            (function, f"numpy.{folder}.multiarray.{name}")
            for folder in ("core", "_core")  # numpy 2 renamed it: files of either are read
            for function, name in ((scalar, "scalar"), (rebuild, "_reconstruct"))
        ]
    )


def restore_numpy_aliases() -> None:
    """numpy >= 1.24 has no `np.int` and the like any more, mmdet 2.28.2 uses them in five places.

    Symptom: `AttributeError: module 'numpy' has no attribute 'int'`, for example with
    `ClassBalancedDataset`, OpenImages or `IoUBalancedNegSampler`.
    """
    for name, builtin in NUMPY_ALIASES.items():
        if name not in vars(np):
            setattr(np, name, builtin)


def apply() -> None:
    """Applies all of them; calling it again changes nothing."""
    restore_replicated_tensor_flag()
    accept_device_index_for_streams()
    allow_numpy_scalars_in_checkpoints()
    restore_numpy_aliases()


apply()
