"""Pictures of driving scenes: drawing into camera images, and views from above.

An image is a uint8 array (H, W, 3) in the order blue, green, red, as OpenCV reads and writes it;
so is a colour. Points are in metres in the frame from which the projection matrix starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from internimage.write_file import replacing
from numpy.typing import ArrayLike

from .geometry import clip_polyline_to_front, project

Color = Sequence[int]
FAR_AWAY = 1_000_000  # pixels; lines that leave the image further than that are cut there
BACKGROUND = (30, 30, 30)
GRID = (70, 70, 70)
TEXT = (235, 235, 235)


def check_image(image: np.ndarray) -> None:
    """Raises a ValueError for anything but a uint8 (H, W, 3) array that can be drawn into."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"expected an image (H, W, 3) of uint8, got {image.shape} of {image.dtype}"
        )
    if not image.flags.c_contiguous:
        raise ValueError("the image is not contiguous: draw into image.copy()")


def draw_polyline(
    image: np.ndarray,
    points: ArrayLike,
    matrix: ArrayLike,
    color: Color,
    thickness: int = 2,
    arrow: bool = False,
) -> np.ndarray:
    """Draw a 3-D polyline into a camera image, in place; what is behind the camera is cut away.

    Args:
        image: (H, W, 3).
        points: (N, 3), in order.
        matrix: (4, 4), projection matrix to the pixels of the image.
        color: Of the line.
        thickness: In pixels.
        arrow: Draw a head at the last point, if it is in front of the camera.

    Returns:
        The image.
    """
    check_image(image)
    points = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    pieces = clip_polyline_to_front(points, matrix)
    for piece in pieces:
        _draw_pixels(image, project(piece, matrix)[0], color, thickness)
    if arrow and pieces and np.array_equal(pieces[-1][-1], points[-1]):
        _draw_head(image, project(pieces[-1], matrix)[0], color, thickness)
    return image


def _to_pixels(uv: np.ndarray) -> np.ndarray:
    """The pixels that places fall into; the pixel (c, r) covers [c - 0.5, c + 0.5)."""
    return np.floor(np.clip(uv, -FAR_AWAY, FAR_AWAY) + 0.5).astype(np.int32)


def _draw_pixels(image: np.ndarray, uv: np.ndarray, color: Color, thickness: int) -> None:
    pixels = _to_pixels(uv)
    cv2.polylines(image, [pixels.reshape(-1, 1, 2)], False, tuple(color), thickness)


def _draw_head(image: np.ndarray, uv: np.ndarray, color: Color, thickness: int) -> None:
    """An arrow's head at the last of the places, along the last step that is not too short."""
    gaps = np.linalg.norm(uv[-1] - uv, axis=1)
    before = np.flatnonzero(gaps > 1.0)
    if len(before):
        direction = (uv[-1] - uv[before[-1]]) / gaps[before[-1]]
        side = np.array([-direction[1], direction[0]])
        size = 3.0 * thickness + 3.0
        corners = [uv[-1], *(uv[-1] - size * direction + s * 0.5 * size * side for s in (1, -1))]
        cv2.fillPoly(image, [_to_pixels(np.stack(corners))], tuple(color))


def draw_text(image: np.ndarray, text: str, corner: tuple[int, int], color: Color = TEXT) -> None:
    """Write text with a dark rim into an image, in place; `corner` is its bottom left pixel."""
    for pen, thickness in (((0, 0, 0), 3), (tuple(color), 1)):
        cv2.putText(
            image, text, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.45, pen, thickness, cv2.LINE_AA
        )


def fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image scaled to fit into (height, width), in the middle, on the background."""
    check_image(image)
    scale = min(height / image.shape[0], width / image.shape[1])
    size = [max(1, min(w, round(n * scale))) for n, w in zip(image.shape, (height, width))]
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(image, (size[1], size[0]), interpolation=way)
    canvas = np.full((height, width, 3), BACKGROUND, np.uint8)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    canvas[top : top + size[0], left : left + size[1]] = scaled
    return canvas


def camera_mosaic(
    images: Mapping[str, np.ndarray],
    columns: int = 3,
    cell: tuple[int, int] | None = None,
    gap: int = 4,
) -> np.ndarray:
    """All cameras of a frame in one picture, row after row, with their names.

    Args:
        images: Name to image; the sizes may differ.
        columns: Images per row.
        cell: Height and width that each image is fitted into; those of the first image if None.
        gap: Between the images in pixels.

    Returns:
        (H, W, 3)

    Raises:
        ValueError: There are no images, or one is no image.
    """
    if not images:
        raise ValueError("a mosaic needs at least one image")
    height, width = cell or next(iter(images.values())).shape[:2]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    mosaic = np.full(shape, BACKGROUND, np.uint8)
    for i, (name, image) in enumerate(images.items()):
        part = fit(image, height, width)
        draw_text(part, name, (6, 16))
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        mosaic[top : top + height, left : left + width] = part
    return mosaic


def bev_panel(
    bounds: tuple[float, float, float, float],
    lines: Sequence[tuple[ArrayLike, Color]] = (),
    points: Sequence[tuple[ArrayLike, Color]] = (),
    cells: np.ndarray | None = None,
    pixels_per_metre: float = 8.0,
    title: str = "",
    arrows: bool = False,
    thickness: int = 2,
) -> np.ndarray:
    """A view from above: x (ahead) goes up, y (left) goes to the left, with a line every 10 m.

    Args:
        bounds: (x0, y0, x1, y1) in metres.
        lines: Polylines (N, 2 or 3) in metres, each with its colour.
        points: Points (N, 2 or 3) in metres, each set with its colour.
        cells: (X, Y, 3) uint8, colours of a grid over the bounds, indexed along x and y; the
            background is the bare ground if None.
        pixels_per_metre: Scale.
        title: Written into the top left corner.
        arrows: Lines end in a head.
        thickness: Of the lines in pixels.

    Returns:
        (H, W, 3)

    Raises:
        ValueError: The bounds are empty, or `cells` are no colours.
    """
    x0, y0, x1, y1 = bounds
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"bounds are (x0, y0, x1, y1) in metres, got {tuple(bounds)}")
    height, width = round((x1 - x0) * pixels_per_metre), round((y1 - y0) * pixels_per_metre)
    if cells is None:
        panel = np.full((height, width, 3), BACKGROUND, np.uint8)
    else:
        turned = np.ascontiguousarray(cells[::-1, ::-1])
        check_image(turned)
        panel = cv2.resize(turned, (width, height), interpolation=cv2.INTER_NEAREST)

    def pixels(xy: ArrayLike) -> np.ndarray:
        xy = np.asarray(xy, dtype=np.float64)
        xy = xy.reshape(-1, xy.shape[-1] if xy.ndim else 2)[:, :2]
        return (np.array([y1, x1]) - xy[:, ::-1]) * pixels_per_metre - 0.5

    for x in np.arange(np.ceil(x0 / 10) * 10, x1, 10):
        _draw_pixels(panel, pixels([[x, y0], [x, y1]]), GRID, 1)
    for y in np.arange(np.ceil(y0 / 10) * 10, y1, 10):
        _draw_pixels(panel, pixels([[x0, y], [x1, y]]), GRID, 1)
    for line, color in lines:
        if len(line):
            uv = pixels(line)
            _draw_pixels(panel, uv, color, thickness)
            if arrows:
                _draw_head(panel, uv, color, thickness)
    for some, color in points:
        for pixel in _to_pixels(pixels(some)) if len(some) else ():
            cv2.circle(panel, pixel.tolist(), thickness + 1, tuple(color), cv2.FILLED)
    car = _to_pixels(pixels([[2.4, 0.95], [2.4, -0.95], [-2.4, -0.95], [-2.4, 0.95]]))
    cv2.polylines(panel, [car], True, TEXT, 1)
    _draw_head(panel, pixels([[0.0, 0.0], [2.4, 0.0]]), TEXT, 1)
    if title:
        draw_text(panel, title, (6, 16))
    return panel


def side_by_side(*images: np.ndarray, gap: int = 4) -> np.ndarray:
    """Images in a row, scaled to the height of the first one."""
    if not images:
        raise ValueError("side_by_side needs at least one image")
    height = images[0].shape[0]
    parts: list[np.ndarray] = []
    for image in images:
        width = max(1, round(image.shape[1] * height / image.shape[0]))
        parts += [fit(image, height, width), np.full((height, gap, 3), BACKGROUND, np.uint8)]
    return np.concatenate(parts[:-1], axis=1)


def write_image(path: str | Path, image: np.ndarray) -> Path:
    """Write an image whole or not at all; the suffix of the path decides on the format.

    Raises:
        OSError: The path cannot be written.
        ValueError: OpenCV knows no image format of that suffix.
    """
    path = Path(path)
    if not path.suffix or not cv2.haveImageWriter(path.name):
        raise ValueError(f"{path}: no image format ends in {path.suffix!r}; use .jpg or .png")
    check_image(np.ascontiguousarray(image))
    with replacing(path) as temporary:
        done, encoded = cv2.imencode(path.suffix, image)
        if not done:
            raise OSError(f"{path} cannot be encoded as {path.suffix}")
        temporary.write_bytes(encoded.tobytes())
    return path
