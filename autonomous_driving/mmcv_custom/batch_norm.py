"""BatchNorm without several GPUs: for configs that are written for SyncBN on several.

torch has SyncBN between processes for GPUs only. The configs of UPerNet, SegFormer and Cascade Mask
R-CNN use it, some with one image per GPU. The 1x1 level of UPerNet's pyramid pooling then has one
value per channel on every GPU: SyncBN gathers the values of all GPUs; on one process torch raises
"Expected more than 1 value per channel".
"""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmcv.ops import SyncBatchNorm as MMSyncBatchNorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

logger = logging.getLogger(__name__)


class LocalBatchNorm(_BatchNorm):
    """BatchNorm over the images of one process, for batches of any size.

    Where a training batch has one value per channel, the batch statistics say nothing (the output
    would be the bias, whatever the input), so the running statistics are used and not updated.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        """As for SyncBN, any number of dimensions will do."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) -> (N, C, ...)."""
        if self.training and self.track_running_stats and x.numel() == x.shape[1]:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(x)


def use_local_batch_norm(model: nn.Module) -> nn.Module:
    """Replaces SyncBN and BatchNorm2d in ``model`` by LocalBatchNorm, in place.

    Parameters, buffers, keys of the state dict and training mode stay. `wrap_model` calls it where
    :func:`needs_local_batch_norm` says so.
    """
    count = 0
    for module in model.modules():
        for name, child in module.named_children():
            is_sync = isinstance(child, (nn.SyncBatchNorm, MMSyncBatchNorm))
            if is_sync or type(child) is nn.BatchNorm2d:
                setattr(module, name, _local(child))
                count += 1
    if count:
        logger.info("%d BatchNorm layers use the statistics of this process", count)
    return model


def needs_local_batch_norm(device: torch.device | str) -> bool:
    """Whether a model on ``device`` cannot use SyncBN: one process, or processes without GPUs."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return not several or torch.device(device).type != "cuda"


def _local(norm: nn.Module) -> LocalBatchNorm:
    local = LocalBatchNorm(
        norm.num_features,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
    )
    local.weight, local.bias = norm.weight, norm.bias
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(local, name, getattr(norm, name))
    return local.train(norm.training)
