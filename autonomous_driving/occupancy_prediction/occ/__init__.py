"""Occupancy prediction with BEVFormerOcc; importing it registers models, data sets, transforms."""

import ad_common  # noqa: F401 - first: shared parts, and what mmcv needs on today's torch

from . import dataset, detector, head, loading, transformer  # noqa: F401
