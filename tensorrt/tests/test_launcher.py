"""The launcher: sizes, checks, and its call of the operator's CUDA kernel, emulated on the CPU.

Needs neither TensorRT nor CUDA.
"""

import ctypes
import itertools
import shutil
import subprocess

import pytest
import torch
from conftest import CSRC, PLUGIN, needs_gxx
from harness import TYPES, attributes, check, expected, geometry, random_arguments

INTEGERS = [f"{name}_{axis}" for name in ("kernel", "stride", "pad", "dilation") for axis in "hw"]
INTEGERS += ["group", "group_channels", "remove_center"]


class Arguments(ctypes.Structure):
    """`trt_dcnv3::Arguments`."""

    _fields_ = (*[(name, ctypes.c_int32) for name in INTEGERS], ("offset_scale", ctypes.c_float))


@pytest.fixture(scope="module")
def launcher(launcher_library):
    library = ctypes.CDLL(str(launcher_library))
    library.test_problem.restype = library.trt_dcnv3_error.restype = ctypes.c_char_p
    library.test_output_size.restype = ctypes.c_int64
    library.test_output_size.argtypes = [ctypes.c_int64] * 5
    return library


def arguments_of(shape, **changes) -> Arguments:
    values = {**attributes(shape), **changes}
    del values["im2col_step"]
    return Arguments(**values)


def run(launcher, shape, tensors, code=0):
    """The launcher's output; `code` is what it has to return."""
    x = tensors[0]
    sizes = (x.shape[0], *shape.output_size(*x.shape[1:3]), x.shape[3])
    output = x.new_full(sizes, float("nan"))
    kind = list(TYPES.values()).index(x.dtype) if x.dtype in TYPES.values() else 7
    got = launcher.trt_dcnv3_forward(
        kind,
        ctypes.byref(arguments_of(shape)),
        *map(ctypes.c_int64, x.shape[:3]),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (*tensors, output)),
        None,
    )
    assert got == code
    return output


@needs_gxx
def test_output_sizes(launcher):
    """Every combination gives the size of the operator, and 0 where the kernel does not fit."""
    for size, kernel, stride, pad, dilation in itertools.product(
        range(1, 18), (1, 2, 3, 5, 7), (1, 2, 3, 4), (0, 1, 2, 3), (1, 2, 3)
    ):
        shape = geometry(
            kernel_h=kernel, stride_h=stride, pad_h=pad, dilation_h=dilation, kernel_w=1, pad_w=0
        )
        got = launcher.test_output_size(size, kernel, stride, pad, dilation)
        assert got == max(shape.output_size(size, 1)[0], 0), shape


@needs_gxx
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("remove_center", [False, True])
def test_against_pytorch(launcher, kernel, stride, remove_center):
    shape = geometry(
        kernel_h=kernel,
        kernel_w=kernel,
        stride_h=stride,
        stride_w=stride,
        pad_h=kernel // 2,
        pad_w=kernel // 2,
        offset_scale=2.0,
        remove_center=remove_center,
    )
    tensors = random_arguments(shape, 2, 9, 12, torch.float32)
    check(run(launcher, shape, tensors), expected(shape, tensors))


@needs_gxx
@pytest.mark.parametrize("dtype", TYPES.values())
@pytest.mark.parametrize("group_channels", [3, 8, 16, 40])
def test_types_and_channels(launcher, dtype, group_channels):
    """With vectors of channels and one by one; axes that differ in everything."""
    shape = geometry(
        group_channels=group_channels,
        kernel_h=5,
        pad_h=3,
        stride_w=2,
        dilation_h=2,
        dilation_w=3,
        pad_w=2,
        offset_scale=0.5,
    )
    tensors = random_arguments(shape, 1, 11, 10, dtype)
    check(run(launcher, shape, tensors), expected(shape, tensors))


@needs_gxx
def test_errors_and_empty_outputs(launcher):
    shape = geometry()
    tensors = random_arguments(shape, 1, 4, 4, torch.float64)
    assert run(launcher, shape, tensors, code=1).isnan().all()  # cudaErrorInvalidValue
    assert launcher.trt_dcnv3_error(1) == b"invalid argument"
    none = random_arguments(shape, 0, 4, 4, torch.float32)
    assert run(launcher, shape, none).shape == (0, 4, 4, 8)


@needs_gxx
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"stride_h": 0}, "stride_h must be at least 1 and less than 2^30, got 0"),
        ({"pad_w": -1}, "pad_w must be at least 0 and less than 2^30, got -1"),
        ({"group": 1 << 30}, "group must be at least 1 and less than 2^30, got 1073741824"),
        ({"remove_center": 2}, "remove_center must be 0 or 1, got 2"),
        (
            {"kernel_h": 1 << 15, "kernel_w": 1 << 15},
            "group * kernel_h * kernel_w * 2 must be less than 2^30, got 2 * 32768 * 32768 * 2",
        ),
        (
            {"group_channels": 1 << 29},
            "group * group_channels must be less than 2^30, got 2 * 536870912",
        ),
        ({"offset_scale": float("nan")}, "offset_scale must be finite, got nan"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_attributes(launcher, changes, message):
    problem = launcher.test_problem(ctypes.byref(arguments_of(geometry(), **changes)), None)
    assert problem.decode() == message


@needs_gxx
@pytest.mark.parametrize(
    ("position", "size", "message"),
    [
        (3, 9, "input must be (N, H, W, group * group_channels) = (2, 7, 6, 8), got (2, 7, 6, 9)"),
        (4, 3, "offset must be (N, Ho, Wo, group * P * 2) = (2, 4, 6, 36), got (3, 4, 6, 36)"),
        (5, 3, "offset must be (N, Ho, Wo, group * P * 2) = (2, 4, 6, 36), got (2, 3, 6, 36)"),
        (7, 32, "offset must be (N, Ho, Wo, group * P * 2) = (2, 4, 6, 36), got (2, 4, 6, 32)"),
        (11, 16, "mask must be (N, Ho, Wo, group * P) = (2, 4, 6, 18), got (2, 4, 6, 16)"),
        (
            14,
            5,
            "output must be (N, Ho, Wo, group * group_channels) = (2, 4, 6, 8), got (2, 4, 5, 8)",
        ),
        (1, -1, ""),  # open: nothing to compare with
        (0, -1, ""),
    ],
)
def test_shapes(launcher, position, size, message):
    sizes = [2, 7, 6, 8, 2, 4, 6, 36, 2, 4, 6, 18, 2, 4, 6, 8]
    sizes[position] = size
    shape = ctypes.byref(arguments_of(geometry(stride_h=2)))
    assert launcher.test_problem(shape, (ctypes.c_int64 * 16)(*sizes)).decode() == message


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_nvcc_compiles_the_launcher(architecture, tmp_path):
    """Without warnings, and without registers that are spilled to memory."""
    command = ["nvcc", "-std=c++17", "-O3", f"-arch={architecture}", "-cubin", "-Xptxas", "-v"]
    command += ["-Werror", "all-warnings", f"-I{CSRC}", PLUGIN / "trt_dcnv3_launcher.cu"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count(" 0 bytes spill stores") == 6  # three types, two paths
