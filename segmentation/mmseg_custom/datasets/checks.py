"""What is wrong with a data set, said before a training or test run starts.

`check_data` looks at a data set that mmseg has built; `build_data` builds one and says why that
failed. Both raise `DatasetError`. What can be lived with is a warning.
"""

from __future__ import annotations

import itertools
import logging
import os
import os.path as osp
from collections.abc import Iterator
from typing import Any

import numpy as np
from mmseg.datasets.pipelines import LoadAnnotations
from torch import nn

from .build import FAILURES, build, converter_hint, diagnose
from .errors import DatasetError, listed
from .masks import IGNORE, MaskRules, check_pair, pair_paths
from .named_errors import NamedMask, name_broken_files
from .splits import leaf_configs, leaf_data_sets, split_name

logger = logging.getLogger("mmseg.data")  # below mmseg's own: rank 0 speaks, the others are quiet

__all__ = ["DatasetError", "build_data", "check_data", "check_files", "class_meta", "label_classes"]

MOST_LOOKUPS = 1000  # files looked up per data set: well under a second on a local disk
SAMPLE = 16  # masks that are decoded
_HEADS = ("decode_head", "auxiliary_head")
_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def check_data(cfg: Any, dataset: Any, model: nn.Module | None = None, files: bool = True) -> None:
    """Checks a built data set against itself and against the model; cheap at any size.

    Looks up 1000 files and decodes 16 masks, both spread over the data set. From then on a file
    that cannot be used raises a `DatasetError` with its name, also out of the data loader.

    Args:
        cfg: the config of the run (`cfg.model`, `cfg.data`).
        dataset: what mmseg's `build_dataset` or `build_data` gave, wrappers included.
        model: the built segmentor; without it the class counts are read from `cfg.model`.
        files: look at files; False checks the settings only.

    Raises:
        DatasetError: class names and heads do not fit; the split is empty; files are missing; a
            mask has another size than its image, colours instead of labels, or labels of no class.
    """
    heads = list(_class_counts(cfg, model))
    _check_losses(cfg)
    for leaf in leaf_data_sets(dataset):
        where = split_name(cfg, leaf)
        _check_class_names(leaf, where)
        _check_heads(cfg, leaf, where, heads)
        _check_not_empty(leaf, where)
        _check_ignored_label(cfg, leaf, where)
        rules = mask_rules(cfg, leaf, where)
        if files:
            _warn_of_other_suffixes(leaf, where)
            _check_missing(leaf, where)
            check_files(leaf, rules, spread(len(leaf), SAMPLE))
        name_broken_files(leaf, rules)


def build_data(cfg: Any, data: Any, default_args: dict | None = None, files: bool = True) -> Any:
    """Builds and checks a data set; a failure says what is wrong with which file or setting.

    Args:
        cfg: the config of the run.
        data: the data set to build: `cfg.data.train`, `cfg.data.val`, ...
        default_args: as for mmseg's `build_dataset`, e.g. `dict(test_mode=True)`.
        files: as for `check_data`.

    Raises:
        DatasetError: see `check_data`; also missing folders and unknown types.
    """
    try:
        dataset = build(data, default_args)
    except FAILURES as error:
        raise DatasetError(diagnose(cfg, data, error)) from error
    check_data(cfg, dataset, files=files)
    return dataset


def label_classes(leaf: Any) -> tuple[str, ...]:
    """Names of the classes that the model sees.

    These are `leaf.CLASSES`, unless a transform of the pipeline maps the labels to other classes
    and says so with an attribute `CLASSES` (`MapillaryHack`: 66 -> 19).
    """
    return class_meta(leaf)["CLASSES"]


def class_meta(dataset: Any) -> dict[str, Any]:
    """`CLASSES` and `PALETTE` of what a model trained on a data set predicts, for checkpoints."""
    leaf = next(leaf_data_sets(dataset))
    meta = {"CLASSES": tuple(leaf.CLASSES), "PALETTE": leaf.PALETTE}
    for step in getattr(leaf.pipeline, "transforms", []):
        if getattr(step, "CLASSES", None):
            meta = {"CLASSES": tuple(step.CLASSES), "PALETTE": step.PALETTE}
    return meta


