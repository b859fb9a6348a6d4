"""The shell scripts, and that two processes compute what one does."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
from conftest import Trained
from internimage.safe_load import load_file
from mmcv_custom.distributed import free_port

SCRIPTS = {
    "dist_train.sh": ("CONFIG", "GPUS"),
    "dist_test.sh": ("CONFIG", "CHECKPOINT", "GPUS"),
    "slurm_train.sh": ("PARTITION", "JOB_NAME", "CONFIG"),
    "slurm_test.sh": ("PARTITION", "JOB_NAME", "CONFIG", "CHECKPOINT"),
}


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A folder with `srun` and `python` that print their arguments, one a line."""
    for name in ("srun", "python"):
        path = tmp_path / name
        path.write_text('#!/bin/sh\necho "PYTHONPATH=$PYTHONPATH"\nprintf "%s\\n" "$@"\n')
        path.chmod(0o755)
    return tmp_path


def lines(stand_in: Path, script: str, *argv: str, **env: str) -> list[str]:
    path = f"{stand_in}:{os.environ['PATH']}"
    variables = {"PATH": path, "PYTHON": "python", "PYTHONPATH": "/elsewhere", **env}
    done = runs.shell("bash", runs.FOLDER / script, *argv, env=variables, cwd=stand_in)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_arguments_end_with_2_and_the_usage(script: str) -> None:
    names = SCRIPTS[script]
    for given in range(len(names)):
        done = runs.shell("bash", runs.FOLDER / script, *names[:given])
        assert done.returncode == 2
        assert f"usage: bash {script} {' '.join(names)} [" in done.stderr
        assert not done.stdout


def test_dist_scripts(stand_in: Path) -> None:
    found = lines(stand_in, "dist_train.sh", "my config.py", "4", "--seed", "1")
    assert found == [
        f"PYTHONPATH={runs.FOLDER}:/elsewhere", "-m", "torch.distributed.run", "--nnodes=1",
        "--node_rank=0", "--master_addr=127.0.0.1", "--master_port=29300", "--nproc_per_node=4",
        f"{runs.FOLDER}/train.py", "my config.py", "--launcher", "pytorch", "--seed", "1",
    ]  # fmt: skip
    found = lines(stand_in, "dist_test.sh", "c.py", "a.pth", "2", "--eval", "mIoU", PORT="1234")
    assert "--master_port=1234" in found
    assert found[8:] == [
        f"{runs.FOLDER}/test.py", "c.py", "a.pth", "--launcher", "pytorch", "--eval", "mIoU",
    ]  # fmt: skip


def test_slurm_scripts(stand_in: Path) -> None:
    found = lines(stand_in, "slurm_train.sh", "gpu", "name", "c.py", "--amp", "bf16", GPUS="2")
    assert found == [
        f"PYTHONPATH={runs.FOLDER}:/elsewhere", "--partition=gpu", "--job-name=name",
        "--gres=gpu:2", "--ntasks=2", "--ntasks-per-node=2", "--cpus-per-task=5",
        "--kill-on-bad-exit=1", "python", "-u", f"{runs.FOLDER}/train.py", "c.py",
        "--launcher=slurm", "--amp", "bf16",
    ]  # fmt: skip
    found = lines(
        stand_in, "slurm_test.sh", "gpu", "name", "c.py", "a.pth", "--eval", "mIoU",
        GPUS="16", GPUS_PER_NODE="4", CPUS_PER_TASK="3", SRUN_ARGS="--quotatype=spot --time=10",
    )  # fmt: skip
    assert found[3:] == [
        "--gres=gpu:4", "--ntasks=16", "--ntasks-per-node=4", "--cpus-per-task=3",
        "--kill-on-bad-exit=1", "--quotatype=spot", "--time=10", "python", "-u",
        f"{runs.FOLDER}/test.py", "c.py", "a.pth", "--launcher=slurm", "--eval", "mIoU",
    ]  # fmt: skip


def logged(work_dir: Path) -> list[dict]:
    text = max(work_dir.glob("*.log.json")).read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_two_processes_train_as_one_with_the_doubled_batch(tmp_path: Path) -> None:
    """By the launcher itself, on the CPU, with evaluation; three images, so that rounds overlap."""
    data = runs.write_data(tmp_path / "data", train=3, val=3)
    common = {"norm": "GN", "iterations": 4}  # a batch norm would see half of the batch
    one = runs.write_config(tmp_path / "one.py", data, batch=2, **common)
    two = runs.write_config(tmp_path / "two.py", data, batch=1, **common)
    options = [
        "--seed", "0", "--cfg-options", "optimizer._delete_=True", "optimizer.type=SGD",
        "optimizer.lr=0.01", "evaluation.interval=4", "evaluation.save_best=None",
    ]  # fmt: skip
    assert runs.train(one, "--work-dir", tmp_path / "one", *options) == 0
    done = runs.shell(
        "bash", runs.FOLDER / "dist_train.sh", two, "2", "--work-dir", "two", *options,
        env={"PORT": str(free_port())}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (load_file(tmp_path / name / "iter_4.pth") for name in ("one", "two"))
    for name, value in first["state_dict"].items():
        # float32, summed in another order; 4 steps
        torch.testing.assert_close(second["state_dict"][name], value, rtol=1e-4, atol=1e-6)
    losses = [
        [row["loss"] for row in logged(tmp_path / n) if "loss" in row] for n in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    metrics = [logged(tmp_path / name)[-1]["mIoU"] for name in ("one", "two")]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-3)
    assert "device: cpu, processes: 2" in max((tmp_path / "two").glob("*.log")).read_text()


def test_two_processes_with_synchronised_norms_test_as_one(
    trained: Trained, tmp_path: Path
) -> None:
    """Three images for two processes: the one that is tested twice counts once."""
    arguments = ["--eval", "mIoU", "mDice"]
    one = ["--work-dir", tmp_path / "one", "--out", tmp_path / "one.pkl"]
    assert runs.test(trained.config, trained.checkpoint, *one, *arguments) == 0
    done = runs.shell(
        "bash", runs.FOLDER / "dist_test.sh", trained.config, trained.checkpoint, "2",
        "--work-dir", "two", "--out", "two.pkl", "--show-dir", "show", "--gpu-collect", *arguments,
        env={"PORT": str(free_port())}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (pickle.loads((tmp_path / f"{n}.pkl").read_bytes()) for n in ("one", "two"))
    assert len(first) == len(second) == 3
    for labels, other in zip(first, second):
        np.testing.assert_array_equal(labels, other)
    metrics = [
        json.loads(max((tmp_path / n).glob("eval_*.json")).read_text()) for n in ("one", "two")
    ]
    assert metrics[0]["metric"] == metrics[1]["metric"]
    assert {p.name for p in (tmp_path / "show").iterdir()} == {"0.png", "1.png", "2.png"}
    assert not list((tmp_path / "two").glob(".parts-*"))
