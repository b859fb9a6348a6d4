"""ROAD_BEVFormer as a whole: losses, results, batches, empty frames."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from mmcv import Config, ConfigDict
from mmdet.models.builder import build_neck
from olv2_small import ANNOTATIONS, CONFIGS, batch_of, meta, small_model


@pytest.fixture(scope="module")
def model():
    return small_model().eval()


def part(batch: dict, index: int) -> dict:
    """One frame of a batch as a batch."""
    return {key: value[index : index + 1] for key, value in batch.items()}


def test_loss_names(model):
    losses = model(return_loss=True, **batch_of([3], [2]))
    expected = {"lclc_head.loss_rel", "lcte_head.loss_rel"}
    for layer in ("d0.", "d1.", "d2.", ""):
        expected |= {f"lane_head.{layer}loss_{kind}" for kind in ("cls", "bbox")}
    for layer in ("d0.", ""):
        expected |= {f"bbox_head.{layer}loss_{kind}" for kind in ("cls", "bbox", "iou")}
    assert set(losses) == expected
    assert all(loss.ndim == 0 and torch.isfinite(loss) and loss > 0 for loss in losses.values())


def test_every_parameter_learns():
    model = small_model().train()
    for parameter in model.parameters():
        if not parameter.any():  # a layer that starts at zero hides the ones before it
            torch.nn.init.normal_(parameter, std=0.02)
    sum(model(return_loss=True, **batch_of([4, 3], [2, 1])).values()).backward()
    still = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert still == []


def test_results_are_numpy_per_frame(model):
    with torch.no_grad():
        results = model(return_loss=False, img=[batch_of([0], [0])["img"]], img_metas=[[meta()]])
    (frame,) = pickle.loads(pickle.dumps(results))
    points, scores = frame["lc"]["control_points"], frame["lc"]["scores"]
    assert points.shape == (30, 5, 3) and scores.shape == (30,)
    boxes, labels = frame["te"]["bboxes"], frame["te"]["labels"]
    assert boxes.shape == (10, 4) and labels.shape == frame["te"]["scores"].shape == (10,)
    assert frame["lclc"].shape == (30, 30) and frame["lcte"].shape == (30, 10)
    for value in (points, scores, boxes, frame["te"]["scores"], frame["lclc"], frame["lcte"]):
        assert isinstance(value, np.ndarray) and value.dtype == np.float32
    for value in (scores, frame["te"]["scores"], frame["lclc"], frame["lcte"]):
        assert (value > 0).all() and (value < 1).all()
    assert (np.abs(points) <= [56.3201, 28.1601, 2.0001]).all()
    assert labels.dtype == np.int64 and set(labels.tolist()) <= set(range(13))
    assert boxes.min() >= 0 and boxes[:, 0::2].max() <= 128 and boxes[:, 1::2].max() <= 256


def test_boxes_are_scaled_by_width_and_height(model):
    """The front view of this rig was made half as wide and a quarter as high."""
    batch = batch_of([0], [0])
    with torch.no_grad():
        (scaled,) = model.forward_test(batch["img"], batch["img_metas"])
        for key in ([1.0] * 4, [np.ones(4)] * 7):  # of the front view, or of all views
            batch["img_metas"][0]["scale_factor"] = key
            (same,) = model.forward_test(batch["img"], batch["img_metas"])
            np.testing.assert_allclose(
                scaled["te"]["bboxes"], same["te"]["bboxes"] * [2, 4, 2, 4], rtol=1e-5
            )


def test_a_batch_gives_what_its_frames_give_alone(model):
    batch = batch_of([3, 5], [1, 2])
    with torch.no_grad():
        both = model.forward_test(batch["img"], batch["img_metas"])
        for index, together in enumerate(both):
            single = part(batch, index)
            (alone,) = model.forward_test(single["img"], single["img_metas"])
            for key in ("lclc", "lcte"):
                np.testing.assert_allclose(together[key], alone[key], atol=1e-5)
            for group in ("lc", "te"):
                for key, value in together[group].items():
                    np.testing.assert_allclose(value, alone[group][key], rtol=1e-3, atol=1e-3)
    assert not np.allclose(both[0]["lc"]["scores"], both[1]["lc"]["scores"], atol=1e-6)


@pytest.mark.parametrize(("lanes", "boxes"), [([0], [0]), ([0], [2]), ([2], [0]), ([0, 3], [0, 0])])
def test_frames_with_nothing_in_them(model, lanes, boxes):
    batch = batch_of(lanes, boxes)
    losses = model(return_loss=True, **batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    of_boxes = [loss.item() for name, loss in losses.items() if name.startswith("bbox_head")]
    assert all(loss == 0 for loss in of_boxes) == (not sum(boxes))
    if not sum(lanes):
        assert losses["lane_head.loss_bbox"].item() == 0
    assert losses["lane_head.loss_cls"].item() > 0
    sum(losses.values()).backward()
    model.zero_grad()


def test_an_empty_adjacency_may_have_lost_its_shape(model):
    batch = batch_of([0], [1])
    batch["gt_topology_lclc"] = batch["gt_topology_lcte"] = [torch.zeros(0)]
    losses = model(return_loss=True, **batch)
    assert torch.isfinite(losses["lcte_head.loss_rel"])


def test_topology_is_learnt_for_the_matched_queries(model, monkeypatch):
    batch = batch_of([3], [2])
    seen = {}
    for name in ("lclc_head", "lcte_head"):
        head = getattr(model, name)
        monkeypatch.setattr(
            head,
            "loss",
            lambda logits, first, second, edges, name=name: (
                seen.setdefault(name, (first, second, edges)) and {}
            ),
        )
    model(return_loss=True, **batch)
    lanes, again, edges = seen["lclc_head"]
    assert lanes is again and edges is batch["gt_topology_lclc"]
    assert sorted(lanes[0].tolist())[-4:] == [-1, 0, 1, 2]
    first, second, edges = seen["lcte_head"]
    assert first is lanes and edges is batch["gt_topology_lcte"]
    assert sorted(second[0].tolist())[-3:] == [-1, 0, 1]


def test_the_train_step_of_mmdet_works(model):
    batch = batch_of([2], [1])
    outputs = model.train_step(batch, None)
    assert outputs["num_samples"] == 1 and outputs["loss"].requires_grad
    assert set(ANNOTATIONS) <= set(batch)


def test_a_query_sees_what_is_at_its_place():
    """What a side camera sees changes the map on that side only."""
    torch.manual_seed(0)
    config = Config.fromfile(CONFIGS / "toy" / "olv2_nano.py").model.bev_constructor
    config.encoder.num_layers = 1
    neck = build_neck(ConfigDict(config)).eval()
    neck.init_weights()
    features = [torch.randn(1, 7, 48, 16 // 2**i, 16 // 2**i) for i in range(3)]
    with torch.no_grad():
        before = neck(features, [meta()])
        for level in features:
            level[:, 5] += 1.0  # the camera that looks to the left, y > 0
        changed = (neck(features, [meta()]) != before).any(-1).view(22, 44)
    assert changed.any()
    assert not changed[:11].any()  # rows of y < 0
