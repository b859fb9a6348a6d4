"""The layer: keys, initial state, options, and the original package's names."""

import copy

import pytest
import torch

from ops_dcnv3.functions import DCNv3Function, dcnv3
from ops_dcnv3.modules import DCNv3, DCNv3_pytorch

KEYS = [
    "dw_conv.0.weight",
    "dw_conv.0.bias",
    "dw_conv.1.1.weight",
    "dw_conv.1.1.bias",
    "offset.weight",
    "offset.bias",
    "mask.weight",
    "mask.bias",
    "input_proj.weight",
    "input_proj.bias",
    "output_proj.weight",
    "output_proj.bias",
]
GATE = ["center_feature_scale_proj_weight", "center_feature_scale_proj_bias"]


def randomised(layer, seed=0):
    """The layer with random parameters: at the start offsets are zero and masks equal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return layer.double().eval()


def test_state_dict_keys():
    assert list(DCNv3(16, group=2).state_dict()) == KEYS
    assert list(DCNv3(16, group=2, center_feature_scale=True).state_dict()) == GATE + KEYS
    norm = [key for key in DCNv3(16, group=2, norm_layer="BN").state_dict() if "dw_conv.1" in key]
    assert {key.rsplit(".", 1)[0] for key in norm} == {"dw_conv.1.0"}


def test_epsilon_of_the_norm():
    """What released checkpoints were trained with; PyTorch's own default is 1e-5."""
    assert DCNv3(16, group=2).dw_conv[1][1].eps == 1e-6


def test_shapes_of_offset_and_mask():
    layer = DCNv3(16, group=2, remove_center=True)
    assert layer.offset.out_features == 2 * 8 * 2 and layer.mask.out_features == 2 * 8


def test_at_the_start_it_is_a_box_filter_between_projections():
    layer = DCNv3(8, group=2).double()
    x = torch.randn(2, 6, 5, 8, dtype=torch.float64)
    value = layer.input_proj(x).permute(0, 3, 1, 2)
    box = torch.nn.functional.avg_pool2d(value, 3, 1, 1)  # nine equal masks, zeros outside
    torch.testing.assert_close(layer(x), layer.output_proj(box.permute(0, 2, 3, 1)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel_size": 5, "pad": 2, "dw_kernel_size": 3},
        {"dilation": 2, "pad": 2},
        {"remove_center": True},
        {"center_feature_scale": True},
        {"norm_layer": "BN", "act_layer": "SiLU"},
        {"offset_scale": 2.0},
        {"kernel_size": 1, "pad": 0, "dw_kernel_size": 5},
    ],
    ids=str,
)
def test_options_equal_on_both_backends(options):
    fast = randomised(DCNv3(8, group=2, **options))
    plain = DCNv3_pytorch(8, group=2, **options).double().eval()
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(2, 7, 6, 8, dtype=torch.float64)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    out_a, out_b = fast(a), plain(b)
    assert out_a.shape == x.shape
    torch.testing.assert_close(out_a, out_b)
    for one, other in zip(
        torch.autograd.grad(out_a.sum(), [a, *fast.parameters()]),
        torch.autograd.grad(out_b.sum(), [b, *plain.parameters()]),
    ):
        torch.testing.assert_close(one, other)


def test_center_feature_scale_mixes_the_projected_input_in():
    layer = DCNv3(8, group=2, center_feature_scale=True).double()
    with torch.no_grad():
        layer.center_feature_scale_proj_bias.fill_(100.0)  # the gate is fully open
    x = torch.randn(1, 4, 4, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.output_proj(layer.input_proj(x)))


