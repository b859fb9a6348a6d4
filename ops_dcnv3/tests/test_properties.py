"""What must hold for any arguments: shapes, sizes, threads, excluded points, autograd."""

import subprocess
import sys

import pytest
import torch
from helpers import BACKENDS, device_of, geometry, random_arguments, with_gradients

from ops_dcnv3.functions import (
    available_backends,
    dcnv3,
    dcnv3_backward_reference,
    dcnv3_reference,
)
from ops_dcnv3.functions.dcnv3_func import _call


def compare(backend, shape, arguments, rtol=1e-9, atol=1e-9):
    """Output and gradients of a backend against the reference, in float64."""
    device = device_of(backend)
    arguments = [tensor.to(device) for tensor in arguments]
    cotangent = torch.randn_like(dcnv3_reference(*arguments, shape))
    actual = with_gradients(lambda *t: _call(*t, shape, backend), arguments, cotangent)
    expected = with_gradients(lambda *t: dcnv3_reference(*t, shape), arguments, cotangent)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)
    return actual


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 3, 257])
def test_batch_sizes(backend, batch):
    compare(backend, geometry(), random_arguments(geometry(), batch, 4, 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_batch_equals_its_parts(backend):
    """There is no im2col_step: image 256 of 257 is computed like any other."""
    arguments = [t.to(device_of(backend)) for t in random_arguments(geometry(), 257, 4, 3)]
    whole = _call(*arguments, geometry(), backend)
    last = _call(*[tensor[256:] for tensor in arguments], geometry(), backend)
    assert torch.equal(whole[256:], last)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend):
    arguments = [t.to(device_of(backend)) for t in random_arguments(geometry(), 0)]
    result = with_gradients(
        lambda *t: _call(*t, geometry(), backend), arguments, torch.zeros(0, 7, 6, 8)
    )
    assert result["out"].shape == (0, 7, 6, 8)
    assert [result[f"grad_{n}"].shape for n in ("input", "offset", "mask")] == [
        tensor.shape for tensor in arguments
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(1, 5), (5, 1), (1, 1), (2, 2)])
def test_small_maps(backend, size):
    compare(backend, geometry(), random_arguments(geometry(), 2, *size))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("group_channels", [1, 3, 16, 32, 64, 300])
def test_group_channels(backend, group_channels):
    shape = geometry(group_channels=group_channels)
    compare(backend, shape, random_arguments(shape, 2, 5, 4))


