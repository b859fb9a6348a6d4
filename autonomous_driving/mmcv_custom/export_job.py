"""One export of deploy.py: the ONNX file, the comparison with PyTorch, pictures, SDK files."""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from internimage import onnx_check, onnx_dcnv3, onnx_export
from internimage.onnx_export import ExportError
from mmcv import Config
from torch import nn

logger = logging.getLogger(__name__)

PACKAGES = "pip install -r requirements/deploy.txt -c requirements/constraints.txt"


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


def need_mmdeploy() -> Any:
    """The shim, which imports mmdeploy.

    Raises:
        ExportError: a package is missing.
    """
    try:
        return importlib.import_module(".mmdeploy_shim", __package__)
    except ImportError as error:
        raise ExportError(f"mmdeploy cannot be used ({error}): {PACKAGES}") from error


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
