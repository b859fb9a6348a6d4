"""The backbones: outputs of the original implementation, freezing, checkpointing, composites."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mmdet_custom  # noqa: F401  registers the backbones
import pytest
import recipe
import torch
from mmdet.models.builder import build_backbone
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
