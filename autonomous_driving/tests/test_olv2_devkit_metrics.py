"""The OpenLane-V2 score: worked cases in both definitions, what it must satisfy, the wheel."""

from __future__ import annotations

import copy
import importlib
import os
import sys
import types
from typing import Any

import numpy as np
import pytest
from olv2.devkit import evaluate
from olv2.devkit.detection import FAR, lane_distances
from olv2.devkit.evaluate import F_SCORE, SCORE, Evaluation
from olv2.devkit.f_score import LaneFScore
from olv2.devkit.topology import found_at_levels, vertex_precisions
from olv2_frames import KEY, annotation, lane, predictions, random_frame, submission
from scipy.optimize import linprog

BOX = np.array([[100, 100], [130, 130]], dtype=np.float32)
FAR_BOX = BOX + [20, 0]  # a third of it inside BOX: IoU 0.2
TURNED = lane(0)[:, [1, 0, 2]]  # along y


def long_lane(y: float = 0, end: float = 20) -> np.ndarray:
    return lane(y, -20, end, 41)


def one_lane(
    gt: np.ndarray, pred: np.ndarray, box: np.ndarray = BOX, attribute: int = 1
) -> tuple[dict, dict]:
    """A lane and a traffic element with an edge, found as `pred` and `box`."""
    truth = annotation([gt], [(BOX, 1)], [[0]], [[1]])
    return truth, predictions([(pred, 0.9)], [(box, attribute, 0.9)], [[0]], [[0.9]])


def two_lanes(confidences: tuple[float, float], edge: float, te_edge: float) -> tuple[dict, dict]:
    """Two lanes in a row, the first one with the traffic element, found exactly."""
    lanes = [lane(0), lane(4, 10, 20)]
    truth = annotation(lanes, [(BOX, 1)], [[0, 1], [0, 0]], [[1], [0]])
    found = list(zip(lanes, confidences, strict=True))
    guess = predictions(found, [(BOX, 1, confidences[0])], [[0, edge], [0, 0]], [[te_edge], [0]])
    return truth, guess


def one_of_two() -> tuple[dict, dict]:
    truth = annotation([lane(0), lane(20)], [(BOX, 1)], np.zeros((2, 2)), np.zeros((2, 1)))
    found = [(lane(-20), 0.9), (lane(0), 0.8)]
    return truth, predictions(found, [(BOX, 1, 0.9)], np.zeros((2, 2)), np.zeros((2, 1)))


def two_of_three() -> tuple[dict, dict]:
    edges = np.zeros((3, 3))
    edges[0, 1] = 1
    truth = annotation([lane(0), lane(10), lane(20)], [(BOX, 1)], edges, np.zeros((3, 1)))
    found = [(lane(0), 0.9), (lane(10), 0.8)]
    return truth, predictions(found, [(BOX, 1, 0.9)], 0.8 * edges[:2, :2], np.zeros((2, 1)))


def nothing_found() -> tuple[dict, dict]:
    truth, _ = one_lane(lane(0), lane(0))
    return truth, predictions([], [], [], [])


# frame, DET_l, DET_t, TOP_ll and TOP_lt as (v1.0, v1.1), F-score
CASES = {
    "echo": (two_lanes((0.9, 0.8), 0.9, 0.9), 1, 1, (0.3, 1), (0.65, 1), 1),
    "echo, sure": (two_lanes((1, 1), 1, 1), 1, 1, (1, 1), (1, 1), 1),
    "1.5 m off": (one_lane(lane(0), lane(1.5)), 2 / 3, 1, (2 / 3,) * 2, (2 / 3,) * 2, 0),
    "one of two": (one_of_two(), 3 / 11, 1, (0, 0), (0.1, 1 / 3), 0.5),
    "far lane": (one_lane(lane(40), lane(41.2)), 1, 1, (1, 1), (1, 1), 1),
    "reversed": (one_lane(lane(0), lane(0)[::-1]), 0, 1, (0, 0), (0, 0), 1),
    "attribute": (one_lane(lane(0), lane(0), attribute=2), 1, 11 / 13, (1, 1), (1, 1), 1),
    "IoU 0.2": (one_lane(lane(0), lane(0), FAR_BOX), 1, 12 / 13, (1, 1), (0, 0), 1),
    "two of three": (two_of_three(), 0.636364, 1, (0.05, 1 / 3), (0.325, 0.5), 0.8),
    "weak edge": (two_lanes((0.9, 0.8), 0.4, 0.9), 1, 1, (0.15, 0.5), (0.65, 1), 1),
    "nothing": (nothing_found(), 0, 12 / 13, (0, 0), (0, 0), 0),
    "long, 1 m off": (one_lane(long_lane(), long_lane(1)), 2 / 3, 1, *[(2 / 3,) * 2] * 2, 1),
    "long, 2 m off": (one_lane(long_lane(), long_lane(2)), 1 / 3, 1, *[(1 / 3,) * 2] * 2, 0),
    "half of it": (one_lane(long_lane(), long_lane(0, 0)), 0, 1, (0, 0), (0, 0), 0),
    "80% of it": (one_lane(long_lane(), long_lane(0, 12)), 0, 1, (0, 0), (0, 0), 1),
    "along y": (one_lane(TURNED, TURNED), 1, 1, (1, 1), (1, 1), 0),
}


