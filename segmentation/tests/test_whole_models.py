"""UPerNet, SegFormer and Mask2Former equal the original: outputs, inference, losses, gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import recipe
import segmentors
import torch
from torch import Tensor, nn

# The stored arrays are float64 results rounded to float32, whose relative error is 6e-8.
TOLERANCE = 1e-6
NAMES = ("upernet", "segformer", "mask2former")
PADDED = {"image": (112, 144), "original": (90, 115)}


def head_outputs(model: nn.Module, feats: list[Tensor]) -> dict[str, Tensor]:
    """All that is stored of the heads, at the resolution of the heads."""
    named = {f"backbone_out{i}": x for i, x in enumerate(feats)}
    if not hasattr(model.decode_head, "pixel_decoder"):
        named["decode_logits"] = model.decode_head(feats)
        if model.with_auxiliary_head:
            named["aux_logits"] = model.auxiliary_head(feats)
        return named
    head = model.decode_head
    named["pixel_decoder_mask_feature"], levels = head.pixel_decoder(feats)
    class_logits, mask_logits = head(feats)
    named.update({f"pixel_decoder_out{i}": x for i, x in enumerate(levels)})
    named.update({f"cls_logits{i}": x for i, x in enumerate(class_logits)})
    named.update({f"mask_logits{i}": x for i, x in enumerate(mask_logits)})
    named["seg_logits"] = head.forward_test(feats, None)
    return named


def inference(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """Whole and sliding inference, also of padded and of flipped images."""
    named: dict[str, Any] = {}
    for mode, options, size in (
        ("whole", {"mode": "whole"}, {}),
        ("slide", segmentors.SLIDE, {}),
        ("slide_padded", segmentors.SLIDE, PADDED),
    ):
        model.test_cfg.update(options)
        prob = model.inference(images, segmentors.metas(**size), True)
        named["prob_rescaled" if mode == "whole" else f"prob_{mode}"] = prob
        named[f"argmax_{mode}"] = prob.argmax(1)
        # random weights prefer one class everywhere; without the mean all classes occur
        named[f"argmax_centred_{mode}"] = (prob - prob.mean((2, 3), keepdim=True)).argmax(1)
    plain, flipped = segmentors.metas(), segmentors.metas(flip=True)
    named["argmax_slide_aug_flip"] = np.stack(model.aug_test([images] * 2, [plain, flipped]))
    model.test_cfg.mode = "whole"
    named["argmax_whole_flip"] = np.stack(model.simple_test(images, flipped))
    return named


@pytest.mark.parametrize("name", NAMES)
def test_segmentor_outputs_equal_the_original(name):
    expected = recipe.load_json("whole_models/forward.json.gz")[name]
    with recipe.float64(), torch.no_grad():
        model = segmentors.build(name).eval()
        keys = [[key, list(value.shape)] for key, value in model.state_dict().items()]
        assert keys == recipe.load_json("whole_models/keys.json.gz")[name]
        assert sum(p.numel() for p in model.parameters()) == expected["n_params"]
        images = recipe.images()
        actual = {**head_outputs(model, model.extract_feat(images)), **inference(model, images)}
    stored = recipe.load_arrays(f"whole_models/forward/{name}.npz")
    assert {key.partition("@")[0] for key in stored} == set(actual)
    recipe.assert_close(actual, stored, TOLERANCE)
    for key, check in expected["checks"].items():  # of the whole array, where a part is stored
        assert list(actual[key].shape) == check["shape"]
        assert actual[key].mean().item() == pytest.approx(check["mean"], abs=1e-7)
        assert actual[key].norm().item() == pytest.approx(check["l2"], rel=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_segmentor_outputs_in_float32_are_near(name):
    """Rounding alone: the original's own float32 run differs by up to 1.4e-5 (mask logits)."""
    with torch.no_grad():
        model = segmentors.build(name).eval()
        actual = head_outputs(model, model.extract_feat(recipe.images().float()))
    stored = recipe.load_arrays(f"whole_models/forward/{name}.npz")
    stored = {key: value for key, value in stored.items() if key.partition("@")[0] in actual}
    recipe.assert_close(actual, stored, 2e-5)


def loss_runs() -> list[tuple[str, str]]:
    runs = recipe.load_json("whole_models/loss.json")
    return [(name, run) for name in NAMES for run in runs[name] if "error" not in runs[name][run]]


@pytest.mark.parametrize(("name", "run"), loss_runs())
def test_segmentor_losses_and_gradients_equal_the_original(name, run):
    # sums in another order: float32 has a relative error of 6e-8 per operation
    tolerance = 1e-7 if run.startswith("f64") else 2e-5
    expected = recipe.load_json("whole_models/loss.json")[name][run]
    norms = recipe.load_json("whole_models/grad_norms.json.gz")[f"{name}/{run}"]
    with recipe.float64() if run.startswith("f64") else torch.enable_grad():
        model = segmentors.build(name).train()
        if expected["bn"] == "eval":
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        images = recipe.images().to(torch.get_default_dtype())
        torch.manual_seed(expected["seed"])
        np.random.seed(expected["seed"])
        losses = model.forward_train(images, segmentors.metas(), segmentors.targets())
        total = segmentors.total(losses)
        total.backward()
    assert list(losses) == list(expected["losses"])
    for key, value in expected["losses"].items():
        assert losses[key].item() == pytest.approx(value, rel=tolerance, abs=tolerance), key
    assert total.item() == pytest.approx(expected["total"], rel=tolerance)
    actual = {key: p.grad.norm().item() for key, p in model.named_parameters()}  # none is None
    assert actual.keys() == norms.keys()
    scale = max(norms.values())
    for key, value in norms.items():
        assert actual[key] == pytest.approx(value, rel=tolerance * 10, abs=tolerance * scale), key
