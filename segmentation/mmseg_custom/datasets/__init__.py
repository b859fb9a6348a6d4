"""Data sets and transforms of this project, and the checks that every training starts with."""

from . import mapillary, nyu_depth_v2, transforms  # noqa: F401
