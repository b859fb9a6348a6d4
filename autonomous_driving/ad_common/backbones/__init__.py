"""The vendored trunks, registered with mmdet; see classification/models/intern_image.py."""

from .registration import FlashInternImage, InternImage

__all__ = ["FlashInternImage", "InternImage"]
