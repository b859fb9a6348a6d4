"""The attentions of the BEV encoder against loops that follow the definitions."""

from __future__ import annotations

import bev_toys as toys
import numpy as np
import pytest
import torch
from ad_common.bev import deformable, geometry
from ad_common.bev.attention import (
    MSDeformableAttention3D,
    SpatialCrossAttention,
    TemporalSelfAttention,
)
from mmcv.cnn.bricks.transformer import build_attention
from mmcv.ops import MultiScaleDeformableAttention

SHAPES = torch.tensor([[5, 7], [3, 4]])
STARTS = torch.tensor([0, 35])
TOKENS = 47


def bilinear(level: np.ndarray, x: float, y: float) -> np.ndarray:
    """A sample of (h, w, C) at (x, y) in [0, 1]; pixel centres are at (i + 0.5) / size."""
    height, width, channels = level.shape
    x, y = x * width - 0.5, y * height - 0.5
    total = np.zeros(channels)
    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += level[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def levels_of(value: torch.Tensor, shapes=SHAPES) -> list[np.ndarray]:
    """(S, C) tokens as one (h, w, C) per level."""
    parts = value.detach().split([int(h * w) for h, w in shapes])
    return [p.reshape(int(h), int(w), -1).numpy() for p, (h, w) in zip(parts, shapes, strict=True)]


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max())
    return x / x.sum()


def relative(a: torch.Tensor, b) -> float:
    b = torch.as_tensor(b)
    return float((a - b).detach().abs().max() / b.abs().max())


def test_sampling_equals_a_loop():
    value, weights = toys.normal(2, TOKENS, 3, 4), toys.normal(2, 6, 3, 2, 5, seed=3)
    locations = toys.normal(2, 6, 3, 2, 5, 2, seed=4).sigmoid() * 1.4 - 0.2
    got = deformable.deformable_sampling(value, SHAPES, STARTS, locations, weights)
    expected = np.zeros((2, 6, 3, 4))
    for b, q, h, level, p in np.ndindex(2, 6, 3, 2, 5):
        maps = levels_of(value[b, :, h])
        x, y = locations[b, q, h, level, p].tolist()
        expected[b, q, h] += float(weights[b, q, h, level, p]) * bilinear(maps[level], x, y)
    assert relative(got, expected.reshape(2, 6, 12)) < 1e-12


def test_sampling_gradients():
    value, weights = toys.normal(1, 12, 2, 2), toys.normal(1, 3, 2, 1, 2)
    locations = torch.rand(1, 3, 2, 1, 2, 2, generator=torch.Generator().manual_seed(5)).double()
    inputs = [t.requires_grad_() for t in (value, locations, weights)]
    shapes = torch.tensor([[3, 4]])

    def run(value, locations, weights):
        return deformable.deformable_sampling(value, shapes, STARTS[:1], locations, weights)

    assert torch.autograd.gradcheck(run, inputs)


def temporal_loop(attention, query, pos, previous, current, references):
    """Section 3.4 of the paper, one query, map, head and point after the other."""
    heads, points, (height, width) = attention.num_heads, attention.num_points, (4, 5)
    size = attention.embed_dims // heads
    both = torch.cat([previous, query + pos], -1)
    offsets = attention.sampling_offsets(both).detach().numpy()
    offsets = offsets.reshape(len(query), heads, 2, points, 2)
    weights = attention.attention_weights(both).detach().numpy()
    weights = weights.reshape(len(query), heads, 2, points)
    shapes = torch.tensor([[height, width]])
    maps = [levels_of(attention.value_proj(m), shapes)[0] for m in (previous, current)]
    mean = np.zeros((len(query), heads * size))
    for q, which, head in np.ndindex(len(query), 2, heads):
        part = maps[which][:, :, head * size : (head + 1) * size]
        shares = softmax(weights[q, head, which])
        for p in range(points):
            x, y = references[which, q, 0].numpy() + offsets[q, head, which, p] / [width, height]
            mean[q, head * size : (head + 1) * size] += shares[p] * bilinear(part, x, y) / 2
    return attention.output_proj(torch.as_tensor(mean)) + query


@pytest.mark.parametrize("with_history", [True, False])
def test_temporal_attention_equals_a_loop(with_history):
    attention = toys.randomise(TemporalSelfAttention(8, num_heads=2, num_points=3))
    query, pos, previous, current = toys.normal(4, 2, 20, 8)  # two samples
    references = torch.rand(4, 20, 1, 2).double()
    value = torch.stack([previous, current], 1).flatten(0, 1) if with_history else None
    got = attention(
        query,
        value=value,
        query_pos=pos,
        reference_points=references,
        spatial_shapes=torch.tensor([[4, 5]]),
        level_start_index=torch.tensor([0]),
    )
    for b in range(2):
        maps = (previous[b], current[b]) if with_history else (query[b], query[b])
        expected = temporal_loop(attention, query[b], pos[b], *maps, references[2 * b : 2 * b + 2])
        assert relative(got[b], expected.detach()) < 1e-12


