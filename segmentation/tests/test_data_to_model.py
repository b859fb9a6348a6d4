"""From files on the disk through a config's pipeline and mmseg's loader into a tiny model."""

from __future__ import annotations

import logging
from pathlib import Path

import mmseg_custom  # noqa: F401
import numpy as np
import pytest
import torch
from mmcv import Config
from mmcv.parallel import MMDataParallel
from mmcv.utils import get_logger
from mmseg.datasets import build_dataloader
from mmseg.models import build_segmentor
from mmseg_custom.datasets.checks import DatasetError, build_data
from PIL import Image

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
CROP = (64, 96)


@pytest.fixture
def folder(tmp_path):
    """Two pictures in ADE20K's folders; the second has no labelled pixel."""
    rng = np.random.default_rng(0)
    for split in ("training", "validation"):
        for name in ("images", "annotations"):
            (tmp_path / name / split).mkdir(parents=True)
        for i in range(2):
            picture = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "images" / split / f"{i}.jpg")
            labels = np.kron(rng.integers(0, 4, (5, 7)), np.ones((10, 10))).astype(np.uint8)
            Image.fromarray(labels * (i == 0)).save(tmp_path / "annotations" / split / f"{i}.png")
    return tmp_path


def tiny(name, folder):
    """An ADE20K config with a tiny trunk, narrow heads and small crops."""
    cfg = Config.fromfile(CONFIGS / "ade20k" / name)
    small = dict(channels=16, depths=[1, 1, 2, 1], groups=[1, 2, 4, 8], init_cfg=None)
    cfg.model.backbone.update(small)
    for split in ("train", "val"):
        cfg.data[split].data_root = str(folder)
    for step in cfg.data.train.pipeline:
        step.update({"Resize": {"img_scale": (128, 96)}}.get(step.type, {}))
        step.update({"RandomCrop": {"crop_size": CROP}, "Pad": {"size": CROP}}.get(step.type, {}))
    return cfg


def train_once(cfg):
    """The losses of one batch of two."""
    torch.manual_seed(0)
    np.random.seed(0)
    data = build_data(cfg, cfg.data.train)
    loader = build_dataloader(data, 2, 0, dist=False, persistent_workers=False, shuffle=False)
    model = build_segmentor(cfg.model)
    get_logger("mmcv").setLevel(logging.WARNING)  # it lists every parameter
    model.init_weights()
    model = MMDataParallel(model, device_ids=[])
    outputs = model.train_step(next(iter(loader)), None)
    outputs["loss"].backward()
    assert outputs["num_samples"] == 2
    return outputs["log_vars"]


def test_upernet(folder):
    cfg = tiny("upernet_internimage_t_512_160k_ade20k.py", folder)
    cfg.model.decode_head.update(in_channels=[16, 32, 64, 128], channels=16)
    cfg.model.auxiliary_head.update(in_channels=64, channels=16)
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.norm_cfg = dict(type="BN")
    losses = train_once(cfg)
    # ln(150) = 5 of a labelled pixel, averaged over all pixels, most of which are ignored here
    assert 0.2 < losses["decode.loss_ce"] < 5
    assert np.isfinite(losses["loss"])


def test_mask2former(folder):
    cfg = tiny("mask2former_internimage_h_896_80k_cocostuff2ade20k_ss.py", folder)
    cfg.model.backbone.level2_post_norm_block_ids = [1]
    head = cfg.model.decode_head
    head.update(in_channels=[16, 32, 64, 128], feat_channels=32, out_channels=32, num_queries=10)
    for part in (head.positional_encoding, head.pixel_decoder.positional_encoding):
        part.num_feats = 16
    for part in (head.pixel_decoder.encoder, head.transformer_decoder):
        part.num_layers = 1
        part.transformerlayers.attn_cfgs.update(embed_dims=32, num_heads=4)
        part.transformerlayers.ffn_cfgs.update(embed_dims=32, feedforward_channels=32)
    head.transformer_decoder.transformerlayers.feedforward_channels = 32
    head.pixel_decoder.norm_cfg.num_groups = 8
    cfg.model.train_cfg.num_points = 64
    losses = train_once(cfg)
    assert set(losses) >= {"decode.loss_cls", "decode.loss_mask", "decode.d0.loss_dice"}
    assert losses["decode.loss_dice"] > 0
    assert np.isfinite(losses["loss"])


def test_validation_pipeline(folder):
    cfg = tiny("upernet_internimage_t_512_160k_ade20k.py", folder)
    data = build_data(cfg, cfg.data.val, dict(test_mode=True))
    sample = data[0]
    assert sample["img"][0].shape == (3, 512, 736)  # 50 x 70 enlarged, to multiples of 32
    right = data.get_gt_seg_map_by_idx(0).astype(np.int64) - 1
    result = data.evaluate(data.pre_eval(right, 0), metric=["mIoU", "mDice", "mFscore"])
    assert result["mIoU"] == result["mDice"] == result["mFscore"] == 1.0


def test_the_documented_config_for_own_data(folder, monkeypatch):
    """The example in docs/segmentation_data.md, with the pictures and masks of this test."""
    text = (CONFIGS.parents[1] / "docs" / "segmentation_data.md").read_text()
    example = text.split("# configs/own.py\n")[1].split("```")[0]
    path = folder / "own.py"
    path.write_text(example.replace("./cityscapes/", f"{CONFIGS}/cityscapes/"))
    cfg = Config.fromfile(path)
    for old, new in (("images", "images"), ("annotations", "masks")):
        for split, short in (("training", "train"), ("validation", "val")):
            (folder / "data" / "own" / new).mkdir(parents=True, exist_ok=True)
            (folder / "data" / "own" / new / short).symlink_to(folder / old / split)
    monkeypatch.chdir(folder)
    with pytest.raises(DatasetError, match="holds label 3"):  # the fixture has 0..3
        build_data(cfg, cfg.data.train)
    for mask in folder.glob("annotations/*/*.png"):
        Image.fromarray(np.minimum(np.array(Image.open(mask)), 2)).save(mask)
    data = build_data(cfg, cfg.data.train)
    assert data[0]["gt_semantic_seg"].data.shape == (1, 512, 1024)
    assert len(build_data(cfg, cfg.data.val, dict(test_mode=True))) == 2
