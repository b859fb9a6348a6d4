"""Outputs, feature maps and gradients against the original implementation, in float64."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from weight_recipe import apply_recipe, recipe_cotangent, recipe_input, recipe_weight

from models import InternImage, InternImageClassifier, InternImageMetaFormer

DATA = Path(__file__).parent / "data"
CLASSES = {
    "trunk": InternImage,
    "classifier": InternImageClassifier,
    "meta_former": InternImageMetaFormer,
}
CASES = json.loads(gzip.decompress((DATA / "models_forward.json.gz").read_bytes()))
EXACT = 1e-11  # float64 against float64, relative to the largest value
ROUNDED = 1e-7  # the stored maps are rounded to float32, which alone is 6e-8


@pytest.fixture(scope="module")
def arrays():
    with np.load(DATA / "models_forward.npz") as file:
        return {key: torch.from_numpy(file[key]).double() for key in file.files}


def build(case):
    return apply_recipe(CLASSES[case["model"]](**case["kwargs"]))


def inputs(case):
    extra = [recipe_input(e["shape"], e["seed"]) for e in case.get("extra_inputs", [])]
    return [recipe_input(case["input_shape"], case["input_seed"]), *extra]


def assert_near(got, want, tolerance):
    assert got.shape == want.shape
    error = ((got - want).abs().max() / want.abs().max()).item()
    assert error < tolerance, f"relative error {error:.2e}"


def test_recipe_check_values():
    first = recipe_weight("patch_embed.conv1.weight", (8, 3, 3, 3)).flatten()[:4].tolist()
    assert first == [
        0.08769246190786362,
        0.2895832061767578,
        0.1302395612001419,
        -0.0376204177737236,
    ]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_forward(case, arrays):
    model = build(case)
    assert sum(p.numel() for p in model.parameters()) == case["n_params"]
    images, *extra = inputs(case)
    want = {name: arrays[key] for name, key in case["arrays"].items()}
    with torch.no_grad():
        if case["model"] == "trunk":
            maps = model(images)
            names = [f"stage{i}_nchw" for i in case["kwargs"]["out_indices"]]
            assert names == list(want)
            for got, name in zip(maps, names, strict=True):
                assert got.is_contiguous()
                assert_near(got, want[name], ROUNDED)
            return
        assert_near(model(images, *extra), want.pop("logits"), EXACT)
        if want:
            maps = model.forward_features_seq_out(images)
            assert [f"stage{i}_nhwc" for i in range(len(maps))] == list(want)
            for got, expected in zip(maps, want.values(), strict=True):
                assert_near(got, expected, ROUNDED)


@pytest.mark.parametrize("name", ["base", "post_norm_layer_scale", "tiny_h", "norm_bn"])
def test_float32_and_bfloat16_autocast(name, arrays):
    case = next(case for case in CASES if case["name"] == name)
    model = build(case).float()
    images = inputs(case)[0].float()
    want = arrays[case["arrays"]["logits"]]
    assert_near(model(images).double(), want, 1e-5)  # measured: 1e-6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images)
    assert_near(logits.double(), want, 0.05)  # measured: 0.007 to 0.015
    logits.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


WITH_GRADS = [case for case in CASES if "grads" in case]


@pytest.mark.parametrize("case", WITH_GRADS, ids=[case["name"] for case in WITH_GRADS])
def test_parameter_gradients(case):
    model = build(case)
    logits = model(*inputs(case))
    (logits * recipe_cotangent(logits.shape, case["grad_cotangent_seed"])).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    # A key's bias moves all scores of a softmax alike: its gradient is rounding noise around zero.
    want = {name: value for name, value in case["grads"].items() if value[0] > 1e-12}
    assert {name for name, grad in grads.items() if grad.norm() > 1e-12} == set(want)
    for name, (norm, total) in want.items():
        scale = norm * grads[name].numel() ** 0.5  # bound of a sum of entries of this norm
        assert abs(grads[name].norm().item() - norm) <= 1e-9 * norm, name
        assert abs(grads[name].sum().item() - total) <= 1e-9 * scale, name
