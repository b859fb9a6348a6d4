"""Export a classification model: ``python export.py --model_name NAME --ckpt_dir DIR --onnx``.

Writes ONNX and compares it with PyTorch in ONNX Runtime; a file that computes something else is not
kept. DCNv3 becomes the node `mmdeploy::TRTDCNv3`, which carries a definition of standard operators:
ONNX Runtime runs the file as it is, TensorRT with the plugin of tensorrt/. ``--inline`` writes the
standard operators in place of the node. ``--dynamic shape`` leaves batch, height and width open.
``--trt`` builds a TensorRT engine from the file. ``--pt2`` writes a torch.export program and
``--aoti`` compiles it for the processor of this machine.

``--model_name NAME --ckpt_dir DIR`` reads configs/NAME.yaml and DIR/NAME.pth. Other ways to say
which model: ``--cfg FILE --resume CKPT``, ``--resume CKPT`` alone for checkpoints that carry their
configuration, ``--model NAME`` for released weights.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (str(HERE.parent), str(HERE)):
    if folder not in sys.path:
        sys.path.insert(0, folder)

import numpy as np
import torch

import export_inputs
import model_source
from cli import ArgumentParser, run_program
from config import ConfigError
from config_values import nearest
from export_inputs import DYNAMIC, INPUT_NAMES, Size
from get_flops import image_size
from model_source import Source
from models import onnx_check, onnx_export, tensorrt_engine, torch_export
from models.onnx_export import ExportError
from models.tensorrt_engine import EngineError
from models.tensorrt_plugin import PluginError

logger = logging.getLogger(__name__)

DEFAULT_NAME = "internimage_t_1k_224"
DEFAULT_FOLDER = "pretrained/"
OTHER_ENDINGS = (".aoti.pt2", ".pt2", ".engine")  # of files that are no ONNX file


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of export.py."""
    parser = ArgumentParser("export.py", description="Export to other runtimes", allow_abbrev=False)
    add = parser.add_argument
    add("--onnx", action="store_true", help="write an ONNX file")
    add("--trt", action="store_true", help="write it and build a TensorRT engine (needs a GPU)")
    add("--pt2", action="store_true", help="write a torch.export program, .pt2")
    add("--aoti", action="store_true", help="compile that for this CPU (AOTInductor), .aoti.pt2")
    add(
        "--model_name",
        metavar="NAME",
        help=f"configs/NAME.yaml and <ckpt_dir>/NAME.pth (default: {DEFAULT_NAME})",
    )
    add("--ckpt_dir", metavar="DIR", help=f"folder of NAME.pth (default: {DEFAULT_FOLDER})")
    model_source.add_arguments(parser)
    add("--output", metavar="FILE", help="file to write (default: <name of the model>.onnx, ...)")
    add("--shape", nargs="+", type=int, metavar="N", help="H or H W (default: the config's size)")
    add("--batch-size", type=int, default=1, metavar="N", help="images per call (default: 1)")
    add(
        "--dynamic",
        nargs="?",
        choices=DYNAMIC,
        default="none",
        const="shape",
        help="what is left open: nothing (default), the batch, or batch, height and width",
    )
    add("--inline", action="store_true", help="standard operators in place of TRTDCNv3 nodes")
    add("--opset", type=int, default=onnx_export.OPSET, metavar="N", help="16 or newer (18)")
    add("--fp16", action="store_true", help="float16 inside; inputs and outputs stay float32")
    add("--simplify", action="store_true", help="compute what is constant (constant folding)")
    add(
        "--exporter",
        choices=onnx_export.EXPORTERS,
        default="auto",
        help="torch.onnx's dynamo exporter, its TorchScript one, or the second where the first "
        "cannot be used (default: auto)",
    )
    add(
        "--check",
        action=argparse.BooleanOptionalAction,
        help="check the file and compare it with PyTorch in ONNX Runtime (default: do, without the "
        "comparison if that is not installed)",
    )
    add(
        "--tolerance",
        type=float,
        metavar="E",
        help="accepted difference, as a part of the largest logit or of 1 (default: 1e-5, with "
        "--fp16 2e-2)",
    )
    parser.set_defaults(device="cpu")
    args = parser.parse_args(argv)
    if not (args.onnx or args.trt or args.pt2 or args.aoti):
        parser.error("nothing to do: give --onnx, --trt, --pt2 or --aoti")
    for flag in ("inline", "simplify"):
        if getattr(args, flag) and not (args.onnx or args.trt):
            parser.error(f"--{flag} is for --onnx and --trt")
    if args.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.tolerance is not None and not args.tolerance > 0:
        parser.error(f"--tolerance must be more than 0, got {args.tolerance}")
    return args


