"""The head of InternImage-H and -G: attention pooling of the feature map by its mean token.

These two models were pre-trained with image-text pairs, and their classification head keeps the
projector from there: one query, the mean of all tokens, attends to the tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .intern_image import build_norm


class CrossAttention(nn.Module):
    """Multi-head attention of given queries to given keys and values.

    The biases of the three projections are parameters of their own (`q_bias`, ...), beside linear
    layers without bias, as released checkpoints have them.

    Args:
        channels: width of queries, keys and values; a multiple of `num_heads`.
        num_heads: number of heads.
        out_channels: width of the output.
    """

    def __init__(self, channels: int, num_heads: int, out_channels: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_bias = nn.Parameter(torch.zeros(channels))
        self.k_bias = nn.Parameter(torch.zeros(channels))
        self.v_bias = nn.Parameter(torch.zeros(channels))
        self.q = nn.Linear(channels, channels, bias=False)
        self.k = nn.Linear(channels, channels, bias=False)
        self.v = nn.Linear(channels, channels, bias=False)
        self.proj = nn.Linear(channels, out_channels)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(N, Lq, C), (N, L, C), (N, L, C) -> (N, Lq, out_channels)."""
        q = self._split(F.linear(query, self.q.weight, self.q_bias))
        k = self._split(F.linear(key, self.k.weight, self.k_bias))
        v = self._split(F.linear(value, self.v.weight, self.v_bias))
        pooled = F.scaled_dot_product_attention(q, k, v)  # (N, heads, Lq, C/heads)
        return self.proj(pooled.transpose(1, 2).flatten(2))  # (N, Lq, out_channels)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (N, heads, L, C/heads)


class AttentionPool(nn.Module):
    """(N, L, C) tokens -> (N, out_channels): the mean token attends to all tokens."""

    def __init__(self, channels: int, num_heads: int, out_channels: int) -> None:
        super().__init__()
        self.norm1_q = build_norm(channels, "LN")
        self.norm1_k = build_norm(channels, "LN")
        self.norm1_v = build_norm(channels, "LN")
        self.cross_dcn = CrossAttention(channels, num_heads, out_channels)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.norm1_q(tokens.mean(1, keepdim=True))  # (N, 1, C)
        pooled = self.cross_dcn(query, self.norm1_k(tokens), self.norm1_v(tokens))
        return pooled.squeeze(1)  # (N, out_channels)
