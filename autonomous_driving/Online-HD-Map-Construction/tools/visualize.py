"""Pictures of a segment: its map from above and in the cameras, truth beside prediction.

python tools/visualize.py SEGMENT data/val_annotations.json --out-dir pictures
python tools/visualize.py SEGMENT data/val_annotations.json --result submission_vector.json
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT.parent)]

import hdmap  # noqa: F401  first: makes mmcv fit the installed torch
from ad_common.datasets.errors import listed, nearest
from hdmap.annotations import image_root, load_frames
from hdmap.drawing import save_frame
from hdmap.submission import read_submission
from internimage.cli import ArgumentParser, run_program
from tqdm import tqdm

logger = logging.getLogger("mmdet")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 when it is wrong."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("log_id", metavar="SEGMENT", help="key of the annotation file")
    parser.add_argument("ann_file", metavar="ANN_FILE", help="for example val_annotations.json")
    parser.add_argument("--result", metavar="FILE", help="submission_vector.json of the same split")
    parser.add_argument("--thr", type=float, default=0.3, help="least score that is drawn (0.3)")
    parser.add_argument("--out-dir", default="pictures", help="gets SEGMENT/TIMESTAMP.jpg")
    parser.add_argument("--data-root", help="folder with argoverse2/; default: that of ANN_FILE")
    parser.add_argument("--interval", type=int, default=1, help="draw every so manieth frame")
    args = parser.parse_args(argv)
    if args.interval < 1:
        parser.error(f"--interval must be 1 or more, got {args.interval}")
    return args


def visualize(args: argparse.Namespace) -> int:
    """Draws as the arguments say; returns the exit code 0.

    Raises:
        ValueError: there is no such segment, or the result has none of its frames.
    """
    all_frames = load_frames(args.ann_file)
    frames = [frame for frame in all_frames if frame["segment_id"] == args.log_id]
    if not frames:
        segments = list(dict.fromkeys(frame["segment_id"] for frame in all_frames))
        raise ValueError(
            f"{args.ann_file} has no segment {args.log_id!r}{nearest(args.log_id, segments)}; "
            f"there are {listed(segments)}"
        )
    predicted = None
    if args.result:
        predicted = read_submission(args.result)
        if not any(frame["token"] in predicted for frame in frames):
            raise ValueError(
                f"{args.result} has no frame of segment {args.log_id}; is it of another split?"
            )
    root = image_root(args.data_root or Path(args.ann_file).parent, frames[0])
    folder = Path(args.out_dir) / args.log_id
    chosen = frames[:: args.interval]
    for frame in tqdm(chosen, desc="frames"):
        lines = predicted.get(frame["token"]) if predicted else None
        save_frame(folder / f"{frame['token']}.jpg", frame, root, lines, args.thr)
    logger.info("%d pictures in %s", len(chosen), folder)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_program(visualize, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
