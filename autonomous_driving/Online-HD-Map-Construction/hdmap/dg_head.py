"""Detector and generator together: from a bird's-eye-view map to polylines in metres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmcv.runner import BaseModule
from mmdet.models.builder import HEADS, build_head
from torch.nn.utils.rnn import pad_sequence

from .augmentation import NoiseSythesis
from .gen_head import Elements
from .tokens import ROI_SIZE, STOP_TOKEN, denormalise, detokenise


@HEADS.register_module()
class DGHead(BaseModule):
    """Detects map elements, then generates the polyline of each.

    The generator learns from the true elements; both learn at once.

    Args:
        det_net: config of `MapElementDetector`.
        gen_net: config of `PolylineGenerator`.
        augmentation: arguments of `NoiseSythesis` but the canvas; None for no noise.
        roi_size: length (x) and width (y) of the region in metres.
        max_points: vertices of a generated line at most.
        top_p: nucleus of the sampling; 0 always takes the most likely token.
        seed: of the sampling.
        init_cfg: mmcv's way to name initial weights.

    Raises:
        ValueError: the two nets have different canvases.
    """

    def __init__(
        self,
        det_net: dict,
        gen_net: dict,
        augmentation: dict | None = None,
        roi_size: Sequence[float] = ROI_SIZE,
        max_points: int = 64,
        top_p: float = 0.9,
        seed: int = 0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.det_net = build_head(det_net)
        self.gen_net = build_head(gen_net)
        canvas = tuple(det_net.get("canvas_size", (200, 100)))
        if canvas != tuple(gen_net.get("canvas_size", (200, 100))):
            raise ValueError(
                f"det_net has the canvas {canvas}, gen_net {gen_net.get('canvas_size')}: the "
                "boxes of one are read by the other, so give both the same canvas_size."
            )
        self.canvas_size = canvas
        self.augmentation = (
            None if augmentation is None else NoiseSythesis(canvas_size=canvas, **augmentation)
        )
        self.roi_size = tuple(roi_size)
        self.max_points, self.top_p, self.seed = max_points, top_p, seed

    def forward_train(
        self, bev: torch.Tensor, polys: Sequence[Mapping[str, Any]]
    ) -> dict[str, torch.Tensor]:
        """Losses of a batch.

        Args:
            bev: (B, C, H, W) map.
            polys: per frame, n lines: `det_label` (n,), `det_bbox` (n, 4) canvas pixels,
                `gen_label` (n,), `gen_bbox` (n, 4) long cells, `sequences` (n tensors of tokens),
                `gen_weight` (n tensors). n can be 0.

        Returns:
            Scalars: det_cls, det_reg, det_d0.cls, ..., gen_seq.
        """
        losses = self.det_net.loss(self.det_net(bev), polys)
        losses = {f"det_{name}": value for name, value in losses.items()}
        elements, targets, weights = gather_lines(polys, bev)
        inputs = targets
        if self.augmentation is not None and len(targets):
            inputs, boxes = self.augmentation(targets, elements.boxes)
            elements = Elements(elements.frames, elements.labels, boxes)
        generated = self.gen_net.loss(bev, elements, inputs, targets, weights)
        losses.update({f"gen_{name}": value for name, value in generated.items()})
        return losses

    @torch.no_grad()
    def simple_test(self, bev: torch.Tensor) -> list[dict[str, Any]]:
        """Lines of a batch of maps.

        Args:
            bev: (B, C, H, W) map.

        Returns:
            Per frame `vectors`, a list of (k, 2) float32 arrays in metres with k >= 2, and their
            `scores` (m,) from high to low and `labels` (m,).
        """
        detections = self.det_net.decode(self.det_net(bev))
        counts = torch.tensor([len(scores) for scores, _, _ in detections])
        frames = torch.arange(len(bev)).repeat_interleave(counts).to(bev.device)
        canvas = torch.tensor(self.canvas_size * 2, device=bev.device)
        boxes = torch.cat([box for _, _, box in detections])  # (N, 4) pixels from 0 to the canvas
        boxes = (boxes * ((canvas - 1) / canvas)).round().long()  # cells, as in training
        labels = torch.cat([label for _, label, _ in detections])
        lines = self.gen_net.generate(
            bev, Elements(frames, labels, boxes), self.max_points, self.top_p, self.seed
        )
        results, start = [], 0
        for scores, label, _ in detections:
            vectors = [self.to_metres(line) for line in lines[start : start + len(scores)]]
            start += len(scores)
            kept = [i for i, vector in enumerate(vectors) if len(vector) >= 2]
            results.append(
                {
                    "vectors": [vectors[i] for i in kept],
                    "scores": scores.cpu().numpy()[kept],
                    "labels": label.cpu().numpy()[kept],
                }
            )
        return results

    def to_metres(self, tokens: torch.Tensor) -> np.ndarray:
        """(length,) tokens to (k, 2) float32 metres in the ego frame."""
        points = detokenise(tokens.cpu().numpy(), self.canvas_size)
        return denormalise(points, self.roi_size).astype(np.float32)


def gather_lines(
    polys: Sequence[Mapping[str, Any]], like: torch.Tensor
) -> tuple[Elements, torch.Tensor, torch.Tensor]:
    """The lines of all frames as one padded batch.

    Args:
        polys: see `DGHead.forward_train`.
        like: tensor on the device of the model, of the dtype of the weights.

    Returns:
        The elements, tokens (N, T) padded with 0, and weights (N, T) padded with 0.
    """
    device = like.device
    counts = torch.tensor([len(poly["gen_label"]) for poly in polys])
    frames = torch.arange(len(polys)).repeat_interleave(counts).to(device)
    labels = torch.cat([poly["gen_label"].to(device) for poly in polys]).long()
    boxes = torch.cat([poly["gen_bbox"].to(device) for poly in polys]).long()
    tokens = [line.to(device) for poly in polys for line in poly["sequences"]]
    weights = [weight.to(like) for poly in polys for weight in poly["gen_weight"]]
    if not tokens:
        empty = torch.zeros(0, 1, device=device)
        return Elements(frames, labels, boxes.reshape(0, 4)), empty.long(), empty
    padded = pad_sequence(tokens, batch_first=True, padding_value=STOP_TOKEN).long()
    return Elements(frames, labels, boxes), padded, pad_sequence(weights, batch_first=True)
