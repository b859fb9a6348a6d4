"""Predicted labels as colours over an image, and a legend of the classes that occur."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

FONT = cv2.FONT_HERSHEY_SIMPLEX


def colours(palette: Sequence[Sequence[int]] | None, count: int) -> np.ndarray:
    """`count` colours, (count, 3) uint8 RGB: those of the palette, then others that differ."""
    given = np.array([] if palette is None else palette, dtype=np.uint8).reshape(-1, 3)[:count]
    if len(given) < count:
        hues = (np.arange(count) * 0.618034 * 180 % 180).astype(np.uint8)  # the golden section
        value = np.where(np.arange(count) % 2, 160, 255).astype(np.uint8)
        hsv = np.stack([hues, np.full(count, 200, np.uint8), value], axis=1)[None]
        given = np.concatenate([given, cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0][len(given) :]])
    return given


def paint(image: np.ndarray, labels: np.ndarray, palette: np.ndarray, opacity: float) -> np.ndarray:
    """The image with every pixel mixed with the colour of its class.

    Args:
        image: (H, W, 3) uint8 BGR.
        labels: (H, W) indices of classes; those without a colour leave their pixels as they are.
        palette: (K, 3) uint8 RGB.
        opacity: share of the colour, 0 to 1.
    """
    known = (labels >= 0) & (labels < len(palette))
    mixed = image.astype(np.float32)
    mixed[known] += opacity * (palette[labels[known], ::-1] - mixed[known])
    return mixed.round().astype(np.uint8)


def legend(
    labels: np.ndarray,
    names: Sequence[str],
    palette: np.ndarray,
    width: int,
    lines: int = 0,
) -> np.ndarray:
    """A white strip (h, `width`, 3) BGR with colour and name of the classes, the largest first.

    Args:
        labels: (H, W) indices of classes.
        lines: exactly so many, with what fits; 0: as many as it takes.
    """
    found, counts = np.unique(labels, return_counts=True)
    order = [int(found[i]) for i in np.argsort(-counts, kind="stable") if found[i] < len(names)]
    line = int(np.clip(width / 32, 16, 40))  # pixels
    scale, box, gap = line / 36, line // 2, line // 2
    places, x, y = [], gap, gap
    for index in order:
        room = box + gap // 2 + text_width(names[index], scale) + gap
        if x > gap and x + room > width:
            x, y = gap, y + line
        places.append((index, x, y))
        x += room
    height = (lines or y // line + 1) * line + gap
    strip = np.full((height, width, 3), 255, np.uint8)
    for index, x, y in places:
        if y + box >= height:
            break
        colour = palette[index, ::-1].tolist()
        cv2.rectangle(strip, (x, y), (x + box, y + box), colour, cv2.FILLED)
        cv2.rectangle(strip, (x, y), (x + box, y + box), (90, 90, 90), 1)
        corner = (x + box + gap // 2, y + box)
        cv2.putText(strip, names[index], corner, FONT, scale, (30, 30, 30), 1, cv2.LINE_AA)
    return strip


def text_width(text: str, scale: float) -> int:
    """Pixels that a name of the legend takes."""
    return cv2.getTextSize(text, FONT, scale, 1)[0][0]
