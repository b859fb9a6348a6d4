"""FSDP2, DeepSpeed and Accelerate: the losses of plain training, whole checkpoints, exact resumes.

Everything here runs on CPUs with gloo. What needs a GPU and is not run: nccl, float16 with its loss
scale (DeepSpeed refuses float16 on CPUs without AVX512-FP16).
"""

import json
import math
import shutil
import subprocess
import sys
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from helpers import CLASSIFICATION, environment, read_log, run_program, torchrun

import main
from backend_deepspeed import DeepSpeedBackend, deepspeed_config
from backend_folder import FolderBackend
from checkpoint import CheckpointError
from config import ConfigError, get_config
from folder_checkpoint import RUN_FILE, FolderWriter, find_folder, resolve_folder
from models.safe_load import load_file

CONFIGS = CLASSIFICATION / "configs" / "accelerate"
SERIES = CLASSIFICATION / "tests" / "series.py"
SETTINGS = ["TRAIN.EPOCHS", "2", "TRAIN.WARMUP_EPOCHS", "0", "MODEL.DROP_PATH_RATE", "0.0"]
SGD = ["TRAIN.OPTIMIZER.NAME", "sgd", "TRAIN.BASE_LR", "1.0", "TRAIN.EPOCHS", "1"]
fsdp = pytest.mark.skipif(
    not hasattr(torch.distributed.fsdp, "fully_shard"), reason="FSDP2 needs PyTorch 2.6"
)


@pytest.fixture(scope="module")
def large_yaml(nano_yaml, colours, tmp_path_factory) -> Path:
    """17 validation images: two processes with batches of 4 have 3 and 2 batches of them."""
    root = tmp_path_factory.mktemp("unequal")
    shutil.copytree(colours, root / "data")
    for file in [*(root / "data" / "val").glob("*/004.png"), root / "data/val/green/003.png"]:
        file.unlink()
    (root / "nano.yaml").write_text(nano_yaml.read_text().replace(str(colours), f"{root}/data"))
    return root / "nano.yaml"


def flags(cfg, output, *more) -> list[str]:
    """Two processes, 4 images each, 3 batches per update."""
    return list(map(str, [
        "--cfg", cfg, "--output", output, "--batch-size", 4, "--accumulation-steps", 3, *more,
        "--opts", *SETTINGS,
    ]))  # fmt: skip


def write_series(folder: Path, programs: list[list]) -> Path:
    file = folder / "series.json"
    file.write_text(json.dumps([list(map(str, program)) for program in programs]))
    return file


def run(folder: Path, *programs: list) -> None:
    """The programs one after the other, in two processes that start once."""
    done = torchrun(write_series(folder, programs), program=SERIES)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


def numbers(output, epochs=(0, 1)) -> list[float]:
    """Loss and gradient norm of each iteration, then the evaluations, in order."""
    train = [r for r in read_log(output) if r["epoch"] in epochs]
    evaluations = [r for r in read_log(output, "eval") if r["epoch"] in epochs]
    values = [r[key] or 0.0 for r in train for key in ("loss", "grad_norm", "lr")]
    assert {r["images"] for r in evaluations} == {17}
    return values + [r["loss"] for r in evaluations]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, large_yaml) -> Path:
    """A folder with one output folder for each way of distributing the same training."""
    root = tmp_path_factory.mktemp("runs")
    series = [
        ["main.py", *flags(large_yaml, root / "ddp")],
        ["main.py", *flags(large_yaml, root / "ddp_sgd"), *SGD],
    ]
    if hasattr(torch.distributed.fsdp, "fully_shard"):
        series.append(["main.py", *flags(large_yaml, root / "fsdp", "--fsdp", "--use-checkpoint")])
    if find_spec("accelerate"):
        series.append(["main_accelerate.py", *flags(large_yaml, root / "accelerate")])
    if find_spec("deepspeed"):
        offload = ["--zero-stage", 2, "--offload-optimizer", "cpu", "--save-ckpt-num", 1]
        for name, more, settings in (
            ("zero3", ["--zero-stage", 3], []),
            ("zero2", offload, []),
            ("zero1_sgd", ["--zero-stage", 1], SGD),
        ):
            arguments = flags(large_yaml, root / name, *more)
            series.append(["main_deepspeed.py", *arguments, *settings])
    run(root, *series)
    return root


@pytest.fixture(scope="module")
def plain(runs) -> Path:
    """Two epochs of main.py with DistributedDataParallel."""
    return runs / "ddp" / "nano"


