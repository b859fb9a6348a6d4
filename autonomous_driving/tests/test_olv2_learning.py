"""The lane model learns a synthetic frame by heart, from files to the score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ad_common  # noqa: F401 - registers
import olv2  # noqa: F401 - registers
import pytest
import torch
from ad_common.synthetic import openlane
from mmcv import Config
from mmcv.parallel import collate
from mmdet.datasets import build_dataset
from olv2.devkit.collect import collect_all
from olv2.topology_head import relation_targets
from olv2_small import CONFIGS, small_model

STEPS = 110
SMALLER = {
    "bev_constructor.encoder.num_layers": 1,
    "bbox_head.num_query": 5,
    "pts_bbox_head.num_query": 16,
    "pts_bbox_head.transformer.decoder.num_layers": 2,
}


@pytest.fixture(scope="module")
def frame(tmp_path_factory) -> tuple[Any, Any]:
    """A frame with six lanes, as training and as test data set."""
    root: Path = tmp_path_factory.mktemp("openlane") / "toy"
    openlane.write(
        root, train_segments=1, val_segments=1, frames=1, image_scale=0.05, seed=3, intersections=0
    )
    collect_all(root / "OpenLane-V2")
    data = Config.fromfile(CONFIGS / "toy" / "olv2_nano.py").data
    built = []
    for settings in (data.train, data.val):
        settings.data_root = str(root / "OpenLane-V2")
        settings.collection = "data_dict_subset_A_train"
        for step in settings.pipeline:
            if step.type == "RandomScaleImageMultiViewImage":
                step.scales = [1.0]
        built.append(build_dataset(settings))
    return tuple(built)


def test_a_frame_is_learnt_by_heart(frame):
    train, test = frame
    batch = {k: v.data[0] for k, v in collate([train[0]], samples_per_gpu=1).items()}
    assert len(batch["gt_lc"][0]) >= 4 and batch["gt_topology_lclc"][0].sum() >= 2
    model = small_model(**SMALLER).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS, pct_start=0.1)
    totals = []
    for _ in range(STEPS):
        loss = sum(model(return_loss=True, **batch).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        schedule.step()
        totals.append(loss.item())
    model.eval()
    with torch.no_grad():
        results = model.forward_test(batch["img"], batch["img_metas"])
        lanes, _, lclc, _ = model.predict(batch["img"], batch["img_metas"])
        of_lane = model.pts_bbox_head.match(*lanes, batch["gt_lc"], batch["gt_lc_labels"])[0]
    score = test.evaluate(results)
    wanted = relation_targets(of_lane, of_lane, batch["gt_topology_lclc"][0]).bool()
    edges = lclc[0].sigmoid()
    assert totals[-1] < 0.1 * totals[0]
    assert score["DET_l"] > 0.3
    assert score["TOP_lt"] > 0.4
    assert edges[wanted].mean() > 3 * edges[~wanted].mean(), (edges[wanted], edges[~wanted].mean())
