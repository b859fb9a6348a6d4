"""The Triton backend: its kernels in the interpreter and compiled for a GPU, and its choice.

With a GPU the tests of every backend run on it too (BACKENDS in helpers.py).
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import geometry

from ops_dcnv3.functions import available_backends, backends, choose_backend, triton_backend
from ops_dcnv3.functions.triton_backend import choose_blocks

TESTS = Path(__file__).parent

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or backends.OLD_TORCH,
    reason="Triton 3 is not installed",
)

# Tests of every backend that are repeated in the interpreter, as pytest's -k expressions. The
# cases: plain, odd channels, stride, dilation, both paddings, kernels of any shape, one point,
# no centre, integer positions.
CASES = "c03 or c08 or c11 or c12 or c13 or c32 or c52 or c53 or d00 or d01 or d04 or d09"
INTERPRETED = {
    "cases": ("test_reference_cases.py", f"triton and test_float64 and ({CASES})"),
    "half": ("test_reference_cases.py", "triton and not float64 and (c31 or c53 or d08)"),
    "fused": ("test_fused.py", "triton and (not cases or c05 or c32 or d04 or d09)"),
    "properties": (
        "test_properties.py",
        "triton and not (gradcheck or batch_sizes or 1e or (channels and (16 or 32 or 64)))",
    ),
    "compile": ("test_torch_library.py", "triton and test_compile and dynamic"),
    "triton": ("triton_interpreted.py", ""),
}


@needs_triton
@pytest.mark.parametrize("selection", INTERPRETED)
def test_kernels_in_the_interpreter(selection):
    """In a process of their own: Triton reads the variable when the kernels are defined."""
    file, expression = INTERPRETED[selection]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("OPS_DCNV3_BACKEND", None)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", TESTS / file, "-k", expression, "-p", "no:cacheprovider"],
        cwd=TESTS.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr
    assert re.search(r"\d+ passed", result.stdout) and " skipped" not in result.stdout


# --- compiled for a GPU, without one --------------------------------------------------------------


def compile_kernel(name, dtype, capability, shape, softmax=False, wide=False):
    """PTX of one kernel, through to the GPU's machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ops_dcnv3.functions import triton_kernels

    kernel, language = getattr(triton_kernels, name), triton_kernels.tl
    blocks = choose_blocks(10**6, shape, dtype, name == "backward_kernel", False)
    axes = ("KERNEL_H", "KERNEL_W", "STRIDE_H", "STRIDE_W", "PAD_H", "PAD_W")
    axes += ("DILATION_H", "DILATION_W")
    constants = dict(zip(axes, shape[:8]))
    constants |= {"DEPTH": shape.group_channels, "SCALE": shape.offset_scale, "WIDE": wide}
    constants |= {"REMOVE_CENTER": int(shape.remove_center), "SOFTMAX": softmax}
    constants |= {"ACC": language.float64 if dtype == torch.float64 else language.float32}
    constants |= {"BLOCK_ROWS": blocks.rows, "BLOCK_CHANNELS": blocks.channels}
    if name == "backward_kernel":
        constants["BLOCK_POINTS"] = blocks.points
    storage = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    pointer = f"*{storage[str(dtype).removeprefix('torch.')]}"
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in triton_kernels.RUNTIME_SIZES:
            signature[argument] = "i64" if wide and argument == "rows" else "i32"
        else:
            summed = argument == "grad_input" and dtype != torch.float64
            signature[argument] = "*fp32" if summed else pointer
    places = {argument: (place,) for place, argument in enumerate(kernel.arg_names)}
    compiled = triton.compile(
        ASTSource(
            kernel,
            signature,
            {places[argument]: value for argument, value in constants.items()},
            {
                places[argument]: [["tt.divisibility", 16]]
                for argument, kind in signature.items()
                if kind.startswith("*")
            },
        ),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": blocks.num_warps},
    )
    assert compiled.asm["cubin"]
    return compiled.asm["ptx"]


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """`compile_kernel`, with nothing kept from earlier runs; skips where Triton cannot do it."""
    pytest.importorskip("triton")
    try:
        from triton.backends.nvidia import compiler  # noqa: F401
        from triton.compiler import ASTSource  # noqa: F401
    except ImportError as error:
        pytest.skip(f"this Triton does not compile without a GPU ({error})")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter does not compile")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return compile_kernel


KERNELS = pytest.mark.parametrize("name", ["forward_kernel", "backward_kernel"])
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)


@KERNELS
@DTYPES
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile(compiler, name, dtype, capability):
    """With vector loads, and vector additions where the GPU has them."""
    ptx = compiler(name, dtype, capability, geometry(group=4, group_channels=16))
    vector = "v2.b64" if dtype == torch.float64 else "v4.b32"
    assert f"ld.global.{vector}" in ptx
    if name == "backward_kernel" and dtype != torch.float64:
        assert ("add.v4.f32" in ptx) == (capability >= 90)
        assert "relaxed.add" in ptx


