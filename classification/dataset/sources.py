"""From a configuration to classes and samples: imagenet, imagenet22K, inat18, folder, webdataset.

Layouts under DATA.DATA_PATH:

* folder, imagenet:  train/<class>/*.jpg and val/<class>/*.jpg. List files with lines "path label"
  replace the class folders: DATA.TRAIN_LIST and DATA.VAL_LIST, and for imagenet also
  meta_data/train.txt or train.txt.zip where it exists (working directory, data root, or here).
* imagenet22K:  the same with WordNet ids as class folders, or with train.txt and val.txt in the
  root; meta_data/22k_class_to_idx.json replaces timm's class list where it exists.
* inat18:  see inat18.py.
* webdataset:  tar shards, see webdataset_source.py.
* ZIP_MODE:  train.zip and val.zip with class folders, or with list files train_map.txt and
  val_map.txt beside them.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from yacs.config import CfgNode

from config import is_typed

from . import listing
from .class_names import names_for, wordnet_ids
from .errors import DataError
from .inat18 import inat18_classes, inat18_samples
from .samples import Classes, Samples
from .webdataset_source import webdataset_classes, webdataset_samples

logger = logging.getLogger(__name__)

_HOW_TO_GET = {
    "imagenet": "ImageNet: https://www.image-net.org/download.php",
    "imagenet22K": "ImageNet-22K (Fall 2011): https://www.image-net.org/download.php",
    "inat18": "iNaturalist 2018: https://github.com/visipedia/inat_comp/tree/master/2018",
    "folder": "any images sorted into class folders; 'python tools/toy_digits.py DIR' of the "
    "repository writes a small example",
}
_LAYOUT = {
    "inat18": "train2018.json val2018.json train_val2018/...",
    "zip": "train.zip val.zip with class folders inside",
}
META_FORMER = "intern_image_meta_former"


def data_root(config: CfgNode) -> Path:
    """DATA.DATA_PATH, checked.

    Raises:
        DataError: not set or not there; says what is expected and how to get it.
    """
    name = config.DATA.DATASET
    layout = _LAYOUT.get("zip" if config.DATA.ZIP_MODE else name)
    layout = layout or "train/<class>/*.jpg val/<class>/*.jpg"
    hint = f"Expected there: {layout}. {_HOW_TO_GET[name]}"
    if not config.DATA.DATA_PATH:
        raise DataError(f"no data set given: type --data-path DIR. {hint}")
    root = Path(config.DATA.DATA_PATH)
    if not root.is_dir():
        raise DataError(f"data folder {root} (DATA.DATA_PATH) does not exist. {hint}")
    return root


def uses_metadata(config: CfgNode) -> bool:
    """Whether items carry time and place: inat18 for the model that reads them."""
    return config.MODEL.TYPE == META_FORMER


def list_file(config: CfgNode, split: str) -> Path | None:
    """The list file of a split, None where class folders are used."""
    root, name = Path(config.DATA.DATA_PATH), config.DATA.DATASET
    key = f"{split.upper()}_LIST"
    typed = config.DATA[key]
    if typed:
        found, places = listing.find_file(typed, root)
        if found is None:
            looked = ", ".join(map(str, places))
            raise DataError(f"list file DATA.{key} {typed!r} does not exist; looked for: {looked}")
        return found
    candidates = []
    if config.DATA.ZIP_MODE:
        candidates.append(root / f"{split}_map.txt")
    elif name == "imagenet22K":
        candidates.append(root / f"{split}.txt")
    elif name == "imagenet" and split == "train":
        for suffix in ("txt", "txt.zip"):
            candidates.append(listing.find_file(f"meta_data/train.{suffix}", root)[0])
    return next((path for path in candidates if path is not None and path.is_file()), None)


def _place(config: CfgNode, split: str) -> Path:
    """The folder or archive of a split."""
    root = data_root(config)
    place = root / (f"{split}.zip" if config.DATA.ZIP_MODE else split)
    if not place.exists():
        kind = "zip archive" if config.DATA.ZIP_MODE else "folder"
        raise DataError(f"{kind} {place} does not exist. {_HOW_TO_GET[config.DATA.DATASET]}")
    return place


def _class_folders(config: CfgNode, split: str) -> list[str]:
    place = _place(config, split)
    names = listing.zip_classes(place) if config.DATA.ZIP_MODE else listing.class_folders(place)
    if not names:
        raise DataError(f"{place} holds no class folders")
    return names


# ----------------------------------------------------------------------------------- classes
def _folder_classes(config: CfgNode) -> Classes:
    root = data_root(config)
    suffix = ".zip" if config.DATA.ZIP_MODE else ""
    splits = ["train", "val"]
    if not (root / f"train{suffix}").exists() and not config.DATA.TRAIN_LIST:
        splits = ["val", "train"]  # evaluation with nothing but the validation half at hand
    listed = list_file(config, splits[0])
    if listed is not None:
        return Classes(_listed_classes(config, listed))
    names = _class_folders(config, splits[0])
    return Classes(len(names), names, {name: i for i, name in enumerate(names)})


def _listed_classes(config: CfgNode, listed: Path) -> int:
    """Largest label plus one, or a typed MODEL.NUM_CLASSES above that: a list need not hold all."""
    count = int(listing.read_list(listed)[1].max()) + 1
    typed = config.MODEL.NUM_CLASSES
    if typed <= count or not is_typed(config, "MODEL.NUM_CLASSES"):
        return count
    logger.info(
        "the labels of %s end at %d; the model gets the %d classes that were typed",
        listed,
        count - 1,
        typed,
    )
    return typed


def _imagenet_classes(config: CfgNode) -> Classes:
    for split in ("train", "val"):
        suffix = ".zip" if config.DATA.ZIP_MODE else ""
        has_place = (data_root(config) / f"{split}{suffix}").exists()
        if list_file(config, split) is None and has_place:
            break
    else:
        return Classes(1000, names_for(1000))
    names = _class_folders(config, split)
    index = {wnid: i for i, wnid in enumerate(wordnet_ids(1000))}
    if not set(names) <= set(index):
        if len(names) != 1000:
            raise DataError(
                f"DATA.DATASET imagenet needs 1000 class folders in {_place(config, split)}, or "
                f"some named by WordNet ids (n01440764, ...); found {len(names)}, e.g. "
                f"{names[0]!r}. For your own classes: --dataset folder"
            )
        index = {name: i for i, name in enumerate(names)}
    return Classes(1000, names_for(1000), index)


def _imagenet22k_classes(config: CfgNode) -> Classes:
    path, _ = listing.find_file("meta_data/22k_class_to_idx.json", data_root(config))
    if path is None:
        index = {wnid: i for i, wnid in enumerate(wordnet_ids(21841))}
        return Classes(len(index), names_for(21841), index)
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        valid = sorted(index.values()) == list(range(len(index)))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"class index {path} cannot be read: {error}") from error
    if not valid:
        raise DataError(f"class index {path} must map class folders to 0..n-1, each once")
    names = names_for(21841) if list(index) == list(wordnet_ids(21841)) else list(index)
    return Classes(len(index), names, index)


def load_classes(config: CfgNode) -> Classes:
    """The classes of the configured data set, without listing its images.

    Raises:
        DataError: see `data_root`; or class folders that do not fit the data set.
    """
    name = config.DATA.DATASET
    root = None if name == "webdataset" else data_root(config)
    if name == "inat18":
        return inat18_classes(root)
    if uses_metadata(config):
        raise DataError(f"MODEL.TYPE {META_FORMER} needs DATA.DATASET inat18, got {name!r}")
    if name == "webdataset":
        if config.DATA.ZIP_MODE:
            raise DataError("DATA.ZIP_MODE (--zip) is not available for webdataset")
        return webdataset_classes(config)
    if name == "imagenet":
        return _imagenet_classes(config)
    return _imagenet22k_classes(config) if name == "imagenet22K" else _folder_classes(config)


# ----------------------------------------------------------------------------------- samples
def load_samples(config: CfgNode, split: str, classes: Classes) -> Samples:
    """All images of a split ('train' or 'val').

    Raises:
        DataError: missing folder, archive, shard or list; malformed list; empty or unknown class
            folder.
    """
    if config.DATA.DATASET == "webdataset":
        return webdataset_samples(config, split, classes)
    root = data_root(config)
    if config.DATA.DATASET == "inat18":
        if config.DATA.ZIP_MODE:
            raise DataError("DATA.ZIP_MODE (--zip) is not available for inat18")
        return inat18_samples(root, split, classes, uses_metadata(config))
    listed = list_file(config, split)
    if listed is not None:
        logger.info("%s images are listed in %s", split, listed)
        place = f"{root}/{split}.zip@/" if config.DATA.ZIP_MODE else f"{root}/"
        return listing.list_samples(listed, [f"{place}{split}/", place], classes.count)
    place = _place(config, split)
    if classes.index is None:
        raise DataError(
            f"one half of the data set has a list file, but {split} has none: "
            f"give --opts DATA.{split.upper()}_LIST FILE"
        )
    if config.DATA.DATASET != "imagenet22K":
        _check_same_classes(config)
    if config.DATA.ZIP_MODE:
        return listing.zip_samples(place, classes.index)
    return listing.folder_samples(place, classes.index)


def _check_same_classes(config: CfgNode) -> None:
    suffix = ".zip" if config.DATA.ZIP_MODE else ""
    places = [data_root(config) / f"{split}{suffix}" for split in ("train", "val")]
    lists = [list_file(config, split) for split in ("train", "val")]
    if any(lists) or not all(place.exists() for place in places):
        return
    train, val = (set(_class_folders(config, split)) for split in ("train", "val"))
    parts = [
        f"only in {place}: {', '.join(sorted(names)[:10])}"
        for place, names in zip(places, (train - val, val - train), strict=True)
        if names
    ]
    if parts:
        raise DataError(f"the class folders of train and val differ; {'; '.join(parts)}")
