"""Pictures of frames: the prediction in the six cameras, prediction and labels from above.

python tools/vis_occ.py CONFIG CHECKPOINT --out-dir pictures --end 10
python tools/vis_occ.py CONFIG FOLDER --out-dir pictures    # FOLDER: test.py --show-dir
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT.parent)]

import numpy as np
import occ  # noqa: F401 - first: puts the shared parts in place
import torch
from ad_common.apis.projects import PROJECTS
from ad_common.checks import build_data
from ad_common.datasets.loading import read_image
from ad_common.visualize import write_image
from internimage.cli import ArgumentParser, run_program
from mmcv import Config
from mmcv.parallel import collate
from mmcv_custom.checkpoint import load_checkpoint
from mmcv_custom.runtime import load_config
from mmdet.models import build_detector
from occ.drawing import picture
from occ.results import unpack
from tqdm import tqdm

logger = logging.getLogger(__name__)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 when it is wrong."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", metavar="CONFIG", help="names the data set, and the model")
    parser.add_argument(
        "source", metavar="SOURCE", help="checkpoint, or the folder of test.py --show-dir"
    )
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--out-dir", default="pictures", help="gets NNNN.jpg (pictures)")
    parser.add_argument("--begin", type=int, default=0, help="first frame (0)")
    parser.add_argument("--end", type=int, help="frame after the last; default: all")
    return parser.parse_args(argv)


def visualize(args: argparse.Namespace) -> int:
    """Draws as the arguments say; returns the exit code 0.

    Raises:
        ValueError: there are no such frames, or the files are of others.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cfg = load_config(args.config, None)
    dataset = build_data(cfg, args.split, PROJECTS["occ"], test_mode=True)
    indices = range(len(dataset))[args.begin : args.end]
    if not indices:
        raise ValueError(
            f"--begin {args.begin}, --end {args.end}: no such frames; there are "
            f"{len(dataset)}, counted from 0"
        )
    folder = Path(args.source).is_dir()
    found = (
        read_files(args.source, dataset, indices) if folder else run(cfg, args, dataset, indices)
    )
    for index, prediction in tqdm(found, total=len(indices), desc="frames"):
        path = Path(args.out_dir) / f"{index:04d}.jpg"
        write_image(path, draw(dataset, index, prediction))
    logger.info("pictures in %s", args.out_dir)
    return 0


def draw(dataset: Any, index: int, prediction: np.ndarray) -> np.ndarray:
    """The picture of a frame, with labels where there are some."""
    info = dataset.get_data_info(index)
    labels = dataset.labels(dataset.data_infos[index]) if info["occ_gt_path"] else None
    names = info["camera_names"]
    paths = dict(zip(names, info["img_filename"], strict=True))
    matrices = [matrix @ info["ego2lidar"] for matrix in info["lidar2img"]]
    return picture(
        {name: read_image(path) for name, path in paths.items()},
        dict(zip(names, matrices, strict=True)),
        prediction,
        None if labels is None else labels.semantics,
        None if labels is None else labels.mask_camera,
    )


def read_files(
    folder: str, dataset: Any, indices: Sequence[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """(index, grid) of the frames that `folder` has."""
    present = [i for i in indices if (Path(folder) / f"{i:04d}.npz").is_file()]
    if not present:
        raise ValueError(f"no NNNN.npz of these frames in {folder}; write them with --show-dir")
    for index in present:
        with np.load(Path(folder) / f"{index:04d}.npz") as file:
            token = dataset.data_infos[index]["token"]
            if str(file["token"]) != token:
                raise ValueError(f"{index:04d}.npz in {folder} is of another frame than {token}")
            yield index, file["pred"]


def run(
    cfg: Config, args: argparse.Namespace, dataset: Any, indices: Sequence[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """(index, grid) of frames that the checkpoint's model sees one after the other."""
    model = build_detector(cfg.model).eval()
    load_checkpoint(model, args.source)
    for index in indices:
        batch = collate([dataset[index]], samples_per_gpu=1)
        with torch.no_grad():
            result = model(
                return_loss=False,
                img=batch["img"].data[0],
                img_metas=batch["img_metas"].data[0],
            )
        yield index, unpack(result[0]["occupancy"])


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_program(visualize, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
