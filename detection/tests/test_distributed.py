"""Processes: what launchers say is understood, and two processes compute what one does."""

from __future__ import annotations

import json
import pickle
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
import torch.distributed as dist
from conftest import Trained
from internimage.safe_load import load_file
from mmcv.ops import RoIAlign
from mmcv.parallel import DataContainer, MMDataParallel
from mmcv_custom import distributed
from mmcv_custom.batch_norm import LocalBatchNorm
from mmcv_custom.distributed import LaunchError, first_slurm_host, start_processes
from mmdet.core.utils import dist_utils
from mmdet.datasets.samplers import class_aware_sampler, distributed_sampler, infinite_sampler
from mmdet_custom.training import draw_seeds_on_the_cpu
from torch import nn

SAMPLERS = (class_aware_sampler, distributed_sampler, infinite_sampler)


def test_one_process_needs_no_group() -> None:
    assert start_processes("none", "cpu") is False
    assert distributed.agree({"a": 1}) == {"a": 1}


def environment(launcher: str, **more: str) -> dict[str, str]:
    """Of the only process of a launcher."""
    names = distributed.VARIABLES[launcher]
    return {**dict(zip(names, ("0", "1", "0"))), **more}


@pytest.mark.parametrize(
    ("launcher", "more"),
    [
        ("pytorch", {"MASTER_ADDR": "127.0.0.1"}),
        ("slurm", {"SLURM_NODELIST": "localhost"}),
        ("mpi", {}),
    ],
)
@pytest.mark.parametrize("backend", [None, "nccl"])
def test_group_of_every_launcher(
    launcher: str, more: dict[str, str], backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = environment(launcher, MASTER_PORT=str(distributed.free_port()), **more)
    started = {}

    def init(name: str, timeout: timedelta) -> None:
        started.update(env, name=name, timeout=timeout)

    monkeypatch.setattr(dist, "init_process_group", init)
    assert start_processes(launcher, "cpu", backend, env) is True
    assert started["name"] == "gloo"
    assert started["timeout"] > timedelta(hours=1)  # nccl's own are ten minutes
    assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"]) == ("0", "1", "0")
    assert env["MASTER_ADDR"] == more.get("SLURM_NODELIST", "127.0.0.1")


@pytest.mark.parametrize(
    ("launcher", "env", "message"),
    [
        ("pytorch", {"RANK": "0"}, "needs the environment variable WORLD_SIZE, which torchrun"),
        ("slurm", {"SLURM_PROCID": "a"}, "SLURM_PROCID='a' is no number"),
        ("mpi", {}, "which mpirun sets"),
    ],
)
def test_missing_variables_are_named(launcher: str, env: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError) as error:
        start_processes(launcher, "cpu", None, env)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu7,gpu9", "gpu7"),
        ("gpu[03-07,11]", "gpu03"),
        ("rack2-gpu[1,5]-ib", "rack2-gpu1-ib"),
    ],
)
def test_first_machine_of_a_slurm_job(
    nodes: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed.shutil, "which", lambda name: None)
    assert first_slurm_host({"SLURM_NODELIST": nodes}) == first


def test_two_slurm_jobs_of_a_machine_have_two_ports() -> None:
    jobs = (7, 8, 19999, 4000009)
    ports = [distributed.slurm_port({"SLURM_JOB_ID": str(job)}) for job in jobs]
    assert len(set(ports)) == len(jobs)
    assert all(1024 < port < 65536 for port in ports)
    assert distributed.slurm_port({}) == distributed.slurm_port({})


