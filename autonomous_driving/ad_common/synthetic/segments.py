"""What the synthetic OpenLane-V2 and HD-map data share: segments, frames and their poses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SPLITS = ("train", "val", "test")
PERIOD = 0.5  # seconds between frames
START = 315_966_000_000_000_000  # nanoseconds; the first segment's first frame
MOST = 10_000  # segments of a split


@dataclass(frozen=True)
class Segment:
    """A drive.

    Attributes:
        split: "train", "val" or "test".
        name: five digits.
        start: time of its first frame, ns.
        rng: random numbers that depend on the seed, the split and the number only.
    """

    split: str
    name: str
    start: int
    rng: np.random.Generator

    def timestamp(self, frame: int) -> int:
        """Time of a frame, ns."""
        return self.start + round(frame * PERIOD * 1e9)


def segments(counts: dict[str, int], seed: int) -> Iterator[Segment]:
    """The segments of all splits; a larger data set begins with those of a smaller one."""
    for index, split in enumerate(SPLITS):
        for number in range(counts[split]):
            place = index * MOST + number
            rng = np.random.default_rng([seed, place])
            yield Segment(split, f"{place:05d}", START + place * 20_000_000_000, rng)


def check(counts: dict[str, int], frames: int, seed: int, slope: float, share: float) -> None:
    """Check what a caller chose.

    Raises:
        ValueError: a value is out of range.
    """
    for split, count in counts.items():
        least = 0 if split == "test" else 1
        if not least <= count <= MOST:
            raise ValueError(
                f"the number of {split} segments must be from {least} to {MOST}, got {count}"
            )
    if not 1 <= frames <= 40:
        raise ValueError(f"the frames of a segment must be from 1 to 40, got {frames}")
    if seed < 0:
        raise ValueError(f"the seed must not be negative, got {seed}")
    if not 0 <= slope <= 0.1:
        raise ValueError(f"the slope must be from 0 to 0.1, got {slope}")
    if not 0 <= share <= 1:
        raise ValueError(f"the share of intersections must be from 0 to 1, got {share}")


def random_tilt(rng: np.random.Generator, slope: float) -> np.ndarray:
    """Rotation (3, 3) from the ego frame to the level one; the grades are at most `slope`."""
    pitch, roll = np.arctan(rng.uniform(-slope, slope, 2))
    about_y = np.array(
        [[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]]
    )
    about_x = np.array(
        [[1, 0, 0], [0, np.cos(roll), -np.sin(roll)], [0, np.sin(roll), np.cos(roll)]]
    )
    return about_y @ about_x


def ego_pose(place: np.ndarray, heading: float, tilt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (3, 3) and translation (3,) from the ego frame to the world."""
    cos, sin = np.cos(heading), np.sin(heading)
    level = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])
    return level @ tilt, np.array([place[0], place[1], 0.0])


def lifted(points: np.ndarray, tilt: np.ndarray) -> np.ndarray:
    """Points (n, 2) of the level ground as (n, 3) in the ego frame."""
    return np.pad(points, ((0, 0), (0, 1))) @ tilt
