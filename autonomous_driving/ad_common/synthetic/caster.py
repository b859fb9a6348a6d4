"""Images, visibility masks and lidar points of a voxel grid."""

from __future__ import annotations

import numpy as np

from . import city, rig, voxels

SKY = np.array([175.0, 205.0, 235.0])
FACE_LIGHT = np.array([0.82, 0.66, 1.0])  # of faces across x, y and z
HAZE = 120.0  # metres in which a colour fades by a factor of e
ROWS = 2  # rays per pixel, one above the other: the ground is seen at a small angle


class Caster:
    """Renders images and visibility masks of a voxel grid for the cameras and the lidar."""

    def __init__(self, cameras: list[rig.Camera]) -> None:
        self.cameras = cameras
        self.paths = []
        for camera in cameras:
            directions = camera.rays(rows=ROWS).reshape(-1, 3)
            origins = np.broadcast_to(camera.cam2ego[:3, 3], directions.shape)
            self.paths.append(voxels.trace(origins, directions, city.LOWER, city.SIZE, city.SHAPE))
        elevation, azimuth = np.meshgrid(
            np.radians(np.linspace(-30, 10, 32)), np.radians(np.arange(360)), indexing="ij"
        )
        directions = np.stack(
            [
                np.cos(elevation) * np.cos(azimuth),
                np.cos(elevation) * np.sin(azimuth),
                np.sin(elevation),
            ],
            axis=-1,
        ).reshape(-1, 3)
        origins = np.broadcast_to(np.array(rig.LIDAR_POSITION), directions.shape)
        self.lidar = voxels.trace(origins, directions, city.LOWER, city.SIZE, city.SHAPE)
        axes = [city.LOWER[k] + city.SIZE * (np.arange(city.SHAPE[k]) + 0.5) for k in range(3)]
        self.centres = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        self.palette = np.zeros((city.FREE + 1, 3))
        for label, colour in city.COLOURS.items():
            self.palette[label] = colour

    def frame(
        self, labels: np.ndarray, light: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
        """Images by camera name, mask_camera, mask_lidar (uint8 grids) and lidar points (n, 3)."""
        occupied = labels != city.FREE
        images, seen = {}, np.zeros(city.SHAPE, bool)
        for camera, paths in zip(self.cameras, self.paths):
            hits = voxels.first_hits(paths, occupied)
            seen |= voxels.observed(paths, hits, city.SHAPE)
            images[camera.name] = self._image(camera, paths, hits, labels, light)
        hits = voxels.first_hits(self.lidar, occupied)
        scanned = voxels.observed(self.lidar, hits, city.SHAPE)
        points = self.centres[self.lidar.voxels[hits[hits >= 0]]]
        return images, seen.astype(np.uint8), scanned.astype(np.uint8), points

    def _image(
        self,
        camera: rig.Camera,
        paths: voxels.Paths,
        hits: np.ndarray,
        labels: np.ndarray,
        light: np.ndarray,
    ) -> np.ndarray:
        up = np.linspace(0.9, 1.05, camera.height * ROWS).repeat(camera.width)
        image = np.minimum(SKY * up[:, None], 255)
        ray = np.nonzero(hits >= 0)[0]
        voxel = paths.voxels[hits[ray]]
        shade = light.ravel()[voxel] * FACE_LIGHT[paths.faces[hits[ray]]]
        colour = np.clip(self.palette[labels.ravel()[voxel]] * shade[:, None], 0, 255)
        away = np.linalg.norm(self.centres[voxel] - camera.cam2ego[:3, 3], axis=1)
        haze = (1 - np.exp(-away / HAZE))[:, None]
        image[ray] = colour * (1 - haze) + SKY * haze
        image = image.reshape(camera.height, ROWS, camera.width, 3).mean(axis=1)
        return np.round(image).astype(np.uint8)
