"""Layer-wise learning rates: equal to the stored ones, and what each option changes."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest
import torch
from mmcv.runner import build_optimizer
from mmcv_custom.layer_decay_optimizer_constructor import FIXES, LayerDecay
from torch import nn

STORED = Path(__file__).parent / "data" / "layer_decay_det.json.gz"
CASES = json.loads(gzip.decompress(STORED.read_bytes()))["cases"]
T = {"num_layers": 30, "layer_decay_rate": 0.9, "depths": [4, 4, 18, 4]}


class Named(nn.Module):
    """A model without a forward, with parameters of given names."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        for name in names:
            *parents, last = name.split(".")
            place: nn.Module = self
            for parent in parents:
                if not hasattr(place, parent):
                    place.add_module(parent, nn.Module())
                place = getattr(place, parent)
            one_dimension = last == "bias" or any(
                word in name for word in ("norm", ".gn.", "gamma", "dw_conv.1.1")
            )
            if "center_feature_scale_proj_bias" in name:
                one_dimension = True
            shape = (2,) if one_dimension else (2, 2)
            place.register_parameter(last, nn.Parameter(torch.zeros(shape, device="meta")))


def groups_of(model: nn.Module, paramwise_cfg: dict, lr: float = 1e-4, wd: float = 0.05) -> list:
    return build_optimizer(
        model,
        {
            "type": "AdamW",
            "lr": lr,
            "weight_decay": wd,
            "constructor": "CustomLayerDecayOptimizerConstructor",
            "paramwise_cfg": paramwise_cfg,
        },
    ).param_groups


def group_of(name: str, **changes: object) -> dict:
    (group,) = groups_of(Named([name]), {**T, **changes})
    return group


@pytest.mark.parametrize("case", CASES)
def test_learning_rates_equal_the_stored_ones(case: str) -> None:
    stored = CASES[case]
    model = Named(list(stored["param_to_group_index"]))
    groups = groups_of(model, stored["paramwise_cfg"], stored["base_lr"], stored["base_wd"])
    found = {name: group for group in groups for name in group["param_names"]}
    assert set(found) == set(stored["param_to_group_index"])
    for name, index in stored["param_to_group_index"].items():
        group_name, scale, weight_decay, size = stored["groups_in_order"][index]
        group = found[name]
        assert group["group_name"] == group_name
        assert group["lr"] == pytest.approx(scale * stored["base_lr"], rel=1e-12)
        assert group["weight_decay"] == weight_decay
        assert len(group["params"]) == size


@pytest.mark.parametrize("case", ["mask_rcnn_T_1x", "dino_H"])
def test_groups_of_the_trunk_come_in_the_stored_order(case: str) -> None:
    """The state of an optimizer is stored by position."""
    import mmdet_custom  # noqa: F401
    from mmdet.models import build_backbone

    stored = CASES[case]
    model = nn.Module()
    with torch.device("meta"):
        model.backbone = build_backbone({"type": "InternImage", **stored["backbone_kwargs"]})
    groups = groups_of(model, stored["paramwise_cfg"])
    names = [group["group_name"] for group in groups]
    trunk = {n for n in stored["param_to_group_index"] if n.startswith("backbone.")}
    used = {stored["param_to_group_index"][n] for n in trunk if "cb_" not in n}
    assert names == [stored["groups_in_order"][i][0] for i in sorted(used)]


def test_every_fix_is_off_by_default() -> None:
    assert not any(getattr(LayerDecay(**T), name) for name in FIXES)


def test_fix_post_norms_take_the_layer_of_their_block() -> None:
    name = "backbone.levels.2.post_norms.1.0.weight"
    assert group_of(name)["group_name"] == "layer_10_no_decay"
    fixed = group_of(name, level2_post_norm_block_ids=[5, 11])
    assert fixed["group_name"] == "layer_20_no_decay"


def test_fix_composite_backbone_is_decayed() -> None:
    name = "backbone.cb_modules.1.levels.0.blocks.2.mlp.fc1.weight"
    assert group_of(name)["lr"] == 1e-4
    fixed = group_of(name, decay_composite_backbone=True)
    assert fixed["lr"] == group_of("backbone.levels.0.blocks.2.mlp.fc1.weight")["lr"] < 1e-4
    between = group_of("backbone.cb_linears.0.1.weight", decay_composite_backbone=True)
    assert between["lr"] == 1e-4


@pytest.mark.parametrize(
    "name",
    ["bbox_head.transformer.level_embeds", "decode_head.query_embed.weight"],
)
def test_fix_embeddings_train_like_heads(name: str) -> None:
    assert group_of(name)["group_name"].startswith("layer_0_")
    assert group_of(name, embeddings_with_heads=True)["lr"] == 1e-4


@pytest.mark.parametrize("name", ["dcn.offset.weight", "dcn.offset_mask.weight"])
def test_fix_offset_lr_scale_reaches_the_operator(name: str) -> None:
    name = f"backbone.levels.3.blocks.3.{name}"
    plain = group_of(name, offset_lr_scale=0.01)["lr"]
    assert plain == pytest.approx(0.9e-4)
    fixed = group_of(name, offset_lr_scale=0.01, scale_dcn_offsets=True)
    assert fixed["lr"] == pytest.approx(0.9e-6)


def test_fix_weight_decay_by_shape() -> None:
    name = "neck.normaliser.weight"
    model = nn.Module()
    model.neck = nn.Module()
    model.neck.normaliser = nn.Linear(2, 2, bias=False)
    assert groups_of(model, T)[0]["weight_decay"] == 0
    assert groups_of(model, {**T, "no_weight_decay_by_shape": True})[0]["weight_decay"] == 0.05
    assert groups_of(model, T)[0]["param_names"] == [name]


def test_frozen_parameters_get_no_group() -> None:
    model = Named(["backbone.patch_embed.conv1.weight", "neck.conv.weight"])
    model.backbone.requires_grad_(False)
    assert [g["param_names"] for g in groups_of(model, T)] == [["neck.conv.weight"]]


def test_log_says_which_fixes_are_on(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("mmcv_custom").propagate = True
    with caplog.at_level("INFO", "mmcv_custom"):
        group_of("neck.conv.weight", embeddings_with_heads=True)
    assert "embeddings_with_heads" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_decay_rat": 0.5}, "did you mean 'layer_decay_rate'"),
        ({"layer_decay_rate": 1.5}, "must be in (0, 1], got 1.5"),
        ({"num_layers": 31}, "which is 30"),
        ({"depths": [4, 4, 19, 3]}, "is not the model's"),
    ],
)
def test_wrong_settings_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        group_of("backbone.levels.3.blocks.3.mlp.fc1.weight", **changes)
    assert message in str(error.value)


def test_missing_settings_are_named() -> None:
    with pytest.raises(ValueError, match="lacks layer_decay_rate, depths"):
        LayerDecay.from_config({"num_layers": 3})
