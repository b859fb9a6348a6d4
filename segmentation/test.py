"""Tests a segmentor: `python test.py CONFIG CHECKPOINT --eval mIoU`.

With several processes: `bash dist_test.sh CONFIG CHECKPOINT N --eval mIoU`. The checkpoint is a
file, the name of a released model or an https:// address.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
import mmcv_custom  # noqa: F401  applies what mmcv needs on today's torch, before mmseg
import mmseg_custom  # noqa: F401  registers models and data sets
import torch
from internimage.cli import ArgumentParser, run_program
from internimage.onnx_export import ExportError
from internimage.write_file import replacing
from mmcv import Config
from mmcv.runner import get_dist_info, wrap_fp16_model
from mmcv_custom.checkpoint import compare_classes, load_checkpoint
from mmcv_custom.config_checks import KeyValues
from mmcv_custom.deploying import add_exported_argument, load_for_test, use_input_shape
from mmcv_custom.distributed import agree, wrap_model
from mmcv_custom.programs import (
    add_testing_arguments,
    check_testing_arguments,
    started,
    write_metrics,
)
from mmcv_custom.runtime import (
    ConfigError,
    choose_work_dir,
    config_options,
    load_config,
    make_folder,
    naming_unknown_types,
    share_handlers,
)
from mmseg.datasets import build_dataloader
from mmseg.models import SEGMENTORS, build_segmentor
from mmseg.utils import get_root_logger, setup_multi_processes
from mmseg_custom.datasets.checks import build_data, class_meta
from mmseg_custom.released_heads import prepare_config, prepare_model
from mmseg_custom.testing import (
    Action,
    Formatter,
    Painter,
    check_inference,
    check_metrics,
    keep_maps,
    test_model,
    use_aug_test,
)
from mmseg_custom.training import loader_options
from torch import nn

logger = logging.getLogger("mmseg")

# settings of the config's `evaluation` that are about the hook, not about the metrics
FOR_HOOK = (
    "interval", "by_epoch", "pre_eval", "efficient_test", "tmpdir", "start", "gpu_collect",
    "save_best", "rule", "dynamic_intervals",
)  # fmt: skip


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 when it is wrong."""
    parser = ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="At least one of --eval, --out, --format-only, --show and --show-dir is needed.",
    )
    add_exported_argument(parser)
    add_testing_arguments(parser, "mIoU, mDice, mFscore; for Cityscapes also cityscapes")
    parser.add_argument(
        "--aug-test",
        action="store_true",
        help="six scales from 0.5 to 1.75, each also flipped, averaged",
    )
    parser.add_argument(
        "--opacity", type=float, default=0.5, help="of painted labels, above 0 to 1 (default: 0.5)"
    )
    parser.add_argument("--options", nargs="+", action=KeyValues, help="old: --cfg-options")
    parser.add_argument("--dir-name", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    check_testing_arguments(parser, args)
    if args.dir_name is not None:
        parser.error("--dir-name never did anything: leave it out, --work-dir names the folder")
    if not 0 < args.opacity <= 1:
        parser.error(f"--opacity must be above 0 and at most 1, got {args.opacity}")
    return args


def test(args: argparse.Namespace) -> int:
    """Tests as the arguments say; returns the exit code 0."""
    cfg = read_config(args)
    with started(args, cfg, logger) as (distributed, gpu_id):
        run(args, cfg, distributed, gpu_id)
    return 0


def read_config(args: argparse.Namespace) -> Config:
    """The config with the command line's changes.

    Raises:
        ConfigError: it cannot be read or used so.
    """
    cfg = load_config(args.config, config_options(args, "options"))
    if cfg.data.get("test") is None:
        raise ConfigError(f"{args.config} has no data.test")
    check_inference(cfg)
    cfg.model.train_cfg = None
    cfg.model.pretrained = None
    if cfg.model.get("backbone") is not None:
        cfg.model.backbone.init_cfg = None  # the checkpoint holds the backbone
    if args.aug_test:
        use_aug_test(cfg)
    prepare_config(cfg)
    if args.deploy_cfg:
        use_input_shape(cfg, args.deploy_cfg, "mmseg")
    return cfg


def run(args: argparse.Namespace, cfg: Config, distributed: bool, gpu_id: int) -> None:
    """From the work dir to the written results."""
    work_dir = choose_work_dir(cfg, args.work_dir)
    log = get_root_logger(log_level=cfg.get("log_level", "INFO"))
    share_handlers(log, "mmcv_custom", "mmseg_custom", "internimage")
    setup_multi_processes(cfg)
    torch.backends.cudnn.benchmark = cfg.get("cudnn_benchmark", False)
    if args.out:
        make_folder(Path(args.out).absolute().parent, "--out: the folder")
    if args.show_dir:
        make_folder(args.show_dir, "--show-dir")
    options = eval_options(args, work_dir)
    dataset = build_data(cfg, cfg.data.test, {"test_mode": True})
    check_metrics(args.eval or (), dataset)
    loader = build_dataloader(
        dataset,
        **loader_options(cfg, "test", samples_per_gpu=1, shuffle=False, drop_last=False),
        num_gpus=1,
        dist=distributed,
    )
    model = load_model(args, cfg, dataset)
    model = wrap_model(model, cfg.device, distributed, gpu_id=gpu_id)
    actions = choose_actions(args, dataset, options)
    results = test_model(
        model,
        loader,
        list(actions.values()),
        distributed=distributed,
        tmpdir=args.tmpdir,
        parent=work_dir,
        gpu_collect=args.gpu_collect,
    )
    if get_dist_info()[0] == 0:
        rows = dict(zip(actions, map(list, zip(*results))))
        report(args, cfg, dataset, rows, options, work_dir)
    agree(None)  # the others wait, so that no launcher takes their end for the end of the run


def load_model(args: argparse.Namespace, cfg: Config, dataset: Any) -> nn.Module:
    """The segmentor with its weights and CLASSES, or the exported one of --deploy-cfg."""
    classes = class_meta(dataset)
    if args.deploy_cfg:
        model = load_for_test(args, cfg, "mmseg", classes["CLASSES"])
        model.PALETTE = classes["PALETTE"]
        return model
    with naming_unknown_types("the model", SEGMENTORS):
        model = build_segmentor(cfg.model, test_cfg=cfg.get("test_cfg"))
    prepare_model(cfg, model)
    if cfg.get("fp16") is not None:
        wrap_fp16_model(model)
    meta = load_checkpoint(model, args.checkpoint)["meta"]
    compare_classes(meta, classes["CLASSES"])
    model.CLASSES, model.PALETTE = classes["CLASSES"], classes["PALETTE"]
    return model


def eval_options(args: argparse.Namespace, work_dir: str) -> dict[str, Any]:
    """--eval-options, with a folder for files in the data set's format where they are written."""
    options = dict(args.eval_options or {})
    if args.format_only or "cityscapes" in (args.eval or []):
        options.setdefault("imgfile_prefix", str(Path(work_dir) / "results"))
        make_folder(options["imgfile_prefix"], "--eval-options imgfile_prefix: the folder")
    return options


def choose_actions(
    args: argparse.Namespace, dataset: Any, options: dict[str, Any]
) -> dict[str, Action]:
    """What is done with the label maps of every batch, by name."""
    actions: dict[str, Action] = {}
    if args.format_only or "cityscapes" in (args.eval or []):
        actions["files"] = Formatter(dataset, options)
    if args.eval and set(args.eval) != {"cityscapes"}:
        actions["areas"] = dataset.pre_eval
    if args.show or args.show_dir:
        actions["pictures"] = Painter(dataset, args.show_dir, args.show, args.opacity)
    if args.out:
        actions["maps"] = keep_maps
    return actions


def report(
    args: argparse.Namespace,
    cfg: Config,
    dataset: Any,
    rows: dict[str, list[Any]],
    options: dict[str, Any],
    work_dir: str,
) -> None:
    """Writes and evaluates what the actions gave for the whole data set."""
    if args.out:
        with replacing(args.out) as temporary:
            mmcv.dump(rows["maps"], str(temporary), file_format="pkl")
        logger.info("label maps of %d images in %s", len(rows["maps"]), args.out)
    if args.format_only:
        logger.info("%d files in %s", len(rows["files"]), options["imgfile_prefix"])
    if args.show_dir:
        logger.info("%d pictures in %s", len(rows["pictures"]), args.show_dir)
    if args.eval:
        metric = evaluate(args, cfg, dataset, rows, options)
        logger.info("%s", ", ".join(f"{name} {value:.4f}" for name, value in metric.items()))
        scale = "multi" if args.aug_test else "single"
        path = write_metrics(work_dir, f"eval_{scale}_scale", args.config, metric)
        logger.info("metrics in %s", path)


def evaluate(
    args: argparse.Namespace,
    cfg: Config,
    dataset: Any,
    rows: dict[str, list[Any]],
    options: dict[str, Any],
) -> dict[str, Any]:
    """The data set's own evaluation, with the config's settings for it."""
    settings = {k: v for k, v in (cfg.get("evaluation") or {}).items() if k not in FOR_HOOK}
    settings.update(logger=logger, **options)
    result: dict[str, Any] = {}
    if "cityscapes" in args.eval:
        result.update(dataset.evaluate(rows["files"], **{**settings, "metric": ["cityscapes"]}))
    settings.pop("imgfile_prefix", None)
    if metrics := [name for name in args.eval if name != "cityscapes"]:
        result.update(dataset.evaluate(rows["areas"], **{**settings, "metric": metrics}))
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_program(test, parse_args(argv), ExportError)


if __name__ == "__main__":
    sys.exit(main())
