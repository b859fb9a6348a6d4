"""Figures with a title, panels and a caption, written as PNG without a display."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
BAR_WIDTH = 0.8  # inches, with its labels
INK, FAINT, ACCENT = "#1f2328", "#57606a", "#e4572e"
CAPTION_SIZE, TITLE_SIZE, LABEL_SIZE = 9.5, 13, 10.5
CHARACTERS_PER_INCH = 14.5  # of the caption


class DrawingError(RuntimeError):
    """No picture can be drawn; the message says what to install."""


def new_figure(
    rows: int, widths: Sequence[float], height: float, title: str, caption: str, bars: int = 0
) -> tuple[Figure, np.ndarray]:
    """An empty figure.

    Args:
        rows: rows of panels.
        widths: width of each column of panels in inches.
        height: height of a row in inches.
        title: first line.
        caption: sentences below the panels; they are wrapped.
        bars: columns of panels that will have a colour bar.

    Returns:
        The figure and its axes, (rows, columns).

    Raises:
        DrawingError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DrawingError(
            f"matplotlib is missing ({error}): pip install -r requirements/tools.txt"
        ) from error
    width = max(sum(widths) + bars * BAR_WIDTH, 6.0)
    lines = textwrap.wrap(caption, int(width * CHARACTERS_PER_INCH))
    size = (width, rows * height + 0.45 + 0.17 * len(lines))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=TITLE_SIZE, color=INK, x=0.012, ha="left", weight="bold")
    figure.supxlabel("\n".join(lines), fontsize=CAPTION_SIZE, color=FAINT, x=0.012, ha="left")
    return figure, figure.subplots(
        rows, len(widths), squeeze=False, gridspec_kw={"width_ratios": list(widths)}
    )


def show_image(axes: Axes, pixels: np.ndarray, title: str = "", **options: Any) -> Any:
    """Draws an image without ticks; `options` go to `imshow`."""
    shown = axes.imshow(pixels, interpolation=interpolation(pixels, axes), **options)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#d0d7de")
    if title:
        axes.set_title(title, fontsize=LABEL_SIZE, color=INK)
    return shown


def interpolation(pixels: np.ndarray, axes: Axes) -> str:
    """Small maps and images keep visible pixels, large ones are resampled smoothly."""
    return "nearest" if max(pixels.shape[:2]) < 100 else "antialiased"


def panel_height(sizes: Sequence[tuple[int, int]], width: float, extra: float = 0.4) -> float:
    """Height in inches of panels of this width that hold images of these (height, width)."""
    return width * min(max(height / width_ for height, width_ in sizes), 2.0) + extra


def colour_bar(figure: Figure, shown: Any, axes: Axes, label: str) -> None:
    """A colour bar along the right side of the axes."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    bar = figure.colorbar(shown, cax=axes.inset_axes([1.025, 0.0, 0.04, 1.0]))
    if isinstance(shown.norm, LogNorm):
        few = shown.norm.vmax < 100 * shown.norm.vmin
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.set_label(label, fontsize=CAPTION_SIZE, color=INK)
    bar.ax.tick_params(labelsize=8.5)
    bar.outline.set_edgecolor("#d0d7de")


def shorten(text: str, length: int = 34) -> str:
    """`text` with its middle replaced by an ellipsis when it is longer than `length`."""
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[: length - 1 - half]}…{text[-half:]}"


def save(figure: Figure, path: str | Path) -> None:
    """Writes the figure as PNG."""
    figure.savefig(path, format="png", dpi=DPI, pil_kwargs={"optimize": True})
