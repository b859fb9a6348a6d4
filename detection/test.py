"""Tests a detector: `python test.py CONFIG CHECKPOINT --eval bbox segm`.

With several processes: `bash dist_test.sh CONFIG CHECKPOINT N --eval bbox segm`. The checkpoint is
a file, the name of a released model or an https:// address.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
import mmcv_custom  # noqa: F401  applies what mmcv needs on today's torch, before mmdet
import mmdet_custom  # noqa: F401  registers models and data sets
from internimage.cli import ArgumentParser, run_program
from internimage.onnx_export import ExportError
from internimage.write_file import replacing
from mmcv import Config
from mmcv.cnn import fuse_conv_bn
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
    load_config,
    make_folder,
    naming_full_disks,
    naming_unknown_types,
    share_handlers,
)
from mmdet.datasets import build_dataloader
from mmdet.models import DETECTORS, build_detector
from mmdet.utils import (
    compat_cfg,
    get_root_logger,
    replace_cfg_vals,
    setup_multi_processes,
    update_data_root,
)
from mmdet_custom.datasets.checks import build_data
from mmdet_custom.testing import (
    Painter,
    batch_in_test,
    check_format,
    check_metrics,
    test_model,
    use_tta,
)
from torch import nn

logger = logging.getLogger("mmdet")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 when it is wrong."""
    parser = ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="At least one of --eval, --out, --format-only, --show and --show-dir is needed.",
    )
    add_exported_argument(parser)
    add_testing_arguments(parser, "bbox, segm, proposal (COCO), mAP (VOC, OpenImages), ...")
    parser.add_argument(
        "--show-score-thr", type=float, default=0.3, help="paint what is at least so certain"
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="several scales and flipped images; the scales are the config's tta_scales, or half, "
        "one and one and a half of the test scale",
    )
    parser.add_argument(
        "--fuse-conv-bn", action="store_true", help="fold batch norms into convolutions first"
    )
    parser.add_argument("--options", nargs="+", action=KeyValues, help="old: --eval-options")
    args = parser.parse_args(argv)
    check_testing_arguments(parser, args)
    if args.options is not None:
        if args.eval_options is not None:
            parser.error("--options is the old name of --eval-options; give only --eval-options")
        logger.warning("--options is out of use: write --eval-options")
        args.eval_options = args.options
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
    cfg = replace_cfg_vals(load_config(args.config, args.cfg_options))
    update_data_root(cfg)
    cfg = compat_cfg(cfg)
    if cfg.get("data", {}).get("test") is None:
        raise ConfigError(f"{args.config} has no data.test")
    cfg.model.train_cfg = None
    cfg.model.pretrained = None
    if cfg.model.get("backbone") is not None:
        cfg.model.backbone.init_cfg = None  # the checkpoint holds the backbone
    if args.tta:
        use_tta(cfg)
    batch_in_test(cfg)
    if args.deploy_cfg:
        use_input_shape(cfg, args.deploy_cfg, "mmdet")
    return cfg


def run(args: argparse.Namespace, cfg: Config, distributed: bool, gpu_id: int) -> None:
    """From the work dir to the written results."""
    work_dir = choose_work_dir(cfg, args.work_dir)
    log = get_root_logger(log_level=cfg.get("log_level", "INFO"))
    share_handlers(log, "mmcv_custom", "mmdet_custom", "internimage")
    setup_multi_processes(cfg)
    if args.out:
        make_folder(Path(args.out).absolute().parent, "--out: the folder")
    if args.show_dir:
        make_folder(args.show_dir, "--show-dir")
    dataset = build_data(cfg, cfg.data.test, {"test_mode": True})
    if args.format_only:
        check_format(dataset)
    loader = build_dataloader(
        dataset,
        **{
            "samples_per_gpu": 1,
            "workers_per_gpu": 2,
            "dist": distributed,
            "shuffle": False,
            **cfg.data.get("test_dataloader", {}),
        },
    )
    model = load_model(args, cfg, dataset)
    model = wrap_model(model, cfg.device, distributed, gpu_id=gpu_id)
    painter = None
    if args.show or args.show_dir:
        painter = Painter(args.show_dir, args.show, args.show_score_thr, dataset)
    results = test_model(
        model,
        loader,
        distributed=distributed,
        tmpdir=args.tmpdir,
        parent=work_dir,
        gpu_collect=args.gpu_collect,
        painter=painter,
    )
    if get_dist_info()[0] == 0:
        report(args, cfg, dataset, results, work_dir)
    agree(None)  # the others wait, so that no launcher takes their end for the end of the run


def load_model(args: argparse.Namespace, cfg: Config, dataset: Any) -> nn.Module:
    """The detector with its weights and CLASSES, or the exported one of --deploy-cfg."""
    if args.deploy_cfg:
        model = load_for_test(args, cfg, "mmdet", dataset.CLASSES)
        check_metrics(args.eval or (), dataset, model)
        return model
    with naming_unknown_types("the model", DETECTORS):
        model = build_detector(cfg.model, test_cfg=cfg.get("test_cfg"))
    check_metrics(args.eval or (), dataset, model)
    if cfg.get("fp16") is not None:
        wrap_fp16_model(model)
    meta = load_checkpoint(model, args.checkpoint)["meta"]
    compare_classes(meta, dataset.CLASSES)
    model.CLASSES = meta.get("CLASSES", dataset.CLASSES)
    return fuse_conv_bn(model) if args.fuse_conv_bn else model


def report(
    args: argparse.Namespace, cfg: Config, dataset: Any, results: list[Any], work_dir: str
) -> None:
    """Writes and evaluates the results of the whole data set."""
    if args.out:
        with naming_full_disks(args.out), replacing(args.out) as temporary:
            mmcv.dump(results, str(temporary), file_format="pkl")
        logger.info("results of %d images in %s", len(results), args.out)
    options = args.eval_options or {}
    if args.format_only:
        options.setdefault("jsonfile_prefix", str(Path(work_dir) / "results"))
        Path(options["jsonfile_prefix"]).parent.mkdir(parents=True, exist_ok=True)
        with naming_full_disks(f"{options['jsonfile_prefix']}.*"):
            written, _ = dataset.format_results(results, **options)
        logger.info("results in the format of the data set: %s", written)
    if args.eval:
        metric = evaluate(args, cfg, dataset, results, options)
        if not metric:
            logger.warning("nothing was detected in the %d images: no figures", len(results))
        logger.info("%s", ", ".join(f"{name} {value}" for name, value in metric.items()))
        path = write_metrics(work_dir, "eval", args.config, metric)
        logger.info("metrics in %s", path)


def evaluate(
    args: argparse.Namespace,
    cfg: Config,
    dataset: Any,
    results: list[Any],
    options: dict[str, Any],
) -> dict[str, Any]:
    """The data set's own evaluation, with the config's settings for it.

    Raises:
        ConfigError: the data set has no such metric or option.
    """
    for_hook = (
        "interval", "tmpdir", "start", "gpu_collect", "save_best", "rule", "dynamic_intervals",
    )  # fmt: skip
    settings = {k: v for k, v in (cfg.get("evaluation") or {}).items() if k not in for_hook}
    settings.update({"metric": args.eval, **options})
    try:
        return dict(dataset.evaluate(results, **settings))
    except (KeyError, TypeError) as error:
        text = str(error.args[0]) if error.args else str(error)
        if not any(word in text for word in ("metric", "argument", "is not in results")):
            raise
        raise ConfigError(f"--eval {' '.join(args.eval)}: {text}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_program(test, parse_args(argv), ExportError)


if __name__ == "__main__":
    sys.exit(main())
