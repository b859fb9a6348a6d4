"""Process set-up for one process, torchrun and Slurm, on CPU (gloo) or GPU (nccl)."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

logger = logging.getLogger(__name__)

DEFAULT_PORT = "29501"


class DistributedSetupError(RuntimeError):
    """The environment describes a distributed run that cannot be started."""


@dataclass(frozen=True)
class Launch:
    """What the environment says about this process.

    Attributes:
        launcher: ``'single'``, ``'torchrun'`` (RANK and WORLD_SIZE are set) or ``'slurm'``.
        rank: index of this process, 0 <= rank < world_size.
        world_size: number of processes.
        local_rank: index of this process on its machine, which is also its GPU index.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int


@dataclass(frozen=True)
class DistInfo:
    """A running process: its :class:`Launch` and the device it computes on."""

    launch: Launch
    device: torch.device
    backend: str

    @property
    def rank(self) -> int:
        return self.launch.rank

    @property
    def world_size(self) -> int:
        return self.launch.world_size


def _int_env(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = env.get(name)
    if value is None and default is not None:
        return default
    try:
        return int(value)
    except (TypeError, ValueError):
        raise DistributedSetupError(
            f"environment variable {name}={value!r} should be a whole number; "
            "start with torchrun or srun, or unset it for a single process"
        ) from None


def detect_launch(env: Mapping[str, str], local_rank: int | None = None) -> Launch:
    """Read rank and world size from the environment.

    RANK and WORLD_SIZE (torchrun, also inside a Slurm job) come first; then Slurm, when
    SLURM_PROCID is there and the step has more than one task; else it is a single process.

    Args:
        env: usually ``os.environ``.
        local_rank: value of ``--local-rank``, used when the environment has no LOCAL_RANK.

    Raises:
        DistributedSetupError: a variable is not a number, or rank is outside the world.
    """
    if "RANK" in env and "WORLD_SIZE" in env:
        rank, world = _int_env(env, "RANK"), _int_env(env, "WORLD_SIZE")
        fallback = local_rank if local_rank is not None else rank
        launch = Launch("torchrun", rank, world, _int_env(env, "LOCAL_RANK", fallback))
    else:
        tasks_name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
        if "SLURM_PROCID" in env and _int_env(env, tasks_name, 1) > 1:
            rank, world = _int_env(env, "SLURM_PROCID"), _int_env(env, tasks_name)
            launch = Launch("slurm", rank, world, _int_env(env, "SLURM_LOCALID", rank))
        else:
            return Launch("single", 0, 1, local_rank or 0)
    if launch.world_size < 1 or not 0 <= launch.rank < launch.world_size:
        raise DistributedSetupError(
            f"rank {launch.rank} of {launch.world_size} processes ({launch.launcher}) is not "
            "possible: 0 <= rank < world size is needed"
        )
    if launch.world_size == 1:
        return Launch("single", 0, 1, launch.local_rank)
    return launch


def expand_nodelist(nodelist: str) -> list[str]:
    """Expand a Slurm node list such as ``'gpu[01-03,7],login1'`` into host names.

    A small stand-in for ``scontrol show hostnames``.

    Raises:
        DistributedSetupError: the text does not look like a node list.
    """
    hosts: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodelist.strip()):
        names = [""]
        for text, ranges in re.findall(r"([^\[\]]+)|\[([^\]]*)\]", part):
            names = [n + s for n in names for s in ([text] if text else _expand_ranges(ranges))]
        hosts += names
    if not hosts or any(not re.fullmatch(r"[\w.-]+", host) for host in hosts):
        raise DistributedSetupError(
            f"cannot read the Slurm node list {nodelist!r}; export MASTER_ADDR=<first host>"
        )
    return hosts


def _expand_ranges(ranges: str) -> Iterator[str]:
    for item in ranges.split(","):
        first, dash, last = item.partition("-")
        if not dash:
            yield first
        elif first.isdigit() and last.isdigit():
            for number in range(int(first), int(last) + 1):
                yield str(number).zfill(len(first))
        else:
            raise DistributedSetupError(f"cannot read the range {item!r} of a Slurm node list")


def slurm_master_address(env: Mapping[str, str]) -> str:
    """Host name of the first node of a Slurm step (scontrol, else our own reading of the list)."""
    nodelist = next(
        (
            env[k]
            for k in ("SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST")
            if k in env
        ),
        None,
    )
    if not nodelist:
        raise DistributedSetupError(
            "SLURM_NODELIST is not set, so the first host is unknown; export MASTER_ADDR=<host>"
        )
    if shutil.which("scontrol"):
        try:
            shown = subprocess.run(
                ["scontrol", "show", "hostnames", nodelist],
                capture_output=True, text=True, check=True, timeout=60,
            )  # fmt: skip
            if shown.stdout.split():
                return shown.stdout.split()[0]
        except (OSError, subprocess.SubprocessError) as error:
            logger.warning("scontrol failed (%s); reading the node list without it", error)
    return expand_nodelist(nodelist)[0]


