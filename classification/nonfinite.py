"""Finding where a NaN or an infinity came from, so that a run can stop with a useful message."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn


class NonFiniteError(RuntimeError):
    """The loss or the gradients are NaN or infinite; the message names the first culprit."""


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def is_finite(value: Any) -> bool:
    """Whether all floating point tensors in a nested value are finite."""
    return all(
        bool(torch.isfinite(tensor).all())
        for tensor in _tensors(value)
        if tensor.is_floating_point() or tensor.is_complex()
    )


def first_nonfinite_module(
    model: nn.Module, inputs: Sequence[torch.Tensor]
) -> tuple[str, nn.Module, bool] | None:
    """Run the model on ``inputs`` and find the first module whose output is not finite.

    Submodules finish before their parents, so the innermost one is found. The pass goes on after
    it, as it may be one that all processes have to walk together (sharded weights).

    Returns:
        Name, module and whether its inputs were finite; None when all outputs are finite.
    """
    found: list[tuple[str, nn.Module, bool]] = []

    def hook(name: str) -> Callable[..., None]:
        def check(module: nn.Module, args: Any, output: Any) -> None:
            if not found and not is_finite(output):
                found.append((name or "the model itself", module, is_finite(args)))

        return check

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def diagnose(model: nn.Module, inputs: Sequence[torch.Tensor]) -> str:
    """Say in one sentence what is not finite: an input, a weight or a module's output.

    Collective where weights are sharded: what is found on one process must not keep it from
    looking at the weights and running the model with the others.

    Args:
        model: the unwrapped model, with the weights that gave the bad loss.
        inputs: the batch that gave it; call under the same autocast.
    """
    found = first_nonfinite_module(model, inputs)
    # running statistics are not used in training
    weights = [name for name, value in model.named_parameters() if not is_finite(value)]
    for index, value in enumerate(inputs):
        if not is_finite(value):
            bad = [i for i in range(len(value)) if not is_finite(value[i])]
            return (
                f"the input itself is not finite: {'images' if index == 0 else f'input {index}'}, "
                f"samples {bad[:8]} of the batch. Look at the data and its normalisation"
            )
    if weights:
        return (
            f"the weight {weights[0]} is already not finite. Start from an earlier checkpoint with "
            "a lower learning rate"
        )
    if found is None:
        return (
            "no module gives a non-finite output when the batch is run again: it came from the "
            "loss function or from a random part such as drop path"
        )
    name, module, inputs_fine = found
    origin = "from finite inputs" if inputs_fine else "from inputs that were not finite"
    return (
        f"the first module with a non-finite output is {name} ({type(module).__name__}), {origin}. "
        "Lower TRAIN.BASE_LR, clip gradients (TRAIN.CLIP_GRAD), or use --amp-dtype bfloat16 or none"
    )


def bad_gradients(model: nn.Module) -> str:
    """Names of the first parameters whose gradient is not finite."""
    names = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not is_finite(parameter.grad)
    ]
    return f"{len(names)} gradients are not finite, first {', '.join(names[:3]) or 'none by name'}"
