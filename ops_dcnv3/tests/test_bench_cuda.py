"""The GPU benchmark, as far as a machine without a GPU can run it: its checks, rows and tables."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import geometry, random_arguments

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import bench_cuda  # noqa: E402
import bench_op  # noqa: E402


def test_checks_find_nothing_wrong_with_a_right_backend():
    torch.manual_seed(0)
    assert bench_cuda.check(["pytorch"], "cpu", quick=True) == []


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_checks_find_a_wrong_backend(monkeypatch, factor):
    right = bench_cuda.dcnv3
    monkeypatch.setattr(
        bench_cuda, "dcnv3", lambda x, *t, **options: right(factor * x, *t, **options)
    )
    shape = geometry()
    x, offset, mask = random_arguments(shape)
    arguments = ("a case", shape, [x, offset, mask], "float32", ["pytorch"], "cpu")
    problems = bench_cuda.check_case(*arguments)
    assert {problem.tensor for problem in problems} >= {"out", "grad_input", "grad_mask"}
    assert all("dcnv3, float32, a case" in problem.what for problem in problems)


def test_rows_and_table():
    layer = bench_op.Layer(bench_op.SETS["tiny"][0], torch.float32, "cpu")

    class Plain:
        forward = staticmethod(lambda x, offset, mask, group: x.clone())
        backward = staticmethod(lambda top, x, offset, mask, group: top.clone())

    for direction in ("forward", "backward"):
        row = bench_cuda.bench(layer, direction, ["pytorch"], Plain, "cpu", 1e6, 2)
        names = ["grid_sample", "pytorch", "softmax + grid_sample", "plain"]
        assert [name for name in row["times_ms"] if "fused" not in name] == names
        assert row["floor_ms"] == layer.touched_bytes(direction) / 1e6
        for name, time in row["times_ms"].items():
            assert row["of_floor"][name] == pytest.approx(row["floor_ms"] / time)
        lines = bench_cuda.table([row, row]).splitlines()
        assert len({line.count("|") for line in lines}) == 1
        assert str(layer.shape) in lines[2] and lines[-3].startswith("| times grid_sample | | 1.0x")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    script = BENCHMARKS / "bench_cuda.py"
    result = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.endswith("needs a GPU that PyTorch can use; none is visible\n")
