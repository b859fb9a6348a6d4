"""Polyline generator: a detected element's vertices, token by token (VectorMapNet, section 3.3).

A sequence is five conditioning tokens (class, x1, y1, x2, y2 of the box) and the line's tokens
x1, y1, x2, y2, ..., 0 (see `tokens.py`). Conditioning tokens see each other; every other token sees
what comes before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from mmcv.runner import BaseModule
from mmdet.models.builder import HEADS
from torch import nn

from .det_head import CORNERS, embed_coordinates
from .gen_decoder import FrameSlots, KeyValue, PolylineDecoder
from .losses import sequence_loss
from .sampling import line_uniforms, nucleus_sample
from .tokens import STOP_TOKEN, vocabulary_size

CONDITION = 1 + 2 * CORNERS  # tokens that describe the element
IMPOSSIBLE = -1e9  # logit of a token that cannot stand at a position


@dataclass(frozen=True)
class Elements:
    """N map elements of a batch, those of one frame next to each other.

    Attributes:
        frames: (N,) frame of each element, ascending.
        labels: (N,) classes.
        boxes: (N, 4) long, cells of the canvas: x1, y1, x2, y2.
    """

    frames: torch.Tensor
    labels: torch.Tensor
    boxes: torch.Tensor


@dataclass(frozen=True)
class GenerationState:
    """What unfinished lines need to go on.

    Attributes:
        memories: keys and values of the maps, per layer.
        lines: frame of each line.
        past: keys and values of the tokens so far, per layer.
        length: tokens of each line so far, without the conditioning ones.
    """

    memories: list[KeyValue]
    lines: FrameSlots
    past: list[KeyValue]
    length: int

    def keep(self, kept: torch.Tensor) -> GenerationState:
        """The state of the lines that `kept` (N,) bool names."""
        lines = FrameSlots.of(self.lines.frames[kept], self.lines.shape[0])
        past = [(key[kept], value[kept]) for key, value in self.past]
        return replace(self, lines=lines, past=past)


@HEADS.register_module()
class PolylineGenerator(BaseModule):
    """Autoregressive model of a polyline given its class, its box and the map.

    Args:
        in_channels: channels of the map.
        num_classes: classes of elements.
        canvas_size: cells along x and y.
        decoder: arguments of `PolylineDecoder`.
        max_positions: vertices of a line that have an embedding.
        init_cfg: mmcv's way to name initial weights.
    """

    def __init__(
        self,
        in_channels: int = 128,
        num_classes: int = 3,
        canvas_size: Sequence[int] = (200, 100),
        decoder: dict | None = None,
        max_positions: int = 500,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.decoder = PolylineDecoder(**(decoder or {}))
        dims = self.decoder.embed_dims
        vocabulary = vocabulary_size(canvas_size)
        self.register_buffer("canvas_size", torch.tensor(tuple(canvas_size), dtype=torch.float32))
        self.input_proj = nn.Conv2d(in_channels, dims, 1)
        self.img_coord_embed = nn.Linear(2, dims)
        self.label_embed = nn.Embedding(num_classes, dims)
        self.vertex_embed = nn.Embedding(vocabulary, dims)
        self.coord_embed = nn.Embedding(2, dims)
        self.pos_embeddings = nn.Embedding(max_positions, dims)
        self.bbox_context_embed = nn.Embedding(CORNERS + 1, dims)  # the last row has no use
        self._project_to_logits = nn.Linear(dims, vocabulary)
        tokens = torch.arange(vocabulary)
        impossible = torch.stack(  # (2, vocabulary): at an x; at a y, which cannot end a line
            [tokens > canvas_size[0], (tokens > canvas_size[1]) | (tokens == STOP_TOKEN)]
        )
        self.register_buffer("impossible", impossible, persistent=False)

    def embed_map(self, bev: torch.Tensor) -> list[KeyValue]:
        """A (B, C, H, W) map as keys and values of every layer."""
        bev = embed_coordinates(self.input_proj(bev), self.img_coord_embed)
        return self.decoder.project_memory(bev.flatten(2).transpose(1, 2))

    def embed_condition(self, elements: Elements) -> torch.Tensor:
        """The conditioning tokens: (N, 5, C)."""
        order = torch.arange(2 * CORNERS, device=elements.boxes.device)
        corners = self.vertex_embed(elements.boxes)  # (N, 4, C)
        corners = corners + self.coord_embed(order % 2) + self.bbox_context_embed(order // 2)
        return torch.cat([self.label_embed(elements.labels)[:, None], corners], dim=1)

    def embed_tokens(self, tokens: torch.Tensor, start: int = 0) -> torch.Tensor:
        """(N, T) tokens, of which the first is number `start` of its line: (N, T, C).

        Raises:
            ValueError: a line has more vertices than there are embeddings.
        """
        order = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        limit = 2 * self.pos_embeddings.num_embeddings
        if start + tokens.shape[1] > limit:
            raise ValueError(
                f"A line of {(start + tokens.shape[1] + 1) // 2} points is longer than the "
                f"{limit // 2} that the generator has positions for: simplify the lines more, or "
                "raise max_positions."
            )
        position = self.coord_embed(order % 2) + self.pos_embeddings(order // 2)
        return self.vertex_embed(tokens) + position

    def to_logits(self, states: torch.Tensor, start: int = 0) -> torch.Tensor:
        """(N, T, C) states to (N, T, vocabulary); the first is the one of token number `start`.

        At least float32: half precision has no number as low as `IMPOSSIBLE`.
        """
        order = torch.arange(start, start + states.shape[1], device=states.device)
        logits = self._project_to_logits(states)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.masked_fill(self.impossible[order % 2], IMPOSSIBLE)

    def forward(self, bev: torch.Tensor, elements: Elements, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of every token of known lines, and of the one after them.

        Args:
            bev: (B, C, H, W) map.
            elements: N elements.
            tokens: (N, T) the lines so far; T can be 0.

        Returns:
            (N, T + 1, vocabulary): entry t depends on the tokens before number t only.
        """
        x = torch.cat([self.embed_condition(elements), self.embed_tokens(tokens)], dim=1)
        length = x.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        mask[:CONDITION, :CONDITION] = True
        lines = FrameSlots.of(elements.frames, len(bev))
        x, _ = self.decoder(x, self.embed_map(bev), lines, mask=mask)
        return self.to_logits(x[:, CONDITION - 1 :])

    def loss(
        self,
        bev: torch.Tensor,
        elements: Elements,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Teacher forcing.

        Args:
            bev: (B, C, H, W) map.
            elements: N elements; without any the loss is 0 and every gradient too.
            inputs: (N, T) tokens that the model is told; only the first T - 1 matter.
            targets: (N, T) tokens that it should say.
            weights: (N, T) weight of each; 0 on padding.

        Returns:
            'seq', a scalar.
        """
        if not len(targets):
            zero = sum(parameter.sum() for parameter in self.parameters()) * 0.0
            return {"seq": zero + bev.sum() * 0.0}
        return {"seq": sequence_loss(self(bev, elements, inputs[:, :-1]), targets, weights)}

    def begin(self, bev: torch.Tensor, elements: Elements) -> tuple[torch.Tensor, GenerationState]:
        """Logits (N, vocabulary) of the first token, and the state to go on from."""
        lines = FrameSlots.of(elements.frames, len(bev))
        memories = self.embed_map(bev)
        x, past = self.decoder(self.embed_condition(elements), memories, lines)
        return self.to_logits(x[:, -1:])[:, 0], GenerationState(memories, lines, past, 0)

    def advance(
        self, tokens: torch.Tensor, state: GenerationState
    ) -> tuple[torch.Tensor, GenerationState]:
        """Says (N,) tokens; returns the logits (N, vocabulary) of the next ones and the state."""
        x = self.embed_tokens(tokens[:, None], state.length)
        x, past = self.decoder(x, state.memories, state.lines, state.past)
        logits = self.to_logits(x, state.length + 1)[:, 0]
        return logits, replace(state, past=past, length=state.length + 1)

    @torch.no_grad()
    def generate(
        self,
        bev: torch.Tensor,
        elements: Elements,
        max_points: int = 64,
        top_p: float = 0.9,
        seed: int = 0,
    ) -> list[torch.Tensor]:
        """Writes the lines of N elements; a finished line leaves the batch.

        Args:
            bev: (B, C, H, W) map.
            elements: N elements; N can be 0.
            max_points: vertices after which a line is cut off.
            top_p: nucleus of the sampling; 0 always takes the most likely token.
            seed: of the random numbers; lines of a frame do not depend on the other frames.

        Returns:
            N lines of tokens, each (length,) without the stop token.
        """
        count = len(elements.labels)
        if count == 0:
            return []
        steps = 2 * max_points
        per_frame = torch.bincount(elements.frames, minlength=len(bev)).tolist()
        uniforms = line_uniforms(per_frame, steps, seed).to(bev.device)
        said = torch.full((count, steps), STOP_TOKEN, device=bev.device)
        alive = torch.arange(count, device=bev.device)
        logits, state = self.begin(bev, elements)
        for step in range(steps):
            tokens = nucleus_sample(logits, uniforms[alive, step], top_p)
            said[alive, step] = tokens
            going = tokens != STOP_TOKEN
            alive = alive[going]
            if len(alive) == 0 or step == steps - 1:
                break
            if not going.all():
                tokens, state = tokens[going], state.keep(going)
            logits, state = self.advance(tokens, state)
        lengths = (said != STOP_TOKEN).sum(dim=1).tolist()
        return [line[:length] for line, length in zip(said, lengths)]
