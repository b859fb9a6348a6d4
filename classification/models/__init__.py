"""The models of this folder; `build_model` makes the one that a config describes."""

from .build import build_model
from .classifier import InternImageClassifier
from .flash_classifier import FlashInternImageClassifier
from .flash_intern_image import FlashInternImage
from .intern_image import InternImage
from .intern_image_meta_former import InternImageMetaFormer

__all__ = [
    "FlashInternImage",
    "FlashInternImageClassifier",
    "InternImage",
    "InternImageClassifier",
    "InternImageMetaFormer",
    "build_model",
]
