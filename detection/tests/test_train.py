"""train.py: what a run leaves behind, going on after a crash, precision, processes, errors."""

from __future__ import annotations

import gc
import json
import shutil
import sys
from pathlib import Path

import pytest
import runs
import torch
from conftest import Trained
from internimage.cli import USER_ERRORS
from internimage.safe_load import load_file


def log_rows(work_dir: Path) -> list[dict]:
    """The JSON log of the newest run."""
    newest = max(work_dir.glob("*.log.json"))
    return [json.loads(line) for line in newest.read_text().splitlines()]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)["state_dict"]


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert list(first) == list(second)
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different[:5]


def test_run_leaves_checkpoints_logs_and_its_config(trained: Trained) -> None:
    names = {path.name for path in trained.work_dir.iterdir()}
    assert {"epoch_1.pth", "epoch_2.pth", "latest.pth", "tiny.py", "tf_logs"} <= names
    assert any(name.startswith("best_bbox_mAP_epoch_2") for name in names)
    assert (trained.work_dir / "latest.pth").resolve() == trained.checkpoint.resolve()
    assert list((trained.work_dir / "tf_logs").glob("events.out.tfevents.*"))
    assert not list(trained.work_dir.glob(".tmp-*"))
    log = max(trained.work_dir.glob("*.log")).read_text()
    for expected in ("seed: 3", "device: cpu, processes: 1", "layer decay 0.9 over 4 layers"):
        assert expected in log


def test_loss_falls_and_evaluation_is_logged(trained: Trained) -> None:
    rows = log_rows(trained.work_dir)
    steps = [row for row in rows if row.get("mode") == "train"]
    assert len(steps) == 24
    for name in ("loss_rpn_cls", "loss_mask"):  # the loss of boxes grows with the hits at first
        assert sum(row[name] for row in steps[-6:]) < 0.6 * sum(row[name] for row in steps[:6])
    assert "bbox_mAP" in rows[-1] and "segm_mAP" in rows[-1]


def test_checkpoint_says_what_it_is(trained: Trained) -> None:
    meta = load_file(trained.checkpoint)["meta"]
    assert tuple(meta["CLASSES"]) == runs.CLASSES
    assert (meta["epoch"], meta["iter"], meta["seed"]) == (2, 24, 3)
    assert "layer_decay_rate" in meta["config"]


KILLED = """
import os, signal, sys
sys.path[:0] = [{detection!r}, {tests!r}]
import runs, mmcv_custom.runner as runner
def die(temporary, path):
    if path.name == "epoch_2.pth":  # the file is not yet written to its end
        os.truncate(temporary, os.path.getsize(temporary) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    real(temporary, path)
real, runner.move_into_place = runner.move_into_place, die
sys.exit(runs.program("train").main(sys.argv[1:]))
"""


def test_resuming_after_a_kill_in_mid_write_equals_an_uninterrupted_run(
    trained: Trained, tmp_path: Path
) -> None:
    tests = Path(runs.__file__).parent
    code = KILLED.format(detection=str(runs.DETECTION), tests=str(tests))
    work_dir = tmp_path / "work"
    killed = runs.shell(
        sys.executable, "-c", code, trained.config, "--work-dir", work_dir, "--seed", "3"
    )
    assert killed.returncode == -9, killed.stderr[-2000:]
    assert {p.name for p in work_dir.glob("*.pth")} >= {"epoch_1.pth", "latest.pth"}
    assert list(work_dir.glob(".tmp-epoch_2.pth"))
    # without --seed: that of the run that is resumed
    assert runs.train(trained.config, "--work-dir", work_dir, "--auto-resume") == 0
    assert not list(work_dir.glob(".tmp-*"))
    assert_same_weights(work_dir / "epoch_2.pth", trained.checkpoint)
    first, second = (
        load_file(p)["optimizer"] for p in (work_dir / "epoch_2.pth", trained.checkpoint)
    )
    for index, state in first["state"].items():
        assert torch.equal(state["exp_avg"], second["state"][index]["exp_avg"])


def test_auto_resume_leaves_out_a_damaged_checkpoint(trained: Trained, tmp_path: Path) -> None:
    work_dir = tmp_path / "work"
    work_dir.mkdir()
    shutil.copy(trained.work_dir / "epoch_1.pth", work_dir)
    (work_dir / "epoch_2.pth").write_bytes(trained.checkpoint.read_bytes()[:-2000])
    assert runs.train(trained.config, "--work-dir", work_dir, "--auto-resume", "--no-validate") == 0
    assert_same_weights(work_dir / "epoch_2.pth", trained.checkpoint)
    log = max(work_dir.glob("*.log")).read_text()
    assert "epoch_2.pth is not complete; looking for an older one" in log
    assert "bbox_mAP" not in log


