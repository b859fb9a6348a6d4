"""Makes the vendored trunks backbones of mmseg: `type='InternImage'` or `'FlashInternImage'`."""

from __future__ import annotations

from typing import Any

from mmcv.runner import BaseModule
from mmseg.models.builder import BACKBONES

from .flash_intern_image import FlashInternImage as FlashTrunk
from .intern_image import InternImage as Trunk


class Pretrainable:
    """Gives a trunk mmcv's `init_cfg`."""

    def __init__(self, *args: Any, init_cfg: dict | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.init_cfg = init_cfg


@BACKBONES.register_module()
class InternImage(Pretrainable, Trunk, BaseModule):
    """See `intern_image.InternImage` for the arguments and outputs."""


@BACKBONES.register_module()
class FlashInternImage(Pretrainable, FlashTrunk, BaseModule):
    """See `flash_intern_image.FlashInternImage` (DCNv4) for the arguments and outputs."""
