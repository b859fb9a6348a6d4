"""FSDP2: weights, gradients and optimizer state sharded over the processes with plain PyTorch.

Each block, and what is left of the model, is one unit of ``fully_shard``: its weights are gathered
for its forward and backward pass only. Checkpoints are the same single files that main.py writes
without ``--fsdp``: they are gathered on rank 0, and either kind goes on from the other's.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

import engine
from backend import Backend, explain_float32
from checkpoint import CheckpointWriter, ResumePoint, load_to_resume, restore_progress
from config import ConfigError, amp_dtype
from lr_scheduler import build_scheduler
from models.fetch import fetch
from models.safe_load import load_file
from optimizer import build_optimizer

try:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor
except ImportError:  # PyTorch < 2.6: check_config refuses
    fully_shard = None


def check_config(config: Any) -> None:
    """Refuse what FSDP2 cannot be combined with.

    Raises:
        ConfigError: PyTorch is too old, or a setting does not fit.
    """
    if fully_shard is None:
        raise ConfigError(
            f"--fsdp needs PyTorch 2.6 or newer, this is {torch.__version__}: update it, or use "
            "--use-zero, which shards the optimizer's state"
        )
    if config.COMPILE:
        raise ConfigError("--fsdp and --compile cannot be combined: leave one out")
    if config.AMP_TYPE == "float16" and config.AMP_OPT_LEVEL in ("O1", "O2"):
        raise ConfigError(
            "--fsdp trains in bfloat16 or float32, not in float16: type --amp-dtype bfloat16"
        )


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The modules that repeat: the blocks of each level."""
    return [block for level in model.levels for block in level.blocks]


def shard(model: nn.Module, mesh: Any, dtype: torch.dtype | None) -> nn.Module:
    """Shard a model over all processes, in place.

    Args:
        mesh: one-dimensional device mesh.
        dtype: dtype of gathered weights and of the computation; None for float32. Gradients are
            reduced, and weights updated, in float32; so is batch norm computed.
    """

    def policy(dtype: torch.dtype | None, output: torch.dtype | None) -> MixedPrecisionPolicy:
        return MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, output_dtype=output
        )

    for module in model.modules():
        if dtype is not None and isinstance(module, nn.modules.batchnorm._BatchNorm):
            fully_shard(module, mesh=mesh, mp_policy=policy(torch.float32, dtype))
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh, mp_policy=policy(dtype, None))
    return fully_shard(model, mesh=mesh, mp_policy=policy(dtype, torch.float32))


def gather(value: Any, keep: bool) -> Any:
    """A nested value whose sharded tensors are whole, on the CPU (collective).

    Args:
        keep: False gives None in their place: the process only takes part.
    """
    if isinstance(value, dict):
        return {key: gather(item, keep) for key, item in value.items()}
    if isinstance(value, list):
        return [gather(item, keep) for item in value]
    if not isinstance(value, DTensor):
        return value
    full = value.full_tensor()
    return full.cpu() if keep else None


def scatter_optimizer(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer state of whole tensors, sharded as the optimizer's parameters are.

    What does not fit them is left as it is, for the loader to complain about.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def scatter(index: int, value: Any) -> Any:
        parameter = parameters[index] if index < len(parameters) else None
        if isinstance(value, torch.Tensor) and value.dim() and value.shape == parameter.shape:
            return distribute_tensor(value, parameter.device_mesh, parameter.placements)
        return value

    state = {
        index: {key: scatter(index, value) for key, value in entries.items()}
        for index, entries in saved["state"].items()
    }
    return {**saved, "state": state}


class FsdpStepper(engine.TorchStepper):
    """As in plain PyTorch; gradients that only accumulate are not reduced."""

    def context(self, sync: bool) -> contextlib.AbstractContextManager:
        self.model.set_requires_gradient_sync(sync)
        return contextlib.nullcontext()


class FsdpBackend(Backend):
    """Training with ``fully_shard``."""

    lockstep = True

    def choose_precision(self) -> str:
        self.dtype = amp_dtype(self.config, self.info.device)  # the sharding policy casts
        if self.dtype is torch.float16:  # the default of AMP_TYPE; typed, it is refused
            self.dtype = torch.bfloat16
        return f"FSDP2 in {self.dtype}" if self.dtype else "FSDP2 in float32"

    def prepare(
        self,
        model: nn.Module,
        scaled: Any,
        steps: int,
        resume: str,
        class_names: list[str] | None = None,
    ) -> ResumePoint:
        if self.dtype is None:
            explain_float32(self.config)
        self.class_names = class_names
        self.ema = self.build_ema(model, foreach=False)  # buffers are not sharded
        checkpoint = None
        if resume:
            resume = str(fetch(resume))
            checkpoint = load_file(resume)
            load_to_resume(
                checkpoint, source=resume, model=model, ema=self.ema,
                head_map=self.config.MODEL.HEAD_MAP,
            )  # fmt: skip
        mesh = init_device_mesh(self.info.device.type, (self.info.world_size,))
        self.model = self.plain = shard(model, mesh, self.dtype)
        if self.ema is not None:
            shard(self.ema.module, mesh, self.dtype)
        self.optimizer = build_optimizer(scaled, self.plain, share=False)
        self.scheduler = build_scheduler(scaled, self.optimizer, steps)
        self.stepper = FsdpStepper(
            self.model, self.optimizer, self.scheduler, clip_grad=self.config.TRAIN.CLIP_GRAD,
            ema=self.ema,
        )  # fmt: skip
        self.writer = CheckpointWriter(
            self.config.OUTPUT, self.config.SAVE_FREQ, self.config.SAVE_CKPT_NUM
        )
        if checkpoint is None:
            return ResumePoint(start_epoch=self.config.TRAIN.START_EPOCH)
        if checkpoint.get("optimizer"):
            optimizer = scatter_optimizer(checkpoint["optimizer"], self.optimizer)
            checkpoint = {**checkpoint, "optimizer": optimizer}
        return restore_progress(
            checkpoint, source=resume, optimizer=self.optimizer, scheduler=self.scheduler
        )

    def state(self, epoch: int, point: ResumePoint) -> dict[str, Any]:
        return gather(super().state(epoch, point), keep=self.info.rank == 0)
