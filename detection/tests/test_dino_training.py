"""DINO in use: odd batches, mixed precision, small images, starting weights, merged runs."""

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
from mmdet_custom.models.dense_heads.augmented_results import merge_augmented
from torch import Tensor, nn

BOXES = torch.tensor([[5.0, 5, 40, 40], [10, 10, 60, 50], [30, 2, 90, 60]])
LABELS = torch.tensor([0, 3, 1])


def config(name: str = "dino", **head: Any) -> ConfigDict:
    cfg = ConfigDict(copy.deepcopy(recipe.load_json("whole_models/configs.json")[name]))
    for key, value in head.items():
        cfg.bbox_head[key] = value
    return cfg


@pytest.fixture(scope="module")
def model() -> nn.Module:
    logging.getLogger("mmcv").setLevel(logging.WARNING)  # init_weights lists every parameter
    torch.manual_seed(0)
    detector = build_detector(config())
    detector.init_weights()
    return detector


def batch(counts: list[int], height: int = 64, width: int = 96) -> tuple[Any, ...]:
    images = recipe.images(len(counts), height, width).float()
    metas = [recipe.single_meta(height, width) for _ in counts]
    return images, metas, [BOXES[:n] for n in counts], [LABELS[:n] for n in counts]


def gradients(model: nn.Module, losses: dict[str, Tensor]) -> dict[str, Tensor | None]:
    model.zero_grad()
    sum(losses.values()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("counts", [[2, 2], [3, 0], [0, 0], [0, 1, 3]])
def test_any_number_of_boxes_gives_every_parameter_a_gradient(
    model: nn.Module, counts: list[int]
) -> None:
    """None of them unused, so distributed training needs no search; the same losses everywhere."""
    losses = model.train().forward_train(*batch(counts))
    grads = gradients(model, losses)
    assert [name for name, grad in grads.items() if grad is None or not grad.isfinite().all()] == []
    assert list(losses) == list(recipe.load_json("whole_models/loss.json")["dino"]["f64"]["losses"])
    if not any(counts):
        boxes = {name: loss.item() for name, loss in losses.items() if "loss_cls" not in name}
        assert set(boxes.values()) == {0.0}
        assert grads["bbox_head.cls_branches.0.bias"].abs().sum() > 0


def test_boxes_of_one_image_do_not_depend_on_the_other_images(model: nn.Module) -> None:
    """Losses are means over boxes, so a batch with an empty image only adds background."""
    model.train()
    images, metas, boxes, labels = batch([2, 0])
    torch.manual_seed(0)
    both = model.forward_train(images, metas, boxes, labels)
    torch.manual_seed(0)
    one = model.forward_train(images[:1], metas[:1], boxes[:1], labels[:1])
    for name in both:
        if "loss_cls" not in name:
            torch.testing.assert_close(both[name], one[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_boxes_and_losses_in_float32(model: nn.Module, dtype: torch.dtype) -> None:
    model.train()
    torch.manual_seed(0)
    exact = model.forward_train(*batch([2, 1]))
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype):
        outputs = model.bbox_head(model.extract_feat(batch([1])[0]), batch([1])[1])
        losses = model.forward_train(*batch([2, 1]))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert outputs[1].dtype == outputs[3].dtype == torch.float32
    for name, loss in losses.items():
        if "dn_" in name:  # not subject to another choice of tokens
            torch.testing.assert_close(loss, exact[name], rtol=0.05, atol=0.02)
    assert all(grad.isfinite().all() for grad in gradients(model, losses).values())


def test_eval_mode_has_losses_without_denoising(model: nn.Module) -> None:
    with torch.no_grad():
        losses = model.eval().forward_train(*batch([2, 0]))
    assert len(losses) == 9
    assert not any("dn_" in name for name in losses)


def test_small_images_use_fewer_queries(
    model: nn.Module, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """32x32 pixels are 22 tokens, the model has 30 queries; one pixel is an image too."""
    monkeypatch.setattr(model.bbox_head, "warned_about_tokens", False)
    monkeypatch.setattr(logging.getLogger("mmdet"), "propagate", True)
    images = recipe.images(1, 32, 32).float()
    meta = {**recipe.single_meta(1, 1), "batch_input_shape": (32, 32), "pad_shape": (32, 32, 3)}
    with torch.no_grad():
        for _ in range(2):
            (result,) = model.eval().simple_test(images, [meta], rescale=True)
    boxes = np.concatenate(result)
    assert len(boxes) == 20
    assert np.isfinite(boxes).all()
    assert boxes[:, :4].min() >= 0
    assert boxes[:, :4].max() <= 1
    messages = [r.message for r in caplog.records if "tokens" in r.message]
    assert messages == [
        "images of this size have 22 tokens: only the first 22 of the 30 queries are used"
    ]
    losses = model.train().forward_train(
        images, [recipe.single_meta(32, 32)], [BOXES[:1] / 2], [LABELS[:1]]
    )
    assert all(grad.isfinite().all() for grad in gradients(model, losses).values())


def test_fewer_pairs_than_detections_asked_for() -> None:
    cfg = config(num_classes=1)
    cfg.test_cfg.max_per_img = 300
    with torch.no_grad():
        detector = build_detector(cfg).eval()
        (result,) = detector.simple_test(*batch([1])[:2], rescale=True)
    assert [len(part) for part in result] == [30]


def test_starting_weights(model: nn.Module) -> None:
    """At first every class has probability 0.01 and every layer keeps its reference boxes."""
    head = build_detector(config()).bbox_head
    head.init_weights()
    for branch in head.cls_branches:
        torch.testing.assert_close(branch.bias.sigmoid(), torch.full((5,), 0.01))
    for branch in head.reg_branches:
        assert not branch[-1].weight.any()
        assert not branch[-1].bias.any()
    attention = head.transformer.encoder.layers[0].attentions[0]
    assert not attention.sampling_offsets.weight.any()
    assert attention.sampling_offsets.bias.abs().max() == 4
    assert head.transformer.level_embeds.std().item() == pytest.approx(1, abs=0.2)
    with torch.no_grad():
        feats = [torch.randn(1, 64, size, size) for size in (8, 4, 2, 1)]
        _, boxes, _, anchors = head.eval()(feats, [recipe.single_meta(64, 64)])
    clamped = anchors.clamp(1e-3, 1 - 1e-3).expand_as(boxes)
    torch.testing.assert_close(boxes, clamped, rtol=0, atol=1e-4)


def test_diverged_training_says_so(model: nn.Module) -> None:
    images, *targets = batch([1])
    with pytest.raises(ValueError, match="not finite; the training has diverged"):
        model.train().forward_train(images * float("nan"), *targets)


@pytest.mark.parametrize(
    ("head", "error", "message"),
    [
        ({"use_2fc_cls_branch": True}, TypeError, "use_2fc_cls_branch"),
        ({"num_query": 40}, ValueError, "num_query is 40 but .*two_stage_num_proposals is 30"),
        ({"as_two_stage": False}, ValueError, "as_two_stage and with_box_refine must be True"),
        ({"loss_cls": {"type": "CrossEntropyLoss"}}, ValueError, "use_sigmoid=True"),
    ],
)
def test_refused_head_settings(head: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_detector(config(**head))


def test_train_cfg_is_checked_and_unused_settings_are_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("mmdet"), "propagate", True)
    cfg = config()
    cfg.train_cfg.update(snip_cfg={"type": "v3"}, fed_loss_cfg={})
    with caplog.at_level(logging.INFO):
        build_detector(cfg)
    ignored = [r.message for r in caplog.records if "is ignored" in r.message]
    assert ignored == [
        "DINOHead: train_cfg.snip_cfg is ignored; nothing uses it",
        "DINOHead: train_cfg.fed_loss_cfg is ignored; nothing uses it",
    ]
    cfg.train_cfg["asigner"] = {}
    with pytest.raises(TypeError, match="did you mean 'assigner'"):
        build_detector(cfg)


def test_test_cfg_is_checked() -> None:
    cfg = config()
    cfg.test_cfg["score_thr"] = 0.1
    with pytest.raises(TypeError, match="test_cfg: unknown setting 'score_thr'"):
        build_detector(cfg)


def test_odd_boxes_give_finite_losses(model: nn.Module) -> None:
    """A point, a line, the whole image and one that reaches out of it."""
    images, metas, _, _ = batch([1])
    boxes = torch.tensor([[9.0, 9, 9, 9], [3, 9, 60, 9], [0, 0, 96, 64], [-20, -9, 120, 80]])
    losses = model.train().forward_train(images, metas, [boxes], [torch.tensor([0, 1, 2, 3])])
    assert all(loss.isfinite() for loss in losses.values())
    assert all(grad.isfinite().all() for grad in gradients(model, losses).values())


def test_neck_and_transformer_must_agree_on_the_levels() -> None:
    cfg = config()
    cfg.neck.num_outs = 5
    with pytest.raises(ValueError, match="num_feature_levels is 4 but the neck gives 5"):
        build_detector(cfg).forward_train(*batch([1]))


def test_boxes_to_ignore_are_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="gt_bboxes_ignore"):
        model.forward_train(*batch([1]), gt_bboxes_ignore=[BOXES])


@pytest.mark.parametrize("rescale", [False, True])
def test_equal_runs_merge_to_one(model: nn.Module, rescale: bool) -> None:
    """Augmented testing of the same image twice: what one run gives, without its duplicates."""
    images, metas = recipe.images(1, 64, 96).float(), [recipe.single_meta(64, 96)]
    metas[0]["scale_factor"] = np.full(4, 2.0, dtype=np.float32)
    with torch.no_grad():
        model.eval()
        once = model.aug_test([images], [metas], rescale=rescale)[0]
        twice = model.aug_test([images, images], [metas, metas], rescale=rescale)[0]
        plain = model.simple_test(images, metas, rescale=rescale)[0]
    for a, b, c in zip(once, twice, plain):
        np.testing.assert_allclose(a, b, atol=1e-4)
        assert {tuple(row.round(3)) for row in a} <= {tuple(row.round(3)) for row in c}


def test_flipped_and_enlarged_runs_are_mapped_back() -> None:
    """One box seen plainly, mirrored and at double size; another one only once."""
    original = torch.tensor([[10.0, 20, 40, 60]])
    runs, metas = [], []
    for scale, flip, score in ((1.0, False, 0.5), (1.0, True, 0.9), (2.0, False, 0.7)):
        boxes = original * scale
        width = 100 * scale
        if flip:
            boxes = torch.stack(
                (width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), 1
            )
        runs.append([(torch.cat((boxes, torch.tensor([[score]])), 1), torch.tensor([2]))])
        metas.append(
            [
                {
                    "img_shape": (int(80 * scale), int(width), 3),
                    "scale_factor": np.full(4, scale, dtype=np.float32),
                    "flip": flip,
                    "flip_direction": "horizontal" if flip else None,
                }
            ]
        )
    extra = torch.tensor([[0.0, 0, 5, 5, 0.3]])
    runs[0][0] = (torch.cat((runs[0][0][0], extra)), torch.tensor([2, 2]))
    ((boxes, labels),) = merge_augmented(runs, metas, {"max_per_img": 10}, rescale=True)
    expected = torch.tensor([[10.0, 20, 40, 60, 0.9], [0, 0, 5, 5, 0.3]])
    torch.testing.assert_close(boxes, expected)
    assert labels.tolist() == [2, 2]
    ((best, _),) = merge_augmented(runs, metas, {"max_per_img": 1}, rescale=True)
    torch.testing.assert_close(best, expected[:1])
    other = {"nms": {"type": "nms", "iou_threshold": 1.0}}
    ((every, _),) = merge_augmented(runs, metas, other, rescale=True)
    assert len(every) == 4
