"""Checkpoints: written whole or not at all, found again after a crash, refused by other models."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from internimage.fetch import fetch
from internimage.safe_load import CheckpointError, load_file
from mmcv.parallel import is_module_wrapper
from mmcv.runner import get_dist_info
from torch import Tensor, nn

from .distributed import agree

logger = logging.getLogger(__name__)

_NUMBER = re.compile(r"^(?:epoch|iter)_(\d+)\.pth$")
_SHOWN = 3  # differing keys that a message names


def load_checkpoint(
    model: nn.Module,
    path: str,
    map_location: str | torch.device = "cpu",
    strict: bool = True,
) -> dict[str, Any]:
    """Loads weights into `model` (wrapped or not); returns what the file holds.

    A model may have a function `revise_weights(weights, meta, model)`, which gives the weights that
    are loaded instead of those of the file.

    Args:
        path: a file, the name of a released model or an https:// address.
        map_location: device of the tensors in what is returned; the model stays where it is.
        strict: refuse the file unless it has exactly the model's parameters and buffers. Else what
            fits by name and shape is loaded and the rest is told; nothing that fits is an error.

    Returns:
        the file as a dictionary: `state_dict`, `meta` (with `CLASSES` and `epoch` of training
        runs) and `optimizer`, as far as it has them.

    Raises:
        CheckpointError: no such file or model, damaged, or of another model; the message names
            what differs.
    """
    model = model.module if is_module_wrapper(model) else model
    checkpoint = load_file(fetch(path))
    found = weights_of(checkpoint, path)
    if revise := getattr(model, "revise_weights", None):
        found = revise(found, checkpoint.get("meta") or {}, model)
    wanted = model.state_dict()
    ema = {f"ema_{name.replace('.', '_')}" for name in found}  # EMA hooks keep these beside them
    extra = ema | {name for name, _ in model.named_buffers()}  # mmcv writes all, persistent or not
    found = {name: value for name, value in found.items() if name in wanted or name not in extra}
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    shapes = [name for name in wanted if name in found and wanted[name].shape != found[name].shape]
    fitting = len(wanted) - len(missing) - len(shapes)
    report = differences(missing, unexpected, shapes, wanted, found)
    if (strict and report) or not fitting:
        raise CheckpointError(
            f"{path} is a checkpoint of another model: {fitting} of the model's {len(wanted)} "
            f"parameters and buffers fit; {report}{advice(wanted, found)}"
        )
    if report:
        logger.warning("%s fits in %d of %d parameters; %s", path, fitting, len(wanted), report)
    usable = {k: v for k, v in found.items() if k in wanted and k not in shapes}
    model.load_state_dict(usable, strict=False)
    logger.info("loaded %s", path)
    checkpoint.setdefault("meta", {})
    return checkpoint if str(map_location) == "cpu" else to_device(checkpoint, map_location)


def constant_buffers(model: nn.Module) -> set[str]:
    """Names of the buffers that torch leaves out of a state dict; mmcv saves them all the same."""
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }


def to_device(value: Any, device: str | torch.device) -> Any:
    """The tensors inside nested dictionaries and lists on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    return [to_device(item, device) for item in value] if isinstance(value, list) else value


def weights_of(checkpoint: Mapping[str, Any], path: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by name without the prefix of a wrapper.

    Raises:
        CheckpointError: there are none.
    """
    weights = next(
        (checkpoint[key] for key in ("state_dict", "model", "module") if key in checkpoint),
        checkpoint,
    )
    if isinstance(weights, Mapping):
        weights = {
            name.removeprefix("module."): value
            for name, value in weights.items()
            if isinstance(value, Tensor)
        }
    if not weights:
        raise CheckpointError(f"{path} holds no weights, only {', '.join(map(str, checkpoint))}")
    return weights


def differences(
    missing: list[str],
    unexpected: list[str],
    shapes: list[str],
    wanted: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
) -> str:
    """What differs between a model and a file, in one sentence; '' for nothing."""
    sizes = [f"{n} {list(found[n].shape)} instead of {list(wanted[n].shape)}" for n in shapes]
    parts = [
        (sizes, "of another shape in the file"),
        (missing, "not in the file"),
        (unexpected, "only in the file"),
    ]
    return "; ".join(f"{len(names)} {what} ({shorten(names)})" for names, what in parts if names)


def advice(wanted: Iterable[str], found: Iterable[str]) -> str:
    """What can be done with a file that does not fit."""
    if {f"backbone.{name}" for name in found} & set(wanted):
        return (
            ". It holds a backbone (or a classifier): a training starts from it with "
            "model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...)"
        )
    return ". Use the config that the file was trained with, or another file"


def shorten(names: Iterable[str]) -> str:
    """The first few names."""
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def compare_classes(meta: Mapping[str, Any], classes: Iterable[str] | None) -> None:
    """Warns when the classes of a checkpoint are not those of a data set, by name and order."""
    trained = meta.get("CLASSES")
    if not trained or not classes or tuple(trained) == tuple(classes):
        return
    trained, classes = list(trained), list(classes)
    pairs = [f"{i}: {a!r} / {b!r}" for i, (a, b) in enumerate(zip(trained, classes)) if a != b]
    logger.warning(
        "the checkpoint was trained for %d classes, the data set has %d; they differ in (class, "
        "checkpoint / data set): %s. The results are right only if these are names of the same",
        len(trained),
        len(classes),
        shorten(pairs) or "their number",
    )


def read_meta(path: str | Path) -> dict[str, Any]:
    """`meta` of a checkpoint, without reading its tensors.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True).get("meta", {})
    except (RuntimeError, OSError, pickle.UnpicklingError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint of a run: {error}") from error


def is_whole(path: str | Path) -> bool:
    """Whether a file is a complete checkpoint: torch's zip format ends with its contents' table."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def find_whole_checkpoint(work_dir: str | Path) -> str | None:
    """The newest complete `epoch_N.pth` or `iter_N.pth` in a folder, the same on every process.

    A file that is not complete (a killed run of another program, a full disk) is told and left out.
    """
    found = None
    if get_dist_info()[0] == 0:
        files = [path for path in Path(work_dir).glob("*.pth") if _NUMBER.match(path.name)]
        for path in sorted(files, key=lambda p: int(_NUMBER.match(p.name)[1]), reverse=True):
            if is_whole(path):
                found = str(path)
                break
            logger.warning("%s is not complete; looking for an older one", path)
    return agree(found)


def remove_leftovers(work_dir: str | Path) -> None:
    """Deletes what a killed run left of a checkpoint in mid-write."""
    for path in Path(work_dir).glob(".tmp-*.pth"):
        logger.info("removing %s, left by a killed run", path)
        path.unlink(missing_ok=True)


def point_latest(folder: str | Path, name: str) -> None:
    """Makes `latest.pth` a link to `name`; there is never a moment without it.

    Where links are not possible there is none: --auto-resume does not need it.
    """
    link, temporary = Path(folder) / "latest.pth", Path(folder) / f".latest-{os.getpid()}.pth"
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(name)
        os.replace(temporary, link)
    except OSError as error:
        logger.warning("latest.pth cannot point to %s: %s", name, error)
        with contextlib.suppress(OSError):
            temporary.unlink()


def move_into_place(temporary: str | Path, path: str | Path) -> None:
    """Gives a completely written file its name, after its bytes are on the disk."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
