"""The table of released models: one row for every published checkpoint.

The rows are data, in `released_<task>.json` beside this file; a further task adds its own file of
the same form, and every function here sees it. A key that a file leaves out takes the default of
:class:`ReleasedModel`; what nobody has published (sizes in bytes, hashes) is null.
"""

from __future__ import annotations

import copy
import difflib
import fnmatch
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
HUB = "https://huggingface.co"

# What a classification config leaves at its default, by MODEL.TYPE.
_SHARED = {
    "num_classes": 1000,
    "drop_rate": 0.0,
    "drop_path_rate": 0.1,
    "drop_path_type": "linear",
    "with_cp": False,
    "backend": None,
    "channels": 64,
    "depths": [4, 4, 18, 4],
    "groups": [4, 8, 16, 32],
    "mlp_ratio": 4.0,
    "act_layer": "GELU",
    "norm_layer": "LN",
    "layer_scale": None,
    "offset_scale": 1.0,
    "post_norm": False,
    "res_post_norm": False,
    "dw_kernel_size": None,
    "level2_post_norm": False,
    "level2_post_norm_block_ids": None,
    "center_feature_scale": False,
    "cls_scale": 1.5,
    "use_clip_projector": False,
}
_INTERN_IMAGE = {**_SHARED, "core_op": "DCNv3", "remove_center": False}
_FLASH = {**_SHARED, "core_op": "DCNv4", "dcn_output_bias": False, "mlp_fc2_bias": False}
DEFAULT_ARGUMENTS = {
    "intern_image": _INTERN_IMAGE,
    "intern_image_meta_former": _INTERN_IMAGE,
    "flash_intern_image": _FLASH,
}


class UnknownModelError(ValueError):
    """No released model has this name; the message names the nearest."""


@dataclass(frozen=True)
class ReleasedModel:
    """One row of the table.

    Attributes:
        name: unique; what `create_model` takes.
        title: the model's name in print.
        task: 'classification', 'detection' or 'segmentation'; also the folder of its config.
        dataset: what it was trained on last, and the metrics are measured on.
        config: its configuration file, relative to the folder of the task.
        config_opts: {key: value} that the configuration needs on top, as after `--opts`.
        model: MODEL.TYPE of a classification model.
        arguments: arguments of a classification model that differ from `DEFAULT_ARGUMENTS`, without
            `num_classes`; see `model_arguments`. Of other tasks: channels and depths of the trunk.
        pretraining: data of the stages before `dataset`; None without.
        input_size: side of the square images it was trained on, in pixels; None if they vary.
        num_classes: width of its head.
        hub_repo: Hugging Face repository of the checkpoint; None if no file is known.
        hub_file: name of the file there.
        bytes: size of the file.
        sha256: hash of the file, hexadecimal.
        transformers_repo: repository with the same weights for transformers, or None.
        log: address of the training log, or None.
        metrics: published results in percent: {'top1': 83.5}, {'box_ap': 47.2, 'mask_ap': 42.5},
            {'miou': 47.9, 'miou_ms': 48.1} (one scale, several scales and flips).
        published_params, published_flops: as printed ('30M', '5G' multiply-adds; of detectors for
            1280x800 pixels).
        params: parameters, counted.
        gmacs: 1e9 multiply-adds for one image of `input_size`, counted; the sampling of the
            deformable operator enters with 5 per point and channel.
    """

    name: str
    title: str
    task: str
    dataset: str
    config: str
    config_opts: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    pretraining: str | None = None
    input_size: int | None = None
    num_classes: int | None = None
    hub_repo: str | None = None
    hub_file: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    transformers_repo: str | None = None
    log: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    published_params: str | None = None
    published_flops: str | None = None
    params: int | None = None
    gmacs: float | None = None

    @property
    def url(self) -> str | None:
        """Address of the checkpoint, None if no file is known."""
        if self.hub_repo is None:
            return None
        return f"{HUB}/{self.hub_repo}/resolve/main/{self.hub_file}"


@lru_cache
def _table() -> dict[str, ReleasedModel]:
    table: dict[str, ReleasedModel] = {}
    for path in sorted(FOLDER.glob("released_*.json")):
        for row in json.loads(path.read_text(encoding="utf-8")):
            if row["name"] in table:
                raise ValueError(f"{path}: the name {row['name']!r} is in the table twice")
            table[row["name"]] = ReleasedModel(**row)
    return table


def list_models(
    pattern: str = "*", pretrained: bool = False, task: str | None = "classification"
) -> list[str]:
    """Names of released models, in the order of the table: small to large.

    Args:
        pattern: shell pattern, such as '*_384'.
        pretrained: only those whose checkpoint can be downloaded.
        task: 'classification', 'detection', 'segmentation'; None for all.
    """
    return [
        row.name
        for row in _table().values()
        if fnmatch.fnmatchcase(row.name, pattern)
        and (row.hub_file is not None or not pretrained)
        and task in (None, row.task)
    ]


def is_released(name: str) -> bool:
    """Whether the table has this name."""
    return name in _table()


def released_model(name: str) -> ReleasedModel:
    """The row of a name.

    Raises:
        UnknownModelError: there is none; the message names the nearest.
    """
    row = _table().get(name)
    if row is None:
        near = difflib.get_close_matches(str(name).lower(), _table(), n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownModelError(
            f"Unknown model {name!r}.{hint} list_models() lists the names, --list-models "
            "in predict.py and image_demo.py."
        )
    return row


def find_by_file(file_name: str) -> ReleasedModel | None:
    """The row whose checkpoint has this file name, or this address."""
    rows = _table().values()
    return next(
        (row for row in rows if row.hub_file and file_name in (row.hub_file, row.url)), None
    )


def model_arguments(name: str) -> dict[str, Any]:
    """All arguments of a classification model's class, as its configuration file gives them.

    Raises:
        UnknownModelError: no such name, or it belongs to another task.
    """
    row = released_model(name)
    if row.model is None:
        raise UnknownModelError(
            f"{name!r} is a {row.task} model: it is built in {row.task}/ from {row.config}."
        )
    arguments = {**DEFAULT_ARGUMENTS[row.model], **row.arguments, "num_classes": row.num_classes}
    return copy.deepcopy(arguments)
