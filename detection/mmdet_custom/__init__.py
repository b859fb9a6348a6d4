"""InternImage detectors for mmdet 2.x; importing it registers them."""

from . import models  # noqa: F401
