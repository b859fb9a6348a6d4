"""Processes of a run: launchers, backends, model wrapping, on CPU (gloo) and GPU (nccl)."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import MutableMapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmcv.ops import get_compiling_cuda_version
from mmcv.parallel import MMDataParallel, MMDistributedDataParallel
from mmcv.runner import get_dist_info
from torch import nn

from .batch_norm import needs_local_batch_norm, use_local_batch_norm

logger = logging.getLogger(__name__)

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")
DEFAULT_PORT = 29500  # torch's
PATIENCE = timedelta(hours=2)  # the others wait while the first process evaluates; LVIS takes long

# launcher -> environment variables with (rank, number of processes, rank on this machine)
VARIABLES = {
    "pytorch": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
}


class LaunchError(ValueError):
    """The environment does not describe the processes that the launcher should have started."""


def choose_device(device: str) -> str:
    """'cpu' or 'cuda' for 'auto', 'cpu' or 'cuda'.

    Raises:
        LaunchError: 'cuda' without a usable GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise LaunchError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def start_processes(
    launcher: str,
    device: str,
    backend: str | None = None,
    env: MutableMapping[str, str] = os.environ,
) -> bool:
    """Joins the processes that `launcher` started; returns whether there is a process group.

    Sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in `env` where the launcher left
    them out, and makes this process's GPU the current one.

    Args:
        launcher: 'none': this process alone; 'pytorch': torchrun; 'slurm': srun; 'mpi': mpirun.
        device: 'cpu' or 'cuda'.
        backend: 'nccl', 'gloo', ...; None: nccl with GPUs, else gloo. nccl without a GPU is gloo.

    Raises:
        LaunchError: a variable of the launcher is missing or no number.
    """
    if launcher == "none":
        return False
    rank, size, local_rank = read_ranks(launcher, env)
    if launcher == "slurm":
        env.setdefault("MASTER_ADDR", first_slurm_host(env))
        env.setdefault("MASTER_PORT", str(slurm_port(env)))
    elif launcher == "mpi" and "MASTER_ADDR" not in env:
        if size != int(env.get("OMPI_COMM_WORLD_LOCAL_SIZE", size)):
            raise LaunchError("--launcher mpi on several machines needs MASTER_ADDR, the first one")
        env["MASTER_ADDR"] = "127.0.0.1"
    env.setdefault("MASTER_PORT", str(DEFAULT_PORT))
    env.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local_rank))
    if device == "cuda":
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    elif backend in (None, "nccl"):
        backend = "gloo"
    dist.init_process_group(backend or "nccl", timeout=PATIENCE)
    return True


def read_ranks(launcher: str, env: MutableMapping[str, str]) -> tuple[int, int, int]:
    """(rank, number of processes, rank on this machine) as `launcher` tells them.

    Raises:
        LaunchError: a variable is missing or no number.
    """
    names = VARIABLES[launcher]
    starter = {"pytorch": "torchrun (dist_train.sh)", "slurm": "srun", "mpi": "mpirun"}[launcher]
    values = []
    for name in names:
        try:
            values.append(int(env[name]))
        except KeyError:
            raise LaunchError(
                f"--launcher {launcher} needs the environment variable {name}, which {starter} "
                "sets; start the program with it, or leave --launcher out for one process"
            ) from None
        except ValueError:
            raise LaunchError(f"environment variable {name}={env[name]!r} is no number") from None
    return values[0], values[1], values[2]


def first_slurm_host(env: MutableMapping[str, str]) -> str:
    """Name of the first machine of the job.

    Raises:
        LaunchError: the list of machines is missing, or a short form that scontrol must expand.
    """
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST", "")
    if not nodes:
        raise LaunchError("--launcher slurm needs SLURM_NODELIST; start the program with srun")
    if "[" not in nodes:
        return nodes.split(",")[0]
    if shutil.which("scontrol"):
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False
        )
        if listed.returncode == 0 and listed.stdout.strip():
            return listed.stdout.split()[0]
    match = re.match(r"([^\[,]*)\[(\w+)[^\]]*\]([^,]*)", nodes)  # "node[03-07]-x" -> "node03-x"
    if match is None:
        raise LaunchError(f"cannot read SLURM_NODELIST={nodes!r}; set MASTER_ADDR")
    return match[1] + match[2] + match[3]


