"""The 18 numbers about the car's motion that BEVFormer (arXiv 2203.17270) feeds to its queries.

    0:3 position, 3:7 orientation (w, x, y, z), 7:10 acceleration, 10:13 rotation rate,
    13:16 velocity, 16 heading in radians (0 to 2 pi), 17 heading in degrees (0 to 360)

All but 7:16 come from the frame's ego pose; 7:16 from the CAN bus expansion of nuScenes,
`can_bus/<scene>_pose.json`: messages {"utime", "pos", "orientation", "accel", "rotation_rate",
"vel"} at 50 Hz. Some scenes of nuScenes have none; theirs are zeros.
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import numpy as np
from ad_common.geometry import yaw_of

from .annotations import read_json

SIZE = 18
POSITION, ORIENTATION = slice(0, 3), slice(3, 7)
MOTION = (("accel", slice(7, 10)), ("rotation_rate", slice(10, 13)), ("vel", slice(13, 16)))
YAW_RADIANS, YAW_DEGREES = 16, 17


class CanBus:
    """The messages of one scene.

    Args:
        root: folder that contains can_bus/.
        scene: name, for example scene-0061.

    Raises:
        ValueError: the file of the scene is broken.
    """

    def __init__(self, root: str | Path, scene: str) -> None:
        self.path = Path(root) / "can_bus" / f"{scene}_pose.json"
        self.messages: list[dict] = []
        if self.path.is_file():
            messages = read_json(self.path, "it is part of nuScenes' CAN bus expansion")
            try:
                self.messages = sorted(messages, key=lambda message: message["utime"])
            except (KeyError, TypeError) as error:
                raise ValueError(f"{self.path} is no list of messages: {error}") from None
        self.times = [message["utime"] for message in self.messages]

    def at(self, timestamp: int) -> np.ndarray:
        """(18,) of the last message at or before `timestamp` (microseconds); else the first.

        The headings are 0 here; `with_pose` fills them in. Zeros without messages.
        """
        vector = np.zeros(SIZE)
        if not self.messages:
            return vector
        message = self.messages[max(bisect_right(self.times, timestamp) - 1, 0)]
        fields = (("pos", POSITION), ("orientation", ORIENTATION), *MOTION)
        for name, place in fields:
            try:
                vector[place] = message[name]
            except (KeyError, ValueError, TypeError):
                raise ValueError(
                    f"{self.path}: the message at {message['utime']} has the {name} "
                    f"{message.get(name)}, not {place.stop - place.start} numbers"
                ) from None
        return vector


def with_pose(
    vector: np.ndarray, rotation: np.ndarray | list, translation: np.ndarray | list
) -> np.ndarray:
    """A copy of (18,) `vector` with position, orientation and headings of an ego pose."""
    result = np.array(vector, dtype=np.float64)
    yaw = yaw_of(rotation) % (2 * np.pi)
    result[POSITION] = translation
    result[ORIENTATION] = rotation
    result[YAW_RADIANS] = yaw
    result[YAW_DEGREES] = np.degrees(yaw)
    return result


def with_motion(vector: np.ndarray, previous: np.ndarray | None) -> np.ndarray:
    """A copy of (18,) `vector` with position and degrees relative to the frame before.

    Args:
        vector: of a frame, absolute.
        previous: of the frame before, absolute; None for the first of a scene: the motion is 0.
    """
    result = np.array(vector, dtype=np.float64)
    result[[0, 1, 2, YAW_DEGREES]] = 0.0
    if previous is not None:
        turn = vector[YAW_DEGREES] - previous[YAW_DEGREES]
        result[POSITION] = vector[POSITION] - previous[POSITION]
        result[YAW_DEGREES] = (turn + 180.0) % 360.0 - 180.0
    return result
