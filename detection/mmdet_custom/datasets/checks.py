"""What is wrong with a data set, said before a training or test run starts.

`check_data` looks at a data set that mmdet has built; `build_data` builds one and says why that
failed. Both raise `DatasetError`. What can be lived with is a warning with a count.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from mmdet.datasets import CocoDataset, OpenImagesDataset, XMLDataset
from torch import nn

from .coco_checks import check_coco
from .errors import DatasetError, listed
from .image_checks import check_images, name_broken_images
from .splits import leaf_data_sets, split_name, split_of
from .xml_checks import check_openimages, check_xml

logger = logging.getLogger("mmdet.data")  # below mmdet's own: rank 0 speaks, the others are quiet

__all__ = ["DatasetError", "build_data", "check_data"]

# what mmdet and pycocotools stumble over in annotation files that are not what they should be
_BUILD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    SyntaxError,  # xml
    TypeError,
    ValueError,
)

# parts of a model that have a `num_classes` of another meaning
_NOT_HEADS = ("backbone", "rpn_head", "train_cfg", "test_cfg")


def check_data(
    cfg: Any, dataset: Any, model: nn.Module | None = None, split: str | None = None
) -> None:
    """Checks a built data set against itself and against the model; seconds for all of COCO.

    Args:
        cfg: the config of the run (`cfg.model`, `cfg.data`).
        dataset: what mmdet's `build_dataset` gave, wrappers (RepeatDataset, ...) included.
        model: the built detector; without it the class counts are read from `cfg.model`.
        split: 'train', 'val' or 'test', for the messages; else it is found by the annotation file.

    From then on an image that cannot be read raises a `DatasetError` with the name of its file.

    Raises:
        DatasetError: the class names, the class counts of the heads or the categories of the json
            do not fit together; no image is left; images are missing; annotations are broken.
    """
    heads = list(_class_counts(cfg, model))
    for leaf in leaf_data_sets(dataset):
        where = split_name(cfg, leaf, split)
        _check_class_names(leaf, where)
        if isinstance(leaf, CocoDataset):
            check_coco(leaf, where, heads)
        _check_heads(leaf, where, heads)
        _check_not_empty(leaf, where)
        if isinstance(leaf, XMLDataset):
            check_xml(leaf, where)
        elif isinstance(leaf, OpenImagesDataset):
            check_openimages(leaf, where)
        check_images(leaf, where)
        name_broken_images(leaf)


def build_data(cfg: Any, data: Any, default_args: dict | None = None) -> Any:
    """mmdet's `build_dataset`, then `check_data`; a failure says what is wrong with which file.

    Args:
        cfg: the config of the run.
        data: the data set to build: `cfg.data.train`, `cfg.data.val`, ...
        default_args: as for `build_dataset`, e.g. `dict(test_mode=True)`.

    Raises:
        DatasetError: see `check_data`; also a missing, truncated or foreign annotation file.
    """
    from mmdet.datasets import build_dataset

    from .diagnosis import diagnose

    try:
        dataset = build_dataset(data, default_args)
    except _BUILD_ERRORS as error:
        raise DatasetError(diagnose(cfg, data, error)) from error
    check_data(cfg, dataset, split=split_of(cfg, data))
    return dataset


def _class_counts(cfg: Any, model: nn.Module | None) -> Iterator[tuple[str, int]]:
    """`num_classes` of every head: (where it is set, value)."""
    if model is not None:
        for name, module in model.named_modules():
            count = getattr(module, "num_classes", None)
            if isinstance(count, int) and not set(name.split(".")) & set(_NOT_HEADS):
                yield f"model.{name}.num_classes", count
        return
    yield from _find_counts(cfg.get("model", {}) if cfg is not None else {}, "model")


def _find_counts(part: Any, path: str) -> Iterator[tuple[str, int]]:
    if isinstance(part, dict):
        for key, value in part.items():
            if key == "num_classes" and isinstance(value, int):
                yield f"{path}.num_classes", value
            elif key not in _NOT_HEADS:
                yield from _find_counts(value, f"{path}.{key}")
    elif isinstance(part, (list, tuple)):
        for i, value in enumerate(part):
            yield from _find_counts(value, f"{path}[{i}]")


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


def _check_heads(leaf: Any, where: str, heads: list[tuple[str, int]]) -> None:
    """Every head must have as many classes as the data set."""
    count = len(leaf.CLASSES)
    wrong = [(name, value) for name, value in heads if value != count]
    if wrong:
        shown = ", ".join(f"{name}={value}" for name, value in wrong)
        raise DatasetError(
            f"the model does not fit the data: {shown}, but {where} has {count} classes "
            f"({listed(leaf.CLASSES)}); set num_classes={count} in "
            f"{', '.join(name.rsplit('.', 1)[0] for name, _ in wrong)}, or "
            f"{where}.classes to the names the model is for"
        )


def _check_not_empty(leaf: Any, where: str) -> None:
    """At least one image must be left after mmdet's filters."""
    if len(leaf):
        return
    source = f"{where}: no image is left of {leaf.ann_file}"
    if leaf.test_mode:
        raise DatasetError(f"{source}: it lists none; set {where}.ann_file to another file")
    counts = ""
    if isinstance(leaf, CocoDataset):
        images = leaf.coco.dataset["images"]
        small = sum(min(row["width"], row["height"]) < 32 for row in images)
        boxes = len(leaf.coco.dataset.get("annotations", []))
        counts = f" Of its {len(images)} images {small} are so small; it has {boxes} annotations."
    raise DatasetError(
        f"{source}: for training, images smaller than 32 pixels on a side and (with "
        f"filter_empty_gt=True) images without an object of the {len(leaf.CLASSES)} classes "
        f"({listed(leaf.CLASSES)}) are dropped.{counts} Check {where}.ann_file and {where}.classes"
    )