def mask_rules(cfg: Any, leaf: Any, where: str) -> MaskRules:
    """What the mask files of a data set may hold, from its settings and its loading step.

    Raises:
        DatasetError: `reduce_zero_label` of the loading step and of the data set differ.
    """
    steps = getattr(leaf.pipeline, "transforms", [])
    loads = [step for step in steps if isinstance(step, (LoadAnnotations, NamedMask))]
    zero = bool(leaf.reduce_zero_label)
    if loads and bool(loads[0].reduce_zero_label) != zero:
        raise DatasetError(
            f"{where}: LoadAnnotations has reduce_zero_label={loads[0].reduce_zero_label} but the "
            f"data set has {zero}: training and evaluation would count the classes differently; "
            "set both alike"
        )
    if not loads and zero != (trained := _trained_zero_label(cfg, leaf)) and trained is not None:
        raise DatasetError(
            f"{where}: reduce_zero_label={zero} but data.train, of the same type, trains with "
            f"reduce_zero_label={trained}: training and evaluation would count the classes "
            "differently; set both alike"
        )
    load = loads[0] if loads else leaf.gt_seg_map_loader
    count = len(leaf.label_map) if leaf.label_map else len(leaf.CLASSES)
    return MaskRules(count, zero, leaf.ignore_index, load.imdecode_backend)


def check_files(leaf: Any, rules: MaskRules, indices: Any) -> None:
    """Checks images and masks of the samples `indices` (see `masks.check_pair`).

    Raises:
        DatasetError: of the first file that cannot be used.
    """
    found: set[int] = set()
    for index in indices:
        image, mask = pair_paths(leaf, index)
        if mask is not None:
            found.update(check_pair(image, mask, rules).tolist())
    if found and found <= {0, IGNORE} and IGNORE in found and rules.num_labels > 1:
        logger.warning(
            "%s: the masks looked at only hold 0 and 255, and 255 is ignored: of a binary mask, "
            "save the object as 1",
            leaf.ann_dir,
        )


