"""InternImage segmentors for mmsegmentation 0.x; importing it registers them."""

from . import datasets, models  # noqa: F401
