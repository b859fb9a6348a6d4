"""The programs on the occupancy model: a killed run goes on, two processes test video as one.

This model remembers earlier frames when it is tested, and draws its history at random in training,
so that both would show a process or a run that lost the thread.
"""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path
from types import SimpleNamespace

import glue_runs as runs
import mmcv_custom.runner as runner
import numpy as np
import pytest
import torch
from mmcv import Config
from occ_data import pipeline, write_data
from occ_model import config as occ_model_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A finished run of two epochs; three scenes of two frames to test."""
    folder = tmp_path_factory.mktemp("glue_occ")
    data = write_data(folder / "data", train_scenes=1, val_scenes=3, frames=2)

    def split(name: str, test_mode: bool) -> dict:
        return dict(
            type="NuSceneOcc",
            data_root=str(data),
            ann_file=str(data / f"occ_infos_temporal_{name}.pkl"),
            pipeline=pipeline(data, test_mode),
        )

    whole = dict(
        model=occ_model_config(label_size=(200, 200, 16)),
        data=dict(
            samples_per_gpu=1,
            workers_per_gpu=0,
            train=split("train", False),
            val=split("val", True),
            test=split("val", True),
        ),
        optimizer=dict(type="AdamW", lr=1e-2),
        optimizer_config=dict(grad_clip=dict(max_norm=5.0)),
        lr_config=dict(policy="step", step=[100]),
        runner=dict(type="EpochBasedRunner", max_epochs=2),
        checkpoint_config=dict(interval=1),
        evaluation=dict(interval=2, metric="mIoU"),
        log_config=dict(interval=1, hooks=[dict(type="TextLoggerHook")]),
    )
    path = folder / "occ_tiny.py"
    path.write_text(Config(whole).pretty_text)
    assert runs.train(path, "--work-dir", folder / "work", "--seed", 3) == 0
    return SimpleNamespace(config=path, work_dir=folder / "work")


def train_and_die(*argv: object) -> int:
    """Trains; the process is killed after the first epoch."""

    def die(temporary: Path, path: Path) -> None:
        real(temporary, path)
        os.kill(os.getpid(), signal.SIGKILL)

    real, runner.move_into_place = runner.move_into_place, die
    return runs.train(*argv)


def test_a_killed_run_goes_on_to_the_same_weights(trained: SimpleNamespace, tmp_path: Path) -> None:
    argv = [trained.config, "--work-dir", tmp_path]
    assert runs.forked(1, train_and_die, *argv, "--seed", 3) == [-signal.SIGKILL]
    assert [path.name for path in tmp_path.glob("epoch_*.pth")] == ["epoch_1.pth"]
    assert runs.train(*argv, "--auto-resume", "--no-validate") == 0
    first, second = (
        runs.weights(folder / "epoch_2.pth") for folder in (tmp_path, trained.work_dir)
    )
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    before = runs.weights(tmp_path / "epoch_1.pth")
    assert any(not torch.equal(first[name], before[name]) for name in first)


def test_two_processes_test_video_as_one(trained: SimpleNamespace, tmp_path: Path) -> None:
    argv = [trained.config, trained.work_dir / "epoch_2.pth", "--eval"]
    one = ["--work-dir", tmp_path / "one", "--out", tmp_path / "one.pkl"]
    two = ["--work-dir", tmp_path / "two", "--out", tmp_path / "two.pkl"]
    assert runs.test(*argv, *one) == 0
    assert runs.forked(2, runs.test, *argv, *two, "--launcher", "pytorch") == [0, 0]
    first, second = (pickle.loads((tmp_path / f"{n}.pkl").read_bytes()) for n in ("one", "two"))
    assert len(first) == 6  # the middle of six frames is inside a scene
    assert [result["token"] for result in first] == [result["token"] for result in second]
    for result, other in zip(first, second):
        np.testing.assert_array_equal(result["occupancy"], other["occupancy"])
    assert runs.metrics_of(tmp_path / "one") == runs.metrics_of(tmp_path / "two")
