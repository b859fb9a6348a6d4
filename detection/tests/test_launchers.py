"""The four shell scripts: what they start, with stand-ins for torchrun and srun."""

from __future__ import annotations

from pathlib import Path

import pytest
import runs

SCRIPTS = {
    "dist_train.sh": ("CONFIG", "GPUS"),
    "dist_test.sh": ("CONFIG", "CHECKPOINT", "GPUS"),
    "slurm_train.sh": ("PARTITION", "JOB_NAME", "CONFIG", "WORK_DIR"),
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
    import os

    path = f"{stand_in}:{os.environ['PATH']}"
    variables = {"PATH": path, "PYTHON": "python", "PYTHONPATH": "/elsewhere", **env}
    done = runs.shell("bash", runs.DETECTION / script, *argv, env=variables, cwd=stand_in)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_arguments_end_with_2_and_the_usage(script: str) -> None:
    names = SCRIPTS[script]
    for given in range(len(names)):
        done = runs.shell("bash", runs.DETECTION / script, *names[:given])
        assert done.returncode == 2
        assert f"usage: bash {script} {' '.join(names)}" in done.stderr
        assert not done.stdout


def test_dist_train(stand_in: Path) -> None:
    found = lines(stand_in, "dist_train.sh", "my config.py", "4", "--seed", "1")
    assert found == [
        f"PYTHONPATH={runs.DETECTION}:/elsewhere", "-m", "torch.distributed.run", "--nnodes=1",
        "--node_rank=0", "--master_addr=127.0.0.1", "--master_port=29500", "--nproc_per_node=4",
        f"{runs.DETECTION}/train.py", "my config.py", "--launcher", "pytorch", "--seed", "1",
    ]  # fmt: skip


def test_several_machines(stand_in: Path) -> None:
    env = {"PORT": "1234", "NNODES": "3", "NODE_RANK": "2", "MASTER_ADDR": "first"}
    for script, argv in (("dist_train.sh", ["c", "8"]), ("dist_test.sh", ["c", "p", "8"])):
        found = lines(stand_in, script, *argv, **env)
        assert found[3:8] == [
            "--nnodes=3", "--node_rank=2", "--master_addr=first", "--master_port=1234",
            "--nproc_per_node=8",
        ]  # fmt: skip


def test_dist_test(stand_in: Path) -> None:
    found = lines(stand_in, "dist_test.sh", "c.py", "a.pth", "2", "--eval", "bbox", "segm")
    assert "--master_port=29511" in found
    assert found[8:] == [
        f"{runs.DETECTION}/test.py", "c.py", "a.pth", "--launcher", "pytorch", "--eval", "bbox",
        "segm",
    ]  # fmt: skip


def test_slurm_train(stand_in: Path) -> None:
    found = lines(stand_in, "slurm_train.sh", "gpu", "name", "c.py", "work", "--amp", "bf16")
    assert found == [
        f"PYTHONPATH={runs.DETECTION}:/elsewhere", "--partition=gpu", "--job-name=name",
        "--gres=gpu:8", "--ntasks=8", "--ntasks-per-node=8", "--cpus-per-task=10",
        "--kill-on-bad-exit=1", "python", "-u", f"{runs.DETECTION}/train.py", "c.py",
        "--work-dir=work", "--launcher=slurm", "--amp", "bf16",
    ]  # fmt: skip
    assert not any("quota" in line for line in found)


def test_slurm_test_with_every_variable(stand_in: Path) -> None:
    found = lines(
        stand_in, "slurm_test.sh", "gpu", "name", "c.py", "a.pth", "--eval", "bbox",
        GPUS="16", GPUS_PER_NODE="4", CPUS_PER_TASK="3", SRUN_ARGS="--quotatype=spot --time=10",
    )  # fmt: skip
    assert found[3:] == [
        "--gres=gpu:4", "--ntasks=16", "--ntasks-per-node=4", "--cpus-per-task=3",
        "--kill-on-bad-exit=1", "--quotatype=spot", "--time=10", "python", "-u",
        f"{runs.DETECTION}/test.py", "c.py", "a.pth", "--launcher=slurm", "--eval", "bbox",
    ]  # fmt: skip


def test_fewer_processes_than_a_machine_has_gpus(stand_in: Path) -> None:
    found = lines(stand_in, "slurm_train.sh", "gpu", "name", "c.py", "work", GPUS="2")
    assert found[3:6] == ["--gres=gpu:2", "--ntasks=2", "--ntasks-per-node=2"]