@pytest.fixture(scope="module")
def zero3(runs) -> Path:
    """Two epochs of main_deepspeed.py with sharded weights."""
    pytest.importorskip("deepspeed")
    return runs / "zero3" / "nano"


def same_weights(ours, theirs, tolerance=1e-4) -> None:
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key].to(value.dtype), value, rtol=0, atol=tolerance)


# ------------------------------------------------------------------------------------------- FSDP2
@fsdp
def test_fsdp_is_ddp_with_less_memory(runs, plain, large_yaml, tmp_path):
    """Losses, the checkpoint as a plain file, and a resume of a plain checkpoint.

    In validation one process has a batch more, for which the other has to gather weights too.
    """
    sharded = runs / "fsdp" / "nano"
    assert numbers(sharded) == pytest.approx(numbers(plain), rel=2e-3, abs=1e-6)
    theirs, ours = (load_file(f / "ckpt_epoch_1.pth") for f in (plain, sharded))
    assert set(ours) == set(theirs)
    same_weights(ours["model"], theirs["model"], 1e-3)
    same_weights(ours["model_ema"], theirs["model_ema"], 1e-3)
    groups = [group["name"] for group in ours["optimizer"]["param_groups"]]
    assert groups == [group["name"] for group in theirs["optimizer"]["param_groups"]]
    # FSDP goes on from DDP's first epoch, and plain PyTorch from FSDP's last
    source = str(plain / "ckpt_epoch_0.pth")
    more = ["--resume", source, "--output", str(tmp_path / "b"), "--fsdp"]
    assert main.main(["--cfg", str(large_yaml), *more, "--opts", *SETTINGS]) == 0
    records = read_log(tmp_path / "b" / "nano", "eval")
    assert [r["epoch"] for r in records if not r["ema"]] == [0, 1]
    for record, expected in zip(records[:2], read_log(plain, "eval")[:2], strict=True):
        assert record["ema"] == expected["ema"]
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    source = sharded / "ckpt_epoch_1.pth"
    more = ["--resume", str(source), "--output", str(tmp_path / "c")]
    assert main.main(["--cfg", str(large_yaml), *more, "--opts", *SETTINGS[2:]]) == 0
    records = read_log(tmp_path / "c" / "nano", "eval", ema=False)
    assert [r["epoch"] for r in records] == [1, 2]
    assert records[0]["loss"] == pytest.approx(read_log(plain, "eval", ema=False)[1]["loss"], 1e-3)


@fsdp
def test_fsdp_refuses_what_it_cannot_do(nano_yaml, tmp_path, caplog, monkeypatch):
    base = ["--cfg", str(nano_yaml), "--output", str(tmp_path), "--fsdp"]
    assert main.main([*base, "--compile"]) == 1
    assert main.main([*base, "--amp-dtype", "float16"]) == 1
    assert "cannot be combined" in caplog.text and "bfloat16" in caplog.text
    import backend_fsdp

    monkeypatch.setattr(backend_fsdp, "fully_shard", None)
    assert main.main(base) == 1
    assert "--fsdp needs PyTorch 2.6 or newer, this is" in caplog.text


@fsdp
def test_fsdp_in_one_process_in_bfloat16(nano_yaml, tmp_path):
    base = ["--cfg", str(nano_yaml), "--output", str(tmp_path), "--fsdp"]
    base += ["--amp-dtype", "bfloat16", "--use-zero"]  # which the configs of H and G ask for
    assert main.main([*base, "--opts", "TRAIN.EPOCHS", "1"]) == 0
    assert "FSDP2 in torch.bfloat16" in (tmp_path / "nano" / "log_rank0.txt").read_text()
    weights = load_file(tmp_path / "nano" / "ckpt_epoch_0.pth")["model"]
    assert all(v.dtype in (torch.float32, torch.int64) for v in weights.values())


# --------------------------------------------------------------------------------------- DeepSpeed
def test_zero3_is_ddp(plain, zero3):
    assert numbers(zero3) == pytest.approx(numbers(plain), rel=2e-3, abs=1e-6)
    names = {path.name for path in zero3.iterdir()}
    assert names >= {"epoch0", "epoch1", "best", "best_ema", "latest", "config.json", "log.jsonl"}
    assert (zero3 / "latest").read_text() == "epoch1"
    log = (zero3 / "log_rank0.txt").read_text()
    assert log.count("float32, as the configuration has AMP_OPT_LEVEL O0; --amp-dtype") == 1
    entries = torch.load(zero3 / "best" / RUN_FILE, weights_only=True)
    assert entries["config"]["MODEL"]["NAME"] == "nano"
    assert entries["max_accuracy"] == max(r["acc1"] for r in read_log(zero3, "eval", ema=False))


