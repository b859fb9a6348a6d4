"""Where DCNv3 samples (InternImage, arXiv 2211.05778, section 3.1), and DCNv4 likewise.

The inputs of the operator's layers are taken by hooks, and their offsets and weights are computed
again from the layers' own submodules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from model_source import Source
from ops_dcnv3.functions import Geometry
from ops_dcnv3.functions.reference import offset_and_weights, sampling_locations
from ops_dcnv3.modules import DCNv3, DCNv4

from . import drawing
from .pictures import Picture, check_level, level_stride

SHOWN_SHARE = 0.99  # of the accumulated weight: the strongest points that hold it are drawn


@dataclass
class LayerPoints:
    """Sampling points of one layer for one image.

    Attributes:
        level: level of the layer.
        block: its block in the level.
        x, y: (H, W, G, P), pixels of the level's map.
        weight: (H, W, G, P), modulation: softmax over P in DCNv3, any number in DCNv4.
        grid_x, grid_y: (P,), points without learned offsets, relative to the output pixel.
    """

    level: int
    block: int
    x: Tensor
    y: Tensor
    weight: Tensor
    grid_x: Tensor
    grid_y: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the map."""
        return self.x.shape[0], self.x.shape[1]

    @property
    def groups(self) -> int:
        return self.x.shape[2]

    def inside(self) -> Tensor:
        """(H, W, G, P): the point reads the map and not the zeros around it."""
        height, width = self.size
        return (self.x > -1) & (self.y > -1) & (self.x < width) & (self.y < height)


def geometry_of(layer: DCNv3 | DCNv4) -> Geometry:
    """The operator's arguments in a layer."""
    return Geometry(
        *(layer.kernel_size,) * 2,
        *(layer.stride,) * 2,
        *(layer.pad,) * 2,
        *(layer.dilation,) * 2,
        layer.group,
        layer.group_channels,
        float(layer.offset_scale),
        layer.remove_center,
    )


