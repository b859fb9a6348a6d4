"""Save what layers of a model compute: ``python extract_feature.py --resume CKPT --img FILE...``.

``--img`` takes images, folders (searched in all depths) and glob patterns. Without ``--keys`` the
feature maps of the levels are taken; ``--list`` prints every layer with the shapes of its outputs.
Images are resized to the configuration's size by their short side and not cropped.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (str(HERE.parent), str(HERE)):
    if folder not in sys.path:
        sys.path.insert(0, folder)

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

import model_source
from cli import ArgumentParser, run_program
from dataset.decode import DECODE_ERRORS, decode_image
from dataset.transforms import build_transform, interpolation_mode
from feature_hooks import capture, check_names, flatten, layer_names, level_names
from model_source import Source
from models.write_file import replacing
from predict import find_images

logger = logging.getLogger(__name__)

SUFFIXES = (".pth", ".npz")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of extract_feature.py."""
    parser = ArgumentParser(
        "extract_feature.py", description="Save what layers compute", allow_abbrev=False
    )
    add = parser.add_argument
    model_source.add_arguments(parser)
    add("--img", nargs="+", default=[], metavar="IMG", help="images, folders or glob patterns")
    add("--keys", nargs="+", metavar="LAYER", help="dotted layer names (default: the levels)")
    add(
        "--save",
        nargs="?",
        const="",
        metavar="FILE",
        help="one .pth or .npz file for all images; without FILE a .pth file next to each image",
    )
    add("--crop", action="store_true", help="cut the centre square as in the evaluation")
    add("--list", action="store_true", help="print all layers with the shapes of their outputs")
    args = parser.parse_args(argv)
    if args.save and Path(args.save).suffix not in SUFFIXES:
        parser.error(f"--save {args.save} must end in {' or '.join(SUFFIXES)}")
    if not args.img and not args.list:
        parser.error("--img is missing: give images, or --list for the names of the layers")
    return args


def feature_transform(config: object, crop: bool = False) -> Callable[[Image.Image], Tensor]:
    """PIL image -> normalised tensor (3, H, W) with the configuration's size as short side."""
    if crop:
        return build_transform(False, config)
    mode = interpolation_mode(config.DATA.INTERPOLATION)
    return transforms.Compose(
        [
            transforms.Resize(config.DATA.IMG_SIZE, interpolation=mode),
            transforms.ToTensor(),
            transforms.Normalize(config.AUG.MEAN, config.AUG.STD),
        ]
    )


@torch.no_grad()
def features(source: Source, image: Tensor, keys: Sequence[str]) -> dict[str, Tensor]:
    """Outputs of layers for one image, in the order of the model.

    Args:
        source: the model.
        image: (3, H, W), normalised.
        keys: dotted layer names.

    Returns:
        Layer name -> tensor on the CPU with a batch axis of 1. A layer that returns several tensors
        or is called several times gives ``name[0]``, ``name[1]``, ... Maps inside the trunk are
        channels-last, (1, H, W, C).

    Raises:
        ValueError: a layer that does not exist, or an image that the model cannot take.
    """
    with capture(source.model, keys) as outputs:
        source(image[None].to(source.device))
    order = [name for name in layer_names(source.model) if name in set(keys)]
    return {name: value.cpu().contiguous() for name, value in flatten(outputs, order).items()}


def list_layers(source: Source, image: Tensor) -> None:
    """Prints every layer that is called in a forward pass with the shapes of its outputs."""
    names = layer_names(source.model)
    found = features(source, image, names)
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {shape_text(value)}")
    silent = len(names) - len({name.split("[")[0] for name in found})
    print(f"{len(found)} outputs for an image of {image.shape[1]}x{image.shape[2]} pixels", end="")
    print(f"; {silent} containers and unused layers have none" if silent else "")


def shape_text(value: Tensor) -> str:
    """``(1, 56, 56, 64)``."""
    return f"({', '.join(map(str, value.shape))})"


def _images(
    source: Source, paths: Sequence[Path], crop: bool, bad: list[Path]
) -> Iterator[tuple[Path, Tensor]]:
    transform = feature_transform(source.config, crop)
    for path in paths:
        try:
            yield path, transform(decode_image(path))
        except DECODE_ERRORS as error:
            bad.append(path)
            logger.warning("skipping unreadable image %s: %s", path, error)


def write_features(path: Path, file: Path, found: dict[str, dict[str, Tensor]]) -> None:
    """Features of all images, to `file`, in the format that the suffix of `path` names.

    .pth holds ``{image: {layer: tensor}}``, .npz one array ``image:layer`` for each.
    """
    if path.suffix == ".pth":
        torch.save(found, file)
        return
    with file.open("wb") as stream:  # given a name, NumPy would add a suffix
        arrays = {
            f"{image}:{name}": value.numpy()
            for image, layers in found.items()
            for name, value in layers.items()
        }
        np.savez(stream, **arrays)


def run(args: argparse.Namespace) -> int:
    """Compute, print and save; returns the exit code: 1 also when an input gave no file."""
    paths, problems = find_images(args.img)
    for problem in problems:
        logger.error("%s", problem)
    if args.img and not paths:
        return 1
    source = model_source.load(args)
    keys = args.keys or level_names(source.model)
    check_names(source.model, keys)
    bad: list[Path] = []
    if args.list:
        blank = torch.zeros(3, source.size, source.size)
        images = _images(source, paths, args.crop, bad)
        list_layers(source, next((image for _, image in images), blank))
        return 1 if problems or bad else 0
    done: dict[str, dict[str, Tensor]] = {}
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(replacing(args.save)) if args.save else None
        for path, image in _images(source, paths, args.crop, bad):
            try:
                found = features(source, image, keys)
            except ValueError as error:
                raise ValueError(f"{path}: {error} --crop cuts the centre square.") from error
            print(f"{path}  {image.shape[1]}x{image.shape[2]} pixels")
            for name, value in found.items():
                print(f"  {name}  {shape_text(value)}")
            if args.save == "":
                target = path.with_suffix(".pth")
                with replacing(target) as temporary:
                    torch.save(found, temporary)
                print(f"  saved: {target}")
            done[str(path)] = found if file else {}
        if not done:
            raise ValueError(f"none of the {len(paths)} files could be read")
        if file:
            write_features(Path(args.save), file, done)
    if args.save:
        print(f"saved: {args.save}")
    silent = [key for key in keys if not any(_is_of(key, name) for name in found)]
    if silent:
        logger.warning("layers that the model did not call: %s", ", ".join(silent))
    return 1 if problems else 0


def _is_of(key: str, name: str) -> bool:
    return name == key or name.startswith(f"{key}[")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    return run_program(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
