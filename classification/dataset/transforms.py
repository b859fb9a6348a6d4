"""Image transforms, put together from timm and torchvision."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image
from timm.data import create_transform
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from yacs.config import CfgNode

from .errors import DataError


def interpolation_mode(name: str) -> InterpolationMode:
    """The interpolation of validation; 'random' (a choice per image) becomes bilinear there."""
    return str_to_interp_mode("bilinear" if name == "random" else name)


def build_transform(is_train: bool, config: CfgNode) -> Callable[[Image.Image], Tensor]:
    """PIL image -> normalised float32 tensor (3, IMG_SIZE, IMG_SIZE).

    Training: timm's ImageNet augmentation. Validation, by TEST.CROP: True resizes the short side to
    IMG_SIZE and crops the centre; False squashes to a square, or crops at random when
    AUG.RANDOM_RESIZED_CROP is on.

    Raises:
        DataError: AUG.AUTO_AUGMENT is not a policy of timm.
    """
    aug, size = config.AUG, config.DATA.IMG_SIZE
    if is_train:
        try:
            return _train_transform(config)
        except AssertionError as error:
            raise DataError(
                f"AUG.AUTO_AUGMENT {aug.AUTO_AUGMENT!r} is not a policy of timm ({error}): it must "
                "be like rand-m9-mstd0.5-inc1, original, augmix-m3 or 3a, or none"
            ) from error
    mode = interpolation_mode(config.DATA.INTERPOLATION)
    if config.TEST.CROP:
        steps = [transforms.Resize(size, interpolation=mode), transforms.CenterCrop(size)]
    elif aug.RANDOM_RESIZED_CROP:
        scale, ratio = tuple(aug.SCALE), tuple(aug.RATIO)
        steps = [transforms.RandomResizedCrop(size, scale, ratio, interpolation=mode)]
    else:
        steps = [transforms.Resize((size, size), interpolation=mode)]
    return transforms.Compose(
        [*steps, transforms.ToTensor(), transforms.Normalize(aug.MEAN, aug.STD)]
    )


def _train_transform(config: CfgNode) -> Callable[[Image.Image], Tensor]:
    aug = config.AUG
    return create_transform(
        input_size=config.DATA.IMG_SIZE,
        is_training=True,
        scale=tuple(aug.SCALE),
        ratio=tuple(aug.RATIO),
        hflip=aug.HFLIP,
        color_jitter=aug.COLOR_JITTER if aug.COLOR_JITTER > 0 else None,
        auto_augment=aug.AUTO_AUGMENT if aug.AUTO_AUGMENT.lower() != "none" else None,
        re_prob=aug.REPROB,
        re_mode=aug.REMODE,
        re_count=aug.RECOUNT,
        interpolation=config.DATA.INTERPOLATION,
        mean=tuple(aug.MEAN),
        std=tuple(aug.STD),
    )
