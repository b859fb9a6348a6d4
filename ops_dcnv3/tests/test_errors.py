"""Bad input: what was wrong, the values, and what to do."""

import pytest
import torch
from helpers import BACKENDS, device_of, geometry, random_arguments

from ops_dcnv3.functions import (
    DCNv3Function,
    available_backends,
    choose_backend,
    dcnv3,
    dcnv3_core_pytorch,
)
from ops_dcnv3.functions.dcnv3_func import _call
from ops_dcnv3.modules import DCNv3, DCNv3_pytorch


def arguments(**changes):
    x, offset, mask = random_arguments(geometry())
    tensors = {"input": x, "offset": offset, "mask": mask, **changes}
    return tensors["input"], tensors["offset"], tensors["mask"]


def tensor(*shape, dtype=torch.float64):
    return torch.zeros(shape, dtype=dtype)


WRONG_TENSORS = [
    ({"input": tensor(7, 6, 8)}, ValueError, r"input must have 4 dimensions.*got 3.*\(7, 6, 8\)"),
    ({"offset": tensor(2, 7, 36)}, ValueError, r"offset must have 4 dimensions, got 3"),
    ({"mask": tensor(2, 7, 6, 2, 9)}, ValueError, r"mask must have 4 dimensions, got 5"),
    ({"input": tensor(2, 7, 6, 10)}, ValueError, r"2 \* 4 = 8 channels, got shape \(2, 7, 6, 10\)"),
    ({"input": tensor(2, 8, 7, 6)}, ValueError, r"looks like NCHW: pass input\.permute"),
    ({"offset": tensor(2, 7, 6, 35)}, ValueError, r"offset must be .*\(2, 7, 6, 36\).*6, 35\)"),
    ({"offset": tensor(2, 6, 7, 36)}, ValueError, r"offset must be .*\(2, 7, 6, 36\).*7, 36\)"),
    ({"offset": tensor(1, 7, 6, 36)}, ValueError, r"offset must be .*\(2, 7, 6, 36\)"),
    ({"mask": tensor(2, 7, 6, 16)}, ValueError, r"mask must be .*\(2, 7, 6, 18\).*P = .* = 9"),
    ({"mask": tensor(2, 7, 5, 18)}, ValueError, r"mask must be .*\(2, 7, 6, 18\)"),
    (
        {"offset": tensor(2, 7, 6, 36, dtype=torch.float32)},
        TypeError,
        "one dtype, got torch.float64, torch.float32, torch.float64",
    ),
    ({"mask": tensor(2, 7, 6, 18, dtype=torch.float16)}, TypeError, r"\.to\(input\.dtype\)"),
    ({"input": tensor(2, 7, 6, 8, dtype=torch.int64)}, TypeError, "input must be float.*int64"),
    ({"mask": tensor(2, 7, 6, 18, dtype=torch.bool)}, TypeError, "mask must be float.*bool"),
    ({"offset": torch.zeros(2, 7, 6, 36, device="meta")}, ValueError, "offset is on meta and inp"),
    ({"input": tensor(2, 0, 6, 8)}, ValueError, "0 x 6 pixels .* has no output pixel"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("changes, error, message", WRONG_TENSORS)
def test_wrong_tensors(backend, changes, error, message):
    device = device_of(backend)
    moved = [t if t.is_meta else t.to(device) for t in arguments(**changes)]
    with pytest.raises(error, match=message):
        _call(*moved, geometry(), backend)


@pytest.mark.parametrize("changes, error, _", WRONG_TENSORS)
def test_the_operator_itself_refuses_wrong_tensors(changes, error, _):
    """Past the Python function too: nothing may read outside its tensors."""
    if changes.get("input") is not None and changes["input"].dtype == torch.int64:
        pytest.skip("dispatched to no kernel at all")
    with pytest.raises((error, RuntimeError)):
        torch.ops.ops_dcnv3.dcnv3(*arguments(**changes), *geometry())


WRONG_GEOMETRY = [
    ({"stride_h": -1}, "stride_h must be at least 1, got -1"),
    ({"stride_w": 0}, "stride_w must be at least 1, got 0"),
    ({"kernel_h": 0}, "kernel_h must be at least 1, got 0"),
    ({"dilation_w": -2}, "dilation_w must be at least 1, got -2"),
    ({"pad_h": -1}, "pad_h must be at least 0, got -1"),
    ({"group": 0}, "group must be at least 1, got 0"),
    ({"group_channels": -4}, "group_channels must be at least 1, got -4"),
    ({"kernel_h": 11}, "7 x 6 pixels with kernel 11 x 3.*no output pixel.*enlarge"),
]


@pytest.mark.parametrize("changes, message", WRONG_GEOMETRY)
def test_wrong_geometry(changes, message):
    for call in (dcnv3_core_pytorch, lambda *a: DCNv3Function.apply(*a[:-1], 256, a[-1])):
        with pytest.raises(ValueError, match=message):
            call(*arguments(), *geometry(**changes))
    with pytest.raises((ValueError, RuntimeError)):
        torch.ops.ops_dcnv3.dcnv3(*arguments(), *geometry(**changes))


@pytest.mark.skipif("cpp" not in available_backends(), reason="needs the C++ kernels")
@pytest.mark.parametrize(
    "channels, points, changes",
    [
        (2, 0, {"kernel_h": 2**32, "kernel_w": 2**32, "pad_h": 2**31, "pad_w": 2**31}),
        (0, 0, {"group": 2**32, "group_channels": 2**32}),
        (8, 18, {"pad_h": 2**63 - 1, "stride_h": 2**62}),
    ],
    ids=["points", "channels", "output size"],
)
def test_sizes_that_wrap_around_64_bits_are_refused(channels, points, changes):
    """Each of these products is small modulo 2^64, and the loops over its factors are not."""
    sizes = [tensor(1, 4, 4, last) for last in (channels, 2 * points, points)]
    shape = geometry(**{"group": 1, "group_channels": 2, **changes})
    with pytest.raises(ValueError, match=r"less than 2\^30, got kernel"):
        torch.ops.ops_dcnv3.dcnv3(*sizes, *shape)


def test_integers_are_refused_under_autocast_too():
    """Autocast converts floating-point tensors; an integer tensor is still a mistake."""
    x, offset, mask = (t.float() for t in arguments())
    with torch.autocast("cpu", torch.bfloat16):
        for call in (
            lambda *t: dcnv3(*t, group=2),
            lambda *t: torch.ops.ops_dcnv3.dcnv3(*t, *geometry()),
        ):
            with pytest.raises(TypeError, match="int64|Long"):
                call(x.long(), offset, mask)


def test_remove_center_has_fewer_points():
    with pytest.raises(ValueError, match=r"offset must be .*\(2, 7, 6, 32\).*P = .* = 8"):
        dcnv3(*arguments(), group=2, remove_center=True)


def test_channels_not_divisible_by_group():
    with pytest.raises(ValueError, match=r"multiple of group=3, got shape \(2, 7, 6, 8\)"):
        dcnv3(*arguments(), group=3)
    with pytest.raises(ValueError, match="group must be an int of at least 1, got 0"):
        dcnv3(*arguments(), group=0)
    with pytest.raises(ValueError, match=r"group must be an int of at least 1, got 2\.0"):
        dcnv3(*arguments(), group=2.0)


@pytest.mark.parametrize("stride", [(1, 1, 1), 1.0, (1, 0.5)])
def test_pairs_must_be_pairs(stride):
    with pytest.raises(ValueError, match="stride must be an int or a pair.*got .*1"):
        dcnv3(*arguments(), group=2, stride=stride)


def test_backend_choice(monkeypatch):
    with pytest.raises(ValueError, match="unknown backend 'cudnn'; choose one of cpp, cuda"):
        dcnv3(*arguments(), group=2, backend="cudnn")
    with pytest.raises(ValueError, match="backend 'cuda' runs on cuda tensors, got a cpu tensor"):
        dcnv3(*arguments(), group=2, backend="cuda")
    monkeypatch.setenv("OPS_DCNV3_BACKEND", "pytorch")
    assert choose_backend("cpu") == choose_backend("cuda") == "pytorch"
    monkeypatch.setenv("OPS_DCNV3_BACKEND", "fast")
    with pytest.raises(ValueError, match="'fast'.*environment variable OPS_DCNV3_BACKEND"):
        dcnv3(*arguments(), group=2)


def test_backend_that_is_not_compiled(monkeypatch):
    from ops_dcnv3.functions import backends

    monkeypatch.setattr(backends, "extension", None)
    monkeypatch.setattr(backends, "unavailable_reason", "for a test")
    assert choose_backend("cpu") == "pytorch"
    with pytest.raises(RuntimeError, match="'cpp' is not there: for a test.*pip install"):
        choose_backend("cpu", "cpp")


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"channels": 10, "group": 4}, "channels must be a multiple of group, got 10 and 4"),
        ({"kernel_size": 2, "pad": 0}, "kernel_size must be odd, got 2.*no centre"),
        ({"kernel_size": 2, "pad": 0, "remove_center": True}, "kernel_size must be odd, got 2"),
        ({"dw_kernel_size": 4}, "dw_kernel_size must be odd, got 4"),
        ({"kernel_size": 1, "pad": 0, "remove_center": True}, "leaves no sampling point"),
        ({"stride": 2}, "needs stride=1 and pad=.*got stride=2 and pad=1"),
        ({"pad": 0}, r"pad=dilation\*\(kernel_size-1\)/2=1, got stride=1 and pad=0"),
        ({"act_layer": "Gelu"}, "unknown act_layer 'Gelu'; did you mean 'GELU'"),
        ({"norm_layer": "GN"}, "unknown norm_layer 'GN'.*LN, BN"),
        ({"backend": "cudnn"}, "unknown backend 'cudnn'"),
    ],
)
def test_wrong_module_arguments(keywords, message):
    with pytest.raises(ValueError, match=message):
        DCNv3(**keywords)


