"""Write a small synthetic data set in the formats of the real ones, for trying the three systems.

    python tools/make_synthetic.py occupancy occupancy_prediction/data/toy
    python tools/make_synthetic.py openlane openlane-v2/data/toy
    python tools/make_synthetic.py hdmap Online-HD-Map-Construction/data/toy

OUT takes the place of the folder `data` of the published layout. Equal arguments give equal files;
a data set of the same arguments is left as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import ad_common  # noqa: F401 - makes `internimage` importable
from ad_common import synthetic
from internimage.cli import ArgumentParser, run_program


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of make_synthetic.py."""
    parser = ArgumentParser(description="Write a synthetic driving data set.")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{occupancy,openlane,hdmap}")
    occupancy = kinds.add_parser("occupancy", help="nuScenes, CAN bus and Occ3D-nuScenes")
    occupancy.add_argument("--version", default="v1.0-trainval", help="of the nuScenes tables")
    occupancy.add_argument("--small-objects", action="store_true", help="pedestrians, barriers")
    openlane = kinds.add_parser("openlane", help="OpenLane-V2, subset A")
    hdmap = kinds.add_parser("hdmap", help="Argoverse 2 images and map annotations")
    for kind, part in (("occupancy", occupancy), ("openlane", openlane), ("hdmap", hdmap)):
        default = synthetic.DEFAULTS[kind]
        unit = "scenes" if kind == "occupancy" else "segments"
        add = part.add_argument
        add("out", type=Path, metavar="OUT", help="folder to write")
        add("--train", type=int, default=default.train, metavar="N", help=f"{unit} for training")
        add("--val", type=int, default=default.val, metavar="N", help=f"{unit} for validation")
        if kind != "occupancy":
            add("--test", type=int, default=1, metavar="N", help=f"{unit} without annotations")
            add("--slope", type=float, default=0.0, help="largest grade of the ground, e.g. 0.03")
            add("--intersections", type=float, default=0.5, help="share of segments with one")
        add("--frames", type=int, default=default.frames, metavar="N", help=f"per {unit[:-1]}")
        add("--scale", type=float, default=default.scale, help="of the images, 1 is the real size")
        add("--seed", type=int, default=0, help="of the random numbers")
        add("--overwrite", action="store_true", help="replace a synthetic data set in OUT")
    argv = sys.argv[1:] if argv is None else list(argv)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        kinds.choices[args.kind].parse_args(argv[1:])  # its error names the nearest option
    return args


def run(args: argparse.Namespace) -> int:
    """Write the data set."""
    options = {key: value for key, value in vars(args).items() if key not in ("kind", "out")}
    unit = "scenes" if args.kind == "occupancy" else "segments"
    for split in ("train", "val", "test"):
        if split in options:
            options[f"{split}_{unit}"] = options.pop(split)
    options["image_scale"] = options.pop("scale")
    written = synthetic.write(args.kind, args.out, progress=sys.stderr.isatty(), **options)
    print(f"{'wrote' if written else 'already there:'} {args.out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_program(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
