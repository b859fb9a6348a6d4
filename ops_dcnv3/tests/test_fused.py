"""`dcnv3_fused`: offsets and masks in one tensor, and the softmax inside."""

import pytest
import torch
from helpers import BACKENDS, CASES, device_of, geometry, random_arguments

from ops_dcnv3.functions import dcnv3_fused, dcnv3_fused_reference, dcnv3_reference
from ops_dcnv3.functions.reference import join_offset_mask, split_offset_mask
from ops_dcnv3.functions.registration import any_device_kernels

ORDERS = pytest.mark.parametrize("interleaved", [False, True], ids=["offsets-first", "by-group"])
NORMALISED = pytest.mark.parametrize("softmax", [False, True], ids=["as-is", "softmax"])

since_2_4 = pytest.mark.skipif(
    not hasattr(torch.library, "register_autograd"),
    reason="compiling and checking custom operators needs torch 2.4",
)


def fused(input, offset_mask, shape, softmax, interleaved, backend):
    """`dcnv3_fused` with the arguments of a geometry."""
    return dcnv3_fused(
        input,
        offset_mask,
        (shape.kernel_h, shape.kernel_w),
        (shape.stride_h, shape.stride_w),
        (shape.pad_h, shape.pad_w),
        (shape.dilation_h, shape.dilation_w),
        shape.group,
        shape.offset_scale,
        shape.remove_center,
        softmax,
        interleaved,
        backend,
    )


def join(offset, mask, shape, interleaved, padding=0):
    last = 3 * shape.group * shape.points + padding
    return join_offset_mask(offset, mask, shape, interleaved, last)


def two_tensors(input, offset, mask, shape, softmax):
    """The same computation by the unfused reference and PyTorch's softmax."""
    if softmax:
        mask = mask.unflatten(-1, (shape.group, -1)).softmax(-1).flatten(-2)
    return dcnv3_reference(input, offset, mask, shape)


def gradients(output, leaves, cotangent):
    return [output.detach(), *torch.autograd.grad(output, leaves, cotangent)]


def compare(shape, arguments, softmax, interleaved, backend, padding=0, rtol=1e-9, atol=1e-9):
    """Output and gradients against two tensors; the gradient is joined like its argument."""
    device, dtype = device_of(backend), arguments[0].dtype
    leaves = [tensor.to(device).double().requires_grad_() for tensor in arguments]
    output = two_tensors(*leaves, shape, softmax)
    cotangent = torch.randn(
        output.shape, generator=torch.Generator().manual_seed(1), dtype=dtype
    ).to(device)
    expected = gradients(output, leaves, cotangent.double())
    expected = [*expected[:2], join(*expected[2:], shape, interleaved, padding)]

    input, offset, mask = (tensor.to(device) for tensor in arguments)
    joined = join(offset, mask, shape, interleaved, padding)
    if padding:
        joined[..., -padding:] = float("nan")  # never read
    leaves = [input.clone().requires_grad_(), joined.requires_grad_()]
    output = fused(*leaves, shape, softmax, interleaved, backend)
    actual = gradients(output, leaves, cotangent)
    assert [tensor.dtype for tensor in actual] == [dtype] * 3
    torch.testing.assert_close([t.double() for t in actual], expected, rtol=rtol, atol=atol)


@ORDERS
@NORMALISED
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES[::4])
def test_reference_cases(case, backend, softmax, interleaved):
    compare(case.geometry, case.arguments(), softmax, interleaved, backend)


@ORDERS
@NORMALISED
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, 2e-5),
        (torch.float16, 6e-3),  # of values up to about 8: storage rounds at 2**-11
        (torch.bfloat16, 5e-2),  # 2**-8
    ],
    ids=["float32", "float16", "bfloat16"],
)
def test_dtypes(backend, dtype, tolerance, softmax, interleaved):
    shape = geometry(group=3, group_channels=16)
    compare(
        shape,
        random_arguments(shape, dtype=dtype),
        softmax,
        interleaved,
        backend,
        rtol=tolerance,
        atol=tolerance,
    )


@ORDERS
@NORMALISED
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_not_read_and_gets_no_gradient(backend, softmax, interleaved):
    shape = geometry(group=3, remove_center=True)
    compare(shape, random_arguments(shape), softmax, interleaved, backend, padding=5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_softmax_of_large_logits(backend):
    shape = geometry(group_channels=16)
    input, offset, mask = random_arguments(shape)
    compare(shape, [input, offset, 1e4 * (mask - 0.5)], True, False, backend)
    single = [input.float(), offset.float(), (100 * (mask - 0.5)).float()]
    compare(shape, single, True, False, backend, rtol=1e-4, atol=1e-4)


@ORDERS
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend, interleaved):
    shape = geometry()
    arguments = [tensor.to(device_of(backend)) for tensor in random_arguments(shape, 0)]
    leaves = [arguments[0].requires_grad_(), join(*arguments[1:], shape, interleaved)]
    output = fused(*leaves, shape, True, interleaved, backend)
    assert output.shape == (0, 7, 6, 8)
    assert torch.autograd.grad(output.sum(), leaves[0])[0].shape == arguments[0].shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_arguments(backend):
    shape = geometry()
    input, offset, mask = (t.to(device_of(backend)) for t in random_arguments(shape))
    joined = join(offset, mask, shape, False)
    strided = [
        input.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        joined.transpose(1, 2).contiguous().transpose(1, 2),
    ]
    expected = fused(input, joined, shape, True, False, backend)
    torch.testing.assert_close(fused(*strided, shape, True, False, backend), expected)


