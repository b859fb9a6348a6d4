"""Mixup and CutMix (arXiv 1710.09412, 1905.04899) from timm, repeatable per epoch."""

from __future__ import annotations

from timm.data import Mixup
from torch import Tensor
from yacs.config import CfgNode

from .errors import DataError
from .rng import keyed_rng


class EpochMixup(Mixup):
    """timm's Mixup whose random numbers depend on (seed, rank, epoch, step) alone.

    Called with images (N, 3, H, W) and integer targets (N,); returns the mixed images and soft
    targets (N, num_classes).
    """

    def __init__(self, *, seed: int = 0, rank: int = 0, **kwargs):
        super().__init__(**kwargs)
        self._seed, self._rank = seed, rank
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Start the random numbers of an epoch."""
        self._epoch, self._step = epoch, 0

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        with keyed_rng(self._seed, self._epoch, self._rank, self._step, 1):
            self._step += 1
            return super().__call__(x, target)


def build_mixup(config: CfgNode, num_classes: int, rank: int = 0) -> EpochMixup | None:
    """The mixing function, None when MIXUP, CUTMIX and CUTMIX_MINMAX are all off.

    Raises:
        DataError: an odd batch size; images are mixed in pairs.
    """
    aug = config.AUG
    if not (aug.MIXUP > 0 or aug.CUTMIX > 0 or aug.CUTMIX_MINMAX is not None):
        return None
    if config.DATA.BATCH_SIZE % 2:
        raise DataError(
            f"mixup and cutmix pair up images: DATA.BATCH_SIZE {config.DATA.BATCH_SIZE} must be "
            "even (or --opts AUG.MIXUP 0 AUG.CUTMIX 0)"
        )
    return EpochMixup(
        seed=config.SEED,
        rank=rank,
        mixup_alpha=aug.MIXUP,
        cutmix_alpha=aug.CUTMIX,
        cutmix_minmax=aug.CUTMIX_MINMAX,
        prob=aug.MIXUP_PROB,
        switch_prob=aug.MIXUP_SWITCH_PROB,
        mode=aug.MIXUP_MODE,
        label_smoothing=config.MODEL.LABEL_SMOOTHING,
        num_classes=num_classes,
    )
