"""What the OpenMMLab task folders share: compatibility, launching, checkpoints, optimizers.

Importing it applies `compat` and registers, with mmcv, the optimizer constructor and the hooks.
Free of mmdet and mmseg: what belongs to one task comes in as an argument.
"""

import warnings

# mmcv 1.7 announces its version 2 at every import
warnings.filterwarnings("ignore", message="On January 1, 2023, MMCV will release v2.0.0")

from . import compat  # noqa: E402, F401  first: what follows relies on it

from . import amp, layer_decay_optimizer_constructor, runner  # noqa: E402, F401  isort: skip
