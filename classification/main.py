"""Train, evaluate or time an InternImage classifier: ``python main.py --cfg FILE [options]``.

Runs in one process, under torchrun and under Slurm (srun), on CPU and GPU. Results go to
``<output>/<name of the YAML>/``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
for folder in (str(HERE.parent), str(HERE)):
    if folder not in sys.path:
        sys.path.insert(0, folder)

import torch
from timm.utils import ModelEmaV3, distribute_bn
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import distributed
import engine
from checkpoint import (
    CheckpointError,
    CheckpointWriter,
    ResumePoint,
    find_resumable,
    load_ema,
    resume_training,
    training_state,
    unwrap,
)
from cli import ArgumentParser
from config import ConfigError, add_arguments, amp_dtype, config_to_dict, get_config, is_typed
from dataset import DataError, build_loader
from fetch import fetch
from logger import RunLog, close_logging, setup_logging
from lr_scheduler import build_scheduler
from models import build_model, weights
from models.safe_load import load_file
from nonfinite import NonFiniteError
from optimizer import build_optimizer

logger = logging.getLogger(__name__)

USER_ERRORS = (
    ConfigError,
    CheckpointError,
    DataError,
    NonFiniteError,
    distributed.DistributedSetupError,
    OSError,
    ValueError,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of main.py."""
    parser = ArgumentParser(
        "main.py", description="InternImage: training and evaluation", allow_abbrev=False
    )
    add_arguments(parser)
    return parser.parse_args(argv)


def scale_learning_rate(config: Any, world_size: int) -> Any:
    """A copy of the configuration whose learning rates fit the number of images per update.

    BASE_LR, WARMUP_LR and MIN_LR are given for 512 images per update (linear scaling rule).
    """
    factor = config.DATA.BATCH_SIZE * world_size * max(1, config.TRAIN.ACCUMULATION_STEPS) / 512.0
    scaled = config.clone()
    scaled.defrost()
    for name in ("BASE_LR", "WARMUP_LR", "MIN_LR"):
        scaled.TRAIN[name] = config.TRAIN[name] * factor
    scaled.freeze()
    return scaled


def set_classes(config: Any, dataset_classes: int) -> Any:
    """The configuration with the model's class count: the data set's, or 21841 when a 22k head is
    to be scored on ImageNet-1k (EVAL_22K_TO_1K)."""
    classes = dataset_classes
    if config.EVAL_22K_TO_1K and dataset_classes == weights.CLASSES_1K:
        classes = weights.CLASSES_22K
    config = config.clone()
    config.defrost()
    config.MODEL.NUM_CLASSES = classes
    config.freeze()
    return config


def build_scaler(dtype: torch.dtype | None, device: torch.device) -> Any | None:
    """A gradient scaler for float16, else None."""
    if dtype is not torch.float16:
        return None
    if hasattr(torch, "amp") and hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device.type)
    return torch.cuda.amp.GradScaler()


def wrap_model(model: nn.Module, config: Any, info: distributed.DistInfo, fp16: bool) -> nn.Module:
    """DistributedDataParallel for several processes, torch.compile when asked for."""
    if info.world_size > 1:
        device_ids = [info.device.index] if info.device.type == "cuda" else None
        model = DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)
        if fp16 and info.backend == "nccl":
            from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

            model.register_comm_hook(state=None, hook=default_hooks.fp16_compress_hook)
    return torch.compile(model) if config.COMPILE else model


@dataclass
class Run:
    """What evaluation and training share."""

    config: Any
    info: distributed.DistInfo
    loaders: Any
    model: nn.Module
    head_rows: Sequence[int] | None
    log: RunLog = field(default_factory=lambda: RunLog(None))

    def open_log(self, first_step: int) -> None:
        """Start recording; ``first_step`` is the number of updates done so far."""
        self.log = RunLog(self.config.OUTPUT, first_step, self.info.rank)

    def evaluate(
        self, model: nn.Module, step: int, epoch: int, *, ema: bool = False
    ) -> engine.Evaluation:
        """Validate, log and record."""
        result = engine.validate(
            model,
            self.loaders.val,
            device=self.info.device,
            head_rows=self.head_rows,
            print_freq=self.config.PRINT_FREQ,
            epoch=epoch,
            reduce=not self.config.TEST.SEQUENTIAL,
        )
        logger.info(
            "Accuracy of the %snetwork on the %d test images: %.2f%%",
            "ema " if ema else "", result.images, result.acc1,
        )  # fmt: skip
        self.log.evaluation(step, epoch, result.record(), ema)
        return result


def find_checkpoint(config: Any) -> str:
    """MODEL.RESUME, else the newest usable checkpoint in OUTPUT when AUTO_RESUME is on, else ''.

    For evaluation a typed --pretrained comes before the checkpoints in OUTPUT; a training run that
    is started again goes on from them.
    """
    if config.MODEL.RESUME or not config.TRAIN.AUTO_RESUME:
        return config.MODEL.RESUME
    if config.EVAL_MODE and config.MODEL.PRETRAINED and is_typed(config, "MODEL.PRETRAINED"):
        return ""
    needs = ("model",) if config.EVAL_MODE else ("model", "optimizer", "lr_scheduler", "epoch")
    found = find_resumable(config.OUTPUT, needs)
    if found is None:
        logger.info("no checkpoint found in %s, ignoring auto resume", config.OUTPUT)
        return ""
    logger.info("auto resuming from %s", found)
    return str(found)