@pytest.mark.parametrize("backend", BACKENDS)
def test_remove_center_of_a_single_point_gives_zeros(backend):
    shape = geometry(kernel_h=1, kernel_w=1, pad_h=0, pad_w=0, remove_center=True)
    result = compare(backend, shape, random_arguments(shape))
    assert not result["out"].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_arguments(backend):
    device = device_of(backend)
    contiguous = [tensor.to(device) for tensor in random_arguments(geometry())]
    strided = [
        contiguous[0].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        contiguous[1].transpose(1, 2).contiguous().transpose(1, 2),
        torch.stack([contiguous[2]] * 2, -1)[..., 1],
    ]
    assert not any(tensor.is_contiguous() for tensor in strided)
    cotangent = torch.randn(2, 8, 7, 6, device=device, dtype=torch.float64).permute(0, 2, 3, 1)
    results = [
        with_gradients(lambda *t: _call(*t, geometry(), backend), arguments, cotangent)
        for arguments in (contiguous, strided)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch, group", [(1, 1), (1, 5), (3, 2)])
def test_threads_do_not_change_a_bit(dtype, batch, group):
    shape = geometry(group=group)
    arguments = random_arguments(shape, batch, 23, 17, dtype)
    cotangent = torch.randn(batch, 23, 17, 4 * group).to(dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(with_gradients(lambda *t: _call(*t, shape, None), arguments, cotangent))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


@pytest.mark.skipif(
    "cpp" not in available_backends() or sys.platform != "linux",
    reason="needs the C++ kernels and /proc",
)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_kernels_use_several_threads(direction):
    """The kernel's first call starts the thread pool; nothing before it does."""
    code = (
        "import os, torch\n"
        "from ops_dcnv3.functions import dcnv3\n"
        "torch.set_num_threads(4)\n"
        "args = torch.zeros(2, 9, 9, 8), torch.zeros(2, 9, 9, 36), torch.zeros(2, 9, 9, 18)\n"
        "shape = (3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.0, False)\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "if %r == 'forward':\n"
        "    torch.ops.ops_dcnv3.dcnv3(*args, *shape)\n"
        "else:\n"
        "    torch.ops.ops_dcnv3.dcnv3_backward(args[0], *args, *shape)\n"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code % direction], cwd="/", capture_output=True, text=True
    )
    assert result.stdout.strip() == "3", result.stdout + result.stderr


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e30, -1e30])
def test_points_that_are_nowhere_are_left_out(backend, value):
    """An infinite, NaN or far-away offset gives the result of a zero mask at that point."""
    device = device_of(backend)
    x, offset, mask = (tensor.to(device) for tensor in random_arguments(geometry()))
    lost = torch.zeros_like(mask, dtype=torch.bool)
    lost[0, 2, 3, 4] = lost[1, 6, 5, 17] = lost[0, 0, 0, 0] = True
    bad_offset = offset.clone()
    bad_offset.unflatten(-1, (-1, 2))[..., 0][lost] = value
    cotangent = torch.randn(2, 7, 6, 8, dtype=torch.float64)
    run = lambda *t: _call(*t, geometry(), backend)  # noqa: E731
    actual = with_gradients(run, [x, bad_offset, mask], cotangent)
    expected = with_gradients(run, [x, offset, mask.masked_fill(lost, 0)], cotangent)
    assert not actual["grad_mask"][lost].any()
    assert not actual["grad_offset"].unflatten(-1, (-1, 2))[lost].any()
    kept = ~lost
    torch.testing.assert_close(actual["out"], expected["out"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(actual["grad_input"], expected["grad_input"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        actual["grad_mask"][kept], expected["grad_mask"][kept], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_of_left_out_points_are_not_read(backend):
    """A point outside the image contributes nothing even if its mask is not finite."""
    x, offset, mask = (t.to(device_of(backend)) for t in random_arguments(geometry()))
    offset[0, 0, 0, 0], mask[0, 0, 0, 0] = -100.0, float("inf")
    assert _call(x, offset, mask, geometry(), backend).isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    shape = geometry(group_channels=3, offset_scale=0.7)
    arguments = [
        tensor.to(device_of(backend)).requires_grad_()
        for tensor in random_arguments(shape, 1, 3, 4)
    ]
    assert torch.autograd.gradcheck(lambda *t: _call(*t, shape, backend), arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_some_gradients_only(backend):
    """Freezing some of the inputs leaves the other gradients as they are."""
    arguments = [tensor.to(device_of(backend)) for tensor in random_arguments(geometry())]
    cotangent = torch.ones(2, 7, 6, 8, dtype=torch.float64)
    everything = with_gradients(lambda *t: _call(*t, geometry(), backend), arguments, cotangent)
    for index, name in enumerate(("grad_input", "grad_offset", "grad_mask")):
        leaves = [tensor.clone() for tensor in arguments]
        leaves[index].requires_grad_()
        _call(*leaves, geometry(), backend).backward(cotangent.to(leaves[0].device))
        torch.testing.assert_close(leaves[index].grad, everything[name])


def test_a_plain_convolution_is_a_special_case():
    """Zero offsets and unit masks sample the ordinary grid: a box filter."""
    x = torch.randn(2, 6, 5, 8, dtype=torch.float64)
    offset, mask = torch.zeros(2, 6, 5, 36).double(), torch.ones(2, 6, 5, 18).double()
    box = torch.nn.functional.avg_pool2d(x.permute(0, 3, 1, 2), 3, 1, 1) * 9
    torch.testing.assert_close(dcnv3(x, offset, mask, group=2), box.permute(0, 2, 3, 1))


def test_pairs_are_height_then_width():
    x = torch.randn(1, 9, 12, 8)
    offset, mask = torch.zeros(1, 5, 12, 2 * 15 * 2), torch.ones(1, 5, 12, 2 * 15)
    output = dcnv3(
        x, offset, mask, kernel_size=(3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 1), group=2
    )
    assert output.shape == (1, 5, 12, 8)


def test_an_infinite_gradient_of_a_point_outside_reaches_no_pixel():
    """The written-out backward pass against autograd of the forward one."""
    shape = geometry(kernel_h=1, kernel_w=1, pad_h=0, pad_w=0)
    arguments = random_arguments(shape, 1)
    cotangent = torch.randn(1, 7, 6, 8, dtype=torch.float64)
    cotangent[0, 3, 3], arguments[1][0, 3, 3] = float("inf"), -50.0  # samples nothing
    leaves = [tensor.requires_grad_() for tensor in arguments]
    output = dcnv3_reference(*leaves, shape)
    expected = torch.autograd.grad(output, leaves[0], cotangent)[0].isfinite()
    actual = dcnv3_backward_reference(cotangent, *arguments, shape)[0].isfinite()
    assert torch.equal(actual, expected) and actual.all()
