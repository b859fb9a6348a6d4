"""Moving average of a model whose weights DeepSpeed's ZeRO shards.

Each process averages the float32 weights that its part of the optimizer owns, so that an update
needs no communication; only an evaluation and a checkpoint gather them, one weight at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

import distributed


class _Weight:
    """A trained parameter and this process's part of its float32 copy (stages 1, 2 and 3)."""

    def __init__(self, parameter: nn.Parameter) -> None:
        import deepspeed

        self.parameter = parameter
        self.utils = deepspeed.utils
        self.partitioned = hasattr(parameter, "ds_id")  # stage 3

    def part(self) -> torch.Tensor | None:
        """This process's part, flat, float32; None when it has none."""
        if self.partitioned:
            return self.utils.safe_get_local_fp32_param(self.parameter)
        mapping = self.parameter._hp_mapping
        return None if mapping is None else mapping.get_hp_fragment()

    def put(self, part: torch.Tensor) -> None:
        """Overwrite this process's part."""
        if self.partitioned:
            self.utils.safe_set_local_fp32_param(self.parameter, part)
        else:
            self.parameter._hp_mapping.get_hp_fragment().data.copy_(part)

    def whole(self) -> torch.Tensor:
        """The whole float32 weight (collective)."""
        return self.utils.safe_get_full_fp32_param(self.parameter)

    def put_whole(self, value: torch.Tensor) -> None:
        """Overwrite this process's part with its share of a whole weight."""
        if not self.partitioned:
            self.utils.safe_set_full_fp32_param(self.parameter, value)
            return
        size = self.parameter.ds_tensor.numel()  # the last process's part is padded
        start = size * distributed.get_rank()
        share = value.flatten()[start : start + size]
        self.put(nn.functional.pad(share, (0, size - share.numel())))

    def use(self, value: torch.Tensor) -> None:
        """Let the model compute with ``value`` (collective)."""
        if not self.partitioned:
            self.parameter.data.copy_(value.view_as(self.parameter))
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(self.parameter, modifier_rank=0):
            if distributed.is_main_process():
                self.parameter.data.copy_(value.view_as(self.parameter))


class ZeroEma:
    """The average ``decay * average + (1 - decay) * weight``, sharded like the optimizer.

    Running statistics are averaged as well; frozen weights and integer buffers are those of the
    model.

    Args:
        module: the module of a DeepSpeed engine.
        decay: weight of the past in each update.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = module
        self.decay = decay
        self.weights = {n: _Weight(p) for n, p in module.named_parameters() if p.requires_grad}
        self.parts = {name: _copy(weight.part()) for name, weight in self.weights.items()}
        self.buffers = {
            name: buffer.detach().float().clone()
            for name, buffer in module.named_buffers()
            if buffer.is_floating_point()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the present weights; call it after each optimizer step."""
        for name, average in self.parts.items():
            if average is not None:
                average.lerp_(self.weights[name].part().to(average.device), 1.0 - self.decay)
        present = dict(self.module.named_buffers())
        for name, average in self.buffers.items():
            average.lerp_(present[name].float(), 1.0 - self.decay)

    def _whole(self, name: str) -> torch.Tensor:
        """The whole average of a weight (collective): it takes the weight's place meanwhile."""
        weight, average = self.weights[name], self.parts[name]
        if average is None:
            return weight.whole()
        present = weight.part().clone()
        weight.put(average)
        try:
            return weight.whole()
        finally:
            weight.put(present)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model compute with the average for the time of the context (collective)."""
        own = dict(self.module.named_buffers())
        present = {name: own[name].clone() for name in self.buffers}
        self._use(self._whole, self.buffers)
        try:
            yield
        finally:
            self._use(lambda name: self.weights[name].whole(), present)

    @torch.no_grad()
    def _use(
        self, whole: Callable[[str], torch.Tensor], buffers: Mapping[str, torch.Tensor]
    ) -> None:
        for name, weight in self.weights.items():
            weight.use(whole(name))
        own = dict(self.module.named_buffers())
        for name, value in buffers.items():
            own[name].copy_(value)

    @torch.no_grad()
    def state_dict(self, keep: bool) -> dict[str, torch.Tensor]:
        """Whole averages on the CPU, without frozen weights (collective).

        Args:
            keep: False gives an empty dictionary: the process only takes part.
        """
        state = {}
        for name in self.weights:
            value = self._whole(name)
            if keep:
                state[name] = value.detach().cpu().clone()
        if keep:
            state |= {name: value.cpu().clone() for name, value in self.buffers.items()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take whole averages, for any number of processes."""
        for name, weight in self.weights.items():
            if self.parts[name] is None:
                continue
            present = weight.part().clone()
            weight.put_whole(state[name].to(present.device, torch.float32))
            self.parts[name].copy_(weight.part())
            weight.put(present)
        for name, average in self.buffers.items():
            average.copy_(state[name])


def _copy(part: torch.Tensor | None) -> torch.Tensor | None:
    return None if part is None else part.detach().clone()
