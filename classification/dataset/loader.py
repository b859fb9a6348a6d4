"""Data loaders of a run: what main.py and the tests call."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, default_collate
from yacs.config import CfgNode

from config import is_typed

from .errors import DataError
from .image_dataset import ImageDataset
from .listing import forget_archives
from .mixing import EpochMixup, build_mixup
from .samplers import ShardSampler, TarSampler
from .samples import Classes
from .sources import load_classes, load_samples, uses_metadata
from .storage import ByteCache
from .transforms import build_transform
from .webdataset_source import is_imagenet

logger = logging.getLogger(__name__)

HEAD_22K = 21841


@dataclass
class Loaders:
    """The loaders of a run.

    Batches are (images (N, 3, H, W) float32, targets (N,) int64); with metadata
    ((images, temporal (N, 4), spatial (N, 3)), targets).

    Attributes:
        train: training loader, None when not asked for.
        val: validation loader. Ranks can have different numbers of batches: keep collective
            operations out of the loop.
        mixup_fn: images, targets -> images, soft targets; None when nothing is mixed.
        num_classes: classes of the data set.
        class_names: one name per class, or None.
        train_sampler: order of the training images.
    """

    train: DataLoader | None
    val: DataLoader
    mixup_fn: EpochMixup | None
    num_classes: int
    class_names: list[str] | None
    train_sampler: DistributedSampler | ShardSampler | TarSampler | None

    def set_epoch(self, epoch: int) -> None:
        """Choose order, augmentation and mixing of an epoch; call before iterating ``train``."""
        if self.train is not None:
            self.train_sampler.set_epoch(epoch)
            self.train.dataset.set_epoch(epoch)
        if self.mixup_fn is not None:
            self.mixup_fn.set_epoch(epoch)


@dataclass(frozen=True)
class _World:
    """This process among all processes, and among those of its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def node(self) -> int:
        return self.rank // self.local_size

    @property
    def nodes(self) -> int:
        return self.size // self.local_size


def _world() -> _World:
    if not (dist.is_available() and dist.is_initialized()):
        return _World()
    rank, size = dist.get_rank(), dist.get_world_size()
    typed = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or ""
    local = int(typed) if typed.isdigit() else size
    if local < 1 or size % local:  # nothing known of the machines: one share per process
        local = size
    return _World(rank, size, rank % local, local)


class _Loader(DataLoader):
    """A DataLoader that leaves out batches in which no image could be read, and that passes on the
    message of a DataError without the worker's traceback."""

    def __iter__(self) -> Iterator[Any]:
        try:
            for batch in super().__iter__():
                if batch is not None:
                    yield batch
        except DataError as error:
            kind = type(error)
            message = str(error).strip().splitlines()[-1]
            # The traceback refers to itself. Within such a cycle the iterator is collected late,
            # in an order in which its workers do not hear of their end; so they end here.
            error.__traceback__ = self._iterator = None
        else:
            return
        raise kind(message.rpartition(f"{kind.__name__}: ")[2])


def collate(items: Sequence[Any]) -> tuple[Any, torch.Tensor] | None:
    """Stack items of `ImageDataset`; None items (unreadable) are left out, None when all are."""
    items = [item for item in items if item is not None]
    if not items:
        return None
    inputs, labels = zip(*items, strict=True)
    targets = torch.tensor(labels, dtype=torch.int64)
    if isinstance(inputs[0], tuple):
        return tuple(default_collate(list(part)) for part in zip(*inputs, strict=True)), targets
    return default_collate(list(inputs)), targets


def num_classes_of(config: CfgNode, classes: Classes | None = None) -> int:
    """The number of outputs that the model's head needs for the configured data set.

    It is the data set's class count, and 21841 with EVAL_22K_TO_1K. It wins over the default and
    over a YAML (with a note in the log).

    Raises:
        DataError: the user typed another MODEL.NUM_CLASSES; or EVAL_22K_TO_1K without imagenet.
    """
    classes = classes or load_classes(config)
    count, typed = classes.count, config.MODEL.NUM_CLASSES
    if config.EVAL_22K_TO_1K:
        if config.DATA.DATASET != "imagenet" and not is_imagenet(classes):
            raise DataError(
                "EVAL_22K_TO_1K scores on the 1000 ImageNet classes: it needs DATA.DATASET "
                f"imagenet, got {config.DATA.DATASET!r}"
            )
        count = HEAD_22K
    if typed != count and is_typed(config, "MODEL.NUM_CLASSES"):
        hint = "leave MODEL.NUM_CLASSES out"
        if typed == HEAD_22K and config.DATA.DATASET == "imagenet":
            hint += ", or score a 22K head with --eval --opts EVAL_22K_TO_1K True"
        raise DataError(
            f"MODEL.NUM_CLASSES {typed} was typed, but {config.DATA.DATASET} data "
            f"{config.DATA.DATA_PATH} need {count}: {hint}"
        )
    if typed != count:
        logger.info("the model gets %d classes from the data (configured: %d)", count, typed)
    return count


