"""ad_common/geometry.py: rotations, poses and projection against hand-computed numbers."""

import numpy as np
import pytest
from ad_common import geometry

INTRINSIC = [[100.0, 0.0, 80.0], [0.0, 200.0, 60.0], [0.0, 0.0, 1.0]]
# the axes of a camera that looks forward, as columns in the ego frame: right is -y, down is -z,
# ahead is x
FORWARD = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def forward_camera(translation=(1.0, 0.5, 1.5)):
    return geometry.ego_to_image(INTRINSIC, geometry.pose_matrix(FORWARD, translation))


def random_pose(rng):
    return geometry.pose_matrix(rng.normal(size=4), rng.normal(size=3) * 10)


def test_a_point_lands_on_the_pixel_computed_by_hand():
    # 4 m ahead of the camera, 2 m to its left, 0.5 m above: u = 80 + 100 * (-2) / 4, v = 60 + 200 *
    # (-0.5) / 4
    uv, depth = geometry.project([[5.0, 2.5, 2.0], [-3.0, 0.0, 0.0]], forward_camera())
    assert uv[0] == pytest.approx([30.0, 35.0], abs=1e-12)
    assert depth == pytest.approx([4.0, -4.0], abs=1e-12)
    assert np.isfinite(uv).all()


def test_a_camera_to_the_left():
    # turned by +90 degrees about z the camera looks along +y, and the car's front is on its right
    turned = geometry.quaternion_to_matrix([np.cos(np.pi / 4), 0, 0, np.sin(np.pi / 4)]) @ FORWARD
    matrix = geometry.ego_to_image(INTRINSIC, geometry.pose_matrix(turned, [0, 0, 0]))
    uv, depth = geometry.project([[1.0, 10.0, -2.0]], matrix)
    assert depth == pytest.approx([10.0])
    assert uv[0] == pytest.approx([80 + 100 * 1 / 10, 60 + 200 * 2 / 10])


def test_known_quaternions():
    half = np.sqrt(0.5)
    assert geometry.quaternion_to_matrix([half, 0, 0, half]) @ [1, 0, 0] == pytest.approx([0, 1, 0])
    assert geometry.quaternion_to_matrix([half, half, 0, 0]) @ [0, 1, 0] == pytest.approx([0, 0, 1])
    assert geometry.quaternion_to_matrix([2, 0, 0, 0]) == pytest.approx(np.eye(3))


@pytest.mark.parametrize("seed", range(5))
def test_quaternion_round_trip(seed):
    quaternion = np.random.default_rng(seed).normal(size=4)
    quaternion *= np.sign(quaternion[0]) / np.linalg.norm(quaternion)
    matrix = geometry.quaternion_to_matrix(quaternion)
    assert matrix @ matrix.T == pytest.approx(np.eye(3), abs=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1)
    assert geometry.matrix_to_quaternion(matrix) == pytest.approx(quaternion, abs=1e-12)


@pytest.mark.parametrize("axis", [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0, 0.8]])
def test_half_turns_round_trip(axis):
    matrix = geometry.quaternion_to_matrix(
        [0.0, *axis]
    )  # w = 0 is where formulas that divide by w break
    back = geometry.quaternion_to_matrix(geometry.matrix_to_quaternion(matrix))
    assert back == pytest.approx(matrix, abs=1e-12)


