"""The GPU kernels: first whether they are right, then how fast they are. Needs a GPU and nvcc.

    python ops_dcnv3/benchmarks/bench_cuda.py [--json FILE] [--markdown FILE]
    python ops_dcnv3/benchmarks/bench_cuda.py --check-only      correctness alone
    compute-sanitizer python ops_dcnv3/benchmarks/bench_cuda.py --check-only --quick
                                                                and whether memory is used properly

Correctness: every backend of the GPU against float64 on the CPU, over the cases of tests/data and
random shapes in every dtype, and that the deterministic mode repeats itself bit by bit. Anything
wrong ends the script with exit code 1.

Speed: forward and backward of each layer of real models. Candidates take turns and are timed with
CUDA events; each figure is a median:

    grid_sample   the operator through torch.nn.functional.grid_sample (grid_sample_baseline.py)
    plain         plain_kernel.cu: one thread per channel, scalar atomics; compiled when this starts
    cuda, triton  `dcnv3` on that backend; `fused` with the softmax of the weights inside
    softmax + ... the weights' softmax by PyTorch, then the operator

The floor is the time in which the memory that has to be touched (inputs once, results once) can be
copied, at the speed of a copy of 1 GiB in the same run. Small layers stay in the L2 cache between
calls, so their fraction of the floor can exceed what memory alone allows.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench_op import SETS, Layer, Shape
from measure import Run, copy_of, environment, geometric_mean, median_times, peak_extra_bytes
from torch import Tensor

from ops_dcnv3.functions import (
    Geometry,
    available_backends,
    dcnv3,
    dcnv3_backward_reference,
    dcnv3_fused,
    dcnv3_reference,
)
from ops_dcnv3.functions.reference import dcnv3_fused_backward_reference, dcnv3_fused_reference

HERE = Path(__file__).resolve().parent
DTYPES = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-5, "float64": 1e-12}  # largest error
SHAPES = ("t224-b64", "det-b1", "det-b2", "l384-b1")
BASELINE = "grid_sample"
COPIED_BYTES = 2 << 30  # 1 GiB read and 1 GiB written


# --- correctness ----------------------------------------------------------------------------------


class Problem(NamedTuple):
    """One wrong result."""

    what: str
    backend: str
    tensor: str
    error: float  # norm of the difference by the norm of the truth


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference divided by the norm of the truth; infinite if not finite."""
    actual, expected = actual.detach().cpu().double(), expected.double()
    error = (actual - expected).norm() / expected.norm().clamp_min(1e-12)
    return float(error) if error.isfinite() else float("inf")


def random_cases(quick: bool) -> list[tuple[Geometry, tuple[int, int, int]]]:
    """Geometries and input sizes (batch, height, width) that reach every path of the kernels."""
    base = Geometry(3, 3, 1, 1, 1, 1, 1, 1, 4, 16, 1.0, False)
    cases = [
        (base, (2, 9, 11)),
        (base._replace(group_channels=5), (3, 8, 7)),
        (base._replace(kernel_h=5, kernel_w=7, pad_h=2, pad_w=3, stride_w=2), (1, 20, 19)),
        (base._replace(group=1, group_channels=144, remove_center=True), (1, 12, 10)),
        (base._replace(dilation_h=3, pad_h=3, offset_scale=2.0), (2, 21, 30)),
    ]
    if not quick:
        cases += [
            (base._replace(group=3, group_channels=32), (5, 56, 60)),
            (base._replace(group=7, group_channels=8), (257, 7, 7)),
            (base._replace(group=1, group_channels=1), (2, 128, 200)),
        ]
    return cases


def arguments_of(geometry: Geometry, size: tuple[int, int, int], far: float) -> list[Tensor]:
    """Input, offsets and logits in float64; offsets have a standard deviation of `far` pixels.

    They are multiples of 2^-10, so that every position is exact in float32 too: the derivative by
    an offset jumps where a position crosses an integer.
    """
    batch, height, width = size
    pixels = (batch, *geometry.output_size(height, width))
    weights = geometry.group * geometry.points
    sizes = [
        (*size, geometry.group * geometry.group_channels),
        (*pixels, 2 * weights),
        (*pixels, weights),
    ]
    x, offset, logits = (torch.randn(size, dtype=torch.float64) for size in sizes)
    return [x, (1024 * far * offset).round() / 1024, logits]


def keywords(geometry: Geometry) -> dict[str, Any]:
    """The arguments of `dcnv3` for a geometry."""
    g = geometry
    return {
        "kernel_size": (g.kernel_h, g.kernel_w),
        "stride": (g.stride_h, g.stride_w),
        "padding": (g.pad_h, g.pad_w),
        "dilation": (g.dilation_h, g.dilation_w),
        "group": g.group,
        "offset_scale": g.offset_scale,
        "remove_center": g.remove_center,
    }


