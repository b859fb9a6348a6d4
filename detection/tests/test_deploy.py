"""deploy.py: exported detectors give PyTorch's detections; what it says to bad input."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import runs
import torch
from conftest import Trained
from internimage.onnx_export import ExportError
from internimage.safe_load import CheckpointError
from mmcv import Config
from mmcv_custom import deploying
from mmcv_custom.runtime import ConfigError
from mmdet.models import build_detector
from mmdet_custom import exported

DEPLOY = runs.program("deploy")
CONFIGS = runs.DETECTION / "deploy/configs"
MASKS = CONFIGS / "mmdet/instance-seg/instance-seg_onnxruntime_dynamic.py"
BOXES = CONFIGS / "mmdet/detection/detection_onnxruntime_dynamic.py"
TENSORRT = CONFIGS / "mmdet/instance-seg/instance-seg_tensorrt_dynamic-320x320-1344x1344.py"

needs_mmdeploy = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mmdeploy", "onnxruntime")),
    reason="mmdeploy or onnxruntime is not installed (requirements/deploy.txt)",
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A square image, and a flat and a tall one, which the pipeline pads."""
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
    runs.forget_loggers()
    return DEPLOY.run(DEPLOY.parse_args(list(map(str, words))))


def result(rows: list[list[float]], masks: list[np.ndarray] | None = None) -> object:
    """mmdet's result with one class."""
    boxes = [np.array(rows, np.float32).reshape(-1, 5)]
    return boxes if masks is None else (boxes, [masks])


BOX = [10.0, 10.0, 50.0, 40.0, 0.9]
MASK = np.pad(np.ones((20, 30), bool), 5)


@pytest.mark.parametrize(
    ("one", "other", "agrees"),
    [
        (result([BOX]), result([BOX]), True),
        (result([]), result([]), True),
        (result([BOX]), result([[10, 10, 50, 40.05, 0.899]]), True),
        (result([BOX]), result([]), False),
        (result([]), result([BOX]), False),
        (result([BOX]), result([[10, 10, 50, 44, 0.9]]), False),
        (result([BOX]), result([[10, 10, 50, 40, 0.85]]), False),
        (result([[*BOX[:4], 0.301]]), result([[*BOX[:4], 0.299]]), True),
        (result([[*BOX[:4], 0.2]]), result([]), True),
        (result([BOX], [MASK]), result([BOX], [torch.from_numpy(MASK)]), True),
        (result([BOX], [MASK]), result([BOX], [np.roll(MASK, 1)]), False),
        (result([BOX]) + result([]), result([]) + result([BOX]), False),
    ],
)
def test_comparison(one, other, agrees):
    text, same = exported.compare(one, other)
    assert same is agrees
    assert ("DIFFERENT" in text) is not agrees


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("mmdet/*/[di]*.py")), ids=lambda path: path.stem
)
def test_deploy_configs(path):
    cfg = deploying.load_deploy_config(str(path), "mmdet")
    masks = path.stem.startswith("instance-seg")
    assert cfg.onnx_config.output_names == ["dets", "labels", *(["masks"] if masks else [])]
    assert bool(cfg.onnx_config.get("dynamic_axes")) is ("dynamic" in path.stem)
    assert cfg.backend_config.type == path.stem.split("_")[1]
    if "tensorrt" in path.stem:
        shapes = cfg.backend_config.model_inputs[0].input_shapes.input
        assert shapes.min_shape[2:] == [320, 320] and shapes.max_shape[2:] == [1344, 1344]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "has no onnx_config"),
        ("codebase_config = dict(type='mmseg')", "is for mmseg, this is mmdet"),
        ("backend_config = dict(type='ncnn')", "backend 'ncnn' is none of onnxruntime, tensorrt"),
        ("onnx_config = dict(opset_version=11)", "opset 11 cannot be written, choose 16 to"),
        ("onnx_config = dict(opset_version=99)", "opset 99 cannot be written"),
    ],
)
def test_unusable_deploy_config(text, message, tmp_path):
    path = tmp_path / "deploy.py"
    path.write_text(text if text == "x = 1" else f"_base_ = {str(MASKS)!r}\n{text}")
    with pytest.raises(ConfigError, match=message):
        deploying.load_deploy_config(str(path), "mmdet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: "deploy/configs/mmdet/instance-seg_onnxruntime_dynamc.py"}, "Did you mean .*_dynamic"),
        ({1: "configs/coco/mask_rcn_internimage_t_fpn_1x_coco.py"}, "does not exist.*Did you mean"),
        ({3: "no.png"}, "no.png: no such image"),
        ({3: __file__}, "not an image that can be read"),
        ({4: "--device=tpu"}, "--device takes cpu, cuda or cuda:N, got 'tpu'"),
        ({4: "--device=cuda:64"}, "--device cuda:64: .* GPUs are visible"),
        ({4: "--quant"}, "--quant is for ncnn"),
        ({4: "--uri=1.2.3.4:5"}, "--uri is for SNPE devices"),
        ({4: "--calib-dataset-cfg=x"}, "--calib-dataset-cfg is for int8 engines"),
    ],
)
def test_bad_input_ends_before_anything_is_loaded(change, message, photos, monkeypatch, tmp_path):
    monkeypatch.chdir(runs.DETECTION)
    config = "configs/toy/mask_rcnn_internimage_nano_toy.py"
    words = [MASKS, config, "none.pth", photos[0], "--device=cpu", "--work-dir", tmp_path / "out"]
    for place, word in change.items():
        words[place] = word
    with pytest.raises(ConfigError, match=message):
        deploy(*words)
    assert not (tmp_path / "out").exists()


