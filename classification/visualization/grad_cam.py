"""Grad-CAM (arXiv 1610.02391): which places of an image speak for a class."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from feature_hooks import capture
from model_source import Source

from . import drawing
from .pictures import Picture, check_level


@dataclass
class ClassMap:
    """Grad-CAM of one image.

    Attributes:
        label: the class that was asked about.
        probability: of that class, 0 to 1.
        coarse: (H_l, W_l), at least 0, largest value 1 (or all 0: nothing speaks for the class).
        fine: the same, enlarged to the image.
        predicted: the most likely class.
    """

    label: int
    probability: float
    coarse: np.ndarray
    fine: np.ndarray
    predicted: int


def find_class(source: Source, text: str | None) -> int | None:
    """A class given by number or name; None stays None, the predicted class.

    Raises:
        ValueError: no such class; the message gives the range or the nearest name.
    """
    if text is None:
        return None
    if text.lstrip("-").isdigit() and text not in (source.names or ()):
        label = int(text)
        if not 0 <= label < source.num_classes:
            raise ValueError(f"--class {label}: the classes are 0 to {source.num_classes - 1}")
        return label
    names = source.names or []
    known = {}
    for label, name in enumerate(names):
        for form in (name, *name.split(", ")):
            known.setdefault(form.lower(), label)
    if text.lower() not in known:
        near = difflib.get_close_matches(text.lower(), known, n=3, cutoff=0.5)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        what = "is no class of this model" if names else "cannot be found: names are not known"
        raise ValueError(
            f"--class {text!r} {what}{hint}. Numbers 0 to {source.num_classes - 1} work too"
        )
    return known[text.lower()]


def class_map(source: Source, picture: Picture, level: int, label: int | None) -> ClassMap:
    """Grad-CAM at the output of a level.

    Args:
        source: the model.
        picture: the image.
        level: level whose map is weighted.
        label: class; None for the predicted one.

    Raises:
        ValueError: no such level, or its map has a single pixel.
    """
    check_level(source, level)
    name = f"levels.{level}"
    images = picture.tensor.clone().requires_grad_()
    with torch.enable_grad(), capture(source.model, [name]) as outputs:
        logits = source(images)
        feature = outputs[name][0]  # (1, H_l, W_l, C_l)
        if feature.shape[1] * feature.shape[2] == 1:
            raise ValueError(
                f"--level {level}: its map is a single pixel for images of "
                f"{picture.size[0]}x{picture.size[1]}: take a lower level"
            )
        predicted = int(logits[0].argmax())
        label = predicted if label is None else label
        (gradient,) = torch.autograd.grad(logits[0, label], feature)
    importance = gradient.mean((1, 2), keepdim=True)  # (1, 1, 1, C_l)
    coarse = (importance * feature).sum(-1).relu().detach().float()  # (1, H_l, W_l)
    coarse = coarse / coarse.max().clamp_min(1e-12)
    fine = F.interpolate(coarse[None], picture.size, mode="bilinear", align_corners=False)[0, 0]
    probability = float(logits[0].detach().float().softmax(0)[label])
    return ClassMap(label, probability, coarse[0].cpu().numpy(), fine.cpu().numpy(), predicted)


def draw(
    source: Source, pictures: Sequence[Picture], *, level: int | None, label: str | None
) -> drawing.Figure:
    """Images and, beside each, the image under its Grad-CAM.

    Args:
        source: the model.
        pictures: one row of two panels each.
        level: level whose map is weighted; None for the last.
        label: class by number or name; None for the predicted one of each image.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: no such level or class, or a map of one pixel.
        DrawingError: matplotlib is missing.
    """
    level = len(source.model.levels) - 1 if level is None else level
    asked = find_class(source, label)
    maps = [class_map(source, picture, level, asked) for picture in pictures]
    rows, columns = maps[0].coarse.shape
    question = "the predicted class" if asked is None else f"class {source.name(asked)!r}"
    caption = (
        f"Where the images speak for {question}: Grad-CAM at the output of level {level} "
        f"({rows}x{columns} pixels for the first image), enlarged to the image. {source.label}."
    )
    height = drawing.panel_height([picture.size for picture in pictures], 3.8)
    figure, axes = drawing.new_figure(
        len(pictures), (3.8, 3.8), height, "Grad-CAM", caption, bars=1
    )
    from matplotlib.cm import ScalarMappable  # after new_figure, which says if it is missing
    from matplotlib.colors import Normalize

    for panels, picture, found in zip(axes, pictures, maps, strict=True):
        drawing.show_image(panels[0], picture.pixels, drawing.shorten(picture.name))
        title = f"{drawing.shorten(source.name(found.label), 28)}  {100 * found.probability:.1f} %"
        if found.predicted != found.label:
            title += f"\n(predicted: {drawing.shorten(source.name(found.predicted), 28)})"
        if not found.coarse.any():
            title += "\n(nothing speaks for this class)"
        grey = np.broadcast_to(picture.pixels.mean(-1, keepdims=True), picture.pixels.shape)
        drawing.show_image(panels[1], grey.astype(np.uint8), title)
        opacity = 0.15 + 0.5 * found.fine  # what is not relevant stays grey
        panels[1].imshow(found.fine, cmap="turbo", alpha=opacity, vmin=0, vmax=1)
        scale = ScalarMappable(Normalize(0, 1), "turbo")
        drawing.colour_bar(figure, scale, panels[1], "relevance / its maximum")
    return figure
