"""The occupancy metrics: worked cases, and what must hold for any prediction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from occ.classes import CLASSES, FREE, GRID
from occ.metrics import OccupancyFScore, OccupancyMIoU, ball


def small_case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(prediction, label, mask) on 2x2x2 voxels, with all results known by hand."""
    label = np.full((2, 2, 2), FREE, np.uint8)
    label[0, 0, :] = 4
    label[0, 1, 0] = 11
    label[1, 1, 1] = 0
    prediction = np.full((2, 2, 2), FREE, np.uint8)
    prediction[0, 0, 0] = prediction[1, 0, 0] = 4
    prediction[0, 0, 1] = prediction[0, 1, 0] = 11
    mask = np.ones((2, 2, 2), bool)
    mask[1, 1, 0] = False
    return prediction, label, mask


def sparse_frame(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(label, mask) with as many free and visible voxels as a real frame has."""
    rng = np.random.default_rng(seed)
    label = np.full(GRID, FREE, np.uint8)
    occupied = rng.random(GRID) < 39092 / 640000
    label[occupied] = rng.choice([0, 1, 4, 7, 11, 13, 15, 16], occupied.sum())
    return label, rng.random(GRID) < 43355 / 640000


def test_small_case_miou() -> None:
    metric = OccupancyMIoU()
    metric.add(*small_case())
    summary = metric.summary()
    assert summary["IoU/others"] == 0
    assert summary["IoU/car"] == pytest.approx(100 / 3)
    assert summary["IoU/driveable_surface"] == 50
    assert sum(math.isnan(value) for value in summary.values()) == 14
    assert round(summary["mIoU"], 2) == 27.78


def test_small_case_f_score() -> None:
    metric = OccupancyFScore()
    assert metric.add(*small_case()) == pytest.approx(0.857143, abs=1e-6)
    assert metric.mean() == pytest.approx(85.7143, abs=1e-4)


def test_perfect_prediction_of_a_full_grid() -> None:
    label, mask = sparse_frame(0)
    metric, f_score = OccupancyMIoU(), OccupancyFScore()
    metric.add(label, label, mask)
    f_score.add(label, label, mask)
    iou = metric.iou()
    present = np.unique(label[mask])
    assert (iou[present] == 100).all()
    assert np.isnan(np.delete(iou, present)).all()
    assert metric.miou() == 100
    assert f_score.mean() == pytest.approx(100)
    assert metric.confusion.sum() == mask.sum()


def test_what_the_mask_hides_does_not_count() -> None:
    prediction, label, mask = small_case()
    metric, hidden = OccupancyMIoU(), OccupancyMIoU()
    metric.add(prediction, label, mask)
    prediction[~mask] = 7
    hidden.add(prediction, label, mask)
    assert (metric.confusion == hidden.confusion).all()
    seen = OccupancyMIoU()
    seen.add(prediction, label, None)
    assert seen.confusion[FREE, 7] == 1


def test_free_voxels_predicted_as_a_class_lower_its_iou() -> None:
    label = np.full((4, 4, 4), FREE, np.uint8)
    label[0] = 4
    prediction = np.full_like(label, 4)
    metric = OccupancyMIoU()
    metric.add(prediction, label, None)
    assert metric.summary()["IoU/car"] == 25
    assert metric.miou() == 25


def test_frames_in_any_order_and_bounds() -> None:
    rng = np.random.default_rng(1)
    frames = [(rng.integers(0, 18, (5, 6, 4)), rng.integers(0, 18, (5, 6, 4))) for _ in range(4)]
    forward, backward = OccupancyMIoU(), OccupancyMIoU()
    score_1, score_2 = OccupancyFScore(), OccupancyFScore()
    for prediction, label in frames:
        forward.add(prediction, label, None)
        score_1.add(prediction, label, None)
    for prediction, label in reversed(frames):
        backward.add(prediction, label, None)
        score_2.add(prediction, label, None)
    assert forward.miou() == backward.miou()
    assert score_1.mean() == pytest.approx(score_2.mean())
    assert 0 <= forward.miou() <= 100
    assert 0 <= score_1.mean() <= 100


def test_labels_outside_the_classes_do_not_count() -> None:
    label = np.array([4, 200, 255]).reshape(3, 1, 1)
    prediction = np.array([4, 4, 4]).reshape(3, 1, 1)
    metric = OccupancyMIoU()
    metric.add(prediction, label, None)
    assert metric.miou() == 100
    assert metric.confusion.sum() == 1


@pytest.mark.parametrize("empty", ["prediction", "label", "both"])
def test_empty_grids_score_zero(empty: str) -> None:
    full, nothing = np.full((3, 3, 3), 4, np.uint8), np.full((3, 3, 3), FREE, np.uint8)
    frames = {"prediction": (nothing, full), "label": (full, nothing), "both": (nothing, nothing)}
    assert OccupancyFScore().add(*frames[empty], None) == 0
    assert math.isnan(OccupancyFScore().mean())
    assert math.isnan(OccupancyMIoU().miou())


@pytest.mark.parametrize(("step", "score"), [((0, 0, 1), 1.0), ((1, 1, 0), 0.0), ((2, 0, 0), 0.0)])
def test_a_neighbour_across_a_face_is_a_hit(step: tuple[int, int, int], score: float) -> None:
    label = np.full((5, 5, 5), FREE, np.uint8)
    label[1, 1, 1] = 4
    prediction = np.full_like(label, FREE)
    prediction[1 + step[0], 1 + step[1], 1 + step[2]] = 11
    assert OccupancyFScore().add(prediction, label, None) == pytest.approx(score, abs=1e-6)


def test_ball() -> None:
    assert ball(1.0).sum() == 7
    assert ball(1.5).sum() == 19
    assert ball(0.5).sum() == 1


def test_frames_that_do_not_fit_are_refused() -> None:
    label = np.zeros((2, 2, 2), np.uint8)
    with pytest.raises(ValueError, match=r"prediction \(2, 2, 3\)"):
        OccupancyMIoU().add(np.zeros((2, 2, 3), np.uint8), label, None)
    with pytest.raises(ValueError, match="got 0 to 18"):
        OccupancyFScore().add(np.arange(8).reshape(2, 2, 2) // 7 * 18, label, None)
    with pytest.raises(ValueError, match="float64"):
        OccupancyMIoU().add(label.astype(float), label, None)


def test_there_are_18_names() -> None:
    assert len(set(CLASSES)) == 18
    assert CLASSES[FREE] == "free"
