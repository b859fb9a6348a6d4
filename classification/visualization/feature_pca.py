"""Feature maps as colours: their three principal components as red, green and blue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from feature_hooks import capture, level_names
from model_source import Source

from . import drawing
from .pictures import Picture, check_level


@dataclass
class ColourMaps:
    """Colours of one level.

    Attributes:
        level: the level.
        maps: for each image (H_l, W_l, 3), 0 to 1; None if there are too few pixels.
        explained: share of the variance in the three components.
    """

    level: int
    maps: list[np.ndarray] | None
    explained: float = 0.0


@torch.no_grad()
def level_features(source: Source, picture: Picture) -> list[Tensor]:
    """Outputs of all levels for one image, each (H_l, W_l, C_l)."""
    names = level_names(source.model)
    with capture(source.model, names) as outputs:
        source(picture.tensor)
    return [outputs[name][0][0].float().cpu() for name in names]


def principal_colours(features: Sequence[Tensor]) -> tuple[list[np.ndarray] | None, float]:
    """Three principal components of all pixels of several maps as colours.

    One basis for all maps, so that equal colours mean equal features. Each component is stretched
    from its 1st to its 99th percentile; its sign is chosen so that its largest deviation is bright.

    Args:
        features: maps (H, W, C) of different sizes.

    Returns:
        For each map (H, W, 3) in 0 to 1, and the share of the variance that the components hold;
        (None, 0) for fewer than four pixels or without variance.
    """
    pixels = torch.cat([feature.flatten(0, 1) for feature in features]).double()  # (n, C)
    if len(pixels) < 4:
        return None, 0.0
    pixels = pixels - pixels.mean(0)
    variance = float(pixels.square().sum())
    if variance <= 1e-20:
        return None, 0.0
    _, values, basis = torch.linalg.svd(pixels, full_matrices=False)
    scores = torch.nn.functional.pad(pixels @ basis[:3].T, (0, max(0, 3 - len(basis))))  # (n, 3)
    largest = scores.gather(0, scores.abs().argmax(0, keepdim=True))
    scores = scores * torch.where(largest < 0, -1.0, 1.0)
    low, high = torch.quantile(_sample(scores), torch.tensor([0.01, 0.99]).double(), dim=0)
    scores = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    parts = scores.split([feature.shape[0] * feature.shape[1] for feature in features])
    maps = [
        part.view(*feature.shape[:2], 3).numpy()
        for part, feature in zip(parts, features, strict=True)
    ]
    return maps, float(values[:3].square().sum()) / variance


def _sample(scores: Tensor) -> Tensor:
    """At most a million rows, evenly spaced: torch.quantile takes 16 million values at most."""
    return scores[:: max(1, -(-len(scores) // 1_000_000))]


def draw(
    source: Source, pictures: Sequence[Picture], *, levels: Sequence[int] | None
) -> drawing.Figure:
    """One row for each image: the image, and the colours of every level.

    Args:
        source: the model.
        pictures: images.
        levels: levels to show; None for all.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: no such level.
        DrawingError: matplotlib is missing.
    """
    levels = list(range(len(source.model.levels))) if levels is None else list(levels)
    for level in levels:
        check_level(source, level)
    features = [level_features(source, picture) for picture in pictures]
    found = [
        ColourMaps(level, *principal_colours([maps[level] for maps in features]))
        for level in levels
    ]
    shares = ", ".join(
        f"{item.explained:.0%} in level {item.level}" for item in found if item.maps is not None
    )
    together = ", of all images together: equal colours are equal features within a level"
    caption = (
        f"Feature maps of the levels: the first three principal components as red, green and blue"
        f"{together if len(pictures) > 1 else ''}. "
        + (f"They hold this much of the variance: {shares}. " if shares else "")
        + f"{source.label}."
    )
    height = drawing.panel_height([picture.size for picture in pictures], 2.2)
    widths = [2.2] * (1 + len(found))
    figure, axes = drawing.new_figure(
        len(pictures), widths, height, "Principal components of the features", caption
    )
    for number, picture in enumerate(pictures):
        drawing.show_image(axes[number, 0], picture.pixels, drawing.shorten(picture.name, 24))
        for panel_axes, item in zip(axes[number, 1:], found, strict=True):
            height, width = features[number][item.level].shape[:2]
            title = f"level {item.level} ({height}x{width})"
            if item.maps is None:
                blank = np.full((height, width, 3), 0.92)
                drawing.show_image(panel_axes, blank, f"{title}\ntoo few pixels")
            else:
                drawing.show_image(panel_axes, item.maps[number], title)
    return figure
