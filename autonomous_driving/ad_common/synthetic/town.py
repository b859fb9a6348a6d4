"""The world of the synthetic HD-map data: a road with lanes, side roads and pedestrian crossings.

All lines are shapely geometries in world metres. A boundary runs with the road on its left side, a
divider along its road, a crossing counter-clockwise.
"""

from __future__ import annotations

import numpy as np
from shapely import LineString, MultiLineString, Polygon, box, line_merge
from shapely.affinity import affine_transform
from shapely.geometry import polygon as polygons
from shapely.geometry.base import BaseGeometry
from shapely.ops import unary_union

from .world import Road

LANE = 3.5  # width in metres
MARGIN = 100.0  # metres of road before the first and after the last frame
ROI = (60.0, 30.0)  # metres along x and y, centred on the ego car
SHORTEST = 1.0  # metres; shorter pieces at the border are left out
STUB = 6.0  # metres; a divider is not painted between a crossing and a junction
CORNER = 4.0  # radius of a curb at a junction
CROSSING = 3.5  # length of a crossing along the road
CLASSES = ("ped_crossing", "divider", "boundary")


class Town:
    """A road and what is painted on it.

    Args:
        rng: of everything in it.
        way: metres that the ego car will drive.
        intersection: whether another road crosses or joins.
    """

    def __init__(self, rng: np.random.Generator, way: float, intersection: bool) -> None:
        self.road = Road(
            rng, way + 2 * MARGIN, curvature=0.012, origin=tuple(rng.uniform(0, 5e3, 2))
        )
        right, left = rng.integers(1, 3, 2)  # lanes in either direction
        self.edges = (-right * LANE - 0.4, left * LANE + 0.4)
        self.ego_d = -LANE * (rng.integers(right) + 0.5) + rng.uniform(-0.3, 0.3)
        self.turn = rng.uniform(-0.03, 0.03)  # of the car against the road, radians
        grid = np.arange(0, self.road.s[-1], 2.0)
        main = self._strip(grid, *self.edges)
        lanes = [LANE * k for k in range(1 - right, left)]
        dividers = {d: LineString(self.road.at(grid, d)[0]) for d in lanes}
        areas, crossings = [main], []
        if intersection:
            s = MARGIN + rng.uniform(-10, way + 25)
            side, line, half = self._side_road(rng, s)
            areas.append(side)
            for end in (-1, 1):
                if rng.random() < 0.8:
                    crossings.append(self._crossing(s + end * (half + 3 + CROSSING)))
            keep_out = side.buffer(CORNER)
            dividers = {d: divider.difference(keep_out) for d, divider in dividers.items()}
            dividers["side"] = line.difference(main.buffer(CORNER))
        for s in np.arange(rng.uniform(0, 40), self.road.s[-1], rng.uniform(35, 50)):
            crossing = self._crossing(s)
            if not any(crossing.distance(other) < 8 for other in [*crossings, *areas[1:]]):
                crossings.append(crossing)
        self.ground = unary_union(areas).buffer(CORNER).buffer(-CORNER)  # rounds the corners
        painted = unary_union(crossings).buffer(0.5) if crossings else Polygon()
        parts = {d: without_stubs(line.difference(painted)) for d, line in dividers.items()}
        self.centre = parts[0]
        self.dividers = list(parts.values())
        self.crossings = crossings

    def _strip(self, s: np.ndarray, low: float, high: float) -> Polygon:
        left, right = self.road.at(s, high)[0], self.road.at(s, low)[0]
        return Polygon(np.vstack([right, left[::-1]])).buffer(0)

    def _crossing(self, s: float) -> Polygon:
        low, high = self.edges
        return self._strip(np.array([s - CROSSING / 2, s + CROSSING / 2]), low, high)

    def _side_road(self, rng: np.random.Generator, s: float) -> tuple[Polygon, LineString, float]:
        """Area, middle line and half width along the main road of a road through `s`."""
        middle, heading = self.road.at(s)
        direction = heading + np.pi / 2 + rng.uniform(-0.2, 0.2)
        half = LANE + 0.4
        start, end = [(-60, 60), (0, 60), (-60, 0)][rng.integers(3)]
        along = np.array([np.cos(direction), np.sin(direction)])
        line = LineString([middle + start * along, middle + end * along])
        return line.buffer(half, cap_style="flat"), line, half

    def ego(self, way: float) -> tuple[np.ndarray, float]:
        """Place (2,) and heading of the ego car after `way` metres."""
        place, heading = self.road.at(MARGIN + way, self.ego_d)
        return place, float(heading) + self.turn


def without_stubs(lines: BaseGeometry) -> MultiLineString:
    """The parts of a divider that are long enough."""
    parts = getattr(lines, "geoms", [lines])
    return MultiLineString([part for part in parts if part.length >= STUB])


def in_ego(geometry: BaseGeometry, place: np.ndarray, heading: float) -> BaseGeometry:
    """A geometry of the world in the frame of a car at `place` with `heading`."""
    cos, sin = np.cos(heading), np.sin(heading)
    moved = (-cos * place[0] - sin * place[1], sin * place[0] - cos * place[1])
    return affine_transform(geometry, [cos, sin, -sin, cos, *moved])


def local_map(town: Town, place: np.ndarray, heading: float) -> dict[str, list[np.ndarray]]:
    """The map elements around the car, clipped to `ROI`, by class as lines (n, 2)."""
    roi = box(-ROI[0] / 2, -ROI[1] / 2, ROI[0] / 2, ROI[1] / 2)
    found: dict[str, list[np.ndarray]] = {name: [] for name in CLASSES}
    for crossing in town.crossings:
        part = in_ego(crossing, place, heading).intersection(roi)
        if part.area > 2:
            found["ped_crossing"].append(outline(part))
    for line in town.dividers:
        found["divider"] += pieces(in_ego(line, place, heading).intersection(roi))
    for ring in rings(in_ego(town.ground, place, heading)):
        found["boundary"] += pieces(LineString(ring).intersection(roi))
    return found


def rings(area: BaseGeometry) -> list[np.ndarray]:
    """Borders (n, 2) of an area, which is on their left side."""
    found = []
    for part in getattr(area, "geoms", [area]):
        part = polygons.orient(part)
        found += [np.asarray(ring.coords) for ring in (part.exterior, *part.interiors)]
    return found


def outline(area: Polygon) -> np.ndarray:
    """The closed border (n, 2) of a convex area, from its corner nearest to (-x, -y)."""
    ring = np.asarray(polygons.orient(area).exterior.coords)[:-1]
    ring = np.roll(ring, -int(ring.sum(axis=1).argmin()), axis=0)
    return np.vstack([ring, ring[:1]])


def pieces(lines: BaseGeometry) -> list[np.ndarray]:
    """The lines (n, 2) of a geometry, joined where they touch, without very short ones."""
    found = getattr(lines, "geoms", [lines])
    parts = [part for part in found if isinstance(part, LineString) and not part.is_empty]
    merged = line_merge(MultiLineString(parts), directed=True)
    parts = [part for part in getattr(merged, "geoms", [merged]) if part.length >= SHORTEST]
    return [np.asarray(part.simplify(0.02).coords) for part in parts]
