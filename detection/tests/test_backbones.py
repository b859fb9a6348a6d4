"""The backbones: outputs of the original implementation, freezing, checkpointing, composites."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import mmdet_custom  # noqa: F401  registers the backbones
import pytest
import recipe
import torch
from mmdet.models.builder import build_backbone, build_neck
from torch import Tensor, nn

# The stored arrays are float64 results rounded to float32, whose relative error is 6e-8.
TOLERANCE = 1e-6
TINY = {"type": "InternImage", "channels": 16, "depths": [1, 1, 2, 1], "groups": [2, 4, 8, 16]}
CB_TINY = {**TINY, "type": "CBInternImage", "out_indices": [[0, 1, 2, 3], [1, 2, 3]]}

FIXTURES = recipe.load_json("backbones/index.json.gz")
FLASH_FIXTURES = recipe.load_json("backbones/dcnv4_index.json.gz")


def build(**config: Any) -> nn.Module:
    """A backbone with the weights of the recipe, float64, in evaluation mode."""
    return recipe.fill(build_backbone(config)).double().eval()


@pytest.fixture
def images() -> Iterator[Tensor]:
    yield recipe.random_input((2, 3, 64, 96), seed=3)


def flattened(outputs: Any) -> list[Tensor]:
    """The maps of a backbone, of one trunk or several."""
    return [x for item in outputs for x in (item if isinstance(item, list) else [item])]


@pytest.mark.parametrize("fixture", FIXTURES + FLASH_FIXTURES, ids=lambda f: f["cls"] + f["name"])
def test_backbone_equals_the_original(fixture):
    if "forward_error" in fixture:  # the original fails without layer_scale; this one runs
        model = build(type=fixture["cls"], **fixture["kwargs"])
        assert sum(p.numel() for p in model.parameters()) == fixture["n_params"]
        outputs = model(recipe.random_input(fixture["input_shape"], fixture["input_seed"]))
        assert all(torch.isfinite(x).all() for x in outputs)
        return
    model = build(type=fixture["cls"], **fixture["kwargs"])
    assert sum(p.numel() for p in model.parameters()) == fixture["n_params"]
    if "keys" in fixture:
        shapes = [[key, list(value.shape)] for key, value in model.state_dict().items()]
        assert shapes == fixture["keys"]
    with torch.no_grad():
        outputs = model(recipe.random_input(fixture["input_shape"], fixture["input_seed"]))
    if fixture["cls"] == "CBInternImage":
        named = {
            f"backbone{i}_out{level}_nchw": x
            for i, maps in enumerate(outputs)
            for level, x in enumerate(maps)
        }
    else:
        named = {f"stage{i}_nchw": x for i, x in zip(model.out_indices, outputs, strict=True)}
    recipe.assert_close(named, recipe.load_arrays(f"backbones/{fixture['file']}"), TOLERANCE)
    for name, (mean, std) in fixture["checks"].items():
        assert named[name].mean().item() == pytest.approx(mean, abs=1e-7)
        assert named[name].std(correction=0).item() == pytest.approx(std, abs=1e-7)


@pytest.mark.parametrize("config", [TINY, CB_TINY], ids=["one", "composite"])
def test_backbone_train_and_eval_return_the_backbone(config):
    model = build_backbone(config)
    assert model.train() is model and model.training
    assert model.eval() is model and not model.training


def test_backbone_returns_the_levels_of_out_indices(images):
    every = build(**TINY)(images)
    assert [tuple(x.shape) for x in every] == [
        (2, 16, 16, 24),
        (2, 32, 8, 12),
        (2, 64, 4, 6),
        (2, 128, 2, 3),
    ]
    for indices in ([1, 2, 3], [0, 3], [2]):
        some = build(**TINY, out_indices=indices)(images)
        assert len(some) == len(indices)
        for i, x in zip(indices, some, strict=True):
            torch.testing.assert_close(x, every[i], rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [-1, 0, 2, 4])
def test_backbone_freezes_the_stem_and_the_first_levels(frozen):
    model = build_backbone({**TINY, "frozen_stages": frozen, "drop_path_rate": 0.3}).train()
    model.train()  # as the runner does at the start of every epoch
    stem = [p.requires_grad for p in model.patch_embed.parameters()]
    assert set(stem) == {frozen < 0}
    assert model.patch_embed.training == (frozen < 0)
    for i, level in enumerate(model.levels):
        assert {p.requires_grad for p in level.parameters()} == {i >= frozen}
        assert level.training == (i >= frozen)


def gradients(model: nn.Module, images: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs in training mode and the gradients of a weighted sum of them."""
    outputs = flattened(model.train()(images))
    total = sum((x * torch.linspace(-1, 1, x.numel()).view(x.shape)).sum() for x in outputs)
    total.backward()
    return outputs, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "change",
    [{"with_cp": True}, {"use_dcn_v4_op": True}, {"core_op": "DCNv3_pytorch"}],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("config", [TINY, CB_TINY], ids=["one", "composite"])
