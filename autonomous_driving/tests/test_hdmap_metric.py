"""Chamfer average precision of map lines: worked values and properties."""

from __future__ import annotations

import numpy as np
import pytest
from ad_common.metrics.distance import chamfer_distance
from hdmap.evaluation import Lines, evaluate_lines, resample, table
from hdmap.tokens import CLASSES

DIVIDER = CLASSES.index("divider")
LINE = np.array([[0.0, 0.0], [10.0, 0.0]])


def lines(vectors: list, scores: list[float] | None = None, label: int = DIVIDER) -> Lines:
    """Lines of one class."""
    return Lines(
        [np.asarray(vector, dtype=float) for vector in vectors],
        np.full(len(vectors), label),
        None if scores is None else np.asarray(scores),
    )


def divider_ap(predicted: Lines, truth: list) -> float:
    """AP of the dividers of one frame."""
    return evaluate_lines({"t": predicted}, {"t": lines(truth)})["divider_AP"]


def random_frames(seed: int, frames: int = 4) -> tuple[dict[str, Lines], dict[str, Lines]]:
    """Truth with all classes, and predictions near to it and far from it."""
    rng = np.random.default_rng(seed)
    truth, predicted = {}, {}
    for i in range(frames):
        vectors = [
            np.cumsum(rng.normal(1, 1, (5, 2)), axis=0) + rng.uniform(-20, 10, 2) for _ in range(6)
        ]
        labels = np.arange(6) % 3
        truth[str(i)] = Lines(vectors, labels)
        guesses = [v + rng.normal(0, 0.6, 2) for v in vectors for _ in range(2)]
        predicted[str(i)] = Lines(guesses, labels.repeat(2), rng.permutation(12) / 12 + i / 1000)
    return predicted, truth


def test_resampling_keeps_the_end_point() -> None:
    points = resample(LINE)
    assert points.shape == (35, 2)
    np.testing.assert_allclose(points[:3, 0], [0, 0.3, 0.6])
    np.testing.assert_allclose(points[-2:, 0], [9.9, 10])


def test_resampling_follows_the_corners() -> None:
    points = resample(np.array([[0.0, 0], [1, 0], [1, 1]]))
    np.testing.assert_allclose(points[[0, 3, 4, 7]], [[0, 0], [0.9, 0], [1, 0.2], [1, 1]])


def test_a_line_without_length_is_a_point() -> None:
    np.testing.assert_array_equal(resample(np.ones((2, 2))), [[1, 1]])


@pytest.mark.parametrize(
    ("vectors", "scores", "expected"),
    [
        ([LINE], [0.5], 1),
        ([LINE + [0, 0.4]], [0.5], 1),
        ([LINE + [0, 0.7]], [0.5], 2 / 3),
        ([LINE + [0, 1.0]], [0.5], 2 / 3),  # a distance equal to the threshold is a hit
        ([LINE, LINE], [0.9, 0.8], 1),  # the duplicate comes after full recall
        ([LINE[::-1]], [0.5], 1),
        ([LINE / 2], [0.5], 2 / 3),  # the first half only
        ([], [], 0),
    ],
)
def test_worked_values(vectors: list, scores: list[float], expected: float) -> None:
    assert divider_ap(lines(vectors, scores), [LINE]) == pytest.approx(expected)


def test_distance_of_the_first_half() -> None:
    assert chamfer_distance(resample(LINE / 2), resample(LINE)) == pytest.approx(0.681349, abs=1e-6)


def test_false_positive_between_two_hits() -> None:
    truth = [LINE, LINE + [0, 8]]
    predicted = lines([LINE, LINE + [0, -8], LINE + [0, 8]], [0.9, 0.8, 0.7])
    assert divider_ap(predicted, truth) == pytest.approx(5 / 6)


def test_only_the_nearest_truth_counts() -> None:
    """The second prediction is within 1 m of a free line, but nearest to a taken one."""
    truth = [LINE, LINE + [0, 1.2]]
    predicted = lines([LINE, LINE + [0, 0.4]], [0.9, 0.8])
    metrics = evaluate_lines({"t": predicted}, {"t": lines(truth)})
    assert metrics["divider_AP@1.0"] == pytest.approx(0.5)


