"""The world of the synthetic OpenLane-V2 data: directed lanes that join, and what hangs above.

A road with lanes in both directions is cut into successive lanes. At a junction, connectors lead
on straight, to the right into side roads and from these to the right into the road.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
from shapely import LineString, box

from .town import LANE, MARGIN
from .world import Road

ROI = (102.4, 51.2)  # metres along x and y, centred on the ego car
SHORTEST = 4.0  # metres of a lane inside `ROI`
POINTS = 201  # of an annotated centre line
JUNCTION = 12.0  # metres from the middle of a junction to its lanes' ends
SIDE = 60.0  # length of a side road
LENGTHS = (30.0, 50.0)  # shortest and longest lane between junctions
LIGHTS = (0, 1, 2, 3)  # attributes: unknown, red, green, yellow
SIGNS = tuple(range(4, 13))


@dataclass
class Lane:
    """A piece of a lane from joint to joint.

    Attributes:
        kind: "forward", "backward" (along the road), "out", "in" (of a side road), or one of these
            and "_connector".
        points: (n, 2) world metres in the direction of travel.
        following: indexes of the successors.
        signals: share of its length and attribute of each light or sign above it.
    """

    kind: str
    points: np.ndarray
    following: list[int] = field(default_factory=list)
    signals: list[tuple[float, int]] = field(default_factory=list)

    @property
    def connector(self) -> bool:
        """Whether it lies within a junction."""
        return self.kind.endswith("_connector")


class Network:
    """The lanes of a segment.

    Args:
        rng: of everything in it.
        way: metres that the ego car will drive.
        intersection: whether there is a junction.
    """

    def __init__(self, rng: np.random.Generator, way: float, intersection: bool) -> None:
        origin = tuple(rng.uniform(0, 5e3, 2))
        self.road = Road(rng, way + 2 * MARGIN, curvature=0.01, origin=origin)
        right, left = rng.integers(1, 3, 2)  # lanes in either direction
        self.edges = (-right * LANE - 0.5, left * LANE + 0.5)
        self.ego_d = -LANE * (rng.integers(right) + 0.5) + rng.uniform(-0.3, 0.3)
        self.turn = rng.uniform(-0.02, 0.02)  # of the car against the road, radians
        self.lanes: list[Lane] = []
        self.sides: list[np.ndarray] = []  # middle lines (2, 2) of the side roads
        joints, junction = self._joints(rng, way, intersection)
        forward = [-LANE * (k + 0.5) for k in range(right)]
        backward = [LANE * (k + 0.5) for k in range(left)]
        ends: dict[tuple[float, float], list[Lane]] = {}
        starts: dict[tuple[float, float], list[int]] = {}
        for d in (*forward, *backward):
            for low, high in itertools.pairwise(joints):
                kind = "forward" if d < 0 else "backward"
                kind += "_connector" * (junction is not None and low == junction - JUNCTION)
                s = np.linspace(low, high, max(2, round(high - low) + 1))
                first, last = low, high
                if d > 0:
                    s, first, last = s[::-1], high, low
                starts.setdefault((first, d), []).append(len(self.lanes))
                ends.setdefault((last, d), []).append(Lane(kind, self.road.at(s, d)[0]))
                self.lanes.append(ends[last, d][-1])
        for place, lanes in ends.items():
            for lane in lanes:
                lane.following += starts.get(place, [])
        if junction is not None:
            for side, d, sign in ((-1, forward[-1], 1), (1, backward[-1], -1)):
                if side == -1 or rng.random() < 0.5:
                    into = ends[junction - sign * JUNCTION, d][0]
                    out_of = starts[junction + sign * JUNCTION, d][0]
                    self._side_road(rng, junction, side, into, out_of)
        for lane in self.lanes:
            if lane.kind == "forward":
                at_junction = any(self.lanes[k].connector for k in lane.following)
                end = int(rng.choice(LIGHTS if at_junction else SIGNS))
                lane.signals = [(0.5, int(rng.choice(SIGNS))), (1.0, end)]

    def _joints(
        self, rng: np.random.Generator, way: float, intersection: bool
    ) -> tuple[list[float], float | None]:
        """Where lanes begin and end along the road, and the middle of the junction."""
        end = self.road.s[-1]
        if not intersection:
            joints = np.cumsum(rng.uniform(*LENGTHS, int(end // LENGTHS[0]) + 1))
            return [0.0, *joints[joints < end - 5].tolist(), end], None
        junction = MARGIN + rng.uniform(5, 30 + way)
        after = junction + JUNCTION + np.cumsum(rng.uniform(*LENGTHS, 9))
        before = junction - JUNCTION - np.cumsum(rng.uniform(*LENGTHS, 9))
        joints = [*before[before > 5][::-1], junction - JUNCTION, junction + JUNCTION]
        return [0.0, *map(float, joints), *after[after < end - 5].tolist(), end], junction

    def _side_road(
        self, rng: np.random.Generator, s: float, side: int, into: Lane, out_of: int
    ) -> None:
        """Add a side road on the left (1) or right (-1) with its lanes and connectors."""
        edge = max(self.edges, key=lambda d: side * d)
        middle, heading = self.road.at(s, 0.0)
        direction = heading + side * np.pi / 2 + rng.uniform(-0.15, 0.15)
        along = np.array([np.cos(direction), np.sin(direction)])
        across = np.array([-along[1], along[0]])  # to the left of who leaves
        gap = abs(edge) + 8
        near, far = middle + gap * along, middle + (gap + SIDE) * along
        self.sides.append(np.array([middle, far]))
        leave = np.linspace(near, far, round(SIDE)) - LANE / 2 * across
        enter = np.linspace(far, near, round(SIDE)) + LANE / 2 * across
        count = len(self.lanes)
        turns = (turn(into.points, leave), turn(enter, self.lanes[out_of].points))
        into.following.append(count)
        self.lanes += [
            Lane("out_connector", turns[0], [count + 1]),
            Lane("out", leave),
            Lane("in", enter, [count + 3]),
            Lane("in_connector", turns[1], [out_of]),
        ]

    def ego(self, way: float) -> tuple[np.ndarray, float]:
        """Place (2,) and heading of the ego car after `way` metres."""
        place, heading = self.road.at(MARGIN + way, self.ego_d)
        return place, float(heading) + self.turn


def turn(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """A cubic Bezier curve (25, 2) from the end of one lane smoothly to the start of another."""
    start, end = before[-1], after[0]
    reach = 0.45 * np.linalg.norm(end - start)
    leave, arrive = before[-1] - before[-2], after[1] - after[0]
    control = [
        start,
        start + reach * leave / np.linalg.norm(leave),
        end - reach * arrive / np.linalg.norm(arrive),
        end,
    ]
    t = np.linspace(0, 1, 25)[:, None]
    weights = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]
    return sum(weight * point for weight, point in zip(weights, control))


@dataclass(frozen=True)
class Visible:
    """The part of a lane that lies in `ROI`.

    Attributes:
        lane: index in the network.
        points: (201, 2) metres in the level frame of the car, evenly spaced.
        whole_start: whether it begins where the lane does.
        whole_end: whether it ends where the lane does.
    """

    lane: int
    points: np.ndarray
    whole_start: bool
    whole_end: bool


def clip(index: int, points: np.ndarray) -> Visible | None:
    """The longest part of a lane (n, 2), in the car's frame, within `ROI`; None without one."""
    roi = box(-ROI[0] / 2, -ROI[1] / 2, ROI[0] / 2, ROI[1] / 2)
    inside = LineString(points).intersection(roi)
    parts = [part for part in getattr(inside, "geoms", [inside]) if part.length >= SHORTEST]
    if not parts:
        return None
    kept = max(parts, key=lambda part: part.length)
    even = [kept.interpolate(share, normalized=True) for share in np.linspace(0, 1, POINTS)]
    places = np.array([[point.x, point.y] for point in even])
    start, end = (np.linalg.norm(places[k] - points[k]) < 1e-6 for k in (0, -1))
    return Visible(index, places, bool(start), bool(end))


def successions(network: Network, lanes: list[Visible]) -> np.ndarray:
    """Which visible lane leads into which, (n, n) int; their joint lies in `ROI`."""
    matrix = np.zeros((len(lanes), len(lanes)), np.int64)
    for i, one in enumerate(lanes):
        for j, other in enumerate(lanes):
            follows = other.lane in network.lanes[one.lane].following
            matrix[i, j] = follows and one.whole_end and other.whole_start
    return matrix
