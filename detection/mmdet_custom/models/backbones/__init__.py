from .cb_intern_image import CBInternImage
from .registration import FlashInternImage, InternImage

__all__ = ["CBInternImage", "FlashInternImage", "InternImage"]
