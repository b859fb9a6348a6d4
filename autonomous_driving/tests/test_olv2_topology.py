"""Topology head: targets, loss and pairs on cases small enough to do by hand."""

from __future__ import annotations

import pytest
import torch
from mmdet.models.builder import build_head
from olv2.topology_head import relation_targets
from olv2_small import FOCAL, focal


def test_edges_follow_the_matching():
    adjacency = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=torch.int8)
    lanes = torch.tensor([-1, 2, 0, -1, 1])
    target = relation_targets(lanes, lanes, adjacency)
    edges = target.nonzero().tolist()
    assert edges == [[1, 2], [2, 4], [4, 1]]  # 2 -> 0, 0 -> 1, 1 -> 2 of the annotations
    boxes = torch.tensor([1, -1])
    assert relation_targets(
        lanes, boxes, torch.tensor([[0, 0], [0, 0], [0, 1]])
    ).nonzero().tolist() == [[1, 0]]


@pytest.mark.parametrize("shape", [(0,), (0, 0), (3, 0), (0, 2)])
def test_edges_of_empty_annotations(shape):
    lanes = torch.tensor([-1, 0, 1, 2]) if shape[0] == 3 else torch.full((4,), -1)
    target = relation_targets(lanes, torch.full((2,), -1), torch.zeros(shape))
    assert target.shape == (4, 2) and not target.any()


def relationship(**options) -> torch.nn.Module:
    loss = dict(FOCAL, loss_weight=5.0)
    return build_head(
        dict(type="RelationshipHead", in_channels_o1=8, in_channels_o2=8, loss_rel=loss, **options)
    )


def test_topology_loss_is_the_weighted_mean_over_all_pairs():
    head = relationship()
    logits = torch.tensor([[[0.5, -1.0], [2.0, 0.0], [-3.0, 1.0]]])
    lanes, boxes = [torch.tensor([1, -1, 0])], [torch.tensor([-1, 0])]
    loss = head.loss(logits, lanes, boxes, [torch.tensor([[0], [1]])])["loss_rel"]
    parts = [focal(x, 0) for x in (0.5, 2.0, 0.0, -3.0, 1.0)] + [focal(-1.0, 1)]
    assert loss.item() == pytest.approx(5 * sum(parts) / 6, rel=1e-5)


def test_each_pair_is_scored_from_its_own_two_states():
    torch.manual_seed(0)
    head = relationship()
    first, second = torch.randn(1, 3, 8), torch.randn(1, 2, 8)
    logits = head(first, second)
    assert logits.shape == (1, 3, 2)
    moved = second.clone()
    moved[0, 1] += 1
    changed = head(first, moved) != logits
    assert changed[0].tolist() == [[False, True]] * 3
    assert not torch.allclose(head(first, first), head(first, first).transpose(1, 2))  # directed


def test_parameters_can_be_shared():
    assert len(list(relationship().parameters())) == 18
    assert len(list(relationship(shared_param=True).parameters())) == 12
