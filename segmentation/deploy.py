"""Exports a segmentor: `python deploy.py DEPLOY_CFG MODEL_CFG CHECKPOINT IMAGE --work-dir DIR`.

DEPLOY_CFG is one of deploy/configs/mmseg/*.py; mmdeploy 0.14 must be installed. DIR gets
end2end.onnx (and end2end.engine for TensorRT), and the image as the file and as PyTorch see it. The
labels of the two are compared; a file that gives others is not kept.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

import mmcv_custom  # noqa: F401  applies what mmcv needs on today's torch, before mmseg
import mmseg_custom  # noqa: F401  registers models and data sets
from image_demo import class_meta
from internimage.cli import run_program
from internimage.onnx_export import ExportError
from mmcv import Config
from mmcv_custom import deploying
from mmcv_custom.batch_norm import use_local_batch_norm
from mmcv_custom.checkpoint import load_checkpoint
from mmcv_custom.runtime import load_config, naming_unknown_types
from mmseg.models import SEGMENTORS, build_segmentor
from mmseg_custom.exported import comparable, compare
from mmseg_custom.overlay import colours
from mmseg_custom.released_heads import prepare_config, prepare_model
from torch import nn

logger = logging.getLogger("mmcv_custom.deploy")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 when it is wrong."""
    return deploying.parser("Export a segmentor with mmdeploy").parse_args(argv)


def read_config(path: str) -> Config:
    """The config of the model, without what only its training needs."""
    cfg = load_config(path)
    cfg.model.train_cfg = None
    cfg.model.pretrained = None
    if cfg.model.get("backbone") is not None:
        cfg.model.backbone.init_cfg = None  # the checkpoint holds the backbone
    if cfg.model.get("test_cfg", {}).get("mode") == "slide":
        logger.warning(
            "%s tests in windows of %s; the file takes what it gets as one window",
            path,
            "x".join(map(str, cfg.model.test_cfg.crop_size)),
        )
        cfg.model.test_cfg = {"mode": "whole"}
    prepare_config(cfg)
    return cfg


def load_model(cfg: Config, checkpoint: str) -> nn.Module:
    """The segmentor with its weights, CLASSES and PALETTE."""
    with naming_unknown_types("the model", SEGMENTORS):
        model = build_segmentor(cfg.model, test_cfg=cfg.get("test_cfg"))
    prepare_model(cfg, model)
    loaded = load_checkpoint(model, checkpoint)
    names, palette = class_meta(loaded, cfg, model.decode_head.num_classes)
    model.CLASSES, model.PALETTE = names, colours(palette, len(names))
    use_local_batch_norm(model)
    return model


def prepare() -> None:
    """Registers how Mask2Former is exported; needs mmdeploy."""
    importlib.import_module("mmseg_custom.exported_mask2former")


TASK = deploying.Task("mmseg", read_config, load_model, prepare, compare, comparable)


def run(args: argparse.Namespace) -> int:
    """The program after its command line; returns the exit code."""
    return deploying.run(args, TASK)


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_program(run, parse_args(argv), ExportError)


if __name__ == "__main__":
    sys.exit(main())
