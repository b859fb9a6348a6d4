"""Times InternImage in PyTorch, ONNX Runtime, OpenVINO and AOTInductor on the CPU.

    python classification/benchmarks/bench_onnx.py [--config t_1k_224] [--batch 1 8] [--threads 1]
        [--rounds 7] [--exporter torchscript] [--aoti FILE] [--json FILE]

The candidates of a table take turns within one process, and the ratios of the medians are what
counts: absolute figures vary with the machine's load. ONNX Runtime reads the file with TRTDCNv3
nodes, OpenVINO the one with standard operators in their place; both with fixed sizes and with
batch, height and width open. Everything computes in float32: OpenVINO is told so, as it would take
bfloat16 where the processor has it. Runtimes that are not installed are left out. ``--aoti`` takes
a package that ``export.py --aoti --dynamic`` wrote, with its own weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_model import build_from_config  # makes the others importable
from measure import environment, median_times
from torch import Tensor, nn

import export_inputs
from models import onnx_dcnv3, onnx_export
from models.onnx_check import OnnxModel, compare, is_installed
from models.torch_export import Package

Run = Callable[[], Any]


def write_files(
    model: nn.Module, batch: int, side: int, dynamic: str, exporter: str, folder: Path
) -> tuple[Path, Path]:
    """The file with nodes and the inlined one."""
    import onnx_ir

    traced = export_inputs.traced_size(model, (batch, side, side), dynamic)
    inputs = [torch.randn(traced[0], 3, *traced[1:])]
    path, inlined = folder / f"{dynamic}.onnx", folder / f"{dynamic}_inlined.onnx"
    axes = export_inputs.open_axes(model, inputs, dynamic)
    onnx_export.export_onnx(model, inputs, path, axes=axes, exporter=exporter)
    graph = onnx_ir.load(path)
    onnx_dcnv3.inline_function(graph)
    onnx_ir.save(graph, inlined)
    return path, inlined


def openvino_model(path: Path, threads: int) -> Callable[[Tensor], Any]:
    """A file in OpenVINO on the CPU."""
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(str(path), "CPU", options)
    return lambda images: compiled([images.numpy()])[0]


def bench(options: argparse.Namespace, model: nn.Module, batch: int) -> dict:
    """One table: every runtime at one batch size."""
    side = options.image_size
    images = torch.randn(batch, 3, side, side)

    def eager() -> None:
        with torch.inference_mode():
            model(images)

    runs: dict[str, Run] = {"PyTorch eager": eager}
    errors = {"PyTorch eager": 0.0}
    with tempfile.TemporaryDirectory() as name:
        for dynamic, label in (("none", "fixed sizes"), ("shape", "open sizes")):
            files = write_files(model, batch, side, dynamic, options.exporter, Path(name))
            runtimes: dict[str, Callable[[Tensor], Any]] = {}
            if is_installed("onnxruntime"):
                runtimes["ONNX Runtime"] = OnnxModel(files[0], options.threads)
            if is_installed("openvino"):
                runtimes["OpenVINO"] = openvino_model(files[1], options.threads)
            for runtime, call in runtimes.items():
                key = f"{runtime}, {label}"
                errors[key] = compare(model, call, [images]).error
                runs[key] = lambda call=call: call(images)
        if options.aoti:
            package = Package(options.aoti)
            package(images)
            runs["AOTInductor, open sizes"] = lambda: package(images)
        # wall time for all: the runtimes have threads of their own
        times = median_times(runs, options.rounds, "cpu", threads=0)
    rows = [
        {"runtime": key, "ms": times[key], "largest difference": errors.get(key)} for key in runs
    ]
    return {"batch": batch, "image size": side, "rows": rows}


def markdown(config: str, table: dict) -> str:
    """The table with ratios to PyTorch."""
    side, rows = table["image size"], table["rows"]
    lines = [
        f"internimage_{config}, batch {table['batch']}, {side} x {side}",
        "",
        "| runtime | ms | x PyTorch | largest difference |",
        "|---|---|---|---|",
    ]
    for row in rows:
        ratio = rows[0]["ms"] / row["ms"]
        error = row["largest difference"]
        difference = "" if row is rows[0] or error is None else f"{error:.1e}"
        lines.append(f"| {row['runtime']} | {row['ms']:.1f} | {ratio:.2f} | {difference} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="t_1k_224", help="configs/internimage_<this>.yaml")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--exporter", choices=onnx_export.EXPORTERS, default="auto")
    parser.add_argument("--aoti", metavar="FILE", help="package of export.py --aoti --dynamic")
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    facts = {**environment("cpu", options.threads), "clock": "wall time"}
    for package in ("onnxruntime", "openvino"):
        if is_installed(package):
            facts[package] = __import__(package).__version__
    print(", ".join(f"{key} {value}" for key, value in facts.items()), end="\n\n", flush=True)
    model = build_from_config(f"internimage_{options.config}", options.image_size).eval()
    tables = []
    for batch in options.batch:
        tables.append(bench(options, model, batch))
        print(markdown(options.config, tables[-1]), end="\n\n", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps({**facts, "tables": tables}, indent=1))


if __name__ == "__main__":
    main()