def export_slurm(env: MutableMapping[str, str], launch: Launch) -> None:
    """Write the torch.distributed variables of a Slurm step into ``env``."""
    env.setdefault("MASTER_PORT", DEFAULT_PORT)
    if not env.get("MASTER_ADDR"):
        env["MASTER_ADDR"] = slurm_master_address(env)
    env["RANK"], env["WORLD_SIZE"] = str(launch.rank), str(launch.world_size)
    env["LOCAL_RANK"] = str(launch.local_rank)
    first = re.match(
        r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", ""))
    )
    if first:
        env.setdefault("LOCAL_SIZE", first.group())


def resolve_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """Turn ``--device`` into a torch.device.

    Args:
        name: ``'auto'`` (GPU if there is one), ``'cpu'``, ``'cuda'`` or ``'cuda:N'``.
        local_rank: GPU index used for ``'auto'`` and ``'cuda'``.

    Raises:
        DistributedSetupError: the device is unknown or not there.
    """
    name = (name or "auto").lower()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise DistributedSetupError(f"device {name!r} is not known; use auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DistributedSetupError(
            f"device {name!r} was asked for, but torch {torch.__version__} sees no GPU; "
            "check nvidia-smi and the driver, or use --device cpu"
        )
    index = device.index if device.index is not None else local_rank
    if index >= torch.cuda.device_count():
        raise DistributedSetupError(
            f"GPU {index} was asked for, but only {torch.cuda.device_count()} are visible; start "
            "fewer processes on this machine or check CUDA_VISIBLE_DEVICES"
        )
    return torch.device("cuda", index)


def init_distributed(
    device: str = "auto", local_rank: int | None = None, *, always_group: bool = False
) -> DistInfo:
    """Choose the device and join the process group when there is more than one process.

    Args:
        device: see :func:`resolve_device`.
        local_rank: value of ``--local-rank`` (old launchers pass it; the environment wins).
        always_group: make a process group of one for a single process too.

    Raises:
        DistributedSetupError: impossible environment or missing device.
    """
    launch = detect_launch(os.environ, local_rank)
    chosen = resolve_device(device, launch.local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    if launch.world_size == 1:
        if not always_group:
            return DistInfo(launch, chosen, "")
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        return DistInfo(launch, chosen, backend)
    if launch.launcher == "slurm":
        export_slurm(os.environ, launch)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", DEFAULT_PORT)
    dist.init_process_group(
        backend, init_method="env://", rank=launch.rank, world_size=launch.world_size
    )
    barrier()
    return DistInfo(launch, chosen, backend)


def is_initialized() -> bool:
    """Whether a process group is running."""
    return dist.is_available() and dist.is_initialized()


def get_rank() -> int:
    """Rank of this process (0 without a process group)."""
    return dist.get_rank() if is_initialized() else 0


def get_world_size() -> int:
    """Number of processes (1 without a process group)."""
    return dist.get_world_size() if is_initialized() else 1


def is_main_process() -> bool:
    """Whether this is rank 0."""
    return get_rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if is_initialized():
        if dist.get_backend() == "nccl":
            dist.barrier(device_ids=[torch.cuda.current_device()])
        else:
            dist.barrier()


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all processes, in place."""
    if get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is true on at least one process (collective)."""
    if get_world_size() == 1:
        return flag
    return bool(all_reduce_sum(torch.tensor(float(flag), device=device)).item() > 0)


def gather_objects(value: object) -> list[object]:
    """One picklable object from each process, in rank order (collective)."""
    if get_world_size() == 1:
        return [value]
    values: list[object] = [None] * get_world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: object) -> object:
    """The value that rank 0 holds (collective)."""
    if get_world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


@contextlib.contextmanager
def main_process_first() -> Iterator[bool]:
    """Run the body on rank 0, then on the others; yields whether this is rank 0."""
    main = is_main_process()
    if not main:
        barrier()
    try:
        yield main
    finally:
        if main:
            barrier()


def is_lost_peer(error: Exception) -> bool:
    """Whether a collective operation failed because another process had ended (gloo, nccl)."""
    if get_world_size() == 1:
        return False
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("closed by peer", "reset by peer", "remote process exited")
    )


def cleanup() -> None:
    """Leave the process group."""
    if is_initialized():
        dist.destroy_process_group()
