"""Trains a detector: `python train.py CONFIG`, or `bash dist_train.sh CONFIG N` with N processes.

Runs on the CPU or the GPU. Everything goes to the work dir: checkpoints, logs (text, JSON,
TensorBoard) and the config as it was used.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv_custom  # noqa: F401  applies what mmcv needs on today's torch, before mmdet
import mmdet
import mmdet_custom  # noqa: F401  registers models and data sets
from internimage.cli import ArgumentParser, run_program
from internimage.write_file import replacing
from mmcv import Config, DictAction
from mmcv.runner import get_dist_info
from mmcv_custom.checkpoint import find_whole_checkpoint, read_meta
from mmcv_custom.distributed import agree, start_processes, stop_processes
from mmcv_custom.runtime import (
    ConfigError,
    add_gpu_arguments,
    add_shared_arguments,
    choose_seed,
    choose_work_dir,
    chosen_gpu,
    config_options,
    describe_environment,
    load_config,
    naming_unknown_types,
    reporting_errors,
    set_amp,
    share_handlers,
    start_device,
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
from mmdet_custom.training import batch_in_validation, train_detector

logger = logging.getLogger("mmdet")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 when it is wrong."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    add_shared_arguments(parser)
    parser.add_argument("--resume-from", help="checkpoint of a run to go on with")
    parser.add_argument(
        "--auto-resume",
        action="store_true",
        help="go on from the newest complete checkpoint in the work dir, if there is one",
    )
    parser.add_argument("--no-validate", action="store_true", help="no evaluation while training")
    add_gpu_arguments(parser)
    parser.add_argument("--seed", type=int, help="default: the resumed run's, or a random one")
    parser.add_argument("--diff-seed", action="store_true", help="add the rank to the seed")
    parser.add_argument("--deterministic", action="store_true", help="deterministic cuDNN kernels")
    parser.add_argument(
        "--amp", choices=("fp16", "bf16"), help="mixed precision; the CPU has bf16 only"
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate with the batch, from the config's auto_scale_lr",
    )
    parser.add_argument("--options", nargs="+", action=DictAction, help="old: --cfg-options")
    return parser.parse_args(argv)


def train(args: argparse.Namespace) -> int:
    """Trains as the arguments say; returns the exit code 0."""
    cfg = read_config(args)
    gpu_id = chosen_gpu(args)
    cfg.device = start_device(args, gpu_id)
    set_amp(cfg, args.amp, cfg.device)
    setup_multi_processes(cfg)
    backend = cfg.get("dist_params", {}).get("backend")
    distributed = start_processes(args.launcher, cfg.device, backend)
    cfg.gpu_ids = range(get_dist_info()[1]) if distributed else [gpu_id]
    try:
        with reporting_errors(logger):
            run(args, cfg, distributed)
    finally:
        stop_processes()
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
    share_handlers(log, "mmcv_custom", "mmdet_custom", "internimage")
    cfg.resume_from = resume_path(cfg)
    meta = start_log(args, cfg)
    if get_dist_info()[0] == 0:
        with replacing(Path(work_dir) / Path(args.config).name) as temporary:
            temporary.write_text(cfg.pretty_text, encoding="utf-8")
    batch_in_validation(cfg)

    with naming_unknown_types("the model", DETECTORS):
        model = build_detector(cfg.model, cfg.get("train_cfg"), cfg.get("test_cfg"))
    if not cfg.resume_from:
        model.init_weights()
    datasets = [build_data(cfg, cfg.data.train)]
    if len(cfg.workflow) == 2:
        datasets.append(build_data(cfg, training_view(cfg.data)))
    val = None if args.no_validate else build_data(cfg, cfg.data.val, {"test_mode": True})
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


def resume_path(cfg: Config) -> str | None:
    """The checkpoint to go on from, or None."""
    if cfg.resume_from:
        return cfg.resume_from
    found = find_whole_checkpoint(cfg.work_dir) if cfg.auto_resume else None
    if cfg.auto_resume:
        logger.info("auto-resume: %s", found or f"nothing in {cfg.work_dir}, a new run starts")
    return found


def start_log(args: argparse.Namespace, cfg: Config) -> dict[str, Any]:
    """Logs what the run is and seeds it; returns what every checkpoint keeps."""
    environment = describe_environment()
    logger.info("environment:\n%s", environment)
    logger.info("device: %s, processes: %d", cfg.device, get_dist_info()[1])
    logger.info("config:\n%s", cfg.pretty_text)
    seed = args.seed if args.seed is not None else cfg.get("seed")
    if seed is None and cfg.resume_from and Path(cfg.resume_from).is_file():
        seed = read_meta(cfg.resume_from).get("seed")
    base = choose_seed(seed)
    cfg.seed = choose_seed(base, args.diff_seed, args.deterministic)
    logger.info("seed: %d%s", cfg.seed, ", deterministic" if args.deterministic else "")
    return {
        "env_info": environment,
        "config": cfg.pretty_text,
        "seed": base,
        "exp_name": Path(args.config).name,
        "mmdet_version": mmdet.__version__,
    }


def training_view(data: Any) -> Any:
    """The validation data through the training pipeline, for a workflow with 'val'."""
    val = copy.deepcopy(data.val)
    train_data = data.train
    while "pipeline" not in train_data:
        train_data = train_data.dataset
    val.pipeline = train_data.pipeline
    return val


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_program(train, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