def build_loader(
    config: CfgNode, *, train: bool = True, device: torch.device | str = "cpu"
) -> Loaders:
    """Build the loaders of this process.

    Args:
        config: configuration.
        train: build the training loader too.
        device: device of the model; memory is pinned for CUDA only.

    Raises:
        DataError: the data set cannot be used; see `load_classes` and `load_samples`.
    """
    world = _world()
    if train and config.EVAL_22K_TO_1K:
        raise DataError("EVAL_22K_TO_1K is for evaluation: add --eval, or leave it out to train")
    try:
        classes = load_classes(config)
        num_classes_of(config, classes)
        train_loader = sampler = mixup_fn = None
        if train:
            mixup_fn = build_mixup(config, classes.count, world.rank)
            train_loader, sampler = _train_loader(config, classes, world, device)
        val_loader = _val_loader(config, classes, world, device, cached=train)
    finally:
        forget_archives()
    return Loaders(train_loader, val_loader, mixup_fn, classes.count, classes.names, sampler)


def _dataset(config: CfgNode, classes: Classes, split: str) -> ImageDataset:
    return ImageDataset(
        load_samples(config, split, classes),
        build_transform(split == "train", config),
        train=split == "train",
        seed=config.SEED,
        max_corrupt=config.DATA.MAX_CORRUPT,
        with_metadata=uses_metadata(config),
    )


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the main process ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _options(config: CfgNode, dataset: ImageDataset, device: torch.device | str) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "num_workers": config.DATA.NUM_WORKERS,
        "pin_memory": config.DATA.PIN_MEMORY and torch.device(device).type == "cuda",
        "collate_fn": collate,
        "worker_init_fn": _ignore_interrupts,
        "generator": torch.Generator().manual_seed(config.SEED),  # leaves the global one alone
    }


def _share(config: CfgNode, world: _World) -> tuple[str, int, int, int, int] | None:
    """(option, shard, shards, part, parts) of the images that this process keeps in memory.

    IMG_ON_MEMORY deals the data set out over the processes of each machine, so that each machine
    holds one copy. ZIP_MODE with CACHE_MODE part deals it out over all processes, with full every
    process holds everything.
    """
    if config.DATA.IMG_ON_MEMORY:
        shares = (world.local_rank, world.local_size, world.node, world.nodes)
        return ("DATA.IMG_ON_MEMORY", *shares)
    if config.DATA.ZIP_MODE and config.DATA.CACHE_MODE == "part":
        return ("DATA.CACHE_MODE part", world.rank, world.size, 0, 1)
    if config.DATA.ZIP_MODE and config.DATA.CACHE_MODE == "full":
        return ("DATA.CACHE_MODE full", 0, 1, world.rank, world.size)
    return None


def _fill_cache(
    dataset: ImageDataset, option: str, shard: int, num_shards: int, world: _World
) -> None:
    dataset.cache = ByteCache(
        dataset.reader,
        dataset.samples.paths,
        shard,
        num_shards,
        copies=world.local_size,
        option=option,
        progress=world.rank == 0,
    )


def _tar_sampler(
    config: CfgNode, dataset: ImageDataset, world: _World, *, shuffle: bool
) -> TarSampler:
    store, window = dataset.samples.shards, config.DATA.SHARD_WINDOW
    store.check_room(window if shuffle else 1, world.local_size)
    return TarSampler(store, window, world.rank, world.size, seed=config.SEED, shuffle=shuffle)


def _train_loader(
    config: CfgNode, classes: Classes, world: _World, device: torch.device | str
) -> tuple[DataLoader, DistributedSampler | ShardSampler | TarSampler]:
    dataset = _dataset(config, classes, "train")
    share = _share(config, world)
    if share is not None and share[2] > 1:  # draw only from what this process holds
        sampler = ShardSampler(len(dataset), *share[1:], seed=config.SEED)
    elif share is None and dataset.samples.shards is not None:
        sampler = _tar_sampler(config, dataset, world, shuffle=True)
    else:
        sampler = DistributedSampler(
            dataset, world.size, world.rank, shuffle=True, seed=config.SEED, drop_last=True
        )
    if len(sampler) < config.DATA.BATCH_SIZE:
        raise DataError(
            f"{len(dataset)} training images over {world.size} process(es) do not fill one batch "
            f"of {config.DATA.BATCH_SIZE}: type a smaller --batch-size"
        )
    if share is not None:
        _fill_cache(dataset, *share[:3], world)
    loader = _Loader(
        **_options(config, dataset, device),
        batch_size=config.DATA.BATCH_SIZE,
        sampler=sampler,
        drop_last=True,
        persistent_workers=config.DATA.NUM_WORKERS > 0,
    )
    return loader, sampler


def _val_loader(
    config: CfgNode, classes: Classes, world: _World, device: torch.device | str, cached: bool
) -> DataLoader:
    """No padding: rank r takes images r, r + world, ...; with TEST.SEQUENTIAL all of them. Of tar
    shards it takes one stretch, so that it reads few of them.

    The images are kept in memory only when they are read more than once (``cached``).
    """
    dataset = _dataset(config, classes, "val")
    order = range(world.rank, len(dataset), world.size)
    if config.TEST.SEQUENTIAL:
        order = range(len(dataset))
    share = _share(config, world)
    if share is not None and cached:
        _fill_cache(dataset, share[0], order.start, order.step, world)
    elif dataset.samples.shards is not None:
        alone = _World(local_size=world.local_size)
        part = alone if config.TEST.SEQUENTIAL else world
        order = _tar_sampler(config, dataset, part, shuffle=False)
    batch_size = config.TEST.BATCH_SIZE or config.DATA.BATCH_SIZE
    return _Loader(**_options(config, dataset, device), batch_size=batch_size, sampler=order)
