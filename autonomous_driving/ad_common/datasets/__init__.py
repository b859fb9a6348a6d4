"""Pipeline steps on several cameras, and samplers; importing it registers the steps with mmdet."""

from . import formatting, loading, transforms  # noqa: F401
