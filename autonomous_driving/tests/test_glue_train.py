"""The training program: what a run leaves behind, going on after a crash, wrong input."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import glue_runs as runs
import glue_toy
import mmcv_custom.runner as runner
import pytest
import torch
from internimage.cli import USER_ERRORS
from internimage.safe_load import load_file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A finished run of the toy detector."""
    folder = tmp_path_factory.mktemp("glue_train")
    data = glue_toy.write_data(folder / "data", train=12, val=5)
    config = glue_toy.write_config(folder / "toy.py", data)
    work_dir = folder / "work"
    assert runs.train(config, "--work-dir", work_dir, "--seed", 3) == 0
    return SimpleNamespace(
        config=config, data=data, work_dir=work_dir, checkpoint=work_dir / "epoch_2.pth"
    )


def test_run_leaves_checkpoints_logs_and_its_config(trained: SimpleNamespace) -> None:
    names = {path.name for path in trained.work_dir.iterdir()}
    assert {"epoch_1.pth", "epoch_2.pth", "latest.pth", "toy.py"} <= names
    assert any(name.startswith("best_mIoU_epoch_") for name in names)
    log = max(trained.work_dir.glob("*.log")).read_text()
    for expected in ("seed: 3", "device: cpu, processes: 1", "layer decay 1.0 over 4 layers"):
        assert expected in log
    assert load_file(trained.checkpoint)["meta"]["CLASSES"] == glue_toy.GlueToyData.CLASSES


def test_loss_falls_and_metrics_are_logged(trained: SimpleNamespace) -> None:
    rows = runs.log_rows(trained.work_dir)
    losses = [row["loss_color"] for row in rows if row.get("mode") == "train"]
    assert len(losses) == 12
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
    values = [row["mIoU"] for row in rows if row.get("mode") == "val"]
    assert len(values) == 2
    best = load_file(next(trained.work_dir.glob("best_mIoU_*.pth")))["meta"]["hook_msgs"]
    assert best["best_score"] == pytest.approx(max(values), abs=1e-4)


