"""Checkpoints: whole or absent, refused by other models, read without running code."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import mmcv_custom.checkpoint as checkpoint
import numpy as np
import pytest
import torch
from internimage.safe_load import CheckpointError
from mmcv.runner import save_checkpoint
from mmcv_custom.runner import build_runner, skip_batches
from mmcv_custom.runtime import ConfigError
from torch import nn


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(first=nn.Linear(3, 4), second=nn.Linear(4, 2)))


def saved(path: Path, state: dict, **more: object) -> str:
    torch.save({"state_dict": state, "meta": {}, **more}, path)
    return str(path)


def test_loads_from_every_wrapping(tmp_path: Path) -> None:
    source = small_model()
    state = source.state_dict()
    files = {
        "mmcv": {"state_dict": state, "meta": {"CLASSES": ("a",)}},
        "wrapped": {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        "classification": {"model": state},
        "bare": state,
    }
    for name, content in files.items():
        torch.save(content, tmp_path / f"{name}.pth")
        model = small_model()
        nn.init.zeros_(model.first.weight)
        loaded = checkpoint.load_checkpoint(model, str(tmp_path / f"{name}.pth"))
        assert torch.equal(model.first.weight, source.first.weight)
        assert loaded["meta"].get("CLASSES") == (("a",) if name == "mmcv" else None)


def test_says_what_a_backbone_is_good_for(tmp_path: Path) -> None:
    """A classification checkpoint given to test.py or load_from."""
    model = nn.Module()
    model.backbone = small_model()
    path = saved(tmp_path / "classifier.pth", small_model().state_dict())
    message = r"a backbone .or a classifier.: .*backbone.init_cfg="
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load_checkpoint(model, path)


def test_refuses_another_model_and_names_what_differs(tmp_path: Path) -> None:
    state = small_model().state_dict()
    state["third.weight"] = state.pop("second.bias")
    state["first.weight"] = torch.zeros(5, 3)
    path = saved(tmp_path / "other.pth", state)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_checkpoint(small_model(), path)
    for part in (
        "of another model: 2 of the model's 4",
        "1 of another shape in the file (first.weight [5, 3] instead of [4, 3])",
        "1 not in the file (second.bias)",
        "1 only in the file (third.weight)",
    ):
        assert part in str(error.value)


def test_not_strict_takes_what_fits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, state = small_model(), small_model().state_dict()
    state["first.weight"] = torch.ones(4, 3)
    del state["second.bias"]
    with caplog.at_level("WARNING"):
        checkpoint.load_checkpoint(model, saved(tmp_path / "part.pth", state), strict=False)
    assert torch.equal(model.first.weight, torch.ones(4, 3))
    assert "fits in 3 of 4" in caplog.text
    with pytest.raises(CheckpointError, match="0 of the model's 4"):
        checkpoint.load_checkpoint(
            model, saved(tmp_path / "none.pth", {"x": torch.ones(1)}), strict=False
        )


def test_returned_tensors_are_on_the_device_that_was_asked_for(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "a.pth", small_model().state_dict(), optimizer={"state": [torch.ones(1)]}
    )
    loaded = checkpoint.load_checkpoint(small_model(), path, map_location="meta")
    assert loaded["optimizer"]["state"][0].device.type == "meta"
    assert loaded["state_dict"]["first.weight"].device.type == "meta"


def test_averages_of_an_ema_hook_are_no_difference(tmp_path: Path) -> None:
    state = small_model().state_dict()
    state |= {f"ema_{name.replace('.', '_')}": value for name, value in state.items()}
    checkpoint.load_checkpoint(small_model(), saved(tmp_path / "ema.pth", state))


def test_buffers_that_are_not_persistent_are_no_difference(tmp_path: Path) -> None:
    """mmcv's runner writes them into its checkpoints, although the model does not ask for them."""
    model, path = small_model(), str(tmp_path / "c.pth")
    model.register_buffer("bounds", torch.ones(3), persistent=False)
    save_checkpoint(model, path)
    assert "bounds" not in model.state_dict()
    checkpoint.load_checkpoint(model, path)
    with pytest.raises(CheckpointError, match=r"only in the file \(bounds\)"):
        checkpoint.load_checkpoint(small_model(), path)


