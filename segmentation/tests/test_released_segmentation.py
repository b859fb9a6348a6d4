"""The table of released segmentors: its rows fit their configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import internimage
import mmseg_custom  # noqa: F401  registers the models
import pytest
from internimage import fetch
from internimage.released import UnknownModelError, list_models, model_arguments, released_model
from mmcv import Config

FOLDER = Path(__file__).resolve().parents[1]
NAMES = list_models(task="segmentation")
T = "upernet_internimage_t_512_160k_ade20k"
HEADS = {"UPerHead": "UPerNet", "SegformerHead": "SegFormer", "Mask2FormerHead": "Mask2Former"}


def classes(cfg: Any) -> int:
    """Width of the released head."""
    if "released_head" in cfg:
        return cfg.released_head.num_classes
    head = cfg.model.decode_head
    return head.get("num_classes") or head.num_things_classes + head.num_stuff_classes


def test_released_segmentors_are_all_listed():
    assert len(NAMES) == 26
    assert list_models(task="segmentation", pretrained=True) == NAMES
    assert released_model(T).metrics == {"miou": 47.9, "miou_ms": 48.1}
    assert released_model(T).params == 59_077_148
    assert not set(NAMES) & set(internimage.list_models())
    with pytest.raises(UnknownModelError, match="segmentation model"):
        model_arguments(T)


@pytest.mark.parametrize("name", NAMES)
def test_released_segmentor_fits_its_configuration(name):
    row = released_model(name)
    cfg = Config.fromfile(FOLDER / row.config)
    backbone = cfg.model.backbone
    assert row.arguments == {"channels": backbone.channels, "depths": list(backbone.depths)}
    assert row.num_classes == classes(cfg)
    assert row.title.startswith(HEADS[cfg.model.decode_head.type])
    assert row.hub_file == f"{name}.pth"
    pretrained = (backbone.get("init_cfg") or {}).get("checkpoint")
    if pretrained and row.pretraining in ("IN-1K", "IN-22K"):
        assert fetch.released(pretrained).task == "classification"
    if row.pretraining in ("Mapillary", "COCO-Stuff-164K"):
        assert fetch.released(cfg.load_from).dataset == row.pretraining
