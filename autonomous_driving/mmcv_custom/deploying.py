"""What deploy.py of every task does: a trained model as an ONNX file by mmdeploy's rules.

DCNv3 becomes the node `mmdeploy::TRTDCNv3`, and the file carries its definition, so that ONNX
Runtime runs it as it is. What belongs to one task comes in as a `Task`.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from internimage import onnx_export
from internimage.cli import ArgumentParser
from internimage.onnx_export import ExportError
from mmcv import Config
from torch import nn

from .export_job import Job, Task, input_shape, load_exported, need_mmdeploy, staged
from .runtime import ConfigError, load_config, make_folder

logger = logging.getLogger(__name__)

BACKENDS = ("onnxruntime", "tensorrt")
ELSEWHERE = {  # flag: what it belongs to
    "quant": "ncnn",
    "quant_image_dir": "ncnn",
    "calib_dataset_cfg": "int8 engines",
    "uri": "SNPE devices",
}


def parser(description: str) -> ArgumentParser:
    """The command line of mmdeploy's deploy.py, and three flags of ours."""
    result = ArgumentParser("deploy.py", description=description)
    add = result.add_argument
    add("deploy_cfg", help="how: deploy/configs/.../NAME.py")
    add("model_cfg", help="config of the model")
    add("checkpoint", help="file, released model's name or https:// address")
    add("img", help="an image like those the model is for; it is traced with it")
    add("--test-img", nargs="+", metavar="IMG", help="paint and compare these (default: img)")
    add("--work-dir", default=os.getcwd(), help="folder for the files (default: this folder)")
    add("--device", default="cpu", help="of PyTorch: cpu (default), cuda or cuda:N")
    add(
        "--log-level",
        default="INFO",
        choices=list(logging._nameToLevel),
        help="of mmdeploy's own log (default: INFO)",
    )
    add("--show", action="store_true", help="show the painted images in windows")
    add("--dump-info", action="store_true", help="write deploy.json, pipeline.json, detail.json")
    add(
        "--onnx-only",
        action="store_true",
        help="write the ONNX file and no engine: for TensorRT configs on a machine without GPU",
    )
    add("--inline", action="store_true", help="standard operators in place of TRTDCNv3 nodes")
    add(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare the file's results with PyTorch's and keep no file that differs (default)",
    )
    for name in ("--quant-image-dir", "--calib-dataset-cfg", "--uri"):
        add(name, help=argparse.SUPPRESS)
    add("--quant", action="store_true", help=argparse.SUPPRESS)
    return result


def check_arguments(args: argparse.Namespace) -> None:
    """Looks at what can be checked before anything is loaded.

    Raises:
        ConfigError: a flag of another backend, an image that cannot be read, no such device.
    """
    for name, owner in ELSEWHERE.items():
        if getattr(args, name):
            raise ConfigError(
                f"--{name.replace('_', '-')} is for {owner}; here are {' and '.join(BACKENDS)}"
            )
    for path in (args.img, *(args.test_img or ())):
        if not Path(path).is_file():
            raise ConfigError(f"{path}: no such image (working directory {Path.cwd()})")
        if cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR) is None:
            raise ConfigError(f"{path}: not an image that can be read")
    if args.device != "cpu":
        device, _, number = args.device.partition(":")
        if device != "cuda" or not (number or "0").isdigit():
            raise ConfigError(f"--device takes cpu, cuda or cuda:N, got {args.device!r}")
        if int(number or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"--device {args.device}: {torch.cuda.device_count()} GPUs are visible"
            )


