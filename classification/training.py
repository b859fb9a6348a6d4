"""A run from its configuration to its results, the same for every way of distributing the model.

``main.py``, ``main_deepspeed.py`` and ``main_accelerate.py`` differ in their flags and in the
:class:`backend.Backend` that they hand to :func:`run_program`: it starts the processes, wraps the
model, applies gradients, and writes and reads checkpoints.
"""

from __future__ import annotations

import argparse
import json
import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import distributed
import engine
import evaluation
from backend import Backend
from checkpoint import CheckpointError
from config import ConfigError, amp_dtype, config_to_dict, get_config, is_typed
from dataset import DataError, build_loader
from logger import RunLog, close_logging, setup_logging
from models import build_model, weights
from models.fetch import fetch
from models.safe_load import load_file
from nonfinite import NonFiniteError

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


@dataclass
class Run:
    """What evaluation and training share."""

    config: Any
    backend: Backend
    loaders: Any
    head_rows: Sequence[int] | None
    log: RunLog = field(default_factory=lambda: RunLog(None))

    def open_log(self, first_step: int) -> None:
        """Start recording; ``first_step`` is the number of updates done so far."""
        self.log = self.backend.open_log(first_step)

    def evaluate(
        self, model: nn.Module, step: int, epoch: int, *, ema: bool = False, lockstep: bool = False
    ) -> evaluation.Evaluation:
        """Validate, log and record."""
        result = evaluation.validate(
            model,
            self.loaders.val,
            device=self.backend.info.device,
            head_rows=self.head_rows,
            print_freq=self.config.PRINT_FREQ,
            epoch=epoch,
            reduce=not self.config.TEST.SEQUENTIAL,
            lockstep=lockstep,
        )
        logger.info(
            "Accuracy of the %snetwork on the %d test images: %.2f%%",
            "ema " if ema else "", result.images, result.acc1,
        )  # fmt: skip
        self.log.evaluation(step, epoch, result.record(), ema)
        return result


def find_checkpoint(config: Any, backend: Backend) -> str:
    """MODEL.RESUME, else the newest usable checkpoint in OUTPUT when AUTO_RESUME is on, else ''.

    For evaluation a typed --pretrained comes before the checkpoints in OUTPUT; a training run that
    is started again goes on from them.
    """
    if config.MODEL.RESUME or not config.TRAIN.AUTO_RESUME:
        return config.MODEL.RESUME
    if config.EVAL_MODE and config.MODEL.PRETRAINED and is_typed(config, "MODEL.PRETRAINED"):
        return ""
    found = backend.find_resumable()
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


def evaluate_only(run: Run, model: nn.Module, resume: str) -> None:
    """``--eval``: load weights only, validate them and their moving average, in float32."""
    config = run.config
    if resume:
        checkpoint = run.backend.read(resume)
        weights.load_weights(
            model, checkpoint, source=resume, head_map=config.MODEL.HEAD_MAP, evaluation=True
        )
    elif config.MODEL.PRETRAINED:
        checkpoint = load_pretrained(config, model, evaluation=True)
    else:
        raise ConfigError(
            "--eval has nothing to evaluate: no --resume or --pretrained, no checkpoint in "
            f"{config.OUTPUT}"
        )
    epoch = checkpoint.get("epoch")
    epoch = epoch if isinstance(epoch, int) else 0
    run.open_log(0)
    run.evaluate(model, 0, epoch)
    if config.TRAIN.EMA.ENABLE and checkpoint.get("model_ema"):
        weights.load_weights(
            model,
            {"model": checkpoint["model_ema"]},
            source="the moving average",
            head_map=config.MODEL.HEAD_MAP,
            evaluation=True,
        )
        run.evaluate(model, 0, epoch, ema=True)