def test_without_mmdeploy(trained: Trained, photos, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "mmcv_custom.mmdeploy_shim", None)
    words = [MASKS, trained.config, trained.checkpoint, photos[0], "--work-dir", tmp_path / "out"]
    with pytest.raises(ExportError, match=r"mmdeploy cannot be used .*requirements/deploy\.txt"):
        deploy(*words)
    with pytest.raises(ExportError, match="mmdeploy cannot be used"):
        runs.test(trained.config, "x.onnx", "--deploy-cfg", MASKS, "--eval", "bbox")
    assert not (tmp_path / "out").exists()


def test_files_appear_together_or_not_at_all(tmp_path):
    (tmp_path / "end2end.onnx").write_text("old")
    with pytest.raises(RuntimeError), deploying.staged(str(tmp_path)) as folder:
        (folder / "end2end.onnx").write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["end2end.onnx"]
    assert (tmp_path / "end2end.onnx").read_text() == "old"
    with deploying.staged(str(tmp_path)) as folder:
        (folder / "end2end.onnx").write_text("new")
        (folder / "deploy.json").write_text("{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deploy.json", "end2end.onnx"]
    assert (tmp_path / "end2end.onnx").read_text() == "new"


def nodes(path: Path) -> list[str]:
    """Names of the nodes that are not standard, with those in functions."""
    import onnx

    model = onnx.load(path)
    assert [function.name for function in model.functions] == ["TRTDCNv3"]
    return sorted({node.op_type for node in model.graph.node if node.domain})