def offset_and_weight(layer: DCNv3 | DCNv4, x: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets (N, H, W, G*P*2) and modulation (N, H, W, G*P) of a layer for its input."""
    features = x.permute(0, 3, 1, 2)  # (N, C, H, W)
    if isinstance(layer, DCNv3):
        features = layer.dw_conv(features)  # (N, H, W, C)
        offset_mask = torch.cat([layer.offset(features), layer.mask(features)], -1)
        return offset_and_weights(offset_mask, geometry_of(layer), True, False)
    if layer.dw_kernel_size is not None:
        features = layer.offset_mask_dw(features)
    offset_mask = layer.offset_mask(features.permute(0, 2, 3, 1))
    return offset_and_weights(offset_mask, geometry_of(layer), False, True)


@torch.no_grad()
def layer_points(source: Source, images: Tensor) -> list[LayerPoints]:
    """Sampling points of all layers for one image, from the first layer to the last.

    Args:
        source: the model.
        images: (1, 3, H, W), normalised.
    """
    inputs: dict[nn.Module, Tensor] = {}

    def note(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs[layer] = arguments[0]

    layers = [
        (level, block, module.dcn)
        for level, stage in enumerate(source.model.levels)
        for block, module in enumerate(stage.blocks)
    ]
    handles = [layer.register_forward_pre_hook(note) for _, _, layer in layers]
    try:
        source(images)
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for level, block, layer in layers:
        x = inputs[layer]
        geometry = geometry_of(layer)
        offset, weight = offset_and_weight(layer, x)
        height, width = x.shape[1:3]
        xs, ys = sampling_locations(offset, height, width, geometry)  # (1, H, W, G, P)
        grid_x, grid_y = sampling_locations(torch.zeros_like(offset[:1, :1, :1]), 1, 1, geometry)
        weight = weight.unflatten(-1, (geometry.group, geometry.points))
        parts = (xs[0], ys[0], weight[0], grid_x[0, 0, 0, 0], grid_y[0, 0, 0, 0])
        found.append(LayerPoints(level, block, *(part.float().cpu() for part in parts)))
    return found


def choose_layer(
    source: Source, layers: Sequence[LayerPoints], level: int, block: int | None
) -> int:
    """Index of a level's block; None is the last block.

    Raises:
        ValueError: no such level or block.
    """
    check_level(source, level)
    blocks = [index for index, layer in enumerate(layers) if layer.level == level]
    block = len(blocks) - 1 if block is None else block
    if not 0 <= block < len(blocks):
        raise ValueError(f"--block {block}: level {level} has the blocks 0 to {len(blocks) - 1}")
    return blocks[block]


def choose_pixel(layer: LayerPoints, pixel: Sequence[int] | None) -> tuple[int, int]:
    """Row and column in a level's map; None is its centre.

    Raises:
        ValueError: outside of the map.
    """
    height, width = layer.size
    row, column = (height // 2, width // 2) if pixel is None else pixel
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(
            f"--pixel {row} {column}: the map of level {layer.level} has the rows 0 to "
            f"{height - 1} and the columns 0 to {width - 1}"
        )
    return row, column


def accumulate(
    layers: Sequence[LayerPoints], pixel: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Points of the first of several layers that an output pixel of the last one depends on.

    From the last layer back to the first, weight is handed from each output pixel to the map pixels
    around its sampling points, in proportion to modulation and bilinear share, groups alike.
    Between levels a pixel stands for the centre of the convolution there. Residual connections,
    which add the pixel itself, are left out.

    Args:
        layers: consecutive layers.
        pixel: row and column in the map of the last one.

    Returns:
        x and y in pixels of the first layer's map, and weights that sum to at most 1 (what fell
        outside of a map is lost), each (n,).
    """
    weights = torch.zeros(layers[-1].size)
    weights[pixel] = 1.0
    x = y = share = torch.zeros(0)
    for index in range(len(layers) - 1, -1, -1):
        layer = layers[index]
        if weights.shape != layer.size:  # a downsampling lies between
            weights = _before_downsampling(weights, layer.size)
        active = weights > 0
        modulation = layer.weight[active].abs() * layer.inside()[active]  # (n, G, P)
        total = layer.weight[active].abs().sum((1, 2), keepdim=True).clamp_min(1e-12)
        share = weights[active][:, None, None] * modulation / total
        x, y = layer.x[active], layer.y[active]
        weights = _splat(x, y, share, layer.size)
    keep = share > 0
    return x[keep], y[keep], share[keep]


def _before_downsampling(weights: Tensor, size: tuple[int, int]) -> Tensor:
    """Weights of a map moved to the centres of the stride-2 windows in the larger map before it."""
    larger = torch.zeros(size)
    larger[::2, ::2] = weights
    return larger


def _splat(x: Tensor, y: Tensor, share: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear shares of points, added up in a map of this size."""
    height, width = size
    flat = torch.zeros(height * width)
    left, top = x.floor(), y.floor()
    for down in (0, 1):
        for across in (0, 1):
            column, row = left + across, top + down
            part = (1 - (x - column).abs()) * (1 - (y - row).abs()) * share
            valid = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (share > 0)
            position = row[valid].long() * width + column[valid].long()
            flat.index_add_(0, position, part[valid])
    return flat.view(size)


# --- drawing --------------------------------------------------------------------------------------


def _window(
    x: np.ndarray, y: np.ndarray, size: tuple[int, int], stride: int
) -> tuple[float, float, float, float]:
    """Left, right, bottom, top of a square around points, at least five map pixels wide."""
    middle_x, middle_y = (x.min() + x.max()) / 2, (y.min() + y.max()) / 2
    half = max(np.ptp(x), np.ptp(y)) / 2 + stride
    half = min(max(half, 2.5 * stride), 0.75 * max(size))
    return middle_x - half, middle_x + half, middle_y + half, middle_y - half


def draw(
    source: Source,
    pictures: Sequence[Picture],
    *,
    level: int,
    block: int | None,
    pixel: Sequence[int] | None,
    group: int | None,
    depth: int,
) -> drawing.Figure:
    """Sampling points of one output pixel: of one layer, and added up over several.

    Args:
        source: the model.
        pictures: one row of panels each.
        level: level of the layer.
        block: its block; None for the level's last.
        pixel: row and column of the output pixel in the level's map; None for the centre.
        group: one group of the layer; None for all.
        depth: layers to go back in the second panel, this one included.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: a level, block, group or pixel that does not exist, or a depth below 1.
        DrawingError: matplotlib is missing.
    """
    stride = level_stride(level)
    first = layer_points(source, pictures[0].tensor)
    index = choose_layer(source, first, level, block)
    layer = first[index]
    if group is not None and not 0 <= group < layer.groups:
        raise ValueError(f"--group {group}: level {level} has the groups 0 to {layer.groups - 1}")
    if depth < 1:
        raise ValueError(f"--depth must be at least 1, got {depth}")
    depth = min(depth, index + 1)
    operator = type(source.model.levels[0].blocks[0].dcn).__name__.removesuffix("_pytorch")
    where = f"level {level}, block {layer.block}"
    which = f"group {group}" if group is not None else f"all {layer.groups} groups"
    row, column = choose_pixel(layer, pixel)
    start = first[index - depth + 1]
    caption = (
        f"Left: the points that {operator} of {where} samples for output pixel ({row}, {column}), "
        f"{which}; crosses: the points before the learned offsets. Right: the points of level "
        f"{start.level}, block {start.block} that this pixel depends on through {depth} "
        f"layer{'s' * (depth > 1)}, all groups, without residual connections (the strongest that "
        f"hold 99 %); the frame is the left panel. {source.label}."
    )
    title = f"Sampling points of {operator}: {where}"
    height = 3.9
    aspect = max(picture.size[1] / picture.size[0] for picture in pictures)
    widths = (height, min(max(height * aspect, 3.0), 6.0))
    figure, axes = drawing.new_figure(len(pictures), widths, height + 0.3, title, caption, bars=2)
    for number, picture in enumerate(pictures):
        points = first if number == 0 else layer_points(source, picture.tensor)
        place = choose_pixel(points[index], pixel)
        frame = _draw_layer(figure, axes[number, 0], picture, points[index], place, group, stride)
        chain = points[index - depth + 1 : index + 1]
        _draw_accumulated(figure, axes[number, 1], picture, chain, place, frame)
    return figure


def _draw_layer(
    figure: drawing.Figure,
    axes: drawing.Axes,
    picture: Picture,
    layer: LayerPoints,
    pixel: tuple[int, int],
    group: int | None,
    stride: int,
) -> tuple[float, float, float, float]:
    """The zoomed panel; returns its window in image pixels."""
    chosen = slice(None) if group is None else slice(group, group + 1)
    x = layer.x[pixel][chosen].numpy() * stride  # (groups, P)
    y = layer.y[pixel][chosen].numpy() * stride
    weight = layer.weight[pixel][chosen].numpy()
    centre_y, centre_x = pixel[0] * stride, pixel[1] * stride
    grid_x = layer.grid_x.numpy() * stride + centre_x
    grid_y = layer.grid_y.numpy() * stride + centre_y
    window = _window(np.append(x, grid_x), np.append(y, grid_y), picture.size, stride)
    drawing.show_image(axes, picture.pixels, drawing.shorten(picture.name))
    if group is not None:
        for from_x, from_y, to_x, to_y in zip(grid_x, grid_y, x[0], y[0], strict=True):
            axes.plot([from_x, to_x], [from_y, to_y], color="white", linewidth=1.2, alpha=0.9)
    axes.plot(grid_x, grid_y, "x", color="white", markersize=7, markeredgewidth=3)
    axes.plot(grid_x, grid_y, "x", color=drawing.INK, markersize=6, markeredgewidth=1.4)
    signed = weight.min() < 0
    limit = np.abs(weight).max()
    order = np.argsort(np.abs(weight), axis=None)
    shown = axes.scatter(
        x.flatten()[order],
        y.flatten()[order],
        c=weight.flatten()[order],
        cmap="coolwarm" if signed else "viridis",
        vmin=-limit if signed else min(weight.min(), 0.9 * limit),
        vmax=limit,
        s=70 if group is not None else 26,
        edgecolors="white",
        linewidths=0.6,
        zorder=3,
    )
    _mark_pixel(axes, centre_x, centre_y)
    axes.set_xlim(window[0], window[1])
    axes.set_ylim(window[2], window[3])
    axes.set_facecolor("#e9ecef")
    drawing.colour_bar(figure, shown, axes, "modulation weight")
    return window


def _mark_pixel(axes: drawing.Axes, x: float, y: float) -> None:
    axes.plot(
        x, y, "o", markersize=11, markerfacecolor="none", markeredgewidth=2, zorder=4,
        color=drawing.ACCENT, label="output pixel",
    )  # fmt: skip
    axes.legend(loc="lower right", fontsize=8.5, framealpha=0.9, handletextpad=0.3)


def _draw_accumulated(
    figure: drawing.Figure,
    axes: drawing.Axes,
    picture: Picture,
    layers: Sequence[LayerPoints],
    pixel: tuple[int, int],
    frame: tuple[float, float, float, float],
) -> None:
    """The whole image with the points of the first of `layers`."""
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    x, y, share = (part.numpy() for part in accumulate(layers, pixel))
    order = np.argsort(share)
    order = order[np.cumsum(share[order]) >= (1 - SHOWN_SHARE) * share.sum()]
    x, y, share = (part[order] for part in (x, y, share))
    stride = level_stride(layers[0].level)
    title = f"through {len(layers)} layer{'s'[: len(layers) > 1]}"
    if not len(share):
        title += ": all weights are 0"
    drawing.show_image(axes, picture.pixels, title)
    level_of_pixel = level_stride(layers[-1].level)
    _mark_pixel(axes, pixel[1] * level_of_pixel, pixel[0] * level_of_pixel)
    left, right, bottom, top = frame
    axes.add_patch(
        Rectangle((left, top), right - left, bottom - top, fill=False, color="white", linewidth=1.5)
    )
    height, width = picture.size
    axes.set_xlim(min(-0.5, left), max(width - 0.5, right))
    axes.set_ylim(max(height - 0.5, bottom), min(-0.5, top))
    axes.set_facecolor("#e9ecef")
    if len(share):
        shown = axes.scatter(
            x * stride,
            y * stride,
            c=share,
            s=8,
            cmap="plasma",
            norm=LogNorm(min(share.min(), share.max() * 0.9), share.max()),
            linewidths=0,
        )
        drawing.colour_bar(figure, shown, axes, "share of the output pixel (log scale)")
