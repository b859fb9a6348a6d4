"""InternImage segmentors for mmsegmentation 0.x; importing it registers them."""

from . import models  # noqa: F401
