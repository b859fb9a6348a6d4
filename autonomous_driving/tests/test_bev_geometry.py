"""The geometry of the BEV grid: its points, what cameras see, how it moves with the car."""

from __future__ import annotations

import bev_toys as toys
import numpy as np
import pytest
import torch
from ad_common import geometry as poses
from ad_common.bev import geometry
from ad_common.bev.ipm import plane_points, sample_cameras

DOUBLE = torch.empty(0, dtype=torch.float64)


def test_cell_centres():
    points = geometry.reference_points_2d(2, 4, DOUBLE)
    assert points[0].tolist() == [0.125, 0.25]
    assert points[1].tolist() == [0.375, 0.25]  # the next query is the next column: x grows
    assert points[4].tolist() == [0.125, 0.75]


def test_pillars_in_metres():
    points = geometry.reference_points_3d(6, 12, toys.RANGE, 4, DOUBLE)
    assert points.shape == (72, 4, 3)
    np.testing.assert_allclose(points[0, 0], [-8 + 16 / 24, -4 + 8 / 12, -1.5])
    np.testing.assert_allclose(points[13, :, 2], [-1.5, -0.5, 0.5, 1.5])
    np.testing.assert_allclose(points[13, 0, :2], [-8 + 1.5 * 16 / 12, -4 + 1.5 * 8 / 6])


def test_projection_and_visibility_against_brute_force():
    points = geometry.reference_points_3d(6, 12, toys.RANGE, 3, DOUBLE)
    metas = [toys.meta(toys.rig(3, 0.3)), toys.meta(toys.rig(3, 1.0))]
    metas[1]["pad_shape"] = [(20, 48, 3), (32, 24, 3), (32, 48, 3)]  # differs by sample and camera
    matrices = geometry.camera_matrices(metas)
    sizes = geometry.image_sizes(metas, 3)
    places, seen = geometry.project_to_cameras(
        points, torch.as_tensor(matrices), torch.as_tensor(sizes)
    )
    assert 0.05 < seen.double().mean() < 0.5
    for b, n in np.ndindex(2, 3):
        height, width = metas[b]["pad_shape"][n][:2]
        for q, d in np.ndindex(72, 3):
            (uv,), (depth,) = poses.project(points[q, d][None].numpy(), metas[b]["lidar2img"][n])
            inside = depth > 1e-5 and 0 < uv[0] < width and 0 < uv[1] < height
            assert bool(seen[b, n, q, d]) == inside
            if inside:
                np.testing.assert_allclose(places[b, n, q, d], uv / [width, height], atol=1e-9)


def test_the_size_of_the_padded_image_counts():
    meta = {"pad_shape": [(32, 48, 3), (16, 24, 3)], "img_shape": [(30, 40, 3)] * 2}
    assert geometry.image_sizes([meta], 2).tolist() == [[[48, 32], [24, 16]]]
    one_for_all = {"img_shape": (30, 40, 3)}
    assert geometry.image_sizes([one_for_all], 2).tolist() == [[[40, 30], [40, 30]]]


def test_the_way_over_a_lidar_is_followed_for_each_sample():
    to_lidar = [poses.pose_matrix([1, 0.1 * i, 0, 0.2], [1, i, 2]) for i in range(2)]
    over_lidar = [
        toys.meta([m @ np.linalg.inv(pose) for m in toys.rig()], ego2lidar=pose)
        for pose in to_lidar
    ]
    got = geometry.camera_matrices(over_lidar)
    np.testing.assert_allclose(got, np.stack([toys.rig(), toys.rig()]), atol=1e-9)


def test_projection_stays_exact_under_autocast():
    points = geometry.reference_points_3d(6, 12, toys.RANGE, 3, torch.empty(0))
    matrices = torch.tensor(geometry.camera_matrices([toys.meta()]), dtype=torch.float32)
    sizes = torch.tensor([48.0, 32.0]).expand(1, 3, 2)
    places, seen = geometry.project_to_cameras(points, matrices, sizes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, mixed_seen = geometry.project_to_cameras(points, matrices, sizes)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, places) and torch.equal(mixed_seen, seen)


def test_seen_queries_against_brute_force():
    draw = torch.Generator().manual_seed(0)
    visible = torch.rand(2, 3, 10, 4, generator=draw) < 0.15
    visible[0, 1] = False
    places = torch.rand(2, 3, 10, 4, 2, generator=draw)
    seen = geometry.seen_queries(places, visible)
    found = set()
    for row, column, query in zip(
        seen.row.tolist(), seen.column.tolist(), seen.query.tolist(), strict=True
    ):
        sample, camera = divmod(row, 3)
        assert seen.index[row, column] == query
        assert torch.equal(seen.points[row, column], places[sample, camera, query - 10 * sample])
        found.add((sample, camera, query - 10 * sample))
    expected = {tuple(entry) for entry in visible.any(-1).nonzero().tolist()}
    assert found == expected and len(seen.row) == len(expected)
    assert seen.index.shape[1] == visible.any(-1).sum(-1).max()
    counts = visible.any(-1).sum(1).clamp(min=1)
    assert torch.equal(seen.cameras.view(2, 10), counts)


def can_bus(east=0.0, north=0.0, yaw=0.0, turn=0.0) -> np.ndarray:
    vector = np.zeros(18)
    vector[:2] = east, north
    vector[-2], vector[-1] = yaw, turn
    return vector


