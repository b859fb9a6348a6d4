"""What the three driving projects share: BEV encoder, geometry, data, metrics, programs.

Importing it registers the backbones, the BEV modules, the transforms and the samplers with mmdet's
registries; a project's own package (`occ`, `olv2`, `hdmap`) imports it first and adds its parts.
"""

import mmcv_custom  # noqa: F401 - first: makes mmcv and mmdet fit the installed torch

from . import backbones, bev, datasets  # noqa: F401
