"""Data sets of this project and the checks that every run starts with."""

from .crowd_human import CrowdHumanDataset

__all__ = ["CrowdHumanDataset"]
