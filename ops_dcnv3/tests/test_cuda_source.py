"""The CUDA kernels' source, run on the CPU: indexing, synchronisation, arithmetic, determinism.

`cuda_emulation.h` runs the threads of a block in random order between the points where they have to
wait for each other. What only a GPU can show (launches, atomics in parallel, the memory model) is
in the tests marked gpu.
"""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import CASES, GRADIENTS, geometry, random_arguments

from ops_dcnv3.functions import dcnv3_backward_reference, dcnv3_reference
from ops_dcnv3.functions.reference import (
    dcnv3_fused_backward_reference,
    dcnv3_fused_reference,
    join_offset_mask,
)

HERE = Path(__file__).parent
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


class Geometry(ctypes.Structure):
    """`dcnv3::Geometry` of csrc/dcnv3_core.h."""

    _fields_ = (
        *[(name, ctypes.c_int64) for name in ("batch", "height", "width", "out_h", "out_w")],
        *[(name, ctypes.c_int64) for name in geometry()._fields[:10]],
        ("offset_scale", ctypes.c_double),
        ("remove_center", ctypes.c_bool),
    )


class PointLayout(ctypes.Structure):
    """`dcnv3::PointLayout` of csrc/dcnv3_core.h."""

    _fields_ = (
        *[(f"{name}_{of}", ctypes.c_int64) for name in ("offset", "mask") for of in "pg"],
        ("softmax", ctypes.c_bool),
    )


class Call(ctypes.Structure):
    """`Call` of cuda_on_cpu.cpp."""

    _fields_ = (
        ("geometry", Geometry),
        ("layout", PointLayout),
        *[(name, ctypes.c_int64) for name in ("type", "seed", "deterministic", "processors")],
    )


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    library = tmp_path_factory.mktemp("cuda") / "cuda_on_cpu.so"
    # _FORTIFY_SOURCE, which some systems switch on, forbids jumps between the fibers' stacks.
    command = ["g++", "-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra", "-Werror"]
    command += ["-Wno-attributes", "-Wno-unknown-pragmas", "-shared", "-fPIC", "-o", library]
    headers = Path(torch.__file__).parent / "include"
    subprocess.run([*command, "-isystem", headers, HERE / "cuda_on_cpu.cpp"], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.input_gradient.restype = ctypes.c_bool
    return loaded


def pointer(tensor, elements=0):
    return ctypes.c_void_p(tensor.data_ptr() + elements * tensor.element_size())


def misaligned(tensor):
    """The same values one element further on than the allocator puts them."""
    storage = tensor.new_empty(tensor.numel() + 1)
    return storage[1:].view(tensor.shape).copy_(tensor)


class Points:
    """Offsets and masks as the kernels get them, and the like for their gradients."""

    def __init__(self, shape, offset, mask, order="separate", softmax=False, padding=0):
        group, points = shape.group, shape.points
        if order == "separate":
            self.tensors, self.mask_start = [offset, mask], 0
            self.layout = PointLayout(2 * group * points, 2 * points, group * points, points)
            return
        interleaved, last = order == "interleaved", 3 * group * points + padding
        joined = join_offset_mask(offset, mask, shape, interleaved, last)
        joined[..., last - padding :] = float("nan")  # never read
        self.tensors = [joined.contiguous()]
        self.mask_start = 2 * points * (1 if interleaved else group)
        steps = (3 * points, 3 * points) if interleaved else (2 * points, points)
        self.layout = PointLayout(last, steps[0], last, steps[1], softmax)

    def pointers(self, tensors):
        if len(tensors) == 2:
            return [pointer(tensor) for tensor in tensors]
        return [pointer(tensors[0]), pointer(tensors[0], self.mask_start)]


def run(kernels, shape, x, points, cotangent, seed=0, deterministic=False, processors=1 << 20):
    """Output and gradients from the emulated kernels; many processors mean tiles, not planes."""
    out_h, out_w = shape.output_size(*x.shape[1:3])
    call = ctypes.byref(
        Call(
            Geometry(*x.shape[:3], out_h, out_w, *shape),
            points.layout,
            DTYPES.index(x.dtype),
            seed,
            deterministic,
            processors,
        )
    )
    tensors = points.pointers(points.tensors)
    nan = float("nan")
    output = x.new_full((x.shape[0], out_h, out_w, x.shape[3]), nan)
    kernels.forward(call, pointer(x), *tensors, pointer(output))

    by_points = [torch.full_like(tensor, nan) for tensor in points.tensors]
    kernels.point_gradients(
        call, pointer(cotangent), pointer(x), *tensors, *points.pointers(by_points)
    )
    sums = torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32))
    by_input = torch.full_like(x, nan)
    owned = kernels.input_gradient(
        call, pointer(cotangent), *tensors, pointer(sums), pointer(by_input)
    )
    assert owned or not deterministic
    return [output, by_input if owned else sums.to(x.dtype), *by_points]


