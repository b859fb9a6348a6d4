"""Pipeline steps on several cameras, and samplers; importing it registers them with mmdet."""

from . import formatting, loading, transforms  # noqa: F401
