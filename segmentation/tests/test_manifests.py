"""Every config builds the state dict of the original: keys, shapes and their order.

The models are built on the meta device, at full size and without memory. For five configs no list
is stored; they are held against the list of a config that differs in known numbers only.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import mmseg_custom  # noqa: F401
import pytest
import recipe
import torch
from mmcv import Config
from mmseg.models import build_segmentor
from mmseg_custom.released_heads import prepare_config

FOLDER = Path(__file__).resolve().parents[1]
INDEX = recipe.load_json("manifests/index.json")
HEADS = ("decode_head", "auxiliary_head")
# classes of the data sets; the released UPerNet and SegFormer have 150 for the street scenes
CLASSES = {
    "ade20k": 150,
    "cityscapes": 19,
    "coco_stuff10k": 171,
    "coco_stuff164k": 171,
    "mapillary": 19,
    "nyu_depth_v2": 40,
    "pascal_context": 59,
}
UNLISTED = {
    "ade20k/upernet_internimage_b_512_160k_ade20k": 128,  # million parameters, as published
    "cityscapes/upernet_internimage_b_512x1024_160k_cityscapes": 128,
    "nyu_depth_v2/mask2former_internimage_h_480_40k_nyu": 1094,
    "cityscapes/segformer_internimage_xl_512x1024_160k_mapillary2cityscapes": None,
    "mapillary/segformer_internimage_xl_512x1024_80k_mapillary": None,
}

Keys = list[list]  # [[key, shape], ...]


@cache
def listed(name: str) -> Keys:
    """The stored list of the config ``name`` (a file name without suffix)."""
    entry = INDEX[name]
    keys = recipe.load_json(f"manifests/{INDEX[entry.get('alias_of', name)]['file']}")
    return [[key, shape] for key, shape, *_ in keys]


def built(path: str, as_released: bool = False) -> tuple[Keys, int]:
    """Keys with shapes, and the number of parameters, of the config configs/``path``.py.

    Args:
        path: data set and name.
        as_released: with the class count of the released head, by the configs' own switch.
    """
    config = Config.fromfile(FOLDER / "configs" / f"{path}.py")
    if as_released and "released_head" in config:
        config.released_head.mode = "keep"
        prepare_config(config)
    with torch.device("meta"):
        model = build_segmentor(config.model)
    keys = [[key, list(value.shape)] for key, value in model.state_dict().items()]
    return keys, sum(p.numel() for p in model.parameters())


def short(path: str) -> str:
    return path.removeprefix("configs/").removesuffix(".py")


def test_manifests_cover_every_config():
    # configs/<data set>/<model>.py; toy configs are this project's own
    found = {
        f"{path.parent.name}/{path.stem}"
        for path in (FOLDER / "configs").glob("*/*.py")
        if path.parent.name in CLASSES
    }
    assert found == {short(entry["config"]) for entry in INDEX.values()} | set(UNLISTED)
    assert len(found) == 28


@pytest.mark.parametrize("name", INDEX)
def test_manifest_of_a_config(name):
    path = short(INDEX[name]["config"])
    config = Config.fromfile(FOLDER / "configs" / f"{path}.py").model
    classes = CLASSES[path.partition("/")[0]]
    assert {config[head].num_classes for head in HEADS if head in config} == {classes}
    keys, parameters = built(path, as_released=True)
    assert keys == listed(name)
    assert parameters == INDEX[name]["params"]


@pytest.mark.parametrize("path", UNLISTED)
def test_manifest_of_a_config_without_a_list(path):
    classes = CLASSES[path.partition("/")[0]]
    keys, parameters = built(path)
    shapes = dict(keys)
    if "nyu" in path:
        expected = dict(listed("mask2former_internimage_h_480_40k_pascal_context_59"))
        for key in ("weight", "bias"):
            expected[f"decode_head.cls_embed.{key}"][0] = 41
        assert keys == [[key, shape] for key, shape in expected.items()]
    elif "upernet" in path:  # B has the keys of S, with other widths
        assert list(shapes) == [k for k, _ in listed("upernet_internimage_s_512_160k_ade20k")]
        assert shapes["decode_head.lateral_convs.0.conv.weight"] == [512, 112, 1, 1]
        assert shapes["auxiliary_head.conv_seg.weight"] == [classes, 256, 1, 1]
    else:  # XL: the backbone of UPerNet-XL and the head of SegFormer-L
        of_xl = listed("upernet_internimage_xl_640_160k_ade20k")
        of_l = listed("segformer_internimage_l_512x1024_160k_mapillary2cityscapes")
        backbone = [k for k in keys if k[0].startswith("backbone.")]
        assert backbone == [k for k in of_xl if k[0].startswith("backbone.")]
        assert list(shapes)[len(backbone) :] == [k for k, _ in of_l if k.startswith("decode_head.")]
        assert shapes["decode_head.convs.3.conv.weight"] == [256, 1536, 1, 1]
        assert shapes["decode_head.conv_seg.weight"] == [classes, 256, 1, 1]
    if UNLISTED[path]:
        assert round(parameters / 1e6) == UNLISTED[path]
