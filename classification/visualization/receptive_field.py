"""The effective receptive field: how much output pixels depend on each input pixel.

The gradient of the centre pixel of a level's map with respect to the image (Luo et al., arXiv
1701.04128), its absolute value averaged over images. The channels are added up with random signs:
their plain sum is a constant where a LayerNorm comes last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from feature_hooks import capture
from model_source import Source

from . import drawing
from .pictures import Picture, check_level, level_stride

SHARES = (0.5, 0.9)  # of the gradient, marked by squares


def receptive_fields(
    source: Source, pictures: Sequence[Picture], levels: Sequence[int]
) -> list[np.ndarray]:
    """Mean absolute gradients of the channels' random sums at the centre of the maps of levels.

    Args:
        source: the model.
        pictures: images of one size.
        levels: levels whose outputs are meant.

    Returns:
        For each level (H, W), float64, scaled to a sum of 1; zeros if nothing depends on the input.

    Raises:
        ValueError: no such level, or images of different sizes.
    """
    for level in levels:
        check_level(source, level)
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(f"images of different sizes cannot be averaged: {sorted(sizes)}")
    names = [f"levels.{level}" for level in levels]
    totals = [np.zeros(pictures[0].size) for _ in levels]
    generator = torch.Generator().manual_seed(0)
    for picture in pictures:
        images = picture.tensor.clone().requires_grad_()
        with torch.enable_grad(), capture(source.model, names) as outputs:
            source(images)
            for total, name in zip(totals, names, strict=True):
                feature = outputs[name][0]  # (1, H_l, W_l, C_l)
                centre = feature[0, feature.shape[1] // 2, feature.shape[2] // 2]
                signs = torch.randint(2, centre.shape, generator=generator).to(centre) * 2 - 1
                (gradient,) = torch.autograd.grad(centre @ signs, images, retain_graph=True)
                total += gradient[0].abs().sum(0).double().cpu().numpy()
    return [total / total.sum() if total.sum() > 0 else total for total in totals]


def square_around(field: np.ndarray, centre: tuple[int, int], share: float) -> int:
    """Half the side of the smallest square around `centre` that holds this share of a field."""
    rows = np.abs(np.arange(field.shape[0]) - centre[0])[:, None]
    columns = np.abs(np.arange(field.shape[1]) - centre[1])[None]
    distance = np.maximum(rows, columns)
    held = np.cumsum(np.bincount(distance.ravel(), field.ravel()))
    return int(np.searchsorted(held, share * held[-1] - 1e-12))


def draw(
    source: Source, pictures: Sequence[Picture], *, levels: Sequence[int] | None
) -> drawing.Figure:
    """Receptive fields of levels side by side, in logarithmic colours.

    Args:
        source: the model.
        pictures: images of one size, which are averaged over.
        levels: levels to show; None for all.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: no such level, or images of different sizes.
        DrawingError: matplotlib is missing.
    """
    levels = list(range(len(source.model.levels))) if levels is None else list(levels)
    fields = receptive_fields(source, pictures, levels)
    height, width = pictures[0].size
    count = len(pictures)
    averaged = pictures[0].name if count == 1 else f"{count} images"
    caption = (
        f"How much the centre pixel of each level's map depends on the input pixels: absolute "
        f"gradient, average of {averaged}, {height}x{width} pixels, relative to its largest value. "
        f"Squares: the smallest around that pixel that hold 50 % (solid) and 90 % (dashed) of the "
        f"gradient. {source.label}."
    )
    columns = min(len(fields), 2)
    rows = math.ceil(len(fields) / columns)
    figure, axes = drawing.new_figure(
        rows,
        [4.0] * columns,
        drawing.panel_height([pictures[0].size], 4.0),
        "Effective receptive field",
        caption,
        bars=1,
    )
    for empty in axes.flat[len(fields) :]:
        empty.set_axis_off()
    used = axes.flat[: len(fields)]
    for panel, level, field in zip(used, levels, fields, strict=True):
        _draw_field(panel, level, field)
    for row in axes:
        last = [panel for panel in row if panel.images][-1]
        drawing.colour_bar(figure, last.images[0], last, "gradient / its maximum (log)")
    return figure


def _draw_field(axes: drawing.Axes, level: int, field: np.ndarray) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    stride = level_stride(level)
    rows, columns = (-(-size // stride) for size in field.shape)  # of the level's map
    centre = (rows // 2 * stride, columns // 2 * stride)
    relative = np.maximum(field / max(field.max(), 1e-300), 1e-4)
    drawing.show_image(axes, relative, f"level {level}", cmap="magma", norm=LogNorm(1e-4, 1))
    if field.sum() == 0:
        axes.set_title(f"level {level}: no gradient", fontsize=drawing.LABEL_SIZE)
        return
    sides = []
    for share, style in zip(SHARES, ("-", "--"), strict=True):
        half = square_around(field, centre, share)
        sides.append(2 * half + 1)
        corner = (centre[1] - half - 0.5, centre[0] - half - 0.5)
        axes.add_patch(
            Rectangle(corner, sides[-1], sides[-1], fill=False, color="#4cc9f0", linestyle=style,
                      linewidth=1.6)
        )  # fmt: skip
    axes.set_title(
        f"level {level}: 50 % in {sides[0]} px, 90 % in {sides[1]} px",
        fontsize=drawing.LABEL_SIZE,
        color=drawing.INK,
    )
