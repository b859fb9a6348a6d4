"""The backbones as mmseg builds them: outputs of the original, modes, gradient checkpointing."""

from __future__ import annotations

from typing import Any

import mmseg_custom  # noqa: F401  registers the backbones
import pytest
import recipe
import torch
from mmseg.models.builder import build_backbone
from torch import nn

# The stored arrays are float64 results rounded to float32, whose relative error is 6e-8.
TOLERANCE = 1e-6
TINY = {"type": "InternImage", "channels": 16, "depths": [1, 1, 2, 1], "groups": [2, 4, 8, 16]}
FIXTURES = recipe.load_json("backbones/index.json.gz")


def build(**config: Any) -> nn.Module:
    """A backbone with the weights of the recipe, float64, in evaluation mode."""
    return recipe.fill(build_backbone(config)).double().eval()


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture["name"])
def test_backbone_equals_the_original(fixture):
    model = build(type=fixture["cls"], **fixture["kwargs"])
    assert sum(p.numel() for p in model.parameters()) == fixture["n_params"]
    with torch.no_grad():
        outputs = model(recipe.random_input(fixture["input_shape"], fixture["input_seed"]))
    named = {f"stage{i}_nchw": x for i, x in zip(model.out_indices, outputs, strict=True)}
    recipe.assert_close(named, recipe.load_arrays(f"backbones/{fixture['file']}"), TOLERANCE)
    for name, (mean, std) in fixture["checks"].items():
        assert named[name].mean().item() == pytest.approx(mean, abs=1e-7)
        assert named[name].std(correction=0).item() == pytest.approx(std, abs=1e-7)


@pytest.mark.parametrize("cls", ["InternImage", "FlashInternImage"])
def test_backbone_modes_and_output_sizes(cls):
    model = build_backbone({**TINY, "type": cls, "out_indices": [0, 3], "groups": [1, 2, 4, 8]})
    assert model.train() is model and model.training
    assert model.eval() is model and not model.training
    with torch.no_grad():
        shapes = [tuple(x.shape) for x in model(torch.randn(1, 3, 65, 50))]  # sizes round up
    assert shapes == [(1, 16, 17, 13), (1, 128, 3, 2)]


def test_backbone_freezes_the_stem_and_the_first_levels():
    model = build_backbone({**TINY, "frozen_stages": 2}).train()
    assert not any(p.requires_grad for p in model.patch_embed.parameters())
    for i, level in enumerate(model.levels):
        assert {p.requires_grad for p in level.parameters()} == {i >= 2}
        assert level.training == (i >= 2)


def test_backbone_checkpointing_computes_the_same_gradients():
    x = recipe.random_input((1, 3, 64, 64), seed=3)
    results = []
    for with_cp in (False, True):
        model = build(**TINY, with_cp=with_cp).train()
        calls = []
        block = model.levels[2].blocks[1]
        block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        total = sum((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() for y in model(x))
        total.backward()
        assert len(calls) == 1 + with_cp  # again in the backward pass
        results.append([p.grad for p in model.parameters()])
    for plain, again in zip(*results, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-9, atol=1e-9)