def test_training_as_the_one_task_of_a_slurm_job(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = environment("slurm", SLURM_NODELIST="localhost", SLURM_JOB_ID="7")
    env["MASTER_PORT"] = str(distributed.free_port())
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.setenv(name, "")  # put back after the test
        monkeypatch.delenv(name)
    arguments = ["--work-dir", tmp_path, "--launcher", "slurm", "--cfg-options"]
    assert (
        runs.train(trained.config, *arguments, "runner.max_epochs=1", "evaluation.interval=1") == 0
    )
    assert not dist.is_initialized()
    assert "bbox_mAP" in logged(tmp_path)[-1]


@pytest.mark.parametrize("processes", [False, True])
def test_synchronised_norms_become_local_ones_on_the_cpu(
    processes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch has them for several GPUs only."""
    model = nn.Sequential(nn.SyncBatchNorm(3), nn.BatchNorm2d(3)).train()
    names, weight = list(model.state_dict()), model[0].weight
    monkeypatch.setattr(distributed, "CPUDistributedDataParallel", lambda module, **_: module)
    wrapped = distributed.wrap_model(model, "cpu", distributed=processes)
    model = wrapped if processes else wrapped.module
    assert [type(module) for module in model] == [LocalBatchNorm, LocalBatchNorm]
    assert list(model.state_dict()) == names
    assert model[0].weight is weight
    assert torch.equal(model(torch.zeros(1, 3, 1, 1)), torch.zeros(1, 3, 1, 1))
    values = torch.randn(4, 3)  # SyncBN takes these, BatchNorm2d does not
    expected = nn.functional.batch_norm(values, None, None, training=True)
    torch.testing.assert_close(model[0](values), expected)


def test_a_run_on_the_cpu_leaves_the_gpu_of_its_machine_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch's DataParallel asks which accelerator there is, and wants to use it."""
    module = sys.modules["torch.nn.parallel.data_parallel"]  # a function has its name
    monkeypatch.setattr(module, "_get_available_device_type", lambda: "cuda")
    with pytest.raises(IndexError):
        MMDataParallel(nn.Linear(2, 1), device_ids=[])
    wrapped = distributed.wrap_model(nn.Linear(2, 1), "cpu", distributed=False)
    assert isinstance(wrapped, MMDataParallel)
    inputs = DataContainer([torch.ones(3, 2)], stack=False)
    assert wrapped(inputs).shape == (3, 1)


def test_a_gpu_needs_operators_compiled_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ModuleDict({"pool": RoIAlign(2)}))
    monkeypatch.setattr(distributed, "get_compiling_cuda_version", lambda: "13.0")
    distributed.check_operators(model)
    monkeypatch.setattr(distributed, "get_compiling_cuda_version", lambda: "not available")
    with pytest.raises(
        LaunchError, match=r"compiled without CUDA.* has RoIAlign of it.*FORCE_CUDA"
    ):
        distributed.wrap_model(model, "cuda", distributed=False)
    distributed.check_operators(model[:1])  # a model without them can go on


def test_samplers_agree_on_a_seed_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmdet's take a tensor on the GPU to the others; two of the three name no other place."""
    for module in SAMPLERS:
        monkeypatch.setattr(module, "sync_random_seed", module.sync_random_seed)  # put back
    sent = []
    monkeypatch.setattr(dist_utils, "get_dist_info", lambda: (0, 2))
    monkeypatch.setattr(dist, "broadcast", lambda tensor, src: sent.append(tensor))
    draw_seeds_on_the_cpu()
    for module in SAMPLERS:
        assert module.sync_random_seed(7, "cuda") == 7
    assert [tensor.device.type for tensor in sent] == ["cpu"] * len(SAMPLERS)


WHOLE_BATCH = {  # nothing is drawn at random, and every image counts as much as the others
    "drop_path": 0.0, "samples": 100000, "nms": 1.0, "flip": 0.0,
}  # fmt: skip
NO_MASKS = [
    "model.roi_head.mask_head=None", "model.roi_head.mask_roi_extractor=None",
    "model.type=FasterRCNN", "optimizer._delete_=True", "optimizer.type=SGD", "optimizer.lr=0.01",
    "optimizer_config.grad_clip=None", "evaluation.metric=bbox", "evaluation.save_best=None",
]  # fmt: skip


def logged(work_dir: Path) -> list[dict]:
    text = max(work_dir.glob("*.log.json")).read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_two_processes_train_as_one_with_the_doubled_batch(tmp_path: Path) -> None:
    """By the launcher itself, on the CPU, with evaluation."""
    data = runs.write_data(tmp_path / "data", train=2, val=3)
    one = runs.write_config(tmp_path / "one.py", data, batch=2, **WHOLE_BATCH)
    two = runs.write_config(tmp_path / "two.py", data, batch=1, **WHOLE_BATCH)
    options = ["--seed", "0", "--cfg-options", *NO_MASKS]
    assert runs.train(one, "--work-dir", tmp_path / "one", *options) == 0
    done = runs.shell(
        "bash", runs.DETECTION / "dist_train.sh", two, "2", "--work-dir", "two", *options,
        env={"PORT": str(distributed.free_port())}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (load_file(tmp_path / name / "epoch_2.pth") for name in ("one", "two"))
    for name, value in first["state_dict"].items():
        # float32, summed in another order; 2 steps
        torch.testing.assert_close(second["state_dict"][name], value, rtol=1e-4, atol=1e-6)
    losses = [
        [row["loss"] for row in logged(tmp_path / n) if "loss" in row] for n in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    metrics = [logged(tmp_path / name)[-1]["bbox_mAP"] for name in ("one", "two")]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-3)
    assert "device: cpu, processes: 2" in max((tmp_path / "two").glob("*.log")).read_text()


def test_two_processes_test_as_one(trained: Trained, tmp_path: Path) -> None:
    """Three images for two processes: the one that is tested twice counts once."""
    arguments = ["--eval", "bbox", "segm"]
    one = ["--work-dir", tmp_path / "one", "--out", tmp_path / "one.pkl"]
    assert runs.test(trained.config, trained.checkpoint, *one, *arguments) == 0
    done = runs.shell(
        "bash", runs.DETECTION / "dist_test.sh", trained.config, trained.checkpoint, "2",
        "--work-dir", "two", "--out", "two.pkl", "--show-dir", "show", "--gpu-collect", *arguments,
        env={"PORT": str(distributed.free_port())}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (pickle.loads((tmp_path / f"{n}.pkl").read_bytes()) for n in ("one", "two"))
    assert len(first) == len(second) == 3
    for (boxes, masks), (other_boxes, other_masks) in zip(first, second):
        for label, row in enumerate(boxes):
            np.testing.assert_allclose(row, other_boxes[label], atol=1e-4)
        assert masks == other_masks
    metrics = [
        json.loads(max((tmp_path / n).glob("eval_*.json")).read_text()) for n in ("one", "two")
    ]
    assert metrics[0]["metric"] == metrics[1]["metric"]
    assert {p.name for p in (tmp_path / "show").iterdir()} == {"0.png", "1.png", "2.png"}
    assert not list((tmp_path / "two").glob(".parts-*"))
