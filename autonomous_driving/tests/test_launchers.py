"""dist_*.sh and slurm_*.sh of the three projects hand the right words to torchrun and srun."""

from __future__ import annotations

import os
from pathlib import Path

import glue_runs as runs
import pytest

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
        path.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        path.chmod(0o755)
    return tmp_path


def lines(stand_in: Path, script: str, *argv: str, project: str = "occ", **env: str) -> list[str]:
    variables = {"PATH": f"{stand_in}:{os.environ['PATH']}", "PYTHON": "python", **env}
    done = runs.shell("bash", runs.tool(project, script), *argv, env=variables, cwd=stand_in)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_arguments_end_with_2_and_the_usage(script: str) -> None:
    names = SCRIPTS[script]
    done = runs.shell("bash", runs.tool("olv2", script), *names[:-1])
    assert done.returncode == 2
    assert f"usage: bash tools/{script} {' '.join(names)}" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize("project", runs.FOLDERS)
def test_dist_train(stand_in: Path, project: str) -> None:
    found = lines(stand_in, "dist_train.sh", "my config.py", "4", "--seed", "1", project=project)
    assert found == [
        "-m", "torch.distributed.run", "--nnodes=1", "--node_rank=0", "--master_addr=127.0.0.1",
        "--master_port=29500", "--nproc_per_node=4", str(runs.tool(project, "train.py")),
        "my config.py", "--launcher", "pytorch", "--seed", "1",
    ]  # fmt: skip
    assert os.access(runs.tool(project, "dist_train.sh"), os.X_OK)


def test_several_machines(stand_in: Path) -> None:
    env = {"PORT": "1234", "NNODES": "3", "NODE_RANK": "2", "MASTER_ADDR": "first"}
    for script, argv in (("dist_train.sh", ["c", "8"]), ("dist_test.sh", ["c", "p", "8"])):
        found = lines(stand_in, script, *argv, **env)
        assert found[2:7] == [
            "--nnodes=3", "--node_rank=2", "--master_addr=first", "--master_port=1234",
            "--nproc_per_node=8",
        ]  # fmt: skip


def test_dist_test_evaluates_unless_it_is_told_something_else(stand_in: Path) -> None:
    start = [str(runs.tool("hdmap", "test.py")), "c.py", "a.pth", "--launcher", "pytorch"]
    found = lines(stand_in, "dist_test.sh", "c.py", "a.pth", "2", project="hdmap")
    assert "--master_port=29511" in found
    assert found[7:] == [*start, "--eval"]
    argv = ["c.py", "a.pth", "2", "--format-only", "--split", "test"]
    found = lines(stand_in, "dist_test.sh", *argv, project="hdmap")
    assert found[7:] == [*start, "--format-only", "--split", "test"]


def test_slurm_train(stand_in: Path) -> None:
    found = lines(stand_in, "slurm_train.sh", "gpu", "name", "c.py", "work", "--seed", "0")
    assert found == [
        "--partition=gpu", "--job-name=name", "--gres=gpu:8", "--ntasks=8", "--ntasks-per-node=8",
        "--cpus-per-task=10", "--kill-on-bad-exit=1", "python", "-u",
        str(runs.tool("occ", "train.py")), "c.py", "--work-dir=work", "--launcher=slurm", "--seed",
        "0",
    ]  # fmt: skip


def test_slurm_test_with_every_variable(stand_in: Path) -> None:
    found = lines(
        stand_in, "slurm_test.sh", "gpu", "name", "c.py", "a.pth",
        GPUS="2", GPUS_PER_NODE="4", CPUS_PER_TASK="3", SRUN_ARGS="--quotatype=spot --time=10",
    )  # fmt: skip
    assert found[2:] == [
        "--gres=gpu:2", "--ntasks=2", "--ntasks-per-node=2", "--cpus-per-task=3",
        "--kill-on-bad-exit=1", "--quotatype=spot", "--time=10", "python", "-u",
        str(runs.tool("occ", "test.py")), "c.py", "a.pth", "--launcher=slurm", "--eval",
    ]  # fmt: skip