def test_backbone_variants_compute_the_same(config, change, images):
    outputs, grads = gradients(build(**config), images)
    others, other_grads = gradients(build(**config, **change), images)
    for ours, theirs in zip(outputs, others, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-12, atol=1e-12)
    assert set(grads) == set(other_grads)
    for name, grad in grads.items():  # two orders of summation in the operator's backward pass
        torch.testing.assert_close(other_grads[name], grad, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("config", [TINY, CB_TINY], ids=["one", "composite"])
def test_backbone_trains_in_mixed_precision(config, images):
    model = build(**config).float()
    plain = flattened(model(images.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = flattened(model.train()(images.float()))
    for ours, theirs in zip(mixed, plain, strict=True):
        error = (ours - theirs).norm() / theirs.norm()
        assert 1e-4 < error < 0.05  # bfloat16 has 8 bits; each map is some ten layers deep
    sum(x.float().sum() for x in mixed).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_backbone_checkpointing_recomputes_the_blocks(images):
    model = build(**TINY, with_cp=True).train()
    calls = []
    for level in model.levels:
        for block in level.blocks:
            block.register_forward_pre_hook(lambda *_: calls.append(1))
    outputs = model(images)
    assert len(calls) == 5
    sum(x.sum() for x in outputs).backward()
    assert len(calls) == 10


def test_backbone_keeps_its_initial_weights_without_a_checkpoint():
    torch.manual_seed(0)
    model = build_backbone(TINY)
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    dcn = model.levels[0].blocks[0].dcn
    assert not dcn.offset.weight.any() and not dcn.mask.weight.any()  # a regular grid at first
    assert 0.01 < model.levels[3].blocks[0].mlp.fc1.weight.std() < 0.03
    torch.manual_seed(1)
    other = build_backbone(TINY)
    assert not torch.equal(other.patch_embed.conv1.weight, model.patch_embed.conv1.weight)


def test_backbone_applies_other_init_cfg_as_mmcv_does():
    config = {**TINY, "init_cfg": {"type": "Constant", "layer": "Conv2d", "val": 0.25}}
    model = build_backbone(config)
    model.init_weights()
    assert (model.patch_embed.conv1.weight == 0.25).all()


# Composite backbone ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(72, 72), (33, 95), (64, 40), (1, 1)])
def test_composite_takes_any_image_size(size):
    outputs = build(**CB_TINY)(recipe.random_input((1, 3, *size), seed=4))
    single = build(**TINY)(recipe.random_input((1, 3, *size), seed=4))
    for maps in outputs:
        assert [x.shape for x in maps] == [x.shape for x in single[1:]]
        assert all(torch.isfinite(x).all() for x in maps)


def test_composite_starts_as_two_equal_trunks(images):
    model = build_backbone(CB_TINY).double().eval()
    state = model.cb_modules[0].state_dict()
    model.cb_modules[1].load_state_dict(state, strict=False)
    assert not any(model.cb_modules[1].gate(i).any() for i in range(4))
    first, lead = model(images)
    for ours, theirs in zip(first, lead, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=0)
    joined = build_backbone({**CB_TINY, "cb_zero_init": False})
    assert all((joined.cb_modules[1].gate(i) == 1).all() for i in range(4))


def test_composite_rounds_its_gates_to_float16(images):
    rounded, exact = build(**CB_TINY), build(**CB_TINY, round_gates=False)
    gate = exact.cb_modules[1].gate(2)
    assert torch.equal(rounded.cb_modules[1].gate(2), gate.half().double())
    assert not torch.equal(rounded.cb_modules[1].gate(2), gate)
    for trunk, equal in ((0, True), (1, False)):
        same = [torch.equal(a, b) for a, b in zip(rounded(images)[trunk], exact(images)[trunk])]
        assert same == [equal] * 3
    for model in (rounded, exact):  # the gates are trained either way
        sum(x.square().sum() for x in model.train()(images)[1]).backward()
        assert all(model.cb_modules[1].get_parameter(f"gamma{i}").grad.any() for i in range(4))


def test_composite_has_what_counts_and_optimizers_read():
    model = build_backbone(CB_TINY)
    assert (model.channels, model.depths, model.groups) == (16, (1, 1, 2, 1), (2, 4, 8, 16))


@pytest.mark.parametrize("out_indices", [[0, 1, 2, 3], [[0, 1]], [[0, 1], [2]]])
def test_composite_refuses_wrong_out_indices(out_indices):
    with pytest.raises(ValueError, match="two lists of levels"):
        build_backbone({**CB_TINY, "out_indices": out_indices})


def test_composite_freezes_both_trunks():
    model = build_backbone({**CB_TINY, "frozen_stages": 1}).train()
    for trunk in model.cb_modules:
        assert not any(p.requires_grad for p in trunk.levels[0].parameters())
        assert all(p.requires_grad for p in trunk.levels[1].parameters())
    assert not any(p.requires_grad for p in model.cb_modules[0].patch_embed.parameters())


def test_composite_neck_sees_both_trunks_only_in_training(images):
    config = {
        "type": "CBChannelMapper",
        "in_channels": [32, 64, 128],
        "kernel_size": 1,
        "out_channels": 8,
        "norm_cfg": {"type": "GN", "num_groups": 2},
        "num_outs": 4,
    }
    neck = recipe.fill(build_neck([config])).double()
    assert all(key.startswith("0.") for key in neck.state_dict())
    features = build(**CB_TINY)(images)
    first, lead = neck.train()(features)
    tested = neck.eval()(features)
    assert len(tested) == len(first) == 4
    for a, b, c in zip(first, lead, tested, strict=True):
        assert torch.equal(b, c) and not torch.equal(a, c)