def test_shift_by_hand():
    # heading north (yaw 90 degrees), 2 m to the north and 1 m to the west: 2 m ahead, 1 m left
    vectors = np.stack([can_bus(-1, 2, np.pi / 2), can_bus(3, 0, 0)])
    shift = geometry.bev_shift(vectors, (0.5, 0.25), bev_h=40, bev_w=80)
    np.testing.assert_allclose(shift, [[2 / 20, 1 / 20], [3 / 20, 0]], atol=1e-12)
    legacy = geometry.bev_shift(vectors, (0.5, 0.25), 40, 80, legacy_axes=True)
    # the published formula: angle = yaw - direction; x takes the sine, y the cosine
    length, angle = np.sqrt(5), np.pi / 2 - np.arctan2(2, -1)
    expected = [length * np.sin(angle) / 20, length * np.cos(angle) / 20]
    np.testing.assert_allclose(legacy, [expected, [0, 3 / 20]], atol=1e-12)


@pytest.mark.parametrize("turn", [0, 90, -90, 180])
def test_turning_the_grid_moves_a_feature_where_it_belongs(turn):
    # a thing ahead of the car and somewhat to the left, on a square grid around the car
    size, half = 8, 4.0
    before = np.array([2.5, 1.5])
    column, row = (before + half).astype(int)
    bev = torch.zeros(1, size * size, 2)
    bev[0, row * size + column] = torch.tensor([3.0, 7.0])
    angle = np.deg2rad(turn)  # the car turned left by this, so the thing turned right
    turn_back = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    column, row = np.floor(turn_back @ before + half).astype(int)
    turned = geometry.rotate_bev(bev, [turn], size, size)
    assert turned[0, row * size + column].tolist() == [3.0, 7.0]
    assert turned.abs().sum() == 10


def test_turning_takes_each_sample_by_its_angle_around_the_given_centre():
    bev = toys.normal(2, 48, 3)
    turned = geometry.rotate_bev(bev, [0.0, 180.0], 6, 8, center=[3, 3])
    assert torch.equal(turned[0], bev[0])
    maps, got = bev[1].view(6, 8, 3), turned[1].view(6, 8, 3)
    assert torch.equal(got[:, :6], maps.flip(0)[:, :6].flip(1))
    assert got[:, 6:].abs().sum() == 0


def test_turning_is_as_exact_in_half_precision():
    bev = toys.normal(1, 100 * 60, 2).bfloat16()
    turned = geometry.rotate_bev(bev, [17.0], 100, 60)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, geometry.rotate_bev(bev.double(), [17.0], 100, 60).bfloat16())


def test_metas_that_lack_something_are_named():
    with pytest.raises(ValueError, match="sample 1 lack lidar2img"):
        geometry.camera_matrices([toys.meta(), {}])
    with pytest.raises(ValueError, match=r"lidar2img of sample 0 has the shape \(3, 3, 4\)"):
        geometry.camera_matrices([{"lidar2img": [m[:3] for m in toys.rig()]}])
    with pytest.raises(ValueError, match="different numbers of cameras"):
        geometry.camera_matrices([toys.meta(), toys.meta(toys.rig(2))])
    with pytest.raises(ValueError, match=r"ego2lidar of sample 0 has the shape \(3, 3\)"):
        geometry.camera_matrices([toys.meta(ego2lidar=np.eye(3))])
    with pytest.raises(ValueError, match="lack pad_shape and img_shape"):
        geometry.image_sizes([{}], 2)
    with pytest.raises(ValueError, match="3 cameras but image shapes of 2"):
        geometry.image_sizes([{"img_shape": [(4, 5, 3)] * 2}], 3)
    with pytest.raises(ValueError, match="sample 0 need can_bus with 18 numbers"):
        geometry.can_bus_of([{"can_bus": np.zeros(17)}])


def test_planes_include_both_ends():
    points = plane_points((-30, 30), (-15, 15), [-1.1, 0.5], (100, 200))
    assert points.shape == (2, 100, 200, 3)
    np.testing.assert_allclose(points[0, 0, 0], [-30, -15, -1.1])
    np.testing.assert_allclose(points[1, 99, 199], [30, 15, 0.5])
    np.testing.assert_allclose(points[0, 0, 1], [-30 + 60 / 199, -15, -1.1], rtol=1e-6)


def test_plane_sampling_against_brute_force():
    features = toys.normal(2, 3, 4, 8, 12)
    points = plane_points((-6, 6), (-3, 3), [-1.0, 0.5], (5, 7)).double()
    rigs = [toys.rig(3, 0.2), toys.rig(3, 0.9)]
    matrices = torch.tensor(np.array(rigs))
    got, count = sample_cameras(features, points, matrices, toys.IMAGE)
    assert got.shape == (2, 4, 2, 5, 7) and count.max() >= 1 and count.min() == 0
    for b, z, i, j in np.ndindex(2, 2, 5, 7):
        found = []
        for n in range(3):
            (uv,), (depth,) = poses.project(points[z, i, j][None].numpy(), rigs[b][n])
            u, v = uv / [48, 32]
            if depth > 1e-9 and 0 < u < 1 and 0 < v < 1:
                grid = torch.tensor([[[[2 * u - 1, 2 * v - 1]]]], dtype=torch.float64)
                sample = torch.nn.functional.grid_sample(
                    features[b, n][None], grid, align_corners=False
                )
                found.append(sample[0, :, 0, 0])
        expected = sum(found) / len(found) if found else torch.zeros(4).double()
        assert count[b, z, i, j] == len(found)
        torch.testing.assert_close(got[b, :, z, i, j], expected, rtol=0, atol=1e-9)


def test_plane_sampling_names_what_does_not_fit():
    with pytest.raises(ValueError, match=r"ego2img \(1, 2, 4, 4\) do not fit"):
        sample_cameras(
            torch.zeros(1, 3, 4, 8, 12), torch.zeros(5, 3), torch.zeros(1, 2, 4, 4), (8, 8)
        )
