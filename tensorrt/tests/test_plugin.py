"""The plugin through TensorRT's C++ interfaces, with the launcher emulated on the CPU.

Needs TensorRT's headers (see conftest.py), not TensorRT and not a GPU.
"""

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import CSRC, CUDA_HEADERS, HEADERS, HERE, NO_HEADERS, PLUGIN, each_version, needs_gxx
from harness import TYPES, Harness, check, create, expected, geometry, listed, random_arguments

FIELDS = (
    "kernel_h=3 kernel_w=5 stride_h=2 stride_w=1 pad_h=0 pad_w=4 dilation_h=3 dilation_w=2 group=6 "
    "group_channels=7 remove_center=1 offset_scale=0.5"
)
SHAPE = geometry(
    kernel_w=5,
    stride_h=2,
    pad_h=0,
    pad_w=4,
    dilation_h=3,
    dilation_w=2,
    group=6,
    group_channels=7,
    remove_center=True,
    offset_scale=0.5,
)


@each_version
def test_identity(drive, headers):
    assert drive(headers)(create(geometry()), "core") == [
        "ok",
        "TRTDCNv3 1 '' outputs=1 workspace=0 "
        "kinds=PLUGIN,PLUGIN_V3ONE_CORE,PLUGIN_V3ONE_BUILD,PLUGIN_V3ONE_RUNTIME",
    ]


@each_version
def test_copies_keep_every_attribute(drive, headers):
    """Serialised and made again, cloned, attached to a context."""
    cache = "3_5_2_1_0_4_3_2_6_7_1_0.5"
    commands = [create(SHAPE), "fields", "cache"]
    answers = ["ok", FIELDS, cache]
    for copy in ("recreate", "clone", "attach"):
        commands += [copy, "fields", "cache"]
        answers += ["ok", FIELDS, cache]
    assert drive(headers)(*commands) == answers


@each_version
def test_timing_cache_tells_nodes_apart(drive, headers):
    changes = [{name: value + 1} for name, value in geometry()._asdict().items()]
    changes.append({"offset_scale": 1.0000001})
    others = [geometry(**change) for change in (*changes, {})]
    commands = [line for shape in others for line in (create(shape), "cache")]
    ids = drive(headers)(*commands)[1::2]
    assert len(set(ids)) == len(others)


@each_version
def test_attributes_of_a_node(drive, headers):
    """All names are asked for; 64-bit integers are taken; old files lack remove_center."""
    harness = drive(headers)
    names = [field.split("=")[0] for field in FIELDS.split()]
    assert harness("names") == [" ".join([*names, "im2col_step"])]
    large = create(geometry(), group="2L", im2col_step=None, remove_center=None)
    assert harness(large, "fields")[1].endswith(
        "group=2 group_channels=4 remove_center=0 offset_scale=1"
    )


