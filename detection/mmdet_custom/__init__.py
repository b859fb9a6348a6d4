"""InternImage detectors for mmdet 2.x; importing it registers models and data sets."""

import mmcv_custom  # noqa: F401 - first: makes mmcv and mmdet fit the installed torch

from . import datasets, models  # noqa: F401
