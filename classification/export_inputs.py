"""With which inputs a classification model is exported and checked, and which axes are open."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.onnx_export import Axis

INPUT_NAMES = ("input", "temporal", "spatial")  # the last two: models with metadata
DYNAMIC = ("none", "batch", "shape")
Size = tuple[int, int, int]  # N, H, W


def size_multiple(model: nn.Module) -> int:
    """What height and width of images must be multiples of; 1 for no such condition."""
    has_projector = getattr(model, "use_clip_projector", False)
    return 2 ** (len(model.depths) + 1) if has_projector else 1


def open_axes(
    model: nn.Module, inputs: Sequence[Tensor], dynamic: str
) -> list[dict[int, Axis]] | None:
    """The open axes of each input: none, the batch, or batch, height and width ('shape')."""
    if dynamic == "none":
        return None
    batch: dict[int, Axis] = {0: ("batch", 1)}
    multiple = size_multiple(model)
    sides: dict[int, Axis] = {2: ("height", multiple), 3: ("width", multiple)}
    images = {**batch, **sides} if dynamic == "shape" else batch
    return [images, *(batch for _ in inputs[1:])]


def traced_size(model: nn.Module, size: Size, dynamic: str) -> Size:
    """(N, H, W) to capture a model with.

    The exporters take every size of 1 for a constant, so an open batch is at least two images, and
    with open sides the last map has two rows and more columns, whatever size was asked for.
    """
    batch, height, width = size
    if dynamic == "none":
        return size
    if dynamic == "batch":
        return max(2, batch), height, width
    side = 2 ** (len(model.depths) + 2)
    return 2, side, side * 3 // 2


def check_sizes(model: nn.Module, size: Size, dynamic: str) -> list[Size]:
    """(N, H, W) to compare at: the captured one, the one asked for, and two that are neither.

    With open sides the latter are larger than what was asked for and not square, and odd for models
    without a condition on the size, so that every rounding of a stride is met.
    """
    batch, height, width = size
    traced = traced_size(model, size, dynamic)
    sizes = [traced, size]
    if dynamic == "batch":
        sizes += [(traced[0] + 1, height, width), (traced[0] + 3, height, width)]
    if dynamic == "shape":
        multiple = size_multiple(model)
        step, odd = (multiple, 0) if multiple > 1 else (32, 1)
        sizes += [(batch + 1, height + step + odd, width), (1, height, width + 2 * step + odd)]
    return list(dict.fromkeys(sizes))


def profile(model: nn.Module, size: Size, dynamic: str) -> tuple[Size, Size, Size]:
    """Smallest, usual and largest (N, H, W) of a TensorRT engine.

    One image up to the batch asked for; sides from half to twice the size asked for.
    """
    if dynamic == "none":
        return size, size, size
    batch, height, width = size
    smallest, largest = (1, height, width), size
    if dynamic == "shape":
        multiple = size_multiple(model)
        small = [max(side // 2 // multiple, 1) * multiple for side in (height, width)]
        smallest = (1, small[0], small[1])
        largest = (batch, 2 * height, 2 * width)
    return smallest, size, largest