@each_version
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": None}, "attribute group is missing"),
        ({"offset_scale": None}, "attribute offset_scale is missing"),
        ({"softmax": 1}, "unknown attribute softmax; there are offset_scale, kernel_h, "),
        ({"stride_h": 0}, "stride_h must be at least 1 and less than 2^30, got 0"),
        ({"pad_h": 0.5}, "attribute pad_h must be an integer from 0 to 2^30 - 1, got 0.500000"),
        ({"group": f"{1 << 40}L"}, "attribute group must be an integer from 0 to 2^30 - 1, got 1"),
        ({"kernel_w": "wide"}, "attribute kernel_w must be one number, got type 6 and length 4"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refused_attributes(drive, headers, changes, message):
    harness = drive(headers)
    assert harness(create(geometry(), **changes)) == ["refused"]
    assert harness.complaints.startswith(f"TRTDCNv3: node: {message}")


@each_version
def test_output_shapes(drive, headers):
    """As the operator's, for all strides; what is open before the engine runs stays open."""
    commands, answers = [], []
    for size, kernel, stride, pad, dilation in itertools.product(
        (7, 8, 14, 25), (1, 3, 4, 5), (1, 2, 3), (0, 1, 2), (1, 2)
    ):
        shape = geometry(
            kernel_h=kernel,
            kernel_w=3,
            stride_h=stride,
            stride_w=2,
            pad_h=pad,
            dilation_h=dilation,
        )
        height, width = (max(side, 0) for side in shape.output_size(size, size + 1))
        for mark in ("", "?"):
            commands += [create(shape), f"shapes {mark}2 {mark}{size} {mark}{size + 1} 8"]
            answers += ["ok", f"{mark}2 {mark}{height} {mark}{width} 8"]
    assert drive(headers)(*commands) == answers


@each_version
def test_formats(drive, headers):
    """One type for all tensors of a node, linear: (N, H, W, C) has its channels last as it is."""
    accepted = " ".join(",".join([f"{name}:0"] * 4) for name in TYPES)
    assert drive(headers)(create(geometry()), "formats") == ["ok", accepted]


@each_version
@pytest.mark.parametrize("name", ["configure", "change"])
def test_sizes_are_checked(drive, headers, name):
    shape = geometry(stride_w=2)
    tensors = random_arguments(shape, 2, 6, 9, TYPES["float"])
    sizes = listed(tensors, (2, *shape.output_size(6, 9), 8))
    wrong = sizes.replace(" 18 ", " 16 ")
    opened = " ".join("-1 -1 -1 " + channels for channels in sizes.split()[3::4])
    harness = drive(headers)
    commands = [f"{name} {line}" for line in (sizes, wrong, opened)]
    assert harness(create(shape), *commands) == ["ok", "ok", "refused", "ok"]
    assert harness.complaints == (
        "TRTDCNv3: mask must be (N, Ho, Wo, group * P) = (2, 6, 5, 18), got (2, 6, 5, 16)\n"
    )


@each_version
@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("changes", [{}, {"stride_h": 2, "stride_w": 3, "remove_center": True}])
def test_enqueue(drive, headers, tmp_path, changes, dtype):
    shape = geometry(**changes)
    tensors = random_arguments(shape, 2, 9, 7, dtype)
    check(drive(headers).enqueue(shape, tensors, tmp_path), expected(shape, tensors))


@pytest.mark.skipif(len(HEADERS) < 2, reason=f"{NO_HEADERS} (of two versions)")
def test_one_library_serves_other_versions(harness_of, emulated_plugin, tmp_path):
    """Built with the headers of one version of TensorRT, driven through those of another."""
    shape = geometry(stride_h=2)
    tensors = random_arguments(shape, 1, 6, 7, TYPES["half"])
    answers = set()
    for built, running in itertools.product(HEADERS, HEADERS):
        harness = Harness(harness_of(running), emulated_plugin(built))
        check(harness.enqueue(shape, tensors, tmp_path), expected(shape, tensors))
        lines = ("fields", "recreate", "clone", "attach", "cache", "core", "names", "formats")
        answers.add(tuple(harness(create(shape), *lines, "shapes ?1 ?6 ?7 8")))
    assert len(answers) == 1


@needs_gxx
@each_version
def test_registers_itself_in_mmdeploy(headers):
    """The variant for a library that others load, in the C++ that mmdeploy asks for."""
    command = ["g++", "-std=c++14", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    command += ["-DTRT_DCNV3_REGISTER", "-isystem", headers, "-isystem", CUDA_HEADERS]
    subprocess.run([*command, PLUGIN / "trt_dcnv3.cpp"], check=True)


@needs_gxx
@pytest.mark.skipif(not HEADERS, reason=NO_HEADERS)
def test_files_that_mmdeploy_needs(tmp_path):
    """The README's copy compiles by itself: no other file of this repository is included."""
    patterns = re.findall(r"ops_dcnv3/csrc/(\S+)", (PLUGIN / "README.md").read_text())
    assert len(patterns) == 2
    for file in (*PLUGIN.glob("trt_*"), *(f for name in patterns for f in CSRC.glob(name))):
        shutil.copy(file, tmp_path)
    flags = ["-std=c++17", "-fsyntax-only", "-w", "-isystem", HEADERS[0], "-isystem", CUDA_HEADERS]
    subprocess.run(["g++", *flags, tmp_path / "trt_dcnv3.cpp"], check=True)
    torch_headers = Path(torch.__file__).parent / "include"
    emulated = [f"-I{HERE / 'emulated'}", "-isystem", torch_headers, "-x", "c++"]
    source = tmp_path / "trt_dcnv3_launcher.cu"
    subprocess.run(["g++", *flags[:3], *emulated, source], check=True)
