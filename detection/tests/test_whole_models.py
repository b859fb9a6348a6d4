"""Whole Mask R-CNN and Cascade Mask R-CNN: outputs, losses and gradients of the original.

With the weights that the recipe defines, a released checkpoint's architecture is compared value by
value, from the backbone to the detections, and in training from the sampled anchors to the norm of
every gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmdet_custom  # noqa: F401  registers the backbones
import numpy as np
import pytest
import recipe
import torch
from mmcv import Config
from mmdet.core.bbox.samplers import RandomSampler
from mmdet.models import build_detector
from torch import Tensor, nn

# Stored are float64 results rounded to float32: 6e-8 of the value, which is also what was measured.
TOLERANCE = 1e-6
FORWARD = recipe.load_json("whole_models/forward.json.gz")
LOSSES = recipe.load_json("whole_models/loss.json")
GRAD_NORMS = recipe.load_json("whole_models/grad_norms.json.gz")
NAMES = ("mask_rcnn", "cascade_mask_rcnn")
REAL = "real_mask_rcnn_internimage_t_fpn_1x_coco"


@pytest.fixture(scope="module")
def detectors() -> dict[str, nn.Module]:
    """Both models in float64, anchors and all."""
    with recipe.float64():
        return {name: recipe.build_detector(name).eval() for name in NAMES}


@pytest.fixture
def double() -> Iterator[None]:
    """float64 as default dtype while the test runs."""
    with recipe.float64():
        yield


def stage_outputs(model: nn.Module, feats: tuple[Tensor, ...], rois: Tensor) -> dict[str, Tensor]:
    """What the heads of every RoI stage say about the same boxes."""
    head = model.roi_head
    named = {}
    stages = getattr(head, "num_stages", None)
    for stage in range(stages or 1):
        args, suffix = ((stage,), str(stage)) if stages else ((), "")
        boxes = head._bbox_forward(*args, feats, rois)
        named[f"cls_score{suffix}"] = boxes["cls_score"]
        named[f"bbox_pred{suffix}"] = boxes["bbox_pred"]
        named[f"mask_pred{suffix}"] = head._mask_forward(*args, feats, rois)["mask_pred"]
        if not stages:
            named["roi_feat_mean"] = boxes["bbox_feats"].mean((2, 3))
    return named


def forward_arrays(
    model: nn.Module, images: Tensor, metas: list[dict[str, Any]], rois: Tensor
) -> dict[str, Tensor]:
    """Every intermediate result by its stored name."""
    named = {}
    with torch.no_grad():
        features = model.backbone(images)
        maps = model.neck(features)
        rpn_cls, rpn_bbox = model.rpn_head(maps)
        parts = {"backbone_out": features, "neck_out": maps, "rpn_cls": rpn_cls}
        parts |= {"rpn_bbox": rpn_bbox, "proposals": model.rpn_head.simple_test_rpn(maps, metas)}
        for part, values in parts.items():
            named |= {f"{part}{i}": value for i, value in enumerate(values)}
        named |= stage_outputs(model, maps, rois)
    return named


def detection_arrays(results: list[Any], with_masks: bool) -> dict[str, np.ndarray]:
    """Detections per image, grouped by class: boxes (n, 5), labels (n), masks (n, h, w)."""
    named = {}
    for i, result in enumerate(results):
        boxes, masks = result if isinstance(result, tuple) else (result, None)
        named[f"det_boxes{i}"] = np.concatenate(boxes)
        named[f"det_labels{i}"] = np.repeat(np.arange(len(boxes)), [len(b) for b in boxes])
        if with_masks:
            stack = np.stack([mask for of_class in masks for mask in of_class])
            named[f"det_masks{i}"] = stack
    return named


@pytest.mark.parametrize("name", NAMES)
def test_whole_model_keys_and_parameters(name, detectors):
    state = detectors[name].state_dict()
    shapes = [[key, list(value.shape)] for key, value in state.items()]
    assert shapes == recipe.load_json("whole_models/keys.json.gz")[name]
    count = sum(p.numel() for p in detectors[name].parameters())
    assert count == FORWARD[name]["n_params"]


@pytest.mark.parametrize("name", NAMES)
def test_whole_model_outputs_equal_the_original(name, detectors, double):
    model = detectors[name]
    images, metas = recipe.images(), recipe.img_metas()
    stored = recipe.load_arrays(f"whole_models/forward/{FORWARD[name]['file']}")
    named = forward_arrays(model, images, metas, recipe.rois())
    mask_head, model.roi_head.mask_head = model.roi_head.mask_head, None  # float32 only, see below
    try:
        with torch.no_grad():
            results = model.simple_test(images, metas, rescale=True)
    finally:
        model.roi_head.mask_head = mask_head
    named |= detection_arrays(results, with_masks=False)
    expected = {key: value for key, value in stored.items() if not key.startswith("det_mask")}
    assert len(expected) == len(stored) - 4
    recipe.assert_close(named, expected, TOLERANCE)
    for key, check in FORWARD[name]["checks"].items():
        assert list(named[key].shape) == check["shape"]
        assert named[key].mean().item() == pytest.approx(check["mean"], abs=1e-6)
        assert named[key].norm().item() == pytest.approx(check["l2"], rel=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_whole_model_masks_equal_the_original(name):
    model = recipe.build_detector(name).eval()  # float32, as the stored masks were made
    stored = recipe.load_arrays(f"whole_models/forward/{FORWARD[name]['file']}")
    with torch.no_grad():
        results = model.simple_test(recipe.images().float(), recipe.img_metas(), rescale=True)
    named = detection_arrays(results, with_masks=True)
    for i in range(2):
        np.testing.assert_array_equal(named[f"det_labels{i}"], stored[f"det_labels{i}"])
        # float32 against float64: the largest difference measured with the original was 7e-4 px
        np.testing.assert_allclose(
            named[f"det_boxes{i}"], stored[f"det_boxes{i}"], rtol=0, atol=2e-3
        )
        shape = FORWARD[name]["extra"][f"det_masks_shape{i}"]
        count = int(np.prod(shape))
        masks = np.unpackbits(stored[f"det_masks_packed{i}"])[:count].reshape(shape)
        np.testing.assert_array_equal(masks.sum((1, 2)), stored[f"det_mask_area{i}"])
        differing = (named[f"det_masks{i}"] != masks.astype(bool)).sum()
        assert differing <= 1e-5 * count  # pixels whose probability is 0.5 within float32


def record_samples(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The results of every sampler, in the order of the calls."""
    results = []
    sample = RandomSampler.sample

    def recording(self: RandomSampler, *args: Any, **kwargs: Any) -> Any:
        results.append(sample(self, *args, **kwargs))
        return results[-1]

    monkeypatch.setattr(RandomSampler, "sample", recording)
    return results


