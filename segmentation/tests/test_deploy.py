"""deploy.py: exported segmentors give PyTorch's labels; what it says to bad input."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import recipe
import runs
import segmentors
import torch
from conftest import Trained
from internimage.onnx_export import ExportError
from internimage.safe_load import CheckpointError
from mmcv import Config
from mmcv_custom import deploying
from mmcv_custom.runtime import ConfigError
from mmseg.models import build_segmentor
from mmseg_custom import exported

DEPLOY = runs.program("deploy")
CONFIGS = runs.FOLDER / "deploy/configs"
DYNAMIC = CONFIGS / "mmseg/segmentation_onnxruntime_dynamic.py"
STATIC = CONFIGS / "mmseg/segmentation_onnxruntime_static-512x512.py"
TENSORRT = CONFIGS / "mmseg/segmentation_tensorrt_static-512x512.py"

needs_mmdeploy = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mmdeploy", "onnxruntime")),
    reason="mmdeploy or onnxruntime is not installed (requirements/deploy.txt)",
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A square image, a flat and a tall one."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(5)
    paths = []
    for height, width in ((64, 64), (40, 70), (90, 50)):
        pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        pixels[8:28, 12:32] = 120
        pixels[height // 2 :, width // 2 :] = 200
        paths.append(folder / f"{height}x{width}.png")
        cv2.imwrite(str(paths[-1]), pixels)
    return paths


def deploy(*words: object) -> int:
    """deploy.py in this process; errors are raised."""
    return DEPLOY.run(DEPLOY.parse_args(["--log-level", "ERROR", *map(str, words)]))


def test_comparison():
    labels = np.arange(10_000).reshape(100, 100) % 7
    other = labels.copy()
    other[0, :10] += 1
    assert exported.compare(labels, other) == ("same: 99.9000% of 100x100 labels agree", True)
    other[0, :11] += 1
    text, agrees = exported.compare(labels, other)
    assert text.startswith("DIFFERENT: 99.8900%") and not agrees


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("mmseg/*_*_*.py")), ids=lambda path: path.stem)
def test_deploy_configs(path):
    cfg = deploying.load_deploy_config(str(path), "mmseg")
    kind, sizes = path.stem.split("_")[1:]
    assert cfg.backend_config.type == kind
    assert bool(cfg.onnx_config.get("dynamic_axes")) is sizes.startswith("dynamic")
    if sizes.startswith("static"):
        height, width = map(int, sizes.removeprefix("static-").split("x"))
        assert deploying.input_shape(cfg) == (width, height)
        if kind == "tensorrt":
            shapes = cfg.backend_config.model_inputs[0].input_shapes.input
            assert set(map(tuple, shapes.values())) == {(1, 3, height, width)}


def test_sliding_windows_become_one(tmp_path, caplog):
    path = tmp_path / "slide.py"
    path.write_text(
        "model = dict(type='x', test_cfg=dict(mode='slide', crop_size=(8, 9), stride=(4, 4)))\n"
        "data = dict(test=dict())"
    )
    assert DEPLOY.read_config(str(path)).model.test_cfg == {"mode": "whole"}


def test_a_static_file_fixes_the_test_pipeline(trained: Trained):
    cfg = Config.fromfile(trained.config)
    deploying.use_input_shape(cfg, str(DYNAMIC), "mmseg")
    step = cfg.data.test.pipeline[1]
    assert (step.img_scale, step.transforms[0].keep_ratio) == ((64, 64), True)
    deploying.use_input_shape(cfg, str(STATIC), "mmseg")
    assert (step.img_scale, step.transforms[0].keep_ratio) == ((512, 512), False)


def test_bad_input(trained: Trained, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(runs.FOLDER)
    words = (trained.config, trained.checkpoint, photos[0], "--work-dir", tmp_path / "out")
    with pytest.raises(ConfigError, match="Did you mean .*segmentation_onnxruntime_dynamic"):
        deploy("segmentation_onnxruntime_dynamc.py", *words)
    other = runs.FOLDER.parent / "detection/deploy/configs/mmdet/detection"
    with pytest.raises(ConfigError, match="is for mmdet, this is mmseg"):
        deploy(other / "detection_onnxruntime_dynamic.py", *words)
    with pytest.raises(ConfigError, match="no such image"):
        deploy(DYNAMIC, *words[:2], "no.png", *words[3:])
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def upernet(trained: Trained, photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an exported UPerNet."""
    out = tmp_path_factory.mktemp("exported") / "out"
    words = (DYNAMIC, trained.config, trained.checkpoint, photos[0], "--test-img", *photos)
    assert deploy(*words, "--work-dir", out, "--dump-info") == 0
    return out


