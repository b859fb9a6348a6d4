"""Lane topology on OpenLane-V2; importing it registers models, data sets and transforms."""

import warnings

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

# mmdet 2 calls torch.meshgrid as torch had it once; the result is the same
warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")