def test_one_class_of_three_gives_a_third() -> None:
    metrics = evaluate_lines({"t": lines([LINE], [0.5])}, {"t": lines([LINE])})
    assert metrics["mAP"] == pytest.approx(1 / 3)
    assert metrics["ped_crossing_AP"] == metrics["boundary_AP"] == 0


def test_another_class_is_no_hit() -> None:
    predicted = lines([LINE], [0.5], CLASSES.index("boundary"))
    metrics = evaluate_lines({"t": predicted}, {"t": lines([LINE])})
    assert metrics["mAP"] == 0


def test_perfect_predictions() -> None:
    _, truth = random_frames(0)
    predicted = {t: Lines(v.vectors, v.labels, np.ones(6)) for t, v in truth.items()}
    assert set(evaluate_lines(predicted, truth).values()) == {1.0}


def test_a_missing_token_has_no_predictions() -> None:
    truth = {"a": lines([LINE]), "b": lines([LINE])}
    metrics = evaluate_lines({"a": lines([LINE], [0.5])}, truth)
    assert metrics["divider_AP"] == pytest.approx(0.5)
    assert evaluate_lines({}, truth)["mAP"] == 0


def test_z_does_not_matter() -> None:
    truth = np.array([[0.0, 0, 1, 1], [10, 0, 2, 1]])  # x, y, z, visible
    assert divider_ap(lines([LINE], [0.5]), [truth]) == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_order_of_lines_and_frames_is_irrelevant(seed: int) -> None:
    predicted, truth = random_frames(seed)
    expected = evaluate_lines(predicted, truth)
    rng = np.random.default_rng(seed)
    moved_truth, moved = {}, {}
    for token in reversed(truth):
        order = rng.permutation(6)
        t = truth[token]
        moved_truth[token] = Lines([t.vectors[i] for i in order], t.labels[order])
        order = rng.permutation(12)
        p = predicted[token]
        moved[token] = Lines([p.vectors[i] for i in order], p.labels[order], p.scores[order])
    got = evaluate_lines(moved, moved_truth)
    assert got == pytest.approx(expected)
    assert 0 < expected["mAP"] < 1  # so that the order could have mattered


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bounds_and_thresholds(seed: int) -> None:
    metrics = evaluate_lines(*random_frames(seed))
    assert all(0 <= value <= 1 for value in metrics.values())
    for name in CLASSES:
        steps = [metrics[f"{name}_AP@{t}"] for t in (0.5, 1.0, 1.5)]
        assert steps == sorted(steps)
        assert metrics[f"{name}_AP"] == pytest.approx(np.mean(steps))
    assert metrics["mAP"] == pytest.approx(np.mean([metrics[f"{name}_AP"] for name in CLASSES]))


def test_a_lower_false_positive_never_helps() -> None:
    predicted, truth = random_frames(3)
    before = evaluate_lines(predicted, truth)["mAP"]
    p = predicted["0"]
    far = [np.array([[500.0, 500], [501, 500]])]
    predicted["0"] = Lines([*p.vectors, *far], np.append(p.labels, 1), np.append(p.scores, 2.0))
    assert evaluate_lines(predicted, truth)["mAP"] < before


def test_foreign_frames_and_no_frames() -> None:
    with pytest.raises(ValueError, match=r"1 of 1 predicted frames.*'other'"):
        evaluate_lines({"other": lines([LINE], [0.5])}, {"t": lines([LINE])})
    with pytest.raises(ValueError, match="no frame to evaluate"):
        evaluate_lines({}, {})


def test_table_is_in_percent() -> None:
    text = table(evaluate_lines({"t": lines([LINE + [0, 0.7]], [0.5])}, {"t": lines([LINE])}))
    assert text.splitlines()[2].split() == ["divider", "0.00", "100.00", "100.00", "66.67"]
    assert text.splitlines()[-1].split() == ["mAP", "22.22"]
