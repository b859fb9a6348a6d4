"""The test run of a detector: results of every frame in the order of the data set."""

from __future__ import annotations

import functools
import pickle
import shutil
from pathlib import Path
from typing import Any

import mmcv
import torch
import torch.distributed as dist
from internimage.write_file import replacing
from mmcv import Config
from mmcv.parallel import collate
from mmcv.runner import get_dist_info
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ad_common.datasets.samplers import DistributedSampler


def build_test_loader(dataset: Dataset, cfg: Config, split: str) -> DataLoader:
    """The frames of this process, in order.

    Args:
        dataset: in test mode.
        cfg: of the run; `data.<split>_dataloader` sets `samples_per_gpu`, `workers_per_gpu`, ...
        split: 'val' or 'test'.
    """
    options = {
        "samples_per_gpu": 1,
        "workers_per_gpu": 2,
        "persistent_workers": False,
        **(cfg.data.get(f"{split}_dataloader") or {}),
    }
    batch = options.pop("samples_per_gpu")
    return DataLoader(
        dataset,
        batch_size=batch,
        sampler=DistributedSampler(dataset),
        num_workers=options.pop("workers_per_gpu"),
        collate_fn=functools.partial(collate, samples_per_gpu=batch),
        **options,
    )


def test_model(
    model: nn.Module, loader: DataLoader, tmpdir: str | None = None, gpu_collect: bool = False
) -> list[dict[str, Any]] | None:
    """The results of every frame in the order of the data set; None on all but the first process.

    Args:
        model: in its wrapper.
        loader: of `build_test_loader`.
        tmpdir: with several processes, a folder that all of them see; deleted afterwards.
        gpu_collect: collect by the process group, without files.

    Raises:
        RuntimeError: the number of results is not that of the frames.
    """
    results = predict(model, loader)
    if get_dist_info()[1] > 1:
        results = gather(results) if gpu_collect else collect(results, Path(tmpdir))
    if results is not None and len(results) != len(loader.dataset):
        raise RuntimeError(f"{len(loader.dataset)} frames, but {len(results)} results")
    return results


test_model.__test__ = False  # not a test of pytest's


@torch.no_grad()
def predict(model: nn.Module, loader: DataLoader) -> list[dict[str, Any]]:
    """The results of this process's frames; the first process shows its progress."""
    model.eval()
    results: list[dict[str, Any]] = []
    bar = mmcv.ProgressBar(len(loader.sampler)) if get_dist_info()[0] == 0 else None
    for batch in loader:
        found = model(return_loss=False, **batch)
        results.extend(found)
        if bar is not None:
            bar.update(len(found))
    if bar is not None:
        bar.file.write("\n")
    return results


def gather(part: list[Any]) -> list[Any] | None:
    """The parts of all processes one after the other, on the first one; by the process group."""
    parts: list[Any] = [None] * get_dist_info()[1]
    dist.all_gather_object(parts, part)
    return [result for one in parts for result in one] if get_dist_info()[0] == 0 else None


def collect(part: list[Any], folder: Path) -> list[Any] | None:
    """The parts of all processes one after the other, on the first one; by files."""
    rank, size = get_dist_info()
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"part_{rank}.pkl") as temporary:
        temporary.write_bytes(pickle.dumps(part))
    dist.barrier()
    if rank != 0:
        return None
    parts = [pickle.loads((folder / f"part_{i}.pkl").read_bytes()) for i in range(size)]
    shutil.rmtree(folder)
    return [result for one in parts for result in one]
