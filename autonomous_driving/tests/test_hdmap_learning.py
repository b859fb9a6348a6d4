"""The toy config learns a synthetic frame by heart, from its files to the metric."""

from __future__ import annotations

import logging
from pathlib import Path

import hdmap  # noqa: F401 - registers the parts
import pytest
import torch
from ad_common.synthetic.hdmap import write
from mmcv import Config
from mmcv.parallel import collate
from mmcv.utils import get_logger
from mmdet.datasets import build_dataset
from mmdet.models import build_detector
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

CONFIG = (
    Path(__file__).resolve().parent.parent
    / "Online-HD-Map-Construction/configs/toy/map_nano_overfit.py"
)
STEPS = 110


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The toy config on one frame of small images."""
    root = tmp_path_factory.mktemp("maps") / "data"
    write(
        root,
        train_segments=1,
        val_segments=1,
        test_segments=1,
        frames=1,
        image_scale=0.0625,
        seed=3,
    )
    cfg = Config.fromfile(str(CONFIG))
    for part in (cfg.data.train.dataset, cfg.data.val):
        part.ann_file = str(root / "train_annotations.json")
        part.data_root = str(root / "argoverse2")
        part.pipeline = [
            {**step, "size": (96, 96)} if step["type"] == "ResizeMultiViewImages" else step
            for step in part.pipeline
        ]
    return cfg


def test_a_frame_is_learnt_by_heart(config: Config) -> None:
    """110 steps: the losses fall and the lines are found; before, none is."""
    get_logger("mmcv").setLevel(logging.WARNING)  # the initial weights would fill the screen
    torch.manual_seed(0)
    model = build_detector(config.model)
    model.init_weights()
    train = build_dataset(config.data.train.dataset)
    val = build_dataset(config.data.val)
    batch = collate([train[0]], samples_per_gpu=1)
    batch = {key: value.data[0] for key, value in batch.items()}
    seen = collate([val[0]], samples_per_gpu=1)
    seen = {key: value.data[0] for key, value in seen.items()}

    def score() -> dict[str, float]:
        model.eval()
        results = model(return_loss=False, **seen)
        model.train()
        return val.evaluate(results)

    before = score()["mAP"]
    residual = [p for n, p in model.named_parameters() if "res_weight" in n]
    others = [p for n, p in model.named_parameters() if "res_weight" not in n and p.requires_grad]
    optimizer = AdamW([{"params": others}, {"params": residual}], lr=1e-3, weight_decay=0.0)
    schedule = OneCycleLR(optimizer, [2e-3, 2e-2], total_steps=STEPS, pct_start=0.2)
    losses = []
    for _ in range(STEPS):
        out = model.train_step(batch, optimizer)
        optimizer.zero_grad()
        out["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        losses.append(out["log_vars"])
    after = score()
    assert before < 0.05
    assert losses[-1]["det_reg"] < losses[0]["det_reg"] / 5
    assert losses[-1]["gen_seq"] < losses[0]["gen_seq"] / 3
    assert after["mAP"] > 0.6, after