def spread(count: int, most: int) -> np.ndarray:
    """At most `most` indices of `count` samples, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def _trained_zero_label(cfg: Any, leaf: Any) -> bool | None:
    """`reduce_zero_label` in the training pipeline, if it reads the same kind of data set."""
    data = cfg.get("data", {}) if cfg is not None else {}
    for _, settings in leaf_configs(data.get("train", {}), "data.train"):
        if settings.get("type") in (type(leaf).__name__, type(leaf)):
            for step in settings.get("pipeline") or []:
                if step.get("type") == "LoadAnnotations":
                    return bool(step.get("reduce_zero_label", False))
    return None


def _parts(part: Any) -> list[tuple[str, Any]]:
    """The heads of `decode_head` or `auxiliary_head`, which may be a list: (suffix, head)."""
    if isinstance(part, (list, tuple, nn.ModuleList)):
        return [(f"[{i}]", head) for i, head in enumerate(part)]
    return [("", part)] if part is not None else []


def _class_counts(cfg: Any, model: nn.Module | None) -> Iterator[tuple[str, int]]:
    """`num_classes` of every head: (where it is set, value)."""
    settings = cfg.get("model", {}) if cfg is not None else {}
    model = getattr(model, "module", model)
    for name in _HEADS:
        part = settings.get(name) if model is None else getattr(model, name, None)
        for suffix, head in _parts(part):
            is_config = isinstance(head, dict)
            count = head.get("num_classes") if is_config else getattr(head, "num_classes", None)
            if isinstance(count, int):
                yield f"model.{name}{suffix}.num_classes", count


def _check_class_names(leaf: Any, where: str) -> None:
    """`classes` must be a sequence of different names."""
    names = leaf.CLASSES
    if not names or isinstance(names, str):
        raise DatasetError(
            f"{where}: the class names are {names!r}; set {where}.classes=('name', ...), with a "
            "comma after the name when there is one class"
        )
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise DatasetError(f"{where}: class names that occur twice: {listed(twice)}")


def _check_heads(cfg: Any, leaf: Any, where: str, heads: list[tuple[str, int]]) -> None:
    """Every head must have as many classes as the data set (or the released head's count)."""
    names = label_classes(leaf)
    released = (cfg.get("released_head") or {}) if cfg is not None else {}
    kept = released.get("num_classes") if released.get("mode") == "keep" else None
    wrong = [(name, value) for name, value in heads if value not in (len(names), kept)]
    if wrong:
        shown = ", ".join(f"{name}={value}" for name, value in wrong)
        raise DatasetError(
            f"the model does not fit the data: {shown}, but {where} has {len(names)} classes "
            f"({listed(names)}); set {', '.join(f'{name}={len(names)}' for name, _ in wrong)}, or "
            f"{where}.classes to the names the model is for"
        )


def _check_losses(cfg: Any) -> None:
    """A list of class weights must be as long as the head has outputs."""
    settings = cfg.get("model", {}) if cfg is not None else {}
    for name in _HEADS:
        for suffix, head in _parts(settings.get(name)):
            for loss, extra in (("loss_decode", 0), ("loss_cls", 1)):
                losses = head.get(loss) or []
                for part in losses if isinstance(losses, (list, tuple)) else [losses]:
                    weights = part.get("class_weight")
                    needed = head.get("num_classes", 0) + extra
                    if isinstance(weights, (list, tuple)) and len(weights) != needed:
                        why = " (one per class, and one for 'no object')" if extra else ""
                        raise DatasetError(
                            f"model.{name}{suffix}.{loss}.class_weight has {len(weights)} values, "
                            f"but num_classes={needed - extra} needs {needed}{why}"
                        )


def _check_ignored_label(cfg: Any, leaf: Any, where: str) -> None:
    """Heads and data set must ignore the same label."""
    settings = cfg.get("model", {}) if cfg is not None else {}
    for name in _HEADS:
        for suffix, head in _parts(settings.get(name)):
            ignored = head.get("ignore_index", IGNORE)
            if ignored != leaf.ignore_index:
                raise DatasetError(
                    f"model.{name}{suffix} ignores label {ignored} in training, {where} ignores "
                    f"{leaf.ignore_index} in the evaluation: set ignore_index of both alike"
                )


def _warn_of_other_suffixes(leaf: Any, where: str) -> None:
    """Pictures with another suffix (a.png beside *.jpg) are left out by mmseg without a word."""
    if leaf.split is not None or not osp.isdir(leaf.img_dir):
        return
    with os.scandir(leaf.img_dir) as entries:
        names = [entry.name for entry in itertools.islice(entries, MOST_LOOKUPS)]
    others = [
        name
        for name in names
        if name.lower().endswith(_PICTURES) and not name.endswith(leaf.img_suffix)
    ]
    if others:
        logger.warning(
            "%s: %s has pictures without the suffix %r, which are left out: %s; convert them, or "
            "list all in a `split` file with one suffix per data set",
            *(where, leaf.img_dir, leaf.img_suffix, listed(sorted(others), 3)),
        )


def _check_not_empty(leaf: Any, where: str) -> None:
    """At least one image."""
    if len(leaf):
        return
    if leaf.split is not None:
        raise DatasetError(f"{where}: no image: the list {leaf.split} is empty")
    others = [name for _, _, names in os.walk(leaf.img_dir) for name in names][:3]
    there = f"; there are files like {listed(others)}" if others else ", which has no files at all"
    raise DatasetError(
        f"{where}: no image: no file ending with {leaf.img_suffix!r} in "
        f"{osp.abspath(leaf.img_dir)}{there}; set {where}.img_suffix or {where}.img_dir"
    )


def _check_missing(leaf: Any, where: str) -> None:
    """Looks up to 1000 images and masks.

    Raises:
        DatasetError: files are missing; the message has the first path and what to set.
    """
    if leaf.file_client_args.get("backend", "disk") != "disk":
        return
    looked = spread(len(leaf), MOST_LOOKUPS)
    pairs = [pair_paths(leaf, i) for i in looked]
    for what, folder, suffix, paths in (
        ("image", leaf.img_dir, "img_suffix", [image for image, _ in pairs]),
        ("mask", leaf.ann_dir, "seg_map_suffix", [mask for _, mask in pairs if mask is not None]),
    ):
        missing = [path for path in paths if not osp.isfile(path)]
        if not missing:
            continue
        key = "img_dir" if what == "image" else "ann_dir"
        if folder and not osp.isdir(folder):
            place = f"the folder {osp.abspath(folder)} does not exist: put the data there or set "
            place += f"{where}.data_root (now {leaf.data_root!r}) and {where}.{key}"
        else:
            place = f"{where}.{key} is {folder!r} and {where}.{suffix} is "
            place += (
                f"{getattr(leaf, suffix)!r}: add the files, {converter_hint(type(leaf))}or change "
            )
            place += "one of the two"
        raise DatasetError(
            f"{where}: {len(missing)} of {len(paths)} {what}s looked up are missing, first "
            f"{missing[0]}; {place}"
        )
