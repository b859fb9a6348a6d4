"""Makes the vendored trunks backbones of mmdet: `type='InternImage'` or `'FlashInternImage'`."""

from __future__ import annotations

from typing import Any

from mmcv.runner import BaseModule
from mmcv_custom.pretrained import checkpoint_of, load_backbone
from mmdet.models.builder import BACKBONES

from .flash_intern_image import FlashInternImage as FlashTrunk
from .intern_image import InternImage as Trunk


class Pretrainable:
    """Gives a trunk mmcv's `init_cfg`, and `pretrained`, its older spelling for a checkpoint."""

    def __init__(self, *args: Any, pretrained: str | None = None, init_cfg: Any = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.init_cfg = init_cfg
        self.checkpoint = checkpoint_of(init_cfg, pretrained)

    def init_weights(self) -> None:
        """Loads the checkpoint; without one the weights stay as the constructor drew them."""
        if self.checkpoint is not None:
            load_backbone(self, self.checkpoint)
        else:
            super().init_weights()


@BACKBONES.register_module()
class InternImage(Pretrainable, Trunk, BaseModule):
    """See `intern_image.InternImage` for the arguments and outputs."""


@BACKBONES.register_module()
class FlashInternImage(Pretrainable, FlashTrunk, BaseModule):
    """See `flash_intern_image.FlashInternImage` (DCNv4) for the arguments and outputs."""