def test_resuming_a_finished_run_keeps_the_best_score(trained: Trained, tmp_path: Path) -> None:
    """It is in the best checkpoint only: the last one is written before its own evaluation."""
    from mmcv_custom.checkpoint import read_meta
    from mmcv_custom.runner import best_so_far

    meta = read_meta(trained.checkpoint)
    assert "best_score" not in meta.get("hook_msgs", {})
    found = best_so_far(str(trained.work_dir), meta)["hook_msgs"]
    assert found["best_ckpt"].endswith("best_bbox_mAP_epoch_2.pth")
    assert found["best_score"] > 0


def test_runs_by_iterations_resume_at_the_next_iteration(trained: Trained, tmp_path: Path) -> None:
    options = [
        "--no-validate", "--cfg-options", "checkpoint_config.interval=2", "custom_hooks=[]",
        "runner._delete_=True", "runner.type=IterBasedRunner",
    ]  # fmt: skip
    common = [trained.config, "--work-dir", tmp_path, *options]
    assert runs.train(*common, "runner.max_iters=2", "--seed", 5) == 0
    assert load_file(tmp_path / "iter_2.pth")["meta"]["iters_done"] == 2
    assert runs.train(*common, "runner.max_iters=4", "--auto-resume") == 0
    rows = [row for row in log_rows(tmp_path) if "loss" in row]
    assert [row["iter"] for row in rows] == [3, 4]


def test_bf16_trains_and_clips(trained: Trained, tmp_path: Path) -> None:
    code = runs.train(
        trained.config, "--work-dir", tmp_path, "--seed", 3, "--amp", "bf16", "--no-validate"
    )
    assert code == 0
    rows = [row for row in log_rows(tmp_path) if "loss" in row]
    exact = [row for row in log_rows(trained.work_dir) if "loss" in row]
    assert rows[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.05)  # 8 bits of mantissa
    assert rows[0]["loss"] != exact[0]["loss"]
    assert sum(row["loss_mask"] for row in rows[-6:]) < 0.6 * sum(
        row["loss_mask"] for row in rows[:6]
    )
    assert all(row["grad_norm"] > 0 for row in rows)
    assert {value.dtype for value in weights(tmp_path / "epoch_2.pth").values()} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("amp", ["fp16", "bf16"])
def test_mixed_precision_on_a_gpu(amp: str, trained: Trained, tmp_path: Path) -> None:
    flags = ["--work-dir", tmp_path, "--seed", 3, "--amp", amp, "--device", "cuda"]
    assert runs.train(trained.config, *flags) == 0
    steps = [row["loss_mask"] for row in log_rows(tmp_path) if row.get("mode") == "train"]
    assert sum(steps[-6:]) < 0.6 * sum(steps[:6])
    assert "device: cuda, processes: 1" in max(tmp_path.glob("*.log")).read_text()


def test_load_from_starts_from_weights_with_other_classes(trained: Trained, tmp_path: Path) -> None:
    annotations = json.loads((trained.data / "train.json").read_text())
    annotations["categories"] = annotations["categories"][:2]
    keep = [a for a in annotations["annotations"] if a["category_id"] < 3]
    (tmp_path / "two.json").write_text(json.dumps({**annotations, "annotations": keep}))
    options = [f"data.train.ann_file={tmp_path / 'two.json'}", f"load_from={trained.checkpoint}"]
    options += ["data.train.classes=('square','bar')", "model.roi_head.bbox_head.num_classes=2"]
    options += ["model.roi_head.mask_head.num_classes=2", "runner.max_epochs=1"]
    assert (
        runs.train(
            trained.config, "--work-dir", tmp_path, "--no-validate", "--cfg-options", *options
        )
        == 0
    )
    log = max(tmp_path.glob("*.log")).read_text()
    assert "of another shape in the file (roi_head.bbox_head.fc_cls.weight" in log


