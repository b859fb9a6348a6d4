"""Which lane follows which, and which traffic element belongs to which lane.

Both questions are asked of pairs of decoder queries (OpenLane-V2, arXiv 2304.10440, appendix).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from mmcv.runner import BaseModule, force_fp32
from mmdet.models.builder import HEADS, build_loss
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        channels: number of channels before, between and after the layers.
    """

    def __init__(self, *channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(..., first) -> (..., last)."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


@HEADS.register_module()
class RelationshipHead(BaseModule):
    """Scores every pair of two sets of queries.

    Args:
        in_channels_o1: channels of the first set's states.
        in_channels_o2: channels of the second set's states.
        shared_param: embed both sets with the same layers.
        loss_rel: config of the loss; class 0 is "there is an edge".
        init_cfg: as in mmcv's BaseModule.
    """

    def __init__(
        self,
        in_channels_o1: int,
        in_channels_o2: int,
        loss_rel: Mapping[str, Any],
        shared_param: bool = False,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        hidden = in_channels_o1
        self.MLP_o1 = MLP(in_channels_o1, hidden, hidden, hidden // 2)
        self.MLP_o2 = (
            self.MLP_o1 if shared_param else MLP(in_channels_o2, hidden, hidden, hidden // 2)
        )
        self.classifier = MLP(hidden // 2 * 2, hidden, hidden, 1)
        self.loss_rel = build_loss(dict(loss_rel))
        self.fp16_enabled = False

    def forward(self, o1: Tensor, o2: Tensor) -> Tensor:
        """Logits of the edges.

        Args:
            o1: (B, n, C) states of the first set.
            o2: (B, m, C) states of the second set.

        Returns:
            (B, n, m) logits; at [b, i, j] that of the edge from i to j.
        """
        first, second = self.MLP_o1(o1), self.MLP_o2(o2)
        n, m = first.shape[1], second.shape[1]
        pairs = torch.cat(
            [first[:, :, None].expand(-1, -1, m, -1), second[:, None].expand(-1, n, -1, -1)], dim=-1
        )  # (B, n, m, C)
        return self.classifier(pairs).squeeze(-1)

    @force_fp32(apply_to=("logits",))
    def loss(
        self,
        logits: Tensor,
        matched_o1: Sequence[Tensor],
        matched_o2: Sequence[Tensor],
        adjacency: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Loss of all pairs of a batch.

        Args:
            logits: (B, n, m) from `forward`.
            matched_o1: per frame (n,) index of the annotation of each query, -1 for none.
            matched_o2: the same of the second set, (m,).
            adjacency: per frame the annotated matrix, 1 for an edge.

        Returns:
            {"loss_rel": mean over all pairs}.
        """
        targets = [relation_targets(*frame) for frame in zip(matched_o1, matched_o2, adjacency)]
        labels = 1 - torch.stack(targets)  # (B, n, m), class 0 is an edge
        loss = self.loss_rel(logits.reshape(-1, 1), labels.reshape(-1))
        return {"loss_rel": torch.nan_to_num(loss)}


def relation_targets(matched_o1: Tensor, matched_o2: Tensor, adjacency: Tensor) -> Tensor:
    """Copies the annotated edges to the queries that were matched with their ends.

    Args:
        matched_o1: (n,) index of a row of `adjacency`, -1 for none.
        matched_o2: (m,) index of a column, -1 for none.
        adjacency: (rows, columns) of 0 and 1; an empty one may have any shape.

    Returns:
        (n, m) int64 of 0 and 1.
    """
    target = matched_o1.new_zeros(len(matched_o1), len(matched_o2))
    rows, columns = (matched_o1 >= 0).nonzero()[:, 0], (matched_o2 >= 0).nonzero()[:, 0]
    if len(rows) and len(columns):
        edges = adjacency[matched_o1[rows]][:, matched_o2[columns]]
        target[rows[:, None], columns] = edges.to(target.dtype)
    return target
