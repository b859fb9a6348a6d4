"""ad_common/visualize.py: what is drawn lands where it belongs."""

from __future__ import annotations

import bev_toys as toys
import cv2
import numpy as np
import pytest
from ad_common import geometry, visualize

RED, BLUE = (0, 0, 255), (255, 0, 0)


def black(height=32, width=48) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def drawn(image: np.ndarray, color) -> set[tuple[int, int]]:
    """(row, column) of the pixels of a colour."""
    return {tuple(p) for p in np.argwhere((image == color).all(-1)).tolist()}


def test_a_line_lands_on_the_pixels_computed_by_hand():
    # focal 20, centre (24, 16), 5 m ahead: 1 m to the right is u = 28, 0.5 m to the left u = 22;
    # 1.5 m is the height of the camera, so z = 0.25 is v = 16 + 20 * 1.25 / 5 = 21
    line = [[5, 0.5, 0.25], [5, -1, 0.25]]
    image = visualize.draw_polyline(black(), line, toys.camera(0.0), RED, thickness=1)
    assert drawn(image, RED) == {(21, column) for column in range(22, 29)}
    assert image.any(-1).sum() == 7


def test_a_line_that_begins_behind_the_camera():
    line = np.array([[-3, -1, 0.5], [5, -1, 0.5]], dtype=float)
    camera = toys.camera(0.0)
    image = visualize.draw_polyline(black(), line, camera, RED, thickness=1)
    pixels = drawn(image, RED)
    assert (20, 28) in pixels  # the far end
    # it runs on the straight line from there to the lower right, never above or to the left
    assert all(row >= 20 and column >= 28 for row, column in pixels)
    assert len(pixels) > 8
    part = visualize.draw_polyline(black(), [[0.1, -1, 0.5], [5, -1, 0.5]], camera, RED, 1)
    assert np.array_equal(image, part)
    behind = visualize.draw_polyline(black(), line - [8, 0, 0], camera, RED)
    assert not behind.any()


def test_an_arrow_sits_at_the_end_and_only_if_that_is_seen():
    line, camera = [[8, 1, 0.5], [6, 0, 0.5], [4, -1, 0.5]], toys.camera(0.0)
    plain = visualize.draw_polyline(black(), line, camera, RED, 1).any(-1)
    head = visualize.draw_polyline(black(), line, camera, RED, 1, arrow=True).any(-1) & ~plain
    assert head.any()
    (end,), _ = geometry.project(line[-1:], camera)
    rows, columns = np.nonzero(head)
    assert np.hypot(rows - end[1], columns - end[0]).max() < 8
    away = [*line, [-4, -1, 0.5]]
    with_arrow = visualize.draw_polyline(black(), away, camera, RED, 1, arrow=True)
    assert np.array_equal(with_arrow, visualize.draw_polyline(black(), away, camera, RED, 1))


def test_nothing_to_draw_is_fine():
    camera = toys.camera(0.0)
    assert not visualize.draw_polyline(black(), [], camera, RED, arrow=True).any()


def test_mosaic_layout():
    names = ["left", "front", "right", "back"]
    images = {n: np.full((60, 90, 3), 40 * (i + 1), np.uint8) for i, n in enumerate(names)}
    images["back"] = np.full((120, 90, 3), 160, np.uint8)  # portrait: fitted, half as wide
    mosaic = visualize.camera_mosaic(images, columns=3, gap=4)
    assert mosaic.shape == (2 * 60 + 4, 3 * 90 + 8, 3)
    for i in range(3):
        assert (mosaic[30, i * 94 + 45] == 40 * (i + 1)).all()
        assert (mosaic[30, i * 94 + 90 : i * 94 + 94] == visualize.BACKGROUND).all() or i == 2
    assert (mosaic[64 + 40, 45] == 160).all()
    assert (mosaic[64 + 40, 10] == visualize.BACKGROUND).all()
    assert (mosaic[64:, 94:] == visualize.BACKGROUND).all()
    assert (mosaic[:20, :60].max(-1) > 200).any()  # the name
    assert visualize.camera_mosaic(images, cell=(30, 45), columns=9).shape == (30, 4 * 49 - 4, 3)


