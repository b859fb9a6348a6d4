"""What every exported detector has: it finds out how much of its input is padding; needs mmdeploy.

mmdet tells a model the size of an image besides its padded pixels: boxes are clipped to it, and
DINO measures in it. An exported file gets only the pixels. Padding is exactly 0, which no pixel of
a photo is after its mean was subtracted (means of the configs are no whole numbers), so the file
can see it. mmdeploy's translation takes the padding for a part of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmcv_custom.exported_attention import replace
from torch import Tensor

FORWARD = "mmdet.models.detectors.base.BaseDetector.forward"


def last_used(values: Tensor) -> Tensor:
    """Number of entries up to the last one that is not 0, at least 1; a tensor without axes."""
    place = torch.arange(values.shape[0], device=values.device) + 1
    return torch.where(values > 0, place, torch.ones_like(place)).amax()


def image_size(img: Tensor) -> Tensor:
    """(height, width) of the largest image in (N, C, H, W), without padding below and right."""
    strength = img.abs()
    return torch.stack((last_used(strength.amax((0, 1, 3))), last_used(strength.amax((0, 1, 2)))))


def forward(
    _: Any,
    self: Any,
    img: Tensor | Sequence[Tensor],
    img_metas: Any = None,
    return_loss: bool = False,
    **kwargs: Any,
) -> Any:
    """`BaseDetector.forward` at test time.

    Args:
        img: (N, C, H, W), or one such in a list.
        img_metas: one list with the images' metas; the sizes in it are replaced.
    """
    img = img if isinstance(img, Tensor) else img[0]
    meta = dict((img_metas or [[{}]])[0][0])
    meta["img_shape"] = image_size(img)
    meta["batch_input_shape"] = torch._shape_as_tensor(img)[2:]
    return self.simple_test(img, [meta] * img.shape[0], **kwargs)


replace(FORWARD, forward)
