"""DCNv4: the function on every backend, and the layer, against the original's numbers.

`data/dcnv4.npz` holds, for each expected array, its norm, its sum and every `step`-th entry, all in
float64. The arguments are drawn from the seeds in `data/dcnv4.json`.
"""

import copy
import json
import zlib

import numpy as np
import pytest
import torch
from helpers import BACKENDS, DATA, device_of

from ops_dcnv3.functions import (
    DCNv4Function,
    Geometry,
    available_backends,
    dcnv3,
    dcnv3_fused_backward_reference,
    dcnv3_fused_reference,
    dcnv4,
)
from ops_dcnv3.modules import DCNv4

FACTS = json.loads((DATA / "dcnv4.json").read_text())
CASES = [pytest.param(case, id=case["id"]) for case in FACTS["cases"]]
MODULES = [pytest.param(case, id=case["name"]) for case in FACTS["modules"]]
RESULTS = ("out", "grad_input", "grad_offset_mask")


@pytest.fixture(scope="module")
def expected():
    with np.load(DATA / "dcnv4.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def assert_equals_digest(actual, digest, tolerance, name):
    """`actual` has the norm, the sum and the sampled entries of the expected array."""
    actual = actual.detach().cpu().double().flatten()
    norm, total, entries = digest[0].item(), digest[1].item(), digest[2:]
    torch.testing.assert_close(
        actual[:: FACTS["step"]],
        entries,
        rtol=tolerance,
        atol=tolerance,
        msg=lambda m: f"{name}: {m}",
    )
    assert abs(actual.norm().item() - norm) <= tolerance * norm, name
    # the bound of a sum of entries of this norm
    assert abs(actual.sum().item() - total) <= tolerance * norm * len(actual) ** 0.5, name


def geometry_of(case):
    pairs = [size for name in ("kernel", "stride", "pad", "dilation") for size in case[name]]
    return Geometry(
        *pairs,
        case["group"],
        case["group_channels"],
        case["offset_scale"],
        bool(case["remove_center"]),
    )


def options_of(geometry):
    return {
        "kernel_size": (geometry.kernel_h, geometry.kernel_w),
        "stride": (geometry.stride_h, geometry.stride_w),
        "padding": (geometry.pad_h, geometry.pad_w),
        "dilation": (geometry.dilation_h, geometry.dilation_w),
        "group": geometry.group,
        "offset_scale": geometry.offset_scale,
        "remove_center": geometry.remove_center,
    }


def arguments(case):
    """Input, offset_mask and the gradient of the output; the padding holds large noise."""
    rng = np.random.default_rng(case["seed"])
    geometry = geometry_of(case)
    group, points = geometry.group, geometry.points
    out_h, out_w = geometry.output_size(case["H"], case["W"])
    pixels = (case["N"], out_h, out_w)
    channels = group * geometry.group_channels
    input = rng.standard_normal((case["N"], case["H"], case["W"], channels))
    offset = rng.standard_normal((*pixels, group, 2 * points)) * case["offset_std"]
    weight = rng.standard_normal((*pixels, group, points))
    padding = rng.standard_normal((*pixels, case["padded_channels"] - 3 * group * points)) * 100
    used = np.concatenate([offset, weight], -1).reshape(*pixels, -1)
    if case.get("zero"):  # the layer's state at initialisation
        used = np.zeros_like(used)
    grad_output = rng.standard_normal((*pixels, channels))
    offset_mask = np.concatenate([used, padding], -1)
    return [torch.from_numpy(array) for array in (input, offset_mask, grad_output)]


def run(case, backend, dtype):
    device = device_of(backend)
    tensors = [tensor.to(device, dtype) for tensor in arguments(case)]
    input, offset_mask = (tensor.requires_grad_() for tensor in tensors[:2])
    out = dcnv4(input, offset_mask, **options_of(geometry_of(case)), backend=backend)
    return dict(zip(RESULTS, (out, *torch.autograd.grad(out, (input, offset_mask), tensors[2]))))


# --- the function ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-11), (torch.float32, 1e-5)])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_original(case, backend, dtype, tolerance, expected):
    """float32: the positions are rounded at 6e-8 of up to ten pixels, times slopes of a few."""
    for name, actual in run(case, backend, dtype).items():
        assert actual.dtype == dtype
        assert_equals_digest(actual, expected[f"{case['id']}/{name}"], tolerance, name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_every_entry_equals_the_reference(case, backend):
    """The reference is what `test_equals_the_original` samples; here all entries count."""
    input, offset_mask, grad_output = arguments(case)
    geometry = geometry_of(case)
    truth = (
        dcnv3_fused_reference(input, offset_mask, geometry, False, True),
        *dcnv3_fused_backward_reference(grad_output, input, offset_mask, geometry, False, True),
    )
    for actual, wanted in zip(run(case, backend, torch.float64).values(), truth):
        torch.testing.assert_close(actual.cpu(), wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_half_precision(case, backend, dtype):
    """The float32 result for the same rounded arguments is the truth: what remains is one rounding
    of each result (eps / 2 relative) and the order of float32 sums.
    """
    tensors = [tensor.to(dtype).float() for tensor in arguments(case)]
    geometry = geometry_of(case)
    truth = (
        dcnv3_fused_reference(*tensors[:2], geometry, False, True),
        *dcnv3_fused_backward_reference(tensors[2], *tensors[:2], geometry, False, True),
    )
    for actual, wanted in zip(run(case, backend, dtype).values(), truth):
        assert actual.dtype == dtype
        torch.testing.assert_close(
            actual.cpu().float(), wanted, rtol=torch.finfo(dtype).eps, atol=3e-5
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_not_read_and_gets_no_gradient(backend):
    case = next(case for case in FACTS["cases"] if case["id"] == "v4_06")  # 27 of 32 are used
    device = device_of(backend)
    input, offset_mask, _ = (tensor.to(device) for tensor in arguments(case))
    options = options_of(geometry_of(case)) | {"backend": backend}
    wanted = dcnv4(input, offset_mask[..., :27], **options)  # no padding at all
    offset_mask[..., 27:] = float("nan")
    offset_mask.requires_grad_()
    out = dcnv4(input, offset_mask, **options)
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(out.sum(), offset_mask)
    assert not gradient[..., 27:].any() and gradient[..., :27].isfinite().all()


@pytest.mark.parametrize("batch, channels, kernel", [(0, 8, 3), (257, 6, 3), (2, 5, 7)])
def test_sizes_that_the_original_refuses(batch, channels, kernel):
    """Batches above 256, channels per group that are no multiple of 16, any number of points."""
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(batch, 4, 5, channels, generator=generator)
    offset_mask = torch.randn(batch, 4, 5, 3 * kernel**2, generator=generator)
    offset, mask = offset_mask.split((2 * kernel**2, kernel**2), -1)
    options = {"kernel_size": kernel, "padding": kernel // 2, "group": 1}
    torch.testing.assert_close(
        dcnv4(input, offset_mask, **options), dcnv3(input, offset, mask, **options)
    )


def test_original_name_and_argument_order():
    case = FACTS["cases"][-1]  # an even kernel with two strides and two paddings
    geometry = geometry_of(case)
    input, offset_mask, _ = arguments(case)
    wanted = dcnv4(input, offset_mask, **options_of(geometry))
    sizes = [*geometry[:10], geometry.offset_scale]
    assert torch.equal(DCNv4Function.apply(input, offset_mask, *sizes, 256, 0), wanted)
    assert torch.equal(DCNv4Function.apply(input, offset_mask, *sizes, 64), wanted)
    sizes[9] += 1
    with pytest.raises(ValueError, match=r"group \* group_channels = 2 \* 17 = 34 channels"):
        DCNv4Function.apply(input, offset_mask, *sizes)


def test_a_short_offset_mask_is_refused():
    with pytest.raises(
        ValueError, match=r"offset_mask must be .*54\) or more.*got \(1, 4, 4, 53\)"
    ):
        dcnv4(torch.zeros(1, 4, 4, 8), torch.zeros(1, 4, 4, 53), group=2)


def test_second_derivatives():
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, 3, 3, size, generator=generator, dtype=torch.float64).requires_grad_()
        for size in (4, 56)
    ]
    assert torch.autograd.gradgradcheck(lambda *t: dcnv4(*t, group=2), tensors)


# --- the layer ------------------------------------------------------------------------------------


def recipe(layer):
    """The weights that the expected numbers were computed with, drawn from the keys."""
    weights = {}
    for key, value in layer.state_dict().items():
        z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(value.shape))
        scale = 0.1 if z.ndim == 1 else 1 / np.sqrt(np.prod(z.shape[1:]))
        weights[key] = torch.from_numpy((z * scale).astype(np.float32))
    layer.load_state_dict(weights)
    return layer.eval().double()


@pytest.mark.parametrize("backend", [None, "pytorch"])
@pytest.mark.parametrize("case", MODULES)
def test_layer_equals_the_original(case, backend, expected):
    layer = recipe(DCNv4(**case["kwargs"], backend=backend))
    assert [[k, list(v.shape)] for k, v in layer.state_dict().items()] == case["keys"]
    x = np.random.default_rng(case["input_seed"]).standard_normal(case["input_shape"])
    x = torch.from_numpy(x.astype(np.float32)).double().requires_grad_()
    out = layer(x, case["shape"])
    assert_equals_digest(out, expected[f"{case['name']}/out"], 1e-11, "out")
    cotangent = np.random.default_rng(case["cotangent_seed"]).standard_normal(tuple(out.shape))
    (out * torch.from_numpy(cotangent)).sum().backward()
    assert_equals_digest(x.grad, expected[f"{case['name']}/grad_input"], 1e-11, "grad_input")
    assert {name for name, _ in layer.named_parameters()} == set(case["grads"])
    for name, parameter in layer.named_parameters():
        norm, total = case["grads"][name]
        assert abs(parameter.grad.norm().item() - norm) <= 1e-10 * norm, name
        assert abs(parameter.grad.sum().item() - total) <= 1e-9 * norm, name


def test_maps_and_tokens_are_the_same():
    layer = recipe(DCNv4(8, group=2, dw_kernel_size=3, center_feature_scale=True))
    x = torch.randn(2, 4, 5, 8, dtype=torch.float64)
    wanted = layer(x)
    assert wanted.shape == x.shape
    assert torch.equal(layer(x.flatten(1, 2), (4, 5)), wanted.flatten(1, 2))
    assert torch.equal(layer(x, (4, 5)), wanted)
    square = x[:, :, :4]
    assert torch.equal(layer(square.flatten(1, 2)), layer(square).flatten(1, 2))


def test_initial_state():
    torch.manual_seed(0)
    layer = DCNv4(64, center_feature_scale=True, dw_kernel_size=3)
    zero = [name for name, p in layer.named_parameters() if not p.any()]
    assert zero == [
        "center_feature_scale_proj_weight",
        "center_feature_scale_proj_bias",
        "offset_mask.weight",
        "offset_mask.bias",
        "value_proj.bias",
        "output_proj.bias",
    ]
    bound = (6 / 128) ** 0.5  # Xavier
    for linear in (layer.value_proj, layer.output_proj):
        assert 0.9 * bound < linear.weight.abs().max() <= bound
    assert not DCNv4(16, group=1)(torch.randn(1, 3, 3, 16)).any()  # all weights are zero


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 5, "pad": 2},
        {"kernel_size": 4, "dilation": 2, "pad": 3},
        {"kernel_size": 1, "pad": 0, "without_pointwise": True},
        {"remove_center": True, "output_bias": False, "dw_kernel_size": 5},
    ],
    ids=str,
)
def test_options_that_keep_the_size(options):
    layer = recipe(DCNv4(12, group=3, **options))
    plain = copy.deepcopy(layer)
    plain.backend = "pytorch"
    x = torch.randn(2, 5, 6, 12, dtype=torch.float64)
    assert layer(x).shape == x.shape
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"without_pointwise": True}], ids=str)
def test_autocast_and_half_precision(options):
    layer = recipe(DCNv4(16, group=2, center_feature_scale=True, **options)).float()
    x = torch.randn(1, 5, 5, 16)
    wanted = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    torch.testing.assert_close(out.float(), wanted, rtol=0.05, atol=0.05)
    out.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "kwargs, error, words",
    [
        ({"kernel_sizes": 3}, TypeError, "no argument 'kernel_sizes'; did you mean 'kernel_size'"),
        ({"outputbias": False}, TypeError, "did you mean 'output_bias'"),
        ({"group": 3}, ValueError, "multiple of group, got 64 and 3"),
        ({"stride": 2}, ValueError, "needs stride=1 .*got stride=2"),
        ({"kernel_size": 5}, ValueError, r"pad=dilation\*\(kernel_size-1\)/2=2, got .*pad=1"),
        ({"dw_kernel_size": 4}, ValueError, "dw_kernel_size must be odd.*got 4"),
        ({"kernel_size": 0}, ValueError, "kernel_size must be at least 1, got 0"),
        ({"kernel_size": 1, "pad": 0, "remove_center": True}, ValueError, "no sampling point"),
        ({"backend": "cpu"}, ValueError, "unknown backend 'cpu'"),
        pytest.param(
            {"backend": "triton"},
            RuntimeError,
            "backend 'triton' is not there",
            marks=pytest.mark.skipif("triton" in available_backends(), reason="Triton is there"),
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_refused_arguments(kwargs, error, words):
    with pytest.raises(error, match=words):
        DCNv4(**kwargs)


@pytest.mark.parametrize(
    "size, shape, words",
    [
        ((1, 40, 8), None, r"40 tokens do not fill one; pass shape=\(H, W\)"),
        ((1, 40, 8), (6, 6), r"shape=\(6, 6\) has 36 pixels, x has 40 tokens"),
        ((1, 4, 5, 8), (5, 4), r"shape=\(5, 4\) contradicts x of shape \(1, 4, 5, 8\)"),
        ((1, 8, 4, 5), None, r"looks like NCHW: pass x.permute\(0, 2, 3, 1\)"),
        ((4, 8), None, r"expects \(N, H, W, 8\) or \(N, H\*W, 8\), got \(4, 8\)"),
    ],
)
def test_refused_inputs(size, shape, words):
    with pytest.raises(ValueError, match=words):
        DCNv4(8, group=2)(torch.zeros(size), shape)


@pytest.mark.skipif(
    not hasattr(torch.library, "register_autograd"),
    reason="compiling custom operators needs torch 2.4",
)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_as_one_graph(dynamic):
    torch._dynamo.reset()
    layer = recipe(DCNv4(8, group=2, center_feature_scale=True)).float()
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for side in (4, 7):
        x = torch.randn(2, side, side, 8)
        torch.testing.assert_close(compiled(x.flatten(1, 2)), layer(x).flatten(1, 2))
