"""Times DCNv3 on the shapes of real models: every backend, `grid_sample`, and the machine's limit.

    python ops_dcnv3/benchmarks/bench_op.py [--shapes t224-b1 t224-b8] [--threads 1] [--json FILE]
    python ops_dcnv3/benchmarks/bench_op.py --quick             does everything once, on a tiny map

Candidates of one row take turns; each figure is a median, and what counts is its ratio to
`grid_sample` (`grid_sample_baseline.py`), measured in the same turns.

    masks    weights are given: grid_sample, and `dcnv3` on each backend
    logits   weights are a softmax: softmax + grid_sample, softmax + `dcnv3`, `dcnv3_fused`
    op       the bare operator of torch.ops behind either, without the Python around it

Backward is the backward pass alone: `torch.autograd.grad` on a graph that is kept, and for `op` a
call of its backward operator. With float16 and bfloat16 grid_sample runs in float32, because
positions in half precision are useless.

The limit is the larger of two times: a copy that touches as many bytes as the operator must (inputs
once, results once), and, on a CPU, the loads from the L1 cache that it must make: per output pixel,
group and 16 channels, each of P points needs 4 x 16 values, 4 weights and an index, and backward
also the 4 x 16 sums of grad_input. Several threads share the loads evenly.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import torch
from grid_sample_baseline import grid_sample_dcnv3
from measure import (
    LoadLoop,
    Run,
    copy_of,
    environment,
    geometric_mean,
    median_times,
    peak_extra_bytes,
)
from torch import Tensor

from ops_dcnv3.functions import Geometry, available_backends, choose_backend, dcnv3, dcnv3_fused

POINTS = 9
BASELINE = "grid_sample"


class Shape(NamedTuple):
    """One layer: input (batch, height, width, channels)."""

    batch: int
    height: int
    width: int
    channels: int
    group: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.height}x{self.width}x{self.channels}, {self.group} groups"


def _levels(batch: int, height: int, width: int, channels: int, group: int) -> list[Shape]:
    """The four levels of a backbone: half the size and twice the channels from one to the next."""
    return [
        Shape(batch, height // step, width // step, channels * step, group * step)
        for step in (1, 2, 4, 8)
    ]


SETS = {
    "t224-b1": _levels(1, 56, 56, 64, 4),  # InternImage-T, 224 x 224
    "t224-b8": _levels(8, 56, 56, 64, 4),
    "t224-b64": _levels(64, 56, 56, 64, 4),
    "l384-b1": _levels(1, 96, 96, 160, 10),  # InternImage-L, 384 x 384
    "det-b1": _levels(1, 200, 320, 64, 4),  # InternImage-T, 800 x 1280
    "det-b2": _levels(2, 200, 320, 64, 4),
    "tiny": [Shape(1, 6, 5, 32, 2)],
}


class Layer:
    """Random arguments of one layer, and everything that can be run on them."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str) -> None:
        self.shape, self.dtype = shape, dtype
        depth = shape.channels // shape.group
        self.geometry = Geometry(3, 3, 1, 1, 1, 1, 1, 1, shape.group, depth, 1.0, False)
        pixels, weights = shape[:3], shape.group * POINTS

        def normal(channels: int) -> Tensor:
            return torch.randn(*pixels, channels).to(device, dtype)

        self.input, self.logits = normal(shape.channels), normal(3 * weights)
        self.offset = self.logits[..., : 2 * weights].contiguous()
        self.mask = self.softmax(self.logits[..., 2 * weights :])
        self.cotangent = normal(shape.channels)

    def softmax(self, logits: Tensor) -> Tensor:
        return logits.unflatten(-1, (self.shape.group, POINTS)).softmax(-1).flatten(-2)

    def split(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        offset, mask = logits.split((2 * POINTS * self.shape.group, POINTS * self.shape.group), -1)
        return offset, self.softmax(mask)

    def grid_sample(self, input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        if self.dtype in (torch.float16, torch.bfloat16):
            input, offset, mask = input.float(), offset.float(), mask.float()
        return grid_sample_dcnv3(input, offset, mask, self.geometry)

    def functions(self, entry: str, backends: list[str]) -> tuple[list[Tensor], dict]:
        """The arguments of an entry and the differentiable functions of them, by name."""
        group = self.shape.group
        if entry == "masks":
            functions = {BASELINE: self.grid_sample}
            for name in backends:
                functions[name] = lambda *t, name=name: dcnv3(*t, group=group, backend=name)
            return [self.input, self.offset, self.mask], functions
        functions = {BASELINE: lambda x, logits: self.grid_sample(x, *self.split(logits))}
        for name in _kernels(backends):
            functions[f"softmax + {name}"] = lambda x, logits, name=name: dcnv3(
                x, *self.split(logits), group=group, backend=name
            )
            functions[f"fused {name}"] = lambda x, logits, name=name: dcnv3_fused(
                x, logits, group=group, backend=name
            )
        return [self.input, self.logits], functions

    def candidates(self, entry: str, direction: str, backends: list[str]) -> dict[str, Run]:
        """What to time, by name; the first is the baseline."""
        arguments, functions = self.functions(entry, backends)
        if direction == "forward":
            runs = {name: lambda f=f: _without_graph(f, arguments) for name, f in functions.items()}
        else:
            runs = {name: self._backward(f, arguments) for name, f in functions.items()}
        if _kernels(backends):
            runs["op"] = lambda: _without_graph(self._operator(entry, direction), arguments)
        return runs

    def _operator(self, entry: str, direction: str):
        """The operator of torch.ops behind an entry, as a function of the entry's arguments."""
        name = "dcnv3" if entry == "masks" else "dcnv3_fused"
        options = () if entry == "masks" else (True, False)  # softmax, not interleaved
        if direction == "forward":
            operator = getattr(torch.ops.ops_dcnv3, name)
            return lambda *t: operator(*t, *self.geometry, *options)
        operator = getattr(torch.ops.ops_dcnv3, f"{name}_backward")
        return lambda *t: operator(self.cotangent, *t, *self.geometry, *options)

    def _backward(self, function, arguments: list[Tensor]) -> Run:
        leaves = [tensor.detach().requires_grad_() for tensor in arguments]
        output = function(*leaves)
        cotangent = self.cotangent.to(output.dtype)
        return lambda: torch.autograd.grad(output, leaves, cotangent, retain_graph=True)

    def touched_bytes(self, direction: str) -> int:
        """Inputs read once, results written once."""
        inputs = [self.input, self.offset, self.mask]
        tensors = [*inputs, self.cotangent] + (inputs if direction == "backward" else [])
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def loads(self, direction: str, vector_bytes: int) -> tuple[int, int, int]:
        """Points times blocks of 16 channels, and vectors per neighbour: values, sums."""
        batch, height, width, _, group = self.shape
        blocks = -(-self.geometry.group_channels // 16)
        size = self.input.element_size()
        values, sums = (-(-16 * bytes // vector_bytes) for bytes in (size, max(size, 4)))
        points = batch * height * width * group * blocks * POINTS
        return points, values, sums if direction == "backward" else 0


def _kernels(backends: list[str]) -> list[str]:
    return [name for name in backends if name != "pytorch"]


def _without_graph(function, arguments) -> Tensor:
    with torch.no_grad():
        return function(*arguments)


def bench(layer: Layer, entry: str, direction: str, options, load_loop: LoadLoop | None) -> dict:
    """One row: times, ratios to the baseline, fractions of the limit, and memory."""
    candidates = layer.candidates(entry, direction, options.backends)
    timed = dict(candidates)
    timed["copy"] = copy_of(layer.touched_bytes(direction), options.device)
    if load_loop is not None:
        points, *vectors = layer.loads(direction, load_loop.vector_bytes)
        timed["loads"] = lambda: load_loop.run(points // options.threads, *vectors)
    times = median_times(timed, options.rounds, options.device, options.threads)
    limits = {name: times.pop(name) for name in ("copy", "loads") if name in timed}
    limit = max(limits.values())
    return {
        "shape": layer.shape._asdict(),
        "entry": entry,
        "direction": direction,
        "bytes": layer.touched_bytes(direction),
        "limits_ms": limits,
        "times_ms": times,
        "ratio": {name: times[BASELINE] / time for name, time in times.items()},
        "of_limit": {name: limit / time for name, time in times.items()},
        "of_copy": {name: limits["copy"] / time for name, time in times.items()},
        "peak_mib": {
            name: peak_extra_bytes(run, options.device) / 2**20 for name, run in candidates.items()
        },
    }


def mean_of(rows: list[dict]) -> dict:
    """Geometric means of ratios and fractions over the rows of one set."""
    return {
        key: {name: geometric_mean([row[key][name] for row in rows]) for name in rows[0][key]}
        for key in ("ratio", "of_limit", "of_copy")
    }


def table(rows: list[dict], shapes: list[Shape], mean: dict) -> str:
    """Markdown: times with (ratio to grid_sample, fraction of the limit), then memory."""
    names = list(rows[0]["times_ms"])
    limits = list(rows[0]["limits_ms"])
    lines = [f"| shape | {' | '.join(f'limit: {name}' for name in limits)} | {' | '.join(names)} |"]
    lines.append("|---" * (1 + len(limits) + len(names)) + "|")

    def cell(row: dict, name: str, time: str = "") -> str:
        return f"{time}({row['ratio'][name]:.1f}x, {row['of_limit'][name]:.2f})"

    for row, shape in zip(rows, shapes):
        cells = [f"{row['limits_ms'][name]:.3f}" for name in limits]
        cells += [cell(row, name, f"{row['times_ms'][name]:.3f} ") for name in names]
        lines.append(f"| {shape} | {' | '.join(cells)} |")
    cells = [""] * len(limits) + [cell(mean, name) for name in names]
    lines.append(f"| geometric mean | {' | '.join(cells)} |")
    cells = [""] * len(limits) + [f"{mean['of_copy'][name]:.2f}" for name in names]
    lines.append(f"| ... of the copy alone | {' | '.join(cells)} |")
    lines += ["", f"| peak extra memory, MiB | {' | '.join(names)} |"]
    lines.append("|---" * (1 + len(names)) + "|")
    for row, shape in zip(rows, shapes):
        cells = [f"{row['peak_mib'][name]:.1f}" for name in names]
        lines.append(f"| {shape} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, with what follows from it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shapes", nargs="+", choices=[*SETS, "all"], default=["t224-b1", "t224-b8"]
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--backends", nargs="+", help="default: all that run on the device")
    parser.add_argument("--entries", nargs="+", choices=["masks", "logits"])
    parser.add_argument("--directions", nargs="+", choices=["forward", "backward"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument(
        "--dtype", choices=["float64", "float32", "float16", "bfloat16"], default="float32"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny map, two rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args(arguments)
    if options.quick:
        options.shapes, options.rounds = ["tiny"], 2
    if "all" in options.shapes:
        options.shapes = [name for name in SETS if name not in ("tiny", "t224-b64")]
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU is visible")
    options.entries = options.entries or ["masks", "logits"]
    options.directions = options.directions or ["forward", "backward"]
    wanted = options.backends or available_backends()
    try:
        options.backends = [
            name for name in wanted if options.backends or _runs_on(name, options.device)
        ]
        for name in options.backends:
            choose_backend(options.device, name)
    except (RuntimeError, ValueError) as error:
        parser.error(str(error))
    return options


def _runs_on(backend: str, device: str) -> bool:
    try:
        return choose_backend(device, backend) == backend
    except ValueError:  # it is for another device
        return False


def main(arguments: list[str] | None = None) -> None:
    """Prints the tables, and writes them as JSON if asked to."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    load_loop = LoadLoop() if options.device == "cpu" else None
    if load_loop is not None and not load_loop.available:
        print("no C++ compiler: the limit is the copy alone")
        load_loop = None
    facts = environment(options.device, options.threads) | {"dtype": options.dtype}
    print(", ".join(f"{name}: {value}" for name, value in facts.items()))
    print(f"milliseconds, medians of {options.rounds} rounds (times grid_sample's speed, of limit)")
    tables = []
    for name in options.shapes:
        for entry in options.entries:
            for direction in options.directions:
                rows = []
                for shape in SETS[name]:
                    layer = Layer(shape, getattr(torch, options.dtype), options.device)
                    rows.append(bench(layer, entry, direction, options, load_loop))
                mean = mean_of(rows)
                print(f"\n### {name}, {direction}, {entry}\n")
                print(table(rows, SETS[name], mean), flush=True)
                tables.append(
                    {
                        "set": name,
                        "entry": entry,
                        "direction": direction,
                        "rows": rows,
                        "geometric_mean": mean,
                    }
                )
    facts["load average at the end"] = environment(options.device, 1)["load average"]
    print(f"\nload average at the end: {facts['load average at the end']}")
    if options.json:
        options.json.write_text(
            json.dumps({"environment": facts, "rounds": options.rounds, "tables": tables}, indent=1)
        )


if __name__ == "__main__":
    main()
