"""The polyline generator's transformer decoder: causal, pre-norm, ReZero, with cached keys.

Lines of several frames run as one batch of N sequences. The map of a frame is projected to keys and
values once for all of its lines; `FrameSlots` says which line belongs to which frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

KeyValue = tuple[torch.Tensor, torch.Tensor]  # each (N or B, heads, length, channels per head)


@dataclass(frozen=True)
class FrameSlots:
    """Frame of each line and the line's number within it.

    Attributes:
        frames: (N,) frame of each line, ascending.
        slots: (N,) 0, 1, ... within each frame.
        shape: number of frames, and of lines in the fullest one.
    """

    frames: torch.Tensor
    slots: torch.Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, frames: torch.Tensor, num_frames: int) -> FrameSlots:
        """From (N,) ascending frame numbers below `num_frames`."""
        counts = torch.bincount(frames, minlength=num_frames)
        starts = counts.cumsum(0) - counts
        slots = torch.arange(len(frames), device=frames.device) - starts[frames]
        return cls(frames, slots, (num_frames, int(counts.max())))


class Attention(nn.MultiheadAttention):
    """torch's attention with its two halves apart: project, then attend."""

    def __init__(self, embed_dims: int, num_heads: int, dropout: float) -> None:
        super().__init__(embed_dims, num_heads, dropout=dropout, batch_first=True)

    def _project(self, x: torch.Tensor, start: int, parts: int) -> list[torch.Tensor]:
        """`parts` of the stacked projections from number `start`: each (N, heads, T, C / heads)."""
        rows = slice(start * self.embed_dim, (start + parts) * self.embed_dim)
        out = F.linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])
        return [p.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for p in out.chunk(parts, -1)]

    def query(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T, C) to queries."""
        return self._project(x, 0, 1)[0]

    def key_value(self, x: torch.Tensor) -> KeyValue:
        """(N, T, C) to keys and values."""
        key, value = self._project(x, 1, 2)
        return key, value

    def attend(
        self, query: torch.Tensor, key_value: KeyValue, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Queries (N, heads, T, .) on keys and values; `mask` (T, S) is True where one may look.

        Returns:
            (N, T, C).
        """
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(query, *key_value, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Self-attention, attention to the map and a feed-forward net, each x + weight * f(norm(x)).

    The weights of the residual branches start at 0 (ReZero, arXiv 2003.04887).

    Args:
        embed_dims: channels.
        num_heads: attention heads.
        feedforward_dims: hidden channels.
        dropout: of the attention weights, the hidden channels and each branch's output.
    """

    def __init__(
        self, embed_dims: int, num_heads: int, feedforward_dims: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attn = Attention(embed_dims, num_heads, dropout)
        self.multihead_attn = Attention(embed_dims, num_heads, dropout)
        self.linear1 = nn.Linear(embed_dims, feedforward_dims)
        self.linear2 = nn.Linear(feedforward_dims, embed_dims)
        self.norm1 = nn.LayerNorm(embed_dims)
        self.norm2 = nn.LayerNorm(embed_dims)
        self.norm3 = nn.LayerNorm(embed_dims)
        self.res_weight1 = nn.Parameter(torch.zeros(1))
        self.res_weight2 = nn.Parameter(torch.zeros(1))
        self.res_weight3 = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: torch.Tensor,
        memory: KeyValue,
        lines: FrameSlots,
        past: KeyValue | None = None,
        mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, KeyValue]:
        """Runs T new positions.

        Args:
            x: (N, T, C).
            memory: the frames' keys and values, from `multihead_attn.key_value`.
            lines: frame of each line.
            past: keys and values of the S positions before these.
            mask: (T, S + T) True where a position may look; None: everywhere.

        Returns:
            (N, T, C), and the keys and values of all S + T positions.
        """
        attention, y = self.self_attn, self.norm1(x)
        key, value = attention.key_value(y)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        y = attention.attend(attention.query(y), (key, value), mask)
        x = x + self.res_weight1 * self.dropout(y)
        y = self._look_at_map(self.norm2(x), memory, lines)
        x = x + self.res_weight2 * self.dropout(y)
        y = self.linear2(self.dropout(self.linear1(self.norm3(x)).relu()))
        return x + self.res_weight3 * self.dropout(y), (key, value)

    def _look_at_map(self, x: torch.Tensor, memory: KeyValue, lines: FrameSlots) -> torch.Tensor:
        """All lines of a frame query its map together: a frame's map is never repeated."""
        steps = x.shape[1]
        padded = x.new_zeros(*lines.shape, steps, x.shape[2])  # (B, L, T, C)
        padded[lines.frames, lines.slots] = x
        attention = self.multihead_attn
        out = attention.attend(attention.query(padded.flatten(1, 2)), memory)
        return out.unflatten(1, (-1, steps))[lines.frames, lines.slots]


class PolylineDecoder(nn.Module):
    """A stack of `DecoderLayer`.

    Args:
        num_layers: how many.
        embed_dims: channels.
        num_heads: attention heads.
        feedforward_dims: hidden channels.
        dropout: see `DecoderLayer`.
    """

    def __init__(
        self,
        num_layers: int = 6,
        embed_dims: int = 256,
        num_heads: int = 8,
        feedforward_dims: int = 512,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.embed_dims = embed_dims
        self.layers = nn.ModuleList(
            DecoderLayer(embed_dims, num_heads, feedforward_dims, dropout)
            for _ in range(num_layers)
        )

    def project_memory(self, memory: torch.Tensor) -> list[KeyValue]:
        """(B, M, C) maps to every layer's keys and values."""
        return [layer.multihead_attn.key_value(memory) for layer in self.layers]

    def forward(
        self,
        x: torch.Tensor,
        memories: list[KeyValue],
        lines: FrameSlots,
        past: list[KeyValue] | None = None,
        mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, list[KeyValue]]:
        """Runs T new positions through all layers; the arguments as `DecoderLayer.forward`."""
        present = []
        for index, layer in enumerate(self.layers):
            before = past[index] if past is not None else None
            x, key_value = layer(x, memories[index], lines, before, mask)
            present.append(key_value)
        return x, present
