"""The world of the synthetic occupancy data: a street with buildings, plants and vehicles.

Classes and grid are those of Occ3D-nuScenes (arXiv 2304.14365): 200 x 200 x 16 voxels of 0.4 m in
the ego frame from (-40, -40, -1) m.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .world import Road, cell_noise, to_ego, to_world

LOWER = np.array([-40.0, -40.0, -1.0])
SIZE = 0.4
SHAPE = (200, 200, 16)
FREE = 17
GROUND = 2  # the layer that holds z = 0
BARRIER, BUS, CAR, PEDESTRIAN, TRUCK = 1, 3, 4, 7, 10
DRIVEABLE, SIDEWALK, TERRAIN, MANMADE, VEGETATION = 11, 13, 14, 15, 16
COLOURS = {  # RGB
    BARRIER: (235, 60, 190),
    BUS: (245, 165, 20),
    CAR: (215, 35, 35),
    PEDESTRIAN: (40, 60, 230),
    TRUCK: (130, 45, 190),
    DRIVEABLE: (80, 80, 88),
    SIDEWALK: (205, 165, 170),
    TERRAIN: (170, 150, 70),
    MANMADE: (105, 160, 180),
    VEGETATION: (35, 125, 45),
}
SIZES = {  # length, width, height in metres
    BARRIER: (2.0, 0.6, 1.0),
    BUS: (11.0, 2.8, 3.2),
    CAR: (4.6, 2.0, 1.6),
    PEDESTRIAN: (0.7, 0.7, 1.8),
    TRUCK: (7.5, 2.6, 2.8),
}
LANE = 1.8  # distance of a lane's middle from the road's
ONCOMING = 4.0  # speed of the traffic on the other lane, m/s
MARGIN = 60.0  # metres of road before the first and after the last frame


@dataclass(frozen=True)
class Thing:
    """A box on the street.

    Attributes:
        label: class.
        s, d: place of its centre along and left of the road at time 0, metres.
        speed: along the road, m/s; may be negative.
        shade: brightness, about 1.
    """

    label: int
    s: float
    d: float
    speed: float = 0.0
    shade: float = 1.0


@dataclass(frozen=True)
class Block:
    """A building, hedge or row of trees beside the road.

    Attributes:
        kind: `MANMADE` or `VEGETATION`.
        s: where it begins and ends along the road.
        d: its nearer and farther border, both positive (left) or both negative (right).
        height: metres.
        shade: brightness.
    """

    kind: int
    s: tuple[float, float]
    d: tuple[float, float]
    height: float
    shade: float


class City:
    """A street along which the ego car drives.

    Args:
        rng: of everything in it.
        speed: of the ego car, m/s.
        duration: of its drive, seconds.
        small_objects: pedestrians and barriers too.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        speed: float,
        duration: float,
        small_objects: bool = False,
    ) -> None:
        self.speed = speed
        length = speed * duration + 2 * MARGIN
        self.seed = int(rng.integers(1 << 20))
        self.road = Road(rng, length, curvature=0.018, origin=tuple(rng.uniform(300, 1500, 2)))
        self.half_width = rng.uniform(8.0, 9.5)
        self.walk = rng.uniform(2.0, 4.0)  # width of a sidewalk
        self.blocks: list[Block] = []
        self.trees: list[tuple[float, float, float]] = []  # s, d, radius of the crown
        for side in (1, -1):
            self._line_with_blocks(rng, side, length)
        self.things = self._vehicles(rng, length, ONCOMING * duration)
        if small_objects:
            self.things += self._small_objects(rng, length)

    def _line_with_blocks(self, rng: np.random.Generator, side: int, length: float) -> None:
        edge = self.half_width + self.walk
        s = rng.uniform(0, 6)
        while s < length:
            long = rng.uniform(7, 18)
            kind = rng.choice(["building", "hedge", "trees", "open"], p=[0.42, 0.18, 0.25, 0.15])
            near = edge + rng.uniform(0.4, 4)
            if kind == "building":
                far, height = near + rng.uniform(6, 12), rng.uniform(3.5, 6)
                borders = (side * near, side * far)
                shade = rng.uniform(0.85, 1.1)
                self.blocks.append(Block(MANMADE, (s, s + long), borders, height, shade))
            elif kind == "hedge":
                borders = (side * near, side * (near + rng.uniform(1.2, 2.4)))
                block = Block(VEGETATION, (s, s + long), borders, rng.uniform(1.2, 2.4), 0.9)
                self.blocks.append(block)
            elif kind == "trees":
                for place in np.arange(s + 2.5, s + long - 2, 5.5):
                    radius = rng.uniform(1.6, 2.4)
                    self.trees.append((place, side * (near + 1 + radius), radius))
            s += long + rng.uniform(1, 5)

    def _vehicles(self, rng: np.random.Generator, length: float, reserve: float) -> list[Thing]:
        things = []
        kinds, shares = [CAR, BUS, TRUCK], [0.5, 0.24, 0.26]

        def vehicle(s: float, d: float, speed: float) -> Thing:
            return Thing(int(rng.choice(kinds, p=shares)), s, d, speed, rng.uniform(0.85, 1.15))

        for side in (1, -1):  # parked
            s = rng.uniform(0, 10)
            while s < length:
                thing = vehicle(s, 0.0, 0.0)
                long, wide, _ = SIZES[thing.label]
                middle = s + long / 2
                d = side * (self.half_width - 0.3 - wide / 2)
                things.append(Thing(thing.label, middle, d, 0.0, thing.shade))
                s += long + rng.uniform(5, 16)
        s = MARGIN + rng.uniform(15, 25)  # ahead of the ego car, as fast as it
        things.append(vehicle(s, -LANE, self.speed))
        s = rng.uniform(0, 20)
        while s < length + reserve:
            things.append(vehicle(s, LANE, -ONCOMING))
            s += rng.uniform(20, 45)
        return things

    def _small_objects(self, rng: np.random.Generator, length: float) -> list[Thing]:
        things = []
        for side in (1, -1):
            for s in np.arange(0, length, 7.0):
                d = side * (self.half_width + rng.uniform(0.6, self.walk - 0.4))
                label = PEDESTRIAN if rng.random() < 0.6 else BARRIER
                things.append(Thing(label, s + rng.uniform(0, 6), d, 0.0, rng.uniform(0.9, 1.1)))
        return things

    def ego(self, time: float) -> tuple[np.ndarray, float]:
        """Place (2,) and heading of the ego car, seconds after the first frame."""
        place, heading = self.road.at(MARGIN + self.speed * time, -LANE)
        return place, float(heading)

    def voxels(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        """What surrounds the ego car.

        Returns:
            Classes (200, 200, 16) uint8, indexed [x, y, z], and brightness, the same shape,
            float32, about 1.
        """
        place, heading = self.ego(time)
        columns = column_centres()  # (200, 200, 2), ego frame
        world = to_world(columns, place, heading)
        s, d = self.road.locate(world)
        labels = np.full(SHAPE, FREE, np.uint8)
        light = np.ones(SHAPE, np.float32)
        side = np.abs(d)
        walk = side < self.half_width + self.walk
        labels[..., GROUND] = np.where(walk, SIDEWALK, TERRAIN)
        labels[side < self.half_width, GROUND] = DRIVEABLE
        light += (0.12 * cell_noise(world, 0.8, self.seed)).astype(np.float32)[..., None]
        line = (side < 0.25) & (s % 6 < 3)
        light[line, GROUND] = 2.4
        self._put_blocks(labels, light, s, d)
        self._put_trees(labels, light, world)
        for thing in self.things:
            self._put_thing(labels, light, columns, thing, time, place, heading)
        return labels, light

    def _put_blocks(
        self, labels: np.ndarray, light: np.ndarray, s: np.ndarray, d: np.ndarray
    ) -> None:
        for block in self.blocks:
            near, far = sorted(block.d)
            depth = np.minimum.reduce([s - block.s[0], block.s[1] - s, d - near, far - d])
            fill(labels, light, (depth > 0) & (depth <= 1.0), 0.2, block.height, block)

    def _put_trees(self, labels: np.ndarray, light: np.ndarray, world: np.ndarray) -> None:
        z = heights()
        for s, d, radius in self.trees:
            middle, _ = self.road.at(s, d)
            away = np.linalg.norm(world - middle, axis=-1)  # (200, 200)
            index = np.nonzero(away < radius)
            if not len(index[0]):
                continue
            crown = away[index][:, None] ** 2 + (z - 3.4) ** 2 < radius**2  # (n, 16)
            crown |= (away[index] < 0.45)[:, None] & (z > 0.2) & (z < 3.4)
            labels[index] = np.where(crown, VEGETATION, labels[index])

    def _put_thing(
        self,
        labels: np.ndarray,
        light: np.ndarray,
        columns: np.ndarray,
        thing: Thing,
        time: float,
        place: np.ndarray,
        heading: float,
    ) -> None:
        length, width, height = SIZES[thing.label]
        centre, direction = self.road.at(thing.s + thing.speed * time, thing.d)
        centre = to_ego(centre, place, heading)
        if np.abs(centre).max() > 48:
            return
        offset = to_ego(columns, centre, float(direction) - heading)
        inside = (np.abs(offset[..., 0]) < length / 2) & (np.abs(offset[..., 1]) < width / 2)
        fill(labels, light, inside, 0.2, height, thing)


def column_centres() -> np.ndarray:
    """(200, 200, 2): x and y of the columns of the grid in the ego frame, indexed [x, y]."""
    axes = [LOWER[k] + SIZE * (np.arange(SHAPE[k]) + 0.5) for k in (0, 1)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def heights() -> np.ndarray:
    """(16,): z of the centres of the layers."""
    return LOWER[2] + SIZE * (np.arange(SHAPE[2]) + 0.5)


def fill(
    labels: np.ndarray,
    light: np.ndarray,
    columns: np.ndarray,
    bottom: float,
    top: float,
    what: Thing | Block,
) -> None:
    """Fill columns (200, 200) of the grid between two heights with a thing's class and shade."""
    index = np.nonzero(columns)
    if not len(index[0]):
        return
    layers = np.nonzero((heights() > bottom) & (heights() < top))[0]
    part = (index[0][:, None], index[1][:, None], layers[None])
    labels[part] = what.kind if isinstance(what, Block) else what.label
    light[part] *= what.shade
