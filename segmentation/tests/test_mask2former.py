"""Mask2Former beyond the stored numbers: matching, targets, odd inputs, precision, messages."""

from __future__ import annotations

from typing import Any

import pytest
import recipe
import segmentors
import torch
from mmcv import ConfigDict
from mmseg.models import build_loss, build_segmentor
from mmseg.ops import resize
from mmseg_custom.models.decode_heads.mask_targets import mask_targets
from torch import Tensor, nn


@pytest.fixture(scope="module")
def shared() -> nn.Module:
    """A model for tests that change nothing in it."""
    return segmentors.build("mask2former").eval()


def losses_of(model: nn.Module, images: Tensor, semantic: Tensor, **more: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return model.forward_train(images, segmentors.metas(), semantic, **more)


def assert_gradients(model: nn.Module) -> None:
    """Every parameter has a finite gradient: DistributedDataParallel waits for all of them."""
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


def test_matching_equals_the_original():
    model = segmentors.build("mask2former").train()
    assigner, calls = model.decode_head.assigner, []
    assign = assigner.assign

    def remember(*args: Any, **options: Any) -> Any:
        calls.append(assign(*args, **options))
        return calls[-1]

    assigner.assign = remember
    losses_of(model, recipe.images().float(), segmentors.targets())
    stored = recipe.load_arrays("whole_models/loss/mask2former.npz")
    assert len(calls) == len(stored) == 6  # layer 0 image 0, layer 0 image 1, layer 1 image 0 ...
    for i, result in enumerate(calls):
        assert result.gt_inds.tolist() == stored[f"f32/assigned_gt_inds_call{i:02d}"].tolist()


def test_names_in_the_head_are_those_of_mmdet_and_elsewhere_those_of_mmseg(shared):
    head = shared.decode_head
    parts = [head.loss_cls, head.loss_mask, head.loss_dice, head.assigner, head.sampler]
    parts += [head.pixel_decoder, head.assigner.cls_cost, head.assigner.dice_cost]
    assert {type(part).__module__.partition(".")[0] for part in parts} == {"mmdet"}
    for name in ("CrossEntropyLoss", "DiceLoss"):
        assert type(build_loss({"type": name})).__module__.startswith("mmseg.")


def test_masks_are_found_in_the_semantic_map():
    semantic = torch.tensor([[[[3, 3, 255], [0, 3, 0]]], [[[255, 255, 255], [255, 255, 255]]]])
    labels, masks = mask_targets(semantic)
    assert [x.tolist() for x in labels] == [[0, 3], []]
    assert masks[0].int().tolist() == [[[0, 0, 0], [1, 0, 1]], [[1, 1, 0], [0, 1, 0]]]
    assert masks[1].shape == (0, 2, 3)


def test_masks_of_the_pipeline_give_the_same_losses():
    from mmdet.core import BitmapMasks

    model = segmentors.build("mask2former").train()
    images, semantic = recipe.images().float(), segmentors.targets()
    labels, masks = mask_targets(semantic)
    expected = losses_of(model, images, semantic)
    for given in (
        [m.float() for m in masks],
        [m.byte() for m in masks],
        [BitmapMasks(m.numpy().astype("uint8"), 128, 160) for m in masks],
    ):
        actual = losses_of(model, images, semantic, gt_labels=labels, gt_masks=given)
        for key, value in expected.items():
            torch.testing.assert_close(actual[key], value, rtol=0, atol=0)


def test_samples_of_the_pipeline_reach_the_head():
    """The transforms of the configs, mmcv's collate and its wrapper for one process."""
    import mmseg_custom.datasets.transforms  # noqa: F401
    from mmcv.parallel import collate
    from mmseg.datasets.pipelines import Collect, Compose
    from mmseg.utils import build_dp

    keys = ("img", "gt_semantic_seg", "gt_masks", "gt_labels")
    steps = [{"type": "ToMask"}, {"type": "DefaultFormatBundle"}]
    pipeline = Compose([*steps, Collect(keys, meta_keys=("ori_shape",))])
    images, semantic = recipe.images().float(), segmentors.targets()
    samples = [
        pipeline(
            {
                "img": image.permute(1, 2, 0).numpy(),
                "gt_semantic_seg": label_map[0].byte().numpy(),
                "seg_fields": ["gt_semantic_seg"],
                "ori_shape": (102, 128, 3),
            }
        )
        for image, label_map in zip(images, semantic, strict=True)
    ]
    model = segmentors.build("mask2former").train()
    torch.manual_seed(0)
    outputs = build_dp(model, "cpu").train_step(collate(samples, samples_per_gpu=2), None)
    expected = losses_of(model, images, semantic)
    assert outputs["num_samples"] == 2
    for key, value in expected.items():
        assert outputs["log_vars"][key] == pytest.approx(value.item(), rel=1e-6), key


@pytest.mark.parametrize("ignored", [[0], [0, 1]], ids=["one image", "the whole batch"])
def test_images_without_a_known_class_train(ignored):
    model = segmentors.build("mask2former").train()
    semantic = segmentors.targets()
    semantic[ignored] = 255
    losses = losses_of(model, recipe.images().float(), semantic)
    assert all(torch.isfinite(value).all() for value in losses.values())
    if len(ignored) == 2:  # nothing to match: all queries learn "no object"
        assert losses["decode.loss_mask"].item() == losses["decode.loss_dice"].item() == 0
    segmentors.total(losses).backward()
    assert_gradients(model)


def test_a_wrong_label_or_mask_count_is_named():
    model = segmentors.build("mask2former").train()
    semantic = segmentors.targets()
    semantic[1, 0, 60, 60] = 7
    images = recipe.images().float()
    with pytest.raises(ValueError, match=r"image.png: label 7 is outside 0..4 .num_classes=5"):
        losses_of(model, images, semantic)
    labels, masks = mask_targets(segmentors.targets())
    for wrong in (masks[1][:4], masks[1][:, :64]):
        with pytest.raises(ValueError, match=r"5 labels .* 128x160 need \(5, 128, 160\)"):
            losses_of(model, images, semantic, gt_labels=labels, gt_masks=[masks[0], wrong])


def test_wrong_arguments_of_the_head_are_named():
    config = segmentors.config("mask2former")
    config.decode_head.num_classes = 7
    with pytest.raises(ValueError, match=r"num_classes \+ 1 = 8 entries .*, got 6"):
        build_segmentor(config)
    config = segmentors.config("mask2former")
    config.decode_head.in_index = [1, 2, 3]
    with pytest.raises(ValueError, match="one entry per input"):
        build_segmentor(config)
    model = build_segmentor({**segmentors.config("mask2former"), "type": "EncoderDecoder"})
    with pytest.raises(ValueError, match="use the segmentor type 'EncoderDecoderMask2Former'"):
        model.forward_train(recipe.images().float(), segmentors.metas(), segmentors.targets())


@pytest.mark.parametrize("size", [(97, 131), (33, 40)], ids=str)
def test_odd_and_small_images(size):
    model = segmentors.build("mask2former")
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    meta = [{"img_shape": (*size, 3), "ori_shape": (*size, 3), "flip": False}]
    semantic = torch.randint(0, 5, (1, 1, *size))
    segmentors.total(model.train().forward_train(images, meta, semantic)).backward()
    assert_gradients(model)
    model.eval().test_cfg.update(segmentors.SLIDE)  # the crop of 96 pixels is larger than (33, 40)
    with torch.no_grad():
        assert model.simple_test(images, meta)[0].shape == size
        assert model.forward_dummy(images).shape == (1, 5, *size)  # without metas, as FLOP counters


@torch.no_grad()
def test_slide_crops_the_padding_in_the_aug_segmentor_only(shared):
    images, metas = recipe.images().float(), segmentors.metas((112, 144), (90, 115))
    aug = build_segmentor(segmentors.config("mask2former_aug"))
    aug.load_state_dict(shared.state_dict())
    for model, height, width in ((shared, 128, 160), (aug.eval(), 112, 144)):
        model.test_cfg.update(segmentors.SLIDE)
        scores = model.slide_inference(images, metas, rescale=False)
        assert scores.shape[2:] == (128, 160)
        expected = resize(scores[:, :, :height, :width], (90, 115), mode="bilinear")
        actual = model.slide_inference(images, metas, rescale=True)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    shared.test_cfg.mode = "whole"


@torch.no_grad()
def test_multi_scale_test_with_flips(shared):
    images = recipe.images(1).float()
    small = resize(images, (96, 128), mode="bilinear")
    metas = [segmentors.metas(size, flip=f)[:1] for size in ((128, 160), (96, 128)) for f in (0, 1)]
    views = [images, images.flip(3), small, small.flip(3)]
    (result,) = shared.aug_test(views, metas)
    assert result.shape == (102, 128) and result.min() >= 0 and result.max() <= 4
    mirrored, *_ = shared.aug_test([x.flip(3) for x in views], metas)
    assert (result[:, ::-1] == mirrored).mean() > 0.99  # symmetric but for rounding


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_step_is_finite_and_near_float32(dtype):
    model = segmentors.build("mask2former").train()
    images, semantic = recipe.images().float(), segmentors.targets()
    expected = segmentors.total(losses_of(model, images, semantic)).item()
    with torch.autocast("cpu", dtype=dtype):
        feats = model.extract_feat(images)
        class_logits, mask_logits = model.decode_head(feats)
        losses = losses_of(model, images, semantic)
    assert class_logits[-1].dtype == mask_logits[-1].dtype == torch.float32
    total = segmentors.total(losses)
    total.backward()
    assert_gradients(model)
    # the backbone rounds to 3 (bfloat16) or 4 digits, which also moves the points that are compared
    assert total.item() == pytest.approx(expected, rel=0.05)


def test_matching_costs_do_not_overflow_under_autocast():
    """12544 points with a cost of about 10 each sum up to more than 65504, the end of float16."""
    config = segmentors.config("mask2former")
    config.train_cfg.num_points = 12544
    model = recipe.fill(build_segmentor(config)).train()
    with torch.no_grad():
        model.decode_head.mask_embed[4].weight *= 30
    with torch.autocast("cpu", dtype=torch.float16):
        losses = losses_of(model, recipe.images().float(), segmentors.targets())
    assert losses["decode.d0.loss_mask"].item() > 5 * 65504 / 12544
    assert torch.isfinite(segmentors.total(losses))


def test_checkpointed_ffn_computes_the_same_gradients():
    images, semantic = recipe.images().float(), segmentors.targets()
    gradients = []
    for with_cp in (False, True):
        config = segmentors.config("mask2former")
        head = config.decode_head
        for layers in (head.pixel_decoder.encoder, head.transformer_decoder):
            layers.transformerlayers.ffn_cfgs.with_cp = with_cp
        config.backbone.with_cp = with_cp
        model = recipe.fill(build_segmentor(config)).train()
        names = {type(m).__name__ for m in model.modules() if "FFN" in type(m).__name__}
        assert names == {"CheckpointedFFN" if with_cp else "FFN"}
        segmentors.total(losses_of(model, images, semantic)).backward()
        gradients.append({key: p.grad for key, p in model.named_parameters()})
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, rtol=1e-5, atol=1e-6, msg=key)


def test_auxiliary_head_and_fresh_weights():
    config = segmentors.config("mask2former")
    config.auxiliary_head = ConfigDict(segmentors.config("upernet").auxiliary_head)
    model = build_segmentor(config)
    model.init_weights()
    losses = model.train().forward_train(
        recipe.images().float(), segmentors.metas(), segmentors.targets()
    )
    assert {"decode.loss_cls", "decode.d0.loss_dice", "aux.loss_ce"} < set(losses)
    # untrained: every class about as likely, so the cross entropy is near ln 6 (times 2)
    assert 2.0 < losses["decode.d0.loss_cls"].item() < 8.0
    outputs = model.train_step(
        {
            "img": recipe.images().float(),
            "img_metas": segmentors.metas(),
            "gt_semantic_seg": segmentors.targets(),
        },
        None,
    )
    assert outputs["num_samples"] == 2 and torch.isfinite(outputs["loss"])
