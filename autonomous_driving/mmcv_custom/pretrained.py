"""Starts a backbone from a checkpoint: `init_cfg=dict(type='Pretrained', checkpoint=...)`.

Any file with the backbone's weights does: classification checkpoints of this project and of the
original implementation, and detectors or segmentors whose backbone is wanted. mmcv's own loader
takes no released names, needs the prefix to be spelt out, and does not say that nothing matched.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from internimage.fetch import fetch
from internimage.safe_load import CheckpointError, load_file
from internimage.weights import (
    LoadReport,
    State,
    core_op,
    describe,
    extract_state,
    is_joint,
    load_weights,
)
from mmcv.utils import print_log
from mmcv.utils.logging import logger_initialized
from torch import nn

BACKBONE_TYPES = {"DCNv3": "InternImage", "DCNv4": "FlashInternImage"}
_LAYER_SCALE = re.compile(r"(?:^|\.)levels\.\d+\.blocks\.\d+\.gamma[12]$")
_OWN = ("patch_embed.", "levels.", "cb_modules.", "cb_linears.")


def checkpoint_of(init_cfg: Any, pretrained: str | None = None) -> str | None:
    """The checkpoint that a backbone's `init_cfg` or `pretrained` asks for, None if none.

    Raises:
        ValueError: both are given, the checkpoint is missing, or `init_cfg` has further keys.
    """
    wanted = isinstance(init_cfg, dict) and init_cfg.get("type") == "Pretrained"
    if pretrained is not None:
        if init_cfg is not None:
            raise ValueError(
                f"pretrained={pretrained!r} and init_cfg={init_cfg} say the same thing: give one"
            )
        return str(pretrained)
    if not wanted:
        return None
    unknown = sorted(set(init_cfg) - {"type", "checkpoint"})
    if unknown or not init_cfg.get("checkpoint"):
        raise ValueError(
            f"init_cfg={dict(init_cfg)}: a backbone takes dict(type='Pretrained', checkpoint="
            "<path, released name or URL>); prefixes such as 'backbone.' are found by themselves"
        )
    return str(init_cfg["checkpoint"])


def load_backbone(backbone: nn.Module, path: str) -> LoadReport:
    """Copies the weights of a checkpoint into ``backbone`` and logs which matched.

    Args:
        backbone: a trunk, or a composite of trunks; a composite says itself where the weights of a
            single trunk go (`spread_pretrained`) and what such a file cannot have (`may_lack`).
        path: a file, the name of a released model or a URL, see :func:`internimage.fetch.fetch`.
            The weights may lie under `model`, `module` or `state_dict`, and the keys may begin
            with `module.`, `model.` or `backbone.`.

    Returns:
        Which keys matched, are missing, were not used; the notes are those of the log.

    Raises:
        CheckpointError: the file cannot be had or read, or holds another operator, size or
            options; the message names both sides.
    """
    source = str(path)
    state = extract_state(load_file(fetch(source)), source)
    if not is_joint(state):  # which has other names; load_weights knows them
        _refuse_other_models(backbone, state, source)
    if hasattr(backbone, "spread_pretrained"):
        state = backbone.spread_pretrained(state)
    composite_lacks = getattr(backbone, "may_lack", lambda key: False)

    def may_lack(key: str) -> bool:
        return bool(_LAYER_SCALE.search(key)) or composite_lacks(key)

    report = load_weights(backbone, {"model": state}, source=source, may_lack=may_lack)
    if report.resized:
        raise CheckpointError(
            f"{len(report.resized)} weights of {source} have another shape than in the backbone "
            f"({_some(report.resized)}): options such as dw_kernel_size or in_chans differ"
        )
    _note_differences(backbone, report, composite_lacks)
    backbone._is_init = True
    total = len(report.matched) + len(report.missing)
    lines = [f"{source}: {len(report.matched)} of {total} weights of the backbone loaded"]
    logger = next(iter(logger_initialized), "mmcv")
    print_log("; ".join(lines + report.notes), logger)
    lost = [key for key in report.missing if not may_lack(key)]
    if lost:
        print_log(
            f"{source} lacks {len(lost)} weights of the backbone, which keep their initial values: "
            f"{_some(lost)}. Options of the model differ from those of the checkpoint",
            logger,
            logging.WARNING,
        )
    unused = [key for key in report.unexpected if key.startswith(_OWN)]
    if unused:
        print_log(
            f"{len(unused)} backbone weights of {source} have no place in this backbone: "
            f"{_some(unused)}. Options of the model (such as layer_scale) differ from those of "
            "the checkpoint, and its features will differ too",
            logger,
            logging.WARNING,
        )
    return report


def _refuse_other_models(backbone: nn.Module, state: State, source: str) -> None:
    """Raises CheckpointError for weights of another operator or size, or of no trunk at all."""
    own = backbone.state_dict()
    in_file, in_model = describe(state), describe(own)
    file_op, model_op = core_op(state), core_op(own)
    if file_op is None or in_file != in_model:
        raise CheckpointError(
            f"{source} has {in_file}, the backbone has {in_model}: use the checkpoint or the "
            f"configuration of that size (keys of the file: {_some(list(state))})"
        )
    if file_op != model_op:
        raise CheckpointError(
            f"{source} was made with {file_op}, the backbone has {model_op}: use "
            f"type={BACKBONE_TYPES[file_op]!r} in the configuration"
        )


def _note_differences(backbone: nn.Module, report: LoadReport, composite_lacks: Any) -> None:
    """Adds to the report what is expected to differ, in words."""
    scales = [key for key in report.missing if _LAYER_SCALE.search(key)]
    if scales:
        values = backbone.get_parameter(scales[0])
        initial = "" if values.is_meta else f" and start at {values.flatten()[0].item():g}"
        report.notes.append(
            f"the {len(scales)} layer-scale gammas are not in the file{initial}, as expected for "
            "InternImage-T, which is trained for classification without layer scale"
        )
    gates = [key for key in report.missing if composite_lacks(key)]
    if gates:
        report.notes.append(
            f"{len(gates)} weights that join the backbones are new, as expected for a file with "
            "one backbone"
        )
    other = [key for key in report.unexpected if not key.startswith(_OWN)]
    if other:
        counts = Counter(key.split(".")[0] for key in other)
        parts = ", ".join(f"{name} ({count})" for name, count in counts.items())
        report.notes.append(f"not part of the backbone and not used: {parts}")


def _some(names: Iterable[str], count: int = 3) -> str:
    """The first few names."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