def with_gradients(function, tensors: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    """The output of a function and the gradients of sum(output * cotangent)."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = function(*leaves)
    return [output, *torch.autograd.grad(output, leaves, cotangent.to(output))]


def check_case(
    what: str,
    geometry: Geometry,
    tensors: list[Tensor],
    dtype: str,
    backends: list[str],
    device: str,
) -> list[Problem]:
    """Both entries of every backend against float64 for one set of arguments."""
    rounded = [tensor.to(getattr(torch, dtype)) for tensor in tensors]
    exact = [tensor.double() for tensor in rounded]
    on_device = [tensor.to(device) for tensor in rounded]
    joined = [torch.cat(three[1:], -1) for three in (exact, on_device)]
    output = dcnv3_reference(*exact, geometry)
    cotangent = torch.randn_like(output).to(getattr(torch, dtype))
    truth = [output, *dcnv3_backward_reference(cotangent.double(), *exact, geometry)]
    options = (geometry, True, False)  # softmax, not interleaved
    fused_truth = [
        dcnv3_fused_reference(exact[0], joined[0], *options),
        *dcnv3_fused_backward_reference(cotangent.double(), exact[0], joined[0], *options),
    ]
    problems = []
    for backend in backends:
        extra = {**keywords(geometry), "backend": backend}
        for entry, function, arguments, expected in (
            ("dcnv3", dcnv3, on_device, truth),
            ("dcnv3_fused", dcnv3_fused, [on_device[0], joined[1]], fused_truth),
        ):
            actual = with_gradients(
                lambda *t, f=function, e=extra: f(*t, **e), arguments, cotangent
            )
            names = ("out", "grad_input", "grad_offset", "grad_mask")
            for name, one, other in zip(names, actual, expected):
                error = relative_error(one, other)
                if other.numel() and not error <= DTYPES[dtype]:
                    problems.append(Problem(f"{entry}, {dtype}, {what}", backend, name, error))
    return problems


def check_repeats(backend: str, device: str) -> list[Problem]:
    """The deterministic mode gives the same bits every time."""
    geometry = Geometry(3, 3, 1, 1, 1, 1, 1, 1, 4, 16, 1.0, False)
    tensors = [t.to(device, torch.float32) for t in arguments_of(geometry, (2, 40, 50), 3.0)]
    cotangent = torch.randn_like(tensors[0])
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        runs = [
            with_gradients(lambda *t: dcnv3(*t, group=4, backend=backend), tensors, cotangent)
            for _ in range(5)
        ]
    finally:
        torch.use_deterministic_algorithms(before)
    return [
        Problem("not the same bits every time", backend, f"result {index}", float("nan"))
        for index, first in enumerate(runs[0])
        if not all(torch.equal(first, other[index]) for other in runs[1:])
    ]


def check(backends: list[str], device: str, quick: bool) -> list[Problem]:
    """Everything that is wrong."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from helpers import CASES

    problems = []
    for parameters in CASES[:: 8 if quick else 1]:
        case = parameters.values[0]
        what = f"case {case.id}"
        problems += check_case(what, case.geometry, case.arguments(), "float64", backends, device)
    for geometry, size in random_cases(quick):
        for dtype in DTYPES:
            for far in (1.0, 8.0):
                tensors = arguments_of(geometry, size, far)
                what = f"{size}, offsets of {far} pixels, {tuple(geometry)}"
                problems += check_case(what, geometry, tensors, dtype, backends, device)
    if "cuda" in backends:
        problems += check_repeats("cuda", device)
    return problems


# --- speed ----------------------------------------------------------------------------------------


def compile_plain_kernel():
    """The baseline as a module with `forward` and `backward`."""
    from torch.utils.cpp_extension import load

    return load("dcnv3_plain_kernel", [str(HERE / "plain_kernel.cu")], extra_cuda_cflags=["-O3"])


def candidates(layer: Layer, direction: str, backends: list[str], plain: Any) -> dict[str, Run]:
    """What to time, by name."""
    runs = dict(layer.candidates("masks", direction, backends))
    runs.pop("op", None)
    for name, run in layer.candidates("logits", direction, backends).items():
        if name.startswith("fused"):
            runs[name] = run
        elif name == BASELINE:
            runs[f"softmax + {BASELINE}"] = run
    if plain is not None:
        tensors = (layer.input, layer.offset, layer.mask)
        group = layer.shape.group
        if direction == "forward":
            runs["plain"] = lambda: plain.forward(*tensors, group)
        else:
            runs["plain"] = lambda: plain.backward(layer.cotangent, *tensors, group)
    return runs


def bench(
    layer: Layer,
    direction: str,
    backends: list[str],
    plain: Any,
    device: str,
    bandwidth: float,
    rounds: int,
) -> dict[str, Any]:
    """One row; `bandwidth` in bytes per millisecond."""
    runs = candidates(layer, direction, backends, plain)
    times = median_times(runs, rounds, device, 1)
    floor = layer.touched_bytes(direction) / bandwidth
    return {
        "shape": layer.shape._asdict(),
        "direction": direction,
        "floor_ms": floor,
        "times_ms": times,
        "of_floor": {name: floor / time for name, time in times.items()},
        "peak_mib": {name: peak_extra_bytes(run, device) / 2**20 for name, run in runs.items()},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: microseconds (fraction of the floor), the mean fraction, and peak memory."""
    names = list(rows[0]["times_ms"])
    head = f"| shape | floor | {' | '.join(names)} |\n|{'---|' * (2 + len(names))}"
    lines = [head]
    for row in rows:
        cells = [
            f"{1e3 * row['times_ms'][name]:.1f} ({row['of_floor'][name]:.2f})" for name in names
        ]
        shape, floor = Shape(**row["shape"]), 1e3 * row["floor_ms"]
        lines.append(f"| {shape} | {floor:.1f} | {' | '.join(cells)} |")
    means = [geometric_mean([row["of_floor"][name] for row in rows]) for name in names]
    lines.append(f"| mean of floor | | {' | '.join(f'({mean:.2f})' for mean in means)} |")
    first = [geometric_mean([row["times_ms"][BASELINE] for row in rows])] * len(names)
    speeds = [
        base / geometric_mean([row["times_ms"][name] for row in rows])
        for base, name in zip(first, names)
    ]
    lines.append(f"| times {BASELINE} | | {' | '.join(f'{speed:.1f}x' for speed in speeds)} |")
    for row in rows:
        cells = [f"{row['peak_mib'][name]:.0f} MiB" for name in names]
        lines.append(f"| {Shape(**row['shape'])}, memory | | {' | '.join(cells)} |")
    return "\n".join(lines)


def bench_all(options: argparse.Namespace, backends: list[str], plain: Any) -> tuple[str, list]:
    """All tables as Markdown, and the rows."""
    copy = median_times({"copy": copy_of(COPIED_BYTES, "cuda")}, options.rounds, "cuda", 1)["copy"]
    bandwidth = COPIED_BYTES / copy
    facts = environment("cuda", 1) | {"copy": f"{bandwidth / 1e6:.0f} GB/s"}
    text = ["; ".join(f"{name}: {value}" for name, value in facts.items())]
    text.append(f"Microseconds (fraction of the floor), medians of {options.rounds} rounds.")
    print("\n".join(text), flush=True)
    rows = []
    for name in options.shapes:
        for dtype in options.dtypes:
            for direction in ("forward", "backward"):
                part = []
                for shape in SETS[name]:
                    layer = Layer(shape, getattr(torch, dtype), "cuda")
                    part.append(
                        bench(layer, direction, backends, plain, "cuda", bandwidth, options.rounds)
                        | {"set": name, "dtype": dtype}
                    )
                rows += part
                text.append(f"\n### {name}, {dtype}, {direction}\n\n{table(part)}")
                print(text[-1], flush=True)
    return "\n".join(text) + "\n", [facts, *rows]


def main(arguments: list[str] | None = None) -> int:
    """Checks, then times; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=list(SETS), default=SHAPES)
    parser.add_argument(
        "--dtypes", nargs="+", choices=list(DTYPES), default=["float16", "bfloat16", "float32"]
    )
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases to check")
    parser.add_argument("--check-only", action="store_true", help="no timing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench_cuda.py needs a GPU that PyTorch can use; none is visible", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    backends = [name for name in ("cuda", "triton") if name in available_backends()]
    if not backends:
        print("neither the cuda nor the triton backend is available", file=sys.stderr)
        return 1
    problems = check(backends, "cuda", options.quick)
    for problem in problems:
        print(f"wrong: {problem.backend}: {problem.tensor} of {problem.what}: {problem.error:.1e}")
    if problems:
        return 1
    print(f"correct: {', '.join(backends)}")
    if options.check_only:
        return 0
    text, rows = bench_all(options, backends, compile_plain_kernel())
    if options.markdown:
        options.markdown.write_text(text)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