@pytest.mark.parametrize("yaw", [-3.0, -0.5, 0.0, 2.0, 3.1])
def test_yaw(yaw):
    quaternion = [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
    assert geometry.yaw_of(quaternion) == pytest.approx(yaw)
    assert geometry.yaw_of(geometry.quaternion_to_matrix(quaternion)) == pytest.approx(yaw)


def test_inverse_pose():
    pose = random_pose(np.random.default_rng(0))
    assert geometry.inverse_pose(pose) == pytest.approx(np.linalg.inv(pose), abs=1e-12)


def test_chain_through_the_world():
    # the car drove 2 m ahead between the image and the key frame: a point 5 m ahead now was 7 m
    # ahead of the car then
    at_image = geometry.pose_matrix(np.eye(3), [100, 50, 0])
    now = geometry.pose_matrix(np.eye(3), [102, 50, 0])
    camera = geometry.pose_matrix(FORWARD, [0, 0, 0])
    matrix = geometry.ego_to_image_at(INTRINSIC, camera, at_image, now)
    uv, depth = geometry.project([[5.0, 1.4, 0.0]], matrix)
    assert depth == pytest.approx([7.0])
    assert uv[0] == pytest.approx([80 - 100 * 1.4 / 7, 60])


def test_chain_equals_the_way_over_a_lidar():
    # with any lidar mounting, camera <- lidar <- ego gives the same matrix: the lidar pose cancels
    rng = np.random.default_rng(1)
    camera, at_image, now, lidar = (random_pose(rng) for _ in range(4))
    lidar_to_camera = np.linalg.inv(camera) @ np.linalg.inv(at_image) @ now @ lidar
    over_lidar = geometry.intrinsic_4x4(INTRINSIC) @ lidar_to_camera @ np.linalg.inv(lidar)
    direct = geometry.ego_to_image_at(INTRINSIC, camera, at_image, now)
    assert direct == pytest.approx(over_lidar, abs=1e-8)


def test_clipping_cuts_at_the_near_plane():
    line = np.array([[-4.0, 0.5, 0.0], [6.0, 0.5, 0.0], [8.0, 2.5, 0.0]])  # the camera is at x = 1
    (piece,) = geometry.clip_polyline_to_front(line, forward_camera(), near=0.25)
    assert piece == pytest.approx(np.array([[1.25, 0.5, 0.0], [6.0, 0.5, 0.0], [8.0, 2.5, 0.0]]))


def test_clipping_makes_several_pieces_in_order():
    line = np.array([[3, 0, 0], [-3, 0, 0], [-3, 2, 0], [3, 2, 0], [4, 3, 0]], dtype=float)
    first, second = geometry.clip_polyline_to_front(line, forward_camera(), near=1.0)
    assert first == pytest.approx(np.array([[3, 0, 0], [2, 0, 0]], dtype=float))
    assert second == pytest.approx(np.array([[2, 2, 0], [3, 2, 0], [4, 3, 0]], dtype=float))


@pytest.mark.parametrize("line", [np.zeros((0, 3)), [[5.0, 0, 0]], [[-5.0, 0, 0], [-6.0, 0, 0]]])
def test_clipping_leaves_nothing(line):
    assert geometry.clip_polyline_to_front(line, forward_camera()) == []


def test_an_untouched_line_stays_the_same():
    line = np.random.default_rng(3).uniform(5, 9, size=(7, 3))
    (piece,) = geometry.clip_polyline_to_front(line, forward_camera())
    assert np.array_equal(piece, line)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no length"):
        geometry.quaternion_to_matrix([0, 0, 0, 0])
    with pytest.raises(ValueError, match=r"quaternion has the shape \(3,\)"):
        geometry.quaternion_to_matrix([1, 0, 0])
    with pytest.raises(ValueError, match="not a rotation matrix"):
        geometry.matrix_to_quaternion(np.diag([1.0, 1.0, -1.0]))
    with pytest.raises(ValueError, match="not finite"):
        geometry.pose_matrix(np.eye(3), [0, np.nan, 0])
    with pytest.raises(ValueError, match=r"camera intrinsic has the shape \(4, 4\)"):
        geometry.intrinsic_4x4(np.eye(4))
    with pytest.raises(ValueError, match=r"points have the shape \(4, 2\)"):
        geometry.project(np.zeros((4, 2)), np.eye(4))
    with pytest.raises(ValueError, match="near is 0"):
        geometry.clip_polyline_to_front(np.zeros((2, 3)), np.eye(4), near=0)
