"""The registration: opcheck, torch.compile, torch.export, autocast, FLOP counts."""

import pytest
import torch
from helpers import BACKENDS, device_of, geometry, random_arguments, with_gradients
from torch.utils.flop_counter import FlopCounterMode

from ops_dcnv3.functions import backends, choose_backend, dcnv3, dcnv3_reference
from ops_dcnv3.functions.dcnv3_func import _call
from ops_dcnv3.functions.registration import any_device_kernels
from ops_dcnv3.modules import DCNv3

since_2_4 = pytest.mark.skipif(
    not hasattr(torch.library, "register_autograd"),
    reason="compiling and exporting custom operators needs torch 2.4",
)


@since_2_4
@pytest.mark.parametrize(
    "changes", [{}, {"stride_h": 2, "dilation_w": 2, "pad_h": 2}, {"remove_center": True}]
)
def test_opcheck(changes):
    shape = geometry(**changes)
    arguments = random_arguments(shape)
    cotangent = torch.randn_like(dcnv3_reference(*arguments, shape))
    leaves = [tensor.clone().requires_grad_() for tensor in arguments]
    torch.library.opcheck(torch.ops.ops_dcnv3.dcnv3.default, (*leaves, *shape))
    torch.library.opcheck(
        torch.ops.ops_dcnv3.dcnv3_backward.default, (cotangent, *arguments, *shape)
    )


@since_2_4
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("gradients", [False, True], ids=["forward", "gradients"])
def test_compile(backend, dynamic, gradients):
    torch._dynamo.reset()

    def run(*tensors):
        return _call(*tensors, geometry(), backend)

    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic)
    for batch, height, width in ((2, 7, 6), (1, 5, 9)):
        arguments = [
            t.to(device_of(backend)) for t in random_arguments(geometry(), batch, height, width)
        ]
        if not gradients:
            with torch.no_grad():
                torch.testing.assert_close(compiled(*arguments), run(*arguments))
            continue
        cotangent = torch.randn(batch, height, width, 8, dtype=torch.float64)
        torch.testing.assert_close(
            with_gradients(compiled, arguments, cotangent),
            with_gradients(run, arguments, cotangent),
        )


@since_2_4
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_layer_is_one_graph(dynamic):
    """Without the compiler's layout optimisation: torch 2.11 and 2.13 cannot order the symbolic
    strides of what the backward pass keeps downstream of a convolution.
    """
    torch._dynamo.reset()
    layer = DCNv3(8, group=2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.2)
    compiled = torch.compile(
        layer, fullgraph=True, dynamic=dynamic, options={"layout_optimization": False}
    )
    for size in ((2, 5, 4), (1, 7, 9)):
        x = torch.randn(*size, 8, requires_grad=True)
        actual, expected = compiled(x), layer(x)
        torch.testing.assert_close(actual, expected)
        leaves = [x, *layer.parameters()]
        torch.testing.assert_close(
            torch.autograd.grad(actual.square().sum(), leaves),
            torch.autograd.grad(expected.square().sum(), leaves),
            rtol=1e-4,
            atol=1e-4,  # sums over all pixels in another order
        )


@since_2_4
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("backend", ["pytorch", None])
def test_export_with_dynamic_sizes(backend, compiled, monkeypatch):
    """An exported graph is the same wherever it was exported."""
    if not compiled:
        monkeypatch.setattr(backends, "extension", None)
    layer = DCNv3(16, group=2, backend=backend).eval()
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("height", min=2, max=64)}
    program = torch.export.export(layer, (torch.randn(2, 8, 9, 16),), dynamic_shapes={"x": sizes})
    x = torch.randn(3, 11, 9, 16)
    torch.testing.assert_close(program.module()(x), layer(x))
    called = any("ops_dcnv3" in str(node.target) for node in program.graph.nodes)
    named = choose_backend("cpu") == "cpp" or hasattr(torch.compiler, "_is_exporting_flag")
    assert called == (backend is None and named)


@pytest.mark.parametrize("backend", ["pytorch", None])
def test_autocast_runs_in_the_lower_precision(backend):
    x, offset, mask = random_arguments(geometry(), dtype=torch.float32)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = dcnv3(x, offset.bfloat16(), mask, group=2, backend=backend)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert x.grad.dtype == torch.float32
    rounded = dcnv3(x.bfloat16(), offset.bfloat16(), mask.bfloat16(), group=2, backend=backend)
    assert torch.equal(output, rounded)


