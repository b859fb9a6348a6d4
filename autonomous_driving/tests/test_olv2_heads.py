"""Lane and traffic element heads: matching, targets and losses of cases to do by hand."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from mmcv import ConfigDict
from mmdet.core.bbox.builder import build_assigner
from mmdet.models.builder import build_head
from olv2.assign import LaneL1Cost, matched_gt
from olv2_small import FOCAL, focal

DIMS = 16
RANGE = [-8.0, -4.0, -1.0, 8.0, 4.0, 1.0]
SELF_ATTENTION = dict(type="MultiheadAttention", embed_dims=DIMS, num_heads=2)


def deformable(kind: str, levels: int) -> dict:
    return dict(
        type=kind, embed_dims=DIMS, num_heads=2, num_levels=levels, num_points=2, dropout=0.0
    )


def layer(kind: str, *attentions: dict) -> dict:
    ffn = dict(type="FFN", embed_dims=DIMS, feedforward_channels=32, num_fcs=2, ffn_drop=0.0)
    order = ["self_attn", "norm", "cross_attn", "norm"][: 2 * len(attentions)]
    return dict(
        type=kind,
        attn_cfgs=list(attentions),
        ffn_cfgs=ffn,
        operation_order=(*order, "ffn", "norm"),
    )


def lane_config(**options) -> dict:
    decoder = dict(
        type="LaneDetectionTransformerDecoder",
        num_layers=2,
        return_intermediate=True,
        transformerlayers=layer(
            "CustomDetrTransformerDecoderLayer",
            SELF_ATTENTION,
            deformable("CustomMSDeformableAttention", levels=1),
        ),
    )
    assigner = dict(
        type="LaneHungarianAssigner",
        cls_cost=dict(type="FocalLossCost", weight=1.5),
        reg_cost=dict(type="LaneL1Cost", weight=0.0075),
        iou_cost=dict(type="IoUCost", weight=0.0),
    )
    config = dict(
        type="LCDeformableDETRHead",
        num_classes=1,
        in_channels=DIMS,
        num_query=4,
        pc_range=RANGE,
        bev_h=4,
        bev_w=8,
        transformer=dict(type="PerceptionTransformer", embed_dims=DIMS, decoder=decoder),
        loss_cls=dict(FOCAL, loss_weight=1.5),
        loss_bbox=dict(type="L1Loss", loss_weight=0.0075),
        train_cfg=dict(assigner=assigner),
    )
    return ConfigDict(copy.deepcopy({**config, **options}))


def te_config() -> dict:
    cross_attention = deformable("MultiScaleDeformableAttention", levels=2)
    transformer = dict(
        type="DeformableDetrTransformer",
        num_feature_levels=2,
        encoder=dict(
            type="DetrTransformerEncoder",
            num_layers=1,
            transformerlayers=layer("BaseTransformerLayer", cross_attention),
        ),
        decoder=dict(
            type="DeformableDetrTransformerDecoder",
            num_layers=2,
            return_intermediate=True,
            transformerlayers=layer(
                "CustomDetrTransformerDecoderLayer", SELF_ATTENTION, cross_attention
            ),
        ),
    )
    assigner = dict(
        type="HungarianAssigner",
        cls_cost=dict(type="FocalLossCost", weight=1.0),
        reg_cost=dict(type="BBoxL1Cost", weight=2.5, box_format="xywh"),
        iou_cost=dict(type="IoUCost", iou_mode="giou", weight=1.0),
    )
    return ConfigDict(
        copy.deepcopy(
            dict(
                type="TEDeformableDETRHead",
                num_classes=13,
                in_channels=DIMS,
                num_query=5,
                with_box_refine=True,
                transformer=transformer,
                positional_encoding=dict(
                    type="SinePositionalEncoding", num_feats=DIMS // 2, normalize=True, offset=-0.5
                ),
                loss_cls=dict(FOCAL, loss_weight=1.0),
                loss_bbox=dict(type="L1Loss", loss_weight=2.5),
                loss_iou=dict(type="GIoULoss", loss_weight=1.0),
                train_cfg=dict(assigner=assigner),
            )
        )
    )


def straight(x0: float, x1: float, y: float) -> torch.Tensor:
    """(15,) control points of a lane along x."""
    x = torch.linspace(x0, x1, 5)
    return torch.stack([x, torch.full((5,), y), torch.zeros(5)], dim=-1).flatten()


# Assignment


def test_lane_cost_is_the_sum_of_absolute_metres():
    lanes = torch.stack([straight(0, 4, 0), straight(0, 4, 1)])
    gt = torch.stack([straight(0, 4, 0), straight(1, 5, -1), straight(4, 0, 0)])
    expected = [[0, 10, 12], [5, 15, 17]]  # 5 * |dy|, 5 * |dx|; reversed: 4 + 2 + 0 + 2 + 4
    torch.testing.assert_close(LaneL1Cost(0.5)(lanes, gt), 0.5 * torch.tensor(expected).float())


def test_each_lane_gets_the_nearest_query_and_direction_counts():
    assigner = build_assigner(lane_config().train_cfg.assigner)
    lanes = torch.stack(
        [straight(0, 4, 2), straight(0, 4, 0), straight(4, 0, 0), straight(9, 9, 9)]
    )
    gt = torch.stack([straight(4, 0, 0), straight(0, 4, 0.1)])
    result = assigner.assign(lanes, torch.zeros(4, 1), gt, torch.zeros(2, dtype=torch.long))
    assert matched_gt(result).tolist() == [-1, 1, 0, -1]
    assert result.labels.tolist() == [-1, 0, 0, -1]


def test_the_score_decides_between_equal_lanes():
    assigner = build_assigner(lane_config().train_cfg.assigner)
    lanes = straight(0, 4, 0).expand(3, 15)
    scores = torch.tensor([[-1.0], [2.0], [0.0]])
    gt = straight(0, 4, 0)[None]
    result = assigner.assign(lanes, scores, gt, torch.zeros(1, dtype=torch.long))
    assert matched_gt(result).tolist() == [-1, 0, -1]


def test_no_lane_makes_every_query_background():
    assigner = build_assigner(lane_config().train_cfg.assigner)
    empty = torch.zeros(0, dtype=torch.long)
    result = assigner.assign(torch.zeros(3, 15), torch.zeros(3, 1), torch.zeros(0, 15), empty)
    assert matched_gt(result).tolist() == [-1, -1, -1]


def test_lanes_that_are_not_finite_say_that_training_diverged():
    assigner = build_assigner(lane_config().train_cfg.assigner)
    lanes = torch.full((3, 15), float("nan"))
    with pytest.raises(ValueError, match="diverged"):
        assigner.assign(lanes, torch.zeros(3, 1), torch.zeros(1, 15), torch.zeros(1).long())


def test_an_iou_cost_for_lanes_is_refused():
    config = lane_config().train_cfg.assigner
    config.iou_cost.weight = 1.0
    with pytest.raises(ValueError, match="weight of iou_cost to 0, not 1.0"):
        build_assigner(config)


# Lane head


def test_lane_losses_are_those_computed_by_hand():
    head = build_head(lane_config())
    good, far = straight(-4, 4, 0), straight(-4, 4, 3)
    lanes = torch.stack([good + 0.5, far, far, far])[None, None].expand(2, 1, 4, 15)
    logits = torch.tensor([1.0, -2.0, -3.0, 0.5])[None, None, :, None].expand(2, 1, 4, 1)
    losses = head.loss(logits, lanes, [good[None]], [torch.zeros(1, dtype=torch.long)])
    cls = focal(1.0, 1) + focal(-2.0, 0) + focal(-3.0, 0) + focal(0.5, 0)
    assert set(losses) == {"loss_cls", "loss_bbox", "d0.loss_cls", "d0.loss_bbox"}
    for prefix in ("", "d0."):
        assert losses[prefix + "loss_cls"].item() == pytest.approx(1.5 * cls, rel=1e-5)
        assert losses[prefix + "loss_bbox"].item() == pytest.approx(0.0075 * 15 * 0.5, rel=1e-5)


def test_lane_losses_are_divided_by_the_lanes_of_the_batch():
    head = build_head(lane_config())
    gt = torch.stack([straight(-4, 4, 0), straight(-4, 4, 2)])
    lanes = torch.stack([gt[0] + 1, gt[1] + 1, gt[0] + 90, gt[1] + 90])
    lanes = lanes[None, None].expand(1, 2, 4, 15)
    logits = torch.zeros(1, 2, 4, 1)
    labels = torch.zeros(2, dtype=torch.long)
    losses = head.loss(logits, lanes, [gt, gt[:1]], [labels, labels[:1]])
    cls = 3 * focal(0.0, 1) + 5 * focal(0.0, 0)
    assert losses["loss_cls"].item() == pytest.approx(1.5 * cls / 3, rel=1e-5)
    assert losses["loss_bbox"].item() == pytest.approx(0.0075 * 15, rel=1e-5)


def test_a_frame_without_lanes_has_only_a_classification_loss():
    head = build_head(lane_config())
    logits = torch.zeros(2, 1, 4, 1, requires_grad=True)
    lanes = torch.zeros(2, 1, 4, 15, requires_grad=True)
    losses = head.loss(logits, lanes, [torch.zeros(0, 15)], [torch.zeros(0, dtype=torch.long)])
    assert losses["loss_bbox"].item() == 0
    assert losses["loss_cls"].item() == pytest.approx(1.5 * 4 * focal(0.0, 0), rel=1e-5)
    sum(losses.values()).backward()
    assert lanes.grad is not None


def test_code_weights_weigh_the_coordinates():
    weights = [1.0] * 14 + [3.0]
    head = build_head(lane_config(code_weights=weights))
    gt = straight(-4, 4, 0)[None]
    lanes = (gt + 1).expand(1, 1, 4, 15)
    labels = torch.zeros(1, dtype=torch.long)
    losses = head.loss(torch.zeros(1, 1, 4, 1), lanes, [gt], [labels])
    assert losses["loss_bbox"].item() == pytest.approx(0.0075 * 17, rel=1e-5)
    with pytest.raises(ValueError, match="15 code_weights are needed, got 3"):
        build_head(lane_config(code_weights=[1.0, 1.0, 1.0]))


def test_control_points_are_offsets_from_the_reference_in_metres():
    head = build_head(lane_config())
    head.init_weights()
    bev = torch.randn(2, 32, DIMS)
    logits, lanes, states = head(bev)
    assert logits.shape == (2, 2, 4, 1) and lanes.shape == (2, 2, 4, 15)
    assert states.shape == (2, 4, DIMS)
    position = head.query_embedding.weight[:, :DIMS]
    reference = head.transformer.reference_points(position).sigmoid()  # all offsets start at 0
    low, high = torch.tensor(RANGE[:3]), torch.tensor(RANGE[3:])
    points = lanes[-1, 0].view(4, 5, 3)
    expected = (low + reference * (high - low))[:, None].expand(4, 5, 3)
    torch.testing.assert_close(points, expected, rtol=1e-4, atol=1e-4)
    torch.nn.init.constant_(head.reg_branches[-1][-1].bias, 50.0)
    torch.testing.assert_close(head(bev)[1][-1, 0, 0], high.repeat(5), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("refine", [False, True])
def test_the_lane_decoder_looks_where_its_reference_is(refine):
    """One bright cell in the map changes only the queries whose reference is near it."""
    torch.manual_seed(0)
    head = build_head(lane_config(num_query=1, with_box_refine=refine))
    head.init_weights()
    for cross in (layer.attentions[1] for layer in head.transformer.decoder.layers):
        torch.nn.init.zeros_(cross.sampling_offsets.bias)  # look at the reference itself
    with torch.no_grad():
        head.transformer.reference_points.weight.zero_()
        head.transformer.reference_points.bias.copy_(torch.tensor([-1.0, 1.0, 0.0]))
    x, y = 1 / (1 + math.e), 1 / (1 + math.exp(-1.0))
    seen = int(y * 4) * 8 + int(x * 8)
    dark = torch.zeros(1, 32, DIMS)
    base = head(dark)[2]
    for cell in range(32):
        bright = dark.clone()
        bright[0, cell] = torch.randn(DIMS)
        near = abs(cell // 8 - y * 4 + 0.5) < 1 and abs(cell % 8 - x * 8 + 0.5) < 1
        assert (not torch.equal(head(bright)[2], base)) == near, (cell, seen)


def test_refinement_moves_the_reference_to_the_predicted_lane():
    head = build_head(lane_config(with_box_refine=True))
    head.init_weights()
    torch.nn.init.constant_(head.reg_branches[0][-1].bias, 1.0)
    bev = torch.randn(1, 32, DIMS)
    _, references = head.transformer(bev, head.query_embedding.weight, (4, 8), head.reg_branches)
    first, second = (r.clamp(1e-4, 1 - 1e-4).logit() for r in references)
    torch.testing.assert_close(second, first + 1.0, rtol=1e-3, atol=1e-3)
    _, fixed = head.transformer(bev, head.query_embedding.weight, (4, 8))
    assert torch.equal(fixed[0], fixed[1])


def test_lane_options_without_a_meaning_are_refused():
    with pytest.raises(ValueError, match="no two-stage variant"):
        build_head(lane_config(as_two_stage=True))
    with pytest.raises(ValueError, match="weight of loss_iou to 0, not 2.0"):
        build_head(lane_config(loss_iou=dict(type="GIoULoss", loss_weight=2.0), train_cfg=None))


# Traffic elements


@pytest.fixture(scope="module")
def te_head():
    torch.manual_seed(0)
    head = build_head(te_config())
    head.init_weights()
    return head.eval()


def te_inputs(batch: int = 1) -> tuple[list[torch.Tensor], list[dict]]:
    features = [torch.randn(batch, DIMS, 8, 6), torch.randn(batch, DIMS, 4, 3)]
    return features, [dict(img_shape=(60, 48, 3), batch_input_shape=(64, 48))] * batch


def test_te_states_are_those_behind_the_last_scores(te_head):
    outs, states = te_head.forward_states(*te_inputs(2))
    assert outs[0].shape == (2, 2, 5, 13) and outs[1].shape == (2, 2, 5, 4)
    torch.testing.assert_close(te_head.cls_branches[-1](states), outs[0][-1])
    assert not te_head.cls_branches[-1]._forward_pre_hooks


def test_te_matching_is_that_of_the_loss(te_head):
    boxes = torch.tensor([[0.2, 0.3, 0.1, 0.2], [0.7, 0.6, 0.2, 0.1]])
    preds = torch.full((2, 1, 5, 4), 0.9)
    preds[:, 0, 3], preds[:, 0, 1] = boxes[0], boxes[1]
    size = torch.tensor([48, 60, 48, 60])
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    metas = [dict(img_shape=(60, 48, 3))]
    labels = torch.tensor([4, 9])
    logits = torch.zeros(2, 1, 5, 13)
    matched = te_head.match((logits, preds), [corners * size], [labels], metas)
    assert matched[0].tolist() == [-1, 1, -1, 0, -1]
    losses = te_head.loss(logits, preds, None, None, [corners * size], [labels], metas)
    assert losses["loss_bbox"].item() == pytest.approx(0, abs=1e-5)
    assert losses["loss_iou"].item() == pytest.approx(0, abs=1e-5)
    cls = (2 * focal(0, 1) + (5 * 13 - 2) * focal(0, 0)) / 2
    assert losses["d0.loss_cls"].item() == pytest.approx(cls, rel=1e-5)


def test_te_losses_vanish_only_if_the_whole_batch_has_none(te_head):
    features, metas = te_inputs(2)
    outs = te_head(features, metas)
    none, one = torch.zeros(0, 4), torch.tensor([[1.0, 2.0, 20.0, 30.0]])
    zero, label = torch.zeros(0, dtype=torch.long), torch.tensor([3])
    losses = te_head.loss(*outs, [none, none], [zero, zero], metas)
    assert all(loss.item() == 0 and loss.requires_grad for loss in losses.values())
    losses = te_head.loss(*outs, [none, one], [zero, label], metas)
    assert all(loss.item() > 0 for loss in losses.values())


def test_te_boxes_keep_the_order_of_the_queries_and_return_to_the_original_image(te_head):
    logits = torch.full((1, 1, 5, 13), -5.0)
    for query, label in enumerate([7, 0, 12, 3, 3]):
        logits[0, 0, query, label] = query - 2.0
    boxes = torch.tensor([0.5, 0.5, 0.5, 0.2]).expand(1, 1, 5, 4).clone()
    boxes[..., 4, :] = torch.tensor([1.0, 0.1, 0.4, 0.4])  # reaches over the image's edge
    metas = [dict(img_shape=(60, 48, 3), scale_factor=np.array([1.5, 0.5, 1.5, 0.5]))]
    ((found, labels),) = te_head.get_bboxes(logits, boxes, None, None, metas, rescale=True)
    assert labels.tolist() == [7, 0, 12, 3, 3]
    torch.testing.assert_close(found[:, 4], torch.arange(-2.0, 3.0).sigmoid())
    torch.testing.assert_close(found[0, :4], torch.tensor([12 / 1.5, 24 / 0.5, 36 / 1.5, 36 / 0.5]))
    torch.testing.assert_close(found[4, :4], torch.tensor([38.4 / 1.5, 0.0, 48 / 1.5, 18 / 0.5]))
