"""The training run of a segmentor: data loaders and evaluation for `mmcv_custom.training`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from mmcv import Config
from mmcv.parallel import collate
from mmcv.runner import BaseRunner, Hook, get_dist_info
from mmcv_custom.distributed import agree
from mmcv_custom.runtime import naming_unknown_types
from mmcv_custom.training import run_training
from mmseg.core import DistEvalHook, EvalHook
from mmseg.datasets import build_dataloader
from mmseg.datasets.builder import worker_init_fn
from torch import nn
from torch.utils.data import DataLoader, Dataset

SPLITS = ("train", "val", "test", "train_dataloader", "val_dataloader", "test_dataloader")


class EndlessBatches:
    """Batches of shuffled indices without end, for runs that are counted in iterations.

    Every image comes once before any comes again, batches go on over the end of a round, and the
    order depends on the seed only. Images are dealt to the processes in turn: N processes see
    together what one process with batches N times as large would see. A sampler made anew and
    advanced (`mmcv_custom.runner.skip_batches`) is where a stopped one was. mmcv's loaders restart
    at every round, with a pause, and leave out the rest; data sets below one batch never start.

    Args:
        length: number of images.
        batch_size: per process.
        seed: the same on all processes.
    """

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        self.batch_size = batch_size
        self.length = length
        self.rank, self.world_size = get_dist_info()
        self.indices = self._indices(seed)

    def _indices(self, seed: int) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed)
        position = 0
        while True:
            for index in torch.randperm(self.length, generator=generator).tolist():
                if position % self.world_size == self.rank:
                    yield index
                position += 1

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            yield [next(self.indices) for _ in range(self.batch_size)]

    def __len__(self) -> int:
        """Batches of one round, for the logs."""
        return -(-self.length // (self.batch_size * self.world_size))


def train_segmentor(
    model: nn.Module,
    datasets: list[Dataset],
    val_dataset: Dataset | None,
    cfg: Config,
    *,
    distributed: bool,
    logger: logging.Logger,
    timestamp: str,
    meta: dict[str, Any],
) -> BaseRunner:
    """Trains; returns the runner when it has finished.

    Args:
        model: a segmentor with its weights set.
        datasets: one data set per entry of `cfg.workflow`.
        val_dataset: evaluated while training; None for no evaluation.
        cfg, distributed, logger, timestamp, meta: as for `run_training`.
    """
    loaders = [build_train_loader(dataset, cfg, distributed) for dataset in datasets]
    evaluation = None
    if val_dataset is not None:
        with naming_unknown_types("evaluation"):
            evaluation = build_evaluation(val_dataset, cfg, distributed)
    return run_training(
        model,
        loaders,
        evaluation,
        cfg,
        distributed=distributed,
        logger=logger,
        timestamp=timestamp,
        meta=meta,
    )


def loader_options(cfg: Config, split: str, **defaults: Any) -> dict[str, Any]:
    """Arguments of a data loader: those of `cfg.data` itself and of `data.SPLIT_dataloader`."""
    shared = {key: value for key, value in cfg.data.items() if key not in SPLITS}
    return {
        "samples_per_gpu": 2,
        "workers_per_gpu": 2,
        "persistent_workers": False,
        "pin_memory": cfg.device == "cuda",
        **shared,
        **defaults,
        **(cfg.data.get(f"{split}_dataloader") or {}),
    }


def build_train_loader(dataset: Dataset, cfg: Config, distributed: bool) -> DataLoader:
    """The loader of one training data set; mmseg's for runs that are counted in epochs."""
    options = loader_options(cfg, "train")
    seed = agree(cfg.seed)
    if cfg.runner.type != "IterBasedRunner":
        return build_dataloader(
            dataset, **{"drop_last": True, **options}, num_gpus=1, dist=distributed, seed=seed
        )
    batch, workers = options.pop("samples_per_gpu"), options.pop("workers_per_gpu")
    for name in ("drop_last", "shuffle"):
        options.pop(name, None)
    rank = get_dist_info()[0]
    return DataLoader(
        dataset,
        batch_sampler=EndlessBatches(len(dataset), batch, seed),
        num_workers=workers,
        collate_fn=functools.partial(collate, samples_per_gpu=batch),
        worker_init_fn=functools.partial(
            worker_init_fn, num_workers=workers, rank=rank, seed=cfg.seed
        ),
        **options,
    )


def build_evaluation(dataset: Dataset, cfg: Config, distributed: bool) -> Hook:
    """mmseg's evaluation hook for `dataset`."""
    options = loader_options(cfg, "val", samples_per_gpu=1, shuffle=False, drop_last=False)
    loader = build_dataloader(dataset, **options, num_gpus=1, dist=distributed)
    settings = {**cfg.get("evaluation", {}), "by_epoch": cfg.runner.type != "IterBasedRunner"}
    if not distributed:
        return EvalHook(loader, **settings)
    if cfg.device == "cpu":
        settings["gpu_collect"] = False
    return DistEvalHook(loader, **settings)
