"""Write scikit-learn's handwritten digits as a folder of images, a small real data set.

    python tools/toy_digits.py OUT

1797 grey pictures of 8x8 pixels (UCI "Optical Recognition of Handwritten Digits") become PNG files
of 32x32 pixels, OUT/train/<digit>/ (1437) and OUT/val/<digit>/ (360): a fixed split that keeps the
share of each digit. Nothing is downloaded. A complete OUT is left as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

SIZE = 32
SEED = 0
COUNTS = {"train": 1437, "val": 360}
DIGITS = [str(digit) for digit in range(10)]


def enlarge(pixels):
    """An (8, 8) array of values 0..16 as a grey PIL image of SIZE x SIZE pixels."""
    import numpy as np
    from PIL import Image

    image = Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8))
    return image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def split() -> dict[str, list[int]]:
    """Indices into ``load_digits()`` per half, stratified by digit, the same on every machine."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    labels = load_digits().target
    train, val = train_test_split(
        range(len(labels)), test_size=COUNTS["val"], random_state=SEED, stratify=labels
    )
    return {"train": sorted(train), "val": sorted(val)}


def write(folder: Path) -> None:
    """Write all images below ``folder``: <half>/<digit>/<index in load_digits, 4 places>.png."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for half, indices in split().items():
        for digit in DIGITS:
            (folder / half / digit).mkdir(parents=True)
        for i in indices:
            name = folder / half / str(digits.target[i]) / f"{i:04d}.png"
            enlarge(digits.images[i]).save(name)


def is_complete(folder: Path) -> bool:
    """Whether both halves have their number of images, and every digit some."""
    for half, count in COUNTS.items():
        per_digit = [len(list((folder / half / digit).glob("*.png"))) for digit in DIGITS]
        if sum(per_digit) != count or not all(per_digit):
            return False
    return True


def build(out: Path) -> bool:
    """Write the data set to ``out``, whole or not at all.

    Returns:
        False when it was there already.

    Raises:
        FileExistsError: ``out`` exists and is something else, or incomplete.
        OSError: ``out`` cannot be written.
    """
    if is_complete(out):
        return False
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"{out} exists but is not the complete data set: remove it, or name another folder"
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
    return True


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the handwritten digits as image folders.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write, e.g. data/digits")
    out = parser.parse_args(argv).out
    total = f"{sum(COUNTS.values())} images, {COUNTS['train']} train and {COUNTS['val']} val"
    try:
        written = build(out)
    except ImportError as error:
        print(f"{error}; install it: pip install scikit-learn pillow", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"cannot write {out}: {error}", file=sys.stderr)
        return 1
    print(f"{'wrote' if written else 'already there:'} {total} in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