@pytest.fixture(scope="module")
def mask_rcnn(
    trained: Trained, photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of an exported Mask R-CNN."""
    out = tmp_path_factory.mktemp("exported") / "out"
    words = (MASKS, trained.config, trained.checkpoint, photos[0], "--work-dir", out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exported, "SCORE", 0.05)  # two epochs make nobody sure
        assert deploy(*words, "--test-img", *photos, "--dump-info", "--log-level", "ERROR") == 0
    return out


@needs_mmdeploy
def test_mask_rcnn(mask_rcnn):
    kinds = [f"output_{kind}_{i}.jpg" for kind in ("onnxruntime", "pytorch") for i in range(3)]
    names = ["deploy.json", "detail.json", "end2end.onnx", *kinds, "pipeline.json"]
    assert sorted(path.name for path in mask_rcnn.iterdir()) == names
    (described,) = json.loads((mask_rcnn / "deploy.json").read_text())["models"]
    assert (described["net"], described["backend"]) == ("end2end.onnx", "onnxruntime")
    assert nodes(mask_rcnn / "end2end.onnx") == ["TRTDCNv3"]


@needs_mmdeploy
def test_evaluation_of_a_file(trained: Trained, mask_rcnn, tmp_path):
    file = mask_rcnn / "end2end.onnx"
    metrics = []
    for checkpoint, flags in ((trained.checkpoint, ()), (file, ("--deploy-cfg", MASKS))):
        work = tmp_path / f"test{len(metrics)}"
        words = (trained.config, checkpoint, "--eval", "bbox", "segm", "--work-dir", work)
        assert runs.test(*words, *flags) == 0
        (path,) = work.glob("eval_*.json")
        metrics.append(json.loads(path.read_text())["metric"])
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-3)
    with pytest.raises(ConfigError, match="one process, without launcher"):
        args = SimpleNamespace(deploy_cfg=str(MASKS), launcher="pytorch")
        deploying.load_for_test(args, Config(), "mmdet", [])
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"broken\.onnx cannot be loaded"):
        runs.test(trained.config, broken, "--deploy-cfg", MASKS, "--eval", "bbox")


@needs_mmdeploy
def test_tensorrt_file_and_refusals(trained: Trained, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    words = (trained.config, trained.checkpoint, photos[0], "--log-level", "ERROR", "--work-dir")
    if not torch.cuda.is_available():
        with pytest.raises(ExportError, match="--onnx-only writes the ONNX file"):
            deploy(TENSORRT, *words, out)
    assert deploy(TENSORRT, *words, out, "--onnx-only") == 0
    assert "TRTDCNv3" in nodes(out / "end2end.onnx")
    assert not (out / "output_tensorrt.jpg").exists()

    refused = tmp_path / "refused"
    with pytest.raises(CheckpointError, match=r"none\.pth"):
        deploy(MASKS, trained.config, "none.pth", photos[0], "--work-dir", refused)
    other = replace(DEPLOY.TASK, compare=lambda *_: ("DIFFERENT", False))
    monkeypatch.setattr(DEPLOY, "TASK", other)
    with pytest.raises(ExportError, match="nothing was written: the file gives other results"):
        deploy(MASKS, *words, refused)
    assert list(refused.iterdir()) == []
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    with pytest.raises(ConfigError, match="--work-dir .*blocked cannot be written"):
        deploy(MASKS, *words, blocked)


def save(cfg: Config, folder: Path) -> Path:
    """A checkpoint with drawn weights."""
    torch.manual_seed(0)
    model = build_detector(cfg.model)
    model.init_weights()
    for name, value in model.named_parameters():
        if "offset" in name or "mask" in name or "reg" in name or "cls" in name:
            torch.nn.init.normal_(value, std=0.05)
    path = folder / "drawn.pth"
    torch.save({"state_dict": model.state_dict(), "meta": {"CLASSES": ["a"] * 5}}, path)
    return path


@needs_mmdeploy
@pytest.mark.parametrize("name", ["dino", "cb_dino"])
def test_dino(name, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(exported, "SCORE", 0.4)
    config = runs.DETECTION / f"configs/toy/{name}_internimage_nano_toy.py"
    checkpoint = save(Config.fromfile(config), tmp_path)
    words = (BOXES, config, checkpoint, photos[0], "--test-img", *photos, "--log-level", "ERROR")
    assert deploy(*words, "--work-dir", tmp_path / "out") == 0
    assert nodes(tmp_path / "out/end2end.onnx") == ["TRTDCNv3"]


@needs_mmdeploy
def test_cascade(trained: Trained, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(exported, "SCORE", 0.05)
    cfg = Config.fromfile(trained.config)
    head = dict(cfg.model.roi_head.bbox_head)
    cfg.model.type = "CascadeRCNN"
    cfg.model.train_cfg = None
    cfg.model.roi_head.update(
        type="CascadeRoIHead",
        num_stages=2,
        stage_loss_weights=[1, 1],
        bbox_head=[head, head],
    )
    path = tmp_path / "cascade.py"
    cfg.dump(str(path))
    words = (MASKS, path, save(cfg, tmp_path), photos[0], "--test-img", *photos)
    assert deploy(*words, "--log-level", "ERROR", "--work-dir", tmp_path / "out") == 0