def test_settings_of_the_command_line_reach_the_run(trained: Trained, tmp_path: Path) -> None:
    code = runs.train(
        trained.config, "--work-dir", tmp_path, "--no-validate", "--auto-scale-lr",
        "--deterministic", "--gpu-ids", 0, "--local-rank", 0, "--seed", 7, "--diff-seed",
        "--options", "runner.max_epochs=1", "data.train.filter_empty_gt=False",
    )  # fmt: skip
    assert code == 0
    log = max(tmp_path.glob("*.log")).read_text()
    assert "LR has been automatically scaled from 0.002 to 0.001" in log
    assert "seed: 7, deterministic" in log
    assert torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = False
    assert not (tmp_path / "epoch_2.pth").exists()


def test_loss_that_is_not_finite_ends_the_run(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"not finite in epoch 1, iteration \d.*Lower optimizer.lr"
    ):
        runs.train(
            trained.config, "--work-dir", tmp_path, "--no-validate", "--cfg-options",
            "optimizer.lr=1e30", "optimizer_config.grad_clip=None",
        )  # fmt: skip
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--cfg-options", "optimizer.lrs=1"], "did you mean 'lr'"),
        (["--cfg-options", "model.backbone.type=InternImag"], "Did you mean 'InternImage'"),
        (["--cfg-options", "model.backbone.chanels=16"], "did you mean 'channels'"),
        (["--cfg-options", "runner.type=EpochRunner"], "did you mean 'EpochBasedRunner'"),
        (["--cfg-options", "data.train.ann_file=/nowhere.json"], "/nowhere.json"),
        (["--cfg-options", "custom_hooks.0.type=EMAHok"], "Did you mean 'EMAHook'"),
        (["--cfg-options", "optimizer.type=AdamX"], "Did you mean 'Adam"),
        (["--resume-from", "/nowhere.pth"], "/nowhere.pth does not exist"),
        (["--amp", "fp16", "--device", "cpu"], "the CPU has bf16"),
        (["--launcher", "pytorch"], "needs the environment variable RANK"),
        (["--launcher", "slurm"], "needs the environment variable SLURM_PROCID"),
        (["--options", "a=1", "--cfg-options", "b=1"], "give only --cfg-options"),
        (["--work-dir", "/proc/work"], "cannot be written"),
        (["--cfg-options", "evaluation.metric=bboxx"], "evaluation.metric bboxx: CocoDataset has"),
        (["--cfg-options", "model.roi_head.mask_head=None"], "segm: MaskRCNN predicts no masks"),
        (["--cfg-options", "data.samples_per_gpu=0"], "data.samples_per_gpu must be a whole"),
        (["--cfg-options", "runner.max_epochs=ten"], "must be a whole number from 1 on, it is 't"),
        (["--cfg-options", "optimizer.lr=abc"], "optimizer.lr must be a number"),
    ],
)
def test_errors_of_the_user_are_one_sentence(
    trained: Trained, tmp_path: Path, argv: list[str], message: str
) -> None:
    with pytest.raises(USER_ERRORS) as error:
        runs.train(trained.config, "--work-dir", tmp_path, *argv)
    assert message in str(error.value)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = dict(\n", "is not valid Python"),
        ("model = dict(type='MaskRCNN')\n", "it has no data; a whole config is needed"),
        ("", "it has no model and no data"),
        ("_base_ = 'nowhere.py'\n", "nowhere.py"),
    ],
)
def test_configs_that_cannot_be_used(
    tmp_path: Path, text: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.py"
    config.write_text(text)
    with pytest.raises(USER_ERRORS) as error:
        runs.train(config, "--work-dir", tmp_path)
    assert str(config) in str(error.value) and message in str(error.value)
    del error
    gc.collect()
    assert "Traceback" not in capfd.readouterr().err


def test_resuming_with_another_optimizer(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(USER_ERRORS, match="the state of another optimizer .betas is only in the"):
        runs.train(
            trained.config, "--work-dir", tmp_path, "--resume-from", trained.checkpoint,
            "--cfg-options", "optimizer._delete_=True", "optimizer.type=SGD", "optimizer.lr=0.1",
        )  # fmt: skip


def test_ctrl_c_ends_with_one_line(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(_: object) -> int:
        raise KeyboardInterrupt

    program = runs.program("train")
    monkeypatch.setattr(program, "train", stop)
    assert program.main([str(trained.config)]) == 130
    assert "interrupted" in caplog.text


def test_program_ends_with_one_line_and_1(caplog: pytest.LogCaptureFixture) -> None:
    runs.forget_loggers()
    config = "configs/coco/mask_rcnn_internimag_t.py"
    assert runs.program("train").main([config]) == 1
    (record,) = caplog.records
    assert f"{config} does not exist" in record.message
    assert record.levelname == "ERROR" and record.exc_info is None
