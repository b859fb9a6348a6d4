"""EfficientFFN computes what mmcv's FFN does, slice by slice."""

from __future__ import annotations

import mmdet_custom  # noqa: F401  registers EfficientFFN
import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN, build_feedforward_network
from mmdet_custom.models.utils import EfficientFFN


def plain_twin(sliced: EfficientFFN, **options: object) -> FFN:
    """mmcv's FFN with the weights of ``sliced``, rearranged."""
    plain = FFN(sliced.embed_dims, sliced.feedforward_channels, **options).double()
    slices = range(4)
    state = {
        "layers.0.0.weight": torch.cat([getattr(sliced, f"fc1_{i}").weight for i in slices]),
        "layers.0.0.bias": torch.cat([getattr(sliced, f"fc1_{i}").bias for i in slices]),
        "layers.1.weight": torch.cat([getattr(sliced, f"fc2_{i}").weight for i in slices], dim=1),
        "layers.1.bias": sliced.fc2_bias,
    }
    plain.load_state_dict(state)
    return plain


def make(**options: object) -> EfficientFFN:
    config = {"type": "EfficientFFN", "embed_dims": 12, "feedforward_channels": 32, **options}
    torch.manual_seed(0)
    ffn = build_feedforward_network(config).double()
    torch.nn.init.normal_(ffn.fc2_bias)
    return ffn


@pytest.mark.parametrize("use_checkpoint", [False, True])
@pytest.mark.parametrize("add_identity", [False, True])
def test_equals_the_plain_network(use_checkpoint: bool, add_identity: bool) -> None:
    sliced = make(use_checkpoint=use_checkpoint, add_identity=add_identity)
    plain = plain_twin(sliced, add_identity=add_identity)
    x = torch.randn(5, 2, 12, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    identity = torch.randn(5, 2, 12, dtype=torch.float64)
    for given in (None, identity):
        a, b = sliced(x, given), plain(y, given)
        torch.testing.assert_close(a, b)
        a.square().sum().backward()
        b.square().sum().backward()
        torch.testing.assert_close(x.grad, y.grad)
    rows = torch.cat([getattr(sliced, f"fc1_{i}").weight.grad for i in range(4)])
    torch.testing.assert_close(rows, plain.layers[0][0].weight.grad)
    torch.testing.assert_close(sliced.fc2_bias.grad, plain.layers[1].bias.grad)


def test_checkpointing_recomputes_the_hidden_layer_with_the_same_dropout() -> None:
    results = []
    for use_checkpoint in (False, True):
        ffn = make(use_checkpoint=use_checkpoint, ffn_drop=0.5).train()
        calls = []
        ffn.activate.register_forward_hook(lambda *args, calls=calls: calls.append(1))
        x = torch.ones(7, 12, dtype=torch.float64, requires_grad=True)
        torch.manual_seed(3)
        ffn(x).sum().backward()
        results.append((x.grad, len(calls)))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert [calls for _, calls in results] == [4, 8]


def test_dropout_layer_is_built_and_used() -> None:
    ffn = make(dropout_layer={"type": "DropPath", "drop_prob": 1 - 1e-9}).train()
    x = torch.randn(3, 2, 12, dtype=torch.float64)
    torch.testing.assert_close(ffn(x), x)


def test_starts_like_a_plain_network() -> None:
    ffn = make(feedforward_channels=512)
    ffn.init_weights()
    bound = (6 / (12 + 512)) ** 0.5
    for i in range(4):
        for layer in (getattr(ffn, f"fc1_{i}"), getattr(ffn, f"fc2_{i}")):
            assert 0.95 * bound < layer.weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feedforward_channels": 30}, "multiple of 4, got 30"),
        ({"num_fcs": 3}, "num_fcs must be 2, got 3"),
        ({"hidden": 3}, "hidden"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make(**options)
