"""Write models/map22kto1k.txt: for each ImageNet-1K class, the index of that class in ImageNet-22K.

    python meta_data/make_map22kto1k.py [--check]

Line i (from 0) holds the index of 1K class i among the 21841 classes of the Fall 2011 release,
both lists sorted by WordNet id, as folders of class folders would be. Both lists come with timm.

999 of the 1000 classes are in the 22K list under the same id. The one that is missing is n04399382,
"teddy, teddy bear". The only 22K class that shares the word is n03013580, "chemise, shimmy, shift,
slip, teddy": an undergarment, which no picture of a toy resembles. The stand-in used here is
n04461879, "toy": what a teddy bear is, and no 1K class of its own, so that no two 1K classes share
a row (of two equal logits only the first can ever be the top-1). The map of the original
implementation has 999 distinct rows, one of them serving two classes; scores of a 22K head computed
through the two maps can differ by the pictures of those classes, 0.1 % of the images each.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from timm.data import ImageNetInfo

TARGET = Path(__file__).resolve().parents[1] / "models" / "map22kto1k.txt"
STAND_INS = {"n04399382": "n04461879"}  # teddy bear -> toy


def compute_map() -> list[int]:
    """The 1000 indices into the 21841 classes, in the order of the 1K classes."""
    row = {wnid: i for i, wnid in enumerate(ImageNetInfo("imagenet-22k").label_names())}
    return [
        row[wnid] if wnid in row else row[STAND_INS[wnid]]
        for wnid in ImageNetInfo("imagenet-1k").label_names()
    ]


def main() -> int:
    """Write the file, or with --check compare it; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write map22kto1k.txt from timm's class lists.")
    parser.add_argument("--check", action="store_true", help="only compare, exit 1 on a difference")
    args = parser.parse_args()
    text = "".join(f"{index}\n" for index in compute_map())
    if args.check:
        same = TARGET.is_file() and TARGET.read_text() == text
        sys.stdout.write(f"{TARGET} {'is up to date' if same else 'differs: run this script'}\n")
        return 0 if same else 1
    TARGET.write_text(text)
    sys.stdout.write(f"wrote {TARGET}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
