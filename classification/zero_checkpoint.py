"""Reading checkpoint folders of DeepSpeed and Accelerate as one plain file's entries."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from checkpoint import write_file
from folder_checkpoint import RUN_FILE, resolve_folder
from models.fetch import fetch
from models.safe_load import CheckpointError, load_file

logger = logging.getLogger(__name__)

EMA_FILE = "model_ema.pth"  # the moving average, whole, float32
ENGINE_FOLDER = "pytorch_model"  # DeepSpeed's files in a folder of Accelerate
MODEL_FILES = ("model.safetensors", "pytorch_model.bin")  # weights in a folder of Accelerate


def read_checkpoint(source: str | Path) -> dict[str, Any]:
    """The entries of a checkpoint: a single file, or a folder with its weights put together.

    DeepSpeed's own files are pickles, which can run code when they are read: read only folders
    that you trust.

    Args:
        source: file, URL, checkpoint folder or output folder of a run.

    Returns:
        ``model`` (float32), ``model_ema`` where there is one, ``epoch``, ``config``...

    Raises:
        CheckpointError: nothing there can be read.
    """
    if not Path(source).is_dir():
        return load_file(fetch(str(source)))
    folder = resolve_folder(source)
    entries = load_file(folder / RUN_FILE)
    state = {"model": _weights(folder)}
    state |= {
        key: entries[key]
        for key in ("max_accuracy", "max_accuracy_ema", "epoch", "config", "class_names")
        if key in entries
    }
    if (folder / EMA_FILE).is_file():
        average = load_file(folder / EMA_FILE)
        state["model_ema"] = {**state["model"], **average}
    return state


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    for name in MODEL_FILES:
        if (folder / name).is_file():
            if name.endswith(".safetensors"):
                from safetensors.torch import load_file as load_safetensors

                return load_safetensors(folder / name)
            return load_file(folder / name)
    from backend_deepspeed import import_deepspeed

    import_deepspeed()
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    tag = folder / ENGINE_FOLDER if (folder / ENGINE_FOLDER).is_dir() else folder
    try:
        found = get_fp32_state_dict_from_zero_checkpoint(str(tag.parent), tag.name)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"the weights in {tag} cannot be put together: {error}") from error
    return {key: value.clone().contiguous() for key, value in found.items()}


def convert(source: str | Path, target: str | Path) -> None:
    """Write a checkpoint folder as one file that main.py and predict.py read.

    Raises:
        CheckpointError: it cannot be read or written.
    """
    state = read_checkpoint(source)
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    problem = write_file(target, state)
    if problem:
        raise CheckpointError(problem)
    logger.info("%s: wrote %s, %d weights", source, target, len(state["model"]))
