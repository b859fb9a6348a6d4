"""Backbones start from checkpoints: layouts, prefixes, what is expected to differ, and errors."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import internimage
import mmdet_custom  # noqa: F401  registers the backbones
import pytest
import recipe
import torch
from internimage import fetch, hub, released
from internimage.safe_load import CheckpointError
from mmcv import ConfigDict
from mmcv_custom import pretrained
from mmcv_custom.pretrained import load_backbone
from mmdet.models.builder import build_backbone, build_detector

TINY = {"type": "InternImage", "channels": 16, "depths": [1, 1, 2, 1], "groups": [2, 4, 8, 16]}
CB_TINY = {**TINY, "type": "CBInternImage", "out_indices": [[0, 1, 2, 3], [1, 2, 3]]}
URL = "https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_t_1k_224.pth"


@pytest.fixture(autouse=True)
def fresh_logger(monkeypatch):
    """The report goes to a logger that no earlier test has set up."""
    monkeypatch.setattr(pretrained, "logger_initialized", {"pretrained_test": True})


def classifier(**options: Any) -> dict[str, torch.Tensor]:
    """The state dict of a tiny classification model with the weights of the recipe."""
    arguments = {key: value for key, value in TINY.items() if key != "type"}
    model = internimage.InternImageClassifier(**arguments, num_classes=10, **options)
    return recipe.fill(model).state_dict()


def save(path: Path, checkpoint: Any) -> str:
    torch.save(checkpoint, path)
    return str(path)


def assert_loaded(backbone: torch.nn.Module, prefix: str = "") -> None:
    """Every weight of the trunk is that of the recipe."""
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, recipe.weight_of(prefix + key, tuple(value.shape))), key


LAYOUTS = {
    "raw": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state, "meta": {"epoch": 3}},
    "module": lambda state: {"module": state},
    "module.": lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
    "model.": lambda state: {f"model.{k}": v for k, v in state.items()},
    "backbone.": lambda state: {"state_dict": {f"backbone.{k}": v for k, v in state.items()}},
    "module.backbone.": lambda state: {f"module.backbone.{k}": v for k, v in state.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pretrained_takes_every_layout(layout, tmp_path):
    path = save(tmp_path / "a.pth", LAYOUTS[layout](classifier()))
    backbone = build_backbone({**TINY, "init_cfg": {"type": "Pretrained", "checkpoint": path}})
    backbone.init_weights()
    assert_loaded(backbone)


def test_pretrained_reports_what_matched(tmp_path, caplog):
    state = classifier()
    path = save(tmp_path / "a.pth", {"model": state})
    backbone = build_backbone(TINY)
    with caplog.at_level(logging.INFO):
        report = load_backbone(backbone, path)
    assert len(report.matched) == len(backbone.state_dict())
    assert not report.missing and not report.resized
    assert set(report.unexpected) == set(state) - set(report.matched)
    text = caplog.text
    assert f"{len(report.matched)} of {len(report.matched)} weights" in text
    assert "not part of the backbone and not used: conv_head (6), head (2)" in text
    assert "WARNING" not in text


def test_pretrained_expects_the_missing_gammas_of_t(tmp_path, caplog):
    path = save(tmp_path / "t.pth", {"model": classifier()})
    backbone = build_backbone({**TINY, "layer_scale": 1.0})
    with caplog.at_level(logging.INFO):
        report = load_backbone(backbone, path)
    assert len(report.missing) == 10
    assert (
        "the 10 layer-scale gammas are not in the file and start at 1, as expected" in caplog.text
    )
    assert "WARNING" not in caplog.text
    plain = build_backbone(TINY)
    load_backbone(plain, path)
    images = recipe.random_input((1, 3, 64, 64), seed=5).float()
    for ours, theirs in zip(backbone.eval()(images), plain.eval()(images), strict=True):
        torch.testing.assert_close(ours, theirs)  # a scale of 1 changes nothing


def test_pretrained_warns_of_other_differences(tmp_path, caplog):
    path = save(tmp_path / "scaled.pth", classifier(layer_scale=1.0))
    load_backbone(build_backbone(TINY), path)
    assert "10 backbone weights" in caplog.text and "have no place" in caplog.text
    caplog.clear()
    path = save(tmp_path / "plain.pth", classifier())
    report = load_backbone(build_backbone({**TINY, "res_post_norm": True}), path)
    assert len(report.missing) == 20
    assert "lacks 20 weights of the backbone" in caplog.text and "res_post_norm1" in caplog.text


def test_pretrained_drops_the_centre_point_for_a_model_without(tmp_path):
    path = save(tmp_path / "a.pth", classifier())
    backbone = build_backbone({**TINY, "remove_center": True})
    report = load_backbone(backbone, path)
    assert not report.missing and not report.resized
    key = "levels.0.blocks.0.dcn.mask.weight"  # 2 groups of 9 points
    full = recipe.weight_of(key, (18, 16))
    kept = [row for row in range(18) if row % 9 != 4]
    assert torch.equal(backbone.state_dict()[key], full[kept])


def test_pretrained_takes_joint_image_text_checkpoints(tmp_path):
    state = {f"visual.dcnv3.{key}": value for key, value in classifier().items()}
    path = save(tmp_path / "a.pth", {"module": {**state, "text.mask_token": torch.ones(1, 2)}})
    backbone = build_backbone(TINY)
    report = load_backbone(backbone, path)
    assert_loaded(backbone)
    assert not report.missing and "joint image-text" in report.notes[0]


def test_pretrained_starts_both_trunks_of_a_composite(tmp_path, caplog):
    path = save(tmp_path / "a.pth", {"model": classifier()})
    config = {**CB_TINY, "init_cfg": {"type": "Pretrained", "checkpoint": path}}
    backbone = build_backbone(config)
    with caplog.at_level(logging.INFO):
        backbone.init_weights()
    assert_loaded(backbone.cb_modules[0])
    lead = backbone.cb_modules[1].state_dict()
    gates = [key for key in lead if key.startswith("gamma")]
    assert len(gates) == 4 and not any(lead[key].any() for key in gates)
    for key in lead.keys() - set(gates):
        assert torch.equal(lead[key], recipe.weight_of(key, tuple(lead[key].shape))), key
    assert "16 weights that join the backbones are new" in caplog.text
    assert "WARNING" not in caplog.text


def test_pretrained_takes_the_backbone_of_a_detector(tmp_path):
    for name in ("mask_rcnn", "cb_dino"):
        config = recipe.load_json("whole_models/configs.json")[name]["backbone"]
        state = {
            f"backbone.{key}": recipe.weight_of(key, tuple(value.shape))
            for key, value in build_backbone(config).state_dict().items()
        }
        path = save(tmp_path / f"{name}.pth", {"state_dict": {**state, "neck.a": torch.ones(2)}})
        backbone = build_backbone(config)
        report = load_backbone(backbone, path)
        assert_loaded(backbone)
        assert report.unexpected == ["neck.a"]


def test_pretrained_argument_of_older_configs(tmp_path, caplog):
    path = save(tmp_path / "a.pth", classifier())
    backbone = build_backbone({**TINY, "pretrained": path})
    backbone.init_weights()
    assert_loaded(backbone)
    config = ConfigDict(recipe.load_json("whole_models/configs.json")["mask_rcnn"])
    config.pretrained = path
    config.backbone = ConfigDict(TINY)
    caplog.set_level(logging.WARNING, logger="mmcv")
    with pytest.warns(UserWarning, match="pretrained"):
        detector = build_detector(config)
    detector.init_weights()
    assert_loaded(detector.backbone)


@pytest.mark.parametrize(
    "options",
    [
        {"pretrained": "a.pth", "init_cfg": {"type": "Pretrained", "checkpoint": "b.pth"}},
        {"init_cfg": {"type": "Pretrained"}},
        {"init_cfg": {"type": "Pretrained", "checkpoint": "a.pth", "prefix": "x."}},
    ],
)
def test_pretrained_refuses_contradictions(options):
    with pytest.raises(ValueError, match=r"give one|a backbone takes"):
        build_backbone({**TINY, **options})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"channels": 32},
            r"channels 16, depths \[1, 1, 2, 1\], the backbone has channels 32, depths \[1, 1, 2",
        ),
        ({"depths": [1, 1, 3, 1]}, r"\[1, 1, 2, 1\], the backbone has .* depths \[1, 1, 3, 1\]"),
        ({"dw_kernel_size": 5}, r"have another shape .*\(8, 1, 3, 3\) -> |dw_kernel_size"),
        ({"type": "FlashInternImage"}, r"made with DCNv3, the backbone has DCNv4.*'InternImage'"),
        ({**CB_TINY, "channels": 32}, r"has channels 16, .* the backbone has channels 32"),
    ],
    ids=["channels", "depths", "kernel", "operator", "composite"],
)
def test_pretrained_names_both_models_when_they_differ(change, message, tmp_path):
    path = save(tmp_path / "a.pth", classifier())
    backbone = build_backbone({**TINY, **change})
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as error:
        load_backbone(backbone, path)
    assert path in str(error.value)
    if "dw_kernel_size" not in change:
        assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_pretrained_refuses_files_without_a_trunk(tmp_path):
    path = save(tmp_path / "resnet.pth", {"layer1.0.conv1.weight": torch.ones(4, 4, 3, 3)})
    with pytest.raises(CheckpointError, match=r"no InternImage weights.*layer1\.0\.conv1\.weight"):
        load_backbone(build_backbone(TINY), path)
    path = save(tmp_path / "empty.pth", {"epoch": 3})
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_backbone(build_backbone(TINY), path)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_backbone(build_backbone(TINY), str(tmp_path / "none.pth"))
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_backbone(build_backbone(TINY), str(tmp_path / "cut.pth"))


@pytest.mark.parametrize("spelling", ["internimage_t_1k_224", URL])
def test_pretrained_takes_names_and_addresses_of_released_models(spelling, tmp_path, monkeypatch):
    path = save(tmp_path / "a.pth", classifier())
    asked = []
    monkeypatch.setattr(fetch.hub, "checkpoint_path", lambda name: asked.append(name) or Path(path))
    backbone = build_backbone(TINY)
    load_backbone(backbone, spelling)
    assert asked == ["internimage_t_1k_224"]
    assert_loaded(backbone)


def test_pretrained_offline_says_where_the_file_belongs(tmp_path, monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(hub, "get_hf_file_metadata", unreachable)
    with pytest.raises(CheckpointError) as error:
        load_backbone(build_backbone(TINY), URL)
    place = hub.path_by_hand(released.released_model("internimage_t_1k_224"), tmp_path)
    for part in (URL, "sha256", str(place)):
        assert part in str(error.value)
