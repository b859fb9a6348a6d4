"""The learning rates that the configs give to every layer."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import mmseg_custom  # noqa: F401
import pytest
import torch
from mmcv import Config
from mmcv.runner import build_optimizer
from mmcv_custom.layer_decay_optimizer_constructor import LayerDecay
from mmseg.models import build_backbone, build_segmentor

FOLDER = Path(__file__).resolve().parents[1]
CONFIGS = FOLDER / "configs"
# groups of parameters that the original implementation made for three trunks:
# [name, learning rate over the base learning rate, weight decay], and the group of each parameter
TABLES = json.loads(gzip.decompress((FOLDER / "tests/data/layer_rates.json.gz").read_bytes()))


def rule_of(config):
    return LayerDecay.from_config(config.optimizer.paramwise_cfg)


CASES = [
    ("internimage_t", "ade20k/upernet_internimage_t_512_160k_ade20k.py"),
    ("internimage_l", "ade20k/upernet_internimage_l_640_160k_ade20k.py"),
    ("internimage_h", "ade20k/upernet_internimage_h_896_160k_ade20k.py"),
    ("internimage_h", "nyu_depth_v2/mask2former_internimage_h_480_40k_nyu.py"),
]


@pytest.mark.parametrize(("trunk", "name"), CASES)
def test_groups_of_the_trunk(trunk, name):
    table = TABLES[trunk]
    config = Config.fromfile(CONFIGS / name)
    rule = rule_of(config)
    settings = {key: value for key, value in config.model.backbone.items() if key != "init_cfg"}
    with torch.device("meta"):
        backbone = build_backbone(settings)
    parameters = {f"backbone.{key}": value for key, value in backbone.named_parameters()}
    assert set(parameters) == set(table["parameters"])
    for key, parameter in parameters.items():
        group, scale, weight_decay = table["groups"][table["parameters"][key]]
        decays = rule.has_weight_decay(key, parameter.ndim)
        assert group == f"layer_{rule.layer(key)}_{'decay' if decays else 'no_decay'}"
        assert (weight_decay > 0) == decays
        if rule.layer_decay_rate == table["layer_decay_rate"]:
            assert rule.factor(key)[0] == pytest.approx(scale, rel=1e-12)


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("[!_]*/*_internimage_*.py")), ids=lambda p: p.stem
)
def test_every_config_fits_its_trunk(path):
    config = Config.fromfile(path)
    rule = rule_of(config)
    depths = config.model.backbone.depths
    assert list(rule.depths) == list(depths)
    last = f"backbone.levels.3.blocks.{depths[3] - 1}.mlp.fc1.weight"
    stem = rule.factor("backbone.patch_embed.conv1.weight")[0]
    assert stem == pytest.approx(rule.layer_decay_rate ** (sum(depths) + 1))
    assert rule.factor(last)[0] == pytest.approx(rule.layer_decay_rate)
    assert rule.factor("decode_head.conv_seg.weight")[0] == 1
    with pytest.raises(ValueError, match="depths"):
        rule.layer(last.replace(f".{depths[3] - 1}.", f".{depths[3]}."))


def test_mask2formers_embeddings_train_with_the_smallest_rate():
    path = CONFIGS / "ade20k" / "mask2former_internimage_h_896_80k_cocostuff2ade20k_ss.py"
    rule = rule_of(Config.fromfile(path))
    for name in ("query_embed.weight", "level_embed.weight", "cls_embed.bias", "mask_embed.0.bias"):
        assert rule.layer(f"decode_head.{name}") == 0
    for name in ("query_feat.weight", "pixel_decoder.mask_feature.weight"):
        assert rule.layer(f"decode_head.{name}") == rule.last


def test_an_optimizer_of_a_whole_model():
    config = Config.fromfile(CONFIGS / "ade20k" / "upernet_internimage_l_640_160k_ade20k.py")
    model = config.model
    small = dict(channels=16, depths=[1, 1, 2, 1], groups=[1, 2, 4, 8], init_cfg=None)
    model.backbone.update(small)
    model.decode_head.update(in_channels=[16, 32, 64, 128], channels=8)
    model.auxiliary_head.update(in_channels=64, channels=8)
    for head in (model.decode_head, model.auxiliary_head):
        head.norm_cfg = dict(type="BN")
    model = build_segmentor(model)
    config.optimizer.paramwise_cfg.update(num_layers=5, depths=[1, 1, 2, 1])
    optimizer = build_optimizer(model, config.optimizer)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    rates = {
        id(parameter): group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(rates) == len(list(model.parameters()))
    named = dict(model.named_parameters())
    rate = 2e-5 * 0.94**6
    assert rates[id(named["backbone.patch_embed.conv1.weight"])] == pytest.approx(rate)
    block = named["backbone.levels.2.blocks.1.dcn.offset.weight"]
    assert rates[id(block)] == pytest.approx(2e-5 * 0.94**2)
    assert rates[id(named["auxiliary_head.conv_seg.weight"])] == pytest.approx(2e-5)
