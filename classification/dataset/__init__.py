"""Data sets and loaders for classification; `build_loader` is the entry."""

from .class_names import names_for
from .errors import CorruptDataError, DataError
from .loader import Loaders, build_loader, num_classes_of
from .transforms import build_transform

__all__ = [
    "CorruptDataError",
    "DataError",
    "Loaders",
    "build_loader",
    "build_transform",
    "names_for",
    "num_classes_of",
]
