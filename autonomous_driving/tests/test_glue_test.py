"""The test program, and runs with two processes, which compute what one process does."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace

import glue_runs as runs
import glue_toy
import numpy as np
import pytest
import torch
from internimage.cli import USER_ERRORS
from mmcv_custom.distributed import free_port


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A short run of the toy detector; five frames of two scenes to test."""
    folder = tmp_path_factory.mktemp("glue_test")
    data = glue_toy.write_data(folder / "data", train=2, val=5)
    config = glue_toy.write_config(folder / "toy.py", data)
    work_dir = folder / "work"
    options = ["--no-validate", "--cfg-options", "runner.max_epochs=1"]
    assert runs.train(config, "--work-dir", work_dir, "--seed", 3, *options) == 0
    return SimpleNamespace(
        config=config, data=data, folder=folder, checkpoint=work_dir / "epoch_1.pth"
    )


def test_everything_that_a_test_can_write(trained: SimpleNamespace, tmp_path: Path) -> None:
    code = runs.test(
        trained.config, trained.checkpoint, "--work-dir", tmp_path, "--eval_fscore", "--eval",
        "--out", tmp_path / "deep" / "results.pkl", "--show-dir", tmp_path / "show",
        "--eval-options", "begin=1", "end=3", "factor=2.0",
    )  # fmt: skip
    assert code == 0
    metrics = runs.metrics_of(tmp_path)
    results = pickle.loads((tmp_path / "deep" / "results.pkl").read_bytes())
    assert [one["token"] for one in results] == [f"val-{i}" for i in range(5)]
    assert [one["seen"] for one in results] == [1, 2, 3, 1, 2]
    expected = glue_toy.GlueToyData(trained.data, "val.json", []).evaluate(results)["mIoU"]
    assert metrics == {"mIoU": pytest.approx(2 * expected), "never": None, "F-score": 0.5}
    assert {path.name for path in (tmp_path / "show").iterdir()} == {"0001.txt", "0002.txt"}


def test_format_only_writes_where_it_is_told(trained: SimpleNamespace, tmp_path: Path) -> None:
    common = [trained.config, trained.checkpoint, "--work-dir", tmp_path, "--format-only"]
    assert runs.test(*common, "--split", "val") == 0
    assert (tmp_path / "submission").read_text() == " ".join(f"val-{i}" for i in range(5))
    assert runs.test(*common, "--eval-options", f"submission_prefix={tmp_path / 'mine'}") == 0
    assert (tmp_path / "mine").is_file()
    assert not list(tmp_path.glob("eval_*.json"))


def test_batches_of_several_frames(trained: SimpleNamespace, tmp_path: Path) -> None:
    common = [trained.config, trained.checkpoint, "--work-dir", tmp_path]
    assert runs.test(*common, "--out", tmp_path / "one.pkl", "--fuse-conv-bn") == 0
    options = ["--cfg-options", "data.test_dataloader.samples_per_gpu=2"]
    assert runs.test(*common, "--out", tmp_path / "two.pkl", *options) == 0
    first, second = (pickle.loads((tmp_path / f"{n}.pkl").read_bytes()) for n in ("one", "two"))
    assert [one["token"] for one in first] == [one["token"] for one in second]
    for one, other in zip(first, second):
        np.testing.assert_allclose(one["color"], other["color"], atol=1e-5)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--eval"], "does not exist"),
        (["--eval", "mIou"], "did you mean 'mIoU'"),
        (
            ["--eval", "--eval-options", "factr=2"],
            "'factr' is no option of GlueToyData.evaluate, did you mean 'factor'",
        ),
        (["--out", "/tmp/r.pkl", "--eval-options", "begin=1"], "--eval-options begin: for"),
        (["--show"], "--show-dir FOLDER writes files"),
        (["--out", "/proc/x/results.pkl"], "--out: the folder /proc/x cannot be written"),
        (["--eval", "--cfg-options", "model.img_backbone.channels=32"], "of another shape"),
        (["--eval", "--cfg-options", "data.test=None"], "has no data.test"),
    ],
)
def test_errors_of_the_user_are_one_sentence(
    trained: SimpleNamespace, tmp_path: Path, argv: list[str], message: str
) -> None:
    checkpoint = "/nowhere.pth" if message == "does not exist" else trained.checkpoint
    with pytest.raises(USER_ERRORS) as error:
        runs.test(trained.config, checkpoint, "--work-dir", tmp_path, *argv)
    assert message in str(error.value)


