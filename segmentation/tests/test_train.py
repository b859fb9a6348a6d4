"""train.py: what a run leaves behind, going on after a crash, the three heads, errors."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
from conftest import Trained
from internimage.cli import USER_ERRORS
from internimage.safe_load import load_file
from mmseg_custom.training import EndlessBatches
from PIL import Image


def log_rows(work_dir: Path) -> list[dict]:
    """The JSON log of the newest run."""
    newest = max(work_dir.glob("*.log.json"))
    return [json.loads(line) for line in newest.read_text().splitlines()]


def losses(work_dir: Path) -> list[float]:
    return [row["loss"] for row in log_rows(work_dir) if "loss" in row]


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = load_file(one)["state_dict"], load_file(other)["state_dict"]
    assert list(first) == list(second)
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different[:5]


def test_run_leaves_checkpoints_logs_and_its_config(trained: Trained) -> None:
    names = {path.name for path in trained.work_dir.iterdir()}
    assert {"iter_8.pth", "iter_16.pth", "latest.pth", "tiny.py", "tf_logs"} <= names
    assert any(name.startswith("best_mIoU_iter_") for name in names)
    assert (trained.work_dir / "latest.pth").resolve() == trained.checkpoint.resolve()
    assert list((trained.work_dir / "tf_logs").glob("events.out.tfevents.*"))
    assert not list(trained.work_dir.glob(".*"))
    log = max(trained.work_dir.glob("*.log")).read_text()
    for expected in ("seed: 3", "device: cpu, processes: 1", "layer decay 0.9 over 5 layers"):
        assert expected in log


def test_loss_falls_and_evaluation_is_logged(trained: Trained) -> None:
    values = losses(trained.work_dir)
    assert len(values) == 16
    assert sum(values[-4:]) < 0.7 * sum(values[:4])
    last = log_rows(trained.work_dir)[-1]
    assert {"mIoU", "mAcc", "aAcc", "IoU.ground"} <= set(last)
    assert last["aAcc"] > 0.5


def test_checkpoint_says_what_it_is(trained: Trained) -> None:
    meta = load_file(trained.checkpoint)["meta"]
    assert tuple(meta["CLASSES"]) == runs.CLASSES
    assert [list(colour) for colour in meta["PALETTE"]][1] == [255, 0, 0]
    assert (meta["iters_done"], meta["seed"]) == (16, 3)
    assert "layer_decay_rate" in meta["config"]


KILLED = """
import os, signal, sys
sys.path[:0] = [{folder!r}, {tests!r}]
import launch, mmcv_custom.runner as runner
def die(temporary, path):
    if path.name == "iter_16.pth":  # the file is not yet written to its end
        os.truncate(temporary, os.path.getsize(temporary) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    real(temporary, path)
real, runner.move_into_place = runner.move_into_place, die
sys.exit(launch.program("train").main(sys.argv[1:]))
"""


def test_resuming_after_a_kill_in_mid_write_equals_an_uninterrupted_run(
    trained: Trained, tmp_path: Path
) -> None:
    """Here nothing but the order of the images is random."""
    code = KILLED.format(folder=str(runs.FOLDER), tests=str(Path(runs.__file__).parent))
    work_dir = tmp_path / "work"
    killed = runs.shell(
        sys.executable, "-c", code, trained.config, "--work-dir", work_dir, "--seed", "3"
    )
    assert killed.returncode == -9, killed.stderr[-2000:]
    assert {p.name for p in work_dir.glob("*.pth")} >= {"iter_8.pth", "latest.pth"}
    assert list(work_dir.glob(".tmp-iter_16.pth"))
    # without --seed: that of the run that is resumed
    assert runs.train(trained.config, "--work-dir", work_dir, "--auto-resume") == 0
    assert not list(work_dir.glob(".tmp-*"))
    assert_same_weights(work_dir / "iter_16.pth", trained.checkpoint)
    assert losses(work_dir) == losses(trained.work_dir)[8:]


def test_auto_resume_leaves_out_a_damaged_checkpoint(trained: Trained, tmp_path: Path) -> None:
    shutil.copy(trained.work_dir / "iter_8.pth", tmp_path)
    (tmp_path / "iter_16.pth").write_bytes(trained.checkpoint.read_bytes()[:-2000])
    options = ["--auto-resume", "--no-validate", "--cfg-options", "runner.max_iters=9"]
    assert runs.train(trained.config, "--work-dir", tmp_path, *options) == 0
    log = max(tmp_path.glob("*.log")).read_text()
    assert "iter_16.pth is not complete; looking for an older one" in log
    assert "mIoU" not in [key for row in log_rows(tmp_path) for key in row]
    assert len(losses(tmp_path)) == 1


@pytest.mark.parametrize(("model", "iterations"), [("segformer", 8), ("mask2former", 10)])
def test_the_other_heads_train_and_are_evaluated(
    model: str, iterations: int, trained: Trained, tmp_path: Path
) -> None:
    config = runs.write_config(tmp_path / "other.py", trained.data, model, iterations=iterations)
    options = ["--cfg-options", f"evaluation.interval={iterations}"]
    if model == "mask2former":
        options += ["optimizer.lr=1e-3"]
    assert runs.train(config, "--work-dir", tmp_path, "--seed", 1, *options) == 0
    values = losses(tmp_path)
    assert len(values) == iterations
    assert sum(values[-3:]) < 0.9 * sum(values[:3])
    assert 0 <= log_rows(tmp_path)[-1]["mIoU"] <= 1


@pytest.mark.parametrize("model", ["upernet", "mask2former"])
def test_odd_sizes_one_image_a_batch_and_images_below_the_crop(model: str, tmp_path: Path) -> None:
    """Also one image more than a batch has is enough, and bf16."""
    data = runs.write_data(tmp_path / "data", 4, 2, sizes=((31, 47), (50, 97), (9, 5), (64, 64)))
    config = runs.write_config(
        tmp_path / "odd.py", data, model, scale=(97, 61), ratios=(0.5, 1.5), flip=0.5, batch=1,
        iterations=4,
    )  # fmt: skip
    options = ["--amp", "bf16", "--cfg-options", "evaluation.interval=4"]
    assert runs.train(config, "--work-dir", tmp_path, "--seed", 1, *options) == 0
    assert all(np.isfinite(value) and value > 0 for value in losses(tmp_path))
    assert "mIoU" in log_rows(tmp_path)[-1]
    dtypes = {v.dtype for v in load_file(tmp_path / "iter_4.pth")["state_dict"].values()}
    assert dtypes <= {torch.float32, torch.int64}


def test_data_sets_below_one_batch(tmp_path: Path) -> None:
    data = runs.write_data(tmp_path / "data", 1, 1)
    config = runs.write_config(tmp_path / "small.py", data, batch=3, iterations=2)
    assert runs.train(config, "--work-dir", tmp_path, "--no-validate") == 0
    assert len(losses(tmp_path)) == 2


def test_runs_by_epochs(trained: Trained, tmp_path: Path) -> None:
    code = runs.train(
        trained.config, "--work-dir", tmp_path, "--seed", 3, "--cfg-options",
        "runner._delete_=True", "runner.type=EpochBasedRunner", "runner.max_epochs=1",
        "checkpoint_config.by_epoch=True", "checkpoint_config.interval=1", "evaluation.interval=1",
    )  # fmt: skip
    assert code == 0
    assert (tmp_path / "epoch_1.pth").is_file()
    assert len(losses(tmp_path)) == 6
    assert "mIoU" in log_rows(tmp_path)[-1]


def test_load_from_starts_from_weights_with_other_classes(trained: Trained, tmp_path: Path) -> None:
    for split in ("training", "validation"):
        for path in (trained.data / "annotations" / split).iterdir():
            (tmp_path / "annotations" / split).mkdir(parents=True, exist_ok=True)
            labels = np.array(Image.open(path))
            labels[labels == 4] = 0
            Image.fromarray(labels).save(tmp_path / "annotations" / split / path.name)
    shutil.copytree(trained.data / "images", tmp_path / "images")
    names = "('ground','square','bar','dot')"
    options = ["model.decode_head.num_classes=4", "model.auxiliary_head.num_classes=4"]
    for split in ("train", "val"):
        options += [f"data.{split}.data_root={tmp_path}", f"data.{split}.classes={names}"]
        options += [f"data.{split}.palette=[[0,0,0],[255,0,0],[0,255,0],[0,0,255]]"]
    code = runs.train(
        trained.config, "--work-dir", tmp_path, "--load-from", trained.checkpoint,
        "--cfg-options", "runner.max_iters=2", *options,
    )  # fmt: skip
    assert code == 0
    log = max(tmp_path.glob("*.log")).read_text()
    assert "of another shape in the file (decode_head.conv_seg.weight [5, 32, 1, 1]" in log
    assert losses(tmp_path)[0] < 0.9 * losses(trained.work_dir)[0]


def test_settings_of_the_command_line_reach_the_run(trained: Trained, tmp_path: Path) -> None:
    code = runs.train(
        trained.config, "--work-dir", tmp_path, "--no-validate", "--deterministic", "--gpu-ids", 0,
        "--local_rank", 0, "--seed", 7, "--diff_seed", "--options", "runner.max_iters=1",
    )  # fmt: skip
    assert code == 0
    assert "seed: 7, deterministic" in max(tmp_path.glob("*.log")).read_text()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic = False


def test_workflow_with_validation_losses(trained: Trained, tmp_path: Path) -> None:
    options = ["--cfg-options", "runner.max_iters=2", "workflow=[('train',1),('val',1)]"]
    assert runs.train(trained.config, "--work-dir", tmp_path, "--no-validate", *options) == 0
    assert [row["mode"] for row in log_rows(tmp_path) if "loss" in row or "mode" in row]


def test_endless_batches_hold_every_image_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(rank: int, world_size: int, batch_size: int, count: int) -> list[list[int]]:
        import mmseg_custom.training as training

        monkeypatch.setattr(training, "get_dist_info", lambda: (rank, world_size))
        batches = iter(EndlessBatches(5, batch_size, seed=1))
        return [next(batches) for _ in range(count)]

    one = [index for batch in drawn(0, 1, 2, 10) for index in batch]
    assert [sorted(one[i : i + 5]) for i in range(0, 20, 5)] == [[0, 1, 2, 3, 4]] * 4
    assert one[:5] != one[5:10]
    parts = [drawn(rank, 2, 1, 10) for rank in (0, 1)]
    assert [[*a, *b] for a, b in zip(*parts)] == drawn(0, 1, 2, 10)
    assert len(EndlessBatches(5, 2, seed=1)) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("amp", ["fp16", "bf16"])
@pytest.mark.parametrize("model", ["upernet", "mask2former"])
def test_mixed_precision_on_a_gpu(model: str, amp: str, trained: Trained, tmp_path: Path) -> None:
    config = runs.write_config(tmp_path / "gpu.py", trained.data, model, iterations=8)
    flags = ["--work-dir", tmp_path, "--seed", 1, "--amp", amp, "--device", "cuda"]
    assert runs.train(config, *flags) == 0
    values = losses(tmp_path)
    assert sum(values[-3:]) < sum(values[:3])
    assert "device: cuda, processes: 1" in max(tmp_path.glob("*.log")).read_text()


def test_loss_that_is_not_finite_ends_the_run(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not finite in epoch 1, iteration \d.*Lower"):
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
        (["--cfg-options", "runner.type=IterRunner"], "did you mean 'IterBasedRunner'"),
        (["--cfg-options", "data.train.data_root=/nowhere"], "/nowhere"),
        (
            [
                "--cfg-options",
                "data.train.data_root=/nowhere",  # before the weights, which may be far away
                "model.backbone.pretrained=/far.pth",
            ],
            "/nowhere",
        ),
        (["--cfg-options", "data.train.ann_dir=annotations/validation"], "missing"),
        (["--cfg-options", "data.train.img_suffix=.jpg"], "no image"),
        (["--cfg-options", "data.val.classes=('ground','square')"], "has 2 classes"),
        (["--cfg-options", "optimizer.type=AdamX"], "Did you mean 'Adam"),
        (["--cfg-options", "evaluation.intervall=2"], "did you mean 'interval'"),
        (["--cfg-options", "evaluation.metric=miou"], "evaluation.metric miou"),
        (["--resume-from", "/nowhere.pth"], "/nowhere.pth does not exist"),
        (["--load-from", "/nowhere.pth"], "/nowhere.pth does not exist"),
        (["--amp", "fp16", "--device", "cpu"], "the CPU has bf16"),
        (["--launcher", "pytorch"], "needs the environment variable RANK"),
        (["--launcher", "slurm"], "needs the environment variable SLURM_PROCID"),
        (["--options", "a=1", "--cfg-options", "b=1"], "give only --cfg-options"),
        (["--work-dir", "/proc/work"], "cannot be written"),
    ],
)
def test_errors_of_the_user_are_one_sentence(
    trained: Trained, tmp_path: Path, argv: list[str], message: str
) -> None:
    with pytest.raises(USER_ERRORS) as error:
        runs.train(trained.config, "--work-dir", tmp_path, *argv)
    assert message in str(error.value)
    assert "Traceback" not in str(error.value)


def test_label_out_of_range_in_the_middle_of_a_run_is_one_line(tmp_path: Path) -> None:
    """The checks look at 16 masks; the fault is in another one, met by a worker process."""
    data = runs.write_data(tmp_path / "data", 40, 1)
    first = sorted(p.name for p in (data / "images" / "training").iterdir())
    looked = {int(i) for i in np.linspace(0, 39, 16)}
    bad = data / "annotations" / "training" / first[next(i for i in range(40) if i not in looked)]
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(bad)
    config = runs.write_config(tmp_path / "bad.py", data, batch=8, iterations=6)
    argv = ["--work-dir", tmp_path, "--no-validate", "--cfg-options", "data.workers_per_gpu=1"]
    done = runs.shell(sys.executable, runs.FOLDER / "train.py", config, *argv)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert str(bad) in last and "77" in last
    assert "Traceback" not in done.stderr


def test_paths_on_the_command_line_may_have_spaces() -> None:
    argv = ["c.py", "--cfg-options", "a.b=/my data/x y", "c=[1, 2]", "d= 0.5", "e='two words'"]
    options = runs.program("train").parse_args(argv).cfg_options
    assert options == {"a.b": "/my data/x y", "c": [1, 2], "d": 0.5, "e": "two words"}


def test_program_ends_with_one_line_and_1() -> None:
    config = "configs/ade20k/upernet_internimag_t_512_160k_ade20k.py"
    done = runs.shell(sys.executable, runs.FOLDER / "train.py", config)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert f"{config} does not exist" in last and "upernet_internimage_t_512" in last
    assert "Traceback" not in done.stderr
