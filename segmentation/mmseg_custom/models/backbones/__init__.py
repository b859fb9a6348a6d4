from .registration import FlashInternImage, InternImage

__all__ = ["FlashInternImage", "InternImage"]