def test_bev_panel_has_ahead_up_and_left_on_the_left():
    bounds = (-10, -6, 20, 6)  # 30 m by 12 m
    panel = visualize.bev_panel(bounds, points=[([[15.0, 4.0]], RED)], pixels_per_metre=5)
    assert panel.shape == (150, 60, 3)
    rows, columns = np.array(sorted(drawn(panel, RED))).T
    assert rows.mean() == pytest.approx((20 - 15) * 5 - 0.5, abs=0.6)
    assert columns.mean() == pytest.approx((6 - 4) * 5 - 0.5, abs=0.6)


def test_bev_panel_lines_and_arrows():
    lines = [([[0.0, 3.0], [15.0, 3.0]], RED), (np.zeros((0, 3)), BLUE)]
    plain = visualize.bev_panel((-10, -6, 20, 6), lines, pixels_per_metre=5, thickness=1)
    rows, columns = np.array(sorted(drawn(plain, RED))).T
    assert set(columns.tolist()) == {15} or set(columns.tolist()) == {14}
    assert (rows.min(), rows.max()) in {(24, 99), (25, 100), (25, 99), (24, 100)}
    pointed = visualize.bev_panel(
        (-10, -6, 20, 6), lines, pixels_per_metre=5, thickness=1, arrows=True
    )
    rows, _ = np.array(sorted(drawn(pointed, RED) - drawn(plain, RED))).T
    assert rows.max() < 40  # the head is at the far end, up in the picture
    assert not drawn(pointed, BLUE)


def test_bev_panel_cells():
    cells = np.zeros((6, 4, 3), np.uint8)
    cells[5, 3] = RED  # farthest ahead, farthest left
    panel = visualize.bev_panel((0, 0, 6, 4), cells=cells, pixels_per_metre=10)
    assert panel.shape == (60, 40, 3)
    assert drawn(panel, RED) >= {(r, c) for r in range(2, 9) for c in range(2, 9)}
    assert all(r < 10 and c < 10 for r, c in drawn(panel, RED))


def test_side_by_side():
    left, right = np.full((40, 30, 3), 50, np.uint8), np.full((80, 100, 3), 90, np.uint8)
    row = visualize.side_by_side(left, right, gap=6)
    assert row.shape == (40, 30 + 6 + 50, 3)
    assert (row[20, 10] == 50).all() and (row[20, 60] == 90).all()


def test_a_picture_is_written_whole(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    path = visualize.write_image(tmp_path / "new" / "a.png", image)
    assert np.array_equal(cv2.imread(str(path)), image)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_pictures_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"a.png cannot be written"):
        visualize.write_image(tmp_path / "file" / "a.png", black())
    with pytest.raises(ValueError, match=r"no image format ends in '.txt'"):
        visualize.write_image(tmp_path / "a.txt", black())
    with pytest.raises(ValueError, match="no image format ends in ''"):
        visualize.write_image(tmp_path / "a", black())
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_is_no_picture_is_refused():
    with pytest.raises(ValueError, match=r"\(H, W, 3\) of uint8, got \(4, 4\)"):
        visualize.draw_polyline(np.zeros((4, 4), np.uint8), [], np.eye(4), RED)
    with pytest.raises(ValueError, match="float64"):
        visualize.side_by_side(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="not contiguous"):
        visualize.draw_polyline(black()[:, ::-1], [], np.eye(4), RED)
    with pytest.raises(ValueError, match="at least one image"):
        visualize.camera_mosaic({})
    with pytest.raises(ValueError, match="bounds are"):
        visualize.bev_panel((0, 0, 0, 1))
