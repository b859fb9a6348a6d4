from .registration import InternImage

__all__ = ["InternImage"]