def score(truth: dict[str, Any], guess: dict[str, Any], metric: str = "v1.1") -> dict[str, float]:
    return evaluate({KEY: {"annotation": truth}}, submission({KEY: guess}), metric)


def random_set(seed: int, frames: int = 3, **sizes: int) -> tuple[dict, dict]:
    rng = np.random.default_rng(seed)
    made = {("val", "s", str(i)): random_frame(rng, **sizes) for i in range(frames)}
    truth = {key: {"annotation": frame} for key, (frame, _) in made.items()}
    return truth, submission({key: guess for key, (_, guess) in made.items()})


@pytest.mark.parametrize("version", ["v1.0", "v1.1"])
@pytest.mark.parametrize("name", CASES)
def test_worked_cases(name: str, version: str) -> None:
    (truth, guess), det_l, det_t, top_ll, top_lt, f_score = CASES[name]
    column = ("v1.0", "v1.1").index(version)
    parts = (det_l, det_t, top_ll[column], top_lt[column])
    got = score(truth, guess, version)
    expected = dict(zip(("DET_l", "DET_t", "TOP_ll", "TOP_lt"), parts, strict=True))
    expected[SCORE] = np.mean([det_l, det_t, *np.sqrt(parts[2:])])
    expected[F_SCORE] = f_score
    assert got == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("version", ["v1.0", "v1.1"])
def test_order_of_predictions_does_not_matter(version: str) -> None:
    truth, guess = random_set(1)
    rng = np.random.default_rng(2)
    mixed = copy.deepcopy(guess)
    for frame in mixed["results"].values():
        part = frame["predictions"]
        lanes, elements = (
            rng.permutation(len(part[name])) for name in ("lane_centerline", "traffic_element")
        )
        part["lane_centerline"] = [part["lane_centerline"][i] for i in lanes]
        part["traffic_element"] = [part["traffic_element"][i] for i in elements]
        part["topology_lclc"] = part["topology_lclc"][np.ix_(lanes, lanes)]
        part["topology_lcte"] = part["topology_lcte"][np.ix_(lanes, elements)]
    before = evaluate(truth, guess, version)
    assert evaluate(truth, mixed, version) == pytest.approx(before, abs=1e-12)
    assert min(before.values()) > 0.01  # the frames are neither trivial nor hopeless
    assert max(before.values()) < 0.99


@pytest.mark.parametrize("version", ["v1.0", "v1.1"])
def test_lanes_out_of_step_with_the_edges_lose_topology(version: str) -> None:
    truth, guess = random_set(1)
    before = evaluate(truth, guess, version)
    for frame in guess["results"].values():
        lanes = frame["predictions"]["lane_centerline"]
        frame["predictions"]["lane_centerline"] = sorted(lanes, key=lambda p: p["confidence"])
    after = evaluate(truth, guess, version)
    assert after["DET_l"] == pytest.approx(before["DET_l"])
    assert after["TOP_ll"] < before["TOP_ll"]


