"""FlashInternImage with the classification head of InternImage (arXiv 2401.06197, section 4.1)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .classifier import InternImageClassifier
from .flash_intern_image import FlashInternImage


class FlashInternImageClassifier(InternImageClassifier, FlashInternImage):
    """FlashInternImage for image classification: (N, 3, H, W) images -> (N, num_classes) logits.

    Args:
        num_classes: number of logits; 0 for none: `forward` returns the pooled features.
        cls_scale: width of the head over the width of the last level.
        use_clip_projector: refused: no FlashInternImage has that head.
        **trunk: arguments of :class:`FlashInternImage`.

    Raises:
        ValueError, TypeError: as :class:`InternImageClassifier`.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        cls_scale: float = 1.5,
        use_clip_projector: bool = False,
        **trunk: Any,
    ) -> None:
        if use_clip_projector:
            raise ValueError(
                "use_clip_projector=True is a head of InternImage-H and -G; FlashInternImage has "
                "the convolutional head only: leave the option out."
            )
        super().__init__(num_classes, cls_scale, **trunk)

    def forward_features_seq_out(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> the (N, C_i, H_i, W_i) map of every level before its downsampling.

        Channels first, other than InternImage's, as in the original implementations.
        """
        return [x.permute(0, 3, 1, 2).contiguous() for x in self.forward_levels(images)]
