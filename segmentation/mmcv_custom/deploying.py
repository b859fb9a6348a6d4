"""What deploy.py of every task does: a trained model as an ONNX file by mmdeploy's rules.

DCNv3 becomes the node `mmdeploy::TRTDCNv3`, and the file carries its definition, so that ONNX
Runtime runs it as it is. What belongs to one task comes in as a `Task`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import difflib
import importlib
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from internimage import onnx_check, onnx_dcnv3, onnx_export
from internimage.cli import ArgumentParser
from internimage.onnx_export import ExportError
from mmcv import Config
from torch import nn

from .runtime import ConfigError, load_config, make_folder

logger = logging.getLogger(__name__)

BACKENDS = ("onnxruntime", "tensorrt")
PACKAGES = "pip install -r requirements/deploy.txt -c requirements/constraints.txt"
ELSEWHERE = {  # flag: what it belongs to
    "quant": "ncnn",
    "quant_image_dir": "ncnn",
    "calib_dataset_cfg": "int8 engines",
    "uri": "SNPE devices",
}


@dataclass(frozen=True)
class Task:
    """What one folder's deploy.py brings along.

    Attributes:
        codebase: name of the library in deploy configs, 'mmdet' or 'mmseg'.
        read_config: path of a model config -> the config, ready for building the model.
        load_model: (config, checkpoint) -> the model in evaluation mode, with CLASSES.
        prepare: registers what the export of the task's own layers needs; mmdeploy is there then.
        compare: (result of PyTorch, result of the file) -> what to say, and whether they agree.
        comparable: changes a model's inputs so that the results can be compared.
    """

    codebase: str
    read_config: Callable[[str], Config]
    load_model: Callable[[Config, str], nn.Module]
    prepare: Callable[[], None]
    compare: Callable[[Any, Any], tuple[str, bool]]
    comparable: Callable[[dict[str, Any]], dict[str, Any]] = lambda data: data


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


def need_mmdeploy() -> Any:
    """The shim, which imports mmdeploy.

    Raises:
        ExportError: a package is missing.
    """
    try:
        return importlib.import_module(".mmdeploy_shim", __package__)
    except ImportError as error:
        raise ExportError(f"mmdeploy cannot be used ({error}): {PACKAGES}") from error


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


def input_shape(deploy_cfg: Config) -> tuple[int, int] | None:
    """(width, height) of a file with a fixed size, else None."""
    shape = deploy_cfg.onnx_config.get("input_shape")
    return None if shape is None else tuple(shape)


def build_processor(deploy_cfg: Config, cfg: Config, device: str) -> Any:
    """mmdeploy's task processor."""
    shim = need_mmdeploy()
    with shim.any_device():
        from mmdeploy.apis.utils import utils

        return utils.build_task_processor(copy.deepcopy(cfg), deploy_cfg, device)  # it is changed


def load_exported(
    deploy_cfg: Config, cfg: Config, path: str | Path, classes: Any, device: str = "cpu"
) -> nn.Module:
    """The model of an exported file, called as the one of PyTorch.

    Args:
        deploy_cfg: what it was exported with.
        cfg: config of the model.
        path: end2end.onnx or end2end.engine.
        classes: names of the classes.
        device: of the runtime.

    Raises:
        ExportError: the file is not there or cannot be read.
    """
    if not Path(path).is_file():
        raise ExportError(f"{path} does not exist: deploy.py writes it")
    processor = build_processor(deploy_cfg, cfg, device)
    try:
        model = processor.init_backend_model([str(path)])
    except Exception as error:  # runtimes have no common type for their errors
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"{path} cannot be loaded: {reason}") from error
    model.CLASSES = list(classes)
    return model


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


@contextlib.contextmanager
def staged(work_dir: str) -> Iterator[Path]:
    """A folder whose files move to `work_dir` when all went well; nothing is left otherwise."""
    with tempfile.TemporaryDirectory(prefix=".deploy-", dir=work_dir) as name:
        yield Path(name)
        for path in sorted(Path(name).iterdir()):
            os.replace(path, Path(work_dir) / path.name)


