"""What the OpenMMLab task folders share: compatibility, launching, checkpoints, optimizers.

Importing it applies `compat` and registers, with mmcv, the optimizer constructor and the hooks.
Free of mmdet and mmseg: what belongs to one task comes in as an argument.
"""

from . import compat  # noqa: F401  first: what follows relies on it

from . import amp, layer_decay_optimizer_constructor, runner  # noqa: F401  isort: skip