def slurm_port(env: MutableMapping[str, str]) -> int:
    """A port that all processes of a job agree on and two jobs of one machine do not share."""
    job = re.sub(r"\D", "", env.get("SLURM_JOB_ID", "")) or "0"
    return 20000 + int(job) % 20000


def free_port() -> int:
    """A port that is free on this machine now."""
    with socket.socket() as listening:
        listening.bind(("", 0))
        return listening.getsockname()[1]


class CPUDataParallel(MMDataParallel):
    """mmcv's wrapper for one process, on the CPU, also of a machine that has GPUs.

    torch's constructor looks for GPUs by itself; where it finds one it puts the model there.
    """

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module
        self.device_ids: list[int] = []  # mmcv then unpacks its data containers on the CPU
        self.dim = 0


class CPUDistributedDataParallel(MMDistributedDataParallel):
    """mmcv's wrapper for several processes, on the CPU.

    mmcv unpacks its data containers only on the way to a GPU; here they are unpacked first.
    """

    def train_step(self, *inputs: Any, **kwargs: Any) -> Any:
        inputs, kwargs = self.scatter(inputs, kwargs, [-1])
        return super().train_step(*inputs[0], **kwargs[0])

    def val_step(self, *inputs: Any, **kwargs: Any) -> Any:
        inputs, kwargs = self.scatter(inputs, kwargs, [-1])
        return super().val_step(*inputs[0], **kwargs[0])

    def _run_ddp_forward(self, *inputs: Any, **kwargs: Any) -> Any:
        inputs, kwargs = self.scatter(inputs, kwargs, [-1])
        return super()._run_ddp_forward(*inputs[0], **kwargs[0])


def wrap_model(
    model: nn.Module,
    device: str,
    distributed: bool,
    gpu_id: int = 0,
    find_unused_parameters: bool = False,
) -> nn.Module:
    """The model on its device, in the wrapper of mmcv that feeds it.

    Args:
        device: 'cpu' or 'cuda'.
        distributed: there is a process group; the GPU is the current one.
        gpu_id: the GPU without a process group.
        find_unused_parameters: as in torch's DistributedDataParallel.

    Raises:
        LaunchError: the model cannot run on a GPU, see `check_operators`.
    """
    if device == "cuda":
        check_operators(model)
    if needs_local_batch_norm(device):
        use_local_batch_norm(model)
    if not distributed:
        if device == "cpu":
            return CPUDataParallel(model.cpu())
        return MMDataParallel(model.cuda(gpu_id), device_ids=[gpu_id])
    options = {"broadcast_buffers": False, "find_unused_parameters": find_unused_parameters}
    if device == "cpu":
        return CPUDistributedDataParallel(model.cpu(), **options)
    current = torch.cuda.current_device()
    return MMDistributedDataParallel(model.cuda(), device_ids=[current], **options)


def check_operators(model: nn.Module) -> None:
    """Looks for operators that a GPU cannot run, before a run finds out that it cannot.

    Raises:
        LaunchError: the model has operators of mmcv, which was compiled without CUDA.
    """
    if get_compiling_cuda_version() != "not available":
        return
    used = {
        parent.__name__
        for module in model.modules()
        for parent in type(module).__mro__
        if parent.__module__.startswith("mmcv.ops")
    }
    if used:
        raise LaunchError(
            f"mmcv-full was compiled without CUDA, and the model has {', '.join(sorted(used))} of "
            "it: compile it where nvcc is (FORCE_CUDA=1 pip install --no-build-isolation --no-deps "
            "--force-reinstall --no-cache-dir mmcv-full==1.7.2), or use --device cpu"
        )


def agree(value: Any) -> Any:
    """`value` of rank 0, on every process."""
    if get_dist_info()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def shared_folder(parent: str | Path) -> str:
    """A new folder below `parent`, the same for every process (also of several machines)."""
    folder = None
    if get_dist_info()[0] == 0:
        Path(parent).mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=".parts-", dir=parent)
    return agree(folder)


def stop_processes() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