def train_and_die(*argv: object) -> int:
    """Trains; the process is killed when the second checkpoint is not yet written to its end."""

    def die(temporary: Path, path: Path) -> None:
        if path.name == "epoch_2.pth":
            os.truncate(temporary, os.path.getsize(temporary) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        real(temporary, path)

    real, runner.move_into_place = runner.move_into_place, die
    return runs.train(*argv)


def test_resuming_after_a_kill_in_mid_write_equals_an_uninterrupted_run(
    trained: SimpleNamespace, tmp_path: Path
) -> None:
    work_dir = tmp_path / "work"
    argv = [trained.config, "--work-dir", work_dir, "--seed", 3]
    assert runs.forked(1, train_and_die, *argv) == [-signal.SIGKILL]
    assert list(work_dir.glob(".tmp-epoch_2.pth"))
    # without --seed: that of the run that is resumed
    assert runs.train(trained.config, "--work-dir", work_dir, "--auto-resume") == 0
    assert not list(work_dir.glob(".tmp-*"))
    first, second = runs.weights(work_dir / "epoch_2.pth"), runs.weights(trained.checkpoint)
    assert list(first) == list(second)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_published_keys_are_told_and_left_out(
    trained: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from ad_common.apis.projects import load_project
    from ad_common.apis.train import parse_args, read_config

    runs.forget_loggers()
    project = load_project("occ")
    cfg = read_config(project, parse_args(project, [trained.config]))
    assert "plugin" not in cfg and "plugin_dir" not in cfg
    assert "plugin_dir='projects/plugin/' of the config is not needed" in caplog.text


def test_layer_decay_finds_the_trunk_of_several_cameras() -> None:
    from mmcv.runner import build_optimizer

    model = torch.nn.Module()
    model.img_backbone = torch.nn.Module()
    model.img_backbone.patch_embed = torch.nn.Linear(2, 2)
    model.img_backbone.levels = torch.nn.ModuleList([torch.nn.Module() for _ in range(2)])
    for level in model.img_backbone.levels:
        level.blocks = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    model.head = torch.nn.Linear(2, 2)
    rule = {"num_layers": 2, "layer_decay_rate": 0.5, "depths": [1, 1]}
    optimizer = build_optimizer(
        model,
        {
            "type": "AdamW",
            "lr": 8.0,
            "weight_decay": 0.1,
            "constructor": "CustomLayerDecayOptimizerConstructor",
            "paramwise_cfg": rule,
        },
    )
    found = {
        name: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for name in group["param_names"]
    }
    assert found["img_backbone.patch_embed.weight"] == (1.0, 0.1)
    assert found["img_backbone.levels.0.blocks.0.weight"] == (2.0, 0.1)
    assert found["img_backbone.levels.1.blocks.0.bias"] == (4.0, 0.0)
    assert found["head.weight"] == (8.0, 0.1)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--cfg-options", "model.type=GlueToyDetecto"], "Did you mean 'GlueToyDetector'"),
        (["--cfg-options", "model.img_backbone.type=InternImag"], "Did you mean 'InternImage'"),
        (["--cfg-options", "data.train.type=NuSceneOc"], "Did you mean 'NuSceneOcc'"),
        (["--cfg-options", "model.pts_bbox_head.num_cams=6"], "frames with 2 cameras, the model"),
        (["--cfg-options", "model.pts_bbox_head.num_classes=17"], "the data set has 18 classes"),
        (
            ["--cfg-options", "data.train.data_root=/nowhere"],
            "make_synthetic.py occupancy data/toy",
        ),
        (["--cfg-options", "data.val.ann_file=/nowhere.pkl"], "data.val.ann_file: /nowhere.pkl"),
        (
            ["--cfg-options", "data.shuffler_sampler.type=DistributedGroupSample"],
            "it can only be 'DistributedGroupSampler'",
        ),
        (["--resume-from", "/nowhere.pth"], "/nowhere.pth does not exist"),
        (["--work-dir", "/proc/work"], "cannot be written"),
        (["--launcher", "slurm"], "needs the environment variable SLURM_PROCID"),
        (["--autoscale-lr", "--cfg-options", "auto_scale_lr.base_batch_size=0"], "--auto-scale-lr"),
        (
            ["--cfg-options", "evaluation.save_best=nothing"],
            "Cannot infer the rule for key nothing",
        ),
    ],
)
def test_errors_of_the_user_are_one_sentence(
    trained: SimpleNamespace, tmp_path: Path, argv: list[str], message: str
) -> None:
    with pytest.raises(USER_ERRORS) as error:
        runs.train(trained.config, "--work-dir", tmp_path, *argv)
    assert message in str(error.value)
    assert "Traceback" not in str(error.value)


def test_a_missing_config_ends_the_program_with_1_and_one_line() -> None:
    done = runs.shell(
        sys.executable,
        runs.tool("hdmap", "train.py"),
        "configs/vectormapnet_inter.py",
        cwd=Path("/"),
    )
    assert done.returncode == 1
    assert "config configs/vectormapnet_inter.py does not exist" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_image_is_named_with_its_camera_and_frame(
    trained: SimpleNamespace, tmp_path: Path
) -> None:
    data = glue_toy.write_data(tmp_path / "data", train=4, val=1)
    config = glue_toy.write_config(tmp_path / "toy.py", data)
    (data / "train_2_RIGHT.png").write_bytes(b"no image")
    options = ["--work-dir", tmp_path / "work", "--cfg-options", "data.workers_per_gpu=1"]
    with pytest.raises(USER_ERRORS) as error:
        runs.train(config, *options)
    text = str(error.value)
    assert "train_2_RIGHT.png of camera RIGHT, frame train-2: the file cannot be read" in text
    assert "Traceback" not in text