def train(run: Run, model: nn.Module, resume: str) -> None:
    """Train from START_EPOCH, a checkpoint or pretrained weights to the last epoch."""
    config, backend, loaders = run.config, run.backend, run.loaders
    info = backend.info
    accumulation = max(1, config.TRAIN.ACCUMULATION_STEPS)
    steps = engine.updates_per_epoch(len(loaders.train), accumulation)
    scaled = scale_learning_rate(config, info.world_size)
    logger.info(
        "learning rate %.3e (warm-up from %.3e, minimum %.3e) for %d images per update",
        scaled.TRAIN.BASE_LR, scaled.TRAIN.WARMUP_LR, scaled.TRAIN.MIN_LR,
        config.DATA.BATCH_SIZE * info.world_size * accumulation,
    )  # fmt: skip
    pretrained = bool(config.MODEL.PRETRAINED) and not resume
    if pretrained:
        load_pretrained(config, model)
    point = backend.prepare(model, scaled, steps, resume, loaders.class_names)
    if point.start_epoch:
        backend.scheduler.step_update(point.start_epoch * steps - 1)  # of the last update

    def evaluate(epoch: int) -> None:
        """Validate model and moving average; keep the best of each."""
        step = (epoch + 1) * steps
        lockstep = backend.lockstep
        accuracy = run.evaluate(backend.model, step, epoch, lockstep=lockstep).acc1
        ema_accuracy = 0.0
        if backend.has_ema:
            with backend.averaged() as averaged:
                result = run.evaluate(averaged, step, epoch, ema=True, lockstep=lockstep)
            ema_accuracy = result.acc1
        # saving is collective, and with TEST.SEQUENTIAL each process measured for itself
        accuracy, ema_accuracy = distributed.broadcast_object((accuracy, ema_accuracy))
        best, ema_best = accuracy > point.max_accuracy, ema_accuracy > point.max_accuracy_ema
        point.max_accuracy = max(accuracy, point.max_accuracy)
        point.max_accuracy_ema = max(ema_accuracy, point.max_accuracy_ema)
        for ema, wanted in ((False, best), (True, ema_best)):
            if wanted and epoch >= 0:
                backend.save_best(epoch, point, ema=ema)
        logger.info("Max accuracy: %.2f%%", point.max_accuracy)
        if backend.has_ema:
            logger.info("Max ema accuracy: %.2f%%", point.max_accuracy_ema)

    run.open_log(point.start_epoch * steps)
    if resume:
        evaluate(point.start_epoch - 1)
    elif pretrained:
        run.evaluate(backend.model, 0, -1, lockstep=backend.lockstep)

    criterion = engine.build_criterion(loaders.mixup_fn is not None, config.MODEL.LABEL_SMOOTHING)
    if point.start_epoch >= config.TRAIN.EPOCHS:
        logger.info("all %d epochs are done already", config.TRAIN.EPOCHS)
    for epoch in range(point.start_epoch, config.TRAIN.EPOCHS):
        engine.seed_everything(config.SEED, epoch, info.rank)
        loaders.set_epoch(epoch)
        engine.train_one_epoch(
            backend.model, loaders.train, criterion, backend.stepper, epoch=epoch,
            epochs=config.TRAIN.EPOCHS, device=info.device, amp=backend.autocast_dtype,
            mixup_fn=loaders.mixup_fn, accumulation=accumulation, print_freq=config.PRINT_FREQ,
            run_log=run.log,
        )  # fmt: skip
        backend.average_statistics()  # running statistics differ by rank: saved as evaluated
        final = epoch == config.TRAIN.EPOCHS - 1
        if epoch % config.SAVE_FREQ == 0 or final:
            backend.save_epoch(epoch, point)
        if epoch % config.EVAL_FREQ == 0 or final:
            evaluate(epoch)


def run_config(config: Any, backend: Backend) -> None:
    """Build everything that the configuration describes and do what it asks for."""
    info = backend.info
    precision = backend.choose_precision()
    if info.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    only_forward = config.EVAL_MODE or config.THROUGHPUT_MODE
    engine.seed_everything(config.SEED)
    loaders = build_loader(config, train=not only_forward, device=info.device)
    config = set_classes(config, loaders.num_classes)
    backend.config = config
    if info.rank == 0:
        text = json.dumps(config_to_dict(config), indent=2)
        (Path(config.OUTPUT) / "config.json").write_text(text + "\n")
        logger.debug("configuration: %s", text)
    logger.info(
        "%s: rank %d of %d (%s), device %s, %s", config.MODEL.NAME, info.rank, info.world_size,
        info.launch.launcher, info.device,
        "float32" if config.EVAL_MODE else precision,  # validation is in float32
    )  # fmt: skip
    model = build_model(config)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info("model %s: %.2f M parameters", config.MODEL.TYPE, parameters / 1e6)
    logger.debug("%s", model)
    rows = evaluation.rows_for_scoring(
        config.MODEL.NUM_CLASSES,
        loaders.num_classes,
        config.EVAL_22K_TO_1K,
        weights.read_head_map(config.MODEL.HEAD_MAP)
        if config.MODEL.NUM_CLASSES == weights.CLASSES_22K
        else None,
    )
    if config.THROUGHPUT_MODE:
        model = model.to(info.device)
        target = torch.compile(model) if config.COMPILE else model
        counts = (50, 30) if info.device.type == "cuda" else (3, 10)
        evaluation.throughput(
            target, loaders.val, device=info.device, amp=amp_dtype(config, info.device),
            warmup=counts[0], timed=counts[1],
        )  # fmt: skip
        return
    resume = find_checkpoint(config, backend)
    run = Run(config, backend, loaders, rows)
    try:
        if config.EVAL_MODE:
            evaluate_only(run, model.to(info.device), resume)
        else:
            train(run, model, resume)
    finally:
        run.log.close()
        backend.close()


def run_program(
    args: argparse.Namespace, start: Callable[[argparse.Namespace, Any], Backend]
) -> int:
    """Run a training program; returns its exit code.

    Args:
        args: parsed command line.
        start: joins the process group and gives the backend, from arguments and configuration.
    """
    try:
        backend = start(args, get_config(args))
        config = backend.config
        setup_logging(config.OUTPUT, config.MODEL.NAME, backend.info.rank)
        run_config(config, backend)
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
