"""Reading the start-up environment: one process, torchrun, Slurm; and the Slurm start scripts."""

import socket
import subprocess
import sys

import pytest
import torch
from helpers import CLASSIFICATION, environment

import distributed
from distributed import DistributedSetupError, Launch, detect_launch, expand_nodelist


def test_one_process():
    assert detect_launch({}) == Launch("single", 0, 1, 0)
    assert detect_launch({}, local_rank=3) == Launch("single", 0, 1, 3)
    assert detect_launch({"RANK": "0", "WORLD_SIZE": "1"}).launcher == "single"


def test_torchrun():
    env = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert detect_launch(env) == Launch("torchrun", 5, 8, 1)
    assert detect_launch({"RANK": "5", "WORLD_SIZE": "8"}, local_rank=2).local_rank == 2
    inside = {**env, "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}  # torchrun started by srun
    assert detect_launch(inside) == Launch("torchrun", 5, 8, 1)
    with pytest.raises(DistributedSetupError, match="rank 8 of 8"):
        detect_launch({"RANK": "8", "WORLD_SIZE": "8"})
    with pytest.raises(DistributedSetupError, match="WORLD_SIZE='many'"):
        detect_launch({"RANK": "0", "WORLD_SIZE": "many"})


@pytest.mark.parametrize("tasks", ["2", "16", "128"])
def test_slurm(tasks):
    env = {"SLURM_PROCID": "1", "SLURM_NTASKS": tasks, "SLURM_LOCALID": "1"}
    assert detect_launch(env) == Launch("slurm", 1, int(tasks), 1)


def test_slurm_with_one_task_is_one_process():
    env = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_TASKS_PER_NODE": "1"}
    assert detect_launch(env).launcher == "single"
    # one srun step with one task inside an allocation for eight
    env = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}
    assert detect_launch(env).launcher == "single"
    assert detect_launch({"SLURM_PROCID": "0"}).launcher == "single"


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node1", ["node1"]),
        ("a1,b2", ["a1", "b2"]),
        ("gpu[01-03,7]", ["gpu01", "gpu02", "gpu03", "gpu7"]),
        ("x-[9-11],y", ["x-9", "x-10", "x-11", "y"]),
        ("r[1-2]n[1-2].site", ["r1n1.site", "r1n2.site", "r2n1.site", "r2n2.site"]),
    ],
)
def test_node_lists(text, hosts):
    assert expand_nodelist(text) == hosts


@pytest.mark.parametrize("text", ["", "gpu[1-x]", "a b"])
def test_bad_node_lists(text):
    with pytest.raises(DistributedSetupError):
        expand_nodelist(text)


def test_slurm_address_and_port(monkeypatch, tmp_path):
    env = {"SLURM_NODELIST": "gpu[07-09]", "SLURM_TASKS_PER_NODE": "16(x2)", "MASTER_PORT": "1234"}
    monkeypatch.setenv("PATH", str(tmp_path))  # no scontrol
    distributed.export_slurm(env, Launch("slurm", 17, 32, 1))
    assert env["MASTER_ADDR"] == "gpu07" and env["MASTER_PORT"] == "1234"
    assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"]) == ("17", "32", "1")
    assert env["LOCAL_SIZE"] == "16"
    env = {"SLURM_NODELIST": "gpu[07-09]", "MASTER_ADDR": "mine"}
    distributed.export_slurm(env, Launch("slurm", 0, 2, 0))
    assert env["MASTER_ADDR"] == "mine" and env["MASTER_PORT"] == "29501"
    with pytest.raises(DistributedSetupError, match="MASTER_ADDR"):
        distributed.export_slurm({}, Launch("slurm", 0, 2, 0))
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        '#!/bin/sh\n[ "$*" = "show hostnames odd{1}" ] && echo first && echo second\n'
    )
    scontrol.chmod(0o755)
    assert distributed.slurm_master_address({"SLURM_NODELIST": "odd{1}"}) == "first"
    scontrol.write_text("#!/bin/sh\nexit 1\n")
    assert distributed.slurm_master_address({"SLURM_NODELIST": "n[1-2]"}) == "n1"