def test_autocast_and_half_precision():
    layer = DCNv3(16, group=2)
    x = torch.randn(1, 5, 5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_a_copy_and_a_pickle_work():
    import copy
    import pickle

    layer = DCNv3(8, group=2)
    x = torch.randn(1, 4, 4, 8)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(other(x), layer(x))


class TestOriginalNames:
    def arguments(self):
        torch.manual_seed(0)
        x = torch.randn(2, 5, 5, 8, requires_grad=True)
        offset = torch.randn(2, 5, 5, 36, requires_grad=True)
        mask = torch.rand(2, 5, 5, 18, requires_grad=True)
        return x, offset, mask

    def test_function(self):
        tensors = self.arguments()
        sizes = (3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.0)
        expected = dcnv3(*tensors, group=2)
        assert torch.equal(DCNv3Function.apply(*tensors, *sizes, 256, 0), expected)
        assert torch.equal(DCNv3Function.apply(*tensors, *sizes, 64), expected)

    def test_extension_module(self):
        import DCNv3 as extension

        tensors = self.arguments()
        expected = dcnv3(*tensors, group=2)
        cotangent = torch.randn_like(expected)
        gradients = torch.autograd.grad(expected, tensors, cotangent)
        detached = [tensor.detach() for tensor in tensors]
        sizes = (3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.0)
        assert torch.equal(extension.dcnv3_forward(*detached, *sizes, 256, False), expected)
        for one, other in zip(
            extension.dcnv3_backward(*detached, *sizes, cotangent, 256, False), gradients
        ):
            assert torch.equal(one, other)


# --- one matrix product for offsets and masks -----------------------------------------------------


@pytest.mark.parametrize("group", [2, 3, 8])  # 54, 81 and 216 columns: with and without padding
def test_offsets_and_masks_are_those_of_the_two_layers(group):
    layer = randomised(DCNv3(24, group=group))
    features = torch.randn(2, 5, 4, 24, dtype=torch.float64)
    joined = layer._offset_and_mask(features)
    assert joined.shape[-1] % 8 == 0
    expected = torch.cat((layer.offset(features), layer.mask(features)), -1)
    torch.testing.assert_close(joined[..., : expected.shape[-1]], expected)


def test_both_layers_get_their_gradients():
    layer = randomised(DCNv3(24, group=3))
    features = torch.randn(2, 5, 4, 24, dtype=torch.float64)
    weights = torch.randn(2, 5, 4, 3 * 27, dtype=torch.float64)
    parameters = [*layer.offset.parameters(), *layer.mask.parameters()]
    actual = (layer._offset_and_mask(features)[..., : 3 * 27] * weights).sum()
    expected = (torch.cat((layer.offset(features), layer.mask(features)), -1) * weights).sum()
    torch.testing.assert_close(
        torch.autograd.grad(actual, parameters), torch.autograd.grad(expected, parameters)
    )


class Scaled(torch.nn.Linear):
    """A layer that somebody puts in the place of a Linear."""

    def forward(self, x):
        return 0.5 * super().forward(x)


def test_a_replaced_layer_is_called():
    layer = randomised(DCNv3(16, group=2))
    x = torch.randn(1, 5, 4, 16, dtype=torch.float64)
    adapted = copy.deepcopy(layer)
    adapted.offset = Scaled(16, 36, dtype=torch.float64)
    adapted.offset.load_state_dict(layer.offset.state_dict())
    with torch.no_grad():
        layer.offset.weight.mul_(0.5)
        layer.offset.bias.mul_(0.5)
    torch.testing.assert_close(adapted(x), layer(x))


def test_hooks_of_the_layers_run():
    layer = DCNv3(16, group=2)
    seen = []
    layer.mask.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    layer(torch.randn(1, 5, 4, 16))
    assert seen == [(1, 5, 4, 18)]


def test_depthwise_weights_stay_channels_last_when_loaded():
    layer = DCNv3(16, group=2)
    weight = layer.dw_conv[0].weight
    assert weight.stride() == (9, 1, 3, 1)
    plain = {name: tensor.contiguous().clone() for name, tensor in layer.state_dict().items()}
    plain["dw_conv.0.weight"] = torch.randn(16, 1, 3, 3)
    layer.load_state_dict(plain)
    assert torch.equal(weight, plain["dw_conv.0.weight"]) and weight.stride() == (9, 1, 3, 1)
