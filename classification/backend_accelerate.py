"""Hugging Face Accelerate: the launch configuration decides between DDP and DeepSpeed."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

import engine
from backend_deepspeed import DeepSpeedBackend, import_deepspeed
from backend_folder import FolderBackend
from checkpoint import ResumePoint, unwrap
from config import ConfigError, config_to_dict, is_typed
from distributed import DistInfo, Launch
from logger import RunLog
from lr_scheduler import build_scheduler
from optimizer import build_optimizer
from zero_checkpoint import ENGINE_FOLDER

logger = logging.getLogger(__name__)

PRECISIONS = {"float16": "fp16", "bfloat16": "bf16", "none": "no"}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "no": None}


def check_config(config: Any, args: argparse.Namespace) -> None:
    """Refuse what cannot be combined with Accelerate, before any process group is made.

    Raises:
        ConfigError: a setting does not fit, or wandb is asked for and not installed.
    """
    if config.TRAIN.FSDP:
        raise ConfigError("--fsdp is main.py's own way of sharding: use it there, or leave it out")
    if config.COMPILE:
        raise ConfigError("--compile is not supported with Accelerate: leave it out")
    if args.logger == "wandb":
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"--logger wandb: it cannot be imported ({error}); pip install wandb, or use "
                "--logger tensorboard"
            ) from error


def typed_precision(config: Any) -> str | None:
    """Accelerate's name of the precision that the user typed, None when none was."""
    if not is_typed(config, "AMP_OPT_LEVEL"):
        return None
    return "no" if config.AMP_OPT_LEVEL == "O0" else PRECISIONS[config.AMP_TYPE]


def build_accelerator(config: Any, args: argparse.Namespace) -> Any:
    """The ``Accelerator`` of a run; joins the process group.

    Mixed precision is that of the launch configuration, unless --amp-dtype or --amp-opt-level was
    typed.

    Raises:
        ConfigError: Accelerate is not installed, or the launch configuration cannot be used.
    """
    try:
        import accelerate
    except ImportError as error:
        raise ConfigError(
            f"Accelerate cannot be imported ({error}): pip install -r ../requirements/large.txt"
        ) from error
    if accelerate.utils.is_deepspeed_available():
        import_deepspeed()
    by_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"
    if by_deepspeed and config.DEVICE == "cpu" and torch.cuda.is_available():
        raise ConfigError("DeepSpeed takes the GPUs it sees: hide them with CUDA_VISIBLE_DEVICES=")
    handlers = [
        accelerate.DistributedDataParallelKwargs(broadcast_buffers=False),
        accelerate.GradScalerKwargs(enabled=not args.disable_grad_scalar),
    ]
    if by_deepspeed and not torch.cuda.is_available():  # else it sees one process
        handlers.append(accelerate.InitProcessGroupKwargs(backend="gloo"))
    try:
        return accelerate.Accelerator(
            mixed_precision=None if by_deepspeed else typed_precision(config),
            cpu=config.DEVICE == "cpu" and not by_deepspeed,  # it would turn DeepSpeed off
            step_scheduler_with_optimizer=False,
            kwargs_handlers=handlers,
        )
    except (ValueError, ImportError, OSError) as error:
        raise ConfigError(f"the launch configuration cannot be used: {error}") from error


def dist_info(accelerator: Any) -> DistInfo:
    """This process as the rest of the program knows it."""
    launch = Launch(
        "accelerate", accelerator.process_index, accelerator.num_processes,
        accelerator.local_process_index,
    )  # fmt: skip
    backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else ""
    return DistInfo(launch, accelerator.device, backend)


class WandbBoard:
    """Scalars for Weights & Biases, in place of TensorBoard."""

    def __init__(self, config: Any) -> None:
        import wandb

        self.run = wandb.init(
            project="internimage", name=config.MODEL.NAME, dir=config.OUTPUT, resume="allow",
            config=config_to_dict(config),
        )  # fmt: skip

    def add_scalar(self, key: str, value: float, step: int) -> None:
        self.run.log({key: value}, step=step)

    def flush(self) -> None:
        """Everything has been handed over already."""

    def close(self) -> None:
        self.run.finish()


