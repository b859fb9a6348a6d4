"""The detector's matching and losses, the generator's logits and lines, tokens and noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hdmap.augmentation import NoiseSythesis
from hdmap.dg_head import gather_lines
from hdmap.gen_head import Elements
from hdmap.losses import sequence_loss
from hdmap.sampling import line_uniforms, nucleus_sample
from hdmap.tokens import (
    CANVAS_SIZE,
    MARGIN,
    ROI_SIZE,
    denormalise,
    detokenise,
    normalise,
    tokenise,
    vocabulary_size,
)
from hdmap_tiny import CANVAS, det_net, gen_net, polys, wake
from mmdet.core import build_assigner
from mmdet.core.bbox.match_costs import build_match_cost
from mmdet.models.builder import build_head, build_loss


@pytest.fixture
def generator() -> torch.nn.Module:
    torch.manual_seed(1)
    net = build_head(gen_net())
    wake(net)
    return net.eval()


@pytest.fixture
def bev() -> torch.Tensor:
    return torch.randn(3, 16, 5, 10, generator=torch.Generator().manual_seed(2))


def elements(frames: list[int], seed: int = 0) -> Elements:
    """Random elements of the named frames."""
    rng = torch.Generator().manual_seed(seed)
    count = len(frames)
    return Elements(
        torch.tensor(frames),
        torch.randint(3, (count,), generator=rng),
        torch.randint(20, (count, 4), generator=rng),
    )


# Tokens


def test_tokens_of_a_worked_line() -> None:
    line = np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.25]])
    assert tokenise(line, (201, 101)).tolist() == [1, 1, 201, 101, 101, 26, 0]
    assert vocabulary_size((200, 100)) == 201
    np.testing.assert_allclose(normalise([[0.0, 0.0, 9.0], [30.0, -15.0, 9.0]], ROI_SIZE),
                               [[30 / 62, 15 / 32], [60 / 62, 0.0]])  # fmt: skip


def test_tokens_move_a_point_by_half_a_cell_at_most() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform([-30, -15], [30, 15], (500, 2))
    back = denormalise(
        detokenise(tokenise(normalise(points, ROI_SIZE), CANVAS_SIZE), CANVAS_SIZE), ROI_SIZE
    )
    cell = (np.array(ROI_SIZE) + MARGIN) / (np.array(CANVAS_SIZE) - 1)
    error = np.abs(back - points) / cell
    assert error.max() <= 0.5 + 1e-9
    cut = denormalise(
        detokenise(tokenise(normalise(points, ROI_SIZE), CANVAS_SIZE, True), CANVAS_SIZE), ROI_SIZE
    )
    assert (
        (points - cut) / cell
    ).min() >= -1e-9  # never ahead of the truth, on average half a cell
    assert ((points - cut) / cell).mean() == pytest.approx(0.5, abs=0.03)


def test_detokenise_ends_at_the_stop_token_and_drops_half_a_vertex() -> None:
    assert len(detokenise(np.array([3, 4, 0, 7, 8]), CANVAS)) == 1
    assert len(detokenise(np.array([3, 4, 5]), CANVAS)) == 1
    assert detokenise(np.array([0]), CANVAS).shape == (0, 2)


# Matching


def test_costs_of_worked_boxes() -> None:
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [4.0, 4.0, 0.0, 0.0], [4.0, 0.0, 8.0, 4.0]])
    truth = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    l1 = build_match_cost(dict(type="BBoxCostC", weight=0.5))(boxes, truth)
    torch.testing.assert_close(l1[:, 0], torch.tensor([0.0, 8.0, 4.0]))
    giou = build_match_cost(dict(type="IoUCostC", weight=2.0))(boxes, truth)
    torch.testing.assert_close(giou[:, 0], torch.tensor([-2.0, -2.0, 0.0]))


def test_matching_takes_the_cheapest_assignment_not_the_nearest_query() -> None:
    assigner = build_assigner(det_net()["assigner"])
    truth = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 11.0, 11.0]])
    # Query 1 is nearest to both elements; element 0 would be far worse with any other query.
    boxes = torch.tensor([[30.0, 5.0, 38.0, 19.0], [0.4, 0.4, 10.4, 10.4], [3.0, 3.0, 13.0, 13.0]])
    logits = torch.zeros(3, 3)
    result = assigner.assign(boxes, logits, truth, torch.tensor([2, 1]))
    assert result.gt_inds.tolist() == [0, 1, 2]
    assert result.labels.tolist() == [-1, 2, 1]


def test_class_decides_between_equal_boxes() -> None:
    assigner = build_assigner(det_net()["assigner"])
    box = torch.tensor([[2.0, 2.0, 9.0, 9.0]])
    logits = torch.tensor([[3.0, -3.0, -3.0], [-3.0, -3.0, 3.0]])
    result = assigner.assign(box.repeat(2, 1), logits, box, torch.tensor([2]))
    assert result.gt_inds.tolist() == [0, 1]


def test_matching_without_elements_and_with_too_many() -> None:
    assigner = build_assigner(det_net()["assigner"])
    boxes, logits = torch.rand(2, 4) * 10, torch.randn(2, 3)
    none = assigner.assign(boxes, logits, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    assert none.gt_inds.tolist() == [0, 0]
    many = assigner.assign(boxes, logits, torch.rand(5, 4).sort(1)[0] * 20, torch.zeros(5).long())
    assert (many.gt_inds > 0).all() and len(set(many.gt_inds.tolist())) == 2


def test_matching_names_predictions_that_are_not_finite() -> None:
    assigner = build_assigner(det_net()["assigner"])
    boxes = torch.full((2, 4), float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        assigner.assign(boxes, torch.zeros(2, 3), torch.rand(1, 4), torch.tensor([0]))


# Losses


def test_lines_loss_is_smooth_l1_on_pixels() -> None:
    loss = build_loss(dict(type="LinesLoss", loss_weight=0.1, beta=0.5))
    pred, target = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.2, 2.0, 5.0, 3.0]])
    each = [0.2**2 / (2 * 0.5), 0.0, 2 - 0.25, 1 - 0.25]
    got = loss(pred, target, torch.full((1, 4), 0.25), avg_factor=2.0)
    assert float(got) == pytest.approx(0.1 * sum(each) / 4 / 2, rel=1e-5)


def test_detector_loss_against_a_loop() -> None:
    torch.manual_seed(3)
    net = build_head(det_net())
    logits, boxes = torch.randn(2, 6, 3), torch.rand(2, 6, 4) * 20
    targets = [polys([3, 4, 2], seed=1), polys([], seed=2)]
    got = net.loss([(logits, boxes)], targets)
    assert set(got) == {"cls", "reg"}
    truth = targets[0]
    matched = net.assigner.assign(boxes[0], logits[0], truth["det_bbox"], truth["det_label"])
    cls = reg = 0.0
    for frame in range(2):
        for query in range(6):
            element = int(matched.gt_inds[query]) - 1 if frame == 0 else -1
            for c in range(3):
                p = float(logits[frame, query, c].sigmoid())
                if element >= 0 and truth["det_label"][element] == c:
                    cls += -0.25 * (1 - p) ** 2 * np.log(p)
                else:
                    cls += -0.75 * p**2 * np.log(1 - p)
            if element >= 0:
                for a, b in zip(boxes[frame, query], truth["det_bbox"][element]):
                    d = abs(float(a - b))
                    reg += (d * d if d < 0.5 else d - 0.25) / 4
    assert float(got["cls"]) == pytest.approx(2 * cls / 3, rel=1e-4)
    assert float(got["reg"]) == pytest.approx(0.1 * reg / 3, rel=1e-4)


def test_layers_have_their_own_losses() -> None:
    net = build_head(det_net())
    outputs = [(torch.randn(1, 6, 3), torch.rand(1, 6, 4)) for _ in range(3)]
    names = set(net.loss(outputs, [polys([3])]))
    assert names == {"cls", "reg", "d0.cls", "d0.reg", "d1.cls", "d1.reg"}


def test_sequence_loss_against_a_loop() -> None:
    logits, targets = torch.randn(2, 3, 7), torch.tensor([[1, 2, 0], [4, 0, 0]])
    weights = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.4, 0.0]])
    total = sum(
        -float(weights[i, t]) * float(logits[i, t].log_softmax(-1)[targets[i, t]])
        for i in range(2)
        for t in range(3)
    )
    got = sequence_loss(logits, targets, weights)
    assert float(got) == pytest.approx(total / 2.0, rel=1e-5)


def test_padding_does_not_change_the_loss(generator: torch.nn.Module, bev: torch.Tensor) -> None:
    """Lines of several lengths in one batch give the weighted mean of the lines alone."""
    frames = [polys([3, 5], 1), polys([], 2), polys([2, 7, 4], 3)]
    lines, tokens, weights = gather_lines(frames, bev)
    assert tokens.shape == (5, 15) and lines.frames.tolist() == [0, 0, 2, 2, 2]
    together = generator.loss(bev, lines, tokens, tokens, weights)["seq"]
    alone = []
    for i in range(5):
        only = Elements(lines.frames[i : i + 1], lines.labels[i : i + 1], lines.boxes[i : i + 1])
        length = int((weights[i] > 0).sum())
        row = tokens[i : i + 1, :length]
        alone.append(generator.loss(bev, only, row, row, weights[i : i + 1, :length])["seq"])
    torch.testing.assert_close(together, torch.stack(alone).mean())


# Generator


def test_later_tokens_do_not_change_earlier_logits(
    generator: torch.nn.Module, bev: torch.Tensor
) -> None:
    lines = elements([0, 2])
    tokens = torch.randint(1, 20, (2, 9))
    before = generator(bev, lines, tokens)
    assert before.shape == (2, 10, 41)
    changed = tokens.clone()
    changed[:, 5] = changed[:, 5] % 19 + 1
    after = generator(bev, lines, changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.isclose(before[:, 6:], after[:, 6:]).all(dim=-1).any()


def test_every_condition_changes_every_logit(generator: torch.nn.Module, bev: torch.Tensor) -> None:
    """Conditioning tokens are seen by all, and see each other: the last corner moves the class."""
    lines = elements([0])
    tokens = torch.randint(1, 20, (1, 4))
    before = generator(bev, lines, tokens)
    for corner in range(4):
        boxes = lines.boxes.clone()
        boxes[0, corner] = (boxes[0, corner] + 3) % 20
        after = generator(bev, Elements(lines.frames, lines.labels, boxes), tokens)
        assert not torch.isclose(before, after).all(dim=-1).any()
    seen = {}
    layer = generator.decoder.layers[0]
    hook = layer.register_forward_hook(lambda module, args, out: seen.update(state=out[0]))
    states = []
    for corners in (lines.boxes, boxes):
        generator(bev, Elements(lines.frames, lines.labels, corners), tokens)
        states.append(seen["state"][0, 0])  # the class token after one layer
    hook.remove()
    assert not torch.allclose(*states)


def test_lines_look_at_the_map_of_their_frame(
    generator: torch.nn.Module, bev: torch.Tensor
) -> None:
    lines, tokens = elements([0, 1, 1]), torch.randint(1, 20, (3, 4))
    before = generator(bev, lines, tokens)
    other = bev.clone()
    other[1] += 1
    after = generator(other, lines, tokens)
    assert torch.equal(before[0], after[0])
    assert not torch.isclose(before[1:], after[1:]).all(dim=-1).any()


def test_impossible_tokens(generator: torch.nn.Module, bev: torch.Tensor) -> None:
    """x is 0 (stop) to 40; y is 1 to 20."""
    p = generator(bev, elements([0]), torch.randint(1, 20, (1, 5))).softmax(-1)[0]
    assert (p[0::2] > 0).all()
    assert (p[1::2, 0] == 0).all() and (p[1::2, 21:] == 0).all() and (p[1::2, 1:21] > 0).all()


def test_impossible_tokens_in_half_precision(generator: torch.nn.Module, bev: torch.Tensor) -> None:
    lines, tokens = elements([0]), torch.randint(1, 20, (1, 5))
    with torch.autocast("cpu", torch.float16):
        logits = generator(bev, lines, tokens)
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    torch.testing.assert_close(logits, generator(bev, lines, tokens), rtol=0.02, atol=0.02)


def test_cached_generation_equals_uncached(generator: torch.nn.Module, bev: torch.Tensor) -> None:
    lines, tokens = elements([0, 0, 1, 2]), torch.randint(1, 20, (4, 8))
    whole = generator(bev, lines, tokens)
    logits, state = generator.begin(bev, lines)
    torch.testing.assert_close(logits, whole[:, 0])
    kept = torch.arange(4)
    for step in range(8):
        if step == 3:  # the second line is finished and leaves
            alive = torch.tensor([True, False, True, True])
            kept, state = kept[alive], state.keep(alive)
        logits, state = generator.advance(tokens[kept, step], state)
        torch.testing.assert_close(logits, whole[kept, step + 1])


@pytest.mark.parametrize("top_p", [0.0, 0.9])
def test_generated_lines_are_what_the_whole_model_would_say(
    generator: torch.nn.Module, bev: torch.Tensor, top_p: float
) -> None:
    """The loop with caches and leaving lines against one line at a time without any."""
    lines = elements([0, 0, 1, 2, 2, 2])
    got = generator.generate(bev, lines, max_points=7, top_p=top_p, seed=5)
    uniforms = line_uniforms([2, 1, 3], 14, seed=5)
    lengths = []
    for i, line in enumerate(got):
        only = Elements(lines.frames[i : i + 1], lines.labels[i : i + 1], lines.boxes[i : i + 1])
        said = torch.zeros(1, 0, dtype=torch.long)
        for step in range(14):
            logits = generator(bev, only, said)[:, -1]
            token = nucleus_sample(logits, uniforms[i, step][None], top_p)
            if token == 0:
                break
            said = torch.cat([said, token[:, None]], dim=1)
        assert line.tolist() == said[0].tolist()
        lengths.append(len(line))
    if top_p > 0:
        assert len(set(lengths)) > 1  # else no line left the batch before another one


def test_generation_ends(generator: torch.nn.Module, bev: torch.Tensor) -> None:
    generator._project_to_logits.bias.data[0] = -1e3  # never stops by itself
    lines = generator.generate(bev, elements([0, 1]), max_points=4)
    assert [len(line) for line in lines] == [8, 8]
    generator._project_to_logits.bias.data[0] = 1e3  # stops at once
    lines = generator.generate(bev, elements([0, 1]), max_points=4)
    assert [len(line) for line in lines] == [0, 0]
    assert generator.generate(bev, elements([])) == []


def test_too_long_a_line_is_an_error(generator: torch.nn.Module, bev: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="23 points is longer than the 20"):
        generator(bev, elements([0]), torch.ones(1, 45, dtype=torch.long))


def test_nucleus() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[torch.tensor([2, 0, 3, 1])]  # shuffled
    likely, second = 1, 3
    uniforms = torch.linspace(0, 1 - 1e-6, 1001, dtype=torch.float64)
    drawn = nucleus_sample(logits.expand(1001, 4), uniforms, 0.7)
    assert set(drawn.tolist()) == {likely, second}
    assert (drawn == likely).double().mean() == pytest.approx(0.5 / 0.8, abs=0.01)
    assert set(nucleus_sample(logits.expand(1001, 4), uniforms, 0.9).tolist()) == {1, 3, 0}
    assert set(nucleus_sample(logits.expand(9, 4), uniforms[-9:], 0.0).tolist()) == {likely}
    assert set(nucleus_sample(logits.expand(1001, 4), uniforms, 1.0).tolist()) == {0, 1, 2, 3}


def test_seeds() -> None:
    one = line_uniforms([2, 3], 4, seed=0)
    assert one.shape == (5, 4) and torch.equal(one, line_uniforms([2, 3], 4, seed=0))
    assert torch.equal(one[2:], line_uniforms([3], 4, seed=0))  # whatever the other frames are
    assert not torch.equal(one, line_uniforms([2, 3], 4, seed=1))


# Noise


def test_noise_keeps_axes_apart() -> None:
    torch.manual_seed(0)
    noise = NoiseSythesis(p=0.3, scale=0.01, canvas_size=(200, 100))
    tokens = torch.tensor([[180, 90] * 20 + [0, 0]]).repeat(500, 1)
    boxes = torch.tensor([[20, 10, 180, 90]]).repeat(5000, 1)
    moved, corners = noise(tokens, boxes)
    assert (moved[:, -2:] == 0).all()  # stop and padding
    shift = (moved - tokens)[:, :-2].float()
    assert shift[:, 0::2].std() / shift[:, 1::2].std() == pytest.approx(2.0, rel=0.05)
    # of p = 0.3, those that round to another cell: |2 z| > 0.5 and |z| > 0.5
    assert (shift[:, 0::2] != 0).float().mean() == pytest.approx(0.3 * 0.803, abs=0.015)
    assert (shift[:, 1::2] != 0).float().mean() == pytest.approx(0.3 * 0.617, abs=0.015)
    assert (corners.float().mean(0) - boxes[0]).abs().max() < 0.2  # y is not a copy of x
    assert torch.equal(tokens[0, :2], torch.tensor([180, 90]))  # the targets are as they were


def test_noise_stays_on_the_canvas() -> None:
    torch.manual_seed(0)
    noise = NoiseSythesis(p=1.0, scale=0.5, canvas_size=CANVAS)
    tokens, boxes = noise(torch.full((300, 6), 10), torch.full((300, 4), 10))
    assert tokens.min() == 1 and tokens[:, 0::2].max() == 40 and tokens[:, 1::2].max() == 20
    assert boxes.min() == 0 and boxes[:, 0::2].max() == 39 and boxes[:, 1::2].max() == 19
    same = NoiseSythesis(p=0.0, canvas_size=CANVAS)(tokens, boxes)
    assert torch.equal(same[0], tokens) and torch.equal(same[1], boxes)
    with pytest.raises(ValueError, match=r"got 1\.5"):
        NoiseSythesis(p=1.5)