def test_wrong_module_input():
    layer = DCNv3(16, group=2)
    with pytest.raises(
        ValueError, match=r"DCNv3 expects \(N, H, W, 16\), got \(2, 16, 5, 5\).*NCH"
    ):
        layer(torch.zeros(2, 16, 5, 5))
    with pytest.raises(ValueError, match="DCNv3_pytorch has backend 'pytorch', got 'cpp'"):
        DCNv3_pytorch(16, group=2, backend="cpp")


@pytest.mark.skipif("cpp" not in available_backends(), reason="backend cpp is not compiled here")
@pytest.mark.parametrize(
    ("change", "message"),
    [({"height": 0}, "input has no pixels"), ({"offset_scale": float("inf")}, "must be finite")],
)
def test_the_compiled_operator_refuses_what_no_kernel_can_plan(change, message):
    shape = geometry(pad_h=2, offset_scale=change.get("offset_scale", 1.0))
    arguments = random_arguments(shape, height=change.get("height", 7))
    cotangent = torch.zeros(*arguments[2].shape[:3], 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        torch.ops.ops_dcnv3.dcnv3(*arguments, *shape)
    with pytest.raises(ValueError, match=message):
        torch.ops.ops_dcnv3.dcnv3_backward(cotangent, *arguments, *shape)
