"""Lane topology on OpenLane-V2; importing it registers models, data sets and transforms."""

import ad_common  # noqa: F401 - first: shared parts, and what mmcv needs on today's torch

from . import (  # noqa: F401
    assign,
    bev_constructor,
    dataset,
    detector,
    lane_head,
    te_head,
    topology_head,
    transformer,
    transforms,
)
