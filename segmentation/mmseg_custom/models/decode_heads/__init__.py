"""Registers `Mask2FormerHead` with mmseg; mmdet is imported when the first such head is built."""

from __future__ import annotations

from typing import Any

from mmcv.runner import BaseModule
from mmseg.models.builder import HEADS

__all__ = ["Mask2FormerHead"]


@HEADS.register_module()
def Mask2FormerHead(**options: Any) -> BaseModule:
    """Builds :class:`mask2former_head.Mask2FormerHead`; ``options`` are its arguments.

    Raises:
        ImportError: mmdet is not installed. Only Mask2Former needs it.
    """
    try:
        import mmdet  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "mmdet":
            raise
        raise ImportError(
            "Mask2Former is built from mmdet's parts, and mmdet is not installed: "
            "`pip install mmdet==2.28.2`. UPerNet and SegFormer do not need it."
        ) from error
    from .mask2former_head import Mask2FormerHead as Head

    return Head(**options)
