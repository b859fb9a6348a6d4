"""Times every backend of DCNv3 against plain PyTorch on the shapes of InternImage-T at 224.

    python ops_dcnv3/benchmarks/bench_op.py [--threads 1] [--batch 1 8] [--rounds 15] [--json FILE]

The candidates take turns within one run and the medians' ratios are what counts: absolute times
vary with the machine's load. The limit is a copy of the bytes that the operator has to touch,
measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import torch

from ops_dcnv3.functions import available_backends, dcnv3

STAGES = [(56, 64, 4), (28, 128, 8), (14, 256, 16), (7, 512, 32)]  # side, channels, group


def arguments(batch: int, side: int, channels: int, group: int, dtype: torch.dtype) -> list:
    """Input, offset and softmaxed mask of one layer."""
    shape = (batch, side, side)
    mask = torch.randn(*shape, group, 9).softmax(-1).flatten(-2)
    tensors = [torch.randn(*shape, channels), torch.randn(*shape, group * 18), mask]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def median_times(candidates: dict, rounds: int) -> dict[str, float]:
    """Milliseconds of each candidate, measured in turns."""
    times = {name: [] for name in candidates}
    for _ in range(rounds + 2):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values[2:]) for name, values in times.items()}


def copy_limit(tensors: list):
    """Reads every tensor and writes as many bytes as the last one holds, once."""
    source = torch.cat([tensor.detach().flatten() for tensor in tensors])
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def bench(batch: int, stage: tuple, backends: list[str], dtype: torch.dtype, rounds: int) -> dict:
    """Forward and backward of one shape."""
    side, channels, group = stage
    tensors = arguments(batch, side, channels, group, dtype)
    outputs = {name: dcnv3(*tensors, group=group, backend=name) for name in backends}
    cotangent = torch.randn_like(outputs[backends[0]])

    def forward(name: str):
        with torch.no_grad():
            dcnv3(*tensors, group=group, backend=name)

    def backward(name: str):
        torch.autograd.grad(outputs[name], tensors, cotangent, retain_graph=True)

    rows = {}
    for direction, run, touched in (
        ("forward", forward, [*tensors, cotangent]),
        ("backward", backward, [*tensors, cotangent, *tensors]),
    ):
        candidates = {name: (lambda name=name: run(name)) for name in backends}  # noqa: B023
        half = [tensor.flatten()[: tensor.numel() // 2] for tensor in touched]
        candidates["limit"] = copy_limit(half)  # copying half the bytes touches them all
        rows[direction] = median_times(candidates, rounds)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float64"])
    parser.add_argument("--json", metavar="FILE", help="also write the times here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    backends = [name for name in available_backends() if name != "cuda"]
    print(
        f"{platform.machine()}, torch {torch.__version__}, {options.dtype}, "
        f"{options.threads} thread(s); milliseconds, medians of {options.rounds}"
    )
    print("| shape | direction | " + " | ".join(backends) + " | limit | times faster | of limit |")
    print("|---" * (len(backends) + 5) + "|")
    results = []
    for batch in options.batch:
        for stage in STAGES:
            rows = bench(batch, stage, backends, getattr(torch, options.dtype), options.rounds)
            for direction, times in rows.items():
                best = times[backends[0]]
                cells = [f"{times[name]:.2f}" for name in (*backends, "limit")]
                shape = f"{batch} x {stage[0]} x {stage[0]} x {stage[1]}, group {stage[2]}"
                ratio, share = times["pytorch"] / best, times["limit"] / best
                print(
                    f"| {shape} | {direction} | " + " | ".join(cells),
                    f"| {ratio:.1f} | {share:.2f} |",
                    flush=True,
                )
                results.append({"batch": batch, "stage": stage, "direction": direction, **times})
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
