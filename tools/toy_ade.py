"""Write a synthetic segmentation data set in ADE20K's folders: textures, and shapes on them.

    python tools/toy_ade.py --output segmentation/data/toy_ade     # 400 + 80 images of 96 pixels

    OUTPUT/images/{training,validation}/00000000.jpg        RGB
    OUTPUT/annotations/{training,validation}/00000000.png   one label per pixel (8 bits, grey)
    OUTPUT/toy_ade.json                                     classes, colours, arguments

Six classes: three textures that fill regions of the image (ground, stripes, dots) and three shapes
in front of them (circle, square, triangle), of any colour, size and rotation. What tells the
classes apart is texture and form, never colour.

The labels are 0 to 5, ground is class 0, and 255 is ignored: the outermost pixels of a shape and,
in one image of three, a patch of noise. Read them with ``reduce_zero_label=False``. (ADE20K itself
uses the other convention: 0 is "other" and ignored, 1 to 150 are the classes, and
``reduce_zero_label=True`` turns k into k - 1 and 0 into 255.) With --colours the masks are coloured
pictures instead, as annotation programs export them, which have to be converted first.

An image depends on the seed, its split and its number only: equal arguments give equal files, and
a larger set begins with the images of a smaller one. A complete data set of the same arguments is
left as it is; anything else in OUTPUT is never overwritten.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from toy_coco import background, colour, coverage, outline, write_whole

TEXTURES = ("ground", "stripes", "dots")
SHAPES = ("circle", "square", "triangle")
CLASSES = (*TEXTURES, *SHAPES)
PALETTE = (
    (128, 128, 128),
    (0, 114, 178),
    (0, 158, 115),
    (213, 94, 0),
    (240, 228, 66),
    (204, 121, 167),
)
SPLITS = ("training", "validation")
IGNORED = 255
MIN_SIZE = 32
MAX_SHAPES = 4
VISIBLE = 0.6  # share of a shape that stays visible at least
PATCH = 1 / 3  # share of images with a patch of noise
QUALITY = 95  # of the JPEG files
DESCRIPTION = "toy_ade.json"


@dataclass(frozen=True)
class Settings:
    """The arguments that determine every byte of the data set.

    Attributes:
        training: number of training images.
        validation: number of validation images.
        size: width and height of an image in pixels.
        seed: of the random numbers.
        colours: masks are pictures in the colours of `PALETTE`, white where they are ignored.
    """

    training: int = 400
    validation: int = 80
    size: int = 96
    seed: int = 0
    colours: bool = False

    def __post_init__(self) -> None:
        if min(self.training, self.validation) < 1:
            raise ValueError(
                f"--train and --val need an image each, got {self.training}, {self.validation}"
            )
        if self.size < MIN_SIZE:
            raise ValueError(f"--size must be at least {MIN_SIZE} pixels, got {self.size}")
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, got {self.seed}")

    def described(self) -> dict[str, Any]:
        """What OUTPUT/toy_ade.json holds."""
        return {
            "classes": list(CLASSES),
            "palette": [list(rgb) for rgb in PALETTE],
            "ignored": IGNORED,
            "reduce_zero_label": False,
            "settings": asdict(self),
        }


def turned(rng: Any, size: int) -> tuple[Any, Any]:
    """Coordinates (size, size) along and across a random direction, in pixels."""
    import numpy as np

    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size] - size / 2
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def textured(rng: Any, kind: str, size: int) -> Any:
    """Stripes or dots in two muted colours, (size, size, 3), 0 to 1."""
    import numpy as np

    along, across = turned(rng, size)
    period = rng.uniform(0.09, 0.14) * size
    if kind == "stripes":
        wave = np.sin(2 * np.pi * along / period)
    else:
        wave = np.sin(2 * np.pi * along / period) + np.sin(2 * np.pi * across / period) - 0.7
    weight = (1 / (1 + np.exp(-6 * wave)))[..., None]
    grey = rng.uniform(0.15, 0.85)
    other = grey + rng.uniform(0.3, 0.45) * (-1 if grey > 0.5 else 1)
    first, second = (np.clip(v + rng.uniform(-0.1, 0.1, 3), 0, 1) for v in (grey, other))
    return weight * first + (1 - weight) * second + rng.normal(0, 0.03, (size, size, 1))


def region(rng: Any, size: int) -> Any:
    """A side of a wavy line across the image as a boolean mask, (size, size)."""
    import numpy as np

    along, across = turned(rng, size)
    bend = (
        rng.uniform(0, 0.08) * size * np.sin(across / size * rng.uniform(2, 8) + rng.uniform(0, 6))
    )
    return along + bend > rng.uniform(-0.15, 0.3) * size


def place(rng: Any, kind: str, size: int) -> Any:
    """Share of each pixel that a shape of random size, place and rotation covers, (size, size)."""
    import numpy as np

    radius = rng.uniform(0.14, 0.28) * size
    centre = rng.uniform(0.6 * radius, size - 0.6 * radius, 2)
    turn = rng.uniform(0, 2 * math.pi)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return coverage(radius * outline(kind) @ rotation + centre, size)


def draw(rng: Any, size: int) -> tuple[Any, Any]:
    """One image and its labels.

    Returns:
        The image, (size, size, 3) uint8 RGB, and its labels, (size, size) uint8, 0 to 5 and 255.
    """
    import numpy as np

    image = background(rng, size)
    labels = np.zeros((size, size), np.uint8)
    for kind in rng.permutation(TEXTURES[1:])[: rng.integers(1, 3)]:
        side = region(rng, size)
        image = np.where(side[..., None], textured(rng, str(kind), size), image)
        labels[side] = CLASSES.index(kind)
    drawn: list[Any] = []  # what is still visible of each shape, and its full area
    wanted = int(rng.integers(1, MAX_SHAPES + 1))
    for _ in range(wanted * 5):
        if len(drawn) == wanted:
            break
        kind = SHAPES[rng.integers(len(SHAPES))]
        alpha = place(rng, kind, size)
        paint = np.array(colour(rng))
        behind = [(seen & (alpha == 0), full) for seen, full in drawn]
        if any(seen.sum() < VISIBLE * full for seen, full in behind):
            continue
        drawn = [*behind, (alpha > 0, (alpha > 0).sum())]
        light = 1 + rng.uniform(-0.2, 0.2) * np.linspace(-1, 1, size)[:, None, None]
        image = image * (1 - alpha[..., None]) + paint * light * alpha[..., None]
        labels[alpha > 0] = IGNORED  # pixels that the shape covers in part
        labels[alpha == 1] = CLASSES.index(kind)
    if rng.random() < PATCH:
        height, width = (rng.uniform(0.12, 0.3, 2) * size).astype(int)
        top, left = rng.integers(size - height), rng.integers(size - width)
        patch = (slice(top, top + height), slice(left, left + width))
        image[patch] = rng.random((height, width, 3))
        labels[patch] = IGNORED
    return np.clip(np.round(255 * image), 0, 255).astype(np.uint8), labels


def write_split(folder: Path, split: str, settings: Settings) -> None:
    """Write the images and labels of a split below ``folder``."""
    import numpy as np
    from PIL import Image

    for number in range(getattr(settings, split)):
        rng = np.random.default_rng([settings.seed, SPLITS.index(split), number])
        image, labels = draw(rng, settings.size)
        picture, mask = paths(folder, split, number)
        for path in (picture, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(picture, quality=QUALITY, subsampling=0)
        Image.fromarray(coloured(labels) if settings.colours else labels).save(mask)


def coloured(labels: Any) -> Any:
    """Labels (H, W) as a picture, (H, W, 3) uint8 RGB."""
    import numpy as np

    palette = np.full((256, 3), 255, np.uint8)
    palette[: len(PALETTE)] = PALETTE
    return palette[labels]


def paths(folder: Path, split: str, number: int) -> tuple[Path, Path]:
    """Where an image and its labels are."""
    return (
        folder / "images" / split / f"{number:08d}.jpg",
        folder / "annotations" / split / f"{number:08d}.png",
    )


def is_complete(folder: Path, settings: Settings) -> bool:
    """Whether the data set of these settings is there with all its files."""
    try:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return described == settings.described() and all(
        path.is_file()
        for split in SPLITS
        for number in range(getattr(settings, split))
        for path in paths(folder, split, number)
    )


def build(out: Path, settings: Settings) -> bool:
    """Write the data set to ``out``, whole or not at all.

    Returns:
        False when it was there already.

    Raises:
        FileExistsError: ``out`` exists and is something else, or incomplete.
        OSError: ``out`` cannot be written.
    """
    if is_complete(out, settings):
        return False

    def write(folder: Path) -> None:
        for split in SPLITS:
            write_split(folder, split, settings)
        text = json.dumps(settings.described(), indent=1) + "\n"
        (folder / DESCRIPTION).write_text(text, encoding="utf-8")

    write_whole(out, write)
    return True


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of toy_ade.py."""
    parser = argparse.ArgumentParser(
        description="Write a synthetic segmentation data set in ADE20K's folders.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    add("--train", type=int, default=400, metavar="N", help="number of training images")
    add("--val", type=int, default=80, metavar="N", help="number of validation images")
    add("--size", type=int, default=96, metavar="PX", help="width and height of an image")
    add("--seed", type=int, default=0, help="of the random numbers")
    add("--colours", action="store_true", help="masks in colours, to try a converter on")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = parse_args(argv)
    try:
        settings = Settings(args.train, args.val, args.size, args.seed, args.colours)
        written = build(args.output, settings)
    except ImportError as error:
        print(f"{error}; make setup-openmmlab installs what is missing", file=sys.stderr)
        return 1
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"cannot write {args.output}: {error}", file=sys.stderr)
        return 1
    total = f"{args.train} training and {args.val} validation images of {args.size} pixels"
    print(f"{'wrote' if written else 'already there:'} {total} in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
