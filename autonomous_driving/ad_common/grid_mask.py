"""GridMask (arXiv 2001.04086): images lose a grid of squares while a model trains."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class GridMask(nn.Module):
    """Removes a grid of rectangles, or all but it, from a batch of images.

    All images of a call get the same mask. The random numbers are torch's on the CPU, whatever the
    device of the images, so a seed decides the masks. Does nothing in eval mode.

    Args:
        use_h: Stripes of rows.
        use_w: Stripes of columns.
        rotate: The grid is turned by less than so many degrees; 1: not at all.
        offset: Fill with noise in [-1, 1] instead of zeros.
        ratio: Width of a stripe as a share of the grid's period.
        mode: 0 removes the stripes; 1 keeps them and removes the rectangles between.
        prob: Share of the calls that mask.
    """

    def __init__(
        self,
        use_h: bool = True,
        use_w: bool = True,
        rotate: int = 1,
        offset: bool = False,
        ratio: float = 0.5,
        mode: int = 0,
        prob: float = 1.0,
    ) -> None:
        super().__init__()
        if mode not in (0, 1):
            raise ValueError(f"mode of GridMask is {mode}; 0 removes stripes, 1 rectangles")
        if not 0 <= prob <= 1 or not 0 < ratio < 1 or rotate < 1:
            raise ValueError(
                f"GridMask needs prob in [0, 1], ratio in (0, 1) and rotate >= 1, got {prob}, "
                f"{ratio} and {rotate}"
            )
        self.use_h = use_h
        self.use_w = use_w
        self.rotate = rotate
        self.offset = offset
        self.ratio = ratio
        self.mode = mode
        self.prob = prob

    def draw(self, height: int, width: int, generator: torch.Generator | None = None) -> Tensor:
        """A random mask (height, width) bool on the CPU, true where the image stays.

        The period of the grid is a random number of pixels from 2 to less than the height.
        """

        def integer(low: int, high: int) -> int:
            return int(torch.randint(low, max(high, low + 1), (), generator=generator))

        period = integer(2, height)
        stripe = min(max(int(period * self.ratio + 0.5), 1), period - 1)
        first_row, first_column = integer(0, period), integer(0, period)
        angle = math.radians(integer(0, self.rotate))
        y, x = torch.meshgrid(
            torch.arange(height, dtype=torch.float32) - height // 2,
            torch.arange(width, dtype=torch.float32) - width // 2,
            indexing="ij",
        )
        rows = (y * math.cos(angle) - x * math.sin(angle)).round() + first_row
        columns = (y * math.sin(angle) + x * math.cos(angle)).round() + first_column
        in_stripe = torch.zeros(height, width, dtype=torch.bool)
        if self.use_h:
            in_stripe |= rows.remainder(period) < stripe
        if self.use_w:
            in_stripe |= columns.remainder(period) < stripe
        return in_stripe if self.mode == 1 else ~in_stripe

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mask images.

        Args:
            images: (..., H, W).
            generator: Of the random numbers, on the CPU; torch's own if None.

        Returns:
            (..., H, W), new images, or the same ones where nothing is masked.
        """
        if not self.training or float(torch.rand((), generator=generator)) >= self.prob:
            return images
        stays = self.draw(*images.shape[-2:], generator=generator)
        if not self.offset:
            return images * stays.to(images.device, images.dtype)
        noise = 2 * torch.rand(stays.shape, generator=generator) - 1
        return torch.where(stays.to(images.device), images, noise.to(images.device, images.dtype))
