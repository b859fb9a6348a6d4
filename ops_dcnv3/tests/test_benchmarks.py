"""The benchmarks compute what they claim to time, and their figures are consistent."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import geometry, random_arguments, with_gradients

from ops_dcnv3.functions import available_backends, dcnv3_fused, dcnv3_reference

PACKAGE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PACKAGE / "benchmarks"))

import bench_op  # noqa: E402
import measure  # noqa: E402
from grid_sample_baseline import grid_sample_dcnv3  # noqa: E402


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stride_h": 2, "stride_w": 3, "dilation_h": 2},
        {"kernel_h": 5, "pad_h": 2, "offset_scale": 0.7},
        {"remove_center": True, "group_channels": 5},
    ],
    ids=["3x3", "stride and dilation", "5x3", "remove_center"],
)
def test_the_baseline_is_the_same_operator(changes):
    shape = geometry(**changes)
    arguments = random_arguments(shape)
    cotangent = torch.randn_like(dcnv3_reference(*arguments, shape))
    actual = with_gradients(lambda *t: grid_sample_dcnv3(*t, shape), arguments, cotangent)
    expected = with_gradients(lambda *t: dcnv3_reference(*t, shape), arguments, cotangent)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_every_candidate_computes_the_same():
    torch.manual_seed(0)
    layer = bench_op.Layer(bench_op.SETS["tiny"][0], torch.float64, "cpu")
    expected = dcnv3_reference(layer.input, layer.offset, layer.mask, layer.geometry)
    fused = dcnv3_fused(layer.input, layer.logits, group=layer.shape.group)
    torch.testing.assert_close(fused, expected)
    backends = [name for name in ("cpp", "pytorch") if name in available_backends()]
    for entry in ("masks", "logits"):
        arguments, functions = layer.functions(entry, backends)
        for function in functions.values():
            torch.testing.assert_close(function(*arguments), expected)
        runs = [layer.candidates(entry, way, backends) for way in ("forward", "backward")]
        for run in runs[0].values():
            torch.testing.assert_close(run(), expected)
        gradients = [run() for run in runs[1].values()]
        for gradient in gradients[1:]:
            torch.testing.assert_close(gradient, gradients[0])


def test_limits_count_what_the_operator_touches():
    layer = bench_op.Layer(bench_op.Shape(1, 6, 5, 32, 2), torch.float32, "cpu")
    pixels = 6 * 5
    assert layer.touched_bytes("forward") == pixels * 4 * (32 + 36 + 18 + 32)
    assert layer.touched_bytes("backward") == pixels * 4 * (2 * (32 + 36 + 18) + 32)
    assert layer.loads("forward", 64) == (pixels * 2 * 9, 1, 0)
    assert layer.loads("forward", 32) == (pixels * 2 * 9, 2, 0)
    assert layer.loads("backward", 64) == (pixels * 2 * 9, 1, 1)
    wide = bench_op.Layer(bench_op.Shape(1, 6, 5, 40, 2), torch.bfloat16, "cpu")
    assert wide.loads("backward", 32) == (pixels * 2 * 9 * 2, 1, 2)


@pytest.mark.skipif(not measure.LoadLoop().available, reason="needs a C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("vector_bytes", [16, 32, 64])
def test_there_is_a_load_loop_for_every_dtype(dtype, direction, vector_bytes):
    layer = bench_op.Layer(bench_op.Shape(1, 2, 2, 32, 2), dtype, "cpu")
    loop = measure.LoadLoop()
    loop.run(*layer.loads(direction, vector_bytes))
    with pytest.raises(ValueError, match="no load loop for 3 and 0"):
        loop.run(1, 3, 0)


def test_memory_of_a_known_function():
    def run():
        temporary = torch.zeros(1 << 20)  # 4 MiB, held while the result is made
        return temporary + 1

    assert measure.peak_extra_bytes(run, "cpu") == pytest.approx(2 * 4 * 2**20, rel=1e-3)


def test_candidates_take_turns():
    calls = []
    candidates = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = measure.median_times(candidates, 3, "cpu", 1, sample_ms=0)
    assert "".join(calls) == "aabb" + 3 * "aabb" and set(times) == {"a", "b"}


def test_quick_run(tmp_path):
    """From the command line, with a result that another program can read."""
    target = tmp_path / "result.json"
    result = subprocess.run(
        [sys.executable, PACKAGE / "benchmarks" / "bench_op.py", "--quick", "--json", target],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "geometric mean" in result.stdout and "peak extra memory" in result.stdout
    written = json.loads(target.read_text())
    assert {"date", "processor", "torch", "threads", "dtype", "load average"} <= set(
        written["environment"]
    )
    kinds = [(table["entry"], table["direction"]) for table in written["tables"]]
    assert kinds == [(e, d) for e in ("masks", "logits") for d in ("forward", "backward")]
    for table in written["tables"]:
        (row,) = table["rows"]
        times, limit = row["times_ms"], max(row["limits_ms"].values())
        assert times["grid_sample"] > 0 and row["ratio"]["grid_sample"] == 1
        for name, time in times.items():
            assert row["ratio"][name] == pytest.approx(times["grid_sample"] / time)
            assert row["of_limit"][name] == pytest.approx(limit / time)
            assert row["of_copy"][name] == pytest.approx(row["limits_ms"]["copy"] / time)
            assert table["geometric_mean"]["ratio"][name] == pytest.approx(row["ratio"][name])
        assert min(row["peak_mib"].values()) > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--backends", "cudnn"], "unknown backend 'cudnn'"),
        (["--backends", "cuda"], "runs on cuda tensors, got a cpu tensor"),
        (["--shapes", "t999"], "invalid choice"),
    ],
)
def test_wrong_options(arguments, message, capsys):
    with pytest.raises(SystemExit):
        bench_op.parse(arguments)
    assert message in capsys.readouterr().err
