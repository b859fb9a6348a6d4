"""Pictures of frames: lanes and traffic elements in the cameras, topology from above.

python tools/visualize.py data/OpenLane-V2/data_dict_subset_A_val.pkl --out-dir pictures
python tools/visualize.py data/OpenLane-V2/data_dict_subset_A_val.pkl --result submission.pkl
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT.parent)]

import olv2  # noqa: F401 - first: puts the shared parts in place
from ad_common.datasets.errors import listed, nearest
from ad_common.datasets.pickles import read_pickle
from internimage.cli import ArgumentParser, run_program
from olv2.devkit import check_results, load_collection
from olv2.devkit.collection import FrameKey
from olv2.drawing import save_frame
from olv2.results import predictions_of
from tqdm import tqdm

logger = logging.getLogger("mmdet")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 when it is wrong."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("collection", metavar="COLLECTION", help="pickle of tools/preprocess.py")
    parser.add_argument(
        "--result",
        metavar="FILE",
        help="submission, or what test.py wrote with --out for this collection",
    )
    parser.add_argument("--thr", type=float, default=0.3, help="least confidence drawn (0.3)")
    parser.add_argument("--out-dir", default="pictures", help="gets SEGMENT/TIMESTAMP.jpg")
    parser.add_argument("--data-root", help="folder of the images; default: that of COLLECTION")
    parser.add_argument("--segment", help="draw this one only")
    parser.add_argument("--num", type=int, help="draw so many frames at most")
    parser.add_argument("--interval", type=int, default=1, help="draw every so manieth frame")
    args = parser.parse_args(argv)
    for name in ("num", "interval"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be 1 or more, got {value}")
    return args


def visualize(args: argparse.Namespace) -> int:
    """Draws as the arguments say; returns the exit code 0.

    Raises:
        ValueError: there is no such segment, or the result is of other frames.
    """
    frames = load_collection(args.collection)
    predictions = read_result(args.result, list(frames)) if args.result else {}
    keys = list(frames)
    if args.segment is not None:
        keys = [key for key in keys if key[1] == args.segment]
        if not keys:
            segments = list(dict.fromkeys(key[1] for key in frames))
            raise ValueError(
                f"{args.collection} has no segment {args.segment!r}"
                f"{nearest(args.segment, segments)}; there are {listed(segments)}"
            )
    root = args.data_root or Path(args.collection).parent
    chosen = keys[:: args.interval][: args.num]
    for key in tqdm(chosen, desc="frames"):
        save_frame(root, key, frames[key], predictions.get(key), args.out_dir, args.thr)
    logger.info("%d pictures in %s", len(chosen), args.out_dir)
    return 0


def read_result(path: str, keys: Sequence[FrameKey]) -> dict[FrameKey, dict[str, Any]]:
    """The predictions of every frame from a submission or the model's own results.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is neither, or is of other frames.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path} does not exist; tools/test.py writes it with --format-only or --out"
        )
    read = read_pickle(path)
    if isinstance(read, list):
        if len(read) != len(keys):
            raise ValueError(
                f"{path} has the results of {len(read)} frames, the collection {len(keys)}"
            )
        return {key: predictions_of(result, key) for key, result in zip(keys, read, strict=True)}
    check_results(read)
    found = {key: frame["predictions"] for key, frame in read["results"].items()}
    if not any(key in found for key in keys):
        raise ValueError(f"{path} has no frame of the collection; is it of another split?")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_program(visualize, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