@ORDERS
@NORMALISED
def test_second_derivatives(softmax, interleaved):
    shape = geometry(group_channels=2, offset_scale=0.7)
    input, offset, mask = random_arguments(shape, 1, 2, 3)
    leaves = [input.requires_grad_(), join(offset, mask, shape, interleaved).requires_grad_()]
    assert torch.autograd.gradgradcheck(
        lambda *t: fused(*t, shape, softmax, interleaved, None), leaves
    )


@ORDERS
def test_split_and_join_are_inverse(interleaved):
    shape = geometry(group=3)
    _, offset, mask = random_arguments(shape)
    joined = join(offset, mask, shape, interleaved, padding=4)
    assert torch.equal(split_offset_mask(joined, shape, interleaved)[0], offset)
    assert torch.equal(split_offset_mask(joined, shape, interleaved)[1], mask)


@since_2_4
@ORDERS
@NORMALISED
def test_opcheck(softmax, interleaved):
    shape = geometry(stride_h=2)
    input, offset, mask = random_arguments(shape)
    joined = join(offset, mask, shape, interleaved)
    options = (*shape, softmax, interleaved)
    cotangent = torch.randn_like(dcnv3_reference(input, offset, mask, shape))
    leaves = [tensor.clone().requires_grad_() for tensor in (input, joined)]
    torch.library.opcheck(torch.ops.ops_dcnv3.dcnv3_fused.default, (*leaves, *options))
    torch.library.opcheck(
        torch.ops.ops_dcnv3.dcnv3_fused_backward.default, (cotangent, input, joined, *options)
    )


@since_2_4
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile(dynamic):
    torch._dynamo.reset()
    shape = geometry()
    compiled = torch.compile(fused, fullgraph=True, dynamic=dynamic)
    for batch, height, width in ((2, 7, 6), (1, 5, 9)):
        input, offset, mask = random_arguments(shape, batch, height, width)
        leaves = [input.requires_grad_(), join(offset, mask, shape, False).requires_grad_()]
        results = []
        for run in (compiled, fused):
            output = run(*leaves, shape, True, False, None)
            results.append(gradients(output, leaves, torch.ones_like(output)))
        torch.testing.assert_close(*results)


def test_autocast_runs_in_the_lower_precision():
    shape = geometry()
    input, offset, mask = random_arguments(shape, dtype=torch.float32)
    joined = join(offset, mask, shape, False)
    with torch.autocast("cpu", torch.bfloat16):
        output = dcnv3_fused(input, joined.bfloat16(), group=2)
        bare = torch.ops.ops_dcnv3.dcnv3_fused(input, joined.bfloat16(), *shape, True, False)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, dcnv3_fused(input.bfloat16(), joined.bfloat16(), group=2))
    assert torch.equal(output, bare)


def test_any_device_kernel_is_the_reference():
    shape = geometry()
    input, offset, mask = random_arguments(shape)
    arguments = (input, join(offset, mask, shape, True))
    output = any_device_kernels["dcnv3_fused"](*arguments, *shape, True, True)
    torch.testing.assert_close(output, dcnv3_fused_reference(*arguments, shape, True, True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda x, om: (x, om[..., :-1]),
            ValueError,
            r"offset_mask must be .*54\) or more with P = .* 9",
        ),
        (lambda x, om: (x, om[:, :-1]), ValueError, r"offset_mask must be \(N, Ho, Wo"),
        (lambda x, om: (x, om[0]), ValueError, "offset_mask must have 4 dimensions"),
        (lambda x, om: (x, om.float()), TypeError, "input and offset_mask must have one dtype"),
        (lambda x, om: (x, om.long()), TypeError, "offset_mask must be float64"),
    ],
)
def test_errors(change, error, message):
    shape = geometry()
    input, offset, mask = random_arguments(shape)
    with pytest.raises(error, match=message):
        dcnv3_fused(*change(input, join(offset, mask, shape, False)), group=2)


def test_the_compiled_operator_checks_sizes_too():
    shape = geometry()
    input, offset, mask = random_arguments(shape)
    joined = join(offset, mask, shape, False)
    call = torch.ops.ops_dcnv3.dcnv3_fused
    with pytest.raises(ValueError, match="offset_mask must be"):
        call(input, joined[..., :-1].contiguous(), *shape, True, False)
    with pytest.raises(ValueError, match="offset_mask must be"):
        call(input, joined[:1], *shape, True, False)
