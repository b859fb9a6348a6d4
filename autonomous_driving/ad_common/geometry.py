"""Rotations, poses and camera projection, in numpy and float64.

Frames: the ego frame has x forward, y left and z up, in metres. A pixel is (u, v) with u to the
right and v down. A projection matrix ``m`` is 4x4 and maps a homogeneous point to ``[u * d, v * d,
d, 1] = m @ [x, y, z, 1]``, where d is the depth along the optical axis in metres. The centre of the
top left pixel is whatever the calibration says; nothing is shifted here. Quaternions are (w, x, y,
z), as nuScenes and Argoverse 2 write them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

EPSILON = 1e-5


def _numbers(value: ArrayLike, shape: tuple[int, ...], name: str) -> np.ndarray:
    """A float64 array of the given shape with finite entries, or an error that names it."""
    array = np.asarray(value, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"{name} has the shape {array.shape}; expected {shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite: {array.tolist()}")
    return array


def _points(points: ArrayLike) -> np.ndarray:
    array = np.asarray(points, dtype=np.float64)
    if array.size == 0:
        return array.reshape(0, 3)
    if array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(f"points have the shape {array.shape}; expected (N, 3)")
    return array


def quaternion_to_matrix(quaternion: ArrayLike) -> np.ndarray:
    """The rotation matrix of a quaternion.

    Args:
        quaternion: (w, x, y, z); its length does not matter.

    Returns:
        The (3, 3) matrix.

    Raises:
        ValueError: The quaternion has another shape, is zero or is not finite.
    """
    quaternion = _numbers(quaternion, (4,), "quaternion")
    length = np.linalg.norm(quaternion)
    if length < 1e-12:
        raise ValueError(f"quaternion {quaternion.tolist()} has no length, so it is no rotation")
    w, x, y, z = quaternion / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def matrix_to_quaternion(matrix: ArrayLike) -> np.ndarray:
    """The unit quaternion (w, x, y, z) of a rotation matrix, with w >= 0.

    The quaternion is the eigenvector of the largest eigenvalue of a symmetric 4x4 matrix
    (Bar-Itzhack 2000), which is stable for every angle and forgives rounding in the matrix.

    Raises:
        ValueError: The matrix is not 3x3, not finite or no rotation (up to 1e-3).
    """
    r = _numbers(matrix, (3, 3), "rotation matrix")
    if np.abs(r @ r.T - np.eye(3)).max() > 1e-3 or np.linalg.det(r) < 0:
        raise ValueError(
            f"not a rotation matrix: {r.tolist()}; its rows must be orthonormal, its determinant 1"
        )
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = r
    k = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, yx + xy, xz + zx],
            [xz - zx, yx + xy, yy - xx - zz, zy + yz],
            [yx - xy, xz + zx, zy + yz, zz - xx - yy],
        ]
    )
    quaternion = np.linalg.eigh(k)[1][:, -1]
    return -quaternion if quaternion[0] < 0 else quaternion


def yaw_of(rotation: ArrayLike) -> float:
    """The heading of a rotation in radians, in (-pi, pi]: the angle of its x axis in the xy plane.

    Args:
        rotation: A quaternion (w, x, y, z) or a (3, 3) matrix.
    """
    matrix = _rotation_matrix(rotation)
    return float(np.arctan2(matrix[1, 0], matrix[0, 0]))


def _rotation_matrix(rotation: ArrayLike) -> np.ndarray:
    rotation = np.asarray(rotation, dtype=np.float64)
    if rotation.shape == (4,):
        return quaternion_to_matrix(rotation)
    return _numbers(rotation, (3, 3), "rotation (a quaternion of 4 numbers or a 3x3 matrix)")


def pose_matrix(rotation: ArrayLike, translation: ArrayLike) -> np.ndarray:
    """The (4, 4) matrix ``[R t; 0 1]`` of a pose.

    Args:
        rotation: A quaternion (w, x, y, z) or a (3, 3) matrix.
        translation: Three numbers, in metres.
    """
    pose = np.eye(4)
    pose[:3, :3] = _rotation_matrix(rotation)
    pose[:3, 3] = _numbers(translation, (3,), "translation")
    return pose


def inverse_pose(pose: ArrayLike) -> np.ndarray:
    """The inverse ``[R' -R't; 0 1]`` of a (4, 4) pose, a rotation and a translation."""
    pose = _numbers(pose, (4, 4), "pose")
    inverse = np.eye(4)
    inverse[:3, :3] = pose[:3, :3].T
    inverse[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return inverse


def intrinsic_4x4(intrinsic: ArrayLike) -> np.ndarray:
    """A 3x3 camera matrix in the top left of a 4x4 identity."""
    matrix = np.eye(4)
    matrix[:3, :3] = _numbers(intrinsic, (3, 3), "camera intrinsic")
    return matrix


def ego_to_image(intrinsic: ArrayLike, camera_to_ego: ArrayLike) -> np.ndarray:
    """The projection matrix of one camera whose image was taken at the time of the ego pose.

    Args:
        intrinsic: The 3x3 camera matrix, in pixels.
        camera_to_ego: The (4, 4) pose of the camera in the ego frame.

    Returns:
        The (4, 4) matrix ``K4 @ inv(camera_to_ego)``.
    """
    return intrinsic_4x4(intrinsic) @ inverse_pose(camera_to_ego)


def ego_to_image_at(
    intrinsic: ArrayLike,
    camera_to_ego: ArrayLike,
    ego_to_global_at_image: ArrayLike,
    ego_to_global: ArrayLike,
) -> np.ndarray:
    """The projection matrix of one camera whose image was taken while the car stood somewhere else.

    nuScenes triggers its cameras and its lidar at different moments, each with its own ego pose. A
    point goes from the ego frame of the key frame to the world, into the ego frame at the time of
    the image, into the camera and into the image.

    Args:
        intrinsic: The 3x3 camera matrix, in pixels.
        camera_to_ego: The (4, 4) pose of the camera in the ego frame.
        ego_to_global_at_image: The (4, 4) ego pose when the image was taken.
        ego_to_global: The (4, 4) ego pose of the frame in which the points are given.

    Returns:
        The (4, 4) matrix ``K4 @ inv(camera_to_ego) @ inv(ego_to_global_at_image) @ ego_to_global``.
    """
    ego_to_global = _numbers(ego_to_global, (4, 4), "ego_to_global")
    return (
        ego_to_image(intrinsic, camera_to_ego)
        @ inverse_pose(ego_to_global_at_image)
        @ ego_to_global
    )


def project(points: ArrayLike, matrix: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Project points into an image.

    Args:
        points: (N, 3), in metres.
        matrix: (4, 4) projection matrix.

    Returns:
        The pixels (u, v), (N, 2), and the depths (N,) in metres. The pixels of points with a depth
        below 1e-5 (behind the camera) are meaningless but finite; look at the depth first.
    """
    points = _points(points)
    matrix = _numbers(matrix, (4, 4), "projection matrix")
    projected = points @ matrix[:3, :3].T + matrix[:3, 3]  # (N, 3)
    depth = projected[:, 2]
    return projected[:, :2] / np.maximum(depth, EPSILON)[:, None], depth


