"""CrowdHuman's metrics against numbers worked out by hand, and its data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmdet.datasets import build_dataset
from mmdet_custom.datasets.crowd_metrics import (
    FPPI_POINTS,
    Scene,
    average_precision,
    curve,
    jaccard_index,
    log_average_miss_rate,
)

A, B, C = [0, 0, 10, 20], [30, 0, 40, 20], [60, 0, 70, 20]
FAR = [200, 0, 210, 20]


def scene(detections: list[Any], people: list[Any], ignored: list[Any] = ()) -> Scene:
    """Detections as [*box, score]."""
    return Scene(
        np.array(detections, dtype=float).reshape(-1, 5),
        np.array(people, dtype=float).reshape(-1, 4),
        np.array(ignored, dtype=float).reshape(-1, 4),
    )


def test_perfect_detections() -> None:
    scenes = [scene([[*A, 0.9], [*B, 0.8]], [A, B])]
    counts = curve(scenes)
    assert average_precision(counts) == 1.0
    assert log_average_miss_rate(counts) == pytest.approx(0, abs=1e-9)
    assert jaccard_index(scenes) == (1.0, 0.0)


def test_nothing_detected() -> None:
    scenes = [scene([], [A])]
    counts = curve(scenes)
    assert (average_precision(counts), log_average_miss_rate(counts)) == (0.0, 1.0)
    assert jaccard_index(scenes)[0] == 0.0


def test_average_precision_by_hand() -> None:
    """Right, wrong, right of four people: recall 1/4 1/4 1/2, precision 1 1/2 2/3.

    Area: 1/4 * 1, nothing where recall stands still, then 1/4 * (1/2 + 2/3) / 2.
    """
    counts = curve([scene([[*A, 0.9], [*FAR, 0.8], [*B, 0.7]], [A, B, C, [90, 0, 100, 20]])])
    assert average_precision(counts) == pytest.approx(1 / 4 + 1 / 4 * (1 / 2 + 2 / 3) / 2)


def test_miss_rate_by_hand() -> None:
    """Ten images with one person each; one false positive is 0.1 per image, ten are 1.

    Before the first false positive 5 people are found, before the tenth 8: the points 0.01 to 0.1
    (five of them) lie at the first false positive, miss rate 0.5; 0.178, 0.316 and 0.562 at the
    second, fourth and sixth; 1 at the tenth, miss rate 0.2.
    """
    scenes = []
    for i in range(10):
        found = [[*A, 0.9 - 0.01 * i]] if i < 5 else [[*A, 0.5]] if i < 8 else []
        scenes.append(scene([*found, [*FAR, 0.7 if i == 0 else 0.3 - 0.01 * i]], [A]))
    missed = [0.5] * 5 + [0.2] * 4
    expected = float(np.exp(np.mean(np.log(missed))))
    assert log_average_miss_rate(curve(scenes)) == pytest.approx(expected)
    points = [0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0]
    assert list(FPPI_POINTS) == pytest.approx(points, rel=2e-3)


def test_few_false_positives_use_the_last_threshold() -> None:
    """Never 0.01 per image: every point has the miss rate of the lowest threshold."""
    counts = curve([scene([[*A, 0.9]], [A, B])])
    assert log_average_miss_rate(counts) == pytest.approx(0.5)


def test_a_person_is_found_once() -> None:
    counts = curve([scene([[*A, 0.9], [*A, 0.8]], [A, B])])
    assert (counts.right.tolist(), counts.wrong.tolist()) == ([1, 1], [0, 1])


def test_the_better_detection_chooses_first() -> None:
    """Both detections fit person A, the better one fits it best: the other takes what is left."""
    near = [2, 0, 12, 20]  # IoU 2/3 with A
    counts = curve([scene([[*near, 0.5], [*A, 0.9]], [A, near])])
    assert counts.right.tolist() == [1, 2]


@pytest.mark.parametrize(("share", "counted"), [(0.6, 0), (0.4, 1)])
def test_ignored_regions(share: float, counted: int) -> None:
    """A detection counts as wrong unless half of its area lies in a region to ignore."""
    box = [100, 0, 110, 10]
    region = [100, 0, 100 + 10 * share, 10]
    scenes = [scene([[*A, 0.9], [*box, 0.8]], [A], [region])]
    counts = curve(scenes)
    assert counts.wrong[-1] == counted
    assert jaccard_index(scenes, thresholds=np.array([0.0]))[0] == 1 / (1 + counted)


def test_a_person_inside_an_ignored_region_can_be_found() -> None:
    scenes = [scene([[*A, 0.9]], [A], [[0, 0, 50, 50]])]
    assert curve(scenes).right.tolist() == [1]
    assert jaccard_index(scenes)[0] == 1.0


def test_jaccard_index_by_hand() -> None:
    """Two people, detections of one and of nothing: 1 / (2 + 2 - 1) above 0, 1 / 2 above 0.5.

    The second image is right at once with 1; the best threshold drops the false one.
    """
    scenes = [scene([[*A, 0.9], [*FAR, 0.32]], [A, B]), scene([[*C, 0.8]], [C])]
    value, threshold = jaccard_index(scenes)
    assert value == pytest.approx((1 / 2 + 1) / 2)
    assert threshold == pytest.approx(0.35)
    assert jaccard_index(scenes, thresholds=np.array([0.0]))[0] == pytest.approx((1 / 3 + 1) / 2)


def test_jaccard_index_uses_the_largest_matching() -> None:
    """Greedily the best detection takes the person that the other one needs."""
    one, two = [0, 0, 10, 20], [0, 5, 10, 25]
    middle, low = [0, 2, 10, 22], [0, -2, 10, 18]  # `low` fits `one` only, `middle` both
    scenes = [scene([[*middle, 0.9], [*low, 0.8]], [one, two])]
    assert jaccard_index(scenes)[0] == 1.0


def test_empty_images() -> None:
    assert jaccard_index([scene([], [])])[0] == 1.0
    assert average_precision(curve([])) == 0.0


@pytest.fixture
def crowd(tmp_path: Path) -> Any:
    """A data set of two images: people A and B, and a region to ignore; then nobody."""
    rows = [(1, A, 0), (1, B, 0), (1, [60, 0, 100, 40], 1)]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 128, "height": 96} for i in (1, 2)],
        "annotations": [
            {
                "id": i,
                "image_id": image,
                "category_id": 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": crowd,
            }
            for i, (image, (x1, y1, x2, y2), crowd) in enumerate(rows, 1)
        ],
        "categories": [{"id": 1, "name": "person"}],
        "info": {},
    }
    path = tmp_path / "crowd.json"
    path.write_text(json.dumps(content))
    return build_dataset(
        dict(type="CrowdHumanDataset", ann_file=str(path), pipeline=[], test_mode=True)
    )


def test_the_data_set_evaluates(crowd: Any) -> None:
    results = [[np.array([[*A, 0.9], [70, 10, 80, 30, 0.8], [*B, 0.7]])], [np.zeros((0, 5))]]
    found = crowd.evaluate(results, metric="bbox", classwise=True)
    assert next(iter(found)) == "bbox_mAP"  # what save_best="auto" follows
    assert found["bbox_mAP"] == 1.0  # COCO, too, lets the crowd region swallow a detection
    assert found["AP"] == found["JI"] == 1.0
    assert found["MR"] == pytest.approx(0, abs=1e-9)
    nothing = crowd.evaluate([[np.zeros((0, 5))]] * 2, metric="bbox")
    assert next(iter(nothing)) == "bbox_mAP"
    assert (nothing["bbox_mAP"], nothing["MR"]) == (0.0, 1.0)
    only = crowd.evaluate([[np.zeros((0, 5))]] * 2, metric=["MR", "AP"])
    assert only == {"AP": 0.0, "MR": 1.0}
    with pytest.raises(ValueError, match="1 results for a data set of 2 images"):
        crowd.evaluate(results[:1], metric="JI")
