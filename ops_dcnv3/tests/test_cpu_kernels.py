"""The compiled CPU kernels of every instruction set that this machine has, against the float64
reference: geometries, storage types, the orders of the fused tensor, values that are not finite.
"""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from helpers import CASES, geometry, random_arguments

from ops_dcnv3.functions import dcnv3_reference
from ops_dcnv3.functions.backends import extension
from ops_dcnv3.functions.reference import join_offset_mask, split_offset_mask

pytestmark = pytest.mark.skipif(extension is None, reason="needs the compiled kernels")

NAMES = ("avx512", "avx2", "portable")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OPS = torch.ops.ops_dcnv3
NAN, INF = float("nan"), float("inf")


def exists(name):
    try:
        extension.set_cpu_level(name)
    except ValueError:
        return False
    extension.set_cpu_level("")
    return True


@pytest.fixture(params=NAMES)
def level(request):
    if not exists(request.param):
        pytest.skip(f"this machine has no {request.param} kernels")
    extension.set_cpu_level(request.param)
    assert extension.cpu_level() == request.param
    yield request.param
    extension.set_cpu_level("")


@pytest.fixture
def threads():
    """Sets the number of threads, until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def separate(shape, x, offset, mask, top):
    """Output and gradients by the two-tensor operators."""
    output = OPS.dcnv3(x, offset, mask, *shape)
    return [output, *OPS.dcnv3_backward(top, x, offset, mask, *shape)]


def fused(shape, x, offset, mask, top, softmax, interleaved, padding=0):
    """The same by the one-tensor operators; the gradient is split, its padding must be 0."""
    last = 3 * shape.group * shape.points + padding
    joined = join_offset_mask(offset, mask, shape, interleaved, last)
    if padding:
        joined[..., -padding:] = NAN
    output = OPS.dcnv3_fused(x, joined, *shape, softmax, interleaved)
    grad_x, grad = OPS.dcnv3_fused_backward(top, x, joined, *shape, softmax, interleaved)
    assert not padding or not grad[..., -padding:].any()
    return [output, grad_x, *split_offset_mask(grad, shape, interleaved)]


def truth(shape, x, offset, mask, top, softmax):
    """In float64, by autograd: a weight of zero does not let through what is not finite."""
    leaves = [tensor.double().requires_grad_() for tensor in (x, offset, mask)]
    weights = leaves[2]
    if softmax:
        weights = weights.unflatten(-1, (shape.group, -1)).softmax(-1).flatten(-2)
    output = dcnv3_reference(*leaves[:2], weights, shape)
    return [output.detach(), *torch.autograd.grad(output, leaves, top.double())]


def assert_close(actual, expected, dtype, sums=2e-5):
    """One rounding of the result to `dtype`, and the float32 sums behind it. Of what is not finite
    only the places count: whether a sum is infinite or NaN depends on the order of its terms.
    """
    for result, right in zip(actual, expected):
        assert result.dtype == dtype
        pair = [torch.where(tensor.isfinite(), tensor.double(), NAN) for tensor in (result, right)]
        torch.testing.assert_close(*pair, rtol=torch.finfo(dtype).eps, atol=sums, equal_nan=True)


def arguments(shape, dtype=torch.float32, batch=2, height=7, width=6, seed=0):
    """Input, offset, mask and gradient of the output."""
    tensors = random_arguments(shape, batch, height, width, dtype, seed)
    out_h, out_w = shape.output_size(height, width)
    generator = torch.Generator().manual_seed(seed + 1)
    top = torch.randn(batch, out_h, out_w, tensors[0].shape[-1], generator=generator)
    return [*tensors, top.to(dtype)]


def compare_all_entries(shape, tensors, sums=2e-5):
    """Both operators, both orders, with and without softmax; returns the results without it."""
    dtype = tensors[0].dtype
    expected = truth(shape, *tensors, False)
    results = [separate(shape, *tensors)]
    results += [fused(shape, *tensors, False, order, pad) for order, pad in ((0, 3), (1, 0))]
    assert_close(results[0], expected, dtype, sums)
    for result in results[1:]:
        for a, b in zip(result, results[0]):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    expected = truth(shape, *tensors, True)
    for order, pad in ((False, 0), (True, 5)):
        assert_close(fused(shape, *tensors, True, order, pad), expected, dtype, sums)
    return results[0]


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=str)
@pytest.mark.parametrize("depth", [1, 3, 5, 8, 12, 16, 20, 32, 48, 64, 80, 100])
def test_group_channels(level, depth, dtype):
    shape = geometry(group=3, group_channels=depth)
    compare_all_entries(shape, arguments(shape, dtype, 1, 5, 6))


KERNELS = [
    dict(kernel_h=1, kernel_w=1, pad_h=0, pad_w=0),
    dict(kernel_h=2, kernel_w=2),
    dict(kernel_h=3, kernel_w=3, remove_center=True),
    dict(kernel_h=5, kernel_w=5, pad_h=2, pad_w=2, group=9),  # more groups than fit at once
    dict(kernel_h=7, kernel_w=7, pad_h=3, pad_w=3),
    dict(kernel_h=13, kernel_w=13, pad_h=6, pad_w=6, group=1),  # more points than vectors take
    dict(kernel_h=2, kernel_w=5, pad_w=2, remove_center=True, offset_scale=2.0),
    dict(kernel_h=4, kernel_w=1, pad_h=2, pad_w=0, offset_scale=0.5),
    dict(stride_h=2, stride_w=3, group=21),
    dict(dilation_h=2, dilation_w=3, pad_h=2, pad_w=3),
    dict(stride_h=3, dilation_w=2, pad_h=4, pad_w=5),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("changes", KERNELS, ids=str)
def test_kernels(level, changes, dtype):
    shape = geometry(group_channels=16)._replace(**changes)
    compare_all_entries(shape, arguments(shape, dtype, 2, 8, 9), 5e-5)


def test_reference_cases(level):
    for parameter in CASES:
        case = parameter.values[0]
        tensors = [*case.arguments(), case.tensor("grad_output")]
        single = separate(case.geometry, *(tensor.float() for tensor in tensors))
        for result, expected in zip(single, case.expected().values()):
            torch.testing.assert_close(
                result.double(),
                expected,
                rtol=1e-5,
                atol=1e-5,
                msg=lambda m, c=case: f"{c.id}: {m}",
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(1, 5), (5, 1), (1, 1), (2, 2), (2, 7), (3, 2)])
def test_small_maps(level, size, dtype):
    shape = geometry(group_channels=16)
    compare_all_entries(shape, arguments(shape, dtype, 2, *size))


def test_offsets_at_and_beyond_the_border(level):
    """Integer positions, where derivatives are taken from the right, and every place around it."""
    shape = geometry(kernel_h=1, kernel_w=1, pad_h=0, pad_w=0, group=1, group_channels=16)
    places = torch.tensor([-9, -2, -1, -0.75, -0.25, 0, 0.5, 1, 2, 2.25, 3, 3.5, 4, 1e9, -1e30])
    x, y = torch.meshgrid(places, places, indexing="ij")
    for column, row in ((0, 0), (1, 2), (3, 3)):
        tensors = arguments(shape, torch.float32, len(places) ** 2, 4, 4)
        tensors[1][:, row, column, 0] = (x - column).flatten()
        tensors[1][:, row, column, 1] = (y - row).flatten()
        compare_all_entries(shape, tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("depth", [16, 32, 20])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("which", ["input", "offset", "mask", "grad_output"])
def test_what_is_not_finite_stays_where_it_is(level, which, value, depth, dtype):
    shape = geometry(group=3, group_channels=depth)
    tensors = arguments(shape, dtype, 2, 6, 7)
    index = ("input", "offset", "mask", "grad_output").index(which)
    clean = separate(shape, *tensors)
    flat = tensors[index].flatten()
    flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(2))[:4]] = value
    tensors[index] = flat.view_as(tensors[index])
    spoiled = compare_all_entries(shape, tensors)
    assert spoiled[0].isfinite().sum() > 0.5 * spoiled[0].numel()
    untouched = spoiled[0].isfinite() & (spoiled[0] == clean[0])
    assert untouched.sum() > 0.5 * untouched.numel()


def test_an_infinite_pixel_that_is_not_sampled(level):
    """Points far outside are clamped to border pixels, which must not be seen."""
    shape = geometry(group=2, group_channels=16)
    tensors = arguments(shape)
    tensors[0][:, [0, -1]] = INF
    tensors[0][:, :, [0, -1]] = NAN
    tensors[1] += 50.0
    tensors[2][:, 0] = INF
    tensors[3][:, 1] = NAN
    results = compare_all_entries(shape, tensors)
    assert not any(result.any() for result in results)


def test_logits_of_any_size(level):
    shape = geometry(group=5, group_channels=16)
    x, offset, mask, top = arguments(shape)
    for scale, shift in ((1, 25), (1, -500), (100, 0), (1e6, 0), (1, 1e30)):
        tensors = [x, offset, scale * (mask - 0.5) + shift, top]
        assert_close(
            fused(shape, *tensors, True, True), truth(shape, *tensors, True), x.dtype, 1e-4
        )


def test_softmax_of_one_group_does_not_depend_on_others(level):
    """A group with large logits takes another path; its neighbours' results stay the same bits."""
    shape = geometry(group=4, group_channels=16)
    x, offset, mask, top = arguments(shape)
    before = fused(shape, x, offset, mask, top, True, False)
    for value in (90.0, NAN):
        changed = mask.clone()
        changed[..., :9] = value
        after = fused(shape, x, offset, changed, top, True, False)
        for a, b in zip(before, after):
            per_group = a.shape[-1] // 4
            assert torch.equal(a[..., per_group:], b[..., per_group:])


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=str)
@pytest.mark.parametrize("changes", [{}, dict(group_channels=20), dict(kernel_w=5, group=21)])
def test_threads_do_not_change_a_bit(level, threads, changes, dtype):
    shape = geometry(group=5, group_channels=16)._replace(**changes)
    for batch, spoil in itertools.product((1, 3), (False, True)):
        tensors = arguments(shape, dtype, batch, 19, 17)
        if spoil:
            for tensor in tensors:
                tensor.view(-1)[:: 3 * tensor.numel() // 4] = NAN
        results = []
        for count in (1, 2, 3):
            threads(count)
            results.append(separate(shape, *tensors) + fused(shape, *tensors, True, False))
        for other in results[1:]:
            for a, b in zip(results[0], other):
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_non_contiguous_and_empty(level):
    shape = geometry(group_channels=16)
    tensors = arguments(shape)
    strided = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in tensors]
    for a, b in zip(separate(shape, *tensors), separate(shape, *strided)):
        assert torch.equal(a, b) and b.is_contiguous()
    empty = separate(shape, *(tensor[:0] for tensor in tensors))
    assert [tensor.shape[0] for tensor in empty] == [0] * 4


def test_points_of_unaligned_tensors(level):
    """Tensors that begin anywhere, and memory beyond their ends that is not theirs to write."""
    shape = geometry(group=1, group_channels=5)
    tensors = arguments(shape, torch.float32, 1, 3, 3)
    shifted = []
    for tensor in tensors:
        room = torch.full((tensor.numel() + 3,), NAN)
        room[1:-2] = tensor.flatten()
        shifted.append(room[1:-2].view_as(tensor))
    for a, b in zip(separate(shape, *tensors), separate(shape, *shifted)):
        assert torch.equal(a, b)


def test_choosing_a_level():
    with pytest.raises(ValueError, match="'sse9' do not exist.*portable"):
        extension.set_cpu_level("sse9")
    code = "import torch, DCNv3; print(DCNv3.cpu_level())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OPS_DCNV3_CPU": "portable"},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == "portable", result.stderr
