"""Outputs of named layers of a model, through forward hooks."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn


def layer_names(model: nn.Module) -> list[str]:
    """Dotted names of all layers, in the order of the model."""
    return [name for name, _ in model.named_modules() if name]


def level_names(model: nn.Module) -> list[str]:
    """Names of the levels of the trunk: their outputs are the feature maps of the model."""
    return [f"levels.{index}" for index in range(len(model.levels))]


def check_names(model: nn.Module, names: Sequence[str]) -> None:
    """Raises ValueError naming the nearest layers first, then all, for a name that is none."""
    known = layer_names(model)
    for name in names:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        others = [other for other in known if other not in near]
        raise ValueError(
            f"no layer {name!r}{hint}\nall {len(known)} layers, nearest first:\n"
            + "\n".join(f"  {other}" for other in [*near, *others])
        )


def tensors(output: Any, name: str) -> dict[str, Tensor]:
    """The tensors of a layer's output by name: ``name`` for one, ``name[0]``, ... for several."""
    if isinstance(output, Tensor):
        return {name: output}
    parts: list[tuple[Any, Any]] = []
    if isinstance(output, Mapping):
        parts = list(output.items())
    elif isinstance(output, (list, tuple)):
        parts = list(enumerate(output))
    found: dict[str, Tensor] = {}
    for key, part in parts:
        found |= tensors(part, f"{name}[{key}]")
    return found


@contextlib.contextmanager
def capture(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    """Records what the named layers return while the context is open.

    Args:
        model: any module.
        names: dotted names of its layers.

    Yields:
        Layer name -> its outputs, one entry per call of the layer, in the order of first calls.

    Raises:
        ValueError: a name that is none.
    """
    check_names(model, names)
    wanted = set(names)
    outputs: dict[str, list[Any]] = {}
    handles = []

    def record(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            outputs.setdefault(name, []).append(output)

        return hook

    try:
        for name, module in model.named_modules():
            if name in wanted:
                handles.append(module.register_forward_hook(record(name)))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def flatten(outputs: Mapping[str, Sequence[Any]], order: Sequence[str]) -> dict[str, Tensor]:
    """Recorded outputs as tensors by name; a layer called more than once gives ``name[0]``, ..."""
    flat: dict[str, Tensor] = {}
    for name in order:
        calls = outputs.get(name, ())
        flat |= tensors(calls[0] if len(calls) == 1 else list(calls), name)
    return flat
