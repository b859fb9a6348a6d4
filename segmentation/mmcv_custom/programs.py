"""How train.py and test.py of every task begin: their flags, processes, log and seed."""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from internimage.write_file import replacing
from mmcv import Config
from mmcv.runner import get_dist_info

from .checkpoint import find_whole_checkpoint, read_meta
from .config_checks import KeyValues
from .distributed import start_processes, stop_processes
from .runtime import (
    add_gpu_arguments,
    add_shared_arguments,
    choose_seed,
    chosen_gpu,
    describe_environment,
    reporting_errors,
    set_amp,
    start_device,
)

PICKLES = (".pkl", ".pickle")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of every train.py."""
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
    parser.add_argument(
        "--diff-seed", "--diff_seed", action="store_true", help="add the rank to the seed"
    )
    parser.add_argument("--deterministic", action="store_true", help="deterministic cuDNN kernels")
    parser.add_argument(
        "--amp", choices=("fp16", "bf16"), help="mixed precision; the CPU has bf16 only"
    )
    parser.add_argument("--options", nargs="+", action=KeyValues, help="old: --cfg-options")


def add_testing_arguments(
    parser: argparse.ArgumentParser, metrics: str, metric_needed: bool = True
) -> None:
    """The flags of every test.py.

    Args:
        metrics: the names that --eval takes, for the help.
        metric_needed: --eval takes at least one; else --eval alone is an empty list.
    """
    add_shared_arguments(parser)
    parser.add_argument("checkpoint", help="file, released model's name or https:// address")
    parser.add_argument(
        "--eval", nargs="+" if metric_needed else "*", metavar="METRIC", help=metrics
    )
    parser.add_argument("--out", help="results as a .pkl file")
    parser.add_argument(
        "--format-only",
        action="store_true",
        help="only write the results in the data set's format, to send them to its server; "
        "--eval-options says where",
    )
    parser.add_argument("--show", action="store_true", help="results in a window, image by image")
    parser.add_argument("--show-dir", help="folder for the images with their results painted")
    parser.add_argument("--tmpdir", help="folder, seen by all machines, to collect results in")
    parser.add_argument(
        "--gpu-collect", action="store_true", help="collect results over the GPUs, without files"
    )
    parser.add_argument(
        "--eval-options",
        nargs="+",
        action=KeyValues,
        metavar="KEY=VALUE",
        help="arguments of the data set's evaluate (or format_results)",
    )
    add_gpu_arguments(parser)


def check_testing_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program with 2 when there is nothing to do or two flags exclude each other."""
    if not (args.eval or args.out or args.format_only or args.show or args.show_dir):
        parser.error("nothing to do: give --eval, --out, --format-only, --show or --show-dir")
    if args.eval and args.format_only:
        parser.error("--eval and --format-only exclude each other")
    if args.out and not args.out.endswith(PICKLES):
        parser.error(f"--out must end with .pkl or .pickle, got {args.out!r}")


@contextlib.contextmanager
def started(
    args: argparse.Namespace, cfg: Config, logger: logging.Logger
) -> Iterator[tuple[bool, int]]:
    """The device and the processes of a run; what fails inside is reported to `logger`.

    Sets `cfg.device`, `cfg.gpu_ids` and, for --amp, `cfg.optimizer_config`. Yields whether there is
    a process group, and the GPU of a run without one.
    """
    gpu_id = chosen_gpu(args)
    cfg.device = start_device(args, gpu_id)
    set_amp(cfg, getattr(args, "amp", None), cfg.device)
    backend = cfg.get("dist_params", {}).get("backend")
    distributed = start_processes(args.launcher, cfg.device, backend)
    cfg.gpu_ids = range(get_dist_info()[1]) if distributed else [gpu_id]
    try:
        with reporting_errors(logger):
            yield distributed, gpu_id
    finally:
        stop_processes()


def resume_path(cfg: Config, logger: logging.Logger) -> str | None:
    """The checkpoint to go on from (`resume_from`, `auto_resume`), or None."""
    if cfg.resume_from:
        return cfg.resume_from
    found = find_whole_checkpoint(cfg.work_dir) if cfg.auto_resume else None
    if cfg.auto_resume:
        logger.info("auto-resume: %s", found or f"nothing in {cfg.work_dir}, a new run starts")
    return found


def start_log(
    args: argparse.Namespace, cfg: Config, logger: logging.Logger, versions: Mapping[str, str]
) -> dict[str, Any]:
    """Logs what the run is, keeps its config and seeds it; returns what every checkpoint keeps.

    Args:
        cfg: with `device`, `work_dir` and `resume_from`; `seed` is filled in.
        versions: of the task's library, for example {"mmdet_version": "2.28.2"}.
    """
    environment = describe_environment()
    logger.info("environment:\n%s", environment)
    logger.info("device: %s, processes: %d", cfg.device, get_dist_info()[1])
    seed = args.seed if args.seed is not None else cfg.get("seed")
    if seed is None and cfg.resume_from and Path(cfg.resume_from).is_file():
        seed = read_meta(cfg.resume_from).get("seed")
    base = choose_seed(seed)
    cfg.seed = choose_seed(base, args.diff_seed, args.deterministic)
    logger.info("seed: %d%s", cfg.seed, ", deterministic" if args.deterministic else "")
    text = cfg.pretty_text  # seconds, for a large config
    logger.info("config:\n%s", text)
    name = Path(args.config).name
    if get_dist_info()[0] == 0:
        with replacing(Path(cfg.work_dir) / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return {"env_info": environment, "config": text, "seed": base, "exp_name": name, **versions}


def training_view(data: Any) -> Any:
    """The validation data through the training pipeline, for a workflow with 'val'."""
    val = copy.deepcopy(data.val)
    train_data = data.train
    while "pipeline" not in train_data:
        train_data = train_data.dataset
    val.pipeline = train_data.pipeline
    return val


def write_metrics(work_dir: str, prefix: str, config: str, metric: Mapping[str, Any]) -> Path:
    """Writes `WORK_DIR/PREFIX_TIME.json` with the metrics of a test; returns its path."""
    path = Path(work_dir) / f"{prefix}_{time.strftime('%Y%m%d_%H%M%S')}.json"
    with replacing(path) as temporary:
        text = json.dumps({"config": config, "metric": metric}, default=float)
        temporary.write_text(text + "\n", encoding="utf-8")
    return path
