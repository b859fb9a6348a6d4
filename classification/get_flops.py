"""Parameters and multiply-adds of a model: ``python get_flops.py --model internimage_t_1k_224``.

Counted with torch.utils.flop_counter on PyTorch's meta device, so that nothing is computed and the
largest model takes seconds. One MAC is one multiplication with its addition.

Counted: convolutions, linear layers, matrix products of attention, and the sampling of DCNv3 and
DCNv4 with 5 MACs per sampling point and channel (four for the bilinear interpolation, one for the
modulation), which is the formula that ops_dcnv3 registers with the flop counter. Not counted:
biases, norms, activations, softmax, scaling and adding of branches, pooling.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
for folder in (str(HERE.parent), str(HERE)):
    if folder not in sys.path:
        sys.path.insert(0, folder)

import torch
from torch import Tensor, nn
from torch.utils import flop_counter

import model_source
from cli import ArgumentParser, run_program
from models import build_model
from models.write_file import replacing
from ops_dcnv3.modules import DCNv3, DCNv4

PART = re.compile(r"patch_embed|levels\.\d+(\.downsample)?")  # modules that are a part
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
NOTE = (
    "MACs: convolutions, linear layers, attention products, and 5 per sampling point and channel. "
    "Not counted: biases, norms, activations, softmax, residual sums, pooling."
)


@dataclass
class Part:
    """Counts of one part of a model.

    Attributes:
        name: 'stem', 'level 0', 'downsample 0', ..., 'head'.
        params: number of parameters.
        macs: of convolutions and matrix products.
        sampling_macs: of DCNv3 or DCNv4, 5 per point and channel.
        output: shape of its output without the batch axis, None for the head.
    """

    name: str
    params: int = 0
    macs: int = 0
    sampling_macs: int = 0
    output: tuple[int, ...] | None = None

    @property
    def total_macs(self) -> int:
        return self.macs + self.sampling_macs


def part_of(name: str) -> str:
    """The part of the model that a module or parameter of this dotted name belongs to."""
    found = re.match(r"levels\.(\d+)(?:\.(downsample))?", name)
    if found:
        return f"{found[2] or 'level'} {found[1]}"
    return "stem" if name.startswith(("patch_embed", "pos_drop")) else "head"


def call_operator(layer: DCNv3 | DCNv4, arguments: Any, output: Tensor) -> None:
    """Forward hook: lets the flop counter see the sampling of a layer as one call of the operator.

    On the meta device a layer itself runs in plain PyTorch, which the counter takes for nothing.
    """
    value = arguments[0]  # (N, H, W, C)
    points = layer.group * (layer.kernel_size**2 - int(layer.remove_center))  # G * P
    pairs = [(size, size) for size in (layer.kernel_size, 1, layer.pad, layer.dilation)]
    geometry = [number for pair in pairs for number in pair]
    geometry += [layer.group, layer.group_channels, layer.offset_scale, layer.remove_center]
    offset_mask = value.new_empty(*value.shape[:3], 3 * points)
    torch.ops.ops_dcnv3.dcnv3_fused(value, offset_mask, *geometry, True, False)


def count(config: Any, height: int, width: int) -> list[Part]:
    """Counts the model of a configuration for one image of `height` x `width` pixels.

    Returns:
        Stem, levels, downsamplings and head in the order of the network.

    Raises:
        RuntimeError: PyTorch is too old.
        ValueError: an image that the model cannot take.
    """
    if not hasattr(flop_counter, "flop_registry") or not hasattr(flop_counter, "ModuleTracker"):
        raise RuntimeError(f"get_flops.py needs torch 2.4 or newer, this is {torch.__version__}")
    config = config.clone()
    config.defrost()
    for section in ("INTERN_IMAGE", "FLASH_INTERN_IMAGE"):
        config.MODEL[section].BACKEND = "pytorch"  # the one that needs no device
    with torch.device("meta"):
        model = build_model(config).eval()
        images = torch.empty(1, 3, height, width)
    levels = range(len(model.levels))
    names = ["stem"]
    for index in levels:
        names += [f"level {index}"] + [f"downsample {index}"] * (index < len(levels) - 1)
    parts = {name: Part(name) for name in [*names, "head"]}
    for name, parameter in model.named_parameters():
        parts[part_of(name)].params += parameter.numel()

    for name, module in model.named_modules():
        if isinstance(module, (DCNv3, DCNv4)):
            module.register_forward_hook(call_operator)
        elif PART.fullmatch(name):
            module.register_forward_hook(_note_output(parts[part_of(name)]))
    with torch.no_grad(), flop_counter.FlopCounterMode(display=False, depth=None) as counter:
        model(images, *model_source.metadata(config, images))
    root = type(model).__name__
    counts = {name.removeprefix(f"{root}."): by for name, by in counter.get_flop_counts().items()}
    for name, operations in counts.items():
        if PART.fullmatch(name):
            part = parts[part_of(name)]
            part.macs, part.sampling_macs = _macs(operations)
    parts["head"].macs = _macs(counts["Global"])[0] - sum(part.macs for part in parts.values())
    return list(parts.values())


def _note_output(part: Part) -> Any:
    def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
        part.output = tuple(output.shape[1:])

    return hook


def _macs(operations: dict[Any, int]) -> tuple[int, int]:
    """MACs of convolutions and matrix products, and of sampling."""
    sampling = sum(number for name, number in operations.items() if "dcnv3" in str(name))
    return (sum(operations.values()) - sampling) // 2, sampling // 2


def table(parts: Sequence[Part]) -> str:
    """The parts as aligned text with a last row of sums."""
    rows = [("part", "output", "params", "MACs", "of these sampling")]
    sums = Part(
        "total",
        *(sum(getattr(part, key) for part in parts) for key in ("params", "macs", "sampling_macs")),
    )
    macs_unit = _unit(sums.total_macs)
    for part in [*parts, sums]:
        shape = "x".join(map(str, part.output)) if part.output else ""
        params = _in_unit(part.params, _unit(sums.params))
        macs = [_in_unit(number, macs_unit) for number in (part.total_macs, part.sampling_macs)]
        rows.append((part.name, shape, params, macs[0], macs[1] if part.sampling_macs else ""))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        cells += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _unit(total: int) -> tuple[float, str]:
    """The unit for a column with this sum."""
    return next(((size, name) for size, name in UNITS if total >= size), UNITS[-1])


def _in_unit(number: int, unit: tuple[float, str]) -> str:
    size, name = unit
    return f"{number / size:,.3f} {name}"


def record(config: Any, parts: Sequence[Part], height: int, width: int) -> dict[str, Any]:
    """The counts as plain values for JSON."""
    return {
        "model": config.MODEL.NAME,
        "num_classes": config.MODEL.NUM_CLASSES,
        "shape": [height, width],
        "params": sum(part.params for part in parts),
        "macs": sum(part.total_macs for part in parts),
        "conv_linear_macs": sum(part.macs for part in parts),
        "sampling_macs": sum(part.sampling_macs for part in parts),
        "parts": [
            {
                "name": part.name,
                "output": part.output,
                "params": part.params,
                "conv_linear_macs": part.macs,
                "sampling_macs": part.sampling_macs,
            }
            for part in parts
        ],
    }


def image_size(shape: Sequence[int] | None, config: Any) -> tuple[int, int]:
    """Height and width of ``--shape H [W]``; the configuration's size without it.

    Raises:
        ValueError: another number of values, or one below 1.
    """
    sizes = list(shape or [config.DATA.IMG_SIZE])
    if len(sizes) > 2 or min(sizes) < 1:
        raise ValueError(f"--shape takes H or H W in pixels, got {' '.join(map(str, sizes))}")
    return sizes[0], sizes[-1]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of get_flops.py."""
    parser = ArgumentParser(
        "get_flops.py", description="Parameters and multiply-adds", allow_abbrev=False
    )
    model_source.add_config_arguments(parser)
    add = parser.add_argument
    add("--shape", nargs="+", type=int, metavar="N", help="H or H W (default: the config's size)")
    add("--json", metavar="FILE", help="write the counts; - prints them instead of the table")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Count, print and write; returns the exit code."""
    config = model_source.load_config(args)
    height, width = image_size(args.shape, config)
    parts = count(config, height, width)
    text = json.dumps(record(config, parts, height, width), indent=2)
    if args.json == "-":
        print(text)
        return 0
    print(
        f"{config.MODEL.NAME}, {config.MODEL.NUM_CLASSES} classes, one image of "
        f"{height}x{width} pixels\n"
    )
    print(table(parts))
    print(f"\n{NOTE}")
    if args.json:
        with replacing(args.json) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        print(f"written: {args.json}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    return run_program(run, parse_args(argv), RuntimeError)


if __name__ == "__main__":
    sys.exit(main())
