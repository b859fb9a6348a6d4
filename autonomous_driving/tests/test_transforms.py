"""Pipeline steps on several cameras: sizes, projections, padding, tensors, broken images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ad_common  # noqa: F401 - registers
import cv2
import numpy as np
import pytest
import torch
from ad_common.datasets.errors import DatasetError
from ad_common.datasets.formatting import join_queue
from ad_common.geometry import project
from mmcv.parallel import collate
from mmdet.datasets.builder import PIPELINES
from mmdet.datasets.pipelines import Compose

NORM = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "to_rgb": True}
INTRINSIC = np.array([[100.0, 0, 80, 0], [0, 110, 45, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
POINT = np.array([[0.305, 0.15, 1.0]])  # at (110.5, 61.5), the centre of pixel (110, 61)


def step(kind: str, **settings: Any) -> Any:
    return PIPELINES.build({"type": kind, **settings})


def frame(height: int = 90, width: int = 160) -> dict[str, Any]:
    """Two cameras; the first sees a bright disc where POINT projects to."""
    image = np.zeros((height, width, 3), np.float32)
    cv2.circle(image, (110, 61), 6, (50.0, 100.0, 250.0), -1)
    other = np.full((height, width, 3), 7.0, np.float32)
    shapes = [image.shape, other.shape]
    return {
        "img": [image, other],
        "lidar2img": [INTRINSIC.copy(), INTRINSIC.copy()],
        "cam_intrinsic": [INTRINSIC[:3, :3].copy(), INTRINSIC[:3, :3].copy()],
        "img_shape": shapes,
        "ori_shape": shapes,
        "pad_shape": shapes,
        "token": "frame-7",
        "camera_names": ("FRONT", "BACK"),
    }


def centre(image: np.ndarray) -> np.ndarray:
    """(u, v) of the disc."""
    v, u = np.nonzero(image[..., 2] > 125)
    return np.array([u.mean() + 0.5, v.mean() + 0.5])


@pytest.mark.parametrize(
    ("kind", "settings", "shape"),
    [
        ("ResizeMultiViewImages", {"size": (45, 100)}, (45, 100, 3)),
        ("ResizeMultiViewImages", {"scale": 2.0}, (180, 320, 3)),
        ("RandomScaleImageMultiViewImage", {"scales": [0.5]}, (45, 80, 3)),
    ],
)
def test_resizing_keeps_projections_on_their_pixels(
    kind: str, settings: dict[str, Any], shape: tuple[int, ...]
) -> None:
    before = frame()
    matrix = before["lidar2img"][0]
    results = step(kind, **settings)(dict(before))
    assert results["img"][0].shape == results["img_shape"][0] == results["pad_shape"][0] == shape
    uv, _ = project(POINT, results["lidar2img"][0])
    np.testing.assert_allclose(uv[0], centre(results["img"][0]), atol=0.6)
    x, y = shape[1] / 160, shape[0] / 90
    np.testing.assert_allclose(uv[0], [110.5 * x, 61.5 * y])
    np.testing.assert_allclose(results["cam_intrinsic"][1][0, 2], 80 * x)
    np.testing.assert_allclose(results["scale_factor"][0], [x, y, x, y], rtol=1e-6)
    assert results["lidar2img"][0].dtype == np.float64
    assert results["ori_shape"][0] == (90, 160, 3)
    np.testing.assert_array_equal(matrix, INTRINSIC)  # what the data set gave is left alone


def test_resizing_twice_multiplies_the_scale_factor() -> None:
    results = frame()
    for _ in range(2):
        results = step("ResizeMultiViewImages", scale=0.5)(results)
    assert results["scale_factor"][1].tolist() == pytest.approx([0.25, 22 / 90, 0.25, 22 / 90])


def test_resizing_without_the_projection() -> None:
    results = step("ResizeMultiViewImages", size=(45, 80), change_intrinsics=False)(frame())
    np.testing.assert_array_equal(results["lidar2img"][0], INTRINSIC)


def test_random_scales_are_those_of_the_list() -> None:
    scale = step("RandomScaleImageMultiViewImage", scales=[0.5, 1.0])
    heights = {scale(frame())["img"][0].shape[0] for _ in range(30)}
    assert heights == {45, 90}


@pytest.mark.parametrize("kind", ["PadMultiViewImage", "CustomPadMultiViewImage"])
def test_padding_changes_nothing_in_the_projection(kind: str) -> None:
    before = frame()
    results = step(kind, size_divisor=64)(dict(before))
    assert results["pad_shape"] == [(128, 192, 3)] * 2
    assert results["img_shape"] == [(90, 160, 3)] * 2
    np.testing.assert_array_equal(results["img"][0][:90, :160], before["img"][0])
    assert not results["img"][1][90:].any() and not results["img"][1][:, 160:].any()
    np.testing.assert_array_equal(results["lidar2img"][0], INTRINSIC)


def test_padding_to_a_size_with_a_value() -> None:
    results = step("PadMultiViewImages", size=(96, 160), pad_val=3)(frame())
    assert results["img"][0].shape == (96, 160, 3)
    assert (results["img"][0][90:] == 3).all()
    with pytest.raises(ValueError, match="90x160 .height x width. cannot be padded to 64x160"):
        step("PadMultiViewImages", size=(64, 160))(frame())


def test_the_legacy_padding_stretches_the_projection() -> None:
    results = step("PadMultiViewImages", size=(96, 200), change_intrinsics=True)(frame())
    uv, _ = project(POINT, results["lidar2img"][0])
    np.testing.assert_allclose(uv[0], [110.5 * 200 / 160, 61.5 * 96 / 90])
    assert np.abs(uv[0] - centre(results["img"][0])).max() > 20  # off the disc


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("PadMultiViewImage", {}),
        ("PadMultiViewImage", {"size": (9, 9), "size_divisor": 32}),
        ("ResizeMultiViewImages", {}),
        ("RandomScaleImageMultiViewImage", {"scales": []}),
        ("MultiScaleFlipAug3D", {"transforms": [], "flip": True}),
        ("MultiScaleFlipAug3D", {"transforms": [], "pts_scale_ratio": [1, 2]}),
    ],
)
def test_settings_without_a_meaning(kind: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        step(kind, **settings)


@pytest.mark.parametrize("kind", ["NormalizeMultiviewImage", "Normalize3D"])
def test_normalisation(kind: str) -> None:
    results = step(kind, **NORM)(frame())
    image = results["img"][0]
    assert image.dtype == np.float32
    red = (250 - NORM["mean"][0]) / NORM["std"][0]  # stored as BGR
    blue = (50 - NORM["mean"][2]) / NORM["std"][2]
    np.testing.assert_allclose(image[61, 110, [0, 2]], [red, blue], rtol=1e-5)
    assert results["img_norm_cfg"]["to_rgb"] is True


def test_photometric_distortion_draws_for_every_camera() -> None:
    distort = step("PhotoMetricDistortionMultiViewImage")
    np.random.seed(4)
    same = 0
    for _ in range(20):
        before = frame()
        before["img"][1] = before["img"][0].copy()
        first, second = distort(dict(before))["img"]
        assert first.dtype == np.float32 and first.shape == (90, 160, 3)
        same += np.array_equal(first, second)
    assert same < 10
    assert (before["img"][0] == frame()["img"][0]).all()  # the input is left alone


def write_images(folder: Path) -> list[str]:
    paths = []
    for index, (height, width) in enumerate([(30, 40), (40, 30)]):  # one in portrait
        paths.append(str(folder / f"{index}.png"))
        cv2.imwrite(paths[-1], np.full((height, width, 3), (10, 20, 30 + index), np.uint8))
    return paths


@pytest.mark.parametrize(
    "kind",
    [
        "LoadMultiViewImageFromFiles",
        "CustomLoadMultiViewImageFromFiles",
        "LoadMultiViewImagesFromFiles",
    ],
)
def test_loading_images_of_different_sizes(kind: str, tmp_path: Path) -> None:
    results = step(kind, to_float32=True)({"img_filename": write_images(tmp_path)})
    assert [image.shape for image in results["img"]] == [(30, 40, 3), (40, 30, 3)]
    assert results["img_shape"] == results["ori_shape"] == [(30, 40, 3), (40, 30, 3)]
    assert results["img"][1].dtype == np.float32
    assert results["img"][1][0, 0].tolist() == [10, 20, 31]
    assert step(kind, to_float32=False)(results)["img"][0].dtype == np.uint8


def test_grey_images_and_images_with_transparency_have_three_channels(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((4, 5), 9, np.uint8))
    cv2.imwrite(str(tmp_path / "alpha.png"), np.full((4, 5, 4), 9, np.uint8))
    names = [str(tmp_path / "grey.png"), str(tmp_path / "alpha.png")]
    results = step("LoadMultiViewImageFromFiles")({"img_filename": names})
    assert [image.shape for image in results["img"]] == [(4, 5, 3)] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the file does not exist"),
        (b"", "the file cannot be read as an image"),
        (b"text", "the file cannot be read as an image"),
    ],
)
def test_a_broken_image_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    paths = write_images(tmp_path)
    Path(paths[1]).unlink()
    if content is not None:
        Path(paths[1]).write_bytes(content)
    start = {"img_filename": paths, "token": "f7", "camera_names": ("FRONT", "BACK")}
    with pytest.raises(DatasetError) as error:
        step("LoadMultiViewImageFromFiles")(start)
    assert str(error.value) == f"image {paths[1]} of camera BACK, frame f7: {message}"


def formatted(token: str, height: int = 64) -> dict[str, Any]:
    """A frame as the last steps of a pipeline make it."""
    steps = [
        {"type": "LoadAnnotations3D", "with_bbox_3d": True},
        {"type": "DefaultFormatBundle3D", "class_names": ["car"]},
        {"type": "CustomCollect3D", "keys": ["img", "gt_numbers", "labels"]},
    ]
    start = {
        **frame(height, 96),
        "token": token,
        "gt_numbers": np.arange(3),
        "labels": np.ones((2, 2), np.uint8),
        "not_collected": 1,
    }
    return Compose(steps)(start)


def test_format_and_collect_make_a_batch() -> None:
    sample = formatted("a")
    assert sample["img"].data.shape == (2, 3, 64, 96)
    assert sample["img"].data.dtype == torch.float32
    assert sample["img_metas"].data["token"] == "a"
    assert "not_collected" not in {**sample, **sample["img_metas"].data}
    batch = collate([sample, formatted("b")], samples_per_gpu=2)
    assert batch["img"].data[0].shape == (2, 2, 3, 64, 96)
    assert [meta["token"] for meta in batch["img_metas"].data[0]] == ["a", "b"]
    assert batch["img_metas"].cpu_only
    assert [value.tolist() for value in batch["gt_numbers"].data[0]] == [[0, 1, 2]] * 2
    assert batch["labels"].shape == (2, 2, 2)


def test_test_pipelines_add_a_list_level() -> None:
    wrapped = step("MultiScaleFlipAug3D", transforms=[{"type": "ObjectNameFilter"}], flip=False)
    assert wrapped({"img": 1, "token": "a"}) == {"img": [1], "token": ["a"]}


def test_a_key_that_no_step_makes_is_named() -> None:
    with pytest.raises(DatasetError, match="frame frame-7: nothing called gt_occ.*there are"):
        step("CustomCollect3D", keys=["img", "gt_occ"])(frame())


def test_images_of_different_sizes_cannot_be_stacked() -> None:
    results = frame()
    results["img"][1] = results["img"][1][:80]
    with pytest.raises(DatasetError, match="frame frame-7: camera FRONT .*90x160.*camera BACK"):
        step("DefaultFormatBundle3D")(results)


def test_frames_become_a_queue() -> None:
    joined = join_queue([formatted("a"), formatted("b"), formatted("c")])
    assert joined["img"].data.shape == (3, 2, 3, 64, 96)
    assert [joined["img_metas"].data[i]["token"] for i in range(3)] == ["a", "b", "c"]
    assert joined["gt_numbers"].data.tolist() == [0, 1, 2]
    batch = collate([joined, joined], samples_per_gpu=2)
    assert batch["img"].data[0].shape == (2, 3, 2, 3, 64, 96)
    with pytest.raises(DatasetError, match="frames a, b follow each other"):
        join_queue([formatted("a"), formatted("b", height=32)])
