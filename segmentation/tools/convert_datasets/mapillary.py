"""Mapillary Vistas: the folders that the configs read, out of the published archive.

    python tools/convert_datasets/mapillary.py data/Mapillary

The archive of version 1.2 has training/labels and validation/labels already; that of version 2.0
has training/v1.2/labels, to which training/labels becomes a link. The ids in config.json (or
config_v1.2.json) are compared with the classes of MapillaryDataset. No mask is rewritten.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common import need
from internimage.cli import ArgumentParser, run_program
from mmseg_custom.datasets.mapillary import MapillaryDataset


def check_names(path: Path) -> None:
    """Compares the classes of the archive with those of `MapillaryDataset`.

    Raises:
        ValueError: other names or another order (version 2.0 has 124 classes).
    """
    names = [label["readable"] for label in json.loads(path.read_text())["labels"]]
    known = list(MapillaryDataset.CLASSES)
    if [name.lower() for name in names] == [name.lower() for name in known]:
        return
    pairs = enumerate(zip(names, known))
    first = next((f"{i}: {a!r} / {b!r}" for i, (a, b) in pairs if a.lower() != b.lower()), "")
    raise ValueError(
        f"{path} has {len(names)} classes, not the {len(known)} of version 1.2 (first other name, "
        f"file / expected: {first or 'none'}): take the masks of version 1.2"
    )


def run(args: Namespace) -> int:
    """Checks the names and makes the links."""
    configs = [args.root / "config_v1.2.json", args.root / "config.json"]
    found = next((path for path in configs if path.is_file()), None)
    if found is not None:
        check_names(found)
    for split in ("training", "validation"):
        how = "unpack the archive of Mapillary Vistas there"
        images = need(args.root / split / "images", how)
        labels = args.root / split / "labels"
        if not labels.exists():
            need(args.root / split / "v1.2" / "labels", how)
            labels.symlink_to(Path("v1.2") / "labels", target_is_directory=True)
        pictures = {path.stem for path in images.glob("*.jpg")}
        masks = {path.stem for path in labels.glob("*.png")}
        if not pictures or pictures - masks:
            absent = sorted(pictures - masks)
            what = (
                f"{len(absent)} images without a mask, first {absent[0]}" if absent else "no *.jpg"
            )
            raise ValueError(f"{args.root / split}: {what}")
        print(f"{labels}: {len(pictures)} images with masks")
    return 0


def parse_args(args: list[str] | None = None) -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with training and validation")
    return parser.parse_args(args)


if __name__ == "__main__":
    sys.exit(run_program(run, parse_args()))
