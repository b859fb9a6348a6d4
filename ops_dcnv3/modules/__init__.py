"""Layers built on the operator."""

from .dcnv3 import DCNv3, DCNv3_pytorch
from .dcnv4 import DCNv4

__all__ = ["DCNv3", "DCNv3_pytorch", "DCNv4"]
