"""Exports a detector: `python deploy.py DEPLOY_CFG MODEL_CFG CHECKPOINT IMAGE --work-dir DIR`.

DEPLOY_CFG is one of deploy/configs/mmdet/*/*.py; mmdeploy 0.14 must be installed. DIR gets
end2end.onnx (and end2end.engine for TensorRT), and the image as the file and as PyTorch see it. The
detections of the two are compared; a file that gives others is not kept.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import mmcv_custom  # noqa: F401  applies what mmcv needs on today's torch, before mmdet
import mmdet_custom  # noqa: F401  registers models and data sets
from image_demo import class_names, num_classes
from internimage.cli import run_program
from internimage.onnx_export import ExportError
from mmcv import Config
from mmcv_custom import deploying
from mmcv_custom.checkpoint import load_checkpoint
from mmcv_custom.runtime import load_config, naming_unknown_types
from mmdet.models import DETECTORS, build_detector
from mmdet.utils import compat_cfg, replace_cfg_vals
from mmdet_custom.exported import compare
from torch import nn


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 when it is wrong."""
    return deploying.parser("Export a detector with mmdeploy").parse_args(argv)


def read_config(path: str) -> Config:
    """The config of the model, without what only its training needs."""
    cfg = compat_cfg(replace_cfg_vals(load_config(path)))
    cfg.model.train_cfg = None
    cfg.model.pretrained = None
    if cfg.model.get("backbone") is not None:
        cfg.model.backbone.init_cfg = None  # the checkpoint holds the backbone
    return cfg


def load_model(cfg: Config, checkpoint: str) -> nn.Module:
    """The detector with its weights and CLASSES."""
    with naming_unknown_types("the model", DETECTORS):
        model = build_detector(cfg.model, test_cfg=cfg.get("test_cfg"))
    loaded = load_checkpoint(model, checkpoint)
    model.CLASSES = class_names(loaded, cfg, num_classes(model))
    model.cfg = cfg
    return model


def prepare() -> None:
    """Registers how the parts of detectors are exported; needs mmdeploy."""
    for name in ("exported_detector", "exported_boxes", "exported_dino"):
        importlib.import_module(f"mmdet_custom.{name}")


TASK = deploying.Task("mmdet", read_config, load_model, prepare, compare)


def run(args: argparse.Namespace) -> int:
    """The program after its command line; returns the exit code."""
    return deploying.run(args, TASK)


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_program(run, parse_args(argv), ExportError)


if __name__ == "__main__":
    sys.exit(main())