def test_devices():
    assert distributed.resolve_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        assert distributed.resolve_device("auto") == torch.device("cpu")
        with pytest.raises(DistributedSetupError, match="sees no GPU"):
            distributed.resolve_device("cuda")
    with pytest.raises(DistributedSetupError, match="'gpu' is not known"):
        distributed.resolve_device("gpu")


# -------------------------------------------------------------------------------- start scripts
SRUN = '#!/bin/sh\nprintf "%s\\n" "$@"\n'


def start(script, *args, cwd, path, **extra):
    env = environment(PATH=f"{path}:/usr/bin:/bin", **extra)
    command = [str(CLASSIFICATION / script), *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture
def srun(tmp_path):
    """A folder with a stand-in srun that prints its arguments, one a line."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "srun").write_text(SRUN)
    (folder / "srun").chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("script", "program", "data", "output"),
    [
        ("train_in1k.sh", "main.py", "data/imagenet", "work_dirs"),
        ("train_in1k_deepspeed.sh", "main_deepspeed.py", "data/imagenet", "work_dirs_deepspeed"),
        ("train_inat18.sh", "main.py", "data/inat2018", "work_dirs"),
    ],
)
def test_start_scripts(script, program, data, output, srun, tmp_path, nano_yaml):
    extra = {"GPUS": "4", "SRUN_ARGS": "--exclusive -w n1"}
    done = start(
        script, "part", "a job", nano_yaml, "--tag", "a b", cwd=tmp_path, path=srun, **extra
    )
    assert done.returncode == 0, done.stderr
    command, *words = done.stdout.splitlines()
    assert command.startswith("srun -p part --job-name=a\\ job")
    program = words.index(str(CLASSIFICATION / program))
    slurm, arguments = words[: program - 2], words[program + 1 :]
    assert slurm == [
        "-p", "part", "--job-name=a job", "--gres=gpu:4", "--ntasks=4", "--ntasks-per-node=4",
        "--cpus-per-task=12", "--kill-on-bad-exit=1", "--exclusive", "-w", "n1",
    ]  # fmt: skip
    assert arguments == [
        "--cfg", str(nano_yaml), "--data-path", data, "--output", output, "--tag", "a b",
    ]  # fmt: skip


def test_start_scripts_defaults_and_errors(srun, tmp_path):
    config = "configs/toy/internimage_nano_digits.yaml"
    done = start("train_in1k.sh", "p", "j", config, cwd=tmp_path, path=srun)
    words = done.stdout.splitlines()
    assert {"--gres=gpu:8", "--ntasks=8", str(CLASSIFICATION / config)} <= set(words)
    done = start("train_in1k.sh", "p", "j", cwd=tmp_path, path=srun)
    assert done.returncode == 2 and "usage:" in done.stderr and "train_in1k.sh PART" in done.stderr
    done = start("train_in1k.sh", "p", "j", "none.yaml", cwd=tmp_path, path=srun)
    assert done.returncode == 1 and "none.yaml is neither in" in done.stderr


def test_two_slurm_tasks_train_together(tmp_path, nano_yaml, colours):
    """A stand-in srun that starts two processes as Slurm would, with no scontrol around."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "srun").write_text(
        "#!/bin/bash\nwhile [ \"$1\" != -u ]; do program=$1; shift; done\n"
        "export SLURM_NTASKS=2 SLURM_NODELIST=localhost SLURM_TASKS_PER_NODE=2\n"
        "for task in 0 1; do\n"
        '  SLURM_PROCID=$task SLURM_LOCALID=$task "$program" "$@" & pids="$pids $!"\n'
        "done\ncode=0\nfor pid in $pids; do wait $pid || code=$?; done\nexit $code\n"
    )  # fmt: skip
    (folder / "srun").chmod(0o755)
    done = start(
        "train_in1k.sh", "p", "j", nano_yaml, "--data-path", colours, "--output", tmp_path,
        "--batch-size", 4, "--opts", "TRAIN.EPOCHS", 1,
        cwd=tmp_path, path=folder, GPUS="2", PYTHON=sys.executable, MASTER_PORT=str(port),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    text = (tmp_path / "nano" / "log_rank0.txt").read_text()
    assert "rank 0 of 2 (slurm)" in text and (tmp_path / "nano" / "log_rank1.txt").exists()
    assert "on the 22 test images" in text