def pillar_loop(attention, query, value, places):
    """Section 3.3: point i of a head belongs to pillar point i modulo D."""
    heads, levels, points = attention.num_heads, attention.num_levels, attention.num_points
    size = attention.embed_dims // heads
    offsets = attention.sampling_offsets(query).detach().numpy()
    offsets = offsets.reshape(len(query), heads, levels, points, 2)
    weights = attention.attention_weights(query).detach().numpy().reshape(len(query), heads, -1)
    maps = levels_of(attention.value_proj(value))
    total = np.zeros((len(query), heads * size))
    for q, head in np.ndindex(len(query), heads):
        shares = softmax(weights[q, head]).reshape(levels, points)
        channels = slice(head * size, (head + 1) * size)
        for level, p in np.ndindex(levels, points):
            wide = SHAPES[level].numpy()[::-1]
            x, y = places[q, p % places.shape[1]].numpy() + offsets[q, head, level, p] / wide
            total[q, channels] += shares[level, p] * bilinear(maps[level][:, :, channels], x, y)
    return torch.as_tensor(total)


def test_pillar_attention_equals_a_loop():
    attention = toys.randomise(MSDeformableAttention3D(8, 2, 2, num_points=6))
    query, value, places = toys.normal(2, 5, 8), toys.normal(2, TOKENS, 8), torch.rand(2, 5, 3, 2)
    places = places.double()
    got = attention(query, value, places, SHAPES, STARTS)
    for b in range(2):
        expected = pillar_loop(attention, query[b], value[b], places[b])
        assert relative(got[b], expected) < 1e-12


def test_cross_attention_equals_a_loop_over_cameras():
    inside = dict(type="MSDeformableAttention3D", embed_dims=8, num_heads=2, num_levels=2)
    attention = SpatialCrossAttention(8, deformable_attention=dict(**inside, num_points=4))
    attention = toys.randomise(attention)
    query, value = toys.normal(2, 9, 8), toys.normal(2, 3, TOKENS, 8)
    places = torch.rand(2, 3, 9, 2, 2).double()
    visible = torch.rand(2, 3, 9, 2, generator=torch.Generator().manual_seed(0)) < 0.3
    visible[:, :, 4] = False  # a query that nobody sees
    visible[1, 2] = False  # a camera that sees nothing
    seen = geometry.seen_queries(places, visible)
    got = attention(query, None, value, seen=seen, spatial_shapes=SHAPES, level_start_index=STARTS)
    for b in range(2):
        for q in range(9):
            found = [
                pillar_loop(
                    attention.deformable_attention,
                    query[b, q : q + 1],
                    value[b, n],
                    places[b, n, q : q + 1],
                )[0]
                for n in range(3)
                if visible[b, n, q].any()
            ]
            mean = sum(found) / len(found) if found else torch.zeros(8).double()
            expected = attention.output_proj(mean) + query[b, q]
            assert relative(got[b, q], expected.detach()) < 1e-12


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_custom_attention_is_that_of_mmcv(batch_first):
    options = dict(embed_dims=8, num_heads=2, num_levels=2, num_points=3, batch_first=batch_first)
    custom = build_attention(dict(type="CustomMSDeformableAttention", dropout=0.0, **options))
    plain = MultiScaleDeformableAttention(dropout=0.0, **options)
    toys.randomise(custom)
    plain.load_state_dict(custom.double().state_dict())
    query, value = toys.normal(2, 6, 8), toys.normal(2, TOKENS, 8)
    if not batch_first:
        query, value = query.transpose(0, 1), value.transpose(0, 1)
    given = dict(
        value=value,
        reference_points=torch.rand(2, 6, 2, 2).double(),
        spatial_shapes=SHAPES,
        level_start_index=STARTS,
    )
    assert relative(custom(query, **given), plain.double()(query, **given).detach()) < 1e-12
    single = {k: v.float() if v.is_floating_point() else v for k, v in given.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = custom.float()(query.float(), **single)
    assert mixed.dtype == torch.float32
    assert relative(mixed.double(), plain(query, **given).detach()) < 1e-5


def test_new_attentions_look_around_the_query():
    attention = TemporalSelfAttention(32, num_heads=4, num_points=3)
    start = attention.sampling_offsets.bias.view(4, 2, 3, 2)
    assert attention.sampling_offsets.weight.abs().max() == 0
    # head h points along 90 degrees * h; point i is i + 1 pixels away
    directions = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    expected = directions[:, None, None] * torch.tensor([1.0, 2, 3])[:, None]
    torch.testing.assert_close(start, expected.expand_as(start), atol=1e-6, rtol=0)


def test_shapes_that_do_not_fit_are_named():
    attention = MSDeformableAttention3D(8, 2, 2, num_points=4)
    query, value, places = torch.zeros(1, 3, 8), torch.zeros(1, TOKENS, 8), torch.zeros(1, 3, 3, 2)
    with pytest.raises(ValueError, match="num_points 4 must be a multiple of the 3 points"):
        attention(query, value, places, SHAPES, STARTS)
    with pytest.raises(ValueError, match=r"40 tokens, but levels .* have 47"):
        attention(query, value[:, :40], places[:, :, :2], SHAPES, STARTS)
    with pytest.raises(ValueError, match="got 1 feature levels, but num_levels"):
        attention(query, value, places[:, :, :2], SHAPES[:1], STARTS[:1])
    with pytest.raises(ValueError, match="embed_dims 9 must be divisible by num_heads 2"):
        MSDeformableAttention3D(9, 2)
    with pytest.raises(ValueError, match="num_bev_queue is 3"):
        TemporalSelfAttention(8, 2, num_bev_queue=3)
    with pytest.raises(ValueError, match="batch first"):
        SpatialCrossAttention(batch_first=False)
    temporal = TemporalSelfAttention(8, 2)
    with pytest.raises(ValueError, match=r"value has the shape \(1, 20, 8\)"):
        temporal(torch.zeros(1, 20, 8), value=torch.zeros(1, 20, 8))
