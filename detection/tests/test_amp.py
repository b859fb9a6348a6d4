"""Mixed precision: scaled losses, clipped gradients, accumulation, and what stays float32."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from mmcv.ops import RoIAlign
from mmcv.runner import LogBuffer
from mmcv_custom.amp import AmpOptimizerHook, amp_optimizer_config, enable_autocast
from torch import Tensor, nn


def run_with(model: nn.Module, max_iters: int = 4) -> SimpleNamespace:
    """As much of mmcv's runner as the hook looks at."""
    return SimpleNamespace(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        outputs={},
        meta={},
        iter=0,
        max_iters=max_iters,
        _max_iters=max_iters,
        log_buffer=LogBuffer(),
        logger=logging.getLogger("test"),
    )


def step(hook: AmpOptimizerHook, run: SimpleNamespace, loss: Tensor) -> None:
    run.outputs = {"loss": loss, "num_samples": 1}
    hook.after_train_iter(run)
    run.iter += 1


def scaled(hook: AmpOptimizerHook, scale: float) -> AmpOptimizerHook:
    """The hook with a scaler that also works on the CPU."""

    def start(run: SimpleNamespace) -> torch.amp.GradScaler:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        if "amp" in run.meta:
            scaler.load_state_dict(run.meta["amp"])
        return scaler

    hook.start_scaler = start
    return hook


def weight_after(hook: AmpOptimizerHook, losses: list[float]) -> float:
    """A weight that starts at 0 and whose gradient is the factor of the loss."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    run = run_with(model, len(losses))
    for factor in losses:
        step(hook, run, model.weight.sum() * factor)
    return model.weight.item()


def test_gradients_are_clipped_at_their_own_size_not_the_scaled_one() -> None:
    clip = {"max_norm": 2.0}
    plain = weight_after(AmpOptimizerHook("bf16", grad_clip=clip), [1.0, 5.0])
    half = weight_after(scaled(AmpOptimizerHook("fp16", grad_clip=clip), 1024.0), [1.0, 5.0])
    assert plain == half == pytest.approx(-3.0, abs=1e-5)  # 1 whole, 5 clipped to 2


def test_logged_norm_is_the_unscaled_one() -> None:
    model = nn.Linear(1, 1, bias=False)
    run = run_with(model)
    step(
        scaled(AmpOptimizerHook("fp16", grad_clip={"max_norm": 9}), 64.0),
        run,
        model.weight.sum() * 3,
    )
    assert run.log_buffer.val_history["grad_norm"] == [pytest.approx(3.0)]


def test_overflow_leaves_the_weights_and_halves_the_scale() -> None:
    model = nn.Linear(1, 1, bias=False)
    before = model.weight.clone()
    run = run_with(model)
    hook = scaled(AmpOptimizerHook("fp16", grad_clip={"max_norm": 1.0}), 64.0)
    step(hook, run, model.weight.sum() * float("inf"))
    assert torch.equal(model.weight, before)
    assert run.meta["amp"]["scale"] == 32.0
    resumed = run_with(model)
    resumed.meta = {"amp": run.meta["amp"]}
    again = scaled(AmpOptimizerHook("fp16"), 4096.0)
    step(again, resumed, model.weight.sum())
    assert again.scaler.get_scale() == 32.0


def test_accumulation_averages_over_its_iterations() -> None:
    assert weight_after(AmpOptimizerHook("bf16", cumulative_iters=2), [1, 3, 2, 2]) == -4.0


class Head(nn.Module):
    """Predicts by a convolution; heads are known by their `loss`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        self.seen = self.conv(x).dtype
        return {"maps": [self.conv(x)]}

    def loss(self, predictions: dict[str, list[Tensor]]) -> Tensor:
        return predictions["maps"][0].square().mean()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(2, 2, 1)
        self.pool = RoIAlign(2, sampling_ratio=1)
        self.head = Head()

    def train_step(self, x: Tensor) -> dict[str, Tensor]:
        features = self.backbone(x)
        pooled = self.pool(features, torch.tensor([[0.0, 0, 0, 3, 3]]))
        predictions = self.head(pooled)
        self.types = (features.dtype, pooled.dtype, self.head.seen, predictions["maps"][0].dtype)
        return {"loss": self.head.loss(predictions)}


def test_layers_compute_in_bf16_and_losses_see_float32() -> None:
    model = Model()
    enable_autocast(model, torch.bfloat16)
    loss = model.train_step(torch.ones(1, 2, 4, 4))["loss"]
    low = torch.bfloat16
    assert model.types == (low, low, low, torch.float32)
    assert loss.dtype == torch.float32
    loss.backward()
    assert model.backbone.weight.grad.dtype == torch.float32


def test_config_keeps_clipping_and_refuses_other_hooks() -> None:
    clip = {"grad_clip": {"max_norm": 1}}
    config = amp_optimizer_config(clip, "bf16", "cpu")
    assert config == {**clip, "type": "AmpOptimizerHook", "amp": "bf16"}
    with pytest.raises(ValueError, match="Fp16OptimizerHook"):
        amp_optimizer_config({"type": "Fp16OptimizerHook"}, "bf16", "cpu")
    with pytest.raises(ValueError, match="must be 'fp16' or 'bf16'"):
        AmpOptimizerHook("fp8")
