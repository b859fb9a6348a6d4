"""CB-DINO: the original's numbers for one image, its proper definition for several."""

from __future__ import annotations

import copy
import logging
from typing import Any

import mmdet_custom  # noqa: F401  registers the models
import numpy as np
import pytest
import recipe
import torch
from mmcv import ConfigDict
from mmdet.models import build_detector
from torch import nn

TOLERANCE = 1e-6  # see test_dino.py


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with recipe.float64():
        return recipe.build_detector("cb_dino")


def batch(images: int) -> tuple[Any, ...]:
    targets = recipe.targets(images)
    metas = recipe.img_metas()[:images]
    return recipe.images()[:images], metas, targets["gt_bboxes"], targets["gt_labels"]


def test_state_dict_has_the_keys_shapes_and_order_of_the_original(model: nn.Module) -> None:
    expected = recipe.load_json("whole_models/keys.json.gz")["cb_dino"]
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == expected


@torch.no_grad()
def test_outputs_and_detections(model: nn.Module) -> None:
    images, metas = recipe.images(), recipe.img_metas()
    with recipe.float64():
        backbones = model.train().backbone(images)
        train_necks = model.neck(backbones)
        neck = model.eval().extract_feat(images)
        scores, boxes, enc_scores, enc_boxes = model.bbox_head(neck, metas)
        results = model.simple_test(images, metas, rescale=True)
    actual = {
        "all_cls_scores": scores,
        "all_bbox_preds": boxes,
        "enc_topk_score": enc_scores,
        "enc_topk_anchor": enc_boxes,
    }
    actual |= {
        f"backbone{b}_out{i}": x for b, maps in enumerate(backbones) for i, x in enumerate(maps)
    }
    actual |= {
        f"train_neck{b}_out{i}": x for b, maps in enumerate(train_necks) for i, x in enumerate(maps)
    }
    actual |= {f"neck_out{i}": x for i, x in enumerate(neck)}
    for i, result in enumerate(results):
        actual[f"det_boxes{i}"] = np.concatenate(result)
        actual[f"det_labels{i}"] = np.repeat(np.arange(5), [len(part) for part in result])
    expected = recipe.load_arrays("whole_models/forward/cb_dino.npz")
    del expected["enc_topk_indices"]
    recipe.assert_close(actual, expected, TOLERANCE)


def test_gradients_for_one_image_equal_the_original(model: nn.Module) -> None:
    """Every norm, so also the weights of both halves and the random denoising queries agree."""
    with recipe.float64():
        torch.manual_seed(0)
        losses = model.train().forward_train(*batch(1))
        model.zero_grad()
        sum(losses.values()).backward()
    names = list(recipe.load_json("whole_models/loss.json")["dino"]["f64"]["losses"])
    assert list(losses) == [f"{n}0_w0.5" for n in names] + [f"{n}1" for n in names]
    norms = recipe.load_json("whole_models/grad_norms.json.gz")["cb_dino/f64"]
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert list(gradients) == list(norms)
    for key, norm in norms.items():
        assert gradients[key].norm().item() == pytest.approx(norm, rel=1e-6, abs=1e-9), key


def test_several_images_have_the_losses_of_a_batch_for_either_backbone(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the random part: what a plain DINO head says about the maps of each backbone."""
    head = model.bbox_head
    monkeypatch.setattr(head, "dn_generator", None)
    images, *targets = batch(2)
    with recipe.float64(), torch.no_grad():
        model.train()
        losses = model.forward_train(images, *targets)
        for backbone, maps in enumerate(model.extract_feat(images)):
            plain = head.loss(*head(maps, targets[0]), targets[1], targets[2], targets[0])
            weight, suffix = ((0.5, "0_w0.5"), (1, "1"))[backbone]
            for name, loss in plain.items():
                torch.testing.assert_close(losses[name + suffix], loss * weight)


def test_two_images_with_denoising_equal_the_mean_over_their_boxes(model: nn.Module) -> None:
    """Twice the same image: the losses of one image, with twice as many independent copies."""
    images, metas, boxes, labels = batch(1)
    double = [torch.cat((images, images)), metas * 2, boxes * 2, labels * 2]
    with recipe.float64(), torch.no_grad():
        model.train()
        one = model.forward_train(images, metas, boxes, labels)
        two = model.forward_train(*double)
        sizes = [model.forward_train(*double)["dn_loss_bbox1"].item() for _ in range(3)]
    for name, loss in one.items():
        if "dn_" not in name:
            torch.testing.assert_close(two[name], loss)
    assert np.isfinite(sizes).all()
    assert len(set(sizes)) == 3


@pytest.mark.parametrize("counts", [(1, 0), (0, 0)])
def test_images_without_boxes_train(model: nn.Module, counts: tuple[int, ...]) -> None:
    images, metas, boxes, labels = batch(2)
    boxes = [b[:n] for b, n in zip(boxes, counts)]
    labels = [x[:n] for x, n in zip(labels, counts)]
    with recipe.float64():
        losses = model.train().forward_train(images, metas, boxes, labels)
        model.zero_grad()
        sum(losses.values()).backward()
    assert len(losses) == 30
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_eval_mode_has_the_losses_of_the_lead_backbone(model: nn.Module) -> None:
    with recipe.float64(), torch.no_grad():
        losses = model.eval().forward_train(*batch(2))
    assert len(losses) == 9
    assert all(name.endswith("1") for name in losses)


@pytest.mark.parametrize("per_process", [1, 2])
def test_a_few_steps_reduce_the_loss(per_process: int) -> None:
    logging.getLogger("mmcv").setLevel(logging.WARNING)  # init_weights lists every parameter
    cfg = ConfigDict(copy.deepcopy(recipe.load_json("whole_models/configs.json")["cb_dino"]))
    torch.manual_seed(0)
    model = build_detector(cfg)
    model.init_weights()
    model.train()
    images = recipe.images(per_process, 64, 96).float()
    metas = [recipe.single_meta(64, 96) for _ in range(per_process)]
    boxes = [torch.tensor([[5.0, 5, 60, 50]]), torch.tensor([[30.0, 2, 90, 60], [8, 8, 40, 40]])]
    labels = [torch.tensor([0]), torch.tensor([3, 1])]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    totals = []
    for _ in range(8):
        torch.manual_seed(1)
        losses = model.forward_train(images, metas, boxes[:per_process], labels[:per_process])
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.9 * totals[0]


def test_rule_is_refused() -> None:
    cfg = ConfigDict(copy.deepcopy(recipe.load_json("whole_models/configs.json")["cb_dino"]))
    with pytest.raises(TypeError, match="rule"):
        build_detector(ConfigDict(cfg, rule="backbone"))
