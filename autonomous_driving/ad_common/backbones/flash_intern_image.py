# Kept identical in every task folder.
# Edit classification/models/flash_intern_image.py, then run `make sync`.
"""FlashInternImage (arXiv 2401.06197, section 4.1): the InternImage trunk with DCNv4 in its blocks.

The released models, all with 16 channels per group:

    name   channels   depths          groups             further options
    T      64         4, 4, 18, 4     4, 8, 16, 32       offset_scale 1
    S      80         4, 4, 21, 4     5, 10, 20, 40      offset_scale 1, layer_scale, post_norm,
                                                         dw_kernel_size 3
    B      112        4, 4, 21, 4     7, 14, 28, 56      as S, offset_scale 0.5
    L      160        5, 5, 22, 5     10, 20, 40, 80     as S, offset_scale 2, dcn_output_bias,
                                                         mlp_fc2_bias

The parameters have the names of the original implementation, so its checkpoints load. Options that
mean something else than in InternImage:

* ``dw_kernel_size``: None is no depthwise convolution instead of a 3x3 one.
* ``dcn_output_bias``, ``mlp_fc2_bias``: biases that InternImage always has; here not by default.
* ``center_feature_scale`` adds the last norm of every level and no gate; ``remove_center`` does
  nothing. Both are what the original does.

One difference from the original: ``drop_rate`` (0 in all released models) also acts after the stem,
as in InternImage.
"""

from __future__ import annotations

from typing import Any

from .intern_image import InternImage, check_choice

__all__ = ["FlashInternImage"]


class FlashInternImage(InternImage):
    """The FlashInternImage trunk: (N, 3, H, W) images -> a list of (N, C_i, H_i, W_i) maps.

    Args:
        core_op: 'DCNv4'.
        offset_scale: factor on the sampling grid of DCNv4.
        drop_path_rate: stochastic depth (probability to drop a residual branch).
        **trunk: further arguments of :class:`InternImage`.

    Raises:
        ValueError, TypeError: as :class:`InternImage`.
    """

    def __init__(
        self,
        core_op: str = "DCNv4",
        offset_scale: float = 0.5,
        drop_path_rate: float = 0.2,
        **trunk: Any,
    ) -> None:
        check_choice("core_op", core_op, ("DCNv4",))
        super().__init__(
            core_op=core_op, offset_scale=offset_scale, drop_path_rate=drop_path_rate, **trunk
        )
