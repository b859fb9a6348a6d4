"""Weights and inputs that need no file: drawn from the names of the parameters.

The numbers in `data/models_forward.*` were computed with the original implementation under this
recipe: the weight of a key comes from a generator seeded with the key's CRC-32, is scaled so that
activations stay of order one, and is rounded to float32 before the model runs in float64.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


def recipe_weight(key: str, shape: Sequence[int]) -> Tensor:
    """The weight of one state-dict key, float32 (int64 for a BatchNorm's counter)."""
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.zeros(tuple(shape), dtype=torch.int64)
    z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    if last == "running_var":
        weight = 1 + 0.1 * np.abs(z)
    elif last == "running_mean":
        weight = 0.1 * z
    elif last in {"gamma1", "gamma2", "layer_scale1", "layer_scale2"}:
        weight = 0.5 + 0.1 * z
    elif len(shape) == 1 and last == "weight":
        weight = 1 + 0.1 * z
    elif len(shape) == 1:
        weight = (0.5 if key.endswith(".offset.bias") else 0.1) * z
    else:
        weight = z / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(np.asarray(weight, dtype=np.float32))


def apply_recipe(model: nn.Module) -> nn.Module:
    """Gives a model the weights of the recipe; returns it in evaluation mode and float64."""
    weights = {key: recipe_weight(key, value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict(weights)
    return model.eval().double()


def recipe_input(shape: Sequence[int], seed: int) -> Tensor:
    """A standard normal input, rounded to float32, as float64."""
    z = np.random.default_rng(seed).standard_normal(tuple(shape))
    return torch.from_numpy(z.astype(np.float32)).double()


def recipe_cotangent(shape: Sequence[int], seed: int) -> Tensor:
    """A standard normal cotangent in float64."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(shape)))
