"""SyncBN without several GPUs, and batches of one image where a BatchNorm sees a 1x1 map."""

from __future__ import annotations

import copy
import socket

import pytest
import recipe
import segmentors
import torch
import torch.distributed as dist
from mmcv import ConfigDict
from mmcv_custom.batch_norm import (
    LocalBatchNorm,
    needs_local_batch_norm,
    use_local_batch_norm,
)
from mmseg.models import build_segmentor
from torch import nn


def with_sync_batch_norm(name: str) -> nn.Module:
    """The tiny model ``name`` with SyncBN, as the real configs have it."""
    config = segmentors.config(name)
    for head in ("decode_head", "auxiliary_head"):
        if head in config:
            config[head].norm_cfg = ConfigDict(type="SyncBN", requires_grad=True)
    return recipe.fill(build_segmentor(config))


def train_step(model: nn.Module, count: int) -> dict[str, torch.Tensor]:
    """Losses of the first ``count`` images; the gradients are in the model."""
    model.train().zero_grad()
    losses = model.forward_train(
        recipe.images().float()[:count], segmentors.metas()[:count], segmentors.targets()[:count]
    )
    segmentors.total(losses).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    return losses


@pytest.mark.parametrize("name", ["upernet", "segformer"])
def test_local_batch_norm_keeps_weights_and_results(name):
    model = with_sync_batch_norm(name)
    keys = list(model.state_dict())
    parameters = list(model.parameters())
    expected = train_step(copy.deepcopy(model), count=2)
    assert use_local_batch_norm(model) is model
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    stored = recipe.load_json("whole_models/loss.json")[name]["f32_bn_batch"]["losses"]
    for key, value in train_step(model, count=2).items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)
        assert value.item() == pytest.approx(stored[key], rel=2e-5)


def test_a_batch_of_one_trains():
    model = with_sync_batch_norm("upernet")
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        train_step(model, count=1)  # what torch says
    use_local_batch_norm(model)
    pooled = model.decode_head.psp_modules[0][1].bn  # after the 1x1 pooling
    before = copy.deepcopy(pooled.state_dict())
    losses = train_step(model, count=1)
    assert torch.isfinite(losses["decode.loss_ce"])
    for key, value in pooled.state_dict().items():  # one value has no statistics
        assert torch.equal(value, before[key]), key
    assert model.decode_head.psp_modules[1][1].bn.num_batches_tracked == 1  # the 2x2 pooling has


def test_local_batch_norm_of_one_value_uses_the_running_statistics():
    norm = LocalBatchNorm(4).train()
    norm.load_state_dict(
        {
            "weight": torch.tensor([1.0, 2, 3, 4]),
            "bias": torch.tensor([0.0, 1, 2, 3]),
            "running_mean": torch.ones(4),
            "running_var": torch.full((4,), 4.0),
            "num_batches_tracked": torch.tensor(7),
        }
    )
    x = torch.randn(1, 4, 1, 1, requires_grad=True)
    y = norm(x)
    torch.testing.assert_close(y.flatten(), (x.flatten() - 1) / 2 * norm.weight + norm.bias)
    y.sum().backward()
    torch.testing.assert_close(x.grad.flatten(), norm.weight / 2)


def test_processes_without_gpus_need_local_batch_norm():
    assert needs_local_batch_norm("cpu")
    assert needs_local_batch_norm("cuda:0")  # one process
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        model = with_sync_batch_norm("segformer")
        assert needs_local_batch_norm("cpu")
        train_step(use_local_batch_norm(model), count=1)
    finally:
        dist.destroy_process_group()


def test_images_without_a_known_class_train():
    model = use_local_batch_norm(with_sync_batch_norm("upernet")).train()
    semantic = torch.full((1, 1, 128, 160), 255)
    losses = model.forward_train(recipe.images(1).float(), segmentors.metas()[:1], semantic)
    assert losses["decode.loss_ce"].item() == losses["aux.loss_ce"].item() == 0
    segmentors.total(losses).backward()
    assert not any(p.grad is None or p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", ["upernet", "segformer"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_step_is_finite_and_near_float32(name, dtype):
    model = use_local_batch_norm(with_sync_batch_norm(name))
    expected = train_step(copy.deepcopy(model), count=2)["decode.loss_ce"]
    with torch.autocast("cpu", dtype=dtype):
        actual = train_step(model, count=2)["decode.loss_ce"]
    torch.testing.assert_close(actual.float(), expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("name", ["upernet", "segformer"])
def test_odd_and_small_images(name):
    model = use_local_batch_norm(with_sync_batch_norm(name))
    for size in ((97, 131), (33, 40)):
        images = torch.randn(1, 3, *size)
        meta = [{"img_shape": (*size, 3), "ori_shape": (*size, 3), "flip": False}]
        losses = model.train().forward_train(images, meta, torch.zeros(1, 1, *size).long())
        segmentors.total(losses).backward()
        model.eval().test_cfg.update(segmentors.SLIDE)  # (33, 40) is smaller than the crop
        with torch.no_grad():
            assert model.simple_test(images, meta)[0].shape == size
