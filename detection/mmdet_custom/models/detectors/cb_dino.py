"""DINO with a composite backbone (CBNet, arXiv 2107.00420)."""

from __future__ import annotations

from mmdet.models.builder import DETECTORS

from .dino import DINO

__all__ = ["CBDINO"]


@DETECTORS.register_module()
class CBDINO(DINO):
    """`CBInternImage`, ``[CBChannelMapper]`` and `CBDINOHead`; takes the arguments of `DINO`.

    In training the neck hands on the maps of both backbones and the head learns from both, for any
    number of images per process; at test time both see the lead backbone's only. The original's
    option ``rule``, which froze parts by name and which no configuration uses, does not exist: give
    the backbone ``frozen_stages``.
    """
