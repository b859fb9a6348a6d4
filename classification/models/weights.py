"""Loading weights of many origins into a classification model.

Handles wrapper prefixes, joint image-text (CLIP) pre-training files, another number of classes,
files trained with the centre sampling point for models without it, and says what was loaded.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .safe_load import CheckpointError

logger = logging.getLogger(__name__)

State = dict[str, torch.Tensor]
NO_WEIGHTS = "no InternImage weights"
CLASSES_22K = 21841
CLASSES_1K = 1000
DEFAULT_HEAD_MAP = Path(__file__).with_name("map22kto1k.txt")

_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|student|teacher|model)\.)+")
_SWIN_LEFTOVERS = ("relative_position_index", "relative_coords_table", "attn_mask")
_OTHER_TASKS = {
    "detection": ("roi_head.", "rpn_head.", "bbox_head.", "neck."),
    "segmentation": ("decode_head.", "auxiliary_head."),
}
HEAD_NAMES = ("head", "meta_head")
# {task: [(name of a classifier's weights, how many of its rows are not classes)]}
_CLASSIFIERS = {
    "classification": [(re.compile(r"head\.weight"), 0)],
    "detection": [
        (re.compile(r"roi_head\.bbox_head\.(?:\d+\.)?fc_cls\.weight"), 1),
        (re.compile(r"bbox_head\.cls_branches\.\d+\.weight"), 0),
    ],
}


@dataclass
class LoadReport:
    """Which keys of the model came from the file.

    Attributes:
        matched: keys loaded.
        missing: keys of the model that the file lacks (they keep their initial value).
        unexpected: keys of the file that the model lacks (ignored).
        resized: keys whose shape differs (they keep their initial value), with both shapes.
        new_head: the classification head was initialised anew.
        notes: what was changed on the way, in sentences.
    """

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    new_head: bool = False
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line of counts, with the first few names of what did not match."""
        text = (
            f"{len(self.matched)} matched, {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected, {len(self.resized)} resized"
        )
        for kind in ("missing", "unexpected", "resized"):
            names = getattr(self, kind)
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                text += f"; {kind}: {', '.join(names[:3])}{more}"
        return text


def read_head_map(path: str | Path = "") -> list[int]:
    """Row of each ImageNet-1k class in the 21841 classes of ImageNet-22k.

    Args:
        path: text file with one number per line; empty for ``map22kto1k.txt`` beside this file.

    Raises:
        CheckpointError: the file is missing or is not 1000 numbers below 21841.
    """
    path = Path(path or DEFAULT_HEAD_MAP)
    try:
        rows = [int(line) for line in path.read_text().split()]
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read the 22k-to-1k class map {path} ({error}); set MODEL.HEAD_MAP to a text "
            "file with 1000 lines, each the 22k index of that 1k class"
        ) from error
    if len(rows) != CLASSES_1K or not all(0 <= row < CLASSES_22K for row in rows):
        low, high = min(rows, default=0), max(rows, default=0)
        raise CheckpointError(
            f"the 22k-to-1k class map {path} has {len(rows)} entries, from {low} to {high}; "
            "1000 numbers in 0..21840 are needed"
        )
    return rows


