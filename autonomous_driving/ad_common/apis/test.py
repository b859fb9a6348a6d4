"""The test program of all three projects: `python tools/test.py CONFIG CHECKPOINT --eval`.

The checkpoint is a file, the name of a released model or an https:// address. Metrics go to the
terminal and to a JSON file in the work dir.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
from internimage.cli import ArgumentParser, run_program
from internimage.write_file import replacing
from mmcv import Config
from mmcv.cnn import fuse_conv_bn
from mmcv.runner import get_dist_info, wrap_fp16_model
from mmcv_custom.checkpoint import compare_classes, load_checkpoint
from mmcv_custom.distributed import agree, shared_folder, wrap_model
from mmcv_custom.programs import (
    add_testing_arguments,
    check_testing_arguments,
    started,
    write_metrics,
)
from mmcv_custom.runtime import (
    ConfigError,
    choose_seed,
    choose_work_dir,
    load_config,
    make_folder,
    naming_full_disks,
    naming_unknown_types,
)
from mmdet.models import DETECTORS, build_detector
from mmdet.utils import compat_cfg, get_root_logger, replace_cfg_vals, setup_multi_processes
from torch import nn

from ad_common.checks import build_data, check_config
from ad_common.datasets.errors import listed, nearest

from .projects import Project, load_project
from .shared import drop_plugin, share_log
from .testing import build_test_loader, test_model

logger = logging.getLogger("mmdet")

FOR_HOOK = (  # settings of `evaluation` that are for training only
    "interval", "start", "tmpdir", "gpu_collect", "save_best", "rule", "greater_keys", "less_keys",
    "pipeline", "by_epoch", "dynamic_intervals", "out_dir", "metric",
)  # fmt: skip

SHOWN = ("begin", "end")  # options of --show-dir: the first frame and the one after the last


def parse_args(project: Project, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 when it is wrong."""
    parser = ArgumentParser(
        description=f"Tests a model for {project.title}.",
        epilog="At least one of --eval, --out, --format-only and --show-dir is needed.",
    )
    help_of_eval = f"{', '.join(project.metrics)}; --eval alone: the first"
    add_testing_arguments(parser, help_of_eval, metric_needed=False)
    parser.add_argument(
        "--split", choices=("val", "test"), default=project.split, help="default: %(default)s"
    )
    if project.fscore:
        parser.add_argument(
            "--eval_fscore", "--eval-fscore", action="store_true", help="also the F-score"
        )
    parser.add_argument(
        "--fuse-conv-bn", action="store_true", help="fold batch norms into convolutions first"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what a model draws at random")
    parser.add_argument("--deterministic", action="store_true", help="deterministic cuDNN kernels")
    args = parser.parse_args(argv)
    if getattr(args, "eval_fscore", False) and args.eval is None:
        args.eval = []
    if args.eval == []:
        args.eval = [project.metrics[0]]
    check_testing_arguments(parser, args)
    if args.eval and args.split == "test" and project.split == "val":
        parser.error("--eval needs annotations: the split 'test' has none; use --format-only")
    return args


def test(project: Project, args: argparse.Namespace) -> int:
    """Tests as the arguments say; returns the exit code 0."""
    cfg = read_config(project, args)
    with started(args, cfg, logger) as (distributed, gpu_id):
        run(project, args, cfg, distributed, gpu_id)
    return 0


def read_config(project: Project, args: argparse.Namespace) -> Config:
    """The config with the command line's changes.

    Raises:
        ConfigError: it cannot be read or used so.
    """
    if args.show:
        raise ConfigError("--show: there are no windows; --show-dir FOLDER writes files")
    for name in args.eval or ():
        if name not in project.metrics:
            raise ConfigError(
                f"--eval {name}: {project.title} has {listed(project.metrics)}"
                f"{nearest(name, project.metrics)}"
            )
    cfg = replace_cfg_vals(load_config(args.config, args.cfg_options))
    drop_plugin(cfg)
    cfg = compat_cfg(cfg)
    check_config(cfg, project)
    if cfg.data.get(args.split) is None:
        raise ConfigError(f"{args.config} has no data.{args.split}")
    return cfg


def run(
    project: Project, args: argparse.Namespace, cfg: Config, distributed: bool, gpu_id: int
) -> None:
    """From the work dir to the written results."""
    work_dir = choose_work_dir(cfg, args.work_dir)
    log = get_root_logger(log_level=cfg.get("log_level", "INFO"))
    share_log(log, project)
    setup_multi_processes(cfg)
    choose_seed(args.seed, deterministic=args.deterministic)
    if args.out:
        make_folder(Path(args.out).absolute().parent, "--out: the folder")
    if args.show_dir:
        make_folder(args.show_dir, "--show-dir")
    dataset = build_data(cfg, args.split, project, test_mode=True)
    check_requests(project, args, cfg, dataset)
    model = wrap_model(load_model(args, cfg, dataset), cfg.device, distributed, gpu_id=gpu_id)
    tmpdir = None
    if distributed and not (args.gpu_collect and cfg.device == "cuda"):
        tmpdir = args.tmpdir or shared_folder(work_dir)
    results = test_model(
        model, build_test_loader(dataset, cfg, args.split), tmpdir, gpu_collect=tmpdir is None
    )
    if get_dist_info()[0] == 0:
        report(project, args, cfg, dataset, results, work_dir)
    agree(None)  # the others wait, so that no launcher takes their end for the end of the run


def check_requests(project: Project, args: argparse.Namespace, cfg: Config, dataset: Any) -> None:
    """Finds what would otherwise end the program after the last frame.

    Raises:
        ConfigError: the data set has no such option.
        DatasetError: there are no annotations to evaluate with, or no such field of a submission.
    """
    options = dict(args.eval_options or {})
    for name in SHOWN if args.show_dir else ():
        options.pop(name, None)
    if options and not (args.format_only or args.eval):
        raise ConfigError(
            f"--eval-options {listed(options)}: for --eval and --format-only; --show-dir takes "
            f"{' and '.join(SHOWN)}"
        )
    if args.format_only:
        check_options(dataset, dataset.format_results, {project.format_option: "", **options})
    if args.eval:
        check_options(dataset, dataset.evaluate, evaluation_settings(args, cfg, options))
        if hasattr(dataset, "check_annotations"):
            dataset.check_annotations()


def check_options(dataset: Any, method: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises ConfigError for an option that a method of the data set does not take."""
    parameters = inspect.signature(method).parameters
    fields = {name: value for name, value in options.items() if name not in parameters}
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        if hasattr(dataset, "check_fields"):
            dataset.check_fields(fields)
        return
    known = [name for name in parameters if name not in ("results", "metric", "logger")]
    for name in fields:
        raise ConfigError(
            f"--eval-options, or `evaluation` of the config: {name!r} is no option of "
            f"{type(dataset).__name__}.{method.__name__}{nearest(name, known)}; there are "
            f"{listed(known)}"
        )


def load_model(args: argparse.Namespace, cfg: Config, dataset: Any) -> nn.Module:
    """The detector with its weights and CLASSES."""
    with naming_unknown_types("the model", DETECTORS):
        model = build_detector(cfg.model, test_cfg=cfg.get("test_cfg"))
    if cfg.get("fp16") is not None:
        wrap_fp16_model(model)
    meta = load_checkpoint(model, args.checkpoint)["meta"]
    compare_classes(meta, dataset.CLASSES)
    model.CLASSES = meta.get("CLASSES", dataset.CLASSES)
    return fuse_conv_bn(model) if args.fuse_conv_bn else model


def report(
    project: Project,
    args: argparse.Namespace,
    cfg: Config,
    dataset: Any,
    results: list[dict[str, Any]],
    work_dir: str,
) -> None:
    """Writes and evaluates the results of the whole data set."""
    if args.out:
        with naming_full_disks(args.out), replacing(args.out) as temporary:
            mmcv.dump(results, str(temporary), file_format="pkl")
        logger.info("results of %d frames in %s", len(results), args.out)
    options = dict(args.eval_options or {})
    if args.show_dir:
        taken = {name: options.pop(name) for name in SHOWN if name in options}
        with naming_full_disks(args.show_dir):
            dataset.show(results, args.show_dir, **taken)
        logger.info("results to look at in %s", args.show_dir)
    if args.format_only:
        options.setdefault(project.format_option, str(Path(work_dir) / project.format_name))
        with naming_full_disks(options[project.format_option]):
            written = dataset.format_results(results, **options)
        logger.info("results in the format of the challenge: %s", written)
    if args.eval:
        metrics = evaluate(args, cfg, dataset, results, options)
        logger.info("%s", ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
        finite = {k: float(v) if math.isfinite(v) else None for k, v in metrics.items()}
        path = write_metrics(work_dir, "eval", args.config, finite)
        logger.info("metrics in %s", path)


def evaluate(
    args: argparse.Namespace,
    cfg: Config,
    dataset: Any,
    results: list[dict[str, Any]],
    options: dict[str, Any],
) -> dict[str, float]:
    """The data set's own evaluation, with the config's settings for it."""
    settings = evaluation_settings(args, cfg, options)
    return dict(dataset.evaluate(results, metric=args.eval, logger=logger, **settings))


def evaluation_settings(
    args: argparse.Namespace, cfg: Config, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of the data set's `evaluate`: the config's, changed by the command line."""
    settings = {k: v for k, v in (cfg.get("evaluation") or {}).items() if k not in FOR_HOOK}
    if getattr(args, "eval_fscore", False):
        settings["eval_fscore"] = True
    return {**settings, **options}


def main(project: str, argv: Sequence[str] | None = None) -> int:
    """The program of a project ('occ', 'olv2', 'hdmap'); returns its exit code."""
    loaded = load_project(project)
    return run_program(functools.partial(test, loaded), parse_args(loaded, argv))