def load_pretrained(config: Any, model: nn.Module, *, evaluation: bool = False) -> dict:
    """Load MODEL.PRETRAINED (path or URL) into an unwrapped model."""
    path = fetch(config.MODEL.PRETRAINED)
    checkpoint = load_file(path)
    weights.load_weights(
        model,
        checkpoint,
        source=str(path),
        head_map=config.MODEL.HEAD_MAP,
        rand_init_head=config.TRAIN.RAND_INIT_FT_HEAD,
        evaluation=evaluation,
    )
    return checkpoint


def evaluate_only(run: Run, ema: nn.Module | None, resume: str) -> None:
    """``--eval``: load weights only, validate them and their moving average."""
    config = run.config
    if resume:
        path = fetch(resume)
        checkpoint = load_file(path)
        weights.load_weights(
            run.model,
            checkpoint,
            source=str(path),
            head_map=config.MODEL.HEAD_MAP,
            evaluation=True,
        )
    elif config.MODEL.PRETRAINED:
        checkpoint = load_pretrained(config, run.model, evaluation=True)
    else:
        raise ConfigError(
            "--eval has nothing to evaluate: no --resume or --pretrained, no checkpoint in "
            f"{config.OUTPUT}"
        )
    epoch = checkpoint.get("epoch")
    epoch = epoch if isinstance(epoch, int) else 0
    run.open_log(0)
    run.evaluate(run.model, 0, epoch)
    if ema is not None and checkpoint.get("model_ema"):
        load_ema(checkpoint, run.model, ema, config.MODEL.HEAD_MAP)
        run.evaluate(ema.module, 0, epoch, ema=True)


def train(run: Run, ema: nn.Module | None, resume: str, dtype: torch.dtype | None) -> None:
    """Train from START_EPOCH, a checkpoint or pretrained weights to the last epoch."""
    config, info, loaders = run.config, run.info, run.loaders
    accumulation = max(1, config.TRAIN.ACCUMULATION_STEPS)
    steps = engine.updates_per_epoch(len(loaders.train), accumulation)
    scaled = scale_learning_rate(config, info.world_size)
    logger.info(
        "learning rate %.3e (warm-up from %.3e, minimum %.3e) for %d images per update",
        scaled.TRAIN.BASE_LR, scaled.TRAIN.WARMUP_LR, scaled.TRAIN.MIN_LR,
        config.DATA.BATCH_SIZE * info.world_size * accumulation,
    )  # fmt: skip
    optimizer = build_optimizer(scaled, run.model)
    scheduler = build_scheduler(scaled, optimizer, steps)
    scaler = build_scaler(dtype, info.device)
    model = wrap_model(run.model, config, info, dtype is torch.float16)

    point = ResumePoint(start_epoch=config.TRAIN.START_EPOCH)
    writer = CheckpointWriter(config.OUTPUT, config.SAVE_FREQ, config.SAVE_CKPT_NUM)
    plain_config = config_to_dict(config)

    def state(epoch: int) -> dict[str, Any]:
        return training_state(
            model=model, optimizer=optimizer, scheduler=scheduler, epoch=epoch, point=point,
            config=plain_config, scaler=scaler, ema=ema, class_names=loaders.class_names,
        )  # fmt: skip

    def evaluate(epoch: int) -> None:
        """Validate model and moving average; keep the best of each."""
        step = (epoch + 1) * steps
        accuracy = run.evaluate(model, step, epoch).acc1
        ema_accuracy = run.evaluate(ema.module, step, epoch, ema=True).acc1 if ema else 0.0
        # saving is collective, and with TEST.SEQUENTIAL each process measured for itself
        accuracy, ema_accuracy = distributed.broadcast_object((accuracy, ema_accuracy))
        best, ema_best = accuracy > point.max_accuracy, ema_accuracy > point.max_accuracy_ema
        point.max_accuracy = max(accuracy, point.max_accuracy)
        point.max_accuracy_ema = max(ema_accuracy, point.max_accuracy_ema)
        for name, wanted in (("ckpt_epoch_best", best), ("ckpt_epoch_ema_best", ema_best)):
            if wanted and epoch >= 0:
                writer.save(name, state(epoch))
        logger.info("Max accuracy: %.2f%%", point.max_accuracy)
        if ema:
            logger.info("Max ema accuracy: %.2f%%", point.max_accuracy_ema)

    if resume:
        path = fetch(resume)
        point = resume_training(
            load_file(path), source=str(path), model=run.model, optimizer=optimizer,
            scheduler=scheduler, scaler=scaler, ema=ema, head_map=config.MODEL.HEAD_MAP,
        )  # fmt: skip
    run.open_log(point.start_epoch * steps)
    if resume:
        evaluate(point.start_epoch - 1)
    elif config.MODEL.PRETRAINED:
        load_pretrained(config, run.model)
        if ema is not None:
            ema.set(run.model)
        run.evaluate(model, 0, -1)

    criterion = engine.build_criterion(loaders.mixup_fn is not None, config.MODEL.LABEL_SMOOTHING)
    stepper = engine.TorchStepper(
        model, optimizer, scheduler, scaler=scaler, clip_grad=config.TRAIN.CLIP_GRAD, ema=ema
    )
    if point.start_epoch >= config.TRAIN.EPOCHS:
        logger.info("all %d epochs are done already", config.TRAIN.EPOCHS)
    for epoch in range(point.start_epoch, config.TRAIN.EPOCHS):
        engine.seed_everything(config.SEED, epoch, info.rank)
        loaders.set_epoch(epoch)
        engine.train_one_epoch(
            model, loaders.train, criterion, stepper, epoch=epoch, epochs=config.TRAIN.EPOCHS,
            device=info.device, amp=dtype, mixup_fn=loaders.mixup_fn, accumulation=accumulation,
            print_freq=config.PRINT_FREQ, run_log=run.log,
        )  # fmt: skip
        if info.world_size > 1:  # running statistics differ by rank: what is saved is evaluated
            for average in (run.model, ema.module) if ema else (run.model,):
                distribute_bn(average, info.world_size, reduce=True)
        final = epoch == config.TRAIN.EPOCHS - 1
        if epoch % config.SAVE_FREQ == 0 or final:
            writer.save_epoch(epoch, state(epoch))
        if epoch % config.EVAL_FREQ == 0 or final:
            evaluate(epoch)