@KERNELS
@pytest.mark.parametrize(
    "changes, softmax, wide",
    [
        ({"group_channels": 16}, True, False),
        ({"group_channels": 16}, False, True),
        ({"group_channels": 130, "remove_center": True, "offset_scale": 0.7}, True, True),
        ({"group_channels": 1, "kernel_h": 1, "kernel_w": 1, "pad_h": 0, "pad_w": 0}, False, False),
        ({"group_channels": 3, "kernel_h": 7, "kernel_w": 5, "stride_w": 2}, True, False),
    ],
    ids=["softmax", "64-bit", "channel blocks", "one point", "7x5"],
)
def test_variants_compile(compiler, name, changes, softmax, wide):
    compiler(name, torch.float16, 90, geometry(**changes), softmax, wide)


# --- block sizes ----------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("depth", [1, 3, 16, 32, 64, 300])
@pytest.mark.parametrize("kernel", [1, 3, 7, 31])
def test_blocks_are_powers_of_two_and_small(dtype, backward, depth, kernel):
    shape = geometry(group_channels=depth, kernel_h=kernel, kernel_w=kernel)
    for rows in (1, 10**4, 10**7):
        blocks = choose_blocks(rows, shape, dtype, backward, False)
        for size in blocks:
            assert size >= 1 and size & (size - 1) == 0
        assert blocks.points >= shape.points
        assert blocks.rows * blocks.channels <= 2048 and blocks.rows * blocks.points <= 8192
        assert blocks.num_warps <= 4


# --- choice ---------------------------------------------------------------------------------------


@pytest.fixture
def gpu_without_extension(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("OPS_DCNV3_BACKEND", raising=False)
    monkeypatch.setattr(backends, "extension", None)
    monkeypatch.setattr(backends, "TRITON_INSTALLED", True)
    monkeypatch.setattr(backends, "OLD_TORCH", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return monkeypatch


def test_a_gpu_without_compiled_kernels_uses_triton(gpu_without_extension):
    assert choose_backend("cuda") == "triton"
    assert choose_backend("cpu") == "pytorch"
    assert available_backends() == ["triton", "pytorch"]
    with pytest.raises(ValueError, match="'triton' runs on cuda tensors, got a cpu tensor"):
        choose_backend("cpu", "triton")


def test_compiled_kernels_come_first(gpu_without_extension):
    class Extension:
        cuda_architectures = "9.0"

    gpu_without_extension.setattr(backends, "extension", Extension)
    assert choose_backend("cuda") == "cuda" and choose_backend("cuda", "triton") == "triton"
    assert available_backends() == ["cuda", "triton", "cpp", "pytorch"]


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("8.0;9.0", (8, 0), True),
        ("8.0;9.0", (8, 9), True),  # binary code of the same major version
        ("8.0;9.0", (7, 5), False),
        ("8.6", (8, 0), False),
        ("8.0;9.0", (10, 0), False),
        ("8.0;9.0+PTX", (12, 0), True),  # compiled by the driver
        ("9.0a", (9, 0), True),
        ("9.0a", (9, 1), False),
    ],
)
def test_kernels_for_other_gpus_are_not_chosen(
    gpu_without_extension, architectures, capability, runs
):
    class Extension:
        cuda_architectures = architectures

    gpu_without_extension.setattr(backends, "extension", Extension)
    gpu_without_extension.setattr(torch.cuda, "device_count", lambda: 1)
    gpu_without_extension.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    gpu_without_extension.setattr(torch.cuda, "get_device_name", lambda index: "Test GPU")
    backends._uncovered_gpu.cache_clear()
    try:
        assert backends.choose_backend("cuda") == ("cuda" if runs else "triton")
        if not runs:
            with pytest.raises(RuntimeError, match="compiled for GPUs of compute capability"):
                backends.choose_backend("cuda", "cuda")
    finally:
        backends._uncovered_gpu.cache_clear()


def test_without_triton_or_a_gpu(gpu_without_extension):
    gpu_without_extension.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="'triton' is not there: Triton needs a GPU"):
        choose_backend("cuda", "triton")
    gpu_without_extension.setattr(backends, "TRITON_INSTALLED", False)
    with pytest.raises(RuntimeError, match="'triton' is not there: .*pip install triton"):
        choose_backend("cuda", "triton")
    assert choose_backend("cuda") == "pytorch"


@pytest.mark.parametrize("name", ["dcnv3", "dcnv3_fused"])
@pytest.mark.parametrize("suffix", ["", "_backward"])
@pytest.mark.parametrize("has_triton", [True, False])
def test_operator_of_a_gpu_without_compiled_kernels(monkeypatch, name, suffix, has_triton):
    """It runs Triton where that works, and plain PyTorch elsewhere."""
    monkeypatch.setattr(triton_backend, "has_kernel", lambda backend: has_triton)
    kernels = triton_backend.registration.any_device_kernels
    for key in list(kernels):
        monkeypatch.setitem(kernels, key, lambda *a, key=key: (key, a))
    expected = f"{name}_triton{suffix}" if has_triton else name + suffix
    assert triton_backend._on_cuda(name + suffix)(1, 2) == (expected, (1, 2))
    if backends.extension is None or not backends.extension.cuda_architectures:
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        assert has_kernel(f"ops_dcnv3::{name}{suffix}", "CUDA")


def test_triton_kernels_are_loaded_by_their_first_call():
    code = "import sys, ops_dcnv3.modules; print([m for m in sys.modules if 'triton_kern' in m])"
    result = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert "ops_dcnv3" not in result.stdout and result.returncode == 0, result.stderr
