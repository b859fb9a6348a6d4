"""The table of released detectors: its rows fit their configurations, downloads are verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import internimage
import mmdet_custom  # noqa: F401  registers the models
import pytest
import timm
import torch
from huggingface_hub import constants
from internimage import fetch, hub
from internimage.released import UnknownModelError, list_models, model_arguments, released_model
from internimage.safe_load import CheckpointError
from mmcv import Config

FOLDER = Path(__file__).parents[1]
NAMES = list_models(task="detection")
T = "mask_rcnn_internimage_t_fpn_1x_coco"
CB = "dino_4scale_cbinternimage_h_objects365_coco"


def classes(model: Any) -> int:
    """Number of classes of a detector's configuration."""
    if "bbox_head" in model:
        return model.bbox_head.num_classes
    head = model.roi_head.bbox_head
    return head[0].num_classes if isinstance(head, list) else head.num_classes


def test_released_detectors_are_all_listed():
    assert len(NAMES) == 18
    assert list_models(task="detection", pretrained=True) == NAMES
    assert released_model(T).metrics == {"box_ap": 47.2, "mask_ap": 42.5}
    assert released_model(CB).metrics == {"box_ap": 64.5, "box_ap_tta": 65.0}


@pytest.mark.parametrize("name", NAMES)
def test_released_detector_fits_its_configuration(name):
    row = released_model(name)
    model = Config.fromfile(FOLDER / row.config).model
    backbone = model.backbone
    assert row.arguments == {"channels": backbone.channels, "depths": list(backbone.depths)}
    assert row.num_classes == classes(model)
    assert row.title.endswith(", 3x") == ("_3x_" in row.config)
    if pretrained := (backbone.get("init_cfg") or {}).get("checkpoint"):
        assert fetch.released(pretrained).task == "classification"
    else:
        assert row.pretraining == "Objects365"
    kind = "DINO" if "DINO" in model.type else model.type.removesuffix("RCNN")
    assert row.title.startswith(
        {"Mask": "Mask R-CNN", "Cascade": "Cascade Mask R-CNN"}.get(kind, kind)
    )


def test_released_detectors_are_no_classifiers():
    assert not set(NAMES) & set(internimage.list_models())
    assert not set(NAMES) & set(timm.list_models())
    with pytest.raises(UnknownModelError, match="detection model: it is built in detection/ from"):
        model_arguments(T)
    with pytest.raises(CheckpointError, match=f"Did you mean {T!r}"):
        fetch.fetch(T.replace("coco", "cocoo"))


def weights(
    channels: int = 64,
    depths: tuple[int, ...] = (4, 4, 18, 4),
    prefix: str = "",
    op: str = "offset",
) -> dict[str, torch.Tensor]:
    """A few weights of a trunk."""
    state = {"patch_embed.conv2.weight": torch.zeros(channels, 2, 3, 3)}
    for level, depth in enumerate(depths):
        for block in range(depth):
            state[f"levels.{level}.blocks.{block}.dcn.{op}.weight"] = torch.zeros(2, 2)
    return {f"backbone.{prefix}{key}": value for key, value in state.items()}


RCNN_HEAD = {"roi_head.bbox_head.fc_cls.weight": torch.zeros(81, 4)}
DINO_HEAD = {f"bbox_head.cls_branches.{i}.weight": torch.zeros(80, 4) for i in range(7)}
CB_TRUNK = {"channels": 320, "depths": (6, 6, 32, 6), "prefix": "cb_modules.0."}


@pytest.fixture
def put(monkeypatch, tmp_path):
    """Writes a state dict to where a file for a released model is put by hand."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))

    def write(name: str, state: dict[str, torch.Tensor]) -> Path:
        path = hub.path_by_hand(released_model(name), tmp_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"meta": {"epoch": 12, "CLASSES": ("a", "b")}, "state_dict": state}, path)
        return path

    return write


@pytest.mark.parametrize(
    ("name", "state"),
    [
        (T, weights() | RCNN_HEAD),
        (CB, weights(**CB_TRUNK) | DINO_HEAD),
        (
            "cascade_internimage_l_fpn_3x_coco",
            weights(160, (5, 5, 22, 5))
            | {f"roi_head.bbox_head.{i}.fc_cls.weight": torch.zeros(81, 4) for i in range(3)},
        ),
    ],
    ids=["mask_rcnn", "cb_dino", "cascade"],
)
def test_released_detector_put_by_hand_is_taken(name, state, put, tmp_path):
    path = put(name, state)
    assert hub.checkpoint_path(name, cache_dir=tmp_path) == path


@pytest.mark.parametrize(
    ("name", "state", "found"),
    [
        (T, weights(80) | RCNN_HEAD, r"channels 80, .*, but mask_rcnn_.* has channels 64"),
        (T, weights(depths=(4, 4, 21, 4)) | RCNN_HEAD, r"depths \[4, 4, 21, 4\]"),
        (T, weights(op="offset_mask") | RCNN_HEAD, "DCNv4, 80 classes"),
        (T, weights(), "DCNv3, no head, but"),
        (T, weights() | {"head.weight": torch.zeros(1000, 4)}, "no head, but"),
        (
            "dino_4scale_cbinternimage_h_objects365_lvis",
            weights(**CB_TRUNK) | DINO_HEAD,
            "80 classes, but .* 1203 classes",
        ),
        (T, {"backbone.conv1.weight": torch.zeros(2, 2)}, "no InternImage weights"),
    ],
    ids=["width", "depth", "operator", "backbone", "classifier", "classes", "resnet"],
)
def test_released_detector_of_another_model_is_refused(name, state, found, put, tmp_path):
    put(name, state)
    with pytest.raises(CheckpointError, match=found):
        hub.checkpoint_path(name, cache_dir=tmp_path)
