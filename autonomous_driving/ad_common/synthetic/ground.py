"""Images of a painted ground: a texture seen from above, looked up by every pixel of a camera.

The ground is the plane z = 0 of a level frame, against which the ego frame may be tilted about the
origin that both share.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from .rig import Camera

REACH = 80.0  # metres from the ego car to the texture's borders
CELL = 0.125  # metres per texel
TEXELS = round(2 * REACH / CELL)
SAMPLES = 3  # per pixel and axis, in images up to LARGE pixels wide; one in larger ones
LARGE = 600
SKY = np.array([165, 200, 235], np.float32)
HAZE = 150.0  # metres in which the ground's colour fades by a factor of e
SHIFT = 4  # bits of subpixel precision for OpenCV


def grain(colour: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Unpainted ground, (TEXELS, TEXELS, 3) uint8: a colour with soft random spots."""
    spots = rng.normal(0, 1, (TEXELS // 16, TEXELS // 16)).astype(np.float32)
    spots = cv2.resize(spots, (TEXELS, TEXELS), interpolation=cv2.INTER_LINEAR)
    base = np.asarray(colour, np.float32) * (1 + 0.06 * spots[..., None])
    return np.clip(base, 0, 255).astype(np.uint8)


class Texture:
    """A square of ground around the ego car, RGB, on which lines and areas are painted.

    Args:
        ground: what `grain` gives; it is copied.
        colour: of the ground beyond the square.
    """

    def __init__(self, ground: np.ndarray, colour: Sequence[int]) -> None:
        self.pixels = ground.copy()
        self.colour = tuple(colour)

    def area(self, rings: Sequence[np.ndarray], colour: Sequence[int]) -> None:
        """Fill the inside of rings (n, 2), metres in the level frame; even-odd rule."""
        cv2.fillPoly(self.pixels, [_texels(ring) for ring in rings], colour, cv2.LINE_AA, SHIFT)

    def line(self, points: np.ndarray, colour: Sequence[int], width: float) -> None:
        """Paint a polyline (n, 2) of a width in metres."""
        thick = max(1, round(width / CELL))
        cv2.polylines(self.pixels, [_texels(points)], False, colour, thick, cv2.LINE_AA, SHIFT)


def _texels(points: np.ndarray) -> np.ndarray:
    """Level coordinates (n, 2) as OpenCV's fixed-point texture coordinates."""
    return np.round(((points + REACH) / CELL - 0.5) * (1 << SHIFT)).astype(np.int32)


class Viewer:
    """Looks at textures through the cameras of a rig.

    Args:
        cameras: the rig.
        tilt: (3, 3) rotation from the ego frame to the level frame.
    """

    def __init__(self, cameras: Sequence[Camera], tilt: np.ndarray) -> None:
        self.cameras = cameras
        self.maps: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for camera in cameras:
            samples = SAMPLES if camera.width <= LARGE else 1
            rays = camera.rays(samples, samples) @ tilt.T
            origin = tilt @ camera.cam2ego[:3, 3]
            falls = rays[..., 2] < -1e-6 * origin[2]  # (H, W); else it sees the sky
            depth = origin[2] / np.where(falls, -rays[..., 2], 1e-6 * origin[2])
            xy = origin[:2] + depth[..., None] * rays[..., :2]
            away = np.linalg.norm(xy, axis=-1)
            xy = np.clip(xy, -2 * REACH, 2 * REACH)  # OpenCV's remap takes 16-bit coordinates
            texel = ((xy + REACH) / CELL - 0.5).astype(np.float32)
            ground = np.where(falls, np.exp(-away / HAZE), 0).astype(np.float32)
            ground = cv2.resize(ground, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
            self.maps.append((texel[..., 0], texel[..., 1], ground[..., None]))

    def look(self, texture: Texture) -> dict[str, np.ndarray]:
        """Images (H, W, 3) uint8 RGB by camera name."""
        images = {}
        for camera, (columns, rows, ground) in zip(self.cameras, self.maps):
            seen = cv2.remap(
                texture.pixels,
                columns,
                rows,
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_CONSTANT,
                borderValue=texture.colour,
            )
            size = (camera.width, camera.height)
            seen = cv2.resize(seen, size, interpolation=cv2.INTER_AREA)
            image = seen * ground + SKY * (1 - ground)
            images[camera.name] = np.round(image).astype(np.uint8)
        return images


def seen_by(points: np.ndarray, cameras: Sequence[Camera]) -> np.ndarray:
    """Which points (n, 3) of the ego frame lie in an image, (n,) bool."""
    seen = np.zeros(len(points), bool)
    for camera in cameras:
        u, v, depth = (np.pad(points, ((0, 0), (0, 1)), constant_values=1) @ camera.ego2img.T)[
            :, :3
        ].T
        front = depth > 0.1
        depth = np.where(front, depth, 1)
        inside = (u >= 0) & (u <= (camera.width - 1) * depth)
        seen |= front & inside & (v >= 0) & (v <= (camera.height - 1) * depth)
    return seen
