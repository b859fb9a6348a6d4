"""Online HD maps with VectorMapNet; importing it registers models, data sets and transforms."""

import ad_common  # noqa: F401 - first: shared parts, and what mmcv needs on today's torch

from . import (  # noqa: F401
    assign,
    dataset,
    det_head,
    dg_head,
    gen_head,
    ipm_encoder,
    losses,
    mapper,
    polygonize,
    transformer,
    vectorize,
)
