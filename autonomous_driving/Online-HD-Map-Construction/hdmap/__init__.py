"""Online HD maps with VectorMapNet; importing it registers models, data sets and transforms."""

import ad_common  # noqa: F401 - first: shared parts, and what mmcv needs on today's torch