class Job:
    """One export.

    Args:
        args: the command line.
        task: what is exported.
        deploy_cfg, cfg: the two configs.
        model: the trained model.
        folder: where everything is written.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        task: Task,
        deploy_cfg: Config,
        cfg: Config,
        model: nn.Module,
        folder: Path,
    ) -> None:
        self.args, self.task, self.deploy_cfg, self.cfg = args, task, deploy_cfg, cfg
        self.model, self.folder = model, folder
        self.backend = deploy_cfg.backend_config.type
        self.processor = build_processor(deploy_cfg, cfg, args.device)
        self.onnx = folder / deploy_cfg.onnx_config.save_file
        self.written: list[str] = []

    def run(self, builder: str | None) -> None:
        """Every step; `builder` builds an engine."""
        images = self.args.test_img or [self.args.img]
        expected = [self.predict(self.model, image) for image in images]  # before it is exported
        self.export(inline=self.args.inline or builder == "mmdeploy")
        file = self.onnx
        if builder:
            file = self.build_engine(builder)
        if builder or self.backend == "onnxruntime":
            exported = load_exported(
                self.deploy_cfg, self.cfg, file, self.model.CLASSES, self.args.device
            )
            exported.PALETTE = getattr(self.model, "PALETTE", None)
            got = [self.predict(exported, image) for image in images]
            self.compare(images, expected, got)
            self.paint(exported, images, self.backend)
        else:
            logger.warning("no engine was built (--onnx-only): the file was not run")
        self.paint(self.model, images, "pytorch")
        if self.args.dump_info:
            self.dump_info()
        self.written = sorted(path.name for path in self.folder.iterdir())

    def inputs(self, image: str) -> dict[str, Any]:
        """What the model is called with, for one image."""
        return self.processor.create_input(image, input_shape(self.deploy_cfg))[0]

    def predict(self, model: nn.Module, image: str) -> Any:
        """The task's result for an image, to be compared."""
        with torch.no_grad():
            return self.processor.run_inference(model, self.task.comparable(self.inputs(image)))[0]

    def export(self, inline: bool) -> None:
        """Writes the ONNX file.

        Raises:
            ExportError: the exporter or the checker refuses the model.
        """
        from mmdeploy.apis.onnx import export
        from mmdeploy.utils import get_dynamic_axes

        onnx_cfg = self.deploy_cfg.onnx_config
        data = self.inputs(self.args.img)
        names = [*onnx_cfg.input_names, *onnx_cfg.output_names]
        with self.exporting(onnx_cfg.opset_version):
            export(
                self.model,
                data["img"][0],
                input_metas={"img_metas": data["img_metas"]},
                output_path_prefix=str(self.onnx.with_suffix("")),
                backend=self.backend,
                input_names=list(onnx_cfg.input_names),
                output_names=list(onnx_cfg.output_names),
                context_info={"deploy_cfg": self.deploy_cfg},
                opset_version=onnx_cfg.opset_version,
                dynamic_axes=get_dynamic_axes(self.deploy_cfg, names),
                keep_initializers_as_inputs=False,
            )
        vars(self.model).pop("forward", None)  # mmdeploy leaves its own behind
        self.add_definition(inline)
        onnx_check.check_file(self.onnx)

    @contextlib.contextmanager
    def exporting(self, opset: int) -> Iterator[None]:
        """What has to be different while the model is traced."""
        shim = need_mmdeploy()
        from mmdeploy.apis.core.pipeline_manager import no_mp

        try:
            with (
                no_mp(),
                shim.torchscript_exporter(),
                onnx_dcnv3.torchscript_symbolics(opset),
                warnings.catch_warnings(),
            ):
                if self.args.log_level != "DEBUG":
                    warnings.simplefilter("ignore")  # about constants in the trace, by the dozen
                yield
        except (RuntimeError, TypeError, IndexError, AssertionError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ExportError(f"torch.onnx cannot export this model: {reason}") from error

    def add_definition(self, inline: bool) -> None:
        """Gives the file the definition of its TRTDCNv3 nodes, or puts it in their place."""
        import onnx_ir
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass

        graph = onnx_ir.load(self.onnx)
        ClearMetadataAndDocStringPass()(graph)
        onnx_dcnv3.add_function(graph)
        if inline:
            onnx_dcnv3.inline_function(graph)
        onnx_export.save(graph, self.onnx, one_file=True)

    def build_engine(self, builder: str) -> Path:
        """The engine's file; mmdeploy's own operators come from its library for TensorRT."""
        from internimage import tensorrt_engine
        from mmdeploy.backend.tensorrt import load_tensorrt_plugin

        if not load_tensorrt_plugin():
            logger.warning("mmdeploy's library for TensorRT is not there: its operators may lack")
        inputs = self.deploy_cfg.backend_config.model_inputs[0].input_shapes
        profiles = {
            name: (shapes.min_shape, shapes.opt_shape, shapes.max_shape)
            for name, shapes in inputs.items()
        }
        path = self.onnx.with_suffix(".engine")
        tensorrt_engine.build_engine(self.onnx, path, profiles, builder=builder)
        return path

    def compare(self, images: list[str], expected: list[Any], got: list[Any]) -> None:
        """Compares the results of every image.

        Raises:
            ExportError: they differ.
        """
        different = []
        for image, one, other in zip(images, expected, got):
            text, agrees = self.task.compare(one, other)
            logger.info("%s: %s", image, text)
            if not agrees:
                different.append(image)
        if different and self.args.check:
            raise ExportError(
                f"nothing was written: the file gives other results than PyTorch for "
                f"{', '.join(different)}. --no-check writes it anyway"
            )

    def paint(self, model: nn.Module, images: list[str], name: str) -> None:
        """output_NAME.jpg, or output_NAME_i.jpg for several images."""
        for index, image in enumerate(images):
            with torch.no_grad():
                result = self.processor.run_inference(model, self.inputs(image))[0]
            number = f"_{index}" if len(images) > 1 else ""
            path = self.folder / f"output_{name}{number}.jpg"
            self.processor.visualize(model, image, result, str(path), name)
            if self.args.show:
                self.processor.visualize(model, image, result, str(path), name, show_result=True)

    def dump_info(self) -> None:
        """The three files that mmdeploy's SDK reads."""
        from mmdeploy.backend.sdk.export_info import export2SDK

        shim = need_mmdeploy()
        with shim.any_device():
            export2SDK(
                self.deploy_cfg,
                copy.deepcopy(self.cfg),
                str(self.folder),
                pth=self.args.checkpoint,
                device=self.args.device,
            )