def load_deploy_config(path: str, codebase: str) -> Config:
    """A deploy config, checked.

    Raises:
        ConfigError: no such file, or it is for another task, backend or opset.
    """
    if not Path(path).is_file():
        known = {found.stem: found for found in sorted(Path("deploy").rglob("*.py"))}
        near = difflib.get_close_matches(Path(path).stem, known, n=3, cutoff=0.4)
        hint = f". Did you mean {', '.join(str(known[name]) for name in near)}?" if near else ""
        raise ConfigError(f"deploy config {path} does not exist{hint}")
    parts = ("onnx_config", "codebase_config", "backend_config")
    cfg = load_config(path, parts=())
    for part in parts:
        if not isinstance(cfg.get(part), dict):
            raise ConfigError(f"{path} has no {part}: it is not a deploy config")
    if cfg.codebase_config.get("type") != codebase:
        raise ConfigError(f"{path} is for {cfg.codebase_config.get('type')}, this is {codebase}")
    if cfg.backend_config.get("type") not in BACKENDS:
        raise ConfigError(
            f"{path}: backend {cfg.backend_config.get('type')!r} is none of {', '.join(BACKENDS)}"
        )
    opset = cfg.onnx_config.get("opset_version", 11)
    known = onnx_export.opsets("torchscript")
    if opset not in known:
        raise ConfigError(
            f"{path}: opset {opset} cannot be written, choose {known[0]} to {known[-1]} "
            f"(GridSample came with {known[0]})"
        )
    return cfg


def add_exported_argument(parser: argparse.ArgumentParser) -> None:
    """The flag with which test.py tests an exported file."""
    parser.add_argument(
        "--deploy-cfg",
        metavar="CONFIG",
        help="test an exported file: CHECKPOINT is the end2end.onnx (or .engine) that deploy.py "
        "wrote with this deploy config",
    )


def use_input_shape(cfg: Config, path: str, codebase: str) -> None:
    """Lets the test pipeline give the size that a file of a static deploy config takes."""
    size = input_shape(load_deploy_config(path, codebase))
    tests = cfg.data.test if isinstance(cfg.data.test, list) else [cfg.data.test]
    steps = [step for data in tests for step in data.get("pipeline", [])] if size else []
    for step in steps:
        if step["type"] == "MultiScaleFlipAug":
            step.img_scale = size
            for transform in step.transforms:
                if "keep_ratio" in transform:
                    transform.keep_ratio = False


def load_for_test(args: argparse.Namespace, cfg: Config, codebase: str, classes: Any) -> nn.Module:
    """The model of test.py's --deploy-cfg.

    Raises:
        ConfigError: the deploy config cannot be used, or the run has several processes.
        ExportError: the file cannot be used, or mmdeploy is missing.
    """
    deploy_cfg = load_deploy_config(args.deploy_cfg, codebase)
    if args.launcher != "none":
        raise ConfigError(
            "--deploy-cfg: exported files are tested by one process, without launcher"
        )
    need_mmdeploy()
    logging.getLogger("mmdeploy").setLevel(logging.WARNING)
    return load_exported(deploy_cfg, cfg, args.checkpoint, classes, cfg.device)


def run(args: argparse.Namespace, task: Task) -> int:
    """Exports, compares and writes everything; returns the exit code."""
    check_arguments(args)
    deploy_cfg = load_deploy_config(args.deploy_cfg, task.codebase)
    cfg = task.read_config(args.model_cfg)
    backend = deploy_cfg.backend_config.type
    need_mmdeploy()
    logging.getLogger("mmdeploy").setLevel(args.log_level)
    show_log()
    task.prepare()
    make_folder(args.work_dir, "--work-dir")
    builder = None
    if backend == "tensorrt" and not args.onnx_only:
        builder = engine_builder()
    model = task.load_model(cfg, args.checkpoint).to(args.device).eval()
    with staged(args.work_dir) as folder:
        job = Job(args, task, deploy_cfg, cfg, model, folder)
        job.run(builder)
    for name in job.written:
        logger.info("written: %s", Path(args.work_dir) / name)
    return 0


def show_log() -> None:
    """Lets this package's log be seen: mmcv silences the handlers of the root logger."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    log = logging.getLogger(__package__)
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


def engine_builder() -> str:
    """How an engine will be built.

    Raises:
        ExportError: it cannot be built here.
    """
    from internimage import tensorrt_engine
    from internimage.tensorrt_plugin import PluginError

    try:
        return tensorrt_engine.choose_builder()
    except (PluginError, tensorrt_engine.EngineError) as error:
        raise ExportError(f"{error}. --onnx-only writes the ONNX file without an engine") from error