@needs_mmdeploy
def test_upernet(trained: Trained, upernet, tmp_path):
    kinds = [f"output_{kind}_{i}.jpg" for kind in ("onnxruntime", "pytorch") for i in range(3)]
    names = ["deploy.json", "detail.json", "end2end.onnx", *kinds, "pipeline.json"]
    assert sorted(path.name for path in upernet.iterdir()) == names
    (described,) = json.loads((upernet / "deploy.json").read_text())["models"]
    assert (described["net"], described["backend"]) == ("end2end.onnx", "onnxruntime")
    metrics = []
    file = upernet / "end2end.onnx"
    for checkpoint, flags in ((trained.checkpoint, ()), (file, ("--deploy-cfg", DYNAMIC))):
        work = tmp_path / f"test{len(metrics)}"
        words = (trained.config, checkpoint, "--eval", "mIoU", "--work-dir", work)
        assert runs.test(*words, *flags) == 0
        (path,) = work.glob("eval_*.json")
        metrics.append(json.loads(path.read_text())["metric"])
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-3, nan_ok=True)


@needs_mmdeploy
def test_tensorrt_file_and_refusals(trained: Trained, photos, tmp_path):
    import onnx

    config = tmp_path / "small.py"
    size = "onnx_config = dict(input_shape=(96, 64))"
    config.write_text(f"_base_ = {str(TENSORRT)!r}\n{size}")
    out, rest = tmp_path / "out", (photos[0], "--work-dir")
    if not torch.cuda.is_available():
        with pytest.raises(ExportError, match="--onnx-only writes the ONNX file"):
            deploy(config, trained.config, trained.checkpoint, *rest, out)
    assert deploy(config, trained.config, trained.checkpoint, *rest, out, "--onnx-only") == 0
    model = onnx.load(out / "end2end.onnx")
    assert {node.op_type for node in model.graph.node if node.domain} == {"TRTDCNv3"}
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_value for axis in shape] == [1, 3, 64, 96]
    with pytest.raises(CheckpointError, match=r"none\.pth"):
        deploy(config, trained.config, "none.pth", *rest, tmp_path / "refused", "--onnx-only")
    assert list((tmp_path / "refused").iterdir()) == []
    (tmp_path / "blocked").write_text("a file")
    with pytest.raises(ConfigError, match="--work-dir .*blocked cannot be written"):
        deploy(DYNAMIC, trained.config, trained.checkpoint, *rest, tmp_path / "blocked")


@needs_mmdeploy
@pytest.mark.parametrize("name", ["segformer", "mask2former"])
def test_other_heads(name, trained: Trained, photos, tmp_path):
    cfg = Config.fromfile(trained.config)
    cfg.model = segmentors.config(name)
    cfg.dump(str(tmp_path / "config.py"))
    model = build_segmentor(Config.fromfile(tmp_path / "config.py").model)
    recipe.fill(model)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "filled.pth")
    words = (DYNAMIC, tmp_path / "config.py", tmp_path / "filled.pth", photos[0])
    assert deploy(*words, "--test-img", *photos, "--work-dir", tmp_path / "out") == 0
