"""InternImage segmentors for mmsegmentation 0.x; importing it registers them."""

import mmcv_custom  # noqa: F401 - first: makes mmcv and mmseg fit the installed torch

from . import datasets, models  # noqa: F401
