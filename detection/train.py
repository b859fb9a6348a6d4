"""Trains a detector: `python train.py CONFIG`, or `bash dist_train.sh CONFIG N` with N processes.

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

import mmcv_custom  # noqa: F401  applies what mmcv needs on today's torch, before mmdet
import mmdet
import mmdet_custom  # noqa: F401  registers models and data sets
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
from mmdet.models import DETECTORS, build_detector
from mmdet.utils import (
    compat_cfg,
    get_root_logger,
    replace_cfg_vals,
    setup_multi_processes,
    update_data_root,
)
from mmdet_custom.datasets.checks import build_data
from mmdet_custom.testing import check_metrics
from mmdet_custom.training import batch_in_validation, train_detector

logger = logging.getLogger("mmdet")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 when it is wrong."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    add_training_arguments(parser)
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate with the batch, from the config's auto_scale_lr",
    )
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
    cfg = load_config(args.config, config_options(args, "options"))
    cfg = replace_cfg_vals(cfg)
    update_data_root(cfg)
    cfg = compat_cfg(cfg)
    cfg.resume_from = args.resume_from or cfg.get("resume_from")
    cfg.auto_resume = args.auto_resume or cfg.get("auto_resume", False)
    cfg.load_from = cfg.get("load_from")
    if args.auto_scale_lr:
        if not cfg.get("auto_scale_lr", {}).get("base_batch_size"):
            raise ConfigError(
                f"--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size; add it with "
                "--cfg-options auto_scale_lr.base_batch_size=16"
            )
        cfg.auto_scale_lr.enable = True
    if args.no_validate is False and cfg.get("data", {}).get("val") is None:
        raise ConfigError(f"{args.config} has no data.val to evaluate; add it or use --no-validate")
    return cfg


def run(args: argparse.Namespace, cfg: Config, distributed: bool) -> None:
    """From the work dir to the end of the training."""
    work_dir = choose_work_dir(cfg, args.work_dir)
    timestamp = agree(time.strftime("%Y%m%d_%H%M%S"))
    log = get_root_logger(str(Path(work_dir) / f"{timestamp}.log"), cfg.log_level)
    share_handlers(log, "mmcv", "mmcv_custom", "mmdet_custom", "internimage")
    setup_multi_processes(cfg)
    cfg.resume_from = resume_path(cfg, logger)
    meta = start_log(args, cfg, logger, {"mmdet_version": mmdet.__version__})
    batch_in_validation(cfg)

    with naming_unknown_types("the model", DETECTORS):
        model = build_detector(cfg.model, cfg.get("train_cfg"), cfg.get("test_cfg"))
    datasets = [build_data(cfg, cfg.data.train)]
    if len(cfg.workflow) == 2:
        datasets.append(build_data(cfg, training_view(cfg.data)))
    val = None if args.no_validate else build_data(cfg, cfg.data.val, {"test_mode": True})
    if val is not None:
        metrics = cfg.get("evaluation", {}).get("metric", ())
        metrics = [metrics] if isinstance(metrics, str) else metrics
        check_metrics(metrics, val, model, "evaluation.metric")
    if not cfg.resume_from:
        model.init_weights()  # after the data: it may download
    model.CLASSES = datasets[0].CLASSES
    meta["CLASSES"] = datasets[0].CLASSES
    train_detector(
        model,
        datasets,
        val,
        cfg,
        distributed=distributed,
        logger=log,
        timestamp=timestamp,
        meta=meta,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_program(train, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