def clip_polyline_to_front(
    points: ArrayLike, matrix: ArrayLike, near: float = 0.1
) -> list[np.ndarray]:
    """Cut away what of a polyline lies behind a camera.

    An edge that crosses the plane at depth ``near`` is cut exactly there (the depth is linear along
    an edge in 3-D, the pixel is not).

    Args:
        points: (N, 3), in metres, in order.
        matrix: (4, 4) projection matrix.
        near: The depth of the cutting plane in metres, positive.

    Returns:
        The pieces in front of the camera, each (M, 3) with M >= 2, in the order and direction of
        the polyline.
    """
    if near <= 0:
        raise ValueError(f"near is {near}; it must be a positive depth in metres")
    points = _points(points)
    depth = project(points, matrix)[1]
    pieces: list[np.ndarray] = []
    piece: list[np.ndarray] = []
    for i in range(len(points) - 1):
        ahead, next_ahead = depth[i] >= near, depth[i + 1] >= near
        if ahead and not piece:
            piece = [points[i]]
        if ahead != next_ahead:
            share = (near - depth[i]) / (depth[i + 1] - depth[i])
            piece.append(points[i] + share * (points[i + 1] - points[i]))
        if next_ahead:
            piece.append(points[i + 1])
        elif piece:
            pieces.append(np.stack(piece))
            piece = []
    if piece:
        pieces.append(np.stack(piece))
    return pieces
