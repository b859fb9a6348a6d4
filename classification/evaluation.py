"""Validation and timing of a model, shared by the plain, DeepSpeed and Accelerate programs."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils import accuracy
from torch import nn

import distributed
from engine import autocast, split_batch
from logger import Meter, Progress, memory_mb
from models.weights import CLASSES_1K, CLASSES_22K

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Accuracies in percent, mean loss and number of images, over all processes."""

    acc1: float
    acc5: float
    loss: float
    images: int

    def record(self) -> dict[str, float]:
        return {"acc1": self.acc1, "acc5": self.acc5, "loss": self.loss, "images": self.images}


@torch.no_grad()
def validate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    device: torch.device,
    head_rows: Sequence[int] | None = None,
    print_freq: int = 10,
    epoch: int | None = None,
    reduce: bool = True,
    lockstep: bool = False,
) -> Evaluation:
    """Evaluate in float32; each image counts once, also when ranks have different numbers.

    Args:
        loader: as for training.
        head_rows: columns of a 21841-class output that stand for the 1000 classes of the labels.
        epoch: shown in the log.
        reduce: False when every process walks the whole set.
        lockstep: the model's forward pass is collective (its weights are sharded), so a process
            that has run out of images calls it with zeros until all have finished.

    Raises:
        ValueError: the set is empty, or labels do not fit the model's outputs.
    """
    model.eval()
    rank = distributed.get_rank()
    total = len(loader)
    rows = None if head_rows is None else torch.as_tensor(head_rows, device=device)
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, top-1, top-5, images
    progress = Progress(total, "evaluation", print_freq, rank)
    time_meter, before = Meter(), time.perf_counter()
    for index, batch in enumerate(_in_lockstep(model, loader, device) if lockstep else loader):
        inputs, targets = split_batch(batch, device)
        if len(targets):
            output = model(*inputs).float()  # (N, classes)
            if rows is not None:
                output = output[:, rows]
            if int(targets.max()) >= output.shape[1]:
                raise ValueError(
                    f"label {int(targets.max())} in the validation set, but the model has "
                    f"{output.shape[1]} classes; checkpoint and data set do not belong together"
                )
            sums[0] += nn.functional.cross_entropy(output, targets, reduction="sum").double()
            percent = torch.stack(accuracy(output, targets, topk=(1, 5)))
            sums[1:3] += (percent.double() * len(targets) / 100).round()  # back to exact counts
            sums[3] += len(targets)
        time_meter.update(time.perf_counter() - before)
        before = time.perf_counter()
        line = ""
        if progress.due(index):
            loss, acc1, acc5 = (sums[:3] / sums[3].clamp(min=1)).tolist()
            line = (
                f"Test: [{index}/{total}]\tTime {time_meter.value:.3f} ({time_meter.average:.3f})\t"
                f"Loss {loss:.4f}\tAcc@1 {100 * acc1:.3f}\tAcc@5 {100 * acc5:.3f}\t"
                f"Mem {memory_mb(device):.0f}MB"
            )
        progress.update(index, line, "")
    progress.close()
    if reduce:
        distributed.all_reduce_sum(sums)
    loss, top1, top5, images = sums.tolist()
    if not images:
        raise ValueError("the validation set has no readable image; check DATA.DATA_PATH")
    result = Evaluation(100 * top1 / images, 100 * top5 / images, loss / images, int(images))
    prefix = "" if epoch is None else f" [Epoch:{epoch}]"
    logger.info("%s * Acc@1 %.3f Acc@5 %.3f", prefix, result.acc1, result.acc5)
    return result


def _in_lockstep(model: nn.Module, loader: Iterable[Any], device: torch.device) -> Iterable[Any]:
    """The loader's batches; then forward passes of zeros while another process has batches."""
    shapes: list[tuple[int, ...]] | None = None
    batches = iter(loader)
    while True:
        batch = next(batches, None)
        if not distributed.any_process(batch is not None, device):
            return
        if shapes is None:  # a process may have no image at all
            own = None
            if batch is not None:
                own = [tuple(item.shape[1:]) for item in split_batch(batch, device)[0]]
            shapes = next(found for found in distributed.gather_objects(own) if found)
        if batch is None:
            model(*(torch.zeros(1, *shape, device=device) for shape in shapes))
        else:
            yield batch


def rows_for_scoring(
    model_classes: int, dataset_classes: int, asked: bool, head_map: Sequence[int] | None
) -> Sequence[int] | None:
    """The class map when a 21841-class head is to be scored on 1000 classes, else None."""
    if model_classes == CLASSES_22K and (asked or dataset_classes == CLASSES_1K):
        return head_map
    return None


@torch.no_grad()
def throughput(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    device: torch.device,
    amp: torch.dtype | None = None,
    warmup: int = 50,
    timed: int = 30,
) -> float:
    """Images per second of forward passes over the first batch.

    Args:
        warmup: forward passes before the clock starts.
        timed: forward passes that are timed.
    """
    model.eval()
    inputs, targets = split_batch(next(iter(loader)), device)

    def passes(count: int) -> float:
        start = time.perf_counter()
        with autocast(device, amp):
            for _ in range(count):
                model(*inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    passes(warmup)
    seconds = passes(timed)
    speed = timed * len(targets) / seconds
    logger.info(
        "batch_size %d throughput %.2f images/s (%s, %s, mean of %d passes)",
        len(targets), speed, device, str(amp or torch.float32).removeprefix("torch."), timed,
    )  # fmt: skip
    return speed