def test_numpy_numbers_in_meta_are_read_and_code_is_not(tmp_path: Path) -> None:
    state = small_model().state_dict()
    numbers = {"best_score": np.float64(0.25), "n": np.int64(3), "row": np.arange(2)}
    path = tmp_path / "numbers.pth"
    torch.save({"state_dict": state, "meta": numbers}, path)
    meta = checkpoint.load_checkpoint(small_model(), str(path))["meta"]
    assert meta["best_score"] == 0.25
    assert checkpoint.read_meta(path)["n"] == 3
    torch.save({"state_dict": state, "meta": {"run": os.system}}, path)
    with pytest.raises(CheckpointError, match="is refused"):
        checkpoint.load_checkpoint(small_model(), str(path))


def test_finds_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.find_whole_checkpoint(tmp_path) is None
    for number in (2, 9, 10):
        saved(tmp_path / f"epoch_{number}.pth", small_model().state_dict())
    saved(tmp_path / "best_bbox_mAP_epoch_11.pth", small_model().state_dict())
    assert checkpoint.find_whole_checkpoint(tmp_path).endswith("epoch_10.pth")
    whole = (tmp_path / "epoch_10.pth").read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-1]):
        (tmp_path / "epoch_10.pth").write_bytes(damaged)
        assert checkpoint.find_whole_checkpoint(tmp_path).endswith("epoch_9.pth")


def runner(work_dir: Path) -> object:
    model = small_model()
    model.train_step = lambda *_: None
    import logging

    return build_runner(
        {"type": "EpochBasedRunner", "max_epochs": 1},
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        work_dir=str(work_dir),
        logger=logging.getLogger("test"),
        meta={},
    )


def test_full_disk_keeps_the_old_checkpoint_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = runner(tmp_path)
    writing.save_checkpoint(str(tmp_path))
    before = (tmp_path / "epoch_1.pth").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmcv.runner.epoch_based_runner.save_checkpoint", full)
    with pytest.raises(OSError, match=r"epoch_1.pth cannot be written: No space left on device"):
        writing.save_checkpoint(str(tmp_path))
    assert (tmp_path / "epoch_1.pth").read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"epoch_1.pth", "latest.pth"}


def test_latest_points_to_the_newest_also_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "latest.pth").write_text("a file, as Windows writes it")
    runner(tmp_path).save_checkpoint(str(tmp_path))
    assert os.readlink(tmp_path / "latest.pth") == "epoch_1.pth"


def test_resuming_needs_the_state_of_a_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "weights.pth", small_model().state_dict())
    with pytest.raises(CheckpointError, match="load_from="):
        runner(tmp_path).resume(path)


def test_resuming_with_another_optimizer_is_refused(tmp_path: Path) -> None:
    first = runner(tmp_path)
    first.save_checkpoint(str(tmp_path))
    other = runner(tmp_path)
    other.optimizer = torch.optim.SGD([{"params": [p]} for p in other.model.parameters()], lr=1)
    with pytest.raises(CheckpointError, match="another optimizer"):
        other.resume(str(tmp_path / "epoch_1.pth"))


def test_unknown_runner_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'IterBasedRunner'"):
        build_runner({"type": "IterRunner"})


@pytest.mark.parametrize("seen", [0, 1, 5, 12])
def test_endless_samplers_go_on_where_they_stopped(seen: int) -> None:
    from itertools import islice

    from mmdet.datasets.samplers import InfiniteBatchSampler, InfiniteGroupBatchSampler

    class Data(SimpleNamespace):
        def __len__(self) -> int:
            return len(self.flag)

    data = Data(flag=np.array([0, 1, 0, 0, 1, 0, 1]))
    for sampler in (InfiniteBatchSampler, InfiniteGroupBatchSampler):
        whole = list(islice(iter(sampler(data, 2, 1, 0, seed=3)), seen + 6))
        resumed = sampler(data, 2, 1, 0, seed=3)
        skip_batches(resumed, seen)
        assert [list(b) for b in islice(iter(resumed), 6)] == [list(b) for b in whole[seen:]]