@pytest.mark.parametrize("version", ["v1.0", "v1.1"])
def test_perfect_and_empty_predictions(version: str) -> None:
    truth, _ = random_set(3)
    perfect, empty = {}, {}
    for key, frame in truth.items():
        part = frame["annotation"]
        perfect[key] = predictions(
            [(entry["points"], 1.0) for entry in part["lane_centerline"]],
            [(entry["points"], entry["attribute"], 1.0) for entry in part["traffic_element"]],
            part["topology_lclc"],
            part["topology_lcte"],
        )
        empty[key] = predictions([], [], [], [])
    best = evaluate(truth, submission(perfect), version)
    assert [best[key] for key in (SCORE, "DET_l", "DET_t", "TOP_ll", "TOP_lt")] == [1] * 5
    assert best[F_SCORE] == 1
    worst = evaluate(truth, submission(empty), version)
    assert worst["DET_l"] == worst["TOP_ll"] == worst["TOP_lt"] == worst[F_SCORE] == 0
    absent = 13 - len(
        {e["attribute"] for f in truth.values() for e in f["annotation"]["traffic_element"]}
    )
    assert worst["DET_t"] == pytest.approx(absent / 13)


@pytest.mark.parametrize("seed", range(4))
def test_bounds(seed: int) -> None:
    truth, guess = random_set(seed, frames=2, gts=seed, preds=3 * seed, elements=seed)
    for version in ("v1.0", "v1.1"):
        values = evaluate(truth, guess, version)
        assert all(0 <= value <= 1 for value in values.values()), values


def test_sure_wrong_edges_cost_more_in_the_first_definition() -> None:
    truth, guess = random_set(5)
    assert evaluate(truth, guess, "v1.0")["TOP_ll"] < evaluate(truth, guess, "v1.1")["TOP_ll"]


def test_lane_distances_leave_out_no_hit() -> None:
    """The filter by the ends may only drop pairs that no threshold accepts."""
    from ad_common.metrics.distance import frechet_distance

    rng = np.random.default_rng(0)
    truth, guess = random_frame(rng, gts=20)
    gts, preds = (
        [entry["points"].astype(float) for entry in part["lane_centerline"]]
        for part in (truth, guess)
    )
    gts.append(gts[0][::2])  # another number of points
    distances = lane_distances(gts, preds)
    for i, gt in enumerate(gts):
        relax = max(0.5, 1 - 0.005 * np.linalg.norm(gt, axis=1).min())
        for j, pred in enumerate(preds):
            exact = frechet_distance(gt, pred) * relax
            if exact < 3 or distances[i, j] != FAR:
                assert distances[i, j] == pytest.approx(exact)
    assert (distances < 3).sum() > 3


def test_vertex_precision_of_a_ranking() -> None:
    gt = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]])
    pred = np.array(
        [[0.9, 0.8, 0.7, 0.1], [0.1, 0.2, 0.3, 0.4], [0.6, 0, 0, 0], [0.4, 0.5, 0.1, 0.2]]
    )
    np.testing.assert_allclose(vertex_precisions(gt, pred), [(1 + 2 / 3) / 2, 1, 0, 0])


def test_recall_levels_take_the_closest_observation() -> None:
    """Recalls 0.5 and 1: seven of the ten percentiles are nearer to the first."""
    found = found_at_levels(np.array([0, 1]), np.array([0.9, 0.8]), 2)
    assert (found[:7] == [0, -1]).all()
    assert (found[7:] == [0, 1]).all()
    assert (found_at_levels(np.zeros(0, int), np.zeros(0), 2) == -1).all()
    late = found_at_levels(np.array([-1, 0, -1, -1, -1]), np.linspace(0.9, 0.5, 5), 1)
    assert late[:, 0].tolist() == [-1] * 3 + [1] * 7  # 30 %: halfway, to the even place
    same_score = found_at_levels(np.array([0, -1, 1]), np.array([0.9, 0.8, 0.8]), 2)
    assert (same_score == [0, 2]).all()  # the last prediction of a recall counts


def test_f_score_pairs_the_whole_frame_at_once() -> None:
    """Lane by lane, 0 would take 0.9 and leave 1.5 a lane that is too far."""
    count = LaneFScore()
    count.add([long_lane(0), long_lane(1.5)], [long_lane(0.9), long_lane(-1)])
    assert count.value() == 1


def test_f_score_where_neither_lane_is_costs_nothing() -> None:
    """A fifth of the samples is 10 m off: 80 of the 150 m that a pair may differ."""
    count = LaneFScore()
    bent = long_lane()
    bent[-8:, 1] = 10
    count.add([long_lane()], [bent])
    assert count.value() == 1


