"""Data sets of this project and the checks that every run starts with."""

from .crowd_human import CrowdHumanDataset
from .faster_coco import FasterCocoDataset

__all__ = ["CrowdHumanDataset", "FasterCocoDataset"]