def run_config(config: Any, info: distributed.DistInfo) -> None:
    """Build everything that the configuration describes and do what it asks for."""
    dtype = amp_dtype(config, info.device)
    if info.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    only_forward = config.EVAL_MODE or config.THROUGHPUT_MODE
    engine.seed_everything(config.SEED)
    loaders = build_loader(config, train=not only_forward, device=info.device)
    config = set_classes(config, loaders.num_classes)
    if info.rank == 0:
        text = json.dumps(config_to_dict(config), indent=2)
        (Path(config.OUTPUT) / "config.json").write_text(text + "\n")
        logger.debug("configuration: %s", text)
    logger.info(
        "%s: rank %d of %d (%s), device %s, %s", config.MODEL.NAME, info.rank, info.world_size,
        info.launch.launcher, info.device,
        f"autocast {dtype}" if dtype and not config.EVAL_MODE else "float32",  # as validation is
    )  # fmt: skip
    model = build_model(config).to(info.device)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info("model %s: %.2f M parameters", config.MODEL.TYPE, parameters / 1e6)
    logger.debug("%s", model)
    rows = engine.rows_for_scoring(
        config.MODEL.NUM_CLASSES,
        loaders.num_classes,
        config.EVAL_22K_TO_1K,
        weights.read_head_map(config.MODEL.HEAD_MAP)
        if config.MODEL.NUM_CLASSES == weights.CLASSES_22K
        else None,
    )
    if config.THROUGHPUT_MODE:
        target = torch.compile(model) if config.COMPILE else model
        counts = (50, 30) if info.device.type == "cuda" else (3, 10)
        engine.throughput(
            target, loaders.val, device=info.device, amp=dtype, warmup=counts[0], timed=counts[1]
        )
        return
    resume = find_checkpoint(config)
    ema = None
    if config.TRAIN.EMA.ENABLE:
        ema = ModelEmaV3(unwrap(model), decay=config.TRAIN.EMA.DECAY)
        logger.info("moving average of the weights with decay %g", config.TRAIN.EMA.DECAY)
    run = Run(config, info, loaders, model, rows)
    try:
        if config.EVAL_MODE:
            evaluate_only(run, ema, resume)
        else:
            train(run, ema, resume, dtype)
    finally:
        run.log.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    args = parse_args(argv)
    try:
        config = get_config(args)
        info = distributed.init_distributed(config.DEVICE, args.local_rank)
        setup_logging(config.OUTPUT, config.MODEL.NAME, info.rank)
        run_config(config, info)
        distributed.barrier()  # no process leaves while another still talks to it
    except (*USER_ERRORS, RuntimeError) as error:
        lost = distributed.is_lost_peer(error)
        if not (lost or isinstance(error, USER_ERRORS)):
            raise
        if not logging.getLogger().handlers:
            logging.basicConfig(format="%(levelname)s %(message)s")
        if lost:
            logger.error("another process ended; its own message, or its log_rank*.txt, says why")
        else:
            logger.error("%s", error)
        logger.debug("%s", traceback.format_exc())
        return 1
    except KeyboardInterrupt:
        logger.error("interrupted; start the same command again to go on from the last checkpoint")
        return 130
    finally:
        distributed.cleanup()
        close_logging()
    return 0


if __name__ == "__main__":
    sys.exit(main())
