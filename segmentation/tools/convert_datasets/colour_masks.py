"""Your own masks: pictures in which a colour stands for a class become PNG files of indices.

    python tools/convert_datasets/colour_masks.py COLOUR_FOLDER OUT_FOLDER --colours colours.txt

colours.txt has one class per line, `R G B name` (or `#rrggbb name`), class 0 first. Pixels of other
colours are an error, or, with --ignore-others, ignored (255): JPEG files and smoothed edges have
such pixels.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from common import IGNORE, make_parser, need, read_list, run_jobs, save_labels
from internimage.cli import run_program
from PIL import Image, UnidentifiedImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def read_colours(path: Path) -> list[int]:
    """The colours of the classes as R * 65536 + G * 256 + B.

    Raises:
        ValueError: a line has no colour, a colour occurs twice, there are more than 255.
    """
    colours = []
    for line in read_list(path):
        words = line.split()
        try:
            if words[0].startswith("#"):
                value = int(words[0][1:], 16)
            else:
                red, green, blue = (int(word) for word in words[:3])
                if not all(0 <= part <= 255 for part in (red, green, blue)):
                    raise ValueError("parts must be in 0..255")
                value = (red << 16) + (green << 8) + blue
        except ValueError as error:
            raise ValueError(f"{path}: {line!r} is not `R G B name` or `#rrggbb name`") from error
        if value in colours:
            raise ValueError(f"{path}: the colour of {line!r} occurs twice")
        colours.append(value)
    if not 0 < len(colours) < IGNORE:
        raise ValueError(f"{path}: {len(colours)} colours, 1..{IGNORE - 1} are possible")
    return colours


def convert(job: tuple[Path, Path], colours: list[int], ignore_others: bool) -> None:
    """Writes one mask."""
    source, target = job
    try:
        with Image.open(source) as image:
            pixels = np.array(image.convert("RGB")).astype(np.int32)  # (H, W, 3)
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{source} cannot be read: {error}") from error
    codes = (pixels[..., 0] << 16) + (pixels[..., 1] << 8) + pixels[..., 2]
    labels = np.full(codes.shape, IGNORE, np.uint8)
    for index, colour in enumerate(colours):
        labels[codes == colour] = index
    others = codes[labels == IGNORE]
    if len(others) and not ignore_others:
        raise ValueError(
            f"{source}: {len(others)} of {codes.size} pixels have colours of no class, such as "
            f"#{others[0]:06x}; add them to the list, or ignore them with --ignore-others"
        )
    save_labels(labels, target)


def run(args: Namespace) -> int:
    """Converts all pictures of a folder."""
    colours = read_colours(need(args.colours, "write one `R G B name` per class there"))
    need(args.root, "give the folder of colour masks")
    sources = [path for path in sorted(args.root.rglob("*")) if path.suffix.lower() in SUFFIXES]
    if not sources:
        raise ValueError(f"no picture ({', '.join(SUFFIXES)}) in {args.root}")
    jobs = [(path, args.out / path.relative_to(args.root).with_suffix(".png")) for path in sources]
    work = partial(convert, colours=colours, ignore_others=args.ignore_others)
    run_jobs(work, jobs, args.workers, "masks")
    print(f"{args.out}: {len(jobs)} masks with labels 0..{len(colours) - 1}")
    return 0


def parse_args(args: list[str] | None = None) -> Namespace:
    """The command line."""
    parser = make_parser(__doc__, "folder of colour masks")
    parser.add_argument("out", type=Path, help="folder for the masks")
    parser.add_argument("--colours", type=Path, required=True, help="file of colours")
    parser.add_argument("--ignore-others", action="store_true", help="other colours become 255")
    return parser.parse_args(args)


if __name__ == "__main__":
    sys.exit(run_program(run, parse_args()))
