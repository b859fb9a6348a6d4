"""Write a synthetic detection data set in COCO's format: coloured shapes on textured backgrounds.

    python tools/toy_coco.py --output detection/data/toy_coco                  # 200 + 50 images
    python tools/toy_coco.py --preset large --output detection/data/toy_large  # 1600 + 200

Five classes (circle, square, triangle, star, cross) of random size, rotation and colour, which may
cover each other and leave the image a little. The polygons outline the visible part of a shape as
COCO's do (a hole in it is filled); ``area`` and ``bbox`` are those of the polygons as pycocotools
draws them. About one image in sixteen shows nothing.

An image depends on the seed, its split and its number only: equal arguments give equal files, and
a larger set begins with the images of a smaller one. A complete data set of the same arguments is
left as it is; anything else in OUTPUT is never overwritten.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SHAPES = ("circle", "square", "triangle", "star", "cross")
SPLITS = ("train", "val")
PRESETS = {"small": (200, 50), "large": (1600, 200)}  # images for training and validation
MIN_SIZE = 32
MAX_SHAPES = 5
EMPTY = 1 / 16  # share of images without a shape
VISIBLE = 0.6  # share of a shape that stays visible at least
FINE = 4  # subpixels per pixel and axis when drawing
TOOL = "toy_coco.py"


@dataclass(frozen=True)
class Settings:
    """The arguments that determine every byte of the data set.

    Attributes:
        train: number of training images.
        val: number of validation images.
        size: width and height of an image in pixels.
        seed: of the random numbers.
        names: names of the five classes in the order of `SHAPES`.
    """

    train: int
    val: int
    size: int = 128
    seed: int = 0
    names: tuple[str, ...] = SHAPES

    def __post_init__(self) -> None:
        if min(self.train, self.val) < 1:
            raise ValueError(f"--train and --val need an image each, got {self.train}, {self.val}")
        if self.size < MIN_SIZE:
            raise ValueError(f"--size must be at least {MIN_SIZE} pixels, got {self.size}")
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, got {self.seed}")
        if len(set(self.names)) != len(SHAPES):
            raise ValueError(
                f"--names takes {len(SHAPES)} different names, for {', '.join(SHAPES)}; "
                f"got {' '.join(self.names)}"
            )

    def described(self) -> dict[str, Any]:
        """The settings as JSON holds them."""
        return json.loads(json.dumps(asdict(self)))


def outline(shape: str) -> Any:
    """Corners of a shape around the origin, within the unit circle, as an (n, 2) array."""
    import numpy as np

    def ring(count: int, radii: Sequence[float] = (1.0,)) -> Any:
        angles = 2 * np.pi * np.arange(count) / count - np.pi / 2
        radius = np.resize(radii, count)
        return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)

    if shape == "cross":
        wide, narrow = 0.94, 0.33  # half length and half width of an arm
        x = [-narrow, narrow, narrow, wide, wide, narrow, narrow, -narrow, -narrow, -wide, -wide]
        y = [-wide, -wide, -narrow, -narrow, narrow, narrow, wide, wide, narrow, narrow, -narrow]
        return np.array([*zip(x, y, strict=True), (-narrow, -narrow)])
    return {
        "circle": lambda: 0.85 * ring(64),
        "square": lambda: ring(4),
        "triangle": lambda: ring(3),
        "star": lambda: ring(10, (1.0, 0.42)),
    }[shape]()


def background(rng: Any, size: int) -> Any:
    """Two muted colours mixed by smooth noise, stripes and grain; (size, size, 3), 0 to 1."""
    import cv2
    import numpy as np

    def muted() -> Any:
        grey = rng.uniform(0.15, 0.85)
        return np.clip(grey + rng.uniform(-0.12, 0.12, 3), 0, 1)

    coarse = rng.random((rng.integers(3, 9), rng.integers(3, 9))).astype(np.float32)
    weight = np.clip(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1)
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, size / 4)
    y, x = np.mgrid[:size, :size]
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
    weight = 0.75 * weight + 0.125 * (1 + wave)
    image = weight[..., None] * muted() + (1 - weight[..., None]) * muted()
    return image + rng.normal(0, 0.03, (size, size, 1))


def coverage(corners: Any, size: int) -> Any:
    """Share of each pixel that a polygon covers, (size, size), 0 to 1."""
    import cv2
    import numpy as np

    canvas = np.zeros((size * FINE, size * FINE), np.uint8)
    cv2.fillPoly(canvas, [np.round(corners * FINE - 0.5).astype(np.int32)], 1)
    return canvas.reshape(size, FINE, size, FINE).mean(axis=(1, 3))


def colour(rng: Any) -> Any:
    """A saturated colour, RGB, 0 to 1."""
    import colorsys

    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.7, 1), rng.uniform(0.6, 1))


def polygons(mask: Any) -> list[list[float]]:
    """Outlines of a boolean mask (H, W) along the borders of its pixels, [x1, y1, x2, y2, ...]."""
    import cv2
    import numpy as np

    fine = np.kron(mask.astype(np.uint8), np.ones((FINE, FINE), np.uint8))
    fine = np.pad(fine, (0, 1))
    fine[1:] |= fine[:-1]  # one subpixel more to the right and below: then the centres of the
    fine[:, 1:] |= fine[:, :-1]  # outermost subpixels, which OpenCV returns, are the borders
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    found = []
    for contour in contours:
        corners = cv2.approxPolyDP(contour, 0.5 * FINE, closed=True)[:, 0]
        if len(corners) >= 3:
            found.append([round(float(v), 2) for v in (corners / FINE).ravel()])
    return found


def draw(rng: Any, size: int) -> tuple[Any, list[tuple[int, Any]]]:
    """One image.

    Returns:
        The image, (size, size, 3) uint8 RGB, and for each shape its class, 0 to 4, and the visible
        part of it as a boolean mask (size, size).
    """
    import numpy as np

    image = background(rng, size)
    shapes: list[tuple[int, Any, float]] = []  # class, visible mask, full area
    wanted = 0 if rng.random() < EMPTY else int(rng.integers(1, MAX_SHAPES + 1))
    for _ in range(wanted * 5):
        if len(shapes) == wanted:
            break
        label = int(rng.integers(len(SHAPES)))
        radius = rng.uniform(0.10, 0.24) * size
        centre = rng.uniform(0.6 * radius, size - 0.6 * radius, 2)
        turn = rng.uniform(0, 2 * math.pi)
        rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        corners = radius * outline(SHAPES[label]) @ rotation + centre
        paint = np.array(colour(rng))
        alpha = coverage(corners, size)
        mask = alpha >= 0.5
        x, y = corners[:, 0], corners[:, 1]
        full = 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))
        behind = [(kind, seen & ~mask, area) for kind, seen, area in shapes]
        if mask.sum() < VISIBLE * full or any(s.sum() < VISIBLE * a for _, s, a in behind):
            continue
        shapes = [*behind, (label, mask, full)]
        light = 1 + rng.uniform(-0.2, 0.2) * (np.linspace(-1, 1, size)[:, None, None])
        image = image * (1 - alpha[..., None]) + paint * light * alpha[..., None]
    pixels = np.clip(np.round(255 * image), 0, 255).astype(np.uint8)
    return pixels, [(label, mask) for label, mask, _ in shapes]


def annotate(masks: Sequence[tuple[int, Any]], image_id: int, first: int) -> list[dict[str, Any]]:
    """COCO annotations of the shapes of one image; ids count from `first`."""
    from pycocotools import mask as coco_mask

    found: list[dict[str, Any]] = []
    for label, mask in masks:
        segmentation = polygons(mask)
        drawn = coco_mask.merge(coco_mask.frPyObjects(segmentation, *mask.shape))
        found.append(
            {
                "id": first + len(found),
                "image_id": image_id,
                "category_id": label + 1,
                "segmentation": segmentation,
                "area": float(coco_mask.area(drawn)),
                "bbox": [float(v) for v in coco_mask.toBbox(drawn)],
                "iscrowd": 0,
            }
        )
    return found


def write_split(folder: Path, split: str, settings: Settings) -> None:
    """Write the images of a split and its json below ``folder``."""
    import numpy as np
    from PIL import Image

    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (folder / split).mkdir(parents=True)
    for number in range(getattr(settings, split)):
        rng = np.random.default_rng([settings.seed, SPLITS.index(split), number])
        pixels, masks = draw(rng, settings.size)
        name = f"{number:06d}.png"
        Image.fromarray(pixels).save(folder / split / name)
        images.append(
            {
                "id": number + 1,
                "file_name": name,
                "width": settings.size,
                "height": settings.size,
                "license": 1,
            }
        )
        annotations += annotate(masks, number + 1, len(annotations) + 1)
    tree = {
        "info": {"description": TOOL, "version": "1", "settings": settings.described()},
        "licenses": [{"id": 1, "name": "public domain", "url": ""}],
        "categories": [
            {"id": index + 1, "name": name, "supercategory": "shape"}
            for index, name in enumerate(settings.names)
        ],
        "images": images,
        "annotations": annotations,
    }
    path = json_path(folder, split)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(tree) + "\n", encoding="utf-8")


def json_path(folder: Path, split: str) -> Path:
    """Where the annotations of a split are."""
    return folder / "annotations" / f"instances_{split}.json"


def is_complete(folder: Path, settings: Settings) -> bool:
    """Whether the data set of these settings is there with all its images."""
    for split in SPLITS:
        try:
            tree = json.loads(json_path(folder, split).read_text(encoding="utf-8"))
            info = tree["info"]
            if info["description"] != TOOL or info["settings"] != settings.described():
                return False
            names = [image["file_name"] for image in tree["images"]]
        except (FileNotFoundError, NotADirectoryError, KeyError, TypeError, ValueError):
            return False
        if not all((folder / split / name).is_file() for name in names):
            return False
    return True


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

    write_whole(out, write)
    return True


def write_whole(out: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary folder, which then becomes ``out``.

    Raises:
        FileExistsError: ``out`` exists and is not an empty folder.
        OSError: ``out`` cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"{out} exists but is not the data set of these arguments: remove it, or name another "
            "folder"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        write(temporary)
        temporary.chmod(0o755)
        with contextlib.suppress(FileNotFoundError):
            out.rmdir()  # it is empty
        os.rename(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of toy_coco.py."""
    parser = argparse.ArgumentParser(description="Write a synthetic data set in COCO's format.")
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    sizes = ", ".join(f"{name}: {train} + {val}" for name, (train, val) in PRESETS.items())
    add("--preset", choices=PRESETS, default="small", help=f"number of images ({sizes})")
    add("--train", type=int, metavar="N", help="number of training images instead of the preset's")
    add("--val", type=int, metavar="N", help="number of validation images")
    add("--size", type=int, default=128, metavar="PX", help="width and height (default: 128)")
    add("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    add("--names", nargs=len(SHAPES), default=SHAPES, metavar="NAME", help="other class names")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = parse_args(argv)
    train, val = PRESETS[args.preset]
    try:
        settings = Settings(
            train=train if args.train is None else args.train,
            val=val if args.val is None else args.val,
            size=args.size,
            seed=args.seed,
            names=tuple(args.names),
        )
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
    total = f"{settings.train} train and {settings.val} val images of {settings.size} pixels"
    print(f"{'wrote' if written else 'already there:'} {total} in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
