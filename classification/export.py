"""Export a classification model: ``python export.py --model_name NAME --ckpt_dir DIR --onnx``.

Writes ONNX (opset 18) made of standard operators, which ONNX Runtime and others run without a
plugin, and compares it with PyTorch. ``--dynamic`` leaves batch, height and width open.

``--model_name NAME --ckpt_dir DIR`` reads configs/NAME.yaml and DIR/NAME.pth. Other ways to say
which model: ``--cfg FILE --resume CKPT``, ``--resume CKPT`` alone for checkpoints that carry their
configuration, ``--model NAME`` for released weights.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (str(HERE.parent), str(HERE)):
    if folder not in sys.path:
        sys.path.insert(0, folder)

import torch

import model_source
import onnx_export
from cli import ArgumentParser, run_program
from config import ConfigError
from config_values import nearest
from get_flops import image_size
from model_source import Source

logger = logging.getLogger(__name__)

DEFAULT_NAME = "internimage_t_1k_224"
DEFAULT_FOLDER = "pretrained/"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of export.py."""
    parser = ArgumentParser("export.py", description="Export to ONNX", allow_abbrev=False)
    add = parser.add_argument
    add("--onnx", action="store_true", help="write an ONNX file")
    add("--trt", action="store_true", help="build a TensorRT engine (not possible yet)")
    add(
        "--model_name",
        metavar="NAME",
        help=f"configs/NAME.yaml and <ckpt_dir>/NAME.pth (default: {DEFAULT_NAME})",
    )
    add("--ckpt_dir", metavar="DIR", help=f"folder of NAME.pth (default: {DEFAULT_FOLDER})")
    model_source.add_arguments(parser)
    add("--output", metavar="FILE", help="file to write (default: <name of the model>.onnx)")
    add("--shape", nargs="+", type=int, metavar="N", help="H or H W (default: the config's size)")
    add("--batch-size", type=int, default=1, help="images per call (default: 1)")
    add("--dynamic", action="store_true", help="leave batch, height and width open")
    add(
        "--check",
        action=argparse.BooleanOptionalAction,
        help="compare with PyTorch in ONNX Runtime (default: if it is installed)",
    )
    parser.set_defaults(device="cpu")
    args = parser.parse_args(argv)
    if not (args.onnx or args.trt):
        parser.error("nothing to do: give --onnx")
    if args.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, got {args.batch_size}")
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


def export(args: argparse.Namespace) -> int:
    """Export and compare; returns the exit code: 1 when the results differ."""
    source = load_source(args)
    model, config = source.model.float(), source.config
    height, width = image_size(args.shape, config)
    path = Path(args.output or f"{args.model or config.MODEL.NAME}.onnx")

    def inputs(batch: int, height: int, width: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return source.inputs(torch.randn(batch, 3, height, width, generator=generator))

    logger.info("exporting %s, about a second per block", source.label)
    onnx_export.export_onnx(
        model, inputs(args.batch_size, height, width), path, dynamic=args.dynamic
    )
    open_axes = "batch, height and width open" if args.dynamic else "fixed shape"
    print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB, {open_axes})")
    if args.check is None and not onnx_export.is_installed("onnxruntime"):
        logger.warning("not compared with PyTorch: pip install -r requirements/tools.txt")
        return 0
    if args.check is False:
        return 0
    runtime = onnx_export.OnnxModel(path)
    multiple = onnx_export.size_multiple(model)
    different = 0
    for shape in onnx_export.check_shapes(height, width, args.batch_size, args.dynamic, multiple):
        result = onnx_export.compare(model, runtime, inputs(*shape))
        different += not result.agrees
        print(
            f"{'same' if result.agrees else 'DIFFERENT'} in ONNX Runtime on "
            f"{'x'.join(map(str, result.shape))}: logits up to {result.largest:.3g}, largest "
            f"difference {result.error:.1e}"
        )
    if different:
        logger.error("%s does not compute what the model computes: do not use it", path)
    return 1 if different else 0


def run(args: argparse.Namespace) -> int:
    """Run the program; returns the exit code."""
    if args.trt:
        raise onnx_export.ExportError(
            "--trt: no TensorRT engine can be built yet: the plugin TRTDCNv3 (tensorrt/) is not "
            "part of this release. --onnx writes a file of standard operators, which TensorRT 8.5 "
            "and newer should parse (GridSample); that was not tried"
        )
    return export(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    return run_program(run, parse_args(argv), onnx_export.ExportError)


if __name__ == "__main__":
    sys.exit(main())
