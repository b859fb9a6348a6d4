"""Trains a segmentor: `python train.py CONFIG`, or `bash dist_train.sh CONFIG N` with N processes.

Runs on the CPU or the GPU. Everything goes to the work dir: checkpoints, logs (text, JSON,
TensorBoard) and the config as it was used.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import mmcv_custom  # noqa: F401  applies what mmcv needs on today's torch, before mmseg
import mmseg
import mmseg_custom  # noqa: F401  registers models and data sets
import torch
from internimage.cli import ArgumentParser, run_program
from mmcv import Config
from mmcv_custom.distributed import agree
from mmcv_custom.programs import (
    add_training_arguments,
    resume_path,
    start_log,
    started,
    training_view,
)
from mmcv_custom.runtime import (
    ConfigError,
    choose_work_dir,
    config_options,
    load_config,
    naming_unknown_types,
    share_handlers,
)
from mmseg.models import SEGMENTORS, build_segmentor
from mmseg.utils import get_root_logger, setup_multi_processes
from mmseg_custom.datasets.checks import build_data, class_meta
from mmseg_custom.released_heads import prepare_config, prepare_model
from mmseg_custom.testing import check_inference, check_metrics
from mmseg_custom.training import train_segmentor

logger = logging.getLogger("mmseg")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 when it is wrong."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    add_training_arguments(parser)
    parser.add_argument("--load-from", help="checkpoint to start from, without its progress")
    return parser.parse_args(argv)


def train(args: argparse.Namespace) -> int:
    """Trains as the arguments say; returns the exit code 0."""
    cfg = read_config(args)
    with started(args, cfg, logger) as (distributed, _):
        run(args, cfg, distributed)
    return 0


def read_config(args: argparse.Namespace) -> Config:
    """The config with the command line's changes.

    Raises:
        ConfigError: it cannot be read or used so.
    """
    parts = ("model", "data", "optimizer", "runner")
    cfg = load_config(args.config, config_options(args, "options"), parts)
    cfg.resume_from = args.resume_from or cfg.get("resume_from")
    cfg.auto_resume = args.auto_resume or cfg.get("auto_resume", False)
    cfg.load_from = args.load_from or cfg.get("load_from")
    if not args.no_validate and cfg.data.get("val") is None:
        raise ConfigError(f"{args.config} has no data.val to evaluate; add it or use --no-validate")
    if not args.no_validate:
        check_inference(cfg)
    prepare_config(cfg)
    return cfg


def run(args: argparse.Namespace, cfg: Config, distributed: bool) -> None:
    """From the work dir to the end of the training."""
    work_dir = choose_work_dir(cfg, args.work_dir)
    timestamp = agree(time.strftime("%Y%m%d_%H%M%S"))
    log = get_root_logger(str(Path(work_dir) / f"{timestamp}.log"), cfg.log_level)
    share_handlers(log, "mmcv", "mmcv_custom", "mmseg_custom", "internimage")
    setup_multi_processes(cfg)
    torch.backends.cudnn.benchmark = cfg.get("cudnn_benchmark", False)
    cfg.resume_from = resume_path(cfg, logger)
    meta = start_log(args, cfg, logger, {"mmseg_version": mmseg.__version__})

    datasets = [build_data(cfg, cfg.data.train)]
    if len(cfg.workflow) == 2:
        datasets.append(build_data(cfg, training_view(cfg.data)))
    val = None if args.no_validate else build_data(cfg, cfg.data.val, {"test_mode": True})
    if val is not None:
        metrics = cfg.get("evaluation", {}).get("metric", ())
        metrics = [metrics] if isinstance(metrics, str) else metrics
        check_metrics(metrics, val, "evaluation.metric")
    with naming_unknown_types("the model", SEGMENTORS):
        model = build_segmentor(cfg.model, cfg.get("train_cfg"), cfg.get("test_cfg"))
    prepare_model(cfg, model)
    if not cfg.resume_from:
        model.init_weights()  # after the data: it may download
    classes = class_meta(datasets[0])
    model.CLASSES, model.PALETTE = classes["CLASSES"], classes["PALETTE"]
    train_segmentor(
        model,
        datasets,
        val,
        cfg,
        distributed=distributed,
        logger=log,
        timestamp=timestamp,
        meta={**meta, **classes},
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_program(train, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
