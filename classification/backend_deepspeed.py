"""DeepSpeed: ZeRO stages 1, 2 and 3, CPU offload, and checkpoints in folders."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import distributed
from backend import explain_float32
from backend_folder import FolderBackend
from checkpoint import ResumePoint
from config import ConfigError, amp_dtype
from lr_scheduler import build_scheduler
from nonfinite import NonFiniteError
from optimizer import build_optimizer
from zero_ema import ZeroEma

logger = logging.getLogger(__name__)

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


def import_deepspeed() -> Any:
    """The deepspeed module, quiet, and without the C++ it would compile for CPUs.

    Its shared-memory all-reduce for CPU processes is compiled at first use, which takes minutes
    and which gloo does without.

    Raises:
        ConfigError: DeepSpeed is not installed.
    """
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(
            f"DeepSpeed cannot be imported ({error}): "
            "DS_BUILD_OPS=0 pip install --no-build-isolation -r ../requirements/large.txt"
        ) from error
    from deepspeed.git_version_info import installed_ops

    if not installed_ops.get("deepspeed_shm_comm"):
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


def check_config(config: Any) -> None:
    """Refuse what cannot be combined with DeepSpeed.

    Raises:
        ConfigError: a setting does not fit.
    """
    if config.TRAIN.FSDP:
        raise ConfigError("--fsdp is main.py's own way of sharding: use it there, or leave it out")
    if config.COMPILE:
        raise ConfigError("--compile is not supported with DeepSpeed: leave it out")


def deepspeed_config(
    config: Any,
    *,
    stage: int,
    dtype: torch.dtype | None,
    offload_optimizer: bool = False,
    offload_param: bool = False,
    static_loss_scale: bool = False,
) -> dict[str, Any]:
    """DeepSpeed's configuration for a run.

    Args:
        stage: 1 shards the optimizer's state, 2 also gradients, 3 also weights.
        dtype: float16, bfloat16, or None for float32.
        offload_optimizer: keep the optimizer's state in the machine's memory and update there.
        offload_param: keep the sharded weights there too (stage 3).
        static_loss_scale: with float16, no scaling instead of dynamic scaling.

    Raises:
        ConfigError: weights can only be offloaded by stage 3.
    """
    if offload_param and stage < 3:
        raise ConfigError(f"--offload-param cpu needs --zero-stage 3, got --zero-stage {stage}")
    zero: dict[str, Any] = {"stage": stage}
    if offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if offload_param:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    settings = {
        "train_micro_batch_size_per_gpu": config.DATA.BATCH_SIZE,
        "gradient_accumulation_steps": max(1, config.TRAIN.ACCUMULATION_STEPS),
        "gradient_clipping": float(config.TRAIN.CLIP_GRAD or 0.0),
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # SGD
        "zero_force_ds_cpu_optimizer": False,  # PyTorch's AdamW needs no compiler
        "steps_per_print": 10**9,
    }
    if dtype is torch.float16:
        settings["fp16"] = {"enabled": True, "loss_scale": 1.0 if static_loss_scale else 0.0}
    elif dtype is torch.bfloat16:
        settings["bf16"] = {"enabled": True}
    return settings


class DeepSpeedStepper:
    """Gradients and updates by a DeepSpeed engine; learning rates by the run's schedule.

    Args:
        ds_engine: of ``deepspeed.initialize``.
        optimizer: the optimizer that the engine wraps.
        scheduler: of :func:`lr_scheduler.build_scheduler`.
        ema: updated after each optimizer step.
    """

    def __init__(
        self, ds_engine: Any, optimizer: Any, scheduler: Any, ema: ZeroEma | None = None
    ) -> None:
        self.engine = ds_engine
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.ema = ema
        self.sync = True

    def context(self, sync: bool) -> contextlib.AbstractContextManager:
        self.sync = sync
        self.engine.set_gradient_accumulation_boundary(sync)
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)  # the loop has divided it
        if not self.sync:
            self.engine.step()  # counts the batch

    def update(self, step: int) -> float:
        self.scheduler.step_update(step)
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        norm = math.nan if norm is None else float(norm)
        if getattr(self.engine.optimizer, "overflow", False):
            norm = math.nan  # float16: the update was left out and the loss scale lowered
        elif not math.isfinite(norm) and not self.engine.fp16_enabled():
            raise NonFiniteError(
                f"the gradient norm is {norm} although the loss is finite. Lower TRAIN.BASE_LR, "
                "and start again from the last checkpoint"
            )
        if self.ema is not None:
            self.ema.update()
        return norm

    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])


class DeepSpeedBackend(FolderBackend):
    """Training by a DeepSpeed engine.

    Args:
        args: command line with zero_stage, offload_optimizer, offload_param, disable_grad_scalar.
    """

    def __init__(self, config: Any, info: Any, args: argparse.Namespace) -> None:
        super().__init__(config, info)
        self.deepspeed = import_deepspeed()
        self.args = args

    def choose_precision(self) -> str:
        self.dtype = amp_dtype(self.config, self.info.device)  # the engine casts
        self.settings = deepspeed_config(
            self.config,
            stage=self.args.zero_stage,
            dtype=self.dtype,
            offload_optimizer=self.args.offload_optimizer == "cpu",
            offload_param=self.args.offload_param == "cpu",
            static_loss_scale=self.args.disable_grad_scalar,
        )
        self.stage = self.args.zero_stage
        return f"DeepSpeed ZeRO-{self.stage} in {self.dtype or torch.float32}"

    @property
    def lockstep(self) -> bool:  # type: ignore[override]
        return self.stage == 3

    # --------------------------------------------------------------------------- preparation
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
        self.optimizer = self.build_optimizer(scaled, model)
        self.model = self.initialize(model)
        self.plain = self.model.module
        cast_like_weights(self.plain, self.dtype)
        self.scheduler = build_scheduler(scaled, self.optimizer, steps)
        if self.config.TRAIN.EMA.ENABLE:
            decay = self.config.TRAIN.EMA.DECAY
            logger.info("moving average of the weights with decay %g", decay)
            self.ema = ZeroEma(self.plain, decay)
        self.stepper = DeepSpeedStepper(self.model, self.optimizer, self.scheduler, self.ema)
        return self.begin(resume)

    def build_optimizer(self, scaled: Any, model: nn.Module) -> torch.optim.Optimizer:
        """The run's optimizer with few parameter groups; ZeRO shards it."""
        on_cpu = "offload_optimizer" in self.settings["zero_optimization"]
        fused = True if on_cpu and TORCH >= (2, 4) else None  # much faster on CPUs
        return build_optimizer(scaled, model, merge=True, fused=fused, share=False)

    def initialize(self, model: nn.Module) -> Any:
        """The DeepSpeed engine of a model."""
        return self.deepspeed.initialize(
            model=model,
            optimizer=self.optimizer,
            config=self.settings,
            dist_init_required=False,
        )[0]

    # ---------------------------------------------------------------------------- evaluation
    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        with self.ema.applied():
            yield self.model

    def average_statistics(self) -> None:
        if self.info.world_size == 1:
            return
        groups = [dict(self.plain.named_buffers())]
        if self.ema is not None:
            groups.append(self.ema.buffers)
        for buffers in groups:
            for buffer in buffers.values():
                if buffer.is_floating_point():
                    distributed.all_reduce_sum(buffer).div_(self.info.world_size)

    # --------------------------------------------------------------------------- checkpoints
    def write_engine(self, folder: Path, entries: dict[str, Any]) -> None:
        self.model.save_checkpoint(
            str(folder.parent), tag=folder.name, client_state=entries, save_latest=False
        )

    def load_engine(self, folder: Path) -> None:
        self.check_shards(folder)
        self.model.load_checkpoint(
            str(folder.parent), tag=folder.name, load_lr_scheduler_states=False
        )

    def check_shards(self, folder: Path) -> None:
        """Refuse a folder that lacks files: DeepSpeed goes on without them.

        Raises:
            ValueError: an optimizer state, of which each process has one, is not there.
        """
        found = len(list(folder.glob("*_optim_states.pt")))
        if found != self.info.world_size:
            raise ValueError(
                f"{found} files *_optim_states.pt in {folder}, {self.info.world_size} are needed: "
                "it is incomplete, or another program wrote it"
            )

    def ema_state(self, keep: bool) -> dict[str, torch.Tensor]:
        return self.ema.state_dict(keep)

    def load_ema(self, state: dict[str, torch.Tensor] | None) -> None:
        if state is None:
            self.ema = self.stepper.ema = ZeroEma(self.plain, self.ema.decay)
        else:
            self.ema.load_state_dict(state)


def cast_like_weights(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Cast running statistics, and from now on the images, to the dtype of the weights; logits to
    float32."""
    if dtype is None:
        return
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(dtype)

    def cast(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(item.to(dtype) if item.is_floating_point() else item for item in inputs)

    module.register_forward_pre_hook(cast)
    module.register_forward_hook(lambda module, inputs, output: output.float())