def find_config(name: str) -> Path:
    """configs/NAME.yaml, or the file of that name in one of its folders.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    known = {path.stem: path for path in sorted((HERE / "configs").rglob("*.yaml"), reverse=True)}
    path = HERE / "configs" / f"{name}.yaml"
    if path.is_file():
        return path
    if name not in known:
        raise ConfigError(
            f"--model_name {name}: no such file in configs/{nearest(name, list(known))}"
        )
    return known[name]


def load_source(args: argparse.Namespace) -> Source:
    """The model of the command line, float32 on the CPU; see the module's first lines."""
    by_upstream_names = args.model_name or args.ckpt_dir
    others = [flag for flag in ("cfg", "resume", "model") if getattr(args, flag)]
    if by_upstream_names and others:
        raise ConfigError(
            f"--model_name and --ckpt_dir already say which model: leave out --{others[0]}"
        )
    if not others:
        name = args.model_name or DEFAULT_NAME
        args.cfg = str(find_config(name))
        args.resume = str(Path(args.ckpt_dir or DEFAULT_FOLDER) / f"{name}.pth")
    return model_source.load(args)


class Export:
    """One run of the program: a model and what is wanted of it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.source = load_source(args)
        self.model = self.source.model.float()
        height, width = image_size(args.shape, self.source.config)
        multiple = export_inputs.size_multiple(self.model)
        if height % multiple or width % multiple:
            raise ValueError(
                f"this model takes images whose sides are multiples of {multiple}, not "
                f"{height}x{width}: give another --shape"
            )
        self.size: Size = (args.batch_size, height, width)
        output = args.output or f"{args.model or self.source.config.MODEL.NAME}.onnx"
        ending = next(filter(output.endswith, OTHER_ENDINGS), None)
        self.path = Path(f"{output.removesuffix(ending)}.onnx" if ending else output)
        self.dtype = torch.float16 if args.fp16 else torch.float32

    def inputs(self, size: Size) -> list[torch.Tensor]:
        """What the model takes, for (N, H, W)."""
        batch, height, width = size
        generator = torch.Generator().manual_seed(0)
        return self.source.inputs(torch.randn(batch, 3, height, width, generator=generator))

    def tolerance(self, usual: dict[torch.dtype, float]) -> float:
        return usual[self.dtype] if self.args.tolerance is None else self.args.tolerance

    def write_onnx(self, inline: bool) -> None:
        """Writes the file, if it computes what the model computes."""
        args, model = self.args, self.model
        traced = self.inputs(export_inputs.traced_size(model, self.size, args.dynamic))
        logger.info("exporting %s, about a second per block", self.source.label)
        exporter = onnx_export.export_onnx(
            onnx_export.half_precision(model) if args.fp16 else model,
            traced,
            self.path,
            input_names=INPUT_NAMES[: len(traced)],
            axes=export_inputs.open_axes(model, traced, args.dynamic),
            opset=args.opset,
            exporter=args.exporter,
            inline=inline,
            simplify=args.simplify,
            verify=None if args.check is False else self.verify,
        )
        kind = "standard operators" if inline else "TRTDCNv3 nodes with their definition"
        ranges = {"none": [], "batch": ["batch"], "shape": ["batch", "height", "width"]}
        self.report(self.path, f"opset {args.opset}, {exporter}, {kind}", ranges[args.dynamic])

    def report(self, path: Path, kind: str, open_axes: list[str]) -> None:
        """Says what was written, and which sizes are open."""
        shape = f"open: {', '.join(open_axes)}" if open_axes else "fixed shape"
        print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB, {kind}, {shape})")

    def verify(self, path: Path) -> None:
        """onnx.checker, and the comparison in ONNX Runtime.

        Raises:
            ExportError: the file is wrong.
        """
        onnx_check.check_file(path)
        print("onnx.checker: valid")
        if self.args.check is None and not onnx_check.is_installed("onnxruntime"):
            logger.warning("not compared with PyTorch: pip install -r requirements/tools.txt")
            return
        self.compare("ONNX Runtime", self.path, onnx_check.OnnxModel(path))

    def compare(self, name: str, path: Path, runtime: Callable[..., np.ndarray]) -> None:
        """What a runtime computes against PyTorch, at every size of `check_sizes`.

        Raises:
            ExportError: a difference is too large.
        """
        tolerance = self.tolerance(onnx_check.TOLERANCE)
        different = []
        for size in export_inputs.check_sizes(self.model, self.size, self.args.dynamic):
            result = onnx_check.compare(self.model, runtime, self.inputs(size), tolerance)
            print(f"{name}, {result}")
            if not result.agrees:
                different.append(result)
        if different:
            worst = max(different, key=lambda result: result.error / result.bound)
            raise ExportError(
                f"{path} was not written: it does not compute what the model computes "
                f"(difference {worst.error:.1e} at {'x'.join(map(str, worst.shape))}). --no-check "
                "writes it anyway, --tolerance accepts more"
            )

    def write_torch(self) -> None:
        """Writes the torch.export program, the compiled one, or both."""
        args, model = self.args, self.model
        traced = self.inputs(export_inputs.traced_size(model, self.size, args.dynamic))
        logger.info("capturing %s", self.source.label)
        axes = export_inputs.open_axes(model, traced, args.dynamic)
        program = torch_export.export_program(
            onnx_export.half_precision(model) if args.fp16 else model, traced, axes
        )
        smallest = torch_export.smallest_sizes(program, axes)
        height, width = self.size[1:]
        if height < smallest.get("height", 1) or width < smallest.get("width", 1):
            raise ExportError(
                f"with open sides a program takes images from {smallest['height']}x"
                f"{smallest['width']}, not {height}x{width}: give a larger --shape, or "
                "--dynamic batch"
            )
        ranges = [f"{name} from {size}" for name, size in smallest.items()]
        if args.pt2:
            path = self.path.with_suffix(".pt2")
            verify = None if args.check is False else partial(self.compare, "torch.export", path)
            torch_export.write_program(program, path, verify)
            self.report(path, "torch.export program", ranges)
        if args.aoti:
            path = self.path.with_suffix(".aoti.pt2")
            verify = None if args.check is False else partial(self.compare, "AOTInductor", path)
            logger.info("compiling, minutes")
            torch_export.write_package(program, path, verify)
            self.report(path, "AOTInductor package for this machine's processor", ranges)

    def build_engine(self, builder: str) -> int:
        """TensorRT's engine, compared and timed; returns the exit code."""
        args, path = self.args, self.path.with_suffix(".engine")
        sizes = export_inputs.profile(self.model, self.size, args.dynamic)
        shapes = [[tuple(value.shape) for value in self.inputs(size)] for size in sizes]
        profiles = {} if args.dynamic == "none" else dict(zip(INPUT_NAMES, zip(*shapes)))
        logger.info("building a TensorRT engine, minutes")
        tensorrt_engine.build_engine(self.path, path, profiles, builder=builder)
        print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
        engine = tensorrt_engine.Engine(path, builder=builder)
        model = self.model.cuda()
        inputs = [value.cuda() for value in self.inputs(self.size)]
        tolerance = self.tolerance(tensorrt_engine.TOLERANCE)
        result = onnx_check.compare(model, engine, inputs, tolerance)
        print(f"TensorRT, {result}")
        with torch.no_grad():
            eager = tensorrt_engine.latency(model, inputs)
        fast = tensorrt_engine.latency(engine.run, inputs)
        print(
            f"TensorRT {fast:.2f} ms, PyTorch {eager:.2f} ms (float32), median of 100 calls at "
            f"{'x'.join(map(str, result.shape))}"
        )
        if not result.agrees:
            logger.error("%s does not compute what the model computes: do not use it", path)
        return 0 if result.agrees else 1


def run(args: argparse.Namespace) -> int:
    """Run the program; returns the exit code."""
    builder = tensorrt_engine.choose_builder() if args.trt else None
    task = Export(args)
    if args.onnx or args.trt:
        task.write_onnx(inline=args.inline or builder == "mmdeploy")
    if args.pt2 or args.aoti:
        task.write_torch()
    return task.build_engine(builder) if builder else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    return run_program(run, parse_args(argv), ExportError, EngineError, PluginError)


if __name__ == "__main__":
    sys.exit(main())