def test_a_checkpoint_of_another_model(trained: SimpleNamespace, tmp_path: Path) -> None:
    torch.save({"state_dict": {"other.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(USER_ERRORS, match="a checkpoint of another model: 0 of the model's"):
        runs.test(trained.config, tmp_path / "other.pth", "--work-dir", tmp_path, "--eval")


@pytest.mark.parametrize(
    ("project", "argv", "message"),
    [
        ("occ", [], "give --eval, --out, --format-only"),
        ("occ", ["--eval", "mIoU", "--format-only"], "exclude each other"),
        ("hdmap", ["--eval", "--split", "test"], "the split 'test' has none"),
        ("olv2", ["--eval_fscore"], "unknown argument '--eval_fscore'"),
    ],
)
def test_wrong_command_lines_end_with_2(
    project: str, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        runs.test("config.py", "checkpoint.pth", *argv, project=project)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_two_processes_test_as_one(trained: SimpleNamespace, tmp_path: Path) -> None:
    """By the launcher; each takes whole scenes, so that what the model carries is the same."""
    arguments = [trained.config, trained.checkpoint, "--eval", "mIoU"]
    one = ["--work-dir", tmp_path / "one", "--out", tmp_path / "one.pkl"]
    assert runs.test(*arguments, *one) == 0
    done = runs.shell(
        "bash", runs.tool("occ", "dist_test.sh"), trained.config, trained.checkpoint, "2",
        "--eval", "mIoU", "--work-dir", "two", "--out", "two.pkl", "--gpu-collect",
        env={"PORT": str(free_port())}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (pickle.loads((tmp_path / f"{n}.pkl").read_bytes()) for n in ("one", "two"))
    assert [(r["token"], r["seen"]) for r in first] == [(r["token"], r["seen"]) for r in second]
    for result, other in zip(first, second):
        np.testing.assert_allclose(result["color"], other["color"], atol=1e-5)
    values = [runs.metrics_of(tmp_path / name)["mIoU"] for name in ("one", "two")]
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    assert not list((tmp_path / "two").glob(".parts-*"))


def test_two_processes_train_as_one_with_the_doubled_batch(
    trained: SimpleNamespace, tmp_path: Path
) -> None:
    """With evaluation; nothing is drawn at random."""
    options = [
        "--seed", "0", "--cfg-options", "model.img_backbone.drop_path_rate=0",
        "optimizer._delete_=True", "optimizer.type=SGD", "optimizer.lr=0.05",
    ]  # fmt: skip
    text = Path(trained.config).read_text()
    plain = text.replace(
        'dict(type="PhotoMetricDistortionMultiViewImage", contrast_range=(0.9, 1.1)),', ""
    )
    assert plain != text
    config = tmp_path / "plain.py"
    config.write_text(plain)
    assert runs.train(config, "--work-dir", tmp_path / "one", *options) == 0
    argv = [config, "--work-dir", tmp_path / "two", "--launcher", "pytorch", *options]
    assert runs.forked(2, runs.train, *argv, "data.samples_per_gpu=1") == [0, 0]
    first, second = (runs.weights(tmp_path / name / "epoch_2.pth") for name in ("one", "two"))
    start = runs.weights(tmp_path / "one" / "epoch_1.pth")
    assert any(not torch.equal(first[name], start[name]) for name in first)
    for name, value in first.items():
        # float32, summed in another order; 2 steps
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-6)
    rows = [runs.log_rows(tmp_path / name) for name in ("one", "two")]
    losses = [[row["loss"] for row in one if "loss" in row] for one in rows]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert rows[0][-1]["mIoU"] == pytest.approx(rows[1][-1]["mIoU"], abs=1e-4)
    assert list((tmp_path / "two").glob("best_mIoU_*.pth"))
    assert "device: cpu, processes: 2" in max((tmp_path / "two").glob("*.log")).read_text()


def test_help_of_every_program_names_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = {"occ": "--eval_fscore", "olv2": "OpenLane-V2", "hdmap": "default: val"}
    for project, word in wanted.items():
        with pytest.raises(SystemExit) as end:
            runs.test("--help", project=project)
        assert end.value.code == 0
        assert word in capsys.readouterr().out