def total_loss(losses: dict[str, Any]) -> Tensor:
    """The sum that is differentiated: everything whose name contains "loss"."""
    parts = [value for key, value in losses.items() if "loss" in key]
    return sum(sum(x.mean() for x in v) if isinstance(v, list) else v.mean() for v in parts)


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("mask_rcnn", "f64"),
        ("cascade_mask_rcnn", "f64_bn_batch"),
        ("cascade_mask_rcnn", "f64_bn_eval"),
    ],
)
def test_whole_model_losses_and_gradients_equal_the_original(
    name, run, detectors, double, monkeypatch
):
    model, expected = detectors[name], LOSSES[name][run]
    model.train()
    if expected["bn"] == "eval":
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    samples = record_samples(monkeypatch)
    torch.manual_seed(expected["seed"])
    np.random.seed(expected["seed"])
    try:
        losses = model.forward_train(recipe.images(), recipe.img_metas(), **recipe.targets())
        total = total_loss(losses)
        total.backward()
        gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()
        for key, value in model.named_buffers():
            value.copy_(buffers[key])  # the running statistics

    assert list(losses) == list(expected["losses"])
    for key, want in expected["losses"].items():
        got = [x.item() for x in losses[key]] if isinstance(want, list) else losses[key].item()
        assert got == pytest.approx(want, rel=1e-7, abs=1e-9), key
    assert total.item() == pytest.approx(expected["total"], rel=1e-7)

    stored = recipe.load_arrays(f"whole_models/loss/{name}.npz")
    stored_run = run.replace("_bn_", "_")
    assert sum(key.startswith(f"{stored_run}/") for key in stored) == 2 * len(samples) > 0
    for i, sample in enumerate(samples):
        for kind, indices in (("pos", sample.pos_inds), ("neg", sample.neg_inds)):
            want = stored[f"{stored_run}/sample{i:02d}_{kind}"]
            np.testing.assert_array_equal(indices.numpy(), want)

    norms = GRAD_NORMS[f"{name}/{run}"]
    assert set(norms) == set(gradients)
    for key, want in norms.items():
        assert gradients[key].norm().item() == pytest.approx(want, rel=1e-6, abs=1e-9), key
    zero = [key for key, want in norms.items() if want == 0]
    assert zero == expected["zero_grad_params"]


def test_whole_model_full_size_equals_the_original(double):
    """Mask R-CNN with InternImage-T, all 48.9 M parameters, at 128x160."""
    entry = FORWARD[REAL]
    model = recipe.fill(build_detector(full_size_config())).eval()
    named = forward_arrays(
        model, recipe.images(1), [recipe.single_meta(128, 160)], recipe.rois()[:3]
    )
    assert sum(p.numel() for p in model.parameters()) == entry["n_params"]
    assert len(model.state_dict()) == entry["n_keys"]
    stored = recipe.load_arrays(f"whole_models/forward/{entry['file']}")
    recipe.assert_close(named, stored, TOLERANCE)


def full_size_config() -> Any:
    """The `model` of the published configuration, without pretrained weights."""
    path = Path(__file__).parents[1] / "configs/coco/mask_rcnn_internimage_t_fpn_1x_coco.py"
    config = Config.fromfile(path).model
    config.backbone.init_cfg = None
    return config
