"""What the OpenMMLab task folders share: compatibility, launching, checkpoints, optimizers.

Free of mmdet and mmseg: what belongs to one task comes in as an argument.
"""

from . import (  # noqa: F401  register hooks
    amp,
    compat,
    runner,
)
