"""Pictures of what a model looks at.

    python tools/visualize.py points          --resume CKPT --img FILE --out points.png
    python tools/visualize.py receptive-field --resume CKPT --img FOLDER --out field.png
    python tools/visualize.py grad-cam        --resume CKPT --img FILE... --out cam.png
    python tools/visualize.py pca             --resume CKPT --img FILE... --out pca.png

Images are resized to the configuration's size by their short side and, but for receptive-field, not
cropped; --opts DATA.IMG_SIZE N changes the size.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
for folder in (str(HERE.parent), str(HERE)):
    if folder not in sys.path:
        sys.path.insert(0, folder)

import model_source
from cli import ArgumentParser, run_program
from models.write_file import replacing
from predict import find_images
from visualization import drawing, feature_pca, grad_cam, pictures, receptive_field, sampling

logger = logging.getLogger(__name__)

MAX_ROWS = 8
MAX_AVERAGED = 256  # they are in memory together


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of visualize.py."""
    parser = ArgumentParser("visualize.py", description="Pictures of what a model looks at")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")

    def add_kind(name: str, text: str) -> argparse.ArgumentParser:
        kind = kinds.add_parser(name, help=text, description=text, allow_abbrev=False)
        model_source.add_arguments(kind)
        kind.add_argument(
            "--img", nargs="+", required=True, metavar="IMG", help="images, folders or patterns"
        )
        kind.add_argument("--out", required=True, metavar="PNG", help="picture to write")
        return kind

    points = add_kind("points", "where DCNv3 samples for one output pixel")
    points.add_argument("--level", type=int, default=2, help="level, from 0 (default: 2)")
    points.add_argument("--block", type=int, help="block in the level (default: the last)")
    points.add_argument("--group", type=int, help="group of the layer (default: all)")
    points.add_argument(
        "--pixel", nargs=2, type=int, metavar=("ROW", "COL"),
        help="output pixel in the level's map (default: the centre)",
    )  # fmt: skip
    points.add_argument(
        "--depth", type=int, default=4, help="layers to go back, this one included (default: 4)"
    )
    field = add_kind("receptive-field", "which input pixels the centre of a level depends on")
    cam = add_kind("grad-cam", "which places speak for a class")
    cam.add_argument("--level", type=int, help="level, from 0 (default: the last)")
    cam.add_argument(
        "--class", dest="label", metavar="CLASS", help="number or name (default: the predicted one)"
    )
    pca = add_kind("pca", "feature maps as colours")
    for kind in (field, pca):
        kind.add_argument("--levels", nargs="+", type=int, metavar="N", help="default: all")
    for kind in (points, cam, pca):
        kind.add_argument("--crop", action="store_true", help="cut the centre square")
    args = parser.parse_args(argv)
    if Path(args.out).suffix.lower() != ".png":
        parser.error(f"--out {args.out} must end in .png")
    return args


def draw(args: argparse.Namespace, found: Sequence[Path]) -> drawing.Figure:
    """The figure that the command line asks for."""
    source = model_source.load(args)
    source.model.requires_grad_(False)
    most = MAX_AVERAGED if args.kind == "receptive-field" else MAX_ROWS
    images = pictures.read_pictures(source, found, getattr(args, "crop", True), most)
    if args.kind == "points":
        return sampling.draw(
            source, images, level=args.level, block=args.block, pixel=args.pixel,
            group=args.group, depth=args.depth,
        )  # fmt: skip
    if args.kind == "grad-cam":
        return grad_cam.draw(source, images, level=args.level, label=args.label)
    kind = receptive_field if args.kind == "receptive-field" else feature_pca
    return kind.draw(source, images, levels=args.levels)


def run(args: argparse.Namespace) -> int:
    """Draw and write; returns the exit code: 1 also when an input gave no file."""
    found, problems = find_images(args.img)
    for problem in problems:
        logger.error("%s", problem)
    if not found:
        return 1
    with replacing(args.out) as temporary:
        drawing.save(draw(args, found), temporary)
    print(f"written: {args.out}")
    return 1 if problems else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    return run_program(run, parse_args(argv), drawing.DrawingError)


if __name__ == "__main__":
    sys.exit(main())