class _Accelerated:
    """What both ways share: the accelerator's folders, and where the run's numbers go."""

    link = "last"

    def __init__(self, config: Any, accelerator: Any, args: argparse.Namespace) -> None:
        FolderBackend.__init__(self, config, dist_info(accelerator))
        self.accelerator = accelerator
        self.args = args

    def open_log(self, first_step: int) -> RunLog:
        board = None
        if self.args.logger == "wandb" and self.info.rank == 0:
            board = WandbBoard(self.config)
        return RunLog(self.config.OUTPUT, first_step, self.info.rank, board)

    def write_engine(self, folder: Path, entries: dict[str, Any]) -> None:
        from safetensors import SafetensorError

        try:
            self.accelerator.save_state(str(folder))
        except SafetensorError as error:
            raise OSError(str(error)) from error

    def load_engine(self, folder: Path) -> None:
        self.accelerator.load_state(str(folder))


class AccelerateBackend(_Accelerated, FolderBackend):
    """One process or DistributedDataParallel, prepared by Accelerate."""

    def choose_precision(self) -> str:
        precision = self.accelerator.mixed_precision
        if precision == "fp16" and self.info.device.type == "cpu":
            raise ConfigError(
                "float16 mixed precision was asked for on CPU, where it is not used: "
                "type --amp-dtype bfloat16, or --amp-dtype none for float32"
            )
        self.autocast_dtype = None  # the prepared model casts
        return f"Accelerate {self.accelerator.distributed_type.value}, mixed precision {precision}"

    def prepare(
        self,
        model: nn.Module,
        scaled: Any,
        steps: int,
        resume: str,
        class_names: list[str] | None = None,
    ) -> ResumePoint:
        self.class_names = class_names
        self.plain = model.to(self.info.device)
        self.ema = self.build_ema(self.plain)
        self.optimizer = build_optimizer(scaled, self.plain, share=False)
        self.model, _ = self.accelerator.prepare(self.plain, self.optimizer)
        self.scheduler = build_scheduler(scaled, self.optimizer, steps)
        self.stepper = engine.TorchStepper(
            self.model, self.optimizer, self.scheduler, scaler=self.accelerator.scaler,
            clip_grad=self.config.TRAIN.CLIP_GRAD, ema=self.ema,
        )  # fmt: skip
        return self.begin(resume)

    def ema_state(self, keep: bool) -> dict[str, torch.Tensor]:
        return unwrap(self.ema.module).state_dict()

    def load_ema(self, state: dict[str, torch.Tensor] | None) -> None:
        if state is None:
            self.ema.set(self.plain)
        else:
            self.ema.module.load_state_dict(state)


class AccelerateDeepSpeedBackend(_Accelerated, DeepSpeedBackend):
    """A DeepSpeed engine prepared by Accelerate; batch size, accumulation and clipping are those of
    the run's configuration."""

    def choose_precision(self) -> str:
        self.settings = self.accelerator.state.deepspeed_plugin.deepspeed_config
        precision = typed_precision(self.config) or self.accelerator.mixed_precision
        if precision == "fp16" and self.info.device.type == "cpu":
            raise ConfigError(
                "float16 was asked for on CPU, where DeepSpeed does not support it: type "
                "--amp-dtype bfloat16, or --amp-dtype none for float32"
            )
        self.dtype = DTYPES[precision]
        for name in ("fp16", "bf16"):
            self.settings.setdefault(name, {})["enabled"] = precision == name
        self.stage = int(self.settings["zero_optimization"]["stage"])
        batch, accumulation = (
            self.config.DATA.BATCH_SIZE,
            max(1, self.config.TRAIN.ACCUMULATION_STEPS),
        )
        self.settings["train_micro_batch_size_per_gpu"] = batch
        self.settings["gradient_accumulation_steps"] = accumulation
        self.settings["train_batch_size"] = batch * accumulation * self.info.world_size
        self.settings["gradient_clipping"] = float(self.config.TRAIN.CLIP_GRAD or 0.0)
        self.settings["zero_allow_untested_optimizer"] = True
        self.settings["zero_force_ds_cpu_optimizer"] = False
        if self.args.disable_grad_scalar and self.dtype is torch.float16:
            self.settings.setdefault("fp16", {})["loss_scale"] = 1.0
        return f"Accelerate, DeepSpeed ZeRO-{self.stage} in {self.dtype or torch.float32}"

    def load_engine(self, folder: Path) -> None:
        self.check_shards(folder / ENGINE_FOLDER)
        super().load_engine(folder)

    def initialize(self, model: nn.Module) -> Any:
        return self.accelerator.prepare(model, self.optimizer)[0]