def test_f_score_of_lanes_it_cannot_sample() -> None:
    count = LaneFScore()
    outside, double = lane(0, 60, 80), np.repeat(long_lane(), 2, axis=0)
    count.add([outside, TURNED, long_lane()[:1]], [outside])
    assert (count.num_gt, count.num_pred, count.value()) == (0, 0, 0)
    count.add([double], [long_lane()])
    assert count.value() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda truth, guess: guess["results"].clear(),
            "3 of 3 frames have no predictions.*val/s/0",
        ),
        (lambda truth, guess: truth[("val", "s", "1")].pop("annotation"), "1 of 3.*val/s/1.*test"),
        (lambda truth, guess: truth.clear(), "no frames"),
    ],
)
def test_frames_that_do_not_fit(change: Any, message: str) -> None:
    truth, guess = random_set(0)
    change(truth, guess)
    with pytest.raises(ValueError, match=message):
        evaluate(truth, guess)


def test_unknown_definition() -> None:
    with pytest.raises(ValueError, match=r"'v2'.*v1\.0, v1\.1"):
        Evaluation("v2")


class MinCostFlow:
    """Takes the place of the solver that the wheel imports, which later ortools do not have."""

    OPTIMAL = 1

    def __init__(self) -> None:
        self.arcs: list[tuple[int, ...]] = []
        self.supply: dict[int, int] = {}

    def AddArcWithCapacityAndUnitCost(self, *arc: int) -> None:
        self.arcs.append(tuple(map(int, arc)))

    def SetNodeSupply(self, node: int, supply: int) -> None:
        self.supply[int(node)] = int(supply)

    def Solve(self) -> int:
        tail, head, capacity, cost = np.array(self.arcs).T
        balance = np.zeros((max(tail.max(), head.max()) + 1, len(tail)))
        balance[tail, range(len(tail))] += 1
        balance[head, range(len(tail))] -= 1
        supply = [self.supply.get(node, 0) for node in range(len(balance))]
        bounds = np.stack([np.zeros(len(tail)), capacity], axis=1)
        solved = linprog(cost, A_eq=balance, b_eq=supply, bounds=bounds, method="highs-ds")
        self.flow = np.rint(solved.x).astype(int)
        return self.OPTIMAL

    def NumArcs(self) -> int:
        return len(self.arcs)

    def Tail(self, arc: int) -> int:
        return self.arcs[arc][0]

    def Head(self, arc: int) -> int:
        return self.arcs[arc][1]

    def UnitCost(self, arc: int) -> int:
        return self.arcs[arc][3]

    def Flow(self, arc: int) -> int:
        return int(self.flow[arc])


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, str]:
    """`evaluate` of the installed devkit, and which of the two definitions it has."""
    for folder in os.environ.get("OPENLANEV2_PATH", "").split(os.pathsep):
        if folder:
            monkeypatch.syspath_prepend(folder)
    solver = types.ModuleType("ortools.graph.pywrapgraph")
    solver.SimpleMinCostFlow = MinCostFlow
    graph, ortools = types.ModuleType("ortools.graph"), types.ModuleType("ortools")
    graph.pywrapgraph, ortools.graph = solver, graph
    for module in (ortools, graph, solver):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, kind in (("bool", bool), ("int", int), ("float", float)):
        monkeypatch.setattr(np, name, kind, raising=False)
    for name, version in (("openlanev2.centerline", "v1.1"), ("openlanev2", "v1.0")):
        try:
            return importlib.import_module(f"{name}.evaluation").evaluate, version
        except ModuleNotFoundError as error:
            missing = error.name
    pytest.skip(
        f"module {missing} not found: install openlanev2, similaritymeasures and iso3166 with "
        "--no-deps --target DIR and set OPENLANEV2_PATH=DIR to compare with the official devkit"
    )


@pytest.mark.parametrize("seed", range(6))
def test_official_devkit_gives_the_same(official: tuple[Any, str], seed: int) -> None:
    """It computes curves in float32, hence the tolerance."""
    theirs, version = official
    truth, guess = random_set(seed, gts=10 + seed, preds=10 * seed + 3)
    values = theirs(copy.deepcopy(truth), copy.deepcopy(guess), verbose=False)
    flat = {}
    for key, value in values.items():
        parts = value if isinstance(value, dict) else {key: value}
        flat.update({key if name == "score" else name: float(v) for name, v in parts.items()})
    assert evaluate(truth, guess, version) == pytest.approx(flat, abs=1e-6)
