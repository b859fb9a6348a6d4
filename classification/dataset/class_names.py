"""Class lists of ImageNet, from timm."""

from __future__ import annotations

from functools import lru_cache

from timm.data import ImageNetInfo
from yacs.config import CfgNode

_SUBSETS = {1000: "imagenet-1k", 21841: "imagenet-22k"}


@lru_cache
def wordnet_ids(num_classes: int) -> tuple[str, ...]:
    """WordNet ids (n01440764, ...) of ImageNet-1K (1000) or 22K (21841), in label order."""
    return tuple(ImageNetInfo(_SUBSETS[num_classes]).label_names())


def names_for(what: CfgNode | int) -> list[str] | None:
    """Readable class names in label order, None where they are not known without the data.

    Args:
        what: a class count, or a configuration.
    """
    if isinstance(what, int):
        subset = _SUBSETS.get(what)
    else:
        is_imagenet = what.DATA.DATASET in ("imagenet", "imagenet22K")
        subset = _SUBSETS.get(what.MODEL.NUM_CLASSES) if is_imagenet else None
    return ImageNetInfo(subset).label_descriptions() if subset else None
