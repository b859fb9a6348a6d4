"""Makes the vendored trunk a backbone of mmseg: `type='InternImage'` in a config."""

from __future__ import annotations

from typing import Any

from mmcv.runner import BaseModule
from mmseg.models.builder import BACKBONES

from .intern_image import InternImage as Trunk


@BACKBONES.register_module()
class InternImage(Trunk, BaseModule):
    """The trunk with mmcv's `init_cfg`; arguments and outputs are those of the trunk."""

    def __init__(self, *args: Any, init_cfg: dict | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.init_cfg = init_cfg
