"""The CUDA kernels' source, run on the CPU thread by thread: indexing and arithmetic.

What only a GPU can show (launches, atomics in parallel, half precision) is in the tests marked gpu.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import CASES, GRADIENTS, geometry, random_arguments

from ops_dcnv3.functions import dcnv3_backward_reference, dcnv3_reference

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


class GeometryStruct(ctypes.Structure):
    """`dcnv3::Geometry` of csrc/dcnv3_core.h."""

    _fields_ = (
        *[(name, ctypes.c_int64) for name in ("batch", "height", "width", "out_h", "out_w")],
        *[(name, ctypes.c_int64) for name in geometry()._fields[:10]],
        ("offset_scale", ctypes.c_double),
        ("remove_center", ctypes.c_bool),
    )


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    library = tmp_path_factory.mktemp("cuda") / "cuda_on_cpu.so"
    source = Path(__file__).with_name("cuda_on_cpu.cpp")
    subprocess.run(
        ["g++", "-std=c++17", "-O1", "-Wno-attributes", "-shared", "-fPIC", "-o", library, source],
        check=True,
    )
    return ctypes.CDLL(str(library))


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


def run(kernels, arguments, shape, cotangent, blocks):
    x, offset, mask, cotangent = (tensor.contiguous() for tensor in (*arguments, cotangent))
    out_h, out_w = shape.output_size(*x.shape[1:3])
    struct = GeometryStruct(*x.shape[:3], out_h, out_w, *shape)
    output = torch.full((x.shape[0], out_h, out_w, x.shape[3]), float("nan"), dtype=torch.float64)
    kernels.forward(
        ctypes.byref(struct), ctypes.c_int64(blocks), *map(pointer, (x, offset, mask, output))
    )
    gradients = (torch.zeros_like(x), torch.full_like(offset, 9.0), torch.full_like(mask, 9.0))
    kernels.backward(
        ctypes.byref(struct),
        ctypes.c_int64(blocks),
        *map(pointer, (cotangent, x, offset, mask, *gradients)),
    )
    return {"out": output, **dict(zip(GRADIENTS, gradients))}


@pytest.mark.parametrize("case", CASES)
def test_cases(kernels, case):
    actual = run(kernels, case.arguments(), case.geometry, case.tensor("grad_output"), 4)
    torch.testing.assert_close(actual, case.expected(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("group_channels", [1, 3, 8, 20])
@pytest.mark.parametrize("blocks", [1, 3])
def test_threads_that_take_several_items(kernels, group_channels, blocks):
    shape = geometry(group_channels=group_channels, stride_w=2)
    arguments = random_arguments(shape, 3, 9, 8)
    expected = dcnv3_reference(*arguments, shape)
    cotangent = torch.randn_like(expected)
    gradients = dcnv3_backward_reference(cotangent, *arguments, shape)
    torch.testing.assert_close(
        run(kernels, arguments, shape, cotangent, blocks),
        {"out": expected, **dict(zip(GRADIENTS, gradients))},
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_nvcc_compiles_the_kernels(architecture, tmp_path):
    """Every storage type, without warnings; the PyTorch side is compiled when it is installed."""
    header = Path(__file__).parents[1] / "csrc" / "dcnv3_cuda_kernels.cuh"
    lines = ["#include <cuda_bf16.h>", "#include <cuda_fp16.h>", f'#include "{header}"']
    for kernel in ("forward", "backward"):
        for scalar, acc in (
            ("double", "double"),
            ("float", "float"),
            ("__half", "float"),
            ("__nv_bfloat16", "float"),
        ):
            name = f"dcnv3::{kernel}_kernel<{scalar}, {acc}>"
            lines.append(f"auto* {kernel}_{scalar} = &{name};")
    source = tmp_path / "kernels.cu"
    source.write_text("\n".join(lines) + "\n")
    result = subprocess.run(
        [
            "nvcc",
            "-std=c++17",
            f"-arch={architecture}",
            "-Werror",
            "all-warnings",
            "-cubin",
            source,
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
