"""Learning rates and weight decay of every parameter against the original implementation."""

import gzip
import json
import logging
from pathlib import Path

import pytest
import torch

from config import default_config, load_config_file
from models import build_model
from optimizer import build_optimizer, layer_decay_scales

HERE = Path(__file__).parent
CASES = json.loads(gzip.decompress((HERE / "data" / "layer_decay.json.gz").read_bytes()))["cases"]


@pytest.fixture
def config():
    config = default_config()
    config.MODEL.TYPE = "intern_image"
    config.MODEL.NUM_CLASSES = 3
    config.MODEL.INTERN_IMAGE.CHANNELS = 8
    config.MODEL.INTERN_IMAGE.DEPTHS = [1, 1, 2, 1]
    config.MODEL.INTERN_IMAGE.GROUPS = [1, 2, 4, 8]
    return config


@pytest.mark.parametrize("name", CASES)
def test_groups_equal_the_original(name):
    case = CASES[name]
    config = load_config_file(HERE.parent / "configs" / case["config"]).clone()
    config.defrost()
    config.TRAIN.BASE_LR = 1.0
    config.TRAIN.OPTIMIZER.USE_ZERO = False
    for key, value in case["overrides"].items():
        config.merge_from_list([key, value])
    with torch.device("meta"):
        model = build_model(config)
    groups = build_optimizer(config, model).param_groups
    assert [group["name"] for group in groups] == list(case["params"])
    for group, parameter in zip(groups, model.parameters(), strict=True):
        lr, weight_decay, requires_grad = case["params"][group["name"]]
        assert len(group["params"]) == 1 and group["params"][0] is parameter
        assert group["lr"] == pytest.approx(lr, rel=1e-12), group["name"]
        assert group["weight_decay"] == weight_decay, group["name"]
        assert parameter.requires_grad == requires_grad, group["name"]


def test_decay_counts_blocks_beyond_ten():
    names = [f"levels.0.blocks.{i}.gamma1" for i in range(12)] + ["levels.0.norm.0.bias"]
    scales = layer_decay_scales([*names, "patch_embed.conv1.bias", "head.bias"], 0.5)
    assert scales["levels.0.blocks.11.gamma1"] == 1.0
    assert scales["levels.0.blocks.2.gamma1"] == 0.5**9
    assert scales["levels.0.blocks.1.gamma1"] == 0.5**10
    assert scales["patch_embed.conv1.bias"] == 0.5**11
    assert scales["levels.0.norm.0.bias"] == scales["head.bias"] == 1.0


def test_adamw(config):
    config.TRAIN.OPTIMIZER.EPS, config.TRAIN.OPTIMIZER.BETAS = 1e-6, [0.8, 0.95]
    optimizer = build_optimizer(config, build_model(config))
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["eps"] == 1e-6
    assert optimizer.defaults["betas"] == (0.8, 0.95)
    assert {group["lr"] for group in optimizer.param_groups} == {config.TRAIN.BASE_LR}


def test_sgd(config):
    config.TRAIN.OPTIMIZER.NAME, config.TRAIN.OPTIMIZER.MOMENTUM = "sgd", 0.7
    optimizer = build_optimizer(config, build_model(config))
    assert type(optimizer) is torch.optim.SGD
    assert {(g["momentum"], g["nesterov"]) for g in optimizer.param_groups} == {(0.7, True)}


def test_unknown_optimizer(config):
    config.TRAIN.OPTIMIZER.NAME = "adamv"
    with pytest.raises(ValueError, match=r"TRAIN.OPTIMIZER.NAME 'adamv'.*mean 'adamw'"):
        build_optimizer(config, build_model(config))


def test_freezing_a_level_that_is_not_there(config):
    config.TRAIN.OPTIMIZER.FREEZE_BACKBONE = [4]
    with pytest.raises(ValueError, match="FREEZE_BACKBONE names level 4"):
        build_optimizer(config, build_model(config))


def test_frozen_levels_do_not_move(config):
    config.TRAIN.OPTIMIZER.FREEZE_BACKBONE = [1]
    model = build_model(config)
    optimizer = build_optimizer(config, model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and not any(name.startswith("levels.1.") for name in moved)
    assert "levels.0.blocks.0.dcn.output_proj.weight" in moved


def test_dcn_lr_mul_without_layer_decay_warns(config, caplog):
    config.TRAIN.OPTIMIZER.DCN_LR_MUL = 0.1
    with caplog.at_level(logging.WARNING):
        optimizer = build_optimizer(config, build_model(config))
    assert {group["lr"] for group in optimizer.param_groups} == {config.TRAIN.BASE_LR}
    assert "DCN_LR_MUL=0.1 has no effect without TRAIN.LR_LAYER_DECAY" in caplog.text


def test_state_can_be_saved_and_loaded(config, tmp_path):
    model = build_model(config)
    optimizer = build_optimizer(config, model)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pth")
    other = build_optimizer(config, build_model(config))
    other.load_state_dict(torch.load(tmp_path / "optimizer.pth", weights_only=True))
    assert [g["name"] for g in other.param_groups] == [n for n, _ in model.named_parameters()]
    assert len(other.state) == len(optimizer.state) > 0


def test_zero_needs_processes_to_share_with(config):
    config.TRAIN.OPTIMIZER.USE_ZERO = True
    assert type(build_optimizer(config, build_model(config))) is torch.optim.AdamW


def test_zero_shares_state_over_the_processes(config, tmp_path):
    config.TRAIN.OPTIMIZER.USE_ZERO = True
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = build_model(config)
        optimizer = build_optimizer(config, model)
        assert type(optimizer).__name__ == "ZeroRedundancyOptimizer"
        assert type(optimizer.optim) is torch.optim.AdamW
        assert [g["name"] for g in optimizer.param_groups] == [
            name for name, _ in model.named_parameters()
        ]
        model(torch.randn(2, 3, 64, 64)).square().sum().backward()
        optimizer.step()
        weight_decay = {g["name"]: g["weight_decay"] for g in optimizer.optim.param_groups}
        assert weight_decay["head.bias"] == 0.0 and weight_decay["head.weight"] == 0.05
    finally:
        torch.distributed.destroy_process_group()
