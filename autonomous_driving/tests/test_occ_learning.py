"""A small model learns a frame by the real programs, and its results go where they should."""

from __future__ import annotations

import runpy
import zipfile
from pathlib import Path

import cv2
import glue_runs
import numpy as np
import occ_model
import pytest
import torch
from mmcv import Config
from occ.classes import FREE
from occ.metrics import OccupancyMIoU
from occ_data import write_data

PROJECT = Path(__file__).resolve().parents[1] / "occupancy_prediction"
NANO = PROJECT / "configs" / "toy" / "occ_nano_overfit.py"
CONFIG = """
_base_ = ["{nano}"]
dim, bev = 32, 25
head = dict(
    bev_h=bev, bev_w=bev,
    transformer=dict(embed_dims=dim, out_dim=16, encoder=dict(num_layers=1, num_points_in_pillar=4,
        transformerlayers=dict(feedforward_channels=dim, attn_cfgs=[
            dict(type="TemporalSelfAttention", embed_dims=dim, num_heads=4, dropout=0.0),
            dict(type="SpatialCrossAttention", embed_dims=dim, num_cams=6, dropout=0.0,
                 deformable_attention=dict(type="MSDeformableAttention3D", embed_dims=dim,
                                           num_heads=4, num_points=4, num_levels=1))]))),
    positional_encoding=dict(num_feats=dim // 2, row_num_embed=bev, col_num_embed=bev))
model = dict(img_backbone=dict(channels=16, depths=[1], groups=[1]),
             img_neck=dict(in_channels=[16], out_channels=dim), pts_bbox_head=head)
data = dict(train=dict(max_frames=1, queue_length=1), val=dict(max_frames=1))
optimizer = dict(lr=1e-2)
runner = dict(max_epochs={epochs})
checkpoint_config = dict(interval={epochs})
evaluation = dict(interval={epochs})
log_config = dict(interval=1, hooks=[dict(type="TextLoggerHook")])
"""
EPOCHS = 60  # of one step


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config, its data, and the work dir of its training."""
    folder = tmp_path_factory.mktemp("learning")
    root = write_data(folder / "data", train_scenes=1, frames=2, image_scale=0.06)
    config = folder / "tiny.py"
    text = CONFIG.format(nano=NANO, epochs=EPOCHS)
    config.write_text(text)
    whole = Config.fromfile(config).pretty_text
    config.write_text(whole.replace("data/toy/occ3d-nus", str(root)))
    assert glue_runs.train(config, "--work-dir", folder / "work", "--seed", 0) == 0
    return folder


def test_the_loss_falls_and_the_miou_rises(run: Path) -> None:
    rows = glue_runs.log_rows(run / "work")
    losses = [row["loss"] for row in rows if row.get("mode") == "train"]
    scores = [row["mIoU"] for row in rows if row.get("mode") == "val"]
    assert len(losses) == EPOCHS
    assert np.mean(losses[-5:]) < 0.15 * losses[0]
    assert scores[-1] > 4  # all free scores 0


def test_test_program(run: Path, tmp_path: Path) -> None:
    """Metrics, files to look at and the submission come from the same predictions."""
    checkpoint = run / "work" / "latest.pth"
    argv = [run / "tiny.py", checkpoint, "--work-dir", tmp_path]
    one = ["--cfg-options", "data.test.max_frames=1"]
    assert glue_runs.test(*argv, "--eval", *one) == 0
    metrics = glue_runs.metrics_of(tmp_path)
    trained = [row["mIoU"] for row in glue_runs.log_rows(run / "work") if row.get("mode") == "val"]
    assert metrics["mIoU"] == pytest.approx(trained[-1], abs=0.01)
    show = tmp_path / "show"
    assert glue_runs.test(*argv, "--eval_fscore", "--show-dir", show) == 0
    assert 20 < glue_runs.metrics_of(tmp_path)["F-score"] <= 100
    prefix = tmp_path / "submission"
    options = ["--eval-options", f"submission_prefix={prefix}"]
    assert glue_runs.test(*argv, "--format-only", *options) == 0
    with zipfile.ZipFile(f"{prefix}.zip") as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "unpacked")
    assert len(names) == 2
    for shown in sorted(show.iterdir()):
        with np.load(shown) as file:
            pred, token = file["pred"], str(file["token"])
        assert (pred != FREE).any()
        with np.load(tmp_path / "unpacked" / f"{token}.npz") as file:
            np.testing.assert_array_equal(file["arr_0"], pred)


def test_pictures(run: Path, tmp_path: Path) -> None:
    """From a checkpoint and from files; they show the same."""
    tool = runpy.run_path(str(PROJECT / "tools" / "vis_occ.py"))
    program = tool["main"]
    config, checkpoint = str(run / "tiny.py"), str(run / "work" / "latest.pth")
    both = [config, "--split", "test", "--out-dir"]
    assert program([*both, str(tmp_path / "a"), checkpoint]) == 0
    show = ["--show-dir", tmp_path / "show", "--work-dir", tmp_path]
    assert glue_runs.test(config, checkpoint, *show) == 0
    assert program([*both, str(tmp_path / "b"), str(tmp_path / "show")]) == 0
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["0000.jpg", "0001.jpg"]
    one, other = (cv2.imread(str(tmp_path / name / "0001.jpg")) for name in ("a", "b"))
    np.testing.assert_array_equal(one, other)
    assert one.shape[0] > 600 and one.std() > 20
    for argv, message in (
        ([config, str(tmp_path)], r"no NNNN\.npz"),
        ([config, checkpoint, "--begin", "7"], "there are 1, counted from 0"),
    ):
        with pytest.raises(ValueError, match=message):
            tool["visualize"](tool["parse_args"]([*argv, "--out-dir", str(tmp_path / "c")]))


def test_two_frames_by_heart() -> None:
    """Two frames with the same poses and other images: the images decide what is where."""
    model = occ_model.build(label_size=(20, 20, 16), use_mask=True).train()
    model.grid_mask = None
    images, metas = occ_model.frames(1)
    images = torch.stack([0.3 * images + 1, 0.3 * images - 1])  # (2, 1, 6, 3, H, W)
    metas = [{0: dict(metas[0], prev_bev_exists=False)}] * 2
    labels = torch.full((2, 20, 20, 16), FREE)
    labels[0, :10, :, :4], labels[0, 10:, :, :4], labels[0, 2:12, 2:12, 4:12] = 11, 13, 4
    labels[1, :, :10, :4], labels[1, :, 10:, :4], labels[1, 8:18, 8:18, 4:12] = 13, 11, 15
    mask = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) < 0.7
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for step in range(110):
        optimizer.param_groups[0]["lr"] = 1e-2 * min((step + 1) / 10, (110 - step) / 30, 1)
        loss = model.forward_train(images, metas, labels, mask)["loss_occ"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5)
        optimizer.step()
        losses.append(loss.item())
    metric, head = OccupancyMIoU(), model.eval().pts_bbox_head
    with torch.no_grad():
        bev = head.bev_features(model.extract_img_feat(images[:, 0]), [meta[0] for meta in metas])
        found = head.classes(head(bev)).numpy()
    for one, label, seen in zip(found, labels.numpy(), mask.numpy(), strict=True):
        metric.add(one, label, seen)
    assert losses[-1] < 0.1 * losses[0]
    assert metric.miou() > 70, metric.summary()
