"""Map element detector: where is a line, and of which class (VectorMapNet, section 3.2).

An element is a class and the two corners of the line's bounding box. Every element query is two key
point queries, one per corner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmcv.cnn import bias_init_with_prob
from mmcv.runner import BaseModule
from mmdet.core import build_assigner, reduce_mean
from mmdet.models.builder import HEADS, build_loss
from mmdet.models.utils import build_transformer
from mmdet.models.utils.transformer import inverse_sigmoid
from torch import nn

from .assign import ordered

CORNERS = 2  # key points per element


def coordinate_grid(height: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """Row and column of every cell of a map, as fractions of its size: (height * width, 2)."""
    rows = torch.arange(height, device=like.device, dtype=like.dtype) / height
    columns = torch.arange(width, device=like.device, dtype=like.dtype) / width
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)


def embed_coordinates(bev: torch.Tensor, embed: nn.Module) -> torch.Tensor:
    """Adds a linear embedding of each cell's coordinates to a (B, C, H, W) map."""
    height, width = bev.shape[-2:]
    grid = embed(coordinate_grid(height, width, bev))  # (H W, C)
    return bev + grid.T.reshape(1, -1, height, width)


@HEADS.register_module()
class MapElementDetector(BaseModule):
    """Finds boxes and classes of map elements on a bird's-eye-view map.

    Args:
        transformer: config of `DeformableDetrTransformer_`.
        assigner: config of `HungarianLinesAssigner`.
        loss_cls: config of a sigmoid classification loss.
        loss_reg: config of `LinesLoss`.
        in_channels: channels of the map.
        num_classes: classes of elements.
        num_query: elements that are proposed.
        canvas_size: pixels of the canvas along x and y; boxes are in these pixels.
        max_lines: elements that `decode` returns at most.
        init_cfg: mmcv's way to name initial weights.
    """

    def __init__(
        self,
        transformer: dict,
        assigner: dict,
        loss_cls: dict,
        loss_reg: dict,
        in_channels: int = 128,
        num_classes: int = 3,
        num_query: int = 120,
        canvas_size: Sequence[int] = (200, 100),
        max_lines: int = 35,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.num_classes = num_classes
        self.max_lines = max_lines
        self.assigner = build_assigner(assigner)
        self.loss_cls = build_loss(loss_cls)
        self.loss_reg = build_loss(loss_reg)
        self.transformer = build_transformer(transformer)
        dims = self.transformer.embed_dims
        self.register_buffer("canvas_size", torch.tensor(tuple(canvas_size), dtype=torch.float32))
        self.input_proj = nn.Conv2d(in_channels, dims, 1)
        self.img_coord_embed = nn.Linear(2, dims)
        self.query_embedding = nn.Embedding(num_query, 2 * dims)
        self.bbox_embedding = nn.Embedding(CORNERS, 2 * dims)
        # Part of the published weights; nothing reads it.
        self.label_embed = nn.Embedding(num_classes, dims).requires_grad_(False)
        cls_branch = nn.Linear(CORNERS * dims, num_classes)
        reg_branch = nn.Sequential(
            *(nn.Linear(dims, dims), nn.LayerNorm(dims), nn.ReLU()),
            *(nn.Linear(dims, dims), nn.LayerNorm(dims), nn.ReLU()),
            nn.Linear(dims, 2),
        )
        layers = self.transformer.decoder.num_layers
        self.pre_branches = nn.ModuleDict(  # one branch each, under a name per layer
            {
                "cls": nn.ModuleList([cls_branch] * layers),
                "reg": nn.ModuleList([reg_branch] * layers),
            }
        )

    def init_weights(self) -> None:
        """Low scores and boxes at the reference points, as in Deformable DETR."""
        self.transformer.init_weights()
        nn.init.xavier_uniform_(self.input_proj.weight)
        nn.init.zeros_(self.input_proj.bias)
        nn.init.constant_(self.pre_branches["cls"][0].bias, bias_init_with_prob(0.01))
        nn.init.zeros_(self.pre_branches["reg"][0][-1].weight)
        nn.init.zeros_(self.pre_branches["reg"][0][-1].bias)
        self._is_init = True

    def forward(self, bev: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Predicts from every decoder layer.

        Args:
            bev: (B, C, H, W) map; rows run along y, columns along x.

        Returns:
            Per layer the class logits (B, Q, classes) and the boxes (B, Q, 4) in canvas pixels.
        """
        bev = embed_coordinates(self.input_proj(bev), self.img_coord_embed)
        queries = self.query_embedding.weight[:, None] + self.bbox_embedding.weight  # (Q, 2, 2 C)
        states, references = self.transformer(bev, queries.flatten(0, 1))
        anchors = inverse_sigmoid(references.float())  # (B, 2 Q, 2)
        outputs = []
        for state, cls, reg in zip(states, self.pre_branches["cls"], self.pre_branches["reg"]):
            logits = cls(state.unflatten(1, (-1, CORNERS)).flatten(2))
            corners = (reg(state).float() + anchors).sigmoid() * self.canvas_size  # (B, 2 Q, 2)
            outputs.append((logits, corners.unflatten(1, (-1, CORNERS)).flatten(2)))
        return outputs

    def loss(
        self, outputs: Sequence[tuple[torch.Tensor, torch.Tensor]], polys: Sequence[Mapping]
    ) -> dict[str, torch.Tensor]:
        """Losses of all layers; the last one's are 'cls' and 'reg', the others' 'd0.cls', ...

        Args:
            outputs: what `forward` returned.
            polys: per frame `det_label` (n,) and `det_bbox` (n, 4) in canvas pixels; n can be 0.

        Returns:
            Scalars by name.
        """
        losses = {}
        for index, (logits, boxes) in enumerate(outputs):
            prefix = "" if index == len(outputs) - 1 else f"d{index}."
            losses[prefix + "cls"], losses[prefix + "reg"] = self._layer_loss(logits, boxes, polys)
        return losses

    def _layer_loss(
        self, logits: torch.Tensor, boxes: torch.Tensor, polys: Sequence[Mapping]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Classification and box loss of a layer, divided by the matched elements of all ranks."""
        labels = torch.full(logits.shape[:2], self.num_classes, device=logits.device)
        targets, weights = torch.zeros_like(boxes), torch.zeros_like(boxes)
        for frame, poly in enumerate(polys):
            gt_boxes, gt_labels = poly["det_bbox"].to(boxes), poly["det_label"].to(labels)
            result = self.assigner.assign(boxes[frame], logits[frame], gt_boxes, gt_labels)
            matched = result.gt_inds.nonzero().squeeze(1)
            elements = result.gt_inds[matched] - 1
            labels[frame, matched] = gt_labels[elements]
            targets[frame, matched] = gt_boxes[elements]
            weights[frame, matched] = 1 / (2 * CORNERS)
        count = (labels < self.num_classes).sum().to(boxes)
        count = reduce_mean(count).clamp(min=1.0)
        cls = self.loss_cls(logits.flatten(0, 1), labels.flatten(), avg_factor=count)
        reg = self.loss_reg(
            boxes.flatten(0, 1), targets.flatten(0, 1), weights.flatten(0, 1), count
        )
        return cls, reg

    def decode(
        self, outputs: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """The best pairs of query and class of each frame, by the last layer.

        Args:
            outputs: what `forward` returned.

        Returns:
            Per frame scores (m,) from high to low, labels (m,), boxes (m, 4) in canvas pixels.
        """
        logits, boxes = outputs[-1]
        scores = logits.float().sigmoid().flatten(1)
        scores, indices = scores.topk(min(self.max_lines, scores.shape[1]), dim=1)
        labels = indices % self.num_classes
        queries = indices // self.num_classes
        boxes = ordered(boxes)
        return [(s, label, box[q]) for s, label, box, q in zip(scores, labels, boxes, queries)]
