"""Mixed precision (`--amp fp16|bf16`) for mmcv's runner, by torch's autocast."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from mmcv.parallel import is_module_wrapper
from mmcv.runner import HOOKS, BaseRunner
from mmcv.runner.hooks.optimizer import GradientCumulativeOptimizerHook
from torch import Tensor, nn

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
PLAIN_HOOKS = (None, "OptimizerHook", "GradientCumulativeOptimizerHook")


def amp_optimizer_config(
    optimizer_config: Mapping[str, Any] | None, amp: str, device: str
) -> dict[str, Any]:
    """`optimizer_config` of a config, for mixed precision; grad_clip and accumulation stay.

    Raises:
        ValueError: fp16 on the CPU, or an optimizer hook that decides on precision itself.
    """
    if amp == "fp16" and device == "cpu":
        raise ValueError("--amp fp16 needs a GPU; the CPU has bf16: --amp bf16")
    config = dict(optimizer_config or {})
    if config.get("type") not in PLAIN_HOOKS:
        raise ValueError(
            f"--amp {amp} replaces mmcv's OptimizerHook or GradientCumulativeOptimizerHook, but "
            f"the config has optimizer_config.type={config['type']!r}; leave --amp out"
        )
    return {**config, "type": "AmpOptimizerHook", "amp": amp}


@HOOKS.register_module()
class AmpOptimizerHook(GradientCumulativeOptimizerHook):
    """Trains under autocast; with fp16 the loss is scaled and gradients are clipped unscaled.

    The weights, the optimizer and the checkpoints stay float32, and so does evaluation. Inside
    training, the losses and box decoding see float32 predictions, and the operators of mmcv
    (RoIAlign, deformable attention), which have no bf16, compute in float32.

    Args:
        amp: 'fp16' or 'bf16'.
        init_scale: first scale of the loss for fp16; it adapts, and is kept when a run resumes.
        kwargs: `grad_clip`, `cumulative_iters`, `detect_anomalous_params` as in mmcv's hooks.
    """

    def __init__(self, amp: str = "bf16", init_scale: float = 2.0**16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if amp not in DTYPES:
            raise ValueError(f"amp must be 'fp16' or 'bf16', got {amp!r}")
        self.amp = amp
        self.init_scale = init_scale
        self.scaler: torch.amp.GradScaler | None = None

    def before_run(self, runner: BaseRunner) -> None:
        model = runner.model.module if is_module_wrapper(runner.model) else runner.model
        enable_autocast(model, DTYPES[self.amp])

    def start_scaler(self, runner: BaseRunner) -> torch.amp.GradScaler:
        """The scaler of the loss; with bf16, or without a GPU, it does nothing."""
        enabled = self.amp == "fp16" and torch.cuda.is_available()
        scaler = torch.amp.GradScaler("cuda", init_scale=self.init_scale, enabled=enabled)
        if state := (runner.meta or {}).get("amp"):
            scaler.load_state_dict(state)
        return scaler

    def after_train_iter(self, runner: BaseRunner) -> None:
        if not self.initialized:
            self._init(runner)
            runner.optimizer.zero_grad()
            self.scaler = self.start_scaler(runner)
        if self.detect_anomalous_params:
            self.detect_anomalous_parameters(runner.outputs["loss"], runner)
        self.scaler.scale(runner.outputs["loss"] / self._get_loss_factor(runner)).backward()
        if not (self.every_n_iters(runner, self.cumulative_iters) or self.is_last_iter(runner)):
            return
        if self.grad_clip is not None:
            self.scaler.unscale_(runner.optimizer)
            norm = self.clip_grads(runner.model.parameters())
            if norm is not None:
                runner.log_buffer.update({"grad_norm": float(norm)}, runner.outputs["num_samples"])
        self.scaler.step(runner.optimizer)
        self.scaler.update()
        runner.optimizer.zero_grad()
        if self.scaler.is_enabled() and runner.meta is not None:
            runner.meta["amp"] = self.scaler.state_dict()


def enable_autocast(model: nn.Module, dtype: torch.dtype) -> None:
    """Lets `model.train_step` run under autocast, float32 where the hook's docstring says so."""
    device_type = next(model.parameters()).device.type
    model.train_step = under_autocast(model.train_step, device_type, dtype)
    for module in model.modules():
        if type(module).__module__.startswith("mmcv.ops"):
            module.forward = in_float32(module.forward, device_type)
        elif module is not model and (hasattr(module, "loss") or hasattr(module, "losses")):
            module.register_forward_hook(lambda _module, _inputs, output: to_float32(output))


def under_autocast(
    function: Callable[..., Any], device_type: str, dtype: torch.dtype
) -> Callable[..., Any]:
    """`function`, run under autocast."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type, dtype=dtype):
            return function(*args, **kwargs)

    return call


def in_float32(forward: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    """`forward` of a module, in float32 under autocast; the result has the input's type again."""

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_autocast_enabled(device_type):
            return forward(*args, **kwargs)
        given = [leaf.dtype for leaf in leaves((args, kwargs)) if leaf.dtype in DTYPES.values()]
        with torch.autocast(device_type, enabled=False):
            output = forward(*to_float32(args), **to_float32(kwargs))
        return output.to(given[0]) if given and isinstance(output, Tensor) else output

    return call


def leaves(value: Any) -> Iterator[Tensor]:
    """The tensors inside nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from leaves(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)


def to_float32(value: Any) -> Any:
    """float16 and bfloat16 tensors inside nested tuples, lists and dictionaries to float32."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, Mapping):
        return type(value)({key: to_float32(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        items = [to_float32(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
