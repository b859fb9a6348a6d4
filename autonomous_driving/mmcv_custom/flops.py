"""Counting parameters and multiply-adds of a model's parts, for get_flops.py of every task.

Counted with torch.utils.flop_counter, on PyTorch's meta device where that is possible:
convolutions, linear layers, matrix products of attention, and the sampling of DCNv3, DCNv4 and
deformable attention with 5 MACs per sampling point and channel (four for the bilinear
interpolation, one for the weight). One MAC is one multiplication with its addition.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from internimage.write_file import replacing
from mmcv import Config, ConfigDict
from mmcv.ops import MultiScaleDeformableAttention
from torch import Tensor, nn
from torch.utils import flop_counter

from ops_dcnv3.modules import DCNv3, DCNv4

from .config_checks import KeyValues
from .runtime import load_config

SAMPLING = 5  # MACs per sampling point and channel
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
NOTE = (
    "MACs: convolutions, linear layers, attention products, and 5 per sampling point and channel. "
    "Not counted: biases, norms, activations, softmax, interpolation, RoIAlign, NMS."
)


@dataclass
class Part:
    """Counts of one part of a model.

    Attributes:
        name: dotted name of the module, 'other' for what runs outside of the named ones.
        params: number of parameters.
        macs: all multiply-adds.
        sampling_macs: those of them that are the sampling of DCNv3, DCNv4, deformable attention.
    """

    name: str
    params: int = 0
    macs: int = 0
    sampling_macs: int = 0


class Counter:
    """Adds up what the modules of a model compute.

    Args:
        model: the model.
        names: dotted names of the parts; a part may lie within another, which then has the rest.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.parts = {name: Part(name) for name in [*names, "other"]}
        self.flops = flop_counter.FlopCounterMode(display=False, depth=None)
        self.sampling = 0
        self.stack = ["other"]
        self.seen = (0, 0)  # multiply-adds and those of sampling that belong to a part already
        for name, parameter in model.named_parameters():
            self.parts[self.part_of(name)].params += parameter.numel()
        for name, module in model.named_modules():
            if name in self.parts:
                module.register_forward_pre_hook(self.enter(name))
                module.register_forward_hook(self.leave)
            if isinstance(module, (DCNv3, DCNv4)):
                module.backend = "pytorch"  # the one that needs no device
                module.register_forward_hook(self.count_dcn)
            elif isinstance(module, MultiScaleDeformableAttention):
                module.register_forward_hook(self.count_attention, with_kwargs=True)

    def part_of(self, name: str) -> str:
        """The innermost part that a parameter of this dotted name belongs to."""
        inside = [part for part in self.parts if name.startswith(f"{part}.")]
        return max(inside, key=len, default="other")

    def settle(self) -> None:
        """Gives what was computed since the last call to the part that runs now."""
        now = (self.flops.get_total_flops() // 2 + self.sampling, self.sampling)
        part = self.parts[self.stack[-1]]
        part.macs += now[0] - self.seen[0]
        part.sampling_macs += now[1] - self.seen[1]
        self.seen = now

    def enter(self, name: str) -> Any:
        def hook(module: nn.Module, arguments: Any) -> None:
            self.settle()
            self.stack.append(name)

        return hook

    def leave(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self.settle()
        self.stack.pop()

    def count_dcn(self, layer: DCNv3 | DCNv4, arguments: Any, output: Tensor) -> None:
        points = layer.group * (layer.kernel_size**2 - int(layer.remove_center))
        positions = output.numel() // output.shape[-1]  # (N, H, W, C)
        self.sampling += SAMPLING * positions * points * layer.group_channels

    def count_attention(
        self,
        layer: MultiScaleDeformableAttention,
        arguments: Any,
        keywords: dict[str, Any],
        output: Tensor,
    ) -> None:
        queries = output.numel() // output.shape[-1]  # (n, N, C) or (N, n, C)
        self.sampling += SAMPLING * queries * layer.num_levels * layer.num_points * layer.embed_dims

    def result(self) -> list[Part]:
        """The parts in the order of the modules; 'other' last, when there is anything."""
        self.settle()
        parts = list(self.parts.values())
        return parts if parts[-1].params or parts[-1].macs else parts[:-1]


@contextmanager
def quiet() -> Any:
    """Without warnings, for example mmdet's that its own counter cannot do attention."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def total(parts: Sequence[Part]) -> Part:
    """The sums over the parts."""
    keys = ("params", "macs", "sampling_macs")
    return Part("total", *(sum(getattr(part, key) for part in parts) for key in keys))


def table(parts: Sequence[Part]) -> str:
    """The parts as aligned text with a last row of sums."""
    sums = total(parts)
    units = [_unit(sums.params), _unit(sums.macs)]
    rows = [("part", "params", "MACs", "of these sampling")]
    for part in [*parts, sums]:
        sampling = _in_unit(part.sampling_macs, units[1]) if part.sampling_macs else ""
        cells = (_in_unit(part.params, units[0]), _in_unit(part.macs, units[1]), sampling)
        rows.append((part.name, *cells))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _unit(number: int) -> tuple[float, str]:
    return next(((size, name) for size, name in UNITS if number >= size), UNITS[-1])


def _in_unit(number: int, unit: tuple[float, str]) -> str:
    size, name = unit
    return f"{number / size:,.3f} {name}"


def image_size(shape: Sequence[int], divisor: int) -> tuple[int, int]:
    """Height and width of ``--shape H [W]``, rounded up to multiples of the divisor.

    Raises:
        ValueError: another number of values, one below 1, or a divisor of 0 or below -1.
    """
    if len(shape) > 2 or min(shape) < 1:
        raise ValueError(f"--shape takes H or H W in pixels, got {' '.join(map(str, shape))}")
    if divisor < 1 and divisor != -1:
        raise ValueError(f"--size-divisor takes a number of pixels, or -1 for none, got {divisor}")
    step = max(divisor, 1)
    height, width = (-(-size // step) * step for size in (shape[0], shape[-1]))
    return height, width


def add_arguments(parser: argparse.ArgumentParser, shape: tuple[int, int]) -> None:
    """The command line of get_flops.py; `shape` is the default size, (H, W)."""
    add = parser.add_argument
    add("config", metavar="CONFIG", help="config file")
    add(
        "--shape",
        type=int,
        nargs="+",
        default=list(shape),
        metavar="N",
        help=f"H or H W (default: {shape[0]} {shape[1]})",
    )
    add(
        "--cfg-options",
        nargs="+",
        action=KeyValues,
        metavar="KEY=VALUE",
        help="override the config",
    )
    add(
        "--size-divisor",
        type=int,
        default=32,
        metavar="PX",
        help="round the size up to a multiple (default: 32; -1: off)",
    )
    add("--json", metavar="FILE", help="write the counts; - prints them instead of the table")


def build_on_meta(config: Config, build: Callable[..., nn.Module], what: str) -> nn.Module:
    """The model of a config on the meta device, in evaluation mode, without weights.

    Args:
        build: the task's function: (settings, test_cfg=...) -> model.
        what: 'a detector', for the message.

    Raises:
        ValueError: the config has no model.
    """
    if "model" not in config:
        raise ValueError(f"{config.filename} has no model: it is not the config of {what}")
    settings = ConfigDict(config.model.copy())
    settings.train_cfg = None
    with torch.device("meta"):
        return build(settings, test_cfg=config.get("test_cfg")).eval().requires_grad_(False)


def on_cpu(module: nn.Module) -> nn.Module:
    """A module of the meta device on the CPU, filled with zeros; one that looks into tensors."""
    module.to_empty(device="cpu")
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.zero_()
    return module


def report(
    args: argparse.Namespace,
    build: Callable[[Config], nn.Module],
    count: Callable[[nn.Module, int, int], list[Part]],
) -> str:
    """Counts and writes the JSON file; returns what is to be printed.

    Args:
        args: of `add_arguments`.
        build: the model of a config on the meta device.
        count: (model, height, width) -> its parts.
    """
    logging.getLogger("mmcv").setLevel(logging.WARNING)
    height, width = image_size(args.shape, args.size_divisor)
    config = load_config(args.config, args.cfg_options, parts=("model",))
    model = build(config)
    parts = count(model, height, width)
    record = {
        "config": args.config,
        "model": type(model).__name__,
        "shape": [height, width],
        **{key: value for key, value in asdict(total(parts)).items() if key != "name"},
        "parts": [asdict(part) for part in parts],
    }
    text = json.dumps(record, indent=2)
    if args.json == "-":
        return text
    title = f"{args.config}: {type(model).__name__}, one image of {height}x{width} pixels"
    lines = [title, "", table(parts), "", NOTE]
    if args.json:
        with replacing(args.json) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        lines.append(f"written: {args.json}")
    return "\n".join(lines)
