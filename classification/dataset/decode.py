"""From the bytes of an image file to an RGB image of 8 bits per channel."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

# What PIL raises for broken files.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    IndexError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
)


def decode_image(file: str | Path | IO[bytes]) -> Image.Image:
    """Read an image as RGB, as torchvision's ImageFolder does: without alpha, EXIF not applied.

    Grey images of 16 bits are scaled to 8; PIL's own conversion would make all but the darkest of
    their pixels white.

    Raises:
        one of DECODE_ERRORS: not an image, a damaged one, or pixels without a known range.
    """
    with Image.open(file) as image:
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
            shades = np.asarray(image).astype(np.float32) / 257  # 65535 / 255
            image = Image.fromarray(shades.round().astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError(
                f"its pixels are of type {image.mode!r} (32 bits), whose range is not known: "
                "convert it to 8 or 16 bits"
            )
        return image.convert("RGB")