def test_autocast_of_the_bare_operator():
    x, offset, mask = random_arguments(geometry(), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = torch.ops.ops_dcnv3.dcnv3(x, offset.bfloat16(), mask, *geometry())
    assert output.dtype == torch.bfloat16


def test_autocast_leaves_float64_alone():
    arguments = random_arguments(geometry())
    with torch.autocast("cpu", torch.bfloat16):
        assert dcnv3(*arguments, group=2).dtype == torch.float64


def test_meta_tensors_give_shapes():
    arguments = [tensor.to("meta") for tensor in random_arguments(geometry())]
    output = torch.ops.ops_dcnv3.dcnv3(*arguments, *geometry())
    assert output.is_meta and output.shape == (2, 7, 6, 8)


@since_2_4
def test_flop_counter():
    arguments = [tensor.to("meta") for tensor in random_arguments(geometry())]
    with FlopCounterMode(display=False) as counter:
        torch.ops.ops_dcnv3.dcnv3(*arguments, *geometry())
    assert counter.get_total_flops() == 2 * 5 * (2 * 7 * 6) * 9 * 8  # 5 per sample and channel


def test_any_device_kernel_is_the_reference():
    """What torch.ops calls where nothing was compiled."""
    arguments = random_arguments(geometry())
    output = any_device_kernels["dcnv3"](*arguments, *geometry())
    torch.testing.assert_close(output, dcnv3_reference(*arguments, geometry()))
    with pytest.raises(ValueError, match="mask must be"):
        any_device_kernels["dcnv3"](*arguments[:2], arguments[2][:1], *geometry())


@since_2_4
def test_any_device_kernel_has_the_strides_of_its_fake():
    """Compiled code relies on them."""
    shape = geometry(group_channels=1)
    arguments = random_arguments(shape)
    output = any_device_kernels["dcnv3"](*arguments, *shape)
    gradients = any_device_kernels["dcnv3_backward"](output, *arguments, *shape)
    assert all(tensor.is_contiguous() for tensor in (output, *gradients))


# --- derivatives beyond one backward pass ---------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives(backend):
    shape = geometry(group_channels=2, offset_scale=0.7)
    arguments = [
        tensor.to(device_of(backend)).requires_grad_()
        for tensor in random_arguments(shape, 1, 2, 3)
    ]
    assert torch.autograd.gradgradcheck(lambda *t: _call(*t, shape, backend), arguments)


@since_2_4
def test_the_bare_backward_operator_refuses_a_second_derivative():
    arguments = [tensor.requires_grad_() for tensor in random_arguments(geometry())]
    cotangent = torch.randn(2, 7, 6, 8, dtype=torch.float64)
    gradients = torch.ops.ops_dcnv3.dcnv3_backward(cotangent, *arguments, *geometry())
    with pytest.raises(RuntimeError, match="has no derivative.*create_graph=True"):
        gradients[0].sum().backward()


@since_2_4
def test_torch_func_transforms():
    """They run in plain PyTorch; a compiled backend that is asked for by name refuses."""
    x, offset, mask = random_arguments(geometry())

    def run(x, backend=None):
        return dcnv3(x, offset, mask, group=2, backend=backend)

    def loss(x):
        return run(x).square().sum()

    output, tangent = torch.func.jvp(run, (x,), (x,))
    torch.testing.assert_close(tangent, output)  # linear in x
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(torch.func.grad(loss)(x), torch.autograd.grad(loss(leaf), leaf)[0])
    both = torch.func.vmap(run)(torch.stack([x, 2 * x]))
    torch.testing.assert_close(both, torch.stack([output, 2 * output]))
    if choose_backend("cpu") == "cpp":
        with pytest.raises(RuntimeError, match="'cpp' supports neither the transforms"):
            torch.func.grad(lambda x: run(x, "cpp").sum())(x)


def test_forward_mode_keeps_the_tangent():
    x, offset, mask = random_arguments(geometry())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        output = torch.autograd.forward_ad.unpack_dual(dcnv3(dual, offset, mask, group=2))
        torch.testing.assert_close(output.tangent, output.primal)
