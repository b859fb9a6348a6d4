"""Lane topology on OpenLane-V2; importing it registers models, data sets and transforms."""

import ad_common  # noqa: F401 - first: shared parts, and what mmcv needs on today's torch

from . import assign, detector, lane_head, te_head, topology_head, transformer  # noqa: F401