def test_zero2_with_offload_is_ddp(runs, plain):
    """The update happens in main memory, by PyTorch's AdamW."""
    pytest.importorskip("deepspeed")
    output = runs / "zero2" / "nano"
    assert numbers(output) == pytest.approx(numbers(plain), rel=2e-3, abs=1e-6)
    assert not (output / "epoch0").exists()  # SAVE_CKPT_NUM


def test_zero1_with_sgd_is_ddp(runs):
    pytest.importorskip("deepspeed")
    ours, theirs = (numbers(runs / name / "nano", (0,)) for name in ("zero1_sgd", "ddp_sgd"))
    assert ours == pytest.approx(theirs, rel=2e-3, abs=1e-6)


def test_zero3_goes_on_exactly_after_a_kill(zero3, large_yaml, tmp_path):
    """The second checkpoint is half written: the first is used, and bitwise the same follows."""
    output = tmp_path / "nano"
    shutil.copytree(zero3 / "epoch0", output / "epoch0")
    shutil.copytree(zero3 / "epoch0", output / ".epoch1.tmp")
    (output / ".epoch1.tmp" / RUN_FILE).unlink()
    (output / "latest").write_text("epoch0")
    run(tmp_path, ["main_deepspeed.py", *flags(large_yaml, tmp_path, "--zero-stage", 3)])
    assert numbers(output, (1,)) == numbers(zero3, (1,))
    assert (output / "latest").read_text() == "epoch1"
    assert not (output / ".epoch1.tmp").exists()
    theirs, ours = (load_file(f / "epoch1" / "model_ema.pth") for f in (zero3, output))
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.fixture(scope="module")
def alone(zero3, large_yaml, tmp_path_factory) -> Path:
    """One process: a run in bfloat16, an evaluation of a folder, and a folder as a plain file."""
    root = tmp_path_factory.mktemp("alone")
    more = ["--zero-stage", 3, "--offload-optimizer", "cpu", "--offload-param", "cpu"]
    more += ["--amp-dtype", "bfloat16", "--use-checkpoint"]
    train = flags(large_yaml, root / "bf16", *more, "--batch-size", 8)
    train += ["TRAIN.LR_LAYER_DECAY", "True", "TRAIN.EPOCHS", "1"]
    evaluate = ["--cfg", large_yaml, "--eval", "--resume", zero3 / "best", "--output", root / "b"]
    series = write_series(root, [
        ["main_deepspeed.py", *train],
        ["main_deepspeed.py", *evaluate],
        ["main_deepspeed.py", "--to-pth", zero3, root / "plain.pth"],
    ])  # fmt: skip
    done = run_program(SERIES, series)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return root


def test_zero3_offloaded_in_bfloat16_with_layer_decay(plain, alone):
    ours, theirs = read_log(alone / "bf16" / "nano"), read_log(plain)
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=0.2)
    assert all(math.isfinite(r["loss"]) for r in ours) and ours[-1]["lr"] < theirs[5]["lr"]
    log = (alone / "bf16" / "nano" / "log_rank0.txt").read_text()
    assert "DeepSpeed ZeRO-3 in torch.bfloat16" in log


def test_plain_file_from_a_folder(zero3, alone, large_yaml, tmp_path):
    """--to-pth; main.py evaluates the file, main_deepspeed.py the folder, with the same result."""
    file = alone / "plain.pth"
    state = torch.load(file, weights_only=True)
    assert set(state) >= {"model", "model_ema", "epoch", "config", "class_names", "max_accuracy"}
    arguments = ["--cfg", large_yaml, "--eval", "--resume", file, "--output", tmp_path]
    assert main.main(list(map(str, arguments))) == 0
    trained = {r["ema"]: r for r in read_log(zero3, "eval") if r["epoch"] == 1}
    for ema in (False, True):
        (found,) = read_log(tmp_path / "nano", "eval", ema=ema)
        assert found["loss"] == pytest.approx(trained[ema]["loss"], rel=1e-5)
        assert found["acc1"] == trained[ema]["acc1"]
    best = load_file(zero3 / "best" / RUN_FILE)
    (found,) = read_log(alone / "b" / "nano", "eval", ema=False)
    assert found["acc1"] == best["max_accuracy"] and found["epoch"] == best["epoch"]