def compare(kernels, shape, arguments, dtype=torch.float64, shift=False, **options):
    """The kernels with separate tensors against the reference in float64."""
    arguments = [tensor.to(dtype) for tensor in arguments]
    exact = [tensor.double() for tensor in arguments]
    expected = dcnv3_reference(*exact, shape)
    cotangent = torch.randn_like(expected).to(dtype).contiguous()
    gradients = dcnv3_backward_reference(cotangent.double(), *exact, shape)
    if shift:
        arguments, cotangent = [misaligned(t) for t in arguments], misaligned(cotangent)
    x, offset, mask = arguments
    actual = run(kernels, shape, x, Points(shape, offset, mask), cotangent, **options)
    check(actual, [expected, *gradients], dtype)


def check(actual, expected, dtype):
    tolerance = {torch.float64: 1e-9, torch.float32: 2e-5}.get(dtype, torch.finfo(dtype).eps)
    scale = 1e-9 if dtype == torch.float64 else 3e-5
    for name, one, other in zip(("out", *GRADIENTS), actual, expected):
        torch.testing.assert_close(
            one.double(),
            other.double(),
            rtol=tolerance,
            atol=scale * (1.0 + float(other.abs().sum()) / max(other.numel(), 1)),
            msg=lambda message, name=name: f"{name}: {message}",
        )


@needs_gxx
@pytest.mark.parametrize("case", CASES)
def test_cases(kernels, case):
    x, offset, mask = case.arguments()
    points = Points(case.geometry, offset, mask)
    for processors in (1, 1 << 20):  # one region per image, or tiles
        actual = run(
            kernels,
            case.geometry,
            x,
            points,
            case.tensor("grad_output").contiguous(),
            processors=processors,
        )
        check(actual, list(case.expected().values()), torch.float64)


@needs_gxx
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_channels", [1, 3, 8, 16, 24, 32, 40])
def test_channels_and_types(kernels, dtype, group_channels):
    shape = geometry(group_channels=group_channels, group=3)
    compare(kernels, shape, random_arguments(shape, 3, 9, 11), dtype)


@needs_gxx
@pytest.mark.parametrize("group_channels", [71, 144, 520])
def test_many_channels(kernels, group_channels):
    """More than 32 lanes can hold: parts of a group forward, several turns backward."""
    shape = geometry(group_channels=group_channels, group=1)
    for dtype in (torch.float64, torch.float16):
        compare(kernels, shape, random_arguments(shape, 1, 4, 5), dtype)


@needs_gxx
@pytest.mark.parametrize(
    "changes",
    [
        {"kernel_h": 5, "kernel_w": 3, "pad_h": 2},
        {"kernel_h": 7, "kernel_w": 7, "pad_h": 3, "pad_w": 3, "dilation_h": 2},
        {"kernel_h": 2, "kernel_w": 4, "remove_center": True},
        {"kernel_h": 1, "kernel_w": 1, "remove_center": True, "pad_h": 0, "pad_w": 0},
        {"stride_h": 2, "stride_w": 3},
        {"dilation_h": 3, "dilation_w": 2, "pad_h": 3, "pad_w": 2, "offset_scale": 0.5},
        {"offset_scale": 2.0, "remove_center": True},
        {"offset_scale": -1.5},
        {"pad_h": 9, "pad_w": 0},
    ],
    ids=lambda changes: "-".join(f"{name}{value}" for name, value in changes.items()),
)
def test_geometries(kernels, changes):
    shape = geometry(group_channels=8, **changes)
    compare(kernels, shape, random_arguments(shape, 2, 19, 21), torch.float32)


@needs_gxx
@pytest.mark.parametrize("deterministic", [False, True])
def test_points_far_from_their_tile(kernels, deterministic):
    """Sums that no shared memory holds: other tiles, and images larger than a region."""
    shape = geometry(group_channels=16)
    x, offset, mask = random_arguments(shape, 1, 41, 26)
    compare(kernels, shape, [x, 12 * offset, mask], torch.float32, deterministic=deterministic)


@needs_gxx
def test_a_reach_that_no_region_covers(kernels):
    shape = geometry(group_channels=16, kernel_h=3, dilation_h=40, pad_h=40, stride_w=5)
    compare(kernels, shape, random_arguments(shape, 1, 50, 37), torch.float32)


@needs_gxx
@pytest.mark.parametrize("dtype", DTYPES)
def test_single_channels_with_64_bit_indices(kernels, dtype):
    """What unaligned addresses get is also what images beyond 2^30 elements get."""
    shape = geometry(group_channels=16)
    compare(kernels, shape, random_arguments(shape, 1, 9, 8), dtype, shift=True)


