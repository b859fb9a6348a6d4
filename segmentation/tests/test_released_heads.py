"""The switch for the released 150-way heads of 19-class models."""

from __future__ import annotations

import pickle
from pathlib import Path

import mmseg_custom  # noqa: F401
import numpy as np
import pytest
import torch
from internimage.safe_load import CheckpointError
from mmcv import Config
from mmcv_custom.checkpoint import load_checkpoint
from mmseg.datasets import CityscapesDataset
from mmseg.models.builder import HEADS
from mmseg_custom.released_heads import prepare_config, prepare_model, trim_heads
from PIL import Image
from torch import nn

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RELEASED = dict(num_classes=150, trained=19, mode="trim")


class Model(nn.Module):
    """The two heads of a UPerNet, small."""

    def __init__(self, num_classes, channels=8):
        super().__init__()
        options = dict(num_classes=num_classes, channels=channels, norm_cfg=dict(type="BN"))
        loss = dict(loss_decode=dict(type="CrossEntropyLoss"))
        kind = HEADS.get("FCNHead")
        self.decode_head = kind(in_channels=4, num_convs=1, **options, **loss)
        self.auxiliary_head = kind(in_channels=4, num_convs=1, **options, **loss)


@pytest.fixture
def models():
    torch.manual_seed(0)
    return Model(150).eval(), Model(19).eval()


def test_trimmed_scores_are_those_of_the_full_head(models):
    full, small = models
    for parameter in full.parameters():
        nn.init.normal_(parameter)
    weights = trim_heads(full.state_dict(), {"CLASSES": ["road"] * 19}, small, RELEASED)
    small.load_state_dict(weights)
    x = torch.randn(2, 4, 8, 9)
    torch.testing.assert_close(
        small.decode_head([x]), full.decode_head([x])[:, :19], rtol=1e-5, atol=1e-5
    )  # another number of outputs may be summed in another order


@pytest.mark.parametrize("classes", [None, ["x"] * 19, ["x"] * 66])
def test_heads_without_150_names_are_trimmed(models, classes):
    full, small = models
    weights = trim_heads(full.state_dict(), {"CLASSES": classes}, small, RELEASED)
    assert weights["decode_head.conv_seg.weight"].shape == (19, 8, 1, 1)
    assert weights["auxiliary_head.conv_seg.bias"].shape == (19,)
    assert full.decode_head.conv_seg.weight.shape[0] == 150


def test_a_head_for_150_named_classes_is_left_alone(models):
    full, small = models
    weights = trim_heads(
        full.state_dict(), {"CLASSES": [str(i) for i in range(150)]}, small, RELEASED
    )
    assert weights["decode_head.conv_seg.weight"].shape[0] == 150


def test_a_model_for_other_classes_is_left_alone(models):
    """Three classes of one's own are not road, sidewalk and building."""
    weights = trim_heads(models[0].state_dict(), {"CLASSES": ["x"] * 19}, Model(3), RELEASED)
    assert weights["decode_head.conv_seg.weight"].shape[0] == 150


def test_a_head_of_another_width_is_left_alone(models):
    weights = trim_heads(Model(150, channels=16).state_dict(), {}, models[1], RELEASED)
    assert weights["decode_head.conv_seg.weight"].shape == (150, 16, 1, 1)


@pytest.mark.parametrize(
    "released", [None, dict(RELEASED, mode="keep"), dict(RELEASED, mode="refuse")]
)
def test_other_modes_change_nothing(models, released):
    full, small = models
    weights = trim_heads(full.state_dict(), {}, small, released)
    assert weights["decode_head.conv_seg.weight"].shape[0] == 150


def test_a_model_brings_its_own_revision(models):
    full, small = models
    prepare_model(Config(dict(released_head=RELEASED)), small)
    weights = small.revise_weights(full.state_dict(), {}, small)
    assert weights["decode_head.conv_seg.weight"].shape[0] == 19
    pickle.loads(pickle.dumps(small))  # hooks copy models
    prepare_model(Config({}), full)
    assert not hasattr(full, "revise_weights")


def test_loading_a_released_file(models, tmp_path):
    full, small = models
    path = tmp_path / "released.pth"
    meta = {"CLASSES": CityscapesDataset.CLASSES}
    torch.save({"state_dict": full.state_dict(), "meta": meta}, path)
    with pytest.raises(CheckpointError, match=r"conv_seg.weight \[150, 8, 1, 1\] instead of \[19"):
        load_checkpoint(small, str(path))
    prepare_model(Config(dict(released_head=RELEASED)), small)
    load_checkpoint(small, str(path))
    expected = full.decode_head.conv_seg.weight[:19]
    assert torch.equal(small.decode_head.conv_seg.weight, expected)


def test_an_untrained_output_counts_as_missed(tmp_path):
    """What the evaluation makes of the 131 outputs that mode "keep" has."""
    write_labels(tmp_path / "a_gtFine_labelTrainIds.png", [[0, 0], [1, 1]])
    data = CityscapesDataset(img_dir=str(tmp_path), ann_dir=str(tmp_path), pipeline=[])
    data.img_infos = [dict(filename="a.png", ann=dict(seg_map="a_gtFine_labelTrainIds.png"))]
    kept = data.evaluate(data.pre_eval(np.array([[0, 77], [1, 1]]), 0))
    wrong = data.evaluate(data.pre_eval(np.array([[0, 1], [1, 1]]), 0))
    assert (kept["IoU.road"], kept["IoU.sidewalk"]) == (0.5, 1.0)
    assert (wrong["IoU.road"], wrong["IoU.sidewalk"]) == (0.5, pytest.approx(2 / 3, abs=1e-3))


def write_labels(path, rows):
    Image.fromarray(np.array(rows, np.uint8)).save(path)


def test_keep_builds_the_released_heads():
    path = CONFIGS / "cityscapes" / "upernet_internimage_t_512x1024_160k_cityscapes.py"
    cfg = Config.fromfile(path)
    prepare_config(cfg)
    assert (cfg.model.decode_head.num_classes, cfg.model.auxiliary_head.num_classes) == (19, 19)
    cfg.merge_from_dict({"released_head.mode": "keep"})
    prepare_config(cfg)
    assert (cfg.model.decode_head.num_classes, cfg.model.auxiliary_head.num_classes) == (150, 150)
    cfg.merge_from_dict({"released_head.mode": "kept"})
    with pytest.raises(ValueError, match="'kept' is none of trim, keep, refuse"):
        prepare_config(cfg)