def test_another_number_of_processes_or_a_file_is_refused(nano_config, tmp_path):
    backend = FolderBackend(nano_config, Namespace(world_size=1))
    backend.stage = 3
    torch.save({"world_size": 2, "zero_stage": 3}, tmp_path / RUN_FILE)
    with pytest.raises(CheckpointError, match="processes 2, this run has 1.*--to-pth"):
        backend.resume(str(tmp_path))
    with pytest.raises(CheckpointError, match="single file.*--pretrained"):
        backend.resume(str(tmp_path / RUN_FILE))


def test_a_folder_that_lacks_a_shard_is_refused(tmp_path):
    backend = Namespace(info=Namespace(world_size=2))
    (tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    with pytest.raises(ValueError, match="1 files .* 2 are needed: it is incomplete"):
        DeepSpeedBackend.check_shards(backend, tmp_path)
    (tmp_path / "zero_pp_rank_1_mp_rank_00_optim_states.pt").touch()
    DeepSpeedBackend.check_shards(backend, tmp_path)


def test_deepspeed_configuration(nano_yaml):
    config = get_config(Namespace(cfg=str(nano_yaml), opts=["TRAIN.ACCUMULATION_STEPS", "4"]))
    made = deepspeed_config(config, stage=2, dtype=torch.float16, offload_optimizer=True)
    assert made["gradient_accumulation_steps"] == 4 and made["gradient_clipping"] == 5.0
    assert made["fp16"] == {"enabled": True, "loss_scale": 0.0}  # 0 is dynamic
    assert made["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    made = deepspeed_config(config, stage=1, dtype=torch.float16, static_loss_scale=True)
    assert made["fp16"]["loss_scale"] == 1.0 and "bf16" not in made
    with pytest.raises(ConfigError, match="--offload-param cpu needs --zero-stage 3"):
        deepspeed_config(config, stage=2, dtype=None, offload_param=True)


# -------------------------------------------------------------------------------------- Accelerate
def test_accelerate_without_deepspeed_is_ddp(runs, plain):
    """On CPUs ``accelerate launch`` starts one process without DeepSpeed, so torchrun does it."""
    pytest.importorskip("accelerate")
    output = runs / "accelerate" / "nano_deepspeed"
    assert numbers(output) == pytest.approx(numbers(plain), rel=1e-5)


def test_accelerate_with_deepspeed_is_ddp_and_goes_on_exactly(plain, large_yaml, tmp_path):
    """``accelerate launch`` with a shipped DeepSpeed configuration, for two CPU processes."""
    pytest.importorskip("accelerate")
    pytest.importorskip("deepspeed")
    settings = yaml.safe_load((CONFIGS / "dist_8gpus_zero1.yaml").read_text())
    settings |= {"num_processes": 2, "use_cpu": True}
    (tmp_path / "launch.yaml").write_text(yaml.safe_dump(settings))
    output, again = tmp_path / "nano_deepspeed", tmp_path / "again" / "nano_deepspeed"
    common = ["--amp-dtype", "none"]
    series = write_series(tmp_path, [
        ["main_accelerate.py", *flags(large_yaml, tmp_path, *common)],
        ["main_accelerate.py",
         *flags(large_yaml, tmp_path / "again", *common, "--resume", output / "epoch0")],
    ])  # fmt: skip
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file",
        tmp_path / "launch.yaml", "--main_process_port", 0, SERIES, series,
    ]  # fmt: skip
    done = subprocess.run(
        list(map(str, command)), env=environment(), cwd=CLASSIFICATION, capture_output=True,
        text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert numbers(output) == pytest.approx(numbers(plain), rel=2e-3, abs=1e-6)
    assert (output / "last").resolve() == output / "epoch1" and (output / "best").is_dir()
    assert done.stdout.count("Train: [0/2][5/6]") == 1  # the main process alone reports
    assert numbers(again, (1,)) == numbers(output, (1,))


def test_accelerate_pretrained_frequency_and_wandb(plain, large_yaml, tmp_path, monkeypatch):
    """One process: --pretrained is used in training, SAVE_FREQ kept, --logger obeyed."""
    state = pytest.importorskip("accelerate").state
    import main_accelerate

    logged = []
    board = Namespace(log=lambda values, step: logged.append(values), finish=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", Namespace(init=lambda **settings: board))
    arguments = ["--cfg", large_yaml, "--output", tmp_path]
    arguments += ["--pretrained", plain / "ckpt_epoch_1.pth", "--logger", "wandb"]
    arguments += ["--save-ckpt-num", "3", "--opts", "TRAIN.EPOCHS", "3", "SAVE_FREQ", "2"]
    arguments += ["TRAIN.BASE_LR", "0.0", "TRAIN.MIN_LR", "0.0", "TRAIN.WARMUP_LR", "0.0"]
    try:
        assert main_accelerate.main(list(map(str, arguments))) == 0
    finally:
        state.AcceleratorState._reset_state(reset_partial_state=True)
    output = tmp_path / "nano_deepspeed"
    assert {p.name for p in output.glob("epoch*")} == {"epoch0", "epoch2"}
    first = read_log(output, "eval", ema=False)[0]
    assert first["epoch"] == -1 and first["acc1"] == read_log(plain, "eval", ema=False)[1]["acc1"]
    assert {key for values in logged for key in values} >= {"train/loss", "val/acc1"}
    assert not (output / "tensorboard").exists()


def test_wandb_that_is_not_installed(nano_config, monkeypatch):
    from backend_accelerate import check_config

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        check_config(nano_config, Namespace(logger="wandb"))


def test_launch_configurations_are_whole():
    """The names of the original implementation; every JSON that a YAML names is there."""
    names = {path.stem.removeprefix("dist_8gpus_") for path in CONFIGS.glob("*.yaml")}
    assert names == {
        "ddp_fp16", "zero1", "zero1_wo_loss_scale", "zero3", "zero3_wo_loss_scale",
        "zero3_offload", "zero3_offload_wo_loss_scale",
    }  # fmt: skip
    for path in CONFIGS.glob("*.yaml"):
        settings = yaml.safe_load(path.read_text())
        assert settings["num_processes"] == 8
        if path.stem.endswith("ddp_fp16"):
            assert settings["mixed_precision"] == "fp16"
            continue
        file = CLASSIFICATION / settings["deepspeed_config"]["deepspeed_config_file"]
        made = json.loads(file.read_text())
        assert made["gradient_accumulation_steps"] == "auto"
        assert made["zero_optimization"]["stage"] == (1 if "zero1" in path.stem else 3)
        assert ("offload_param" in made["zero_optimization"]) == ("offload" in path.stem)
        assert made["fp16"]["loss_scale"] == (1.0 if "wo_loss_scale" in path.stem else 0)


# ------------------------------------------------------------------------------ checkpoint folders
def write_to(folder, text="x"):
    (folder / RUN_FILE).write_text(text)


def test_folders_are_whole_or_absent(tmp_path):
    writer = FolderWriter(tmp_path, save_freq=2, keep=1, link="last")
    assert find_folder(tmp_path) is None
    writer.save_epoch(0, write_to)

    def fail(folder):
        (folder / "half").touch()
        raise OSError("disk full")

    with pytest.raises(CheckpointError, match=r"disk full.*Earlier checkpoints"):
        writer.save_epoch(2, fail)
    assert {p.name for p in tmp_path.iterdir()} == {"epoch0", "latest", "last"}
    assert find_folder(tmp_path) == tmp_path / "epoch0" == (tmp_path / "last").resolve()
    writer.save_epoch(2, write_to)
    assert {p.name for p in tmp_path.iterdir()} == {"epoch2", "latest", "last"}
    for text in "ab":
        writer.save("best", lambda folder, text=text: write_to(folder, text))
    assert (tmp_path / "best" / RUN_FILE).read_text() == "b"


def test_a_kill_between_two_renames_loses_nothing(tmp_path):
    (tmp_path / ".best.old.tmp").mkdir()
    write_to(tmp_path / ".best.old.tmp")
    FolderWriter(tmp_path, 1, 1)
    assert (tmp_path / "best" / RUN_FILE).exists() and not (tmp_path / ".best.old.tmp").exists()
    (tmp_path / "latest").write_text("epoch7")  # whose folder somebody removed
    for number in (9, 10):
        (tmp_path / f"epoch{number}").mkdir()
        write_to(tmp_path / f"epoch{number}")
    assert resolve_folder(tmp_path) == tmp_path / "epoch10"
    with pytest.raises(CheckpointError, match="is not a checkpoint folder"):
        resolve_folder(tmp_path / "nothing")