@needs_gxx
@pytest.mark.parametrize("order", ["planar", "interleaved"])
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    "changes",
    [{"group_channels": 16}, {"kernel_h": 7, "kernel_w": 7, "pad_h": 3, "pad_w": 3}, {"group": 3}],
    ids=["vectors", "many points", "odd"],
)
def test_one_tensor(kernels, order, softmax, padding, changes):
    shape = geometry(**changes)
    x, offset, mask = random_arguments(shape, 2, 6, 9)
    logits = 3 * torch.randn_like(mask)
    points = Points(shape, offset, logits, order, softmax, padding)
    fused = points.tensors[0]
    options = (shape, softmax, order == "interleaved")
    expected = dcnv3_fused_reference(x, fused, *options)
    cotangent = torch.randn_like(expected).contiguous()
    gradients = dcnv3_fused_backward_reference(cotangent, x, fused, *options)
    for processors in (1, 1 << 20):
        actual = run(kernels, shape, x, points, cotangent, processors=processors)
        written = actual[2][..., : fused.shape[-1] - padding]
        assert actual[2][..., fused.shape[-1] - padding :].isnan().all()  # nor written
        expected_points = gradients[1][..., : fused.shape[-1] - padding]
        check([*actual[:2], written], [expected, gradients[0], expected_points], torch.float64)


@needs_gxx
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group_channels", [5, 16])
def test_deterministic_whatever_the_order(kernels, dtype, group_channels):
    """Bitwise the same for other orders of blocks and threads; the plain mode is not."""
    shape = geometry(group_channels=group_channels, kernel_w=2)
    x, offset, mask = (t.to(dtype) for t in random_arguments(shape, 1, 23, 21))
    points = Points(shape, 3 * offset, mask)
    cotangent = torch.randn(1, *shape.output_size(23, 21), x.shape[3]).to(dtype)
    runs = [
        run(kernels, shape, x, points, cotangent, seed, deterministic=True) for seed in (1, 2, 3)
    ]
    for other in runs[1:]:
        for name, one, two in zip(("out", *GRADIENTS), runs[0], other):
            assert torch.equal(one, two), name
    if dtype == torch.float32:
        loose = [run(kernels, shape, x, points, cotangent, seed)[1] for seed in (1, 2)]
        assert not torch.equal(*loose)


@needs_gxx
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("group_channels", [3, 16])
def test_unsampled_pixels_do_not_leak(kernels, deterministic, group_channels):
    """Inf and NaN reach only what samples them: the reference says which values are finite."""
    shape = geometry(group_channels=group_channels)
    x, offset, mask = random_arguments(shape, 1, 12, 13)
    for row, column in ((0, 0), (0, 12), (11, 0), (11, 12), (5, 6)):
        x[0, row, column] = float("inf")
    offset[0, 3, 3, :7] = float("nan")
    offset[0, 2, 2] *= 100
    mask[0, 2, 2] = float("inf")  # of points outside the image, mostly
    expected = dcnv3_reference(x, offset, mask, shape)
    cotangent = torch.randn_like(expected).contiguous()
    cotangent[0, 0, 0] = cotangent[0, 7, 7] = float("nan")
    gradients = dcnv3_backward_reference(cotangent, x, offset, mask, shape)
    actual = run(
        kernels,
        shape,
        x,
        Points(shape, offset, mask),
        cotangent,
        deterministic=deterministic,
    )
    for name, one, other in zip(("out", *GRADIENTS), actual, [expected, *gradients]):
        if name != "grad_input":
            assert torch.equal(one.isfinite(), other.isfinite()), name
        finite = other.isfinite()
        torch.testing.assert_close(one[finite], other[finite], rtol=1e-9, atol=1e-9)
    # The reference multiplies NaN by 0 at pixels that it does not sample; the kernels do not.
    bad = (~cotangent.isfinite()).double()
    bad[0, 2, 2] = 1
    sampled = dcnv3_backward_reference(bad, x, offset, torch.ones_like(mask), shape)[0] != 0
    assert torch.equal(~actual[1].isfinite(), sampled)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_nvcc_compiles_the_kernels(architecture, tmp_path):
    """Every storage type, without warnings and (almost) without spilling registers to memory.

    The flags that PyTorch adds forbid implicit conversions of half types.
    """
    command = ["nvcc", "-std=c++17", "-O3", f"-arch={architecture}", "-cubin", "-Xptxas", "-v"]
    command += ["-Werror", "all-warnings", "-D__CUDA_NO_HALF_OPERATORS__"]
    command += ["-D__CUDA_NO_HALF_CONVERSIONS__", "-D__CUDA_NO_BFLOAT16_CONVERSIONS__"]
    source = HERE.parent / "csrc" / "dcnv3_cuda_kernels.cu"
    result = subprocess.run([*command, source], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    spills = re.findall(r"(\d+) bytes spill stores", result.stderr)
    assert len(spills) == 24  # three kernels, four types, two paths
    assert max(map(int, spills)) <= 64  # 0 with nvcc 13.0
