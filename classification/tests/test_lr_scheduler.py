"""Learning rates per step against the original implementation."""

import json
from pathlib import Path

import pytest
import torch

from config import default_config
from lr_scheduler import build_scheduler

DATA = Path(__file__).parent / "data"
CASES = json.loads((DATA / "lr_schedule.json").read_text())["cases"]


def scheduler_of(case):
    config = default_config()
    train = config.TRAIN
    train.EPOCHS, train.WARMUP_EPOCHS = case["epochs"], case["warmup_epochs"]
    train.WARMUP_LR, train.MIN_LR = case["warmup_lr"], case["min_lr"]
    train.LR_SCHEDULER.NAME = case["name"]
    train.LR_SCHEDULER.DECAY_EPOCHS = case["decay_epochs"]
    train.LR_SCHEDULER.DECAY_RATE = case["decay_rate"]
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": case["base_lr"] * ratio}
        for ratio in case["group_ratio"]
    ]
    optimizer = torch.optim.SGD(groups, lr=case["base_lr"])
    return build_scheduler(config, optimizer, case["iters_per_epoch"]), optimizer


def lrs(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("case", CASES, ids=[f"{i}_{c['name']}" for i, c in enumerate(CASES)])
def test_schedule_equals_the_original(case):
    scheduler, optimizer = scheduler_of(case)
    assert lrs(optimizer) == pytest.approx(case["initial"], rel=1e-12)
    steps = case["epochs"] * case["iters_per_epoch"]
    assert len(case["lr_after_step_update"]) == steps
    for step, expected in enumerate(case["lr_after_step_update"]):
        scheduler.step_update(step)
        assert lrs(optimizer) == pytest.approx(expected, rel=1e-10, abs=1e-18), f"step {step}"


def test_linear_stays_at_one_percent_after_its_end():
    case = next(case for case in CASES if case["name"] == "linear")
    scheduler, optimizer = scheduler_of(case)
    end = [0.01 * case["base_lr"] * ratio for ratio in case["group_ratio"]]
    for step in (30, 31, 100):
        scheduler.step_update(step)
        assert lrs(optimizer) == pytest.approx(end)


@pytest.mark.parametrize("index", range(len(CASES)))
def test_resumed_schedule_goes_on(index):
    scheduler, _ = scheduler_of(CASES[index])
    resumed, optimizer = scheduler_of(CASES[index])
    scheduler.step_update(7)
    resumed.load_state_dict(scheduler.state_dict())
    resumed.step_update(11)
    assert lrs(optimizer) == pytest.approx(CASES[index]["lr_after_step_update"][11], rel=1e-10)


def test_unknown_name():
    with pytest.raises(ValueError, match=r"TRAIN.LR_SCHEDULER.NAME 'cosin'.*mean 'cosine'"):
        scheduler_of({**CASES[0], "name": "cosin"})


def test_epoch_without_a_step():
    with pytest.raises(ValueError, match="at least one optimizer step, got iters_per_epoch=0"):
        scheduler_of({**CASES[0], "iters_per_epoch": 0})
