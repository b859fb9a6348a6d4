"""The training program of all three projects: `python tools/train.py CONFIG` in a project's folder.

Runs on the CPU or the GPU, with one process or several. Everything goes to the work dir:
checkpoints, logs (text, JSON, TensorBoard) and the config as it was used.
"""

from __future__ import annotations

import argparse
import functools
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import mmdet
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
)
from mmdet.models import DETECTORS, build_detector
from mmdet.utils import compat_cfg, get_root_logger, replace_cfg_vals, setup_multi_processes

from ad_common.checks import build_data, check_config

from .projects import Project, load_project
from .shared import drop_plugin, share_log
from .training import train_detector

logger = logging.getLogger("mmdet")


def parse_args(project: Project, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 when it is wrong."""
    parser = ArgumentParser(description=f"Trains a model for {project.title}.")
    add_training_arguments(parser)
    parser.add_argument(
        "--auto-scale-lr",
        "--autoscale-lr",
        action="store_true",
        help="scale the learning rate with the batch, from the config's auto_scale_lr",
    )
    return parser.parse_args(argv)


def train(project: Project, args: argparse.Namespace) -> int:
    """Trains as the arguments say; returns the exit code 0."""
    cfg = read_config(project, args)
    with started(args, cfg, logger) as (distributed, _):
        run(project, args, cfg, distributed)
    return 0


def read_config(project: Project, args: argparse.Namespace) -> Config:
    """The config with the command line's changes.

    Raises:
        ConfigError: it cannot be read or used so.
    """
    cfg = replace_cfg_vals(load_config(args.config, config_options(args, "options")))
    drop_plugin(cfg)
    cfg = compat_cfg(cfg)
    check_config(cfg, project)
    cfg.resume_from = args.resume_from or cfg.get("resume_from")
    cfg.auto_resume = args.auto_resume or cfg.get("auto_resume", False)
    cfg.load_from = cfg.get("load_from")
    cfg.setdefault("workflow", [("train", 1)])
    if args.auto_scale_lr:
        if not cfg.get("auto_scale_lr", {}).get("base_batch_size"):
            raise ConfigError(
                f"--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size; add it with "
                "--cfg-options auto_scale_lr.base_batch_size=8"
            )
        cfg.auto_scale_lr.enable = True
    if not args.no_validate and cfg.data.get("val") is None:
        raise ConfigError(f"{args.config} has no data.val to evaluate; add it or use --no-validate")
    return cfg


def run(project: Project, args: argparse.Namespace, cfg: Config, distributed: bool) -> None:
    """From the work dir to the end of the training."""
    work_dir = choose_work_dir(cfg, args.work_dir)
    timestamp = agree(time.strftime("%Y%m%d_%H%M%S"))
    log = get_root_logger(str(Path(work_dir) / f"{timestamp}.log"), cfg.get("log_level", "INFO"))
    share_log(log, project)
    setup_multi_processes(cfg)
    cfg.resume_from = resume_path(cfg, logger)
    meta = start_log(args, cfg, logger, {"mmdet_version": mmdet.__version__})

    with naming_unknown_types("the model", DETECTORS):
        model = build_detector(cfg.model, cfg.get("train_cfg"), cfg.get("test_cfg"))
    datasets = [build_data(cfg, "train", project)]
    if len(cfg.workflow) == 2:
        cfg.data.train_view = training_view(cfg.data)
        datasets.append(build_data(cfg, "train_view", project))
    val = None if args.no_validate else build_data(cfg, "val", project, test_mode=True)
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


def main(project: str, argv: Sequence[str] | None = None) -> int:
    """The program of a project ('occ', 'olv2', 'hdmap'); returns its exit code."""
    loaded = load_project(project)
    return run_program(functools.partial(train, loaded), parse_args(loaded, argv))
