"""DINO against the numbers of the original implementation, in float64.

From the keys of the state dict over the selected queries to the detections, and in training from
the random denoising queries over the matching to the norm of every gradient.
"""

from __future__ import annotations

from collections.abc import Iterator

import mmdet_custom  # noqa: F401  registers the models
import numpy as np
import pytest
import recipe
import torch
from mmdet.core.bbox.assigners import HungarianAssigner
from mmdet_custom.models.utils import CdnQueryGenerator
from mmdet_custom.models.utils.query_denoising import attention_mask
from torch import nn

# Stored are float64 results rounded to float32 (6e-8 of the value). Boxes of detections pass the
# float32 sine tables of the original: 3e-6 pixels measured, near 100.
TOLERANCE = 1e-6
NAMES = ("dino", "dino_g")
FORWARD = recipe.load_json("whole_models/forward.json.gz")
LOSSES = recipe.load_json("whole_models/loss.json")
GRAD_NORMS = recipe.load_json("whole_models/grad_norms.json.gz")


@pytest.fixture(scope="module")
def detectors() -> dict[str, nn.Module]:
    with recipe.float64():
        return {name: recipe.build_detector(name).eval() for name in NAMES}


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with recipe.float64():
        yield


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_has_the_keys_shapes_and_order_of_the_original(
    detectors: dict[str, nn.Module], name: str
) -> None:
    expected = recipe.load_json("whole_models/keys.json.gz")[name]
    state = detectors[name].state_dict()
    assert [[key, list(value.shape)] for key, value in state.items()] == expected


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_outputs_and_detections(detectors: dict[str, nn.Module], name: str) -> None:
    model = detectors[name].eval()
    images, metas = recipe.images(), recipe.img_metas()
    selected = []
    hook = model.bbox_head.transformer.register_forward_hook(
        lambda module, args, output: selected.append(output)
    )
    backbone = model.backbone(images)
    neck = model.neck(backbone)
    scores, boxes, _, _ = model.bbox_head(neck, metas)
    hook.remove()
    actual = {
        "all_cls_scores": scores,
        "all_bbox_preds": boxes,
        "enc_topk_score": selected[0].topk_score,
        "enc_topk_anchor": selected[0].topk_anchor,
        "enc_topk_indices": selected[0].topk_indices,
    }
    actual |= {f"backbone_out{i}": x for i, x in enumerate(backbone)}
    actual |= {f"neck_out{i}": x for i, x in enumerate(neck)}
    for i, result in enumerate(model.simple_test(images, metas, rescale=True)):
        actual[f"det_boxes{i}"] = np.concatenate(result)
        actual[f"det_labels{i}"] = np.repeat(np.arange(5), [len(part) for part in result])
    expected = recipe.load_arrays(f"whole_models/forward/{name}.npz")
    recipe.assert_close(actual, expected, TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_training_losses_matching_queries_and_gradients(
    detectors: dict[str, nn.Module], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = detectors[name].train()
    assigned, drawn = [], []
    assign, draw = HungarianAssigner.assign, CdnQueryGenerator.__call__

    def recorded_assign(self, *args, **kwargs):
        result = assign(self, *args, **kwargs)
        assigned.append(result.gt_inds)
        return result

    def recorded_draw(self, *args, **kwargs):
        drawn.append(draw(self, *args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(HungarianAssigner, "assign", recorded_assign)
    monkeypatch.setattr(CdnQueryGenerator, "__call__", recorded_draw)
    targets = recipe.targets()
    batch = (recipe.images(), recipe.img_metas(), targets["gt_bboxes"], targets["gt_labels"])
    torch.manual_seed(0)
    losses = model.forward_train(*batch)
    total = sum(losses.values())
    model.zero_grad()
    total.backward()

    expected = LOSSES[name]["f64"]
    assert list(losses) == list(expected["losses"])
    for key, value in expected["losses"].items():
        assert losses[key].item() == pytest.approx(value, rel=1e-7), key
    assert total.item() == pytest.approx(expected["total"], rel=1e-7)

    (queries,) = drawn
    assert {
        "pad_size": queries.pad_size,
        "num_dn_group": queries.num_groups,
    } == expected["dn_meta"]
    arrays = recipe.load_arrays(f"whole_models/loss/{name}.npz")
    actual = {f"f64/assigned_gt_inds_call{i:02}": gt_inds for i, gt_inds in enumerate(assigned)}
    actual["f64/dn_label_query"] = queries.label_query
    actual["f64/dn_bbox_query"] = queries.bbox_query
    actual["f64/attn_mask"] = np.packbits(queries.attn_mask.numpy())
    stored = {key: value for key, value in arrays.items() if key.startswith("f64/")}
    assert len(actual) == len(stored)
    recipe.assert_close(actual, stored, TOLERANCE)

    norms = GRAD_NORMS[f"{name}/f64"]
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert list(gradients) == list(norms)
    for key, norm in norms.items():
        assert gradients[key].norm().item() == pytest.approx(norm, rel=1e-6, abs=1e-9), key


@pytest.mark.parametrize("name", NAMES)
def test_losses_without_denoising(
    detectors: dict[str, nn.Module], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same values, so nothing of the denoising part reaches the matching queries."""
    model = detectors[name].train()
    monkeypatch.setattr(model.bbox_head, "dn_generator", None)
    targets = recipe.targets()
    batch = (recipe.images(), recipe.img_metas(), targets["gt_bboxes"], targets["gt_labels"])
    with torch.no_grad():
        losses = model.forward_train(*batch)
    expected = LOSSES[name]["f64"]["losses_without_denoising"]
    assert {key: value.item() for key, value in losses.items()} == pytest.approx(expected, rel=1e-7)
    with_denoising = list(LOSSES[name]["f64"]["losses"])
    assert list(losses) == [key for key in with_denoising if "dn_" not in key]


def test_float32_draws_are_reproduced_too(detectors: dict[str, nn.Module]) -> None:
    """The noise of the boxes is drawn in their dtype: other numbers than in float64."""
    head = detectors["dino"].bbox_head
    embedding = nn.Embedding(5, 64)
    embedding.load_state_dict(head.label_embedding.state_dict())
    targets = recipe.targets(dtype=torch.float32)
    torch.manual_seed(0)
    queries = head.dn_generator(
        targets["gt_bboxes"], targets["gt_labels"], recipe.img_metas(), embedding.float(), 30
    )
    arrays = recipe.load_arrays("whole_models/loss/dino.npz")
    stored = {key: arrays[f"f32/{key}"] for key in ("dn_label_query", "dn_bbox_query")}
    actual = {"dn_label_query": queries.label_query, "dn_bbox_query": queries.bbox_query}
    recipe.assert_close(actual, stored, TOLERANCE)
    assert queries.bbox_query.dtype == torch.float32


def test_stored_mask_is_the_rule_of_the_paper() -> None:
    arrays = recipe.load_arrays("whole_models/loss/dino.npz")
    mask = attention_mask(24, 30, 4, torch.device("cpu")).numpy()
    assert np.array_equal(np.packbits(mask), arrays["f64/attn_mask"])