def extract_state(checkpoint: Mapping[str, Any], source: str = "checkpoint") -> State:
    """The model's tensors inside a checkpoint, with wrapper prefixes removed.

    Accepts ``model``, ``module``, ``state_dict``, ``teacher``, ``student`` entries and bare
    dictionaries, and keys that start with ``module.``, ``_orig_mod.``, ``backbone.``,
    ``student.`` or ``teacher.``. A teacher is preferred to a student.

    Raises:
        CheckpointError: there are no tensors.
    """
    state: Mapping[str, Any] = checkpoint
    for _ in range(3):
        inner = next(
            (
                state[name]
                for name in ("model", "module", "state_dict", "teacher", "student")
                if isinstance(state.get(name), Mapping) and state[name]
            ),
            None,
        )
        if inner is None:
            break
        state = inner
    tensors = {str(k): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        entries = ", ".join(map(str, list(checkpoint)[:8]))
        raise CheckpointError(
            f"{source} holds no weights: its entries are {entries or 'none'}; "
            "expected 'model', 'module', 'state_dict' or parameter names"
        )
    if any(key.startswith("teacher.") for key in tensors):
        tensors = {k: v for k, v in tensors.items() if not k.startswith("student.")}
    tensors = {_WRAPPERS.sub("", key): value for key, value in tensors.items()}
    if any(key.startswith("backbone.") for key in tensors):
        tensors = {re.sub(r"^(?:backbone\.)+", "", k): v for k, v in tensors.items()}
    return tensors


def is_joint(state: Mapping[str, Any]) -> bool:
    """Whether these are weights of joint image-text pre-training, which have other names."""
    return any(key.split(".")[-1] == "mask_token" for key in state)


def head_classes(checkpoint: Mapping[str, Any], task: str = "classification") -> int | None:
    """Number of classes of the head of a checkpoint of ``task``, or None when it has no head."""
    for key, weight in extract_state(checkpoint).items():
        for pattern, background in _CLASSIFIERS[task]:
            if pattern.fullmatch(key):
                return int(weight.shape[0]) - background
    return None


def load_weights(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    *,
    source: str,
    head_map: str = "",
    rand_init_head: bool = False,
    evaluation: bool = False,
    may_lack: Callable[[str], bool] = lambda key: False,
) -> LoadReport:
    """Copy a checkpoint's weights into ``model`` and report what matched.

    Args:
        model: an unwrapped model.
        checkpoint: what :func:`safe_load.load_file` returned.
        source: name of the file, for messages.
        head_map: class map for a 21841-class head in a 1000-class model (``MODEL.HEAD_MAP``).
        rand_init_head: ``TRAIN.RAND_INIT_FT_HEAD``: on another class count keep the model's new
            head, scaled by 0.001.
        evaluation: the weights are used as they are, so that a head that was not trained, or
            weights of another shape, are an error.
        may_lack: which keys of the model may be missing in the file without a warning.

    Raises:
        CheckpointError: fewer than half of the model's keys match, or the head cannot be used.
    """
    report = LoadReport()
    state = extract_state(checkpoint, source)
    own = model.state_dict()
    if is_joint(state):
        state = _from_clip_joint(state, own, report)
    dropped = [k for k in state if k.split(".")[-1] in _SWIN_LEFTOVERS and k not in own]
    state = {key: value for key, value in state.items() if key not in set(dropped)}
    _remove_center(model, own, state, report)
    reinitialised = _fit_head(model, own, state, report, head_map, rand_init_head)

    fitting: State = {}
    for key, value in own.items():
        if key in reinitialised:
            continue
        if key not in state:
            report.missing.append(key)
        elif state[key].shape != value.shape:
            report.resized.append(f"{key} {tuple(state[key].shape)} -> {tuple(value.shape)}")
        else:
            fitting[key] = state[key]
            report.matched.append(key)
    report.unexpected += [key for key in state if key not in own]
    _refuse_other_models(own, state, report, source)
    head_lost = [
        key for key in own if key.split(".")[0] in HEAD_NAMES and key.endswith("weight")
        and key not in fitting and own[key].dim() == 2
    ]  # fmt: skip
    if head_lost:
        report.new_head = True
        if evaluation:
            raise CheckpointError(_head_message(own, checkpoint, source))
    if evaluation and report.resized:
        raise CheckpointError(_shape_message(report, source))
    model.load_state_dict(fitting, strict=False)
    for note in report.notes:
        logger.info("%s: %s", source, note)
    wanted = [key for key in report.missing if not may_lack(key)]
    level = logging.WARNING if wanted or report.resized else logging.INFO
    logger.log(level, "weights of %s: %s", source, report.summary())
    for kind in ("missing", "unexpected", "resized"):
        if getattr(report, kind):
            logger.debug("%s keys: %s", kind, ", ".join(getattr(report, kind)))
    return report


def _head_message(
    own: Mapping[str, torch.Tensor], checkpoint: Mapping[str, Any], source: str
) -> str:
    want = own["head.weight"].shape[0] if "head.weight" in own else "?"
    have = head_classes(checkpoint)
    got = "has no head" if have is None else f"has {have} classes"
    return (
        f"{source} {got}, the model has {want}: evaluating with a head that was never trained "
        "would be meaningless. Use the data set the checkpoint was trained on, or fine-tune "
        "first with --pretrained"
    )


def _shape_message(report: LoadReport, source: str) -> str:
    points = all(".dcn.offset." in name or ".dcn.mask." in name for name in report.resized)
    cause = "the centre point was removed" if points else "another configuration"
    advice = "MODEL.INTERN_IMAGE.REMOVE_CENTER" if points else "options of MODEL"
    return (
        f"{len(report.resized)} weights of {source} have another shape than in this model "
        f"({', '.join(report.resized[:3])}): it was trained with {cause}. Evaluate it with the "
        f"{advice} it was trained with"
    )


def _from_clip_joint(state: State, own: Mapping[str, torch.Tensor], report: LoadReport) -> State:
    """Keys of a joint image-text checkpoint renamed to this model's."""
    kept: State = {}
    for key, value in state.items():
        name = None
        head = re.search(r"(?:^|\.)clip\.classifier(_ln)?\.(.+)$", key)
        if head:
            stem = "fc_norm" if head[1] else "head"
            options = (f"{stem}.{head[2]}", f"{stem}.0.{head[2]}")
            name = next((option for option in options if option in own), options[0])
        elif "dcnv3" in key or "clip_projector" in key:
            parts = key.split(".")
            tails = (".".join(parts[i:]) for i in range(len(parts)))
            name = next((tail for tail in tails if tail in own), key)
        if name is not None:
            kept[name] = value
    report.notes.append(
        f"joint image-text checkpoint: {len(kept)} of {len(state)} entries belong to the image "
        "classifier"
    )
    return kept


def _remove_center(
    model: nn.Module, own: Mapping[str, torch.Tensor], state: State, report: LoadReport
) -> None:
    """Drop the centre point's rows where the file has them and the model does not.

    With k x k points per group (P = k*k, centre c) the mask has rows g*P + t and the offset
    rows g*2P + 2t + {0, 1}; for k = 3 these are i % 9 == 4 and i % 18 in {8, 9}. The shapes
    decide, so a file trained without the centre is left alone.
    """
    changed = 0
    modules = dict(model.named_modules())
    for key, value in own.items():
        match = re.fullmatch(r"(.*dcn)\.(mask|offset)\.(?:weight|bias)", key)
        if not match or key not in state or state[key].shape == value.shape:
            continue
        if not getattr(modules.get(match[1]), "remove_center", True):
            continue
        width = 1 if match[2] == "mask" else 2
        rows = center_rows(state[key].shape[0], value.shape[0], width)
        if rows is not None:
            keep = torch.ones(state[key].shape[0], dtype=torch.bool)
            keep[rows] = False
            state[key] = state[key][keep]
            changed += 1
    if changed:
        report.notes.append(f"centre point removed from {changed} offset and mask tensors")


def center_rows(have: int, want: int, width: int) -> list[int] | None:
    """Rows of the centre point in an offset or mask tensor.

    Args:
        have: rows in the file, group * P * width.
        want: rows in the model, group * (P - 1) * width.
        width: 1 for the mask, 2 for the offset.

    Returns:
        Row numbers, or None when the two sizes do not differ by exactly the centre point.
    """
    dropped = have - want
    if dropped <= 0 or dropped % width:
        return None
    group = dropped // width
    if have % (group * width):
        return None
    points = have // (group * width)
    kernel = math.isqrt(points)
    if kernel * kernel != points or points == 1:
        return None
    center = (kernel // 2) * kernel + kernel // 2
    return [(g * points + center) * width + i for g in range(group) for i in range(width)]


def _fit_head(
    model: nn.Module,
    own: Mapping[str, torch.Tensor],
    state: State,
    report: LoadReport,
    head_map: str,
    rand_init_head: bool,
) -> set[str]:
    """Make heads of another class count fit, or drop them from ``state`` and return their keys."""
    reinitialised: set[str] = set()
    for name in HEAD_NAMES:
        weight, bias = f"{name}.weight", f"{name}.bias"
        if weight not in own or weight not in state or own[weight].dim() != 2:
            continue
        have, want = state[weight].shape[0], own[weight].shape[0]
        if have == want:
            continue
        if rand_init_head:
            head = model.get_submodule(name)
            with torch.no_grad():
                for parameter in head.parameters():
                    parameter.mul_(0.001)
            action = "new head scaled by 0.001 (TRAIN.RAND_INIT_FT_HEAD)"
        elif (have, want) == (CLASSES_22K, CLASSES_1K):
            rows = torch.tensor(read_head_map(head_map))
            state[weight] = state[weight][rows]
            if bias in state:
                state[bias] = state[bias][rows]
            report.notes.append(f"{name}: the 1000 ImageNet-1k rows of its 21841 classes are used")
            continue
        else:
            action = "head initialised anew"
        report.notes.append(f"{name} has {have} classes, the model {want}: {action}")
        for key in (weight, bias):
            if key in state:
                shapes = f"{tuple(state.pop(key).shape)} -> {tuple(own[key].shape)}"
                report.resized.append(f"{key} {shapes}")
                reinitialised.add(key)
    return reinitialised


def describe(state: Mapping[str, torch.Tensor]) -> str:
    """Channels and depths by the parameters, such as ``channels 64, depths [4, 4, 18, 4]``.

    Of a composite backbone (detection's CBInternImage) its first trunk is described.
    """
    state = {key.removeprefix("cb_modules.0."): value for key, value in state.items()}
    stem = state.get("patch_embed.conv2.weight")
    blocks: dict[int, int] = {}
    for key in state:
        match = re.match(r"levels\.(\d+)\.blocks\.(\d+)\.", key)
        if match:
            level, block = int(match[1]), int(match[2])
            blocks[level] = max(blocks.get(level, 0), block + 1)
    if stem is None and not blocks:
        return NO_WEIGHTS
    channels = stem.shape[0] if stem is not None else "unknown"
    return f"channels {channels}, depths {[blocks[level] for level in sorted(blocks)]}"


def core_op(keys: Iterable[str]) -> str | None:
    """The operator that parameters belong to; None without blocks."""
    text = " ".join(keys)
    return "DCNv4" if ".dcn.offset_mask." in text else "DCNv3" if ".dcn." in text else None


def _refuse_other_models(
    own: Mapping[str, torch.Tensor], state: State, report: LoadReport, source: str
) -> None:
    file_op, model_op = core_op(state), core_op(own)
    if file_op and model_op and file_op != model_op:
        wanted = {"DCNv3": "intern_image", "DCNv4": "flash_intern_image"}[file_op]
        raise CheckpointError(
            f"{source} was made with {file_op}, the model has {model_op}, with other weights: "
            f"use a configuration with MODEL.TYPE {wanted}"
        )
    if 2 * len(report.matched) >= len(own):
        return
    causes = [
        f"it looks like a {task} checkpoint"
        for task, prefixes in _OTHER_TASKS.items()
        if any(key.startswith(prefixes) for key in state)
    ]
    in_file, in_model = describe(state), describe(own)
    if in_file != in_model:
        causes.append(
            f"the file has {in_file}, the model has {in_model}: use the configuration of that size"
        )
    examples: Sequence[str] = report.unexpected[:3] or report.resized[:3] or report.missing[:3]
    raise CheckpointError(
        f"{source} does not fit this model: only {len(report.matched)} of {len(own)} weights match"
        + (f"; {'; '.join(causes)}" if causes else "")
        + f" (for example {', '.join(examples)})"
    )
